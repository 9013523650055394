//! Everything that could be seen of a world, each with who would have seen it.

use std::net::SocketAddr;

use probe502::{
    merge::Arrival,
    model::{
        coverage::Sensor,
        event::{Body, Source},
        host::HostFact,
        nginx::NginxEvent,
        packet::{Content, IcmpPacket, PacketBody, PacketEvent, PacketRef, TcpFlags, TcpHeader, TcpPacket},
        process::{Pid, ProcessEvent},
        socket::{DropEvent, Socket, SocketChange, SocketEvent, Syscall, SyscallEvent, TcpState},
        time::{At, Moment},
    },
};

use super::dice::Dice;

/// nginx's network namespace.
pub const NGINX_NETNS: u32 = 4_026_531_840;
/// The network namespace of its neighbours on the host.
pub const OTHER_NETNS: u32 = 4_026_532_700;

/// Something that could be seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// By whom; `None`: it is part of every run.
    pub sensor: Option<Sensor>,
    /// It is about somebody else's connection.
    pub foreign: bool,
    /// As it arrives.
    pub arrival: Arrival,
}

/// What is recorded, in the order in which it was made.
#[derive(Clone, Debug)]
pub struct Tape {
    records: Vec<Record>,
    /// Log lines, with when each was written.
    lines: Vec<(u64, Sensor, Body)>,
    packets: u64,
    /// Packets are stamped by another clock than the kernel's records; this much later.
    packet_clock_ns: i64,
    /// What is made now is about somebody else's connection.
    pub foreign: bool,
    /// Small chances.
    pub dice: Dice,
}

impl Tape {
    /// Empty.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let packet_clock_ns = i64::try_from(dice.between(0, 40_000)).unwrap_or(0) - 20_000;
        Self { records: Vec::new(), lines: Vec::new(), packets: 0, packet_clock_ns, foreign: false, dice }
    }

    /// Everything, in order of time; what has the same time keeps its order.
    #[must_use]
    pub fn into_records(mut self) -> Vec<Record> {
        self.read_lines();
        self.records.sort_by_key(|record| record.arrival.at.latest);
        self.records
    }

    fn put(&mut self, sensor: Option<Sensor>, source: Source, at: At, body: Body) {
        self.records.push(Record { sensor, foreign: self.foreign, arrival: Arrival { at, source, body } });
    }

    /// A record of the kernel programs.
    pub fn kernel(&mut self, sensor: Sensor, ns: u64, body: Body) {
        self.put(Some(sensor), Source::Kernel, At::exactly(Moment(ns)), body);
    }

    /// A change of a socket.
    pub fn socket(&mut self, ns: u64, change: SocketChange, socket: Socket, by: Option<Pid>) {
        let sensor = match change {
            SocketChange::State { .. } => Sensor::SocketStates,
            SocketChange::ResetSent { .. } => Sensor::ResetsSent,
            SocketChange::ResetReceived => Sensor::ResetsReceived,
            SocketChange::Retransmitted { .. } | SocketChange::SynAckRetransmitted => Sensor::Retransmits,
            SocketChange::ErrorReported => Sensor::SocketErrors,
        };
        self.kernel(sensor, ns, Body::from(SocketEvent { change, socket, by }));
    }

    /// A change of state.
    pub fn state(&mut self, ns: u64, from: TcpState, socket: Socket, by: Option<Pid>) {
        self.socket(ns, SocketChange::State { from }, socket, by);
    }

    /// A dropped packet.
    pub fn drop(&mut self, ns: u64, reason: &str, netns: u32, packet: TcpHeader) {
        let body = Body::Drop(DropEvent { reason: Some(reason.to_owned()), netns: Some(netns), packet });
        self.kernel(Sensor::Drops, ns, body);
    }

    /// A system call that returned.
    pub fn call(&mut self, ns: u64, pid: Pid, call: Syscall) {
        self.kernel(Sensor::Syscalls, ns, Body::from(SyscallEvent { pid, tid: pid, call }));
    }

    /// Something about a process.
    pub fn process(&mut self, ns: u64, event: ProcessEvent) {
        let sensor = match event {
            ProcessEvent::Signalled { .. } => Sensor::Signals,
            ProcessEvent::OomVictim { .. } => Sensor::OomKills,
            _ => Sensor::Processes,
        };
        self.kernel(sensor, ns, Body::Process(event));
    }

    /// Something inside nginx.
    pub fn nginx(&mut self, sensor: Sensor, ns: u64, event: NginxEvent) {
        self.kernel(sensor, ns, Body::Nginx(event));
    }

    /// A packet on the wire.
    pub fn packet(&mut self, ns: u64, header: TcpHeader, payload_length: u32, content: Content) {
        let v6 = header.source.is_ipv6();
        let ip_id = if v6 { None } else { Some(u16::try_from(self.dice.between(0, 0xffff)).unwrap_or(0)) };
        let tcp = TcpPacket { header, payload_length, window: 502, ip_id, content, promised: None };
        self.on_wire(ns, PacketBody::Tcp(tcp));
    }

    /// An ICMP message on the wire.
    pub fn icmp(&mut self, ns: u64, icmp: IcmpPacket) {
        self.on_wire(ns, PacketBody::Icmp(icmp));
    }

    fn on_wire(&mut self, ns: u64, body: PacketBody) {
        self.packets += 1;
        let event = PacketEvent { reference: PacketRef(self.packets), netns: Some(NGINX_NETNS), body };
        let at = At::exactly(Moment(ns.saturating_add_signed(self.packet_clock_ns)));
        self.put(Some(Sensor::Packets), Source::Packet, at, Body::Packet(event));
    }

    /// A line of a log, written at `ns`.
    pub fn line(&mut self, sensor: Sensor, ns: u64, body: Body) {
        self.lines.push((ns, sensor, body));
    }

    /// A line carries its second; the file is read a little later, in the order in which it was written.
    fn read_lines(&mut self) {
        let mut lines = std::mem::take(&mut self.lines);
        lines.sort_by_key(|(written, ..)| *written);
        let mut read_up_to = [0, 0];
        for (written, sensor, body) in lines {
            let access = sensor == Sensor::AccessLog;
            let source = if access { Source::AccessLog } else { Source::ErrorLog };
            let second = written / 1_000_000_000 * 1_000_000_000;
            let last = &mut read_up_to[usize::from(access)];
            *last = (written + self.dice.between(100_000, 30_000_000)).max(*last);
            let at = At::between(Moment(second), Moment((*last).min(second + 999_999_999)));
            self.put(Some(sensor), source, at, body);
        }
    }

    /// What the host looked like.
    pub fn host(&mut self, sensor: Option<Sensor>, ns: u64, fact: HostFact) {
        self.put(sensor, Source::Probe, At::exactly(Moment(ns)), Body::from(fact));
    }
}

/// A TCP header.
#[must_use]
pub fn header(from: SocketAddr, to: SocketAddr, sequence: u32, acknowledgement: u32, flags: u8, ttl: u8) -> TcpHeader {
    TcpHeader { source: from, destination: to, sequence, acknowledgement, flags: TcpFlags(flags), ttl }
}

/// FIN and ACK.
pub const FIN_ACK: u8 = 0x11;
/// SYN.
pub const SYN: u8 = 0x02;
/// SYN and ACK.
pub const SYN_ACK: u8 = 0x12;
/// RST.
pub const RST: u8 = 0x04;
/// RST and ACK.
pub const RST_ACK: u8 = 0x14;
/// ACK.
pub const ACK: u8 = 0x10;
/// PSH and ACK.
pub const PSH_ACK: u8 = 0x18;
