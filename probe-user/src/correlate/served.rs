//! Who serves the upstreams' addresses on this host, and what became of those who did: remembered for as long as the address may be
//! asked for, because the question comes only when nobody is there any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use crate::model::{
    event::{Body, Event, EventId},
    host::{HostFact, Listener},
    process::{Ending, Pid, ProcessEvent, Sender},
    socket::{Socket, SocketChange, Syscall, TcpState},
    time::{At, Moment},
};

/// Addresses remembered; the one seen longest ago goes first.
const ADDRESSES: usize = 1_024;

/// An address in a network namespace, where that is known: containers serve the same address, each by itself.
type Home = (SocketAddr, Option<u32>);

#[derive(Clone, Debug)]
struct Server {
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
    by_home: BTreeMap<Home, Server>,
}

impl Served {
    /// A look at the host found these listeners on the address.
    pub(super) fn found(&mut self, event: &Event, upstream: SocketAddr, listeners: &[Listener]) {
        let mut told = BTreeSet::new();
        for listener in listeners {
            // The first of a namespace is the one to name.
            if let Some(pid) = listener.pid.filter(|_| told.insert(listener.netns)) {
                self.serves(event, upstream, listener.netns, (pid, listener.command.clone()));
            }
        }
    }

    /// The probe saw this process listen before anything failed.
    pub(super) fn serves(
        &mut self,
        event: &Event,
        upstream: SocketAddr,
        netns: Option<u32>,
        (pid, command): (Pid, Option<String>),
    ) {
        // What was told without a namespace before is the same, where it is the same process.
        if netns.is_some()
            && self.by_home.get(&(upstream, None)).is_some_and(|known| known.pid == pid)
            && let Some(known) = self.by_home.remove(&(upstream, None))
        {
            self.by_home.entry((upstream, netns)).or_insert(known);
        }
        let home = self.home_of(upstream, netns, pid);
        if let Some(known) = self.by_home.get_mut(&home)
            && known.pid == pid
            && known.ended.is_none()
        {
            known.seen = event.at.latest;
            known.closed = None;
            known.command = command.or_else(|| known.command.take());
            return;
        }
        if self.by_home.len() >= ADDRESSES && !self.by_home.contains_key(&home) {
            let oldest = self.by_home.iter().min_by_key(|(_, server)| server.seen).map(|(home, _)| *home);
            if let Some(oldest) = oldest {
                self.by_home.remove(&oldest);
            }
        }
        let server = Server {
            pid,
            command,
            told: (event.id, event.at),
            seen: event.at.latest,
            closed: None,
            ended: None,
            signal: None,
        };
        self.by_home.insert(home, server);
    }

    /// Where it is filed: told without a namespace, with what is known of the same process, or of the only one there.
    fn home_of(&self, upstream: SocketAddr, netns: Option<u32>, pid: Pid) -> Home {
        if netns.is_some() {
            return (upstream, netns);
        }
        let mut own = self.at(upstream).filter(|(_, server)| server.pid == pid).map(|(home, _)| *home);
        let mut all = self.at(upstream).map(|(home, _)| *home);
        let only = all.next().filter(|_| all.next().is_none());
        own.next().or(only).unwrap_or((upstream, None))
    }

    /// Everybody on the address, in whichever namespace.
    fn at(&self, upstream: SocketAddr) -> impl Iterator<Item = (&Home, &Server)> {
        self.by_home.range((upstream, None)..=(upstream, Some(u32::MAX)))
    }

    /// Whoever served the address, as seen from a namespace; `None`: nobody, or nobody knows which of several.
    fn one(&self, upstream: SocketAddr, netns: Option<u32>) -> Option<(&Home, &Server)> {
        let exactly = netns.and_then(|_| self.by_home.get_key_value(&(upstream, netns)));
        let fits = |(home, _): &(&Home, &Server)| home.1.zip(netns).is_none_or(|(one, other)| one == other);
        let mut all = self.at(upstream).filter(fits);
        exactly.or_else(|| all.next().filter(|_| all.next().is_none()))
    }

