//! nginx's side alone: what would be left of the stream if every upstream ran on another host.
//!
//! Told by the stream itself ([`Sensor::UpstreamSide`] is off), so that a replay is confined like the run it replays. Who nginx is, is in
//! the stream too: its namespace and its workers in what is learnt of the host, its new workers in the forks.

use std::{collections::BTreeSet, net::SocketAddr};

use crate::model::{
    coverage::{Coverage, Sensor, Sight},
    event::{Body, Event},
    host::{HostFact, NginxInstance},
    net::Address,
    packet::TcpFlags,
    process::{Pid, ProcessEvent, Role},
    socket::{DropEvent, Socket, SocketChange, SocketEvent, Syscall, SyscallEvent, TcpState},
};

/// Addresses that are learnt as upstreams besides those of the configurations.
const UPSTREAMS: usize = 4_096;

/// What is nginx's, and whether anything else is let through.
#[derive(Debug, Default)]
pub(super) struct Confine {
    on: bool,
    namespaces: BTreeSet<u32>,
    processes: BTreeSet<Pid>,
    upstreams: BTreeSet<SocketAddr>,
}

impl Confine {
    /// What is left of an event; `None`: nothing.
    pub(super) fn admit(&mut self, mut event: Event) -> Option<Event> {
        let own = match &mut event.body {
            Body::Socket(socket) => {
                self.learn_from(socket);
                !answers_syn(&socket.change) && self.owns_socket(&socket.socket)
            }
            Body::Drop(dropped) => self.owns_drop(dropped),
            Body::Syscall(call) => self.owns_call(call),
            Body::Process(process) => self.owns_process(process),
            Body::Host(fact) => self.owns_fact(fact),
            Body::Coverage(Coverage::Sensor { sensor: Sensor::UpstreamSide, sight, .. }) => {
                self.on = *sight == Sight::Off;
                true
            }
            // Packets come from nginx's own namespace, the rest from nginx itself.
            Body::Nginx(_)
            | Body::Packet(_)
            | Body::Wire(_)
            | Body::ErrorLine(_)
            | Body::AccessLine(_)
            | Body::Coverage(_) => true,
        };
        (own || !self.on).then_some(event)
    }

    /// These are upstreams.
    pub(super) fn know(&mut self, upstreams: &[SocketAddr]) {
        for upstream in upstreams {
            self.add_upstream(*upstream);
        }
    }

    /// Whom nginx connects to is an upstream, also where no configuration says so.
    fn learn_from(&mut self, event: &SocketEvent) {
        if let (TcpState::SynSent, Some(remote)) = (event.socket.state, event.socket.remote)
            && event.by.is_some_and(|pid| self.processes.contains(&pid))
        {
            self.add_upstream(remote);
        }
    }

    fn add_upstream(&mut self, upstream: SocketAddr) {
        if self.upstreams.len() < UPSTREAMS {
            self.upstreams.insert(upstream);
        }
    }

    /// nginx's namespace, and not the upstream's end of a connection inside it.
    fn owns_socket(&self, socket: &Socket) -> bool {
        socket.netns.is_some_and(|netns| self.namespaces.contains(&netns))
            && socket.local.is_none_or(|local| !self.upstreams.contains(&local))
    }

    /// On the loopback interface nobody can tell whether the packet was dropped as it left or as it came.
    fn owns_drop(&self, dropped: &DropEvent) -> bool {
        let to = dropped.packet.destination;
        let no_listener = dropped.reason.as_deref() == Some("NO_SOCKET") && is_syn(dropped.packet.flags);
        dropped.netns.is_some_and(|netns| self.namespaces.contains(&netns)) && !no_listener && !to.ip().is_loopback()
    }

    fn owns_call(&mut self, call: &SyscallEvent) -> bool {
        let own = self.processes.contains(&call.pid);
        if let Syscall::Connect { address: Some(Address::Ip(upstream)), .. } = &call.call
            && own
        {
            self.add_upstream(*upstream);
        }
        own
    }

