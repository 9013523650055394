//! Failures that are known from nginx's logs only: where its functions cannot be watched.
//!
//! An error line is one attempt; the client's status stands in the access log or on the wire. What belongs together is inferred from
//! nginx's connection number, the client, the request line and time, and where two things fit equally neither is chosen.
//!
//! nginx writes no error line for a 502 that it passes on, takes from its cache or was configured to answer: those are known by their
//! access line alone (`access`).

mod access;
mod answers;
mod attempts;

use std::collections::VecDeque;

use self::answers::Answered;
pub use self::attempts::attempts;
use super::{limits::NOTABLE_LINGER_NS, requests::is_unasked};
use crate::model::{
    attempt::Attempt,
    case::{CaseKind, Origin, Request},
    complaint::{Complaint, Message, Phase},
    event::{Event, EventId},
    host::{Configuration, UpstreamGroup},
    nginx::{AccessLine, ErrorLine},
    time::{At, Moment},
};

/// The response follows its error line within one turn of nginx's event loop; the capture and the log reader add their own delays.
const ANSWER_WINDOW_NS: u64 = 100_000_000;

/// A busy worker takes this long to notice what happened to a connection.
const NOTICED_WITHIN_NS: u64 = 1_000_000_000;

/// Lines kept while they wait for each other.
const WAITING: usize = 65_536;

/// An error line that complains.
#[derive(Clone, Debug)]
pub struct Line {
    /// The event.
    pub event: Event,
    /// The line.
    pub line: ErrorLine,
    /// What it says.
    pub complaint: Complaint,
}

/// The lines of one request, with its end where it was seen.
#[derive(Clone, Debug)]
pub struct LineGroup {
    /// The worker as the log names it; `None` where an access line without `$pid` is all there is.
    pub pid: Option<u32>,
    /// `*N`.
    pub number: Option<u64>,
    /// The lines of the error log in order.
    pub lines: Vec<Line>,
    /// The access line, where it is all there is.
    pub unexplained: Option<(Event, AccessLine)>,
    /// What kind of case it is.
    pub kind: CaseKind,
    /// Who made the status.
    pub origin: Origin,
    /// The status the client saw.
    pub status: Option<u16>,
    /// The client, where exactly one answer on the wire fits, or the access log has its port.
    pub client: Option<std::net::SocketAddr>,
    /// What the access log says of the attempts: peer and status, where its format has both.
    pub logged: Vec<(String, Option<u16>)>,
    /// When it was decided.
    pub at: At,
    /// The event that shows the decision.
    pub decided_by: Event,
    /// When its lines had had time to arrive.
    pub due: Moment,
    /// Attempts that went well, of which only packets tell.
    pub well: Vec<Attempt>,
    /// What packets alone showed of its attempts, each with the line it belongs to.
    pub seen: Vec<(EventId, Attempt)>,
}

impl LineGroup {
    /// What its access line, where that is all there is, says of the cache.
    pub(super) fn cache_status(&self) -> Option<String> {
        self.unexplained.as_ref()?.1.cache_status.clone()
    }

    /// The client saw nginx's own failure, by the status that what nginx complained of last makes, and nobody asked about that one.
    pub(super) fn failed_unasked(&self, statuses: &[u16]) -> bool {
        let made = self.lines.last().filter(|last| !last.complaint.phase.is_after_header()).map(|last| {
            match last.complaint.message {
                Message::TimedOut => 504,
                Message::SocketFailed | Message::WorkerConnections | Message::BindFailed => 500,
                _ => 502,
            }
        });
        self.status.is_some_and(|status| made == Some(status) && is_unasked(status, statuses))
    }
}

/// What waits to be put together.
#[derive(Debug, Default)]
pub struct Lines {
    errors: VecDeque<Line>,
    access: VecDeque<(Event, AccessLine)>,
    answers: VecDeque<(Event, u16, std::net::SocketAddr)>,
    /// Access lines that no error line has explained yet: when each was written, at the latest.
    unexplained: VecDeque<(Moment, EventId)>,
    /// The last error lines of requests that were told without an access line: it may come later.
    awaited: VecDeque<(At, ErrorLine)>,
    /// Requests that were told without their answer: when it was, and for whom. What fits another as well can be theirs.
    unanswered: VecDeque<(At, Option<String>)>,
    hurried: bool,
    /// The logs are read after the fact, both up to the same second: no line is under way.
    pub(super) whole: bool,
}

