//! The attempts of a request that is known from its lines, each with the connections that can be meant.

use std::borrow::Cow;

use super::{ANSWER_WINDOW_NS, Line, LineGroup, NOTICED_WITHIN_NS, access, peer_of};
use crate::{
    correlate::{attempts as exact, flows::Flows},
    model::{
        attempt::{Attempt, Joined, Link, Outcome},
        complaint::{Complaint, Message, Phase},
        event::{Body, Event},
        flow::{Flow, Side},
        net::{Address, Errno},
        process::Pid,
        socket::{TcpCounters, TcpState},
        time::At,
    },
};

/// The attempts that the lines speak of, and those that only the access log knows: the ones that went well.
#[must_use]
pub fn attempts(group: &LineGroup, flows: &Flows, calls: &[Event]) -> Vec<Attempt> {
    if let Some((event, line)) = &group.unexplained {
        return access::attempts(group, event, line, flows);
    }
    if let [Line { event, complaint, .. }] = group.lines.as_slice()
        && complaint.message == Message::AuthRequest
    {
        // It names no server. The answer came in the same turn of nginx's loop.
        let window = At::between(event.at.earliest.minus_ns(ANSWER_WINDOW_NS), event.at.latest);
        return access::answered(502, window, flows).into_iter().collect();
    }
    let mut lines = group.lines.iter().filter(|line| exact::ends_attempt(line.complaint.message)).peekable();
    let mut list = Vec::new();
    for (index, (peer, status)) in group.logged.iter().enumerate() {
        let named = |line: &&Line| peer_of(&line.line).as_ref() == Some(peer);
        if let Some(line) = lines.next_if(named) {
            list.push(attempt(group, line, flows, calls));
        } else if let (Some(upstream), true) = (Address::parse(peer), index + 1 == group.logged.len()) {
            let outcome = if status.is_some() { Outcome::Ok } else { Outcome::Unknown };
            list.push(unsaid(Some(upstream), Some(peer), *status, outcome));
        }
    }
    list.extend(lines.map(|line| attempt(group, line, flows, calls)));
    list
}

/// An attempt that no line complains of.
pub(super) fn unsaid(upstream: Option<Address>, peer: Option<&str>, status: Option<u16>, outcome: Outcome) -> Attempt {
    Attempt {
        outcome,
        upstream,
        peer_name: peer.map(str::to_owned),
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
        head: None,
        syscalls: Vec::new(),
        link: Link::Inferred,
    }
}

fn attempt(group: &LineGroup, line: &Line, flows: &Flows, calls: &[Event]) -> Attempt {
    let peer_name = peer_of(&line.line);
    let upstream = peer_name.as_deref().and_then(Address::parse);
    let flow = match upstream.as_ref().and_then(Address::ip) {
        Some(address) => candidates(address, group.pid.unwrap_or(0), line, flows),
        None => Joined::None,
    };
    let socket = flow.one().and_then(|flow| exact::last_socket(flow, line.event.at.latest)).cloned();
    let counters = socket.as_ref().and_then(|socket| socket.tcp);
    let reused = flow.one().zip(counters).and_then(|(flow, tcp)| reused(flow, &tcp, line.complaint.message));
    let started = flow
        .one()
        .filter(|flow| flow.seen_from_start && reused == Some(false))
        .and_then(|flow| flow.events.front().map(|event| event.at.earliest));
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
        idle_us: socket.as_ref().filter(|_| reused == Some(true)).and_then(|socket| {
            exact::idle_us(socket, matches!(line.complaint.phase, Phase::Connecting | Phase::Sending))
        }),
        started,
        duration_us: started.map(|started| line.event.at.latest.since_ns(started) / 1_000),
        // nginx says "connect() failed" before it has sent anything, also on a kept connection.
        bytes_sent: unsent.then_some(0),
        bytes_received: unsent.then_some(0),
        head: None,
        syscalls: syscalls(group.pid.unwrap_or(0), line, upstream.as_ref(), calls),
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

fn syscalls(pid: u32, line: &Line, upstream: Option<&Address>, calls: &[Event]) -> Vec<Event> {
    let fits = |event: &&Event| match &event.body {
        Body::Syscall(call) => {
            call.pid == Pid(pid)
                && exact::is_complained_of(&call.call, &line.complaint, upstream)
                && event.at.overlaps(&widened(line.event.at))
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
    let around = At::between(window.earliest.minus_ns(NOTICED_WITHIN_NS), window.latest);
    let fitting: Vec<Cow<'_, Flow>> =
        flows.towards(upstream, around).filter(|flow| ended_as(flow, &line.complaint, window)).collect();
    // A connection whose worker was not seen can be this worker's as well. In a container the log numbers processes otherwise: then no
    // worker fits, and any connection can be meant.
    let numbered_alike = fitting.iter().any(|flow| flow.worker == Some(Pid(pid)));
    let can_be = |flow: &Cow<'_, Flow>| !numbered_alike || flow.worker.is_none_or(|worker| worker == Pid(pid));
    let chosen: Vec<Cow<'_, Flow>> = fitting.into_iter().filter(can_be).collect();
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
