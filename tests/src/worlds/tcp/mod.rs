//! TCP connections as Linux 6.18 makes, uses and ends them, with every record and packet in its order
//! (`kernel-portability.md` §5 has the measured orders).

mod ending;

use std::net::SocketAddr;

use probe502::model::{
    net::{Address, Errno},
    packet::{Content, TcpHeader},
    process::Pid,
    socket::{Socket, SocketChange, SocketPointer, Syscall, TcpCounters, TcpState},
};

use super::{
    tape::{ACK, FIN_ACK, NGINX_NETNS, OTHER_NETNS, PSH_ACK, RST, RST_ACK, SYN, SYN_ACK, Tape, header},
    truth::Place,
};

/// One tick of the kernel's coarse clock (`CONFIG_HZ=250`).
const TICK_NS: u64 = 4_000_000;
/// What a step inside the kernel takes.
pub const STEP: u64 = 1_500;

/// One end of a connection.
#[derive(Clone, Debug)]
pub struct End {
    pointer: u64,
    netns: u32,
    /// Its state.
    pub state: TcpState,
    /// What the application will be told.
    pub error: Option<Errno>,
    bytes_acked: u64,
    bytes_received: u64,
    bytes_sent: u64,
    write_seq: u32,
    snd_una: u32,
    rcv_nxt: u32,
    copied_seq: u32,
    retransmits: u8,
    total_retransmits: u32,
    last_sent: Option<u64>,
    last_received: Option<u64>,
}

impl End {
    fn new(pointer: u64, netns: u32, sequence: u32) -> Self {
        Self {
            pointer,
            netns,
            state: TcpState::Closed,
            error: None,
            bytes_acked: 0,
            bytes_received: 0,
            bytes_sent: 0,
            write_seq: sequence.wrapping_add(1),
            snd_una: sequence,
            rcv_nxt: 0,
            copied_seq: 0,
            retransmits: 0,
            total_retransmits: 0,
            last_sent: None,
            last_received: None,
        }
    }

    fn established(&mut self, peer_sequence: u32) {
        self.state = TcpState::Established;
        self.snd_una = self.snd_una.wrapping_add(1);
        self.bytes_acked = 1;
        self.rcv_nxt = peer_sequence.wrapping_add(1);
        self.copied_seq = self.rcv_nxt;
        self.retransmits = 0;
    }

    fn write(&mut self, bytes: u32, now: u64) {
        self.write_seq = self.write_seq.wrapping_add(bytes);
        self.bytes_sent += u64::from(bytes);
        self.last_sent = Some(now);
    }

    fn receive(&mut self, bytes: u32, now: u64) {
        self.rcv_nxt = self.rcv_nxt.wrapping_add(bytes);
        self.bytes_received += u64::from(bytes);
        self.last_received = Some(now);
    }

    fn acknowledged(&mut self, up_to: u32) {
        self.bytes_acked += u64::from(up_to.wrapping_sub(self.snd_una));
        self.snd_una = up_to;
    }

    /// The application reads so many bytes.
    pub fn read(&mut self, bytes: u32) {
        self.copied_seq = self.copied_seq.wrapping_add(bytes);
    }

    /// The application reads everything, a FIN included.
    pub fn read_all(&mut self) {
        self.copied_seq = self.rcv_nxt;
    }

    /// Bytes that wait to be read.
    #[must_use]
    pub const fn unread(&self) -> u32 {
        self.rcv_nxt.wrapping_sub(self.copied_seq)
    }
}

/// Microseconds since `then` as the kernel's tick counts them.
const fn ticks_since(then: Option<u64>, now: u64) -> Option<u64> {
    match then {
        Some(then) => Some((now / TICK_NS).saturating_sub(then / TICK_NS) * (TICK_NS / 1_000)),
        None => None,
    }
}

/// A connection, or the attempt at one.
#[derive(Clone, Debug)]
pub struct Connection {
    /// nginx's address.
    pub local: SocketAddr,
    /// The upstream's.
    pub remote: SocketAddr,
    /// Who opens it.
    pub opener: Pid,
    /// The descriptor.
    pub fd: i32,
    /// nginx's end.
    pub nginx: End,
    /// The upstream's end.
    pub upstream: End,
    /// The process that holds the upstream's end, with its name.
    pub holder: (Pid, String),
    /// Requests sent on it.
    pub requests: u64,
    place: Place,
    one_way: u64,
    ttl: u8,
    /// What nginx sends never reaches a wire.
    muted: bool,
}