impl Lines {
    /// An error line.
    pub fn error_line(&mut self, event: &Event, line: &ErrorLine) {
        let Some(message) = Message::classify(&line.message) else { return };
        if message == Message::TemporarilyDisabled || line.level == "warn" || line.number.is_none() {
            return;
        }
        // The server's own 404, 500, 503 and 504 are answers.
        if message == Message::AuthRequest && !line.message.ends_with(": 502") {
            return;
        }
        let phase = line.action.as_deref().map_or(Phase::Other, Phase::classify);
        let complaint = Complaint { message, phase, errno: line.errno, text: line.message.clone() };
        bounded(&mut self.errors, Line { event: event.clone(), line: line.clone(), complaint });
    }

    /// An access line. `alone`: it tells of a failure also where no error line does.
    pub fn access_line(&mut self, event: &Event, line: &AccessLine, alone: bool) {
        if alone {
            bounded(&mut self.unexplained, (event.at.latest, event.id));
        } else {
            self.was_awaited(event, line);
        }
        bounded(&mut self.access, (event.clone(), line.clone()));
    }

    /// A response on its way to a client.
    pub fn status_packet(&mut self, event: &Event, code: u16, client: std::net::SocketAddr) {
        bounded(&mut self.answers, (event.clone(), code, client));
    }

    /// No more will come: groups need not wait.
    pub fn hurry(&mut self) {
        self.hurried = true;
    }

    /// Forgets what found no partner.
    pub fn forget(&mut self, now: Moment) {
        let old = |event: &Event| now.since_ns(event.at.latest) > NOTABLE_LINGER_NS;
        while self.access.front().is_some_and(|(event, _)| old(event)) {
            self.access.pop_front();
        }
        while self.answers.front().is_some_and(|(event, ..)| old(event)) {
            self.answers.pop_front();
        }
        let past = |at: Moment| now.since_ns(at) > NOTABLE_LINGER_NS;
        while self.unexplained.front().is_some_and(|(at, _)| past(*at)) {
            self.unexplained.pop_front();
        }
        while self.awaited.front().is_some_and(|(at, _)| past(at.latest)) {
            self.awaited.pop_front();
        }
    }

    /// When the lines that have waited longest will have waited long enough.
    #[must_use]
    pub fn next_due(&self, delay_ns: u64) -> Option<Moment> {
        let error = self.errors.front().map(|line| line.event.at.latest);
        let access = self.unexplained.front().map(|(at, _)| *at);
        error.into_iter().chain(access).min().map(|at| at.plus_ns(delay_ns))
    }

    /// The next request all of whose lines have had time to arrive.
    pub fn poll(&mut self, now: Moment, delay_ns: u64, statuses: &[u16]) -> Option<LineGroup> {
        // In the order of their times, so that it does not matter how often time is told.
        while let Some((at, id)) = self.unexplained.front().copied() {
            if self.errors.front().is_some_and(|line| line.event.at.latest <= at) {
                break;
            }
            if !self.hurried && now.since_ns(at) < delay_ns {
                return None;
            }
            self.unexplained.pop_front();
            if let Some(group) = self.unexplained(id, at.plus_ns(delay_ns)) {
                return Some(group);
            }
        }
        let first = self.errors.front()?;
        if !self.hurried && now.since_ns(first.event.at.latest) < delay_ns {
            return None;
        }
        let first = self.errors.pop_front()?;
        let due = first.event.at.latest.plus_ns(delay_ns);
        let (pid, number) = (first.line.pid, first.line.number);
        let mut last = first.clone();
        let mut lines = vec![first];
        let mut rest = VecDeque::new();
        let mut over = false;
        while let Some(line) = self.errors.pop_front() {
            if !over && line.line.pid == pid && line.line.number == number {
                over = self.ended_between(&lines, &line);
                if !over {
                    last = line.clone();
                    lines.push(line);
                    continue;
                }
            }
            rest.push_back(line);
        }
        self.errors = rest;
        Some(self.group(lines, &last, statuses, due))
    }

    /// Whether the request of `lines` was over before `next` was written.
    fn ended_between(&self, lines: &[Line], next: &Line) -> bool {
        let Some(last) = lines.last() else { return false };
        let ended = self.access.iter().any(|(event, line)| {
            belongs(line, &last.line) && !event.at.before(&last.event.at) && event.at.before(&next.event.at)
        });
        let repeated = next.line.upstream.is_some()
            && lines.iter().any(|line| peer_of(&line.line).is_some() && peer_of(&line.line) == peer_of(&next.line));
        ended || (repeated && !self.one_access_line(lines, next)) || last.line.request != next.line.request
    }

