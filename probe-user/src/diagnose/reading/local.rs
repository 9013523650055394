//! What this host itself has to do with a connection that did not come about: routes, ports, names, unix sockets, who served before.

use std::net::SocketAddr;

use super::{Reading, evidence};
use crate::model::{
    complaint::Message,
    event::{Body, Event, EventId, Source},
    evidence::{Evidence, Fact, Weight},
    flow::Side,
    host::{HostFact, RouteKind, UnixSocket},
    net::{Address, Errno},
    socket::DropEvent,
};

impl<'a> Reading<'a> {
    /// The newest fact about the host that this picks.
    fn newest<T>(&self, pick: impl Fn(&'a HostFact) -> Option<T>) -> Option<(EventId, T)> {
        self.case.host.iter().rev().find_map(|(id, _, fact)| pick(fact).map(|found| (*id, found)))
    }

    /// The errno by which connecting failed, also where only nginx was told it: an ICMP message that finds the socket in use leaves it a
    /// soft error, which `getsockopt(SO_ERROR)` hands over (`sk_getsockopt`,
    /// <https://elixir.bootlin.com/linux/v6.12/source/net/core/sock.c>).
    pub(crate) fn told_connect_error(&self) -> Option<(Errno, Evidence)> {
        self.connect_error().or_else(|| {
            let (event, complaint) = self.complaint()?;
            let errno = complaint.errno.filter(|_| complaint.message == Message::ConnectFailed)?;
            (event.source == Source::Kernel && self.connected() != Some(true))
                .then(|| (errno, evidence(Fact::SocketError { errno }, &[event.id], Weight::Symptom)))
        })
    }

    /// Drops on nginx's way to the upstream: of its SYNs, where it was not connected.
    pub(crate) fn dropped_outward(&self) -> impl Iterator<Item = (&'a Event, &'a DropEvent)> {
        let upstream = self.upstream();
        self.flow_events().filter_map(move |event| match &event.body {
            Body::Drop(drop) if Some(drop.packet.destination) == upstream => Some((event, drop)),
            _ => None,
        })
    }

    /// Where on this host a packet was dropped, as a sentence says it.
    pub(crate) fn place_of(&self, drop: &DropEvent) -> &'static str {
        let own = self.flow().and_then(|flow| flow.sockets(Side::Nginx).find_map(|(_, e)| e.socket.netns));
        let own = own.or_else(|| self.socket_at_failure().and_then(|(socket, _)| socket.netns));
        let theirs = self
            .look_up()
            .and_then(|look_up| look_up.listeners.iter().chain(look_up.nearby).find_map(|listener| listener.netns));
        match drop.netns {
            Some(place) if Some(place) == own && own == theirs => "on this host",
            Some(place) if Some(place) == own => "in nginx's own network namespace",
            Some(place) if Some(place) == theirs => "in the upstream's network namespace",
            Some(_) if own.is_some() => "in another network namespace of this host",
            _ => "on this host",
        }
    }

    /// The route to the upstream.
    pub(crate) fn route(&self) -> Option<(RouteKind, Option<&'a str>, Evidence)> {
        let wanted = self.upstream();
        let (id, (kind, destination)) = self.newest(|fact| match fact {
            HostFact::Route { upstream, kind, destination, .. } if Some(*upstream) == wanted => {
                Some((*kind, destination))
            }
            _ => None,
        })?;
        let fact = Fact::Route { kind, destination: destination.clone() };
        Some((kind, destination.as_deref(), evidence(fact, &[id], Weight::Symptom)))
    }

    /// Local ports towards the upstream: how many are held, and how many there are.
    pub(crate) fn local_ports(&self) -> Option<((u32, u32), Evidence)> {
        let wanted = self.upstream();
        let (id, (range, in_use, waiting)) = self.newest(|fact| match fact {
            HostFact::LocalPorts { upstream, range, in_use, waiting, .. } if Some(*upstream) == wanted => {
                Some((*range, *in_use, *waiting))
            }
            _ => None,
        })?;
        let all = u32::from(range.1.saturating_sub(range.0)) + 1;
        let fact = Fact::LocalPorts { range, in_use, waiting };
        Some(((in_use, all), evidence(fact, &[id], Weight::Symptom)))
    }

