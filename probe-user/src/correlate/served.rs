//! Who serves the upstreams' addresses on this host, and what became of those who did: remembered for as long as the address may be
//! asked for, because the question comes only when nobody is there any more.

use std::{collections::BTreeMap, net::SocketAddr};

use crate::model::{
    event::{Body, Event, EventId},
    host::{HostFact, Listener},
    process::{Ending, Pid, ProcessEvent, Sender, Untaken},
    socket::{Socket, SocketChange, Syscall, TcpState},
    time::{At, Moment},
};

/// Addresses remembered; the one seen longest ago goes first.
const ADDRESSES: usize = 1_024;

#[derive(Clone, Debug)]
struct Server {
    /// The listener's network namespace, where known.
    netns: Option<u32>,
    pid: Pid,
    command: Option<String>,
    /// The event that told the newest of what is known.
    told: (EventId, At),
    seen: Moment,
    closed: Option<Moment>,
    ended: Option<(Moment, Ending)>,
    signal: Option<(u32, Option<Sender>)>,
}

impl Server {
    const fn is_gone(&self) -> bool {
        self.closed.is_some() || self.ended.is_some()
    }
}

/// The memory.
#[derive(Debug, Default)]
pub(super) struct Served {
    by_address: BTreeMap<SocketAddr, Server>,
}

impl Served {
    /// A look at the host found these listeners on the address.
    pub(super) fn found(&mut self, event: &Event, upstream: SocketAddr, listeners: &[Listener]) {
        let Some((pid, listener)) = listeners.iter().find_map(|listener| Some((listener.pid?, listener))) else {
            return;
        };
        self.serves(event, upstream, listener.netns, (pid, listener.command.clone()));
    }

    /// The probe saw this process listen before anything failed.
    pub(super) fn serves(
        &mut self,
        event: &Event,
        upstream: SocketAddr,
        netns: Option<u32>,
        (pid, command): (Pid, Option<String>),
    ) {
        if let Some(known) = self.by_address.get_mut(&upstream)
            && known.pid == pid
            && known.ended.is_none()
        {
            known.seen = event.at.latest;
            known.closed = None;
            known.netns = netns.or(known.netns);
            known.command = command.or_else(|| known.command.take());
            return;
        }
        if self.by_address.len() >= ADDRESSES && !self.by_address.contains_key(&upstream) {
            let oldest = self.by_address.iter().min_by_key(|(_, server)| server.seen).map(|(address, _)| *address);
            if let Some(oldest) = oldest {
                self.by_address.remove(&oldest);
            }
        }
        let server = Server {
            netns,
            pid,
            command,
            told: (event.id, event.at),
            seen: event.at.latest,
            closed: None,
            ended: None,
            signal: None,
        };
        self.by_address.insert(upstream, server);
    }

    /// Takes any event: connections accepted, listeners closed, processes ended.
    pub(super) fn handle(&mut self, event: &Event) {
        match &event.body {
            Body::Syscall(call) => {
                if let Syscall::Accept { result: Ok(_), socket: Some(socket), command, .. } = &call.call
                    && let Some(upstream) = socket.local
                    // One of a prefork server's children: its master, which is known, is the one to name while it lives.
                    && self.by_address.get(&upstream).is_none_or(Server::is_gone)
                {
                    self.serves(event, upstream, socket.netns, (call.pid, Some(command.clone())));
                }
            }
            Body::Socket(e) => {
                if matches!(e.change, SocketChange::State { from: TcpState::Listen }) {
                    self.closed(event, &e.socket);
                }
            }
            Body::Process(process) => self.process(event, process),
            _ => {}
        }
    }

    fn closed(&mut self, event: &Event, listener: &Socket) {
        let Some(local) = listener.local else { return };
        let same = |address: &SocketAddr| {
            address.port() == local.port() && (local.ip().is_unspecified() || local.ip() == address.ip())
        };
        // Another container may serve the same port on every address of its own.
        let home = |server: &Server| server.netns.zip(listener.netns).is_none_or(|(one, other)| one == other);
        for (_, server) in self.by_address.iter_mut().filter(|(address, server)| same(address) && home(server)) {
            server.closed.get_or_insert(event.at.latest);
            server.told = (event.id, event.at);
        }
    }

