//! From what nginx said of a request to its attempts, each with its connection.

use std::{borrow::Cow, collections::BTreeMap};

use super::{flows::Flows, limits::ATTEMPTS_TOLD, requests::OpenRequest};
use crate::model::{
    attempt::{Attempt, Joined, Link, Outcome},
    complaint::{Complaint, Message, Phase},
    event::{Body, Event},
    flow::{Flow, Side},
    net::{Address, Errno},
    nginx::{NginxAttempt, NginxLog},
    process::Pid,
    socket::{Socket, Syscall, TcpCounters, TcpState},
    time::{At, Moment},
};

/// The attempts of a request, in order. `calls` are the worker's system calls that belong to no flow.
#[must_use]
pub fn attempts(request: &OpenRequest, flows: &Flows, calls: &[Event], decided: Moment) -> Vec<Attempt> {
    let ending = || request.complaints.iter().filter(|(_, _, complaint)| ends_attempt(complaint.message));
    // Of a subrequest (`mirror`, `auth_request`, SSI), while the list is the main request's: what it tried is not what made the status.
    let elsewhere =
        |log: &NginxLog| request.told_by.is_some() && log.request.is_some() && log.request != request.told_by;
    let mut complaints = ending().filter(|(_, log, _)| !elsewhere(log)).peekable();
    let beside = ending().filter(|(_, log, _)| elsewhere(log));
    let mut list: Vec<Attempt> = beside.map(|said| one(request, None, Some(said), flows, calls, decided)).collect();
    let beside = list.len();
    let told = told(request);
    for (index, state) in told.iter().enumerate() {
        let fits = |state: &NginxAttempt, (_, log, complaint): &(Event, NginxLog, Complaint)| {
            let same_peer = state.peer.is_none() || log.peer.is_none() || state.peer == log.peer;
            // What does not begin like HTTP is complained of, and then taken as it is.
            let relayed = log.format.starts_with("upstream sent no valid");
            same_peer && (state.header_ms.is_none() || complaint.phase.is_after_header() || relayed)
        };
        let mine = if let Some(state) = state {
            complaints.next_if(|said| fits(state, said))
        } else {
            // The record of this one was lost. What nginx says next is about it, unless it can be about the next that is known.
            let next = told.iter().skip(index + 1).flatten().next();
            complaints.next_if(|said| !next.is_some_and(|next| fits(next, said)))
        };
        list.push(one(request, *state, mine, flows, calls, decided));
    }
    // Complaints that nginx's list does not know (it could not be read, or is longer than what was read).
    for rest in complaints {
        list.push(one(request, None, Some(rest), flows, calls, decided));
    }
    one_after_the_other(&mut list[beside..]);
    list
}

/// An attempt of which nginx did not complain, and which it left for another peer (`proxy_next_upstream http_502`), was over when the next
/// one began.
fn one_after_the_other(list: &mut [Attempt]) {
    for index in (1..list.len()).rev() {
        let Some(next) = list[index].started else { continue };
        let attempt = &mut list[index - 1];
        if attempt.complaint.is_some() {
            continue;
        }
        match (attempt.flow.one(), attempt.duration_us) {
            (None, Some(us)) => attempt.started = Some(next.minus_ns(us.saturating_mul(1_000))),
            _ => attempt.duration_us = attempt.started.map(|started| next.since_ns(started) / 1_000),
        }
    }
}

/// Whether these are all the attempts there were: nginx's list was read whole; or, where it could not be read, nginx made the status
/// itself or broke the answer off, both right after the last failure.
#[must_use]
pub fn complete(request: &OpenRequest, list: &[Attempt]) -> bool {
    if request.attempts_known {
        let (told, known) = (request.attempts.len(), |a: &Attempt| a.bytes_received.is_some() || a.complaint.is_some());
        // The middle of a long list is known where nginx complained of it.
        let long = told == ATTEMPTS_TOLD && list.iter().all(known);
        return usize::try_from(request.attempts_total).is_ok_and(|total| total == told || (total > told && long));
    }
    let broken_off = request.complaints.last().is_some_and(|(.., complaint)| complaint.phase.is_after_header());
    request.special.is_some() || broken_off
}

