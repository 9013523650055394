//! nginx's side of the stage: workers that do one thing at a time, requests with their numbers and pointers, what nginx says of them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use probe502::model::{
    coverage::Sensor,
    event::Body,
    net::Errno,
    nginx::{
        AccessLine, ErrorLine, NginxAttempt, NginxEvent, NginxLog, NginxStatus, RequestKey, StatusPoint,
        UpstreamConnection,
    },
    packet::Content,
    process::Pid,
};

use super::{
    tape::{PSH_ACK, Tape, header},
    tcp::Connection,
};

/// The masters' listen addresses.
pub const LISTEN: [SocketAddr; 2] = [at(80), at(81)];

const fn at(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), port)
}
/// The name clients use.
pub const HOST: &str = "shop.example";
/// How long one turn of a worker's event loop may take at most here.
const TURN: u64 = 400_000;

/// A worker.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Its process.
    pub pid: Pid,
    turns: Vec<(u64, u64)>,
    pointers: Vec<(u64, u64)>,
    next_fd: i32,
}

impl Worker {
    /// Idle.
    #[must_use]
    pub const fn new(pid: Pid) -> Self {
        Self { pid, turns: Vec::new(), pointers: Vec::new(), next_fd: 12 }
    }

    /// The first moment from `t` on at which it is free for a whole turn, which is taken.
    pub fn turn(&mut self, t: u64) -> u64 {
        let mut start = t;
        loop {
            let clash = self.turns.iter().filter(|(begin, end)| start < *end && start + TURN > *begin);
            match clash.map(|(_, end)| *end).max() {
                Some(end) => start = end + 1_000,
                None => break,
            }
        }
        self.turns.push((start, start + TURN));
        start
    }

    /// Memory for a request from `t` on: the first that is free, as nginx's pools give it.
    pub fn pointer(&mut self, t: u64) -> u64 {
        let free = self.pointers.iter_mut().find(|(_, busy_until)| *busy_until < t);
        if let Some((pointer, busy_until)) = free {
            *busy_until = u64::MAX;
            return *pointer;
        }
        let pointer = 0x5555_5600_0000 + 0x1000 * u64::try_from(self.pointers.len()).unwrap_or(0);
        self.pointers.push((pointer, u64::MAX));
        pointer
    }

    /// The memory is free again.
    pub fn release(&mut self, pointer: u64, t: u64) {
        for (_, busy_until) in self.pointers.iter_mut().filter(|(known, _)| *known == pointer) {
            *busy_until = t;
        }
    }

    /// A descriptor.
    pub const fn descriptor(&mut self) -> i32 {
        self.next_fd += 1;
        if self.next_fd > 40 {
            self.next_fd = 13;
        }
        self.next_fd
    }
}

/// A client's request inside nginx.
#[derive(Clone, Debug)]
pub struct Inner {
    /// Worker and pointer.
    pub key: RequestKey,
    /// The main request, if this is its subrequest.
    pub parent: Option<RequestKey>,
    /// Where the client reached nginx.
    pub listen: SocketAddr,
    /// nginx's upstream module has to do with it.
    pub passed: bool,
    /// `*N`.
    pub number: u64,
    /// The how-manieth on the client's connection.
    pub client_requests: u64,
    /// When it came.
    pub begun: u64,
    /// The client.
    pub client: SocketAddr,
    /// The request line.
    pub line: String,
    /// nginx's own list of attempts.
    pub states: Vec<State>,
}

/// An entry of nginx's own list of attempts.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The peer as nginx names it.
    pub peer: Option<String>,
    /// Its status.
    pub status: Option<u16>,
    /// When it began and when it ended.
    pub span: (u64, u64),
    /// When it was connected.
    pub connected: Option<u64>,
    /// When its header was accepted.
    pub header: Option<u64>,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
}

/// What nginx says when something fails.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    /// The text.
    pub text: &'static str,
    /// The errno.
    pub errno: Option<Errno>,
    /// What it was doing; empty: it does not say.
    pub action: &'static str,
    /// 2 alert, 4 error.
    pub level: u32,
}

impl Words {
    /// At level error.
    #[must_use]
    pub const fn new(text: &'static str, errno: Option<Errno>, action: &'static str) -> Self {
        Self { text, errno, action, level: 4 }
    }
}

/// While connecting.
pub const CONNECTING: &str = "connecting to upstream";
/// While sending.
pub const SENDING: &str = "sending request to upstream";
/// While the TLS handshake is on.
pub const HANDSHAKING: &str = "SSL handshaking to upstream";
/// While waiting for the header.
pub const READING_HEADER: &str = "reading response header from upstream";
/// After the header.
pub const READING: &str = "reading upstream";

impl Inner {
    /// nginx writes to its error log about an attempt at `peer`; empty: about none.
    pub fn complain(&self, tape: &mut Tape, t: u64, words: Words, peer: &str, connection: Option<&Connection>) {
        let upstream = connection.map(|connection| UpstreamConnection {
            fd: connection.fd,
            requests: Some(connection.requests),
            unix: false,
            socket: Some(connection.nginx_socket(t)),
        });
        self.complain_of(tape, t, words, peer, upstream);
    }

