//! What the host looked like.

use std::net::SocketAddr;

use super::{Reading, evidence, led::Way, need};
use crate::model::{
    coverage::Sensor,
    event::Body,
    event::EventId,
    evidence::{Evidence, Fact, Weight},
    flow::Side,
    host::{HostFact, Listener},
    net::Address,
    process::{Pid, ProcessEvent},
    verdict::Need,
};

/// Where the upstream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Locality {
    /// On this host: its kernel is ours.
    Here,
    /// Its address is none of this host's.
    Elsewhere,
    /// On this host, which led the connection there, and nothing of what happened there is known to be this connection's.
    Unwatched,
    /// Nobody looked, or nobody knows where the connection was led.
    Unknown,
}

/// What a look-up of an upstream's address found.
pub(crate) struct LookUp<'a> {
    /// The look-up.
    pub(crate) event: EventId,
    /// The address belongs to this host.
    pub(crate) local: bool,
    /// Who would take a SYN to it.
    pub(crate) listeners: &'a [Listener],
    /// Who listens nearby.
    pub(crate) nearby: &'a [Listener],
}

impl<'a> Reading<'a> {
    /// Every look-up of the server's address, in order.
    fn look_ups(&self) -> impl DoubleEndedIterator<Item = LookUp<'a>> + use<'a> {
        // Who is found where it was led says nothing of this connection where nobody watched it there.
        let wanted = match self.way() {
            Way::Straight => self.upstream(),
            Way::Watched(to) => Some(to),
            Way::Unwatched(_) | Way::Unclear => None,
        };
        self.look_ups_of(wanted)
    }

    fn look_ups_of(&self, wanted: Option<SocketAddr>) -> impl DoubleEndedIterator<Item = LookUp<'a>> + use<'a> {
        self.case.host.iter().filter_map(move |(event, _, fact)| match fact {
            HostFact::Listeners { upstream, local, listeners, nearby, .. } if Some(*upstream) == wanted => {
                Some(LookUp { event: *event, local: *local, listeners, nearby })
            }
            _ => None,
        })
    }