/// nginx complained of nothing but a reset that came after the whole answer: it had not read its end yet. The client has all of it.
pub(super) fn nothing_was_missing(list: &[Attempt]) -> bool {
    let mut failed = list.iter().filter(|attempt| attempt.outcome != Outcome::Ok);
    let (Some(only), None) = (failed.next(), failed.next()) else { return false };
    let reset = |(_, c): &(Event, Complaint)| c.message == Message::ReceiveFailed && c.phase == Phase::ReadingBody;
    only.complaint.as_ref().is_some_and(reset) && only.answer_was_whole() == Some(true)
}

/// nginx's own list without its entries for groups and between locations; `None` stands for an attempt whose record was lost, so that another is not taken
/// for the last one.
fn told(request: &OpenRequest) -> Vec<Option<&NginxAttempt>> {
    if !request.attempts_known {
        return Vec::new();
    }
    let mut list: Vec<Option<&NginxAttempt>> = (0..request.attempts_total)
        .map(|index| request.attempts.iter().find(|state| state.index == index))
        .filter(|state| !state.is_some_and(|state| is_group(request, state) || is_separator(state)))
        .collect();
    let nobody_left = request.complaints.iter().any(|(_, _, complaint)| complaint.message == Message::NoLiveUpstreams);
    let group_told = request.attempts.iter().any(|state| is_group(request, state));
    if nobody_left && !group_told && list.last() == Some(&None) {
        list.pop();
    }
    list
}

/// Whether a complaint ends an attempt at a peer.
#[must_use]
pub const fn ends_attempt(message: Message) -> bool {
    !matches!(
        message,
        Message::NoLiveUpstreams
            | Message::NotResolved
            | Message::TemporarilyDisabled
            | Message::AcceptFailed
            | Message::AuthRequest
            | Message::NoTarget
    )
}

/// nginx also keeps an entry for "no live upstreams"; its peer is the group and nothing was tried.
fn is_group(request: &OpenRequest, state: &NginxAttempt) -> bool {
    let Some(peer) = &state.peer else { return false };
    Address::parse(peer).is_none()
        && request.complaints.iter().any(|(_, _, complaint)| complaint.message == Message::NoLiveUpstreams)
}

/// Where a request goes on to another location with an upstream (`error_page`, `X-Accel-Redirect`), nginx puts an empty entry between: all
/// zeros, where an attempt's times begin as -1 (`ngx_http_upstream_init_request()`, `ngx_http_upstream.c` in 1.22.1). The access log
/// writes it as a colon.
fn is_separator(state: &NginxAttempt) -> bool {
    state.peer.is_none() && state.status.is_none() && state.connect_ms == Some(0) && state.header_ms == Some(0)
}

/// nginx counts what it sent when it is done with a connection; an answer is passed on before that
/// (`ngx_http_upstream_finalize_request()`, `ngx_http_upstream.c` in 1.22.1).
const fn still_counting(state: &NginxAttempt) -> bool {
    state.bytes_sent == 0 && state.header_ms.is_some()
}

