//! How connections end.

use super::{
    ACK, Connection, Content, Errno, FIN_ACK, PSH_ACK, Pid, RST, RST_ACK, STEP, Socket, SocketChange, Tape, TcpState,
    header,
};

impl Connection {
    /// The upstream's process closes at `t`, having read everything. Returns when nginx's kernel knows.
    pub fn upstream_close(&mut self, tape: &mut Tape, t: u64) -> u64 {
        let by = Some(self.holder.0);
        self.upstream_state(tape, t, TcpState::FinWait1, by);
        let sequence = self.upstream.write_seq;
        let acknowledged = self.upstream.rcv_nxt;
        self.upstream.write_seq = sequence.wrapping_add(1);
        let at_nginx = t + STEP + self.one_way;
        self.to_nginx(tape, at_nginx, sequence, acknowledged, FIN_ACK, (0, Content::Empty));
        self.nginx.rcv_nxt = self.nginx.rcv_nxt.wrapping_add(1);
        self.nginx.bytes_received += 1;
        self.nginx_state(tape, at_nginx + STEP, TcpState::CloseWait, None);
        self.to_upstream(tape, at_nginx + 2 * STEP, self.nginx.write_seq, self.nginx.rcv_nxt, ACK, (0, Content::Empty));
        let back = at_nginx + 2 * STEP + if self.here() { STEP } else { self.one_way };
        self.upstream.acknowledged(self.upstream.write_seq);
        self.upstream_state(tape, back, TcpState::FinWait2, None);
        self.upstream_state(tape, back + STEP, TcpState::Closed, None);
        if self.here() { back + 2 * STEP } else { at_nginx + 2 * STEP }
    }

    /// The upstream's process throws the connection away at `t`: unread data, linger 0. Returns when nginx's kernel knows.
    pub fn upstream_abort(&mut self, tape: &mut Tape, t: u64, reason: &str) -> u64 {
        self.upstream_state(tape, t, TcpState::Closed, Some(self.holder.0));
        let (sequence, acknowledged) = (self.upstream.write_seq, self.upstream.rcv_nxt);
        let at_nginx = t + STEP + self.one_way;
        self.to_nginx(tape, at_nginx, sequence, acknowledged, RST_ACK, (0, Content::Empty));
        let known = self.reset_arrives(tape, at_nginx + STEP);
        if self.here() {
            // The tracepoint stands after the transmission, and this host delivers inside it.
            let socket = self.upstream_socket(known);
            let sent = SocketChange::ResetSent { reason: Some(reason.to_owned()), answered: None };
            tape.socket(known + STEP, sent, socket, None);
        }
        known
    }

    /// Somebody on the way resets the connection in the upstream's name. Returns when nginx's kernel knows; the upstream's never does.
    pub fn injected_reset(&mut self, tape: &mut Tape, t: u64, other_ttl: bool) -> u64 {
        let ttl = if other_ttl { self.ttl - 3 } else { self.ttl };
        let packet = header(self.remote, self.local, self.upstream.write_seq, self.upstream.rcv_nxt, RST_ACK, ttl);
        tape.packet(t, packet, 0, Content::Empty);
        self.reset_arrives(tape, t + STEP)
    }

    /// nginx's kernel takes a RST.
    pub fn reset_arrives(&mut self, tape: &mut Tape, t: u64) -> u64 {
        tape.socket(t, SocketChange::ResetReceived, self.nginx_socket(t), None);
        let errno = match self.nginx.state {
            TcpState::SynSent => Errno::ECONNREFUSED,
            TcpState::CloseWait => Errno::EPIPE,
            _ => Errno::ECONNRESET,
        };
        self.nginx.error = Some(errno);
        let orphan = self.nginx.state == TcpState::LastAck;
        self.nginx_state(tape, t + STEP, TcpState::Closed, None);
        if !orphan {
            tape.socket(t + 2 * STEP, SocketChange::ErrorReported, self.nginx_socket(t), None);
        }
        t + 3 * STEP
    }