    /// Takes any event: connections accepted, listeners closed, processes ended.
    pub(super) fn handle(&mut self, event: &Event) {
        match &event.body {
            Body::Syscall(call) => {
                if let Syscall::Accept { result: Ok(_), socket: Some(socket), command, .. } = &call.call
                    && let Some(upstream) = socket.local
                    // One of a prefork server's children: its master, which is known, is the one to name while it lives.
                    && self.one(upstream, socket.netns).is_none_or(|(_, known)| known.is_gone())
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
        let home = |netns: &Option<u32>| netns.zip(listener.netns).is_none_or(|(one, other)| one == other);
        for (_, server) in self.by_home.iter_mut().filter(|((address, netns), _)| same(address) && home(netns)) {
            server.closed.get_or_insert(event.at.latest);
            server.told = (event.id, event.at);
        }
    }

    fn process(&mut self, event: &Event, process: &ProcessEvent) {
        let (ProcessEvent::Exited { pid, .. } | ProcessEvent::Signalled { target: pid, .. }) = process else { return };
        for server in self.by_home.values_mut().filter(|server| server.pid == *pid && server.ended.is_none()) {
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
    pub(super) fn alive_elsewhere(&self, upstream: SocketAddr, netns: Option<u32>) -> Option<Pid> {
        let (_, server) = self.one(upstream, netns)?;
        (server.closed.is_some() && server.ended.is_none()).then_some(server.pid)
    }

    /// What is known of whoever served the address, if they are gone. `netns`: nginx's, for a loopback address.
    pub(super) fn former(&self, upstream: SocketAddr, netns: Option<u32>) -> Option<(EventId, At, HostFact)> {
        let (home, server) = self.one(upstream, netns).filter(|(_, server)| server.is_gone())?;
        let fact = HostFact::Served {
            upstream,
            netns: home.1,
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
            untaken: crate::model::process::Untaken::default(),
        };
        served.handle(&event(id, Body::Process(exit)));
    }

    #[test]
    fn who_is_there_is_not_former() {
        assert_eq!(served().former(UPSTREAM.parse().unwrap(), None), None);
    }

    #[test]
    fn the_end_and_its_sender_are_remembered() {
        let mut served = served();
        let sender = Some(Sender { pid: Pid(99), command: "bash".to_owned() });
        let signal =
            ProcessEvent::Signalled { target: Pid(7), role: Role::Upstream, signal: 9, sender: sender.clone() };
        served.handle(&event(2, Body::Process(signal)));
        ends(&mut served, 3, 8);
        assert_eq!(served.former(UPSTREAM.parse().unwrap(), None), None, "another process");
        ends(&mut served, 4, 7);
        let Some((id, _, HostFact::Served { pid, ended, signal, .. })) = served.former(UPSTREAM.parse().unwrap(), None)
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
            event(id, Body::from(SocketEvent { change, socket, by: None }))
        };
        served.handle(&closed(2, Some(2)));
        assert_eq!(served.former(UPSTREAM.parse().unwrap(), None), None);
        served.handle(&closed(3, Some(1)));
        assert!(served.former(UPSTREAM.parse().unwrap(), None).is_some());
    }

    #[test]
    fn whoever_listens_there_again_replaces_it() {
        let mut served = served();
        ends(&mut served, 4, 7);
        let seen = event(5, Body::Process(ProcessEvent::OomVictim { victim: Pid(1), role: Role::Other }));
        served.serves(&seen, UPSTREAM.parse().unwrap(), None, (Pid(8), None));
        assert_eq!(served.former(UPSTREAM.parse().unwrap(), None), None);
    }

    #[test]
    fn each_network_namespace_has_its_own() {
        let mut served = Served::default();
        let loopback = "127.0.0.1:8000".parse().unwrap();
        let seen = event(1, Body::Process(ProcessEvent::OomVictim { victim: Pid(1), role: Role::Other }));
        for (netns, pid) in [(1, 7), (2, 8)] {
            served.serves(&seen, loopback, Some(netns), (Pid(pid), Some("app".to_owned())));
        }
        ends(&mut served, 4, 8);
        let gone = |netns| served.former(loopback, netns).map(|(_, _, fact)| fact);
        assert_eq!(gone(Some(1)), None);
        assert!(matches!(gone(Some(2)), Some(HostFact::Served { pid: Pid(8), netns: Some(2), .. })));
        assert_eq!(gone(None), None, "either may be meant");
        assert_eq!(gone(Some(3)), None);
    }

    #[test]
    fn what_was_told_without_a_namespace_is_filed_with_its_own() {
        let mut served = Served::default();
        let upstream = UPSTREAM.parse().unwrap();
        let seen = event(1, Body::Process(ProcessEvent::OomVictim { victim: Pid(1), role: Role::Other }));
        served.serves(&seen, upstream, None, (Pid(7), None));
        served.serves(&seen, upstream, Some(1), (Pid(7), Some("app".to_owned())));
        served.serves(&seen, upstream, None, (Pid(7), None));
        assert_eq!(served.by_home.keys().copied().collect::<Vec<_>>(), [(upstream, Some(1))]);
    }
}