impl Connection {
    /// Not yet opened.
    pub fn new(tape: &mut Tape, opener: Pid, fd: i32, local: SocketAddr, remote: SocketAddr, place: Place) -> Self {
        let one_way = match place {
            Place::Loopback => STEP,
            Place::Neighbour => 2 * STEP,
            Place::Elsewhere => tape.dice.between(60_000, 12_000_000),
        };
        // The slab allocator gives the same addresses again and again.
        let pointers = [tape.dice.between(0, 5), tape.dice.between(6, 11)].map(|n| 0xffff_8880_0400_0000 + n * 0x9c0);
        let sequences = [tape.dice.sequence(), tape.dice.sequence()];
        let other = if place == Place::Neighbour { OTHER_NETNS } else { NGINX_NETNS };
        Self {
            local,
            remote,
            opener,
            fd,
            nginx: End::new(pointers[0], NGINX_NETNS, sequences[0]),
            upstream: End::new(pointers[1], other, sequences[1]),
            holder: (Pid(0), String::new()),
            requests: 0,
            place,
            one_way,
            ttl: if place == Place::Elsewhere { 61 } else { 64 },
            muted: false,
        }
    }

    /// One way to the upstream, nanoseconds.
    #[must_use]
    pub const fn one_way(&self) -> u64 {
        self.one_way
    }

    /// What nginx sends from now on is dropped before it reaches a wire.
    pub const fn mute(&mut self, muted: bool) {
        self.muted = muted;
    }

    const fn here(&self) -> bool {
        self.place.is_here()
    }

    fn snapshot(&self, end: &End, flip: bool, now: u64) -> Socket {
        let (local, remote) = if flip { (self.remote, self.local) } else { (self.local, self.remote) };
        Socket {
            pointer: Some(SocketPointer(end.pointer)),
            cookie: None,
            netns: Some(end.netns),
            local: Some(local),
            remote: Some(remote),
            state: end.state,
            error: end.error,
            soft_error: None,
            retransmits: end.retransmits,
            tcp: Some(TcpCounters {
                bytes_acked: end.bytes_acked,
                bytes_received: end.bytes_received,
                bytes_sent: end.bytes_sent,
                write_seq: end.write_seq,
                snd_una: end.snd_una,
                snd_nxt: end.write_seq,
                rcv_nxt: end.rcv_nxt,
                copied_seq: end.copied_seq,
                rtt_us: u32::try_from(2 * self.one_way / 1_000 + 20).unwrap_or(0),
                total_retransmits: end.total_retransmits,
                since_sent_us: ticks_since(end.last_sent, now),
                since_received_us: ticks_since(end.last_received, now),
            }),
            accept_queue: None,
        }
    }

    /// nginx's socket now.
    #[must_use]
    pub fn nginx_socket(&self, now: u64) -> Socket {
        self.snapshot(&self.nginx, false, now)
    }

    /// The upstream's socket now.
    #[must_use]
    pub fn upstream_socket(&self, now: u64) -> Socket {
        self.snapshot(&self.upstream, true, now)
    }

    /// nginx's end changes its state.
    pub fn nginx_state(&mut self, tape: &mut Tape, t: u64, to: TcpState, by: Option<Pid>) {
        let from = std::mem::replace(&mut self.nginx.state, to);
        let mut socket = self.nginx_socket(t);
        if from == TcpState::Closed {
            // The port is chosen after the state is set.
            socket.local = None;
        }
        tape.state(t, from, socket, by);
    }

    /// The upstream's end changes its state; seen only on this host.
    pub fn upstream_state(&mut self, tape: &mut Tape, t: u64, to: TcpState, by: Option<Pid>) {
        let from = std::mem::replace(&mut self.upstream.state, to);
        if self.here() {
            let mut socket = self.upstream_socket(t);
            if from == TcpState::Listen {
                socket.tcp = None;
            }
            tape.state(t, from, socket, by);
        }
    }

    fn to_upstream(&self, tape: &mut Tape, t: u64, sequence: u32, ack: u32, flags: u8, payload: (u32, Content)) {
        if !self.muted {
            tape.packet(t, header(self.local, self.remote, sequence, ack, flags, 64), payload.0, payload.1);
        }
    }

    fn to_nginx(&self, tape: &mut Tape, t: u64, sequence: u32, ack: u32, flags: u8, payload: (u32, Content)) {
        tape.packet(t, header(self.remote, self.local, sequence, ack, flags, self.ttl), payload.0, payload.1);
    }