    /// The same, of a connection of any kind.
    pub fn complain_of(&self, tape: &mut Tape, t: u64, words: Words, peer: &str, upstream: Option<UpstreamConnection>) {
        let said = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let log = NginxLog {
            status: None,
            worker: self.key.worker,
            request: Some(self.key),
            parent: self.parent,
            number: Some(self.number),
            client_requests: Some(self.client_requests),
            level: words.level,
            errno: words.errno,
            format: words.text.to_owned(),
            action: said(words.action),
            peer: said(peer),
            upstream,
            client: Some(self.client),
            request_line: None,
            host: None,
        };
        tape.nginx(Sensor::NginxFunctions, t, NginxEvent::Log(Box::new(log)));
        let line = ErrorLine {
            level: ["alert", "crit", "error"]
                .get(words.level.saturating_sub(2) as usize)
                .unwrap_or(&"error")
                .to_string(),
            pid: self.key.worker.0,
            number: Some(self.number),
            message: words.text.to_owned(),
            errno: words.errno,
            action: said(words.action),
            client: Some(self.client.ip().to_string()),
            server: Some(HOST.to_owned()),
            request: Some(self.line.clone()),
            subrequest: self.parent.map(|_| "/auth".to_owned()),
            upstream: said(peer).map(|peer| format!("http://{peer}/")),
            host: Some(HOST.to_owned()),
        };
        tape.line(Sensor::ErrorLog, t + 1_000, Body::from(line));
    }

    /// A descriptor became a connection of nginx for this request.
    pub fn connection_made(&self, tape: &mut Tape, t: u64, fd: i32) {
        let event =
            NginxEvent::Connection { worker: self.key.worker, number: self.number, request: Some(self.key), fd };
        tape.nginx(Sensor::NginxFunctions, t, event);
    }

    fn status(&self, tape: &mut Tape, t: u64, point: StatusPoint, status: u16, overriding: Option<u16>) -> u64 {
        let sensor = match point {
            StatusPoint::SendHeader => Sensor::NginxStatuses,
            StatusPoint::SpecialResponse | StatusPoint::Redirect => Sensor::NginxFunctions,
        };
        let total = u32::try_from(self.states.len()).unwrap_or(0);
        let said = NginxStatus {
            point,
            worker: self.key.worker,
            request: self.key,
            parent: self.parent,
            number: Some(self.number),
            client_requests: Some(self.client_requests),
            status,
            overriding,
            upstream_begun: Some(self.passed),
            request_line: Some(self.line.clone()),
            host: Some(HOST.to_owned()),
            client: Some(self.client),
            attempts: Some(total),
        };
        tape.nginx(sensor, t, NginxEvent::Status(Box::new(said)));
        let mut now = t;
        for (index, state) in self.states.iter().enumerate() {
            now += 300;
            let since_start = |at: u64| at.saturating_sub(state.span.0) / 1_000_000;
            let attempt = NginxAttempt {
                request: self.key,
                index: u32::try_from(index).unwrap_or(0),
                total,
                peer: state.peer.clone(),
                status: state.status,
                connect_ms: state.connected.map(since_start),
                header_ms: state.header.map(since_start),
                response_ms: Some(since_start(state.span.1)),
                bytes_sent: state.sent,
                bytes_received: state.received,
            };
            tape.nginx(sensor, now, NginxEvent::Attempt(attempt));
        }
        now + 1_000
    }

    /// nginx makes an error response itself; `overriding`: its page has a status of its own.
    pub fn special_response(&self, tape: &mut Tape, t: u64, status: u16, overriding: Option<u16>) -> u64 {
        self.status(tape, t, StatusPoint::SpecialResponse, status, overriding)
    }

    /// The request goes on to an error page; `status`: what is put into `r->err_status` for it (`ngx_http_send_error_page()`,
    /// `ngx_http_special_response.c` in 1.22.1).
    pub fn redirect(&self, tape: &mut Tape, t: u64, status: u16) -> u64 {
        self.status(tape, t, StatusPoint::Redirect, status, None)
    }

    /// The header goes to the client; a subrequest's goes nowhere.
    pub fn send_header(&self, tape: &mut Tape, t: u64, status: u16) -> u64 {
        let now = self.status(tape, t, StatusPoint::SendHeader, status, None);
        if self.parent.is_none() {
            let line = format!("HTTP/1.1 {status} -");
            let sequence = tape.dice.sequence();
            let packet = header(self.listen, self.client, sequence, 1, PSH_ACK, 64);
            tape.packet(now, packet, 300, Content::HttpStatus { code: status, line: line.into() });
        }
        now + 1_000
    }

    /// Its subrequest.
    #[must_use]
    pub fn subrequest(&self, pointer: u64) -> Self {
        let key = RequestKey { worker: self.key.worker, pointer };
        Self { key, parent: Some(self.key), states: Vec::new(), ..self.clone() }
    }

    /// The main request of a subrequest, which tried nothing itself.
    #[must_use]
    pub fn main(&self) -> Self {
        Self { key: self.parent.unwrap_or(self.key), parent: None, passed: false, states: Vec::new(), ..self.clone() }
    }

    /// The line in the access log.
    pub fn access_line(&self, tape: &mut Tape, t: u64, status: u16, detailed: bool) {
        let list = |part: fn(&State) -> String| self.states.iter().map(part).collect::<Vec<_>>().join(", ");
        let line = AccessLine {
            client: Some(self.client.ip().to_string()),
            request: Some(self.line.clone()),
            status: Some(status),
            number: detailed.then_some(self.number),
            client_requests: detailed.then_some(self.client_requests),
            pid: detailed.then_some(self.key.worker.0),
            upstream_status: detailed.then(|| list(|s| s.status.map_or_else(|| "-".to_owned(), |n| n.to_string()))),
            upstream_address: detailed.then(|| list(|s| s.peer.clone().unwrap_or_default())),
            cache_status: None,
        };
        tape.line(Sensor::AccessLog, t, Body::AccessLine(line));
    }
}