    /// Open files of the whole system.
    pub(crate) fn system_files(&self) -> Option<((u64, u64), Evidence)> {
        let (id, (open, limit)) = self.newest(|fact| match fact {
            HostFact::SystemFiles { open, limit } => Some((*open, *limit)),
            _ => None,
        })?;
        Some(((open, limit), evidence(Fact::SystemFiles { open, limit }, &[id], Weight::Fits)))
    }

    /// The unix socket and the way to it, and the look-up that found it so.
    pub(crate) fn unix_socket(&self) -> Option<(EventId, &'a UnixSocket)> {
        let wanted = self.unix_path()?;
        self.newest(|fact| match fact {
            HostFact::UnixSocket(socket) if socket.path == wanted => Some(socket),
            _ => None,
        })
    }

    /// Who used to listen on the upstream's address.
    pub(crate) fn served_before(&self) -> Option<Evidence> {
        let wanted = self.server()?;
        let asked = self.started().unwrap_or_else(|| self.failed_at());
        let (id, fact) = self.newest(|fact| match fact {
            HostFact::Served { upstream, pid, command, closed, ended, signal, .. } if *upstream == wanted => {
                let gone = match (closed, ended) {
                    (Some(closed), Some((ended, _))) => Some((*closed).min(*ended)),
                    (closed, ended) => closed.or(ended.map(|(at, _)| at)),
                };
                // It closed its socket and lives on, or it ended; what came after nginx asked explains nothing.
                let gone = gone.filter(|at| *at <= asked)?;
                let command = command.clone().unwrap_or_else(|| "a process".to_owned());
                Some(Fact::FormerListener {
                    upstream: wanted,
                    process: (*pid, command),
                    how: ended.filter(|(at, _)| *at <= asked).map(|(_, how)| how),
                    signal: signal.clone(),
                    ago_us: Some(asked.since_ns(gone) / 1_000),
                })
            }
            _ => None,
        })?;
        Some(evidence(fact, &[id], Weight::Fits))
    }

    /// How many handshakes the upstream's network namespace refused for full accept queues since before the attempt.
    pub(crate) fn listen_overflows(&self) -> Option<Evidence> {
        let netns = self.look_up()?.listeners.iter().find_map(|listener| listener.netns)?;
        let started = self.started()?;
        let samples = || {
            self.case.host.iter().filter_map(move |(id, at, fact)| match fact {
                HostFact::ListenOverflows { netns: of, count } if *of == netns => Some((*id, at.latest, *count)),
                _ => None,
            })
        };
        let (first, _, before) = samples().rfind(|(_, at, _)| *at <= started)?;
        let (last, at, now) = samples().next_back()?;
        (at > started && now > before)
            .then(|| evidence(Fact::ListenOverflows { count: now - before }, &[last, first], Weight::Direct))
    }

    /// A name of nginx's configuration that nginx holds this address for, and which resolves to others now. nginx resolves the names in
    /// its configuration once, when it starts (`ngx_parse_url`).
    pub(crate) fn moved_name(&self) -> Option<Evidence> {
        let holds = self.upstream()?;
        let configuration = self.case.configuration.as_ref()?;
        let literal =
            |server: &crate::model::host::UpstreamServer| Address::parse(&server.name) == Some(Address::Ip(holds));
        if configuration.groups.iter().flat_map(|group| &group.servers).any(literal) {
            return None;
        }
        let mut candidates = configuration.names.iter().filter(|name| name.port == holds.port());
        let certain = configuration.names.iter().find(|name| name.addresses.contains(&holds));
        // An address that no name had when we looked, and that stands nowhere in the configuration: the only name with its port is meant.
        let nowhere = !configuration.upstreams.contains(&Address::Ip(holds));
        let meant = match certain {
            Some(name) => name,
            None if nowhere => candidates.next().filter(|_| candidates.next().is_none())?,
            None => return None,
        };
        let answer = self.newest(|fact| match fact {
            HostFact::Name { name, port, addresses } if *name == meant.name && *port == meant.port => Some(addresses),
            _ => None,
        });
        let (id, now): (Option<EventId>, &Vec<SocketAddr>) = match answer {
            Some((id, now)) => (Some(id), now),
            None => (None, &meant.addresses),
        };
        if now.contains(&holds) || now.is_empty() && answer.is_none() {
            return None;
        }
        let fact = Fact::NameMoved { name: meant.name.clone(), holds, now: now.clone() };
        Some(evidence(fact, id.as_slice(), Weight::Fits))
    }
}