    /// The SYN as the other side's kernel holds it.
    #[must_use]
    pub fn syn(&self) -> TcpHeader {
        header(self.local, self.remote, self.nginx.snd_una, 0, SYN, self.ttl)
    }

    /// The answer to it.
    #[must_use]
    pub fn syn_ack(&self) -> TcpHeader {
        let acknowledged = self.nginx.snd_una.wrapping_add(1);
        header(self.remote, self.local, self.upstream.snd_una, acknowledged, SYN_ACK, self.ttl)
    }

    /// The handshake's last packet.
    #[must_use]
    pub fn last_step(&self) -> TcpHeader {
        header(self.local, self.remote, self.nginx.write_seq, self.nginx.rcv_nxt, ACK, self.ttl)
    }

    /// `connect()` is called: the SYN leaves.
    pub fn connect(&mut self, tape: &mut Tape, t: u64) -> u64 {
        self.nginx_state(tape, t, TcpState::SynSent, Some(self.opener));
        self.send_syn(tape, t + STEP);
        t + 2 * STEP
    }

    fn send_syn(&self, tape: &mut Tape, t: u64) {
        self.to_upstream(tape, t, self.nginx.snd_una, 0, SYN, (0, Content::Empty));
    }

    /// The SYN is sent again, for lack of an answer.
    pub fn repeat_syn(&mut self, tape: &mut Tape, t: u64) {
        self.nginx.retransmits += 1;
        self.nginx.total_retransmits += 1;
        self.send_syn(tape, t);
        tape.socket(t + STEP, SocketChange::Retransmitted { payload: 0 }, self.nginx_socket(t), None);
    }

    /// The record of `connect()`, made when it returns.
    pub fn connect_returned(&self, tape: &mut Tape, t: u64) {
        let call = Syscall::Connect {
            fd: self.fd,
            address: Some(Address::Ip(self.remote)),
            result: Err(Errno::EINPROGRESS),
            socket: Some(self.nginx_socket(t)),
        };
        tape.call(t, self.opener, call);
    }

    /// The answer to the SYN is on the wire.
    pub fn answer_syn(&self, tape: &mut Tape, t: u64) {
        let syn_ack = self.syn_ack();
        tape.packet(t, syn_ack, 0, Content::Empty);
    }

    /// The whole handshake. Returns when nginx's end was connected.
    pub fn open(&mut self, tape: &mut Tape, t: u64) -> u64 {
        let mut now = self.connect(tape, t);
        if !self.here() {
            self.connect_returned(tape, now);
            now += 2 * self.one_way;
        }
        if self.here() {
            self.upstream.state = TcpState::Listen;
        }
        self.answer_syn(tape, now);
        now += STEP;
        let (mine, theirs) = (self.nginx.snd_una, self.upstream.snd_una);
        self.nginx.established(theirs);
        self.nginx.state = TcpState::SynSent;
        self.nginx_state(tape, now, TcpState::Established, None);
        let connected = now;
        now += STEP;
        self.to_upstream(tape, now, self.nginx.write_seq, self.nginx.rcv_nxt, ACK, (0, Content::Empty));
        self.upstream.established(mine);
        // The side that was asked does not count its SYN-ACK.
        self.upstream.bytes_acked = 0;
        if self.here() {
            self.upstream.state = TcpState::Listen;
            self.upstream_state(tape, now + STEP, TcpState::SynReceived, None);
            self.upstream_state(tape, now + 2 * STEP, TcpState::Established, None);
            now += 3 * STEP;
            self.connect_returned(tape, now);
        }
        connected.max(if self.here() { now } else { connected })
    }

    /// nginx's half of a handshake whose last packet the upstream drops. Returns when that packet was there.
    pub fn half_open(&mut self, tape: &mut Tape, t: u64) -> u64 {
        self.answer_syn(tape, t);
        let theirs = self.upstream.snd_una;
        self.nginx.established(theirs);
        self.nginx.state = TcpState::SynSent;
        self.nginx_state(tape, t + STEP, TcpState::Established, None);
        self.to_upstream(tape, t + 2 * STEP, self.nginx.write_seq, self.nginx.rcv_nxt, ACK, (0, Content::Empty));
        t + 3 * STEP
    }

    /// The upstream's process takes it.
    pub fn accept(&mut self, tape: &mut Tape, t: u64, holder: (Pid, String)) {
        let acceptor = holder.0;
        self.accept_for(tape, t, acceptor, holder);
    }

