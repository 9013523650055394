//! Answers that nginx cannot take, answers that are lost, and connections that somebody else ends.

use super::{
    Became, Content, Ended, Errno, HOST, MS, Outcome, READ_TIMEOUT, READING_HEADER, RECEIVE_FAILED, STEP, Scene,
    Shortage, State, Syscall, US, Words,
};
use crate::worlds::nginx::{CONNECTING, HANDSHAKING, Inner, SENDING};
use crate::worlds::stage::Stage;
use probe502::model::net::Address;

const TOO_BIG: Words = Words::new("upstream sent too big header", None, READING_HEADER);
const MALFORMED: Words = Words::new("upstream sent invalid header", None, READING_HEADER);
const NOT_SENT: Words = Words::new("writev() failed", Some(Errno::ECONNRESET), SENDING);
const TLS_CLOSED: Words = Words::new("peer closed connection in SSL handshake", None, HANDSHAKING);
const TLS_CERTIFICATE: Words = Words::new("upstream SSL certificate verify error", None, HANDSHAKING);

/// The worker has no connection left: a descriptor was made, and is closed again.
pub(super) fn no_connections(stage: &mut Stage<'_>, inner: &mut Inner, name: &str, t: u64) -> Outcome {
    let words = Words { level: 2, ..Words::new("%ui worker_connections are not enough", None, CONNECTING) };
    inner.complain(&mut stage.tape, t + 5 * US, words, name, None);
    inner.states.push(State { span: (t, t), ..State::default() });
    Outcome { ended: Ended::Fatal, at: t + 10 * US, sent: false, became: Became::LocalError, connection: None }
}

impl Scene<'_, '_> {
    /// `connect()` fails at once.
    pub(super) fn not_connected(mut self, t: u64, shortage: Shortage) -> Outcome {
        let errno = match shortage {
            Shortage::Ports => Errno::EADDRNOTAVAIL,
            Shortage::Route => Errno::ENETUNREACH,
            Shortage::Permission => Errno::EACCES,
        };
        let at = t + 3 * US;
        if shortage == Shortage::Ports {
            // The port is looked for after the state is set; the route before.
            self.connection.begin_and_drop(&mut self.stage.tape, at);
            let until = at + self.latency(1, 900_000);
            if let Some(server) = self.stage.servers.get_mut(self.peer) {
                server.out_of_ports.push((t, until));
            }
        }
        let call = Syscall::Connect {
            fd: self.connection.fd,
            address: Some(Address::Ip(self.connection.remote)),
            result: Err(errno),
            socket: None,
        };
        self.stage.tape.call(at + 2 * STEP, self.connection.opener, call);
        let words = Words { level: 3, ..Words::new("connect() to %V failed", Some(errno), CONNECTING) };
        self.fails_in_turn(at + 4 * STEP, words, 502)
    }

    /// A good status line, and then something nginx does not take.
    pub(super) fn untaken(mut self, ready: u64, too_big: bool) -> Outcome {
        self.connection.upstream.read_all();
        let at = ready + self.latency(20, 30_000);
        let bytes = if too_big { 4_096 } else { 120 };
        let content = Content::HttpStatus { code: 200, line: "HTTP/1.1 200 OK".into() };
        let known = self.connection.response(&mut self.stage.tape, at, bytes, content);
        self.connection.nginx.read(bytes);
        self.state.received = u64::from(bytes);
        self.release(known);
        self.fails(known + 2 * US, if too_big { TOO_BIG } else { MALFORMED }, 502)
    }

    /// The TLS handshake fails: the peer closes, or its certificate is not accepted.
    pub(super) fn tls(mut self, t: u64, closes: bool) -> Outcome {
        let connected = self.connection.open(&mut self.stage.tape, t + 2 * US);
        self.take(connected + self.connection.one_way() + 20 * US);
        self.state.connected = Some(connected);
        let from = self.stage.turn(self.worker, connected + 40 * US + 2 * self.connection.one_way());
        let hello = Content::Tls { content_type: 22, alert: None };
        let (arrived, known) = self.connection.bytes(&mut self.stage.tape, from, 517, hello.clone());
        self.connection.upstream.read_all();
        let at = arrived.max(known) + self.latency(20, 2_000);
        if closes {
            return self.closed_with(at, TLS_CLOSED);
        }
        let known = self.connection.response(&mut self.stage.tape, at, 1_400, hello);
        self.connection.nginx.read(1_400);
        self.release(known);
        self.fails(known + 300 * US, TLS_CERTIFICATE, 502)
    }

    /// An early answer, and the reset that destroys it before nginx, still sending, has read it.
    pub(super) fn early_lost(mut self, ready: u64) -> Outcome {
        self.connection.upstream.read(self.bytes / 2);
        let content = Content::HttpStatus { code: 413, line: "HTTP/1.1 413 Request Entity Too Large".into() };
        let at = ready + self.latency(10, 900);
        let known = self.connection.response(&mut self.stage.tape, at, 180, content);
        let known = self.connection.upstream_abort(&mut self.stage.tape, known + 3 * STEP, "TCP_ABORT_ON_CLOSE");
        self.release(known);
        self.fails(known + 2 * US, NOT_SENT, 502)
    }

    /// Somebody on the way ends the connection while the application works on.
    pub(super) fn injected(mut self, t: u64, other_ttl: bool) -> Outcome {
        self.connection.upstream.read_all();
        let known = self.connection.injected_reset(&mut self.stage.tape, t, other_ttl);
        self.release(known + 50 * MS);
        self.fails(known + 5 * US, RECEIVE_FAILED, 502)
    }

    /// The request never arrives, however often it is sent.
    pub(super) fn stalled(mut self, t: u64, fresh: bool) -> Outcome {
        let line = self.inner.line.clone();
        let mut from = t + 2 * US;
        if fresh {
            let connected = self.connection.open(&mut self.stage.tape, from);
            self.take(connected + self.connection.one_way() + 20 * US);
            self.state.connected = Some(connected);
            from = self.stage.turn(self.worker, connected + 40 * US + 2 * self.connection.one_way());
        } else {
            self.state.connected = Some(t);
        }
        self.state.sent = u64::from(self.bytes);
        self.connection.request_lost(&mut self.stage.tape, from, self.bytes, &line, HOST);
        let gives_up = from + self.stage.read_timeout;
        let mut after = 210 * MS;
        while from + after < gives_up {
            self.connection.repeat_request(&mut self.stage.tape, from + after, self.bytes, &line, HOST);
            after *= 2;
        }
        self.release(gives_up);
        self.fails(gives_up, READ_TIMEOUT, 504)
    }
}