    /// nginx asks the same peer again where a kept connection failed (`ngx_http_upstream_next()`, 1.18 to 1.31). Then one access line
    /// comes after both error lines; of two requests there would be two, one of them between. While the logs are being written, the
    /// second can be under way.
    fn one_access_line(&self, lines: &[Line], next: &Line) -> bool {
        let Some(first) = lines.first().filter(|_| self.whole) else { return false };
        let of_these = |(event, line): &&(Event, AccessLine)| {
            belongs(line, &next.line) && event.at.latest >= first.event.at.earliest
        };
        let mut fitting = self.access.iter().filter(of_these);
        matches!((fitting.next(), fitting.next()), (Some((event, _)), None) if event.at.latest >= next.event.at.earliest)
    }

    /// The access line of the request whose last error line this is; `None` also where several fit and say different things.
    fn take_access(&mut self, last: &Line) -> Option<(Event, AccessLine)> {
        let taken = self.fitting_access(last);
        match &taken {
            Some((event, line)) => {
                self.was_awaited(event, line);
                self.access.retain(|(other, _)| other.id != event.id);
            }
            None => bounded(&mut self.awaited, (last.event.at, last.line.clone())),
        }
        taken
    }

    fn fitting_access(&self, last: &Line) -> Option<(Event, AccessLine)> {
        let fits = |(event, line): &&(Event, AccessLine)| {
            belongs(line, &last.line) && event.at.latest >= last.event.at.earliest
        };
        let first = self.access.iter().find(fits)?.clone();
        let numbered = first.1.number.is_some();
        let same = |(_, line): &(Event, AccessLine)| line.status == first.1.status;
        if !numbered && !self.access.iter().filter(fits).all(same) {
            return None;
        }
        Some(first)
    }

    fn group(&mut self, mut lines: Vec<Line>, last: &Line, statuses: &[u16], due: Moment) -> LineGroup {
        // auth_request's word says less than the failure before it.
        let by_answer = |line: &Line| line.complaint.message == Message::AuthRequest;
        let origin = if lines.iter().all(by_answer) { Origin::Upstream } else { Origin::Nginx };
        if origin == Origin::Nginx {
            lines.retain(|line| !by_answer(line));
        }
        let access = self.take_access(last);
        let status = access.as_ref().and_then(|(_, line)| line.status);
        let client = access.as_ref().and_then(|(_, line)| line.client.as_deref()?.parse::<std::net::SocketAddr>().ok());
        let Answered { answer, code } = self.answer_of(last, status);
        let status = status.or(code);
        let kind = match status {
            Some(status) if !statuses.contains(&status) => CaseKind::NearMiss,
            None if passes_on(&last.complaint) => CaseKind::NearMiss,
            _ => CaseKind::Incident,
        };
        let (at, decided_by) = match &answer {
            Some((event, ..)) => (event.at, event.clone()),
            None => (last.event.at, last.event.clone()),
        };
        LineGroup {
            pid: Some(last.line.pid),
            unexplained: None,
            number: last.line.number,
            kind,
            origin,
            // What does not begin like HTTP is relayed as it is, and logged with status 009: the client gets none then.
            status: status.filter(|status| *status >= 100),
            client: answer.map(|(.., client)| client).or(client),
            logged: access.as_ref().map(|(_, line)| logged_attempts(line)).unwrap_or_default(),
            at,
            decided_by,
            due,
            lines,
            well: Vec::new(),
            seen: Vec::new(),
        }
    }
}

/// The client has got a status, or what does not begin like HTTP: nginx made no failure of it.
fn passes_on(complaint: &Complaint) -> bool {
    complaint.phase.is_after_header() || complaint.text.starts_with("upstream sent no valid")
}

fn bounded<T>(queue: &mut VecDeque<T>, value: T) {
    if queue.len() >= WAITING {
        queue.pop_front();
    }
    queue.push_back(value);
}