    fn owns_process(&mut self, process: &ProcessEvent) -> bool {
        let nginx = |role: Role| matches!(role, Role::NginxMaster | Role::NginxWorker);
        match process {
            ProcessEvent::Forked { child, role, .. } => {
                if nginx(*role) {
                    self.processes.insert(*child);
                }
                nginx(*role)
            }
            ProcessEvent::Exited { pid, role, .. } => self.processes.remove(pid) || nginx(*role),
            ProcessEvent::Executed { role, .. }
            | ProcessEvent::Held { role, .. }
            | ProcessEvent::Signalled { role, .. }
            | ProcessEvent::OomVictim { role, .. } => nginx(*role),
        }
    }

    fn owns_fact(&mut self, fact: &mut HostFact) -> bool {
        match fact {
            HostFact::Nginx(instance) => self.learn(instance),
            HostFact::OpenFiles { pid, .. } | HostFact::ProcessState { pid, .. } => {
                return self.processes.contains(pid);
            }
            HostFact::Listeners { local, listeners, nearby, .. } if self.on => {
                *local = false;
                listeners.clear();
                nearby.clear();
            }
            _ => {}
        }
        // What nobody has said to be nginx's is not. A unix socket is a file of nginx's own namespace.
        matches!(
            fact,
            HostFact::Nginx(_)
                | HostFact::NginxGone { .. }
                | HostFact::OpenConnection { .. }
                | HostFact::Listeners { .. }
                | HostFact::Route { .. }
                | HostFact::LocalPorts { .. }
                | HostFact::Translated { .. }
                | HostFact::SystemFiles { .. }
                | HostFact::Name { .. }
                | HostFact::UnixSocket(_)
        )
    }

    fn learn(&mut self, instance: &NginxInstance) {
        self.namespaces.extend(instance.netns);
        self.processes.extend(instance.workers.iter().copied().chain([instance.master]));
        let configured = instance.configuration.iter().flat_map(|configuration| {
            let servers = configuration.groups.iter().flat_map(|group| &group.servers).flat_map(|s| &s.addresses);
            configuration.upstreams.iter().chain(servers)
        });
        self.upstreams.extend(configured.filter_map(Address::ip));
    }
}

/// A reset that answers a SYN is the other end's, also where nobody knew yet that the address is an upstream's.
fn answers_syn(change: &SocketChange) -> bool {
    matches!(change, SocketChange::ResetSent { answered: Some(packet), .. } if is_syn(packet.flags))
}

