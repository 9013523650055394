//! Failures that are known from nginx's logs only: where its functions cannot be watched.
//!
//! An error line is one attempt; the client's status stands in the access log or on the wire. What belongs together is inferred from
//! nginx's connection number, the client, the request line and time, and where two things fit equally neither is chosen.

use std::collections::VecDeque;

use super::{attempts as exact, flows::Flows, limits::NOTABLE_LINGER_NS};
use crate::model::{
    attempt::{Attempt, Joined, Link, Outcome},
    case::{CaseKind, Origin, Request},
    complaint::{Complaint, Message, Phase},
    event::{Event, EventId},
    flow::{Flow, Side},
    host::{Configuration, UpstreamGroup},
    net::{Address, Errno},
    nginx::{AccessLine, ErrorLine},
    process::Pid,
    socket::{TcpCounters, TcpState},
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
    /// The worker as the log names it.
    pub pid: u32,
    /// `*N`.
    pub number: Option<u64>,
    /// The lines in order.
    pub lines: Vec<Line>,
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
    /// What packets alone showed of its attempts, each with the line it belongs to.
    pub seen: Vec<(EventId, Attempt)>,
}

/// What waits to be put together.
#[derive(Debug, Default)]
pub struct Lines {
    errors: VecDeque<Line>,
    access: VecDeque<(Event, AccessLine)>,
    answers: VecDeque<(Event, u16, std::net::SocketAddr)>,
    hurried: bool,
}

impl Lines {
    /// An error line.
    pub fn error_line(&mut self, event: &Event, line: &ErrorLine) {
        let Some(message) = Message::classify(&line.message) else { return };
        if message == Message::TemporarilyDisabled || line.level == "warn" || line.number.is_none() {
            return;
        }
        let phase = line.action.as_deref().map_or(Phase::Other, Phase::classify);
        let complaint = Complaint { message, phase, errno: line.errno, text: line.message.clone() };
        bounded(&mut self.errors, Line { event: event.clone(), line: line.clone(), complaint });
    }

    /// An access line.
    pub fn access_line(&mut self, event: &Event, line: &AccessLine) {
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
    }

    /// When the lines that have waited longest will have waited long enough.
    #[must_use]
    pub fn next_due(&self, delay_ns: u64) -> Option<Moment> {
        self.errors.front().map(|line| line.event.at.latest.plus_ns(delay_ns))
    }

    /// The next request all of whose lines have had time to arrive.
    pub fn poll(&mut self, now: Moment, delay_ns: u64, statuses: &[u16]) -> Option<LineGroup> {
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
        ended || repeated || last.line.request != next.line.request
    }

    /// The access line of the request whose last error line this is; `None` also where several fit and say different things.
    fn take_access(&mut self, last: &Line) -> Option<(Event, AccessLine)> {
        let fits = |(event, line): &&(Event, AccessLine)| {
            belongs(line, &last.line) && event.at.latest >= last.event.at.earliest
        };
        let first = self.access.iter().find(fits)?.clone();
        let numbered = first.1.number.is_some();
        let same = |(_, line): &(Event, AccessLine)| line.status == first.1.status;
        if !numbered && !self.access.iter().filter(fits).all(same) {
            return None;
        }
        self.access.retain(|(event, _)| event.id != first.0.id);
        Some(first)
    }

    fn group(&mut self, lines: Vec<Line>, last: &Line, statuses: &[u16], due: Moment) -> LineGroup {
        let access = self.take_access(last);
        let status = access.as_ref().and_then(|(_, line)| line.status);
        let client = access.as_ref().and_then(|(_, line)| line.client.as_deref()?.parse::<std::net::SocketAddr>().ok());
        let window = At::between(last.event.at.earliest, last.event.at.latest.plus_ns(ANSWER_WINDOW_NS));
        let fits = |(event, code, client): &&(Event, u16, std::net::SocketAddr)| {
            event.at.overlaps(&window)
                && status.is_none_or(|status| status == *code)
                && last.line.client.as_deref().is_none_or(|text| text == client.ip().to_string())
        };
        let mut fitting = self.answers.iter().filter(fits);
        let answer = match (fitting.next(), fitting.next()) {
            (Some(answer), None) => Some(answer.clone()),
            _ => None,
        };
        if let Some((taken, ..)) = &answer {
            self.answers.retain(|(event, ..)| event.id != taken.id);
        }
        let status = status.or(answer.as_ref().map(|(_, code, _)| *code));
        let kind = match status {
            Some(status) if !statuses.contains(&status) => CaseKind::NearMiss,
            _ => CaseKind::Incident,
        };
        let (at, decided_by) = match &answer {
            Some((event, ..)) => (event.at, event.clone()),
            None => (last.event.at, last.event.clone()),
        };
        LineGroup {
            pid: last.line.pid,
            number: last.line.number,
            kind,
            origin: Origin::Nginx,
            // What does not begin like HTTP is relayed as it is, and logged with status 009: the client gets none then.
            status: status.filter(|status| *status >= 100),
            client: answer.map(|(.., client)| client).or(client),
            logged: access.as_ref().map(|(_, line)| logged_attempts(line)).unwrap_or_default(),
            at,
            decided_by,
            due,
            lines,
            seen: Vec::new(),
        }
    }
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
    request
}

