//! Made-up worlds for the tests: a case is built event by event, as the correlator would hand it over.

mod complaints;
mod exits;

pub(crate) use exits::{broken_by_exit, closed_by, closed_by_handler, listener_closed, unaccepted};
use std::{collections::VecDeque, net::SocketAddr, sync::Arc};

use super::judge;
use crate::model::{
    attempt::{Attempt, Joined, Link, Outcome},
    case::{Case, CaseId, CaseKind, Origin, Request},
    complaint::{Complaint, Message, Phase},
    coverage::{CaseCoverage, Sensor, Sight},
    event::{Body, Event, EventId, Source},
    flow::{Flow, FlowId, Side},
    host::{Configuration, HostFact, Listener},
    net::{Address, Errno},
    nginx::NginxEvent,
    packet::{Content, IcmpPacket, PacketBody, PacketEvent, PacketRef, TcpFlags, TcpHeader, TcpPacket},
    process::{Ending, Pid, ProcessEvent, Role, Sender, Untaken},
    socket::{DropEvent, Socket, SocketChange, SocketEvent, Syscall, SyscallEvent, TcpCounters, TcpState},
    time::{At, Moment},
    verdict::{Confidence, Explanation, Verdict},
};

/// nginx decides here.
pub(crate) const DECIDED: Moment = Moment(100_000_000_000);
/// The worker.
pub(crate) const WORKER: Pid = Pid(812);
/// The upstream's process.
pub(crate) const SERVER: Pid = Pid(88);
/// First byte of the request.
pub(crate) const START: u32 = 5_000;
/// Length of the request.
pub(crate) const LENGTH: u32 = 312;

/// FIN, SYN, RST, ACK as bits of a header.
pub(crate) const FIN_ACK: u8 = 0x11;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST_ACK: u8 = 0x14;

/// A world under construction.
#[derive(Clone)]
pub(crate) struct World {
    /// The case so far.
    pub(crate) case: Case,
    next: u64,
    upstream: SocketAddr,
    local: SocketAddr,
}

impl World {
    /// One attempt at 127.0.0.1:8000 that took 100 µs; every sensor on.
    pub(crate) fn new(status: u16) -> Self {
        Self::at("127.0.0.1:8000", status)
    }

    /// nginx's configuration.
    pub(crate) fn configuration(&mut self) -> &mut Configuration {
        Arc::make_mut(self.case.configuration.get_or_insert_default())
    }

    /// One attempt at that address.
    pub(crate) fn at(upstream: &str, status: u16) -> Self {
        let upstream: SocketAddr = upstream.parse().unwrap();
        let local: SocketAddr = "127.0.0.1:41822".parse().unwrap();
        let flow = Flow {
            id: FlowId(1),
            local: Some(local),
            upstream,
            worker: Some(WORKER),
            accepted_by: None,
            seen_from_start: true,
            events: VecDeque::new(),
            forgotten: 0,
            led: None,
        };
        let attempt = Attempt {
            upstream: Some(Address::Ip(upstream)),
            peer_name: Some(upstream.to_string()),
            flow: Joined::One(flow),
            socket_at_failure: None,
            complaint: None,
            outcome: Outcome::Unknown,
            errno: None,
            status: Some(status),
            reused: Some(false),
            requests_before: Some(0),
            idle_us: None,
            started: Some(DECIDED.minus_ns(100_000)),
            duration_us: Some(100),
            bytes_sent: Some(0),
            bytes_received: Some(0),
            head: None,
            syscalls: Vec::new(),
            link: Link::Exact,
        };
        let request = Request {
            method: Some("GET".to_owned()),
            uri: Some("/cart?token=secret".to_owned()),
            protocol: Some("HTTP/1.1".to_owned()),
            host: Some("shop.example".to_owned()),
            client: Some("10.0.0.7:51234".parse().unwrap()),
            client_address: None,
            connection: Some(41),
        };
        let sensors = Sensor::ALL.iter().map(|sensor| (*sensor, Sight::On, None)).collect();
        let case = Case {
            id: CaseId("20261121T140207.331204-000017".to_owned()),
            kind: CaseKind::Incident,
            status: Some(status),
            origin: Origin::Nginx,
            decided: At::exactly(DECIDED),
            decided_by: EventId(1_000_000),
            request,
            worker: Some(WORKER),
            nginx_version: Some("1.22.1".to_owned()),
            configuration: Some(
                Configuration { upstreams: vec![Address::Ip(upstream)], ..Configuration::default() }.into(),
            ),
            attempts_complete: true,
            attempts: vec![attempt],
            by_wire: false,
            subrequest: false,
            link: Link::Exact,
            complaints: Vec::new(),
            processes: Vec::new(),
            host: Vec::new(),
            earlier: Vec::new(),
            upstream_begun: Some(true),
            cache_status: None,
            stored: None,
            coverage: CaseCoverage { sensors, ..CaseCoverage::default() },
        };
        Self { case, next: 1, upstream, local }
    }