fn one(
    request: &OpenRequest,
    state: Option<&NginxAttempt>,
    complaint: Option<&(Event, NginxLog, Complaint)>,
    flows: &Flows,
    calls: &[Event],
    decided: Moment,
) -> Attempt {
    let log = complaint.map(|(_, log, _)| log);
    let upstream_connection = log.and_then(|log| log.upstream.as_ref());
    let socket = upstream_connection.and_then(|connection| connection.socket.clone());
    let failed_at = complaint.map(|(event, ..)| event.at.latest);
    let end = failed_at.unwrap_or(decided);
    let peer_name = state.and_then(|s| s.peer.clone()).or_else(|| log.and_then(|log| log.peer.clone()));
    let upstream = peer_name.as_deref().and_then(Address::parse);
    let by_socket = socket.as_ref().and_then(|socket| flow_of(socket, flows, end));
    let by_connect = || {
        let worker = request.key.worker;
        connected(request, worker, upstream.as_ref()?.ip()?, flows, complaint.is_none(), decided)
    };
    let made_for_it = if by_socket.is_none() { by_connect() } else { None };
    let is_made_for_it = made_for_it.is_some();
    let found = by_socket.or(made_for_it);
    let flow = found.as_deref();
    // nginx may be told not to log errors: then the connection itself tells how the attempt ended.
    let unsaid = complaint.is_none() && state.is_some_and(|state| state.header_ms.is_none());
    let socket = socket.or_else(|| last_socket(flow.filter(|_| unsaid)?, end).cloned());
    let seen = if unsaid { flow.and_then(|flow| seen_outcome(flow, state, end)) } else { None };
    // A connection that was made for this request is fresh; else nginx's own count of requests on it tells.
    // What connect() itself refused had certainly not been there before.
    let at_once = complaint.is_some_and(|(.., c)| c.message == Message::ConnectFailedAtOnce);
    let requests = upstream_connection
        .and_then(|connection| connection.requests)
        .or_else(|| (is_made_for_it || at_once).then_some(1));
    let reused = requests.map(|n| n > 1);
    let response_us = state.and_then(|s| s.response_ms).map(|ms| ms.saturating_mul(1_000));
    let started = match (reused, flow) {
        (Some(false), Some(flow)) if flow.seen_from_start => flow.events.front().map(|event| event.at.earliest),
        _ => response_us.map(|us| end.minus_ns(us.saturating_mul(1_000))),
    };
    // Over TLS nginx takes a reset for a clean close and logs no errno (nginx-502-paths D9); the socket still has it.
    let hidden_reset = complaint
        .filter(|(.., c)| c.message == Message::PrematurelyClosed)
        .and_then(|_| socket.as_ref()?.error)
        .filter(|errno| *errno == Errno::ECONNRESET);
    Attempt {
        outcome: match hidden_reset {
            Some(_) => Outcome::Reset,
            None if unsaid => seen.map_or(Outcome::Unknown, |(outcome, _)| outcome),
            None => outcome(complaint.map(|(.., c)| c), state),
        },
        errno: complaint.and_then(|(.., c)| c.errno).or(hidden_reset).or(seen.and_then(|(_, errno)| errno)),
        status: state.and_then(|s| s.status),
        reused,
        requests_before: requests.filter(|n| *n > 0).map(|n| n - 1),
        idle_us: socket
            .as_ref()
            .filter(|_| reused == Some(true))
            .and_then(|socket| idle_us(socket, state.is_some_and(|state| state.bytes_received == 0))),
        started,
        duration_us: started.map(|started| end.since_ns(started) / 1_000),
        bytes_sent: state.filter(|s| !still_counting(s)).map(|s| s.bytes_sent),
        bytes_received: state.map(|s| s.bytes_received),
        head: None,
        syscalls: calls_of(complaint, upstream.as_ref(), calls)
            .into_iter()
            .chain(accept_of(request, socket.as_ref(), end))
            .collect(),
        complaint: complaint.map(|(event, _, complaint)| (event.clone(), complaint.clone())),
        link: Link::Exact,
        flow: flow.map_or(Joined::None, |flow| Joined::One(own(as_of(flow, end), socket.as_ref()))),
        socket_at_failure: socket,
        peer_name,
        upstream,
    }
}

/// The connection as it concerns an attempt that ended at `end`: a process that accepted it only afterwards never had it in time.
pub(super) fn as_of(flow: &Flow, end: Moment) -> Flow {
    let mut flow = flow.clone();
    let accepted_late = flow.events.iter().any(|event| match &event.body {
        Body::Syscall(call) => matches!(call.call, Syscall::Accept { result: Ok(_), .. }) && event.at.earliest > end,
        _ => false,
    });
    if accepted_late {
        flow.accepted_by = None;
    }
    flow
}