/// `$upstream_addr` and `$upstream_status`: one element an attempt, ", " between attempts, " : " between internal redirects.
fn logged_attempts(line: &AccessLine) -> Vec<(String, Option<u16>)> {
    let split = |text: &str| -> Vec<String> {
        text.split(" : ").flat_map(|part| part.split(", ")).map(|part| part.trim().to_owned()).collect()
    };
    let (Some(peers), Some(statuses)) = (&line.upstream_address, &line.upstream_status) else { return Vec::new() };
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

/// The attempts that the lines speak of, and those that only the access log knows: the ones that went well.
#[must_use]
pub fn attempts(group: &LineGroup, flows: &Flows, calls: &[Event]) -> Vec<Attempt> {
    let mut lines = group.lines.iter().filter(|line| exact::ends_attempt(line.complaint.message)).peekable();
    let mut list = Vec::new();
    for (index, (peer, status)) in group.logged.iter().enumerate() {
        let named = |line: &&Line| peer_of(&line.line).as_ref() == Some(peer);
        if let Some(line) = lines.next_if(named) {
            list.push(attempt(group, line, flows, calls));
        } else if let (Some(upstream), true) = (Address::parse(peer), index + 1 == group.logged.len()) {
            list.push(answered(upstream, *status, peer));
        }
    }
    list.extend(lines.map(|line| attempt(group, line, flows, calls)));
    list
}

/// An attempt that no line complains of and whose status went to the client.
fn answered(upstream: Address, status: Option<u16>, peer: &str) -> Attempt {
    Attempt {
        outcome: if status.is_some() { Outcome::Ok } else { Outcome::Unknown },
        upstream: Some(upstream),
        peer_name: Some(peer.to_owned()),
        flow: Joined::None,
        socket_at_failure: None,
        complaint: None,
        errno: None,
        status,
        reused: None,
        requests_before: None,
        idle_us: None,
        started: None,
        duration_us: None,
        bytes_sent: None,
        bytes_received: None,
        syscalls: Vec::new(),
        link: Link::Inferred,
    }
}

fn attempt(group: &LineGroup, line: &Line, flows: &Flows, calls: &[Event]) -> Attempt {
    let peer_name = peer_of(&line.line);
    let upstream = peer_name.as_deref().and_then(Address::parse);
    let flow = match upstream.as_ref().and_then(Address::ip) {
        Some(address) => candidates(address, group.pid, line, flows),
        None => Joined::None,
    };
    let socket = flow.one().and_then(|flow| exact::last_socket(flow, line.event.at.latest)).cloned();
    let counters = socket.as_ref().and_then(|socket| socket.tcp);
    let reused = flow.one().zip(counters).and_then(|(flow, tcp)| reused(flow, &tcp, line.complaint.message));
    let started = flow
        .one()
        .filter(|flow| flow.seen_from_start && reused == Some(false))
        .and_then(|flow| flow.events.first().map(|event| event.at.earliest));
    let unsent = matches!(
        line.complaint.message,
        Message::ConnectFailed | Message::ConnectFailedAtOnce | Message::SocketFailed | Message::BindFailed
    );
    Attempt {
        outcome: exact::outcome(Some(&line.complaint), None),
        errno: line.complaint.errno,
        status: None,
        reused,
        requests_before: if reused == Some(false) { Some(0) } else { None },
        idle_us: if reused == Some(true) { socket.as_ref().and_then(exact::idle_us) } else { None },
        started,
        duration_us: started.map(|started| line.event.at.latest.since_ns(started) / 1_000),
        // nginx says "connect() failed" before it has sent anything, also on a kept connection.
        bytes_sent: unsent.then_some(0),
        bytes_received: unsent.then_some(0),
        syscalls: syscalls(group.pid, line, calls),
        complaint: Some((line.event.clone(), line.complaint.clone())),
        link: Link::Inferred,
        socket_at_failure: socket,
        flow,
        peer_name,
        upstream,
    }
}

/// Whether requests were served on the connection before; `None` where its counters cannot tell.
fn reused(flow: &Flow, tcp: &TcpCounters, message: Message) -> Option<bool> {
    // The kernel counts the FIN's sequence number as a byte received.
    let fin = u64::from(flow.entered(Side::Nginx, TcpState::CloseWait).next().is_some());
    match (tcp.bytes_received.saturating_sub(fin), tcp.since_sent_us, tcp.since_received_us) {
        (0, ..) => Some(false),
        // "connect() failed" on a connection that has carried an answer: nginx asks a kept connection for its error before it uses it.
        _ if message == Message::ConnectFailed => Some(true),
        // What was received came before the last thing sent: an earlier response.
        (_, Some(sent), Some(received)) if received > sent => Some(true),
        _ => None,
    }
}

fn syscalls(pid: u32, line: &Line, calls: &[Event]) -> Vec<Event> {
    use crate::model::{event::Body, socket::Syscall};
    let fits = |event: &&Event| match &event.body {
        Body::Syscall(call) if call.pid == Pid(pid) => {
            let errno = match &call.call {
                Syscall::Connect { result: Err(errno), .. } => Some(*errno),
                Syscall::Socket { error, .. } => Some(*error),
                _ => None,
            };
            errno.is_some() && errno == line.complaint.errno && event.at.overlaps(&widened(line.event.at))
        }
        _ => false,
    };
    let mut fitting = calls.iter().filter(fits);
    // One call for one line; with several in the same interval each is as good as the other, and they say the same.
    fitting.next().cloned().into_iter().collect()
}

/// The failure itself lies a little before its line.
fn widened(at: At) -> At {
    At::between(at.earliest.minus_ns(5_000_000), at.latest.plus_ns(5_000_000))
}

/// Connections that can be the one the line speaks of: same upstream, same worker where it is known, an end that fits the message, in its time.
fn candidates(upstream: std::net::SocketAddr, pid: u32, line: &Line, flows: &Flows) -> Joined<Flow> {
    let window = widened(line.event.at);
    let fitting: Vec<&Flow> = flows.towards(upstream).filter(|flow| ended_as(flow, &line.complaint, window)).collect();
    // A connection whose worker was not seen can be this worker's as well. In a container the log numbers processes otherwise: then no
    // worker fits, and any connection can be meant.
    let numbered_alike = fitting.iter().any(|flow| flow.worker == Some(Pid(pid)));
    let can_be = |flow: &&Flow| !numbered_alike || flow.worker.is_none_or(|worker| worker == Pid(pid));
    let chosen: Vec<&Flow> = fitting.into_iter().filter(can_be).collect();
    match chosen.as_slice() {
        [] => Joined::None,
        [only] => Joined::One(exact::as_of(only, line.event.at.latest)),
        several => Joined::Several(several.iter().map(|flow| exact::as_of(flow, line.event.at.latest)).collect()),
    }
}

fn ended_as(flow: &Flow, complaint: &Complaint, window: At) -> bool {
    // A reset ends the socket when it arrives; nginx notices when it next looks at the connection.
    let reset = flow.resets_received().next().is_some();
    let reach = if reset { At::between(window.earliest.minus_ns(NOTICED_WITHIN_NS), window.latest) } else { window };
    let in_window = |event: &Event| event.at.overlaps(&reach);
    let closed = [TcpState::Closed, TcpState::FinWait1, TcpState::LastAck]
        .iter()
        .any(|state| flow.entered(Side::Nginx, *state).any(|(event, _)| in_window(event)));
    let established = flow.entered(Side::Nginx, TcpState::Established).next().is_some() || !flow.seen_from_start;
    let error = flow.sockets(Side::Nginx).find_map(|(_, socket)| socket.socket.error);
    let fin = flow.entered(Side::Nginx, TcpState::CloseWait).next().is_some();
    closed
        && match complaint.message {
            Message::ConnectFailed | Message::ConnectFailedAtOnce => error.is_some() && error == complaint.errno,
            Message::TimedOut if complaint.phase == Phase::Connecting => !established,
            Message::TimedOut => established && !reset,
            Message::PrematurelyClosed => fin || reset,
            Message::ReceiveFailed | Message::SendFailed => match complaint.errno {
                // Where the socket was told an error, that is what nginx read.
                Some(Errno::ECONNRESET) => error.map_or(reset, |error| error == Errno::ECONNRESET),
                Some(Errno::EPIPE) => reset || fin,
                _ => established,
            },
            _ => established,
        }
}