    fn process(&mut self, event: &Event, process: &ProcessEvent) {
        let (ProcessEvent::Exited { pid, .. } | ProcessEvent::Signalled { target: pid, .. }) = process else { return };
        for server in self.by_address.values_mut().filter(|server| server.pid == *pid && server.ended.is_none()) {
            match process {
                ProcessEvent::Exited { command, how, untaken, .. } => {
                    // It had blocked that one.
                    server.signal = server
                        .signal
                        .take()
                        .filter(|(signal, _)| matches!(how, Ending::Signal { .. }) || !untaken.has(*signal));
                    server.ended = Some((event.at.latest, *how));
                    server.command.get_or_insert_with(|| command.clone());
                    server.told = (event.id, event.at);
                }
                // Asked to end: SIGINT, SIGQUIT, SIGABRT, SIGKILL, SIGTERM.
                ProcessEvent::Signalled { signal: signal @ (2 | 3 | 6 | 9 | 15), sender, .. } => {
                    server.signal = Some((*signal, sender.clone()));
                }
                _ => {}
            }
        }
    }

    /// Whoever closed its listener on the address, and lives.
    pub(super) fn alive_elsewhere(&self, upstream: SocketAddr) -> Option<Pid> {
        self.by_address.get(&upstream).filter(|s| s.closed.is_some() && s.ended.is_none()).map(|s| s.pid)
    }

    /// What is known of whoever served the address, if they are gone.
    pub(super) fn former(&self, upstream: SocketAddr) -> Option<(EventId, At, HostFact)> {
        let server = self.by_address.get(&upstream).filter(|server| server.is_gone())?;
        let fact = HostFact::Served {
            upstream,
            netns: server.netns,
            pid: server.pid,
            command: server.command.clone(),
            seen: server.seen,
            closed: server.closed,
            ended: server.ended,
            signal: server.signal.clone(),
        };
        Some((server.told.0, server.told.1, fact))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{event::Source, process::Role, socket::SocketEvent};

    const UPSTREAM: &str = "10.0.0.1:8000";

    fn event(id: u64, body: Body) -> Event {
        Event { id: EventId(id), at: At::exactly(Moment(id * 1_000_000)), source: Source::Kernel, body }
    }

    fn served() -> Served {
        let mut served = Served::default();
        let seen = event(1, Body::Process(ProcessEvent::OomVictim { victim: Pid(1), role: Role::Other }));
        served.serves(&seen, UPSTREAM.parse().unwrap(), Some(1), (Pid(7), Some("gunicorn".to_owned())));
        served
    }

    fn ends(served: &mut Served, id: u64, pid: u32) {
        let how = Ending::Signal { signal: 9, core: false };
        let role = Role::Upstream;
        let exit = ProcessEvent::Exited {
            pid: Pid(pid),
            role,
            command: "gunicorn".to_owned(),
            how,
            untaken: Untaken::default(),
        };
        served.handle(&event(id, Body::Process(exit)));
    }

    #[test]
    fn who_is_there_is_not_former() {
        assert_eq!(served().former(UPSTREAM.parse().unwrap()), None);
    }

    #[test]
    fn the_end_and_its_sender_are_remembered() {
        let mut served = served();
        let sender = Some(Sender { pid: Pid(99), command: "bash".to_owned() });
        let signal =
            ProcessEvent::Signalled { target: Pid(7), role: Role::Upstream, signal: 9, sender: sender.clone() };
        served.handle(&event(2, Body::Process(signal)));
        ends(&mut served, 3, 8);
        assert_eq!(served.former(UPSTREAM.parse().unwrap()), None, "another process");
        ends(&mut served, 4, 7);
        let Some((id, _, HostFact::Served { pid, ended, signal, .. })) = served.former(UPSTREAM.parse().unwrap())
        else {
            panic!()
        };
        assert_eq!((id, pid, signal), (EventId(4), Pid(7), Some((9, sender))));
        assert!(ended.is_some());
    }

    #[test]
    fn a_listener_of_another_network_namespace_is_not_its_own() {
        let mut served = served();
        let closed = |id, netns| {
            let local = Some("0.0.0.0:8000".parse().unwrap());
            let socket = Socket { netns, local, state: TcpState::Closed, ..Socket::over_unix(0) };
            let change = SocketChange::State { from: TcpState::Listen };
            event(id, Body::Socket(SocketEvent { change, socket, by: None }))
        };
        served.handle(&closed(2, Some(2)));
        assert_eq!(served.former(UPSTREAM.parse().unwrap()), None);
        served.handle(&closed(3, Some(1)));
        assert!(served.former(UPSTREAM.parse().unwrap()).is_some());
    }

    #[test]
    fn whoever_listens_there_again_replaces_it() {
        let mut served = served();
        ends(&mut served, 4, 7);
        let seen = event(5, Body::Process(ProcessEvent::OomVictim { victim: Pid(1), role: Role::Other }));
        served.serves(&seen, UPSTREAM.parse().unwrap(), None, (Pid(8), None));
        assert_eq!(served.former(UPSTREAM.parse().unwrap()), None);
    }
}