/// The connection without what belongs to an earlier one between the same addresses, whose end nobody could see. Each side's first
/// sequence number tells them apart: the kernel counts received bytes and moves `rcv_nxt` in one step (`tcp_rcv_nxt_update`), and
/// acknowledged bytes and `snd_una` in another (`tcp_snd_una_update`), <https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/tcp_input.c>.
fn own(mut flow: Flow, socket: Option<&Socket>) -> Flow {
    let low = |bytes: u64| u32::try_from(bytes & u64::from(u32::MAX)).unwrap_or(0);
    let peer_began = |tcp: &TcpCounters| (tcp.rcv_nxt != 0).then(|| tcp.rcv_nxt.wrapping_sub(low(tcp.bytes_received)));
    let Some(tcp) = socket.and_then(|socket| socket.tcp) else { return flow };
    let Some(upstream_began) = peer_began(&tcp) else { return flow };
    let nginx_began = tcp.snd_una.wrapping_sub(low(tcp.bytes_acked)).wrapping_add(1);
    let of_another = |event: &Event| {
        let Body::Socket(e) = &event.body else { return false };
        let counters = e.socket.tcp.as_ref().filter(|_| e.socket.pointer.is_some());
        let Some(began) = counters.and_then(peer_began) else { return false };
        match flow.side_of(&e.socket) {
            Some(Side::Nginx) => began != upstream_began,
            Some(Side::Upstream) => began != nginx_began,
            None => false,
        }
    };
    if let Some(last) = flow.events.iter().rposition(of_another) {
        flow.events.drain(..=last);
        flow.seen_from_start = false;
        let accepted = |event: &Event| match &event.body {
            Body::Syscall(call) => matches!(call.call, Syscall::Accept { result: Ok(_), .. }),
            _ => false,
        };
        if !flow.events.iter().any(accepted) {
            flow.accepted_by = None;
        }
    }
    flow
}

/// The connection behind a socket that nginx's own pointers led to.
fn flow_of<'a>(socket: &Socket, flows: &'a Flows, at: Moment) -> Option<Cow<'a, Flow>> {
    let id = flows.at(socket.local?, socket.remote?, socket.netns, at)?;
    flows.get(id)
}

/// The connection that the worker made for this request, by `ngx_get_connection` and the `connect()` that followed on the same descriptor.
fn connected<'a>(
    request: &OpenRequest,
    worker: Pid,
    upstream: std::net::SocketAddr,
    flows: &'a Flows,
    last: bool,
    decided: Moment,
) -> Option<Cow<'a, Flow>> {
    let connect = |flow: &Flow, fd: i32, at: Moment| {
        flow.events.iter().find_map(|event| match &event.body {
            Body::Syscall(call) if call.pid == worker && event.at.latest >= at => match &call.call {
                Syscall::Connect { fd: connected, .. } if *connected == fd => Some(event.at.latest),
                _ => None,
            },
            _ => None,
        })
    };
    // Descriptors come back at once: of several the first is meant, and none that a later request made.
    let mut next: BTreeMap<i32, Moment> = BTreeMap::new();
    let until = |(at, fd): &(Moment, i32)| (*at, *fd, next.insert(*fd, *at).filter(|later| later > at));
    let mut made: Vec<(Moment, i32, Option<Moment>)> = request.connections.iter().rev().map(until).collect();
    made.reverse();
    let mut made = made.iter().filter_map(|(at, fd, later)| {
        let end = later.iter().copied().chain([decided, at.plus_ns(50_000_000)]).min()?;
        let candidates = flows.connected(upstream, worker, *fd, At::between(*at, end));
        candidates
            .into_iter()
            .filter_map(|flow| Some((connect(&flow, *fd, *at)?, flow)))
            .filter(|(connected, _)| *connected <= end)
            .min_by_key(|(connected, _)| *connected)
            .map(|(_, flow)| flow)
    });
    let first = made.next()?;
    if last { made.next_back().or(Some(first)) } else { Some(first) }
}

