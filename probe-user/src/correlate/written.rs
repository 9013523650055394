//! Lines of the error log about requests that nginx itself tells about: they have the whole text of a message.

use super::{limits::WRITTEN_LINES, lines::peer_of, newest::Newest};
use crate::model::{
    complaint::{Complaint, Message},
    event::{Event, EventId},
    net::Address,
    nginx::{ErrorLine, NginxLog},
    time::At,
};

/// The newest lines, by the client connection they are of.
#[derive(Debug)]
pub(super) struct Written(Newest<u64, (At, ErrorLine, EventId)>);

impl Default for Written {
    fn default() -> Self {
        Self(Newest::new(WRITTEN_LINES))
    }
}

impl Written {
    /// Keeps a line of a request.
    pub(super) fn keep(&mut self, event: &Event, line: &ErrorLine) {
        if let Some(number) = line.number {
            self.0.keep(number, (event.at, line.clone(), event.id));
        }
    }

    /// The line that this complaint became: of the same client connection, request and peer, with the same errno and meaning, within a
    /// second. Of lines that say different things none is chosen.
    pub(super) fn of(&self, event: &Event, log: &NginxLog, complaint: &Complaint) -> Option<&ErrorLine> {
        let said = (event.at, log, complaint.message);
        let fits = |(at, line, _): &&(At, ErrorLine, EventId)| became(said, (*at, line));
        let mut lines = self.0.of(log.number?).rev();
        let (_, newest, _) = lines.find(fits)?;
        // In a storm a connection has hundreds of lines that say the same: which of them fit makes no difference then.
        lines.filter(|(_, line, _)| line.message != newest.message).all(|other| !fits(&other)).then_some(newest)
    }

    /// Lines written in one of these times.
    pub(super) fn within(&self, times: &[At]) -> impl Iterator<Item = EventId> {
        let spans = joined(times);
        let inside = move |at: &At| {
            // The last span that begins before the line was certainly written, if it reaches it.
            let after = spans.partition_point(|span| span.earliest <= at.latest);
            after.checked_sub(1).and_then(|place| spans.get(place)).is_some_and(|span| span.overlaps(at))
        };
        self.0.all().filter(move |(_, (at, ..))| inside(at)).map(|(_, (.., id))| *id)
    }
}

/// Complaints heard inside an nginx, while another one is known by its log only: a line is told apart by what it says, because the number
/// of its worker is that of the pid namespace where nginx runs.
#[derive(Debug)]
pub(super) struct Heard(Newest<u64, (At, NginxLog, Message)>);

impl Default for Heard {
    fn default() -> Self {
        Self(Newest::new(WRITTEN_LINES))
    }
}

impl Heard {
    /// Keeps a complaint.
    pub(super) fn keep(&mut self, event: &Event, log: &NginxLog, message: Message) {
        if let Some(number) = log.number {
            self.0.keep(number, (event.at, log.clone(), message));
        }
    }

    /// Whether this line is what one of them became, which no other line is then.
    pub(super) fn takes(&mut self, event: &Event, line: &ErrorLine) -> bool {
        let Some(number) = line.number else { return false };
        self.0.take(number, |(at, log, message)| became((*at, log, *message), (event.at, line))).is_some()
    }
}

/// Whether this complaint became this line, as far as both can be compared: nginx's log knows no time below a second.
fn became((at, log, message): (At, &NginxLog, Message), (written, line): (At, &ErrorLine)) -> bool {
    let about = At::between(at.earliest.minus_ns(1_000_000_000), at.latest.plus_ns(1_000_000_000));
    line.errno == log.errno
        && written.overlaps(&about)
        && Message::classify(&line.message) == Some(message)
        && is_of(line, log)
}

