//! What `analyze` prints: lines on standard output, in one buffer, because there may be a hundred thousand.

use std::{
    io::{self, BufWriter, IsTerminal as _, StdoutLock, Write as _},
    net::SocketAddr,
};

use jiff::Timestamp;

use crate::{
    offline::segment::End,
    offline::{Ended, Exchange},
    report::{connection, json, redact, text::Style},
};

/// Standard output.
pub(super) struct Output {
    out: BufWriter<StdoutLock<'static>>,
    /// JSON lines.
    pub(super) json: bool,
    /// With colour.
    pub(super) style: Style,
    /// Nobody reads any more.
    gone: bool,
}

impl Output {
    /// Colour only for a terminal, and not where `NO_COLOR` asks for none.
    pub(super) fn new(json: bool, whole_uris: bool) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let color = !json && !plain && io::stdout().is_terminal();
        Self {
            out: BufWriter::with_capacity(64 << 10, io::stdout().lock()),
            json,
            style: Style { color, whole_uris },
            gone: false,
        }
    }

    /// Nobody reads any more: there is no use in going on.
    pub(super) const fn is_gone(&self) -> bool {
        self.gone
    }

    /// Writes a line.
    pub(super) fn line(&mut self, line: &str) {
        let end: &[u8] = if line.ends_with('\n') { b"" } else { b"\n" };
        let written = self.out.write_all(line.as_bytes()).and_then(|()| self.out.write_all(end));
        self.gone |= written.is_err();
    }

    /// Hands over what is written so far.
    pub(super) fn flush(&mut self) {
        self.gone |= self.out.flush().is_err();
    }

    /// Writes a connection.
    pub(super) fn connection(&mut self, ended: &Ended) {
        let state = ended.fate.state();
        let http = connection::Http { requests: ended.requests, statuses: ended.statuses.clone() };
        let line = connection::Connection {
            orig: ended.originator.socket(),
            resp: ended.responder.socket(),
            conn_state: state.name(),
            history: ended.fate.history.to_string(),
            first: wall(ended.first_ns),
            last: wall(ended.last_ns),
            orig_bytes: ended.fate.originator.bytes,
            resp_bytes: ended.fate.responder.bytes,
            http: Some(http).filter(|http| http.requests > 0 || !http.statuses.is_empty()),
        };
        if self.json {
            self.line(&json::line(&line));
        } else {
            let lasted = ended.last_ns.saturating_sub(ended.first_ns) / 1_000;
            self.line(&connection::line(&line, state.meaning(), lasted));
        }
    }

    /// Writes an exchange.
    pub(super) fn exchange(&mut self, (client, server, exchange): &(End, End, Exchange)) {
        let (orig, resp): (SocketAddr, SocketAddr) = (client.socket(), server.socket());
        let request = String::from_utf8_lossy(&exchange.line);
        let mut parts = request.splitn(2, ' ');
        let method = parts.next().filter(|method| !method.is_empty()).map(redact::text);
        let show = if self.style.whole_uris { redact::text } else { redact::uri };
        let uri = parts.next().map(|rest| rest.rsplit_once(' ').map_or(rest, |(uri, _)| uri)).map(show);
        let line = connection::Exchange {
            orig,
            resp,
            time: wall(exchange.begun_ns),
            method,
            uri,
            status: exchange.status,
            latency_us: exchange.answered_ns.map(|ns| ns.saturating_sub(exchange.begun_ns) / 1_000),
            sent: exchange.sent,
            received: exchange.received,
        };
        if self.json { self.line(&json::line(&line)) } else { self.line(&connection::exchange_line(&line)) }
    }
}

/// `2026-11-21T14:02:07.331204512Z`.
pub(super) fn wall(unix_ns: u64) -> String {
    Timestamp::from_nanosecond(i128::from(unix_ns)).map_or_else(|_| unix_ns.to_string(), |time| format!("{time:.9}"))
}