fn belongs(access: &AccessLine, error: &ErrorLine) -> bool {
    let equal = |a: &Option<String>, b: &Option<String>| match (a, b) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    };
    let same_client = match (&access.client, &error.client) {
        (Some(access), Some(error)) => client_ip(access) == client_ip(error),
        _ => true,
    };
    let number = match (access.number, error.number) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    };
    number && same_client && equal(&access.request, &error.request)
}

/// A client without its port, which only some formats have.
fn client_ip(text: &str) -> String {
    text.parse::<std::net::SocketAddr>().map_or_else(|_| text.to_owned(), |client| client.ip().to_string())
}

/// The peer's name in an error line's `upstream:`.
#[must_use]
pub fn peer_of(line: &ErrorLine) -> Option<String> {
    let text = line.upstream.as_deref()?;
    let after = text.split_once("://").map_or(text, |(_, rest)| rest);
    if let Some(path) = after.strip_prefix("unix:") {
        // The URI follows after another colon, except in messages made when no address is at hand any more.
        return Some(format!("unix:{}", path.split(':').next().unwrap_or(path)));
    }
    Some(after.split('/').next().unwrap_or(after).to_owned())
}

/// Takes `GET /cart HTTP/1.1` apart.
pub fn split_request_line(line: &str, request: &mut Request) {
    let Some((method, rest)) = line.split_once(' ') else {
        request.method = Some(line.to_owned());
        return;
    };
    request.method = Some(method.to_owned());
    match rest.rsplit_once(' ') {
        Some((uri, protocol)) if protocol.starts_with("HTTP/") => {
            request.uri = Some(uri.to_owned());
            request.protocol = Some(protocol.to_owned());
        }
        _ => request.uri = Some(rest.to_owned()),
    }
}

/// What the lines say of the client's request.
#[must_use]
pub fn request(group: &LineGroup) -> Request {
    let mut request = Request { client: group.client, connection: group.number, ..Request::default() };
    if let Some(line) = group.lines.first() {
        request.host.clone_from(&line.line.host);
        request.client_address.clone_from(&line.line.client);
        if let Some(text) = &line.line.request {
            split_request_line(text, &mut request);
        }
    }
    if let Some((_, line)) = &group.unexplained {
        request.client_address = line.client.as_deref().map(client_ip);
        if let Some(text) = &line.request {
            split_request_line(text, &mut request);
        }
    }
    request
}

/// `$upstream_addr` and `$upstream_status`: one element an attempt, ", " between attempts, " : " between internal redirects.
fn logged_attempts(line: &AccessLine) -> Vec<(String, Option<u16>)> {
    let split = |text: &str| -> Vec<String> {
        text.split(" : ").flat_map(|part| part.split(", ")).map(|part| part.trim().to_owned()).collect()
    };
    let (Some(peers), Some(statuses)) = (&line.upstream_address, &line.upstream_status) else { return Vec::new() };
    if peers.is_empty() {
        return Vec::new();
    }
    let (peers, statuses) = (split(peers), split(statuses));
    if peers.len() != statuses.len() {
        return Vec::new();
    }
    peers.into_iter().zip(statuses).map(|(peer, status)| (peer, status.parse().ok())).collect()
}

/// Whether these are all the attempts there were: the access log lists as many, or there was nobody else to ask. An attempt that went
/// well, or that is still going on, leaves no error line.
#[must_use]
pub fn complete(group: &LineGroup, attempts: &[Attempt], configuration: Option<&Configuration>) -> bool {
    if group.status.is_none() {
        return false;
    }
    if let Some((_, line)) = &group.unexplained {
        return line.upstream_address.is_some() && group.logged.len() == attempts.len();
    }
    if !group.logged.is_empty() {
        return group.logged.len() == attempts.len();
    }
    // A group of one server is not tried again, unless the failure was on a kept connection (ngx_http_upstream_next, 1.18 to 1.31).
    let [attempt] = attempts else { return false };
    let alone = |group: &UpstreamGroup| {
        let [server] = group.servers.as_slice() else { return false };
        server.addresses.len() == 1 && attempt.upstream.as_ref() == server.addresses.first()
    };
    let named = |group: &&UpstreamGroup| {
        group.servers.iter().any(|server| server.addresses.iter().any(|a| Some(a) == attempt.upstream.as_ref()))
    };
    let groups: Vec<&UpstreamGroup> = configuration.iter().flat_map(|c| &c.groups).filter(named).collect();
    attempt.reused == Some(false) && !groups.is_empty() && groups.iter().all(|group| alone(group))
}