    /// One process accepts the connection and hands it on to another of the same server.
    pub fn accept_for(&mut self, tape: &mut Tape, t: u64, acceptor: Pid, holder: (Pid, String)) {
        if self.here() {
            let call = Syscall::Accept {
                listener: 5,
                result: Ok(11),
                socket: Some(self.upstream_socket(t)),
                peer: None,
                command: holder.1.clone(),
            };
            tape.call(t, acceptor, call);
        }
        self.holder = holder;
    }

    /// `connect()` finds no port: the socket's state went there and back.
    pub fn begin_and_drop(&mut self, tape: &mut Tape, t: u64) {
        self.nginx_state(tape, t, TcpState::SynSent, Some(self.opener));
        self.nginx_state(tape, t + STEP, TcpState::Closed, Some(self.opener));
    }

    /// nginx writes so many bytes of a request. Returns when they were with the upstream's kernel, and when that was acknowledged.
    pub fn request(&mut self, tape: &mut Tape, t: u64, bytes: u32, line: &str, host: &str) -> (u64, u64) {
        let content = Content::HttpRequest { line: line.into(), host: Some(host.into()) };
        self.bytes(tape, t, bytes, content)
    }

    /// nginx writes so many bytes of anything, likewise.
    pub fn bytes(&mut self, tape: &mut Tape, t: u64, bytes: u32, content: Content) -> (u64, u64) {
        let sequence = self.nginx.write_seq;
        self.nginx.write(bytes, t);
        self.to_upstream(tape, t + STEP, sequence, self.nginx.rcv_nxt, PSH_ACK, (bytes, content));
        let arrived = t + STEP + self.one_way;
        self.upstream.receive(bytes, arrived);
        let acknowledged = self.acknowledge_request(tape, arrived + STEP);
        (arrived, acknowledged)
    }

    fn acknowledge_request(&mut self, tape: &mut Tape, t: u64) -> u64 {
        let at_nginx = if self.here() { t } else { t + self.one_way };
        self.to_nginx(tape, at_nginx, self.upstream.write_seq, self.upstream.rcv_nxt, ACK, (0, Content::Empty));
        self.nginx.acknowledged(self.upstream.rcv_nxt);
        at_nginx + STEP
    }

    /// nginx writes bytes that nobody will acknowledge. Returns when the last of them was where they go.
    pub fn request_lost(&mut self, tape: &mut Tape, t: u64, bytes: u32, line: &str, host: &str) -> u64 {
        let sequence = self.nginx.write_seq;
        self.nginx.write(bytes, t);
        let content = Content::HttpRequest { line: line.into(), host: Some(host.into()) };
        self.to_upstream(tape, t + STEP, sequence, self.nginx.rcv_nxt, PSH_ACK, (bytes, content));
        t + STEP + self.one_way
    }

    /// What nginx last sent is sent again.
    pub fn repeat_request(&mut self, tape: &mut Tape, t: u64, bytes: u32, line: &str, host: &str) -> TcpHeader {
        let sequence = self.nginx.write_seq.wrapping_sub(bytes);
        let content = Content::HttpRequest { line: line.into(), host: Some(host.into()) };
        self.nginx.retransmits = self.nginx.retransmits.saturating_add(1);
        self.nginx.total_retransmits += 1;
        self.to_upstream(tape, t, sequence, self.nginx.rcv_nxt, PSH_ACK, (bytes, content));
        tape.socket(t + STEP, SocketChange::Retransmitted { payload: bytes }, self.nginx_socket(t), None);
        header(self.local, self.remote, sequence, self.nginx.rcv_nxt, PSH_ACK, self.ttl)
    }

    /// The upstream sends so many bytes at `t`. Returns when they were with nginx's kernel.
    pub fn response(&mut self, tape: &mut Tape, t: u64, bytes: u32, content: Content) -> u64 {
        let sequence = self.upstream.write_seq;
        self.upstream.write(bytes, t);
        let at_nginx = t + self.one_way;
        self.to_nginx(tape, at_nginx, sequence, self.upstream.rcv_nxt, PSH_ACK, (bytes, content));
        self.nginx.receive(bytes, at_nginx);
        self.nginx.acknowledged(self.upstream.rcv_nxt);
        self.to_upstream(tape, at_nginx + STEP, self.nginx.write_seq, self.nginx.rcv_nxt, ACK, (0, Content::Empty));
        self.upstream.acknowledged(self.nginx.rcv_nxt);
        at_nginx + 2 * STEP
    }
}