/// Whether nothing of the line contradicts that it is about this request and this peer. Another stream of the same connection has the same
/// number (HTTP/2), and so has a connection of another nginx.
fn is_of(line: &ErrorLine, log: &NginxLog) -> bool {
    let peer = |text: &str| Address::parse(text).ok_or_else(|| text.to_owned());
    let peers = peer_of(line).zip(log.peer.as_deref());
    let requests = line.request.as_deref().zip(log.request_line.as_deref());
    let hosts = line.host.as_deref().zip(log.host.as_deref());
    // nginx's memory is not read to the end of a long text, and what is redacted in a query depends on where it was cut.
    let begins = |(line, log): (&str, &str)| before_query(line).starts_with(before_query(log));
    peers.is_none_or(|(line, log)| peer(&line) == peer(log)) && requests.is_none_or(begins) && hosts.is_none_or(begins)
}

fn before_query(text: &str) -> &str {
    text.split('?').next().unwrap_or(text)
}

/// The same times, in order, without those that others cover.
fn joined(times: &[At]) -> Vec<At> {
    let mut times = times.to_vec();
    times.sort_by_key(|time| time.earliest);
    let mut spans: Vec<At> = Vec::new();
    for time in times {
        match spans.last_mut().filter(|span| span.overlaps(&time)) {
            Some(span) => span.latest = span.latest.max(time.latest),
            None => spans.push(time),
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        complaint::Phase,
        event::{Body, Source},
        process::Pid,
        time::Moment,
    };

    fn line(message: &str, request: &str, upstream: Option<&str>) -> ErrorLine {
        ErrorLine {
            level: "error".into(),
            pid: 1,
            number: Some(41),
            message: message.into(),
            errno: None,
            action: None,
            client: None,
            server: None,
            request: Some(request.into()),
            subrequest: None,
            upstream: upstream.map(str::to_owned),
            host: None,
        }
    }

    fn said(request: &str, peer: Option<&str>) -> NginxLog {
        NginxLog {
            worker: Pid(1),
            request: None,
            parent: None,
            number: Some(41),
            client_requests: None,
            level: 4,
            errno: None,
            format: String::new(),
            status: None,
            action: None,
            peer: peer.map(str::to_owned),
            upstream: None,
            client: None,
            request_line: Some(request.into()),
            host: None,
        }
    }

    fn found(lines: &[ErrorLine], log: &NginxLog, message: Message) -> Option<String> {
        let mut written = Written::default();
        let at = At::exactly(Moment(1_000_000_000));
        let event =
            |line: &ErrorLine| Event { id: EventId(1), at, source: Source::ErrorLog, body: Body::from(line.clone()) };
        for line in lines {
            written.keep(&event(line), line);
        }
        let complaint = Complaint { message, phase: Phase::Other, errno: None, text: String::new() };
        written.of(&event(&lines[0]), log, &complaint).map(|line| line.message.clone())
    }

    #[test]
    fn another_stream_of_the_connection_has_its_own_line() {
        let names = ["a.example could not be resolved (3: Host not found)", "b.example could not be resolved (2: x)"];
        let lines = [line(names[0], "GET /a HTTP/2.0", None), line(names[1], "GET /b?x=1 HTTP/2.0", None)];
        assert_eq!(found(&lines, &said("GET /a HTTP/2.0", None), Message::NotResolved).as_deref(), Some(names[0]));
        // Cut, and redacted in another place.
        assert_eq!(found(&lines, &said("GET /b?x=", None), Message::NotResolved).as_deref(), Some(names[1]));
        let same = [line(names[0], "GET /a HTTP/2.0", None), line(names[1], "GET /a HTTP/2.0", None)];
        assert_eq!(found(&same, &said("GET /a HTTP/2.0", None), Message::NotResolved), None, "either may be meant");
    }

    #[test]
    fn each_peer_has_its_own_line() {
        let text = |path: &str| format!("connect() to unix:{path} failed");
        let lines =
            ["/a", "/b"].map(|path| line(&text(path), "GET / HTTP/1.1", Some(&format!("http://unix:{path}:/"))));
        for path in ["/a", "/b"] {
            let log = said("GET / HTTP/1.1", Some(&format!("unix:{path}")));
            assert_eq!(found(&lines, &log, Message::ConnectFailedAtOnce), Some(text(path)));
        }
    }
}