    /// The upstream's kernel answers a segment for a connection it no longer has. Returns when nginx's kernel knows.
    pub fn gone_answers(&mut self, tape: &mut Tape, t: u64, bytes: u32, reason: &str) -> u64 {
        if self.here() {
            let sequence = self.nginx.write_seq.wrapping_sub(bytes);
            let answered = header(self.local, self.remote, sequence, self.nginx.rcv_nxt, PSH_ACK, self.ttl);
            let mut socket = self.upstream_socket(t);
            socket.state = TcpState::TimeWait;
            socket.tcp = None;
            let sent = SocketChange::ResetSent { reason: Some(reason.to_owned()), answered: Some(answered) };
            tape.socket(t, sent, socket, None);
        }
        let at_nginx = t + STEP + if self.here() { 0 } else { self.one_way };
        self.to_nginx(tape, at_nginx, self.nginx.rcv_nxt, 0, RST, (0, Content::Empty));
        self.reset_arrives(tape, at_nginx + STEP)
    }

    /// Nobody listens: the kernel that has the address answers the SYN. Returns when nginx's kernel knows.
    pub fn refuse(&mut self, tape: &mut Tape, t: u64) -> u64 {
        if self.here() {
            let netns = self.upstream.netns;
            tape.drop(t, "NO_SOCKET", netns, self.syn());
            let socket = Socket {
                pointer: None,
                cookie: None,
                netns: Some(netns),
                local: Some(self.remote),
                remote: Some(self.local),
                state: TcpState::Closed,
                error: None,
                soft_error: None,
                retransmits: 0,
                tcp: None,
                accept_queue: None,
            };
            let sent = SocketChange::ResetSent { reason: Some("NO_SOCKET".to_owned()), answered: Some(self.syn()) };
            tape.socket(t + STEP, sent, socket, None);
        }
        self.reset_of_syn(tape, t + 2 * STEP)
    }

    /// A RST answers the SYN, whoever sent it. Returns when nginx's kernel knows.
    pub fn reset_of_syn(&mut self, tape: &mut Tape, t: u64) -> u64 {
        self.to_nginx(tape, t, 0, self.nginx.snd_una.wrapping_add(1), RST_ACK, (0, Content::Empty));
        self.reset_arrives(tape, t + STEP)
    }

    /// nginx's kernel gives the connection up by itself.
    pub fn give_up(&mut self, tape: &mut Tape, t: u64, errno: Errno) {
        self.nginx.error = Some(errno);
        tape.socket(t, SocketChange::ErrorReported, self.nginx_socket(t), None);
        self.nginx_state(tape, t + STEP, TcpState::Closed, None);
    }

    /// nginx closes its end.
    pub fn nginx_close(&mut self, tape: &mut Tape, t: u64) {
        let by = Some(self.opener);
        match self.nginx.state {
            TcpState::SynSent => self.nginx_state(tape, t + STEP, TcpState::Closed, by),
            TcpState::CloseWait => {
                self.nginx_state(tape, t + STEP, TcpState::LastAck, by);
                self.send_fin(tape, t + 2 * STEP);
                if !self.reset_follows() {
                    self.nginx_state(tape, t + 2 * STEP + 2 * self.one_way, TcpState::Closed, None);
                }
            }
            TcpState::Established => self.active_close(tape, t + STEP),
            _ => {}
        }
    }

    /// A segment of nginx's that its peer will answer with a RST is under way.
    pub(super) fn reset_follows(&self) -> bool {
        self.upstream.state == TcpState::Closed && self.nginx.snd_una != self.nginx.write_seq
    }

    pub(super) fn send_fin(&mut self, tape: &mut Tape, t: u64) {
        let (sequence, ack) = (self.nginx.write_seq, self.nginx.rcv_nxt);
        self.to_upstream(tape, t, sequence, ack, FIN_ACK, (0, Content::Empty));
    }

    pub(super) fn active_close(&mut self, tape: &mut Tape, t: u64) {
        let by = Some(self.opener);
        self.nginx_state(tape, t, TcpState::FinWait1, by);
        self.send_fin(tape, t + STEP);
        let arrived = t + STEP + self.one_way;
        if self.upstream.state != TcpState::Established {
            return;
        }
        self.upstream_state(tape, arrived, TcpState::CloseWait, None);
        let back = arrived + if self.here() { STEP } else { self.one_way };
        self.nginx_state(tape, back, TcpState::FinWait2, None);
        self.nginx_state(tape, back + STEP, TcpState::Closed, None);
        if self.here() && self.holder.0 != Pid(0) {
            let later = back + 200_000;
            self.upstream_state(tape, later, TcpState::LastAck, Some(self.holder.0));
            self.upstream_state(tape, later + 3 * STEP, TcpState::Closed, None);
        }
    }
}