/// How an attempt ended that nginx says nothing of, by what its connection went through.
fn seen_outcome(flow: &Flow, state: Option<&NginxAttempt>, end: Moment) -> Option<(Outcome, Option<Errno>)> {
    let timed_out = state.and_then(|state| state.status) == Some(504);
    let established = flow.entered(Side::Nginx, TcpState::Established).next().is_some() || !flow.seen_from_start;
    let error = flow.sockets(Side::Nginx).find_map(|(_, e)| e.socket.error);
    if !established {
        return match error {
            Some(errno) => Some((by_errno(Some(errno)), Some(errno))),
            None => timed_out.then_some((Outcome::TimeoutConnect, None)),
        };
    }
    if timed_out {
        return Some((Outcome::TimeoutRead, None));
    }
    // That the peer closed is the reason only if nothing else can be: nginx also gives up on what it has read, or on the TLS
    // handshake, and a peer that closes afterwards is innocent. So: not a byte came, and nothing but the request was sent.
    let fin = flow.entered(Side::Nginx, TcpState::CloseWait).next().is_some();
    let tcp = last_socket(flow, end)?.tcp?;
    let silent = tcp.bytes_received == u64::from(fin);
    let only_the_request = state.is_some_and(|state| state.bytes_sent == tcp.bytes_sent);
    if !silent || !only_the_request {
        return None;
    }
    if flow.resets_received().next().is_some() {
        return Some((Outcome::Reset, error));
    }
    fin.then_some((Outcome::Closed, None))
}

/// nginx's socket at its end, or the newest snapshot before `at`. Later ones tell what the peer did after nginx had given up.
pub(super) fn last_socket(flow: &Flow, at: Moment) -> Option<&Socket> {
    let limit = at.plus_ns(5_000_000);
    let seen = || flow.sockets(Side::Nginx).filter(|(event, e)| event.at.earliest <= limit && e.socket.tcp.is_some());
    let ended = |state| matches!(state, TcpState::FinWait1 | TcpState::LastAck | TcpState::Closed);
    seen().find(|(_, e)| ended(e.socket.state)).or_else(|| seen().last()).map(|(_, e)| &e.socket)
}

/// How long the connection was idle before this request: from the last byte received to the request's first byte sent. Not known where
/// bytes of an answer came, or bytes of the request were sent again: the kernel remembers only the last of each.
pub(super) fn idle_us(socket: &Socket, nothing_came: bool) -> Option<u64> {
    let tcp = socket.tcp.as_ref().filter(|_| socket.retransmits == 0)?;
    let received = tcp.since_received_us?;
    match tcp.since_sent_us {
        // The request was sent after the last response came.
        Some(sent) if sent <= received => Some(received - sent),
        // Nothing was sent since: the failure was found before the request left.
        _ => nothing_came.then_some(received),
    }
}

fn calls_of(
    complaint: Option<&(Event, NginxLog, Complaint)>,
    upstream: Option<&Address>,
    calls: &[Event],
) -> Option<Event> {
    let (said, log, complaint) = complaint?;
    let failed_at = said.at.latest;
    // The failed call and nginx's complaint about it happen in the same turn; between them lies only the log formatting.
    let in_turn = |event: &&Event| event.at.latest <= failed_at && failed_at.since_ns(event.at.latest) < 5_000_000;
    let meant = |event: &&Event| match &event.body {
        Body::Syscall(call) => call.pid == log.worker && is_complained_of(&call.call, complaint, upstream),
        _ => false,
    };
    calls.iter().filter(in_turn).rfind(meant).cloned()
}