    /// An event so many microseconds after the decision.
    pub(crate) fn event(&mut self, us: i64, source: Source, body: Body) -> Event {
        let id = EventId(self.next);
        self.next += 1;
        Event { id, at: At::exactly(moment(us)), source, body }
    }

    /// The attempt.
    pub(crate) fn attempt(&mut self) -> &mut Attempt {
        self.case.attempts.last_mut().unwrap()
    }

    /// Its connection.
    pub(crate) fn flow(&mut self) -> &mut Flow {
        match &mut self.attempt().flow {
            Joined::One(flow) => flow,
            Joined::Several(_) | Joined::None => panic!("the world has one flow"),
        }
    }

    fn of_flow(&mut self, us: i64, source: Source, body: Body) -> EventId {
        let event = self.event(us, source, body);
        let id = event.id;
        self.flow().events.push_back(event);
        id
    }

    /// A socket of one side.
    pub(crate) fn socket(&self, side: Side, state: TcpState, error: Option<Errno>) -> Socket {
        let (local, remote) = match side {
            Side::Nginx => (self.local, self.upstream),
            Side::Upstream => (self.upstream, self.local),
        };
        Socket {
            pointer: None,
            cookie: None,
            netns: None,
            local: Some(local),
            remote: Some(remote),
            state,
            error,
            soft_error: None,
            retransmits: 0,
            tcp: None,
            accept_queue: None,
        }
    }

    /// Something happens to a socket of one side.
    pub(crate) fn change(&mut self, us: i64, socket: Socket, change: SocketChange) -> EventId {
        self.of_flow(us, Source::Kernel, Body::from(SocketEvent { change, socket, by: None }))
    }

    /// A socket of one side changes its state.
    pub(crate) fn state(&mut self, us: i64, side: Side, from: TcpState, to: TcpState, error: Option<Errno>) -> EventId {
        let socket = self.socket(side, to, error);
        self.change(us, socket, SocketChange::State { from })
    }

    /// The same, with counters.
    pub(crate) fn state_with(
        &mut self,
        us: i64,
        side: Side,
        from: TcpState,
        to: TcpState,
        tcp: TcpCounters,
    ) -> EventId {
        let socket = Socket { tcp: Some(tcp), ..self.socket(side, to, None) };
        self.change(us, socket, SocketChange::State { from })
    }

    /// The connection comes about.
    pub(crate) fn connect(&mut self, us: i64) {
        self.state(us, Side::Nginx, TcpState::SynSent, TcpState::Established, None);
    }

    /// The server accepts it.
    pub(crate) fn accepted(&mut self) {
        self.flow().accepted_by = Some((SERVER, "gunicorn".to_owned()));
    }

    /// nginx's socket takes a RST.
    pub(crate) fn reset_received(&mut self, us: i64, state: TcpState) -> EventId {
        let socket = self.socket(Side::Nginx, state, None);
        self.change(us, socket, SocketChange::ResetReceived)
    }

    /// This host sends a RST from the upstream's end.
    pub(crate) fn reset_sent(&mut self, us: i64, reason: &str, answered: Option<u32>) -> EventId {
        let socket = self.socket(Side::Upstream, TcpState::Closed, None);
        let answered = answered.map(|sequence| TcpHeader {
            source: self.local,
            destination: self.upstream,
            sequence,
            acknowledgement: 0,
            flags: TcpFlags(0x18),
            ttl: 64,
        });
        self.change(us, socket, SocketChange::ResetSent { reason: Some(reason.to_owned()), answered })
    }

    /// A packet from the upstream.
    pub(crate) fn packet_from_upstream(&mut self, us: i64, flags: u8, acknowledgement: u32) -> EventId {
        self.packet(us, (self.upstream, self.local), flags, (0, acknowledgement), (0, Content::Empty))
    }