fn is_syn(flags: TcpFlags) -> bool {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    flags.0 & (SYN | ACK) == SYN
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{
        event::{EventId, Source},
        packet::TcpHeader,
        time::{At, Moment},
    };

    const NGINX: u32 = 1;
    const OTHER: u32 = 2;
    const WORKER: Pid = Pid(11);
    const UPSTREAM: &str = "127.0.0.1:8000";

    fn event(body: Body) -> Event {
        Event { id: EventId(1), at: At::exactly(Moment(1)), source: Source::Kernel, body }
    }

    fn confined(on: bool) -> Confine {
        let mut confine = Confine::default();
        let configuration = crate::model::host::Configuration {
            upstreams: vec![Address::Ip(UPSTREAM.parse().unwrap())],
            ..Default::default()
        };
        let instance = NginxInstance {
            master: Pid(10),
            workers: vec![WORKER],
            version: None,
            netns: Some(NGINX),
            configuration: Some(configuration.into()),
        };
        confine.admit(event(Body::from(HostFact::Nginx(instance)))).unwrap();
        let sight = if on { Sight::Off } else { Sight::On };
        let told = Coverage::Sensor { sensor: Sensor::UpstreamSide, sight, why: None };
        confine.admit(event(Body::Coverage(told))).unwrap();
        confine
    }

    fn socket(netns: u32, local: &str, remote: &str) -> Body {
        let socket = Socket {
            pointer: None,
            cookie: None,
            netns: Some(netns),
            local: Some(local.parse().unwrap()),
            remote: Some(remote.parse().unwrap()),
            state: TcpState::Closed,
            error: None,
            soft_error: None,
            retransmits: 0,
            tcp: None,
            accept_queue: None,
        };
        Body::from(SocketEvent { change: SocketChange::ResetReceived, socket, by: None })
    }

    fn dropped(netns: u32, source: &str, destination: &str) -> Body {
        let packet = TcpHeader {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            sequence: 1,
            acknowledgement: 0,
            flags: TcpFlags(2),
            ttl: 64,
        };
        Body::Drop(DropEvent { reason: None, netns: Some(netns), packet })
    }

    fn exit(pid: Pid, role: Role) -> Body {
        let how = crate::model::process::Ending::Exit(1);
        Body::Process(ProcessEvent::Exited {
            pid,
            role,
            command: "x".to_owned(),
            how,
            untaken: crate::model::process::Untaken::default(),
        })
    }

    #[test]
    fn only_nginxs_end_of_a_connection_is_left() {
        let cases = [
            (socket(NGINX, "127.0.0.1:40000", UPSTREAM), true),
            (socket(NGINX, UPSTREAM, "127.0.0.1:40000"), false),
            (socket(OTHER, "10.1.0.10:8000", "10.1.0.1:40000"), false),
            (dropped(NGINX, "10.1.0.1:40000", "10.1.0.10:8000"), true),
            (dropped(OTHER, "10.1.0.1:40000", "10.1.0.10:8000"), false),
            (dropped(NGINX, "127.0.0.1:40000", UPSTREAM), false),
            (exit(WORKER, Role::NginxWorker), true),
            (exit(Pid(88), Role::Upstream), false),
        ];
        for (body, nginxs) in cases {
            assert_eq!(confined(true).admit(event(body.clone())).is_some(), nginxs, "{body:?}");
            assert!(confined(false).admit(event(body)).is_some());
        }
    }

    #[test]
    fn nobody_tells_that_nobody_listens() {
        let Body::Drop(DropEvent { packet, .. }) = dropped(NGINX, "10.1.0.1:40000", "10.1.0.1:9099") else { panic!() };
        let Body::Socket(mut reset) = socket(NGINX, "10.1.0.1:9099", "10.1.0.1:40000") else { panic!() };
        let reason = Some("NO_SOCKET".to_owned());
        Arc::make_mut(&mut reset).change =
            SocketChange::ResetSent { reason: reason.clone(), answered: Some(packet.clone()) };
        assert!(confined(true).admit(event(Body::Socket(reset))).is_none());
        let unheard = Body::Drop(DropEvent { reason, netns: Some(NGINX), packet });
        assert!(confined(true).admit(event(unheard)).is_none());
    }

    #[test]
    fn a_new_worker_is_nginx_and_its_upstreams_are_learnt() {
        let mut confine = confined(true);
        let call = |pid| {
            let address = Some(Address::Ip("127.0.0.1:9000".parse().unwrap()));
            let call = Syscall::Connect { fd: 3, address, result: Ok(0), socket: None };
            Body::from(SyscallEvent { pid, tid: pid, call })
        };
        assert!(confine.admit(event(call(Pid(12)))).is_none());
        let forked = ProcessEvent::Forked {
            parent: Pid(10),
            child: Pid(12),
            role: Role::NginxWorker,
            command: "nginx".to_owned(),
        };
        assert!(confine.admit(event(Body::Process(forked))).is_some());
        assert!(confine.admit(event(call(Pid(12)))).is_some());
        assert!(confine.admit(event(socket(NGINX, "127.0.0.1:9000", "127.0.0.1:40000"))).is_none());
    }

    #[test]
    fn the_host_knows_nothing_of_an_upstream() {
        let looked_up = || {
            let upstream = UPSTREAM.parse().unwrap();
            let netns = Some(NGINX);
            HostFact::Listeners { upstream, netns, local: true, listeners: Vec::new(), nearby: Vec::new() }
        };
        for (on, expected) in [(true, false), (false, true)] {
            let admitted = confined(on).admit(event(Body::from(looked_up()))).unwrap();
            let Body::Host(fact) = admitted.body else { panic!("{admitted:?}") };
            let HostFact::Listeners { local, .. } = *fact else { panic!("{fact:?}") };
            assert_eq!(local, expected);
        }
        let state = |pid| {
            Body::from(HostFact::ProcessState {
                pid,
                command: "x".to_owned(),
                state: 'S',
                wait_channel: None,
                call: None,
                halt: None,
            })
        };
        assert!(confined(true).admit(event(state(Pid(88)))).is_none());
        assert!(confined(true).admit(event(state(WORKER))).is_some());
    }
}