/// Whether nginx's complaint is about this failed call. What an event loop told it later (`connect() failed`) no call of its own returned,
/// and a worker that many requests keep busy fails to connect to several places within a millisecond.
pub(super) fn is_complained_of(call: &Syscall, complaint: &Complaint, upstream: Option<&Address>) -> bool {
    match (call, complaint.message) {
        (Syscall::Connect { address, result: Err(errno), .. }, Message::ConnectFailedAtOnce) => {
            let same_place = address.is_none() || upstream.is_none() || address.as_ref() == upstream;
            Some(*errno) == complaint.errno && same_place
        }
        (Syscall::Socket { error, .. }, Message::SocketFailed) => Some(*error) == complaint.errno,
        _ => false,
    }
}

/// The `accept()` of an attempt's connection over a unix socket, where it came in time.
fn accept_of(request: &OpenRequest, socket: Option<&Socket>, end: Moment) -> Option<Event> {
    let inode = socket.filter(|socket| socket.remote.is_none())?.cookie?;
    let mine = |event: &&Event| match &event.body {
        Body::Syscall(call) => matches!(&call.call, Syscall::Accept { peer: Some(peer), .. } if *peer == inode),
        _ => false,
    };
    request.accepts.iter().filter(|event| event.at.earliest <= end).find(mine).cloned()
}

/// What became of an attempt, from nginx's own words.
#[must_use]
pub fn outcome(complaint: Option<&Complaint>, state: Option<&NginxAttempt>) -> Outcome {
    let Some(complaint) = complaint else {
        return match state {
            Some(state) if state.header_ms.is_some() => Outcome::Ok,
            _ => Outcome::Unknown,
        };
    };
    match complaint.message {
        Message::ReceiveFailed | Message::SendFailed if complaint.text.contains(":SSL alert number ") => {
            Outcome::TlsFailed
        }
        Message::ConnectFailedAtOnce => match complaint.errno {
            // On a unix socket both are answers of this host about the other end, not of a network.
            Some(Errno::ECONNREFUSED) => Outcome::Refused,
            other => by_errno(other),
        },
        Message::ConnectFailed => by_errno(complaint.errno),
        Message::TimedOut => match complaint.phase {
            Phase::Connecting | Phase::TlsHandshake => Outcome::TimeoutConnect,
            Phase::Sending => Outcome::TimeoutSend,
            _ => Outcome::TimeoutRead,
        },
        Message::PrematurelyClosed => Outcome::Closed,
        Message::ReceiveFailed | Message::SendFailed => match complaint.errno {
            Some(Errno::ECONNRESET | Errno::EPIPE) => Outcome::Reset,
            Some(Errno::ETIMEDOUT) if complaint.message == Message::SendFailed => Outcome::TimeoutSend,
            Some(Errno::ETIMEDOUT) => Outcome::TimeoutRead,
            Some(Errno::EHOSTUNREACH | Errno::ENETUNREACH) => Outcome::Unreachable,
            _ => Outcome::Unknown,
        },
        Message::SocketFailed | Message::BindFailed | Message::WorkerConnections | Message::AcceptFailed => {
            Outcome::LocalError
        }
        Message::TlsHandshake | Message::TlsCertificate => Outcome::TlsFailed,
        Message::TooBigHeader | Message::InvalidHeader | Message::FastCgi | Message::Grpc => Outcome::BadResponse,
        Message::NoLiveUpstreams
        | Message::TemporarilyDisabled
        | Message::NotResolved
        | Message::AuthRequest
        | Message::NoTarget
        | Message::Other => Outcome::Unknown,
    }
}

/// What an errno of `connect()` means for the attempt.
fn by_errno(errno: Option<Errno>) -> Outcome {
    match errno {
        Some(Errno::ECONNREFUSED) => Outcome::Refused,
        Some(Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EHOSTDOWN | Errno::ENETDOWN) => Outcome::Unreachable,
        Some(Errno::ETIMEDOUT) => Outcome::TimeoutConnect,
        Some(Errno::ECONNRESET | Errno::EPIPE) => Outcome::Reset,
        Some(_) => Outcome::LocalError,
        None => Outcome::Unknown,
    }
}