    /// A packet.
    pub(crate) fn packet(
        &mut self,
        us: i64,
        (source, destination): (SocketAddr, SocketAddr),
        flags: u8,
        (sequence, acknowledgement): (u32, u32),
        (payload_length, content): (u32, Content),
    ) -> EventId {
        let header = TcpHeader { source, destination, sequence, acknowledgement, flags: TcpFlags(flags), ttl: 64 };
        let tcp = TcpPacket { header, payload_length, window: 512, ip_id: None, content, promised: None };
        let reference = PacketRef(self.next);
        self.of_flow(
            us,
            Source::Packet,
            Body::Packet(PacketEvent { reference, netns: None, body: PacketBody::Tcp(tcp) }),
        )
    }

    /// An ICMP message about the connection.
    pub(crate) fn icmp(&mut self, us: i64, icmp_type: u8, code: u8) -> EventId {
        let from = self.upstream.ip().to_string();
        self.icmp_from(&from, us, icmp_type, code)
    }

    /// An ICMP message about the connection, from somebody.
    pub(crate) fn icmp_from(&mut self, from: &str, us: i64, icmp_type: u8, code: u8) -> EventId {
        let about = (self.local, self.upstream);
        let icmp = IcmpPacket { from: from.parse().unwrap(), icmp_type, code, v6: false, about, syn: None };
        let reference = PacketRef(self.next);
        self.of_flow(
            us,
            Source::Packet,
            Body::Packet(PacketEvent { reference, netns: None, body: PacketBody::Icmp(icmp) }),
        )
    }

    /// The kernel drops nginx's SYN.
    pub(crate) fn drop_packet(&mut self, us: i64, reason: &str) -> EventId {
        let (source, destination) = (self.local, self.upstream);
        let packet = TcpHeader { source, destination, sequence: 0, acknowledgement: 0, flags: TcpFlags(SYN), ttl: 64 };
        let drop = DropEvent { reason: Some(reason.to_owned()), netns: None, packet };
        self.of_flow(us, Source::Kernel, Body::Drop(drop))
    }

    /// `connect()` itself returns this.
    pub(crate) fn connect_fails(upstream: &str, errno: Errno) -> Self {
        let address = Address::parse(upstream).unwrap();
        let mut world = match &address {
            Address::Ip(_) => Self::at(upstream, 502),
            Address::Unix(_) => Self::new(502),
        };
        let attempt = world.attempt();
        attempt.flow = Joined::None;
        attempt.upstream = Some(address.clone());
        let call = Syscall::Connect { fd: 13, address: Some(address), result: Err(errno), socket: None };
        world.syscall(-40, call);
        world.complain(Message::ConnectFailedAtOnce, Phase::Connecting, Some(errno), "connect() to upstream failed");
        world
    }

    /// The request was sent, and nginx's socket stood like this when it complained.
    pub(crate) fn sent(&mut self, state: TcpState, acknowledged: u32) {
        let socket =
            Socket { tcp: Some(counters(START + LENGTH, acknowledged)), ..self.socket(Side::Nginx, state, None) };
        let attempt = self.attempt();
        attempt.bytes_sent = Some(u64::from(LENGTH));
        attempt.socket_at_failure = Some(socket);
    }

    /// nginx closes, and its FIN finds an upstream's socket that has sent so many bytes which nginx does not have, the last of them a second ago.
    pub(crate) fn nginx_leaves(&mut self, owed: u32) {
        let tcp = TcpCounters { since_sent_us: Some(1_000_000), ..counters(owed, 0) };
        self.state_with(90, Side::Upstream, TcpState::Established, TcpState::CloseWait, tcp);
    }

    /// A look at the host found these listeners on the upstream's address.
    pub(crate) fn look_up(&mut self, local: bool, listeners: Vec<Listener>, nearby: Vec<Listener>) {
        let fact = HostFact::Listeners { upstream: self.upstream, netns: None, local, listeners, nearby };
        self.host(2_000, fact);
    }

    /// Something about the host.
    pub(crate) fn host(&mut self, us: i64, fact: HostFact) {
        let id = EventId(self.next);
        self.next += 1;
        self.case.host.push((id, At::exactly(moment(us)), fact));
    }