    /// The last look-up of the upstream's address.
    pub(crate) fn look_up(&self) -> Option<LookUp<'a>> {
        self.look_ups().next_back()
    }

    /// Where the upstream is.
    pub(crate) fn locality(&self) -> Locality {
        // A unix socket's other end is here, whether anybody looks at it or not.
        if self.unix_path().is_some() {
            return Locality::Here;
        }
        if self.case.coverage.left_out(Sensor::UpstreamSide) {
            return Locality::Elsewhere;
        }
        let upstreams_end_seen = self.flow().is_some_and(|flow| {
            flow.accepted_by.is_some()
                || flow.sockets(Side::Upstream).next().is_some()
                || flow.resets_sent_by_upstream().next().is_some()
                // Only the listener's own kernel can say so.
                || self.drops().any(|(_, reason)| reason == Some("TCP_LISTEN_OVERFLOW"))
        });
        if upstreams_end_seen {
            return Locality::Here;
        }
        let (server, here) = match self.way() {
            Way::Straight => (self.upstream(), Locality::Here),
            Way::Watched(to) => (Some(to), Locality::Here),
            Way::Unwatched(to) => (Some(to), Locality::Unwatched),
            // What nginx connected to is the address of nobody.
            Way::Unclear => return Locality::Unknown,
        };
        if server.is_some_and(|address| address.ip().is_loopback()) {
            return here;
        }
        // A container's address may be gone with its last process, and before the look.
        let served = |fact: &HostFact| matches!(fact, HostFact::Served { upstream, .. } if Some(*upstream) == server);
        if here == Locality::Unwatched && self.case.host.iter().any(|(.., fact)| served(fact)) {
            return here;
        }
        match self.look_ups_of(server).next_back() {
            Some(look_up) if look_up.local => here,
            Some(_) => Locality::Elsewhere,
            None => Locality::Unknown,
        }
    }

    /// Why something of the upstream's side is not known that this sensor would have shown.
    pub(crate) fn unseen(&self, sensor: Sensor, what: &str) -> Need {
        let why = match self.locality() {
            Locality::Here => return need(sensor, what),
            Locality::Unknown => return need(Sensor::Host, &format!("{what}: it is not known where the server is")),
            Locality::Elsewhere if self.case.coverage.left_out(Sensor::UpstreamSide) => {
                "the upstream's side is left out".to_owned()
            }
            Locality::Elsewhere => format!("{} was not found among this host's addresses", self.upstream_name()),
            Locality::Unwatched => {
                format!("{} is on this host, and was not watched yet when this connection began", self.upstream_name())
            }
        };
        Need { sensor: None, what: format!("{what}: {why}") }
    }

    /// The upstream's address was known before the attempt, so that nothing about it was passed over.
    pub(crate) fn known_beforehand(&self) -> bool {
        let Some(address) = self.upstream().map(Address::Ip) else { return false };
        self.case.configuration.as_ref().is_some_and(|configuration| {
            configuration.upstreams.contains(&address)
                || configuration.groups.iter().flat_map(|group| &group.servers).any(|s| s.addresses.contains(&address))
        })
    }

    /// Nobody listens there, by look-up.
    pub(crate) fn nobody_listens(&self) -> Option<Evidence> {
        let (upstream, look_up) = (self.server()?, self.look_up()?);
        (look_up.local && look_up.listeners.is_empty())
            .then(|| evidence(Fact::NoListener { upstream }, &[look_up.event], Weight::Symptom))
    }

    /// Somebody listens there, by look-up.
    pub(crate) fn somebody_listens(&self) -> Option<Evidence> {
        let look_up = self.look_up()?;
        let listener = look_up.listeners.first().filter(|_| look_up.local)?;
        Some(evidence(
            Fact::ListensThere { address: listener.address, process: process_of(listener) },
            &[look_up.event],
            Weight::Fits,
        ))
    }

    /// Who listens nearby: on the same port, or on another one where the process that left this one does.
    pub(crate) fn listens_nearby(&self) -> Vec<Evidence> {
        let near =
            self.look_up().into_iter().flat_map(|look_up| look_up.nearby.iter().map(move |l| (look_up.event, l)));
        let elsewhere = self.case.host.iter().flat_map(|(id, _, fact)| match fact {
            HostFact::OtherListeners { listeners, .. } => listeners.iter().map(|l| (*id, l)).collect(),
            _ => Vec::new(),
        });
        let mut found: Vec<(EventId, &Listener)> = Vec::new();
        for (id, listener) in near.chain(elsewhere) {
            if !found.iter().any(|(_, known)| known.address == listener.address && known.pid == listener.pid) {
                found.push((id, listener));
            }
        }
        let one = |(id, listener): (EventId, &Listener)| {
            let fact = Fact::ListensNearby { address: listener.address, process: process_of(listener) };
            evidence(fact, &[id], Weight::Fits)
        };
        found.into_iter().map(one).collect()
    }

    /// The end of a process that used to listen there.
    pub(crate) fn former_listener(&self) -> Option<Evidence> {
        let former: Vec<Pid> = self.look_ups().flat_map(|l| l.listeners.iter().filter_map(|l| l.pid)).collect();
        self.case.processes.iter().rev().find_map(|event| match &event.body {
            Body::Process(ProcessEvent::Exited { pid, command, how, .. })
                if former.contains(pid) && event.at.earliest <= self.case.decided.latest =>
            {
                Some(evidence(
                    Fact::ProcessEnded { process: (*pid, command.clone()), how: *how },
                    &[event.id],
                    Weight::Fits,
                ))
            }
            _ => None,
        })
    }

    /// The accept queue of the listener on the upstream's address, where it was read; the fullest.
    pub(crate) fn accept_queue(&self) -> Option<(u32, u32, EventId)> {
        self.look_ups()
            .flat_map(|l| l.listeners.iter().filter_map(move |x| x.accept_queue.map(|(w, limit)| (w, limit, l.event))))
            .max_by_key(|(waiting, limit, _)| i64::from(*waiting) - i64::from(*limit))
    }

    /// Processes that listen on the upstream's address.
    pub(crate) fn listening_processes(&self) -> impl Iterator<Item = Pid> {
        self.look_ups().flat_map(|look_up| look_up.listeners.iter().filter_map(|listener| listener.pid))
    }

    /// Network namespaces where the upstream's address is served: by its end of the connection, and by who listens there.
    pub(crate) fn upstream_namespaces(&self) -> impl Iterator<Item = u32> {
        let ends = self.flow().into_iter().flat_map(|flow| flow.sockets(Side::Upstream));
        let listeners = self.look_ups().flat_map(|look_up| look_up.listeners.iter().filter_map(|one| one.netns));
        ends.filter_map(|(_, e)| e.socket.netns).chain(listeners)
    }

    /// A process's open files against its limit.
    pub(crate) fn open_files(&self, of: Pid) -> Option<Evidence> {
        self.case.host.iter().rev().find_map(|(event, _, fact)| match fact {
            HostFact::OpenFiles { pid, command, open, limit } if *pid == of => Some(evidence(
                Fact::OpenFiles { process: (*pid, command.clone()), open: *open, limit: *limit },
                &[*event],
                Weight::Fits,
            )),
            _ => None,
        })
    }

    /// What a process was doing.
    pub(crate) fn process_state(&self, of: Pid) -> Option<Evidence> {
        self.case.host.iter().rev().find_map(|(event, _, fact)| match fact {
            HostFact::ProcessState { pid, command, state, wait_channel, call, halt } if *pid == of => Some(evidence(
                Fact::ProcessState {
                    process: (*pid, command.clone()),
                    state: *state,
                    wait_channel: wait_channel.clone(),
                    call: call.clone(),
                    halt: halt.clone(),
                },
                &[*event],
                Weight::Fits,
            )),
            _ => None,
        })
    }
}

/// Who a listener is, where anything is known of it.
fn process_of(listener: &Listener) -> Option<(Option<Pid>, String)> {
    match (&listener.command, listener.pid) {
        (None, None) => None,
        (command, pid) => Some((pid, command.clone().unwrap_or_else(|| "?".to_owned()))),
    }
}

/// The address, and who is there: for sentences.
pub(crate) fn named(address: SocketAddr, process: Option<&(Option<Pid>, String)>) -> String {
    match process {
        Some((Some(pid), command)) => format!("{address} ({command}, pid {pid})"),
        Some((None, command)) => format!("{address} ({command})"),
        None => address.to_string(),
    }
}