    /// The server listens.
    pub(crate) fn listening(&mut self) {
        let listener = self.listener("gunicorn");
        self.look_up(true, vec![listener], Vec::new());
    }

    /// A listener on the upstream's address.
    pub(crate) fn listener(&self, command: &str) -> Listener {
        Listener {
            address: self.upstream,
            netns: None,
            pid: Some(SERVER),
            command: Some(command.to_owned()),
            accept_queue: Some((0, 128)),
        }
    }

    /// Something happens to a process.
    pub(crate) fn process(&mut self, us: i64, event: ProcessEvent) -> EventId {
        let event = self.event(us, Source::Kernel, Body::Process(event));
        let id = event.id;
        self.case.processes.push(event);
        id
    }

    /// The server ends.
    pub(crate) fn exit(&mut self, us: i64, how: Ending) -> EventId {
        self.process(
            us,
            ProcessEvent::Exited {
                pid: SERVER,
                role: Role::Upstream,
                command: "gunicorn".to_owned(),
                how,
                untaken: Untaken::default(),
            },
        )
    }

    /// Somebody sends the server a signal.
    pub(crate) fn signal(&mut self, us: i64, signal: u32, sender: Option<(u32, &str)>) -> EventId {
        let sender = sender.map(|(pid, command)| Sender { pid: Pid(pid), command: command.to_owned() });
        self.process(us, ProcessEvent::Signalled { target: SERVER, role: Role::Upstream, signal, sender })
    }

    /// The OOM killer chooses the server.
    pub(crate) fn oom(&mut self, us: i64) -> EventId {
        self.process(us, ProcessEvent::OomVictim { victim: SERVER, role: Role::Upstream })
    }

    /// A system call of the worker that belongs to the attempt.
    pub(crate) fn syscall(&mut self, us: i64, call: Syscall) -> EventId {
        let event = self.event(us, Source::Kernel, Body::from(SyscallEvent { pid: WORKER, tid: WORKER, call }));
        let id = event.id;
        self.attempt().syscalls.push(event);
        id
    }

    /// A system call of another process.
    pub(crate) fn syscall_of(&mut self, us: i64, pid: Pid, call: Syscall) -> EventId {
        let event = self.event(us, Source::Kernel, Body::from(SyscallEvent { pid, tid: pid, call }));
        let id = event.id;
        self.case.processes.push(event);
        id
    }

    /// This sensor sees nothing.
    pub(crate) fn blind(&mut self, sensor: Sensor) -> &mut Self {
        for (known, sight, why) in &mut self.case.coverage.sensors {
            if *known == sensor {
                *sight = Sight::Off;
                *why = Some(format!("{sensor} is switched off"));
            }
        }
        self
    }

    /// The verdict.
    pub(crate) fn judge(&self) -> Verdict {
        judge(&self.case)
    }

    /// The explanation, where there is one.
    pub(crate) fn explained(&self) -> Explanation {
        match self.judge() {
            Verdict::Explained(explanation) => explanation,
            other => panic!("not explained: {other:#?}"),
        }
    }

    /// Asserts cause and confidence.
    #[track_caller]
    pub(crate) fn expect(&self, cause: &str, confidence: Confidence) -> Explanation {
        let explanation = self.explained();
        assert_eq!((explanation.cause, explanation.confidence), (cause, confidence), "{explanation:#?}");
        explanation
    }
}

/// A moment so many microseconds after the decision.
pub(crate) fn moment(us: i64) -> Moment {
    if us < 0 { DECIDED.minus_ns(us.unsigned_abs() * 1_000) } else { DECIDED.plus_ns(us.unsigned_abs() * 1_000) }
}

/// Counters of nginx's socket.
pub(crate) const fn counters(write_seq: u32, snd_una: u32) -> TcpCounters {
    TcpCounters {
        bytes_acked: 0,
        bytes_received: 0,
        bytes_sent: 0,
        write_seq,
        snd_una,
        snd_nxt: write_seq,
        rcv_nxt: 0,
        copied_seq: 0,
        rtt_us: 40,
        total_retransmits: 0,
        since_sent_us: None,
        since_received_us: None,
    }
}

/// Counters of the upstream's socket with so many bytes unread.
pub(crate) const fn unread(bytes: u32) -> TcpCounters {
    TcpCounters { rcv_nxt: START + LENGTH, copied_seq: START + LENGTH - bytes, ..counters(1, 1) }
}
