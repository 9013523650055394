//! The words for events and facts. Every string from outside goes through [`redact`].

mod host;
mod process;

use std::net::SocketAddr;

use super::redact;
use crate::model::{
    case::Case,
    event::{Body, Event},
    evidence::Fact,
    flow::{Flow, Side},
    host::{HostFact, Listener},
    net::Errno,
    nginx::{NginxEvent, StatusPoint},
    packet::{Content, IcmpPacket, PacketBody, TcpPacket},
    process::{Ending, Pid, ProcessEvent, Sender},
    socket::{DropEvent, Socket, SocketChange, SocketEvent, Syscall, SyscallEvent, TcpState},
};

/// The contract's word for where an event was seen, and the event in words; `None`: nothing to tell.
pub(super) fn event(event: &Event, case: &Case) -> Option<(&'static str, String)> {
    let flow = flow_of(event, case);
    let seen = flow.map(|flow| flow.as_seen(event));
    Some(match &seen.as_deref().unwrap_or(event).body {
        Body::Socket(socket) => ("kernel", socket_event(socket, flow.and_then(|flow| flow.side(event)))),
        Body::Drop(drop) => ("kernel", drop_event(drop)),
        Body::Syscall(syscall) => ("syscall", syscall_event(syscall)),
        Body::Process(process) => ("process", process_event(process)),
        Body::Nginx(inside) => ("nginx", nginx_event(inside)?),
        Body::Packet(packet) => (
            "packet",
            match &packet.body {
                PacketBody::Tcp(tcp) => tcp_packet(tcp),
                PacketBody::Icmp(icmp) => icmp_packet(icmp),
            },
        ),
        Body::ErrorLine(line) => {
            let errno = line.errno.map(|errno| format!(" ({errno})")).unwrap_or_default();
            let action =
                line.action.as_ref().map(|action| format!(" while {}", redact::text(action))).unwrap_or_default();
            ("log", format!("[{}] {}{errno}{action}", redact::text(&line.level), redact::message(&line.message)))
        }
        Body::AccessLine(line) => {
            let status = line.status.map_or_else(|| "?".to_owned(), |status| status.to_string());
            ("log", format!("access log: status {status}"))
        }
        Body::Host(fact) => host_fact(fact),
        Body::Coverage(_) | Body::Wire(_) => return None,
    })
}

pub(super) fn flow_of<'a>(event: &Event, case: &'a Case) -> Option<&'a Flow> {
    let mut flows = case.attempts.iter().filter_map(|attempt| attempt.flow.one());
    flows.find(|flow| flow.events.iter().any(|e| e.id == event.id))
}

fn socket_event(event: &SocketEvent, side: Option<Side>) -> String {
    let whose = match side {
        Some(Side::Nginx) => "nginx's socket",
        Some(Side::Upstream) => "upstream's socket",
        None => "socket",
    };
    let ends = ends(event.socket.local, event.socket.remote);
    match &event.change {
        SocketChange::State { from } => {
            let by = event.by.map(|pid| format!(", by pid {pid}")).unwrap_or_default();
            let error = event.socket.error.map(|errno| format!(", error {errno}")).unwrap_or_default();
            format!("{whose} {ends}: {} -> {}{error}{by}", state(*from), state(event.socket.state))
        }
        SocketChange::ResetSent { reason, .. } => {
            let reason = reason.as_ref().map(|reason| format!(", reason {}", redact::text(reason))).unwrap_or_default();
            format!("this host sent RST {ends}{reason}")
        }
        SocketChange::ResetReceived => format!("{whose} {ends} took a RST in {}", state(event.socket.state)),
        SocketChange::Retransmitted { .. } if event.socket.state == TcpState::SynSent => {
            format!("SYN {ends} sent again")
        }
        SocketChange::Retransmitted { payload } => format!("{payload} bytes {ends} sent again"),
        SocketChange::SynAckRetransmitted => format!("SYN-ACK {ends} sent again"),
        SocketChange::ErrorReported => {
            let error = event.socket.error.map_or_else(|| "an error".to_owned(), |errno| errno.to_string());
            format!("{whose} {ends} was told {error}")
        }
    }
}

fn ends(local: Option<SocketAddr>, remote: Option<SocketAddr>) -> String {
    let show = |end: Option<SocketAddr>| end.map_or_else(|| "?".to_owned(), |end| end.to_string());
    format!("{} > {}", show(local), show(remote))
}

/// A state as netstat writes it.
pub(super) fn state(state: TcpState) -> String {
    let name = match state {
        TcpState::Established => "ESTABLISHED",
        TcpState::SynSent => "SYN_SENT",
        TcpState::SynReceived => "SYN_RECV",
        TcpState::FinWait1 => "FIN_WAIT1",
        TcpState::FinWait2 => "FIN_WAIT2",
        TcpState::TimeWait => "TIME_WAIT",
        TcpState::Closed => "CLOSE",
        TcpState::CloseWait => "CLOSE_WAIT",
        TcpState::LastAck => "LAST_ACK",
        TcpState::Listen => "LISTEN",
        TcpState::Closing => "CLOSING",
        TcpState::NewSynReceived => "NEW_SYN_RECV",
        TcpState::Unknown(number) => return format!("state {number}"),
    };
    name.to_owned()
}

fn drop_event(drop: &DropEvent) -> String {
    let reason = drop.reason.as_deref().map_or_else(|| "no reason given".to_owned(), redact::text);
    format!("this host dropped a packet {}: {reason}", ends(Some(drop.packet.source), Some(drop.packet.destination)))
}

fn outcome<T>(result: &Result<T, Errno>) -> String {
    match result {
        Ok(_) => "succeeded".to_owned(),
        Err(errno) => format!("= {errno}"),
    }
}

fn syscall_event(event: &SyscallEvent) -> String {
    let pid = event.pid;
    match &event.call {
        Syscall::Connect { fd, address, result, .. } => {
            let to = address.as_ref().map_or_else(|| "?".to_owned(), |address| redact::text(&address.to_string()));
            format!("connect(fd {fd}, {to}) {} (nginx worker {pid})", outcome(result))
        }
        Syscall::Accept { result, socket, command, .. } => {
            let listener = address_of(socket.as_ref());
            let queue = queue_of(socket.as_ref());
            format!("accept() {} in {} (pid {pid}){listener}{queue}", outcome(result), redact::text(command))
        }
        Syscall::Socket { error, .. } => format!("socket() = {error} (pid {pid})"),
        Syscall::Open { error } => format!("open() = {error} (pid {pid})"),
    }
}

fn address_of(socket: Option<&Socket>) -> String {
    socket.and_then(|socket| socket.local).map(|local| format!(" at {local}")).unwrap_or_default()
}

fn queue_of(socket: Option<&Socket>) -> String {
    let queue = socket.and_then(|socket| socket.accept_queue);
    queue.map(|(waiting, limit)| format!(", {waiting} waiting of {limit}")).unwrap_or_default()
}

/// `gunicorn (pid 88)`.
fn who(pid: Pid, command: &str) -> String {
    format!("{} (pid {pid})", redact::text(command))
}

fn sent_by(sender: Option<&Sender>) -> String {
    sender.map_or_else(|| "the kernel".to_owned(), |sender| who(sender.pid, &sender.command))
}

/// How a process ended.
pub(super) fn ending(how: Ending) -> String {
    match how {
        Ending::Exit(code) => format!("exit status {code}"),
        Ending::Signal { signal, core } => format!("signal {signal}{}", if core { ", core dumped" } else { "" }),
    }
}

/// Who had a connection over a unix socket.
fn held(of: &Fact, (pid, command): &(Pid, String)) -> String {
    let what = match of {
        Fact::HeldAtEnd { .. } => "was ending and still held this connection",
        _ => "had accepted this very connection",
    };
    format!("{} {what}", who(*pid, command))
}

fn process_event(event: &ProcessEvent) -> String {
    match event {
        ProcessEvent::Forked { parent, child, command, .. } => format!("{} forked pid {child}", who(*parent, command)),
        ProcessEvent::Executed { pid, command, .. } => format!("pid {pid} became {}", redact::text(command)),
        ProcessEvent::Exited { pid, command, how, .. } => format!("{} ended: {}", who(*pid, command), ending(*how)),
        ProcessEvent::Held { pid, connections, .. } => {
            format!("pid {pid} is ending and still holds {} unix connections from nginx", connections.len())
        }
        ProcessEvent::Signalled { target, signal, sender, .. } => {
            format!("signal {signal} to pid {target} from {}", sent_by(sender.as_ref()))
        }
        ProcessEvent::OomVictim { victim, .. } => format!("the OOM killer chose pid {victim}"),
    }
}

fn nginx_event(event: &NginxEvent) -> Option<String> {
    match event {
        NginxEvent::Log(log) => {
            let errno = log.errno.map(|errno| format!(" ({errno})")).unwrap_or_default();
            let action =
                log.action.as_ref().map(|action| format!(" while {}", redact::text(action))).unwrap_or_default();
            Some(format!("nginx logs: {}{errno}{action}", redact::message(&log.format)))
        }
        NginxEvent::Status(status) => Some(match status.point {
            StatusPoint::SpecialResponse => format!("nginx decides {}", status.status),
            StatusPoint::SendHeader => format!("nginx answers {}", status.status),
            StatusPoint::Redirect => "nginx redirects the request inside itself".to_owned(),
        }),
        NginxEvent::Attempt(_) | NginxEvent::Connection { .. } => None,
    }
}

fn tcp_packet(packet: &TcpPacket) -> String {
    let flags = packet.header.flags;
    let mut words: Vec<&str> = Vec::new();
    for (set, word) in [(flags.syn(), "SYN"), (flags.fin(), "FIN"), (flags.rst(), "RST")] {
        if set {
            words.push(word);
        }
    }
    if flags.ack() && (flags.syn() || words.is_empty()) {
        words.push("ACK");
    }
    let mut out = format!("{} {}", words.join("-"), ends(Some(packet.header.source), Some(packet.header.destination)));
    if packet.payload_length > 0 {
        out += &[", ", &packet.payload_length.to_string(), " bytes"].concat();
    }
    let content = match &packet.content {
        Content::HttpStatus { line, .. } => redact::text(line),
        Content::HttpRequest { line, .. } => redact::request_line(line),
        Content::Tls { alert: Some((level, description)), .. } => format!("TLS alert {description} (level {level})"),
        Content::Tls { .. } => "TLS".to_owned(),
        Content::Foreign(foreign) => foreign.name().to_owned(),
        Content::Empty | Content::Other | Content::NotCaptured => return out,
    };
    out + ": " + &content
}

fn icmp_packet(packet: &IcmpPacket) -> String {
    let version = if packet.v6 { "ICMPv6" } else { "ICMP" };
    let (from, to) = packet.about;
    format!("{version} type {} code {} from {}, about {from} > {to}", packet.icmp_type, packet.code, packet.from)
}

fn host_fact(fact: &HostFact) -> (&'static str, String) {
    match fact {
        HostFact::Nginx(instance) => ("config", format!("configuration of nginx master {}", instance.master)),
        HostFact::NginxGone { master } => ("process", format!("nginx master {master} is gone")),
        HostFact::Listeners { upstream, local: false, .. } => {
            ("host", format!("{upstream} is not an address of this host"))
        }
        HostFact::Listeners { upstream, listeners, nearby, .. } => {
            let there = match listeners.as_slice() {
                [] => format!("nobody listens on {upstream}"),
                some => format!("{upstream}: {}", list(some)),
            };
            let near = if nearby.is_empty() { String::new() } else { format!("; nearby: {}", list(nearby)) };
            ("host", format!("{there}{near}"))
        }
        HostFact::OpenFiles { pid, command, open, limit } => ("host", open_files(*pid, command, *open, *limit)),
        HostFact::OpenConnection { local, upstream, .. } => ("host", format!("already open: {local} > {upstream}")),
        other => ("host", host::host_fact(other).or_else(|| process::host_fact(other)).unwrap_or_default()),
    }
}

fn list(listeners: &[Listener]) -> String {
    let one = |listener: &Listener| {
        let name = listener.command.as_deref().unwrap_or("a process");
        let pid = listener.pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
        let queue = listener.accept_queue.map(|(n, max)| format!(", {n} of {max} waiting")).unwrap_or_default();
        format!("{}{pid} listens on {}{queue}", redact::text(name), listener.address)
    };
    listeners.iter().take(3).map(one).collect::<Vec<_>>().join(", ")
}

fn open_files(pid: Pid, command: &str, open: u64, limit: Option<u64>) -> String {
    let limit = limit.map_or_else(|| "an unknown limit".to_owned(), |limit| limit.to_string());
    format!("{} has {open} of {limit} files open", who(pid, command))
}

fn process(process: Option<&(Pid, String)>) -> String {
    process.map_or_else(|| "a process".to_owned(), |(pid, command)| who(*pid, command))
}

fn micros(us: u64) -> String {
    match us {
        0..=9_999 => format!("{us} µs"),
        10_000..=999_999 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        _ => format!("{}.{} s", us / 1_000_000, us % 1_000_000 / 100_000),
    }
}

/// What a fact says beyond the event it rests on; `None`: the event says it all.
pub(super) fn note(of: &Fact) -> Option<String> {
    match of {
        Fact::Complained { .. }
        | Fact::SynReset { .. }
        | Fact::SocketError { .. }
        | Fact::ProcessEnded { .. }
        | Fact::Signalled { .. }
        | Fact::OomKilled { .. }
        | Fact::SyscallFailed { .. }
        | Fact::OpenFiles { .. }
        | Fact::Icmp { .. }
        | Fact::TlsAlert { .. }
        | Fact::ProcessState { .. }
        | Fact::Acceptors { .. }
        | Fact::Dropped { .. }
        | Fact::ListensThere { .. }
        | Fact::ListensNearby { .. }
        | Fact::LocalPorts { .. }
        | Fact::SystemFiles { .. }
        | Fact::PathMissing { .. }
        | Fact::NoUnixListener { .. }
        | Fact::UpstreamStatus { .. }
        | Fact::FinReceived { acknowledged_request: None }
        | Fact::ResetReceived { after_request_us: None }
        | Fact::UpstreamKernelReset { unread: None | Some(0), .. } => None,
        other => Some(fact(other)),
    }
}

/// A fact in words of its own.
#[must_use]
pub fn fact(of: &Fact) -> String {
    match of {
        Fact::Complained { text, errno } => {
            let errno = errno.map(|errno| format!(" ({errno})")).unwrap_or_default();
            format!("nginx says: {}{errno}", redact::message(text))
        }
        Fact::SynReset { upstream } => format!("{upstream} answered the SYN with a RST"),
        Fact::NoListener { upstream } => format!("no socket of this host listens on {upstream}"),
        Fact::ListensThere { address, process } => format!("{} listens on {address}", listener(process.as_ref())),
        Fact::ListensNearby { address, process } => {
            format!("nearby {} listens on {address}", listener(process.as_ref()))
        }
        Fact::SocketError { errno } => format!("the kernel gave nginx's socket the error {errno}"),
        Fact::FinReceived { acknowledged_request } => match acknowledged_request {
            Some(true) => "this FIN acknowledges the whole request: closed after taking it".to_owned(),
            Some(false) => "this FIN does not acknowledge the request: the two crossed".to_owned(),
            None => "the upstream closed".to_owned(),
        },
        Fact::ResetReceived { after_request_us } => match after_request_us {
            Some(us) => format!("reset {} after the attempt began", micros(*us)),
            None => "nginx's socket was reset".to_owned(),
        },
        Fact::UpstreamKernelReset { reason, unread } => {
            let reason = reason.as_deref().map_or_else(|| "no reason given".to_owned(), redact::text);
            let unread = unread.map(|bytes| format!(", {bytes} bytes unread by the application")).unwrap_or_default();
            format!("the upstream's end on this host reset it: {reason}{unread}")
        }
        Fact::UpstreamClosed { process: closer } => format!("{} closed its end", process(closer.as_ref())),
        Fact::IdleConnection { requests_before, idle_us } => {
            let before = requests_before.map(|n| format!(" after {}", counted(n, "request"))).unwrap_or_default();
            let idle = idle_us.map(|us| format!(", idle for {}", micros(us))).unwrap_or_default();
            format!("a kept connection, reused{before}{idle}")
        }
        Fact::NoResponseByte => "not a byte of an answer came".to_owned(),
        Fact::PartialResponse { bytes } => format!("{bytes} bytes of an answer came"),
        Fact::SynUnanswered { retransmits, waited_us } => {
            let waited = waited_us.map(|us| format!(" in {}", micros(us))).unwrap_or_default();
            format!("SYN repeated {}, no answer arrived{waited}", counted(u64::from(*retransmits), "time"))
        }
        Fact::NginxTimer { directive, configured } => {
            let value = configured.as_deref().map(|value| format!(" {}", redact::text(value))).unwrap_or_default();
            format!("nginx's own timer ended it: {directive}{value}")
        }
        Fact::KernelTimer => "the kernel gave up, not nginx's timer".to_owned(),
        Fact::RequestAcknowledged { bytes } => match bytes {
            Some(bytes) => format!("all {bytes} bytes of the request were acknowledged"),
            None => "every byte of the request was acknowledged".to_owned(),
        },
        Fact::Silence { us } => match us {
            Some(us) => format!("nothing came back for {}", micros(*us)),
            None => "nothing came back".to_owned(),
        },
        Fact::SyscallFailed { call, process: caller, errno } => match caller {
            Some((pid, command)) => format!("{call}() of {} failed: {errno}", who(*pid, command)),
            None => format!("{call}() failed: {errno}"),
        },
        Fact::OpenFiles { process: (pid, command), open, limit } => open_files(*pid, command, *open, *limit),
        Fact::AcceptedBy { process } | Fact::HeldAtEnd { process } => held(of, process),
        Fact::ProcessEnded { process: (pid, command), how } => {
            format!("{} ended: {}", who(*pid, command), ending(*how))
        }
        Fact::Signalled { process, signal, sender } => {
            format!("signal {signal} to pid {process} from {}", sent_by(sender.as_ref()))
        }
        Fact::Icmp { from, icmp_type, code, v6 } => {
            format!("{} type {icmp_type} code {code} came from {from}", if *v6 { "ICMPv6" } else { "ICMP" })
        }
        Fact::TlsAlert { level, description } => format!("the upstream sent TLS alert {description} (level {level})"),
        Fact::UnreadAnswer { bytes } => format!("{bytes} bytes of an answer lay unread in nginx's socket"),
        Fact::HeldBack { bytes } => {
            format!("{bytes} bytes waited for room at the upstream; all that was sent was acknowledged")
        }
        Fact::ZeroWindow => "the upstream's receive window is closed".to_owned(),
        Fact::Unacknowledged { bytes, times } => {
            let bytes = bytes.map_or_else(|| "bytes of the request".to_owned(), |bytes| format!("{bytes} bytes"));
            format!("{bytes} not acknowledged, segments sent again {times} times")
        }
        Fact::OomKilled { process } => format!("the OOM killer chose pid {process}"),
        Fact::PeerDisabled { peer, case, cause, before_us } => {
            let cause = cause.unwrap_or("not yet judged");
            format!("{} had failed {} before: {cause}, case {case}", redact::text(peer), micros(*before_us))
        }
        Fact::Configured { .. } | Fact::FromCache | Fact::StoredBefore { .. } => origin(of),
        Fact::NothingTried => "no connection was tried for this request".to_owned(),
        Fact::Dropped { reason } => {
            format!(
                "this host dropped a packet: {}",
                reason.as_deref().map_or_else(|| "no reason given".to_owned(), redact::text)
            )
        }
        Fact::AcceptQueue { waiting, limit } => format!("accept queue: {waiting} waiting, limit {limit}"),
        Fact::UpstreamStatus { status, line } => {
            format!("the upstream itself answered {}", line.as_deref().map_or_else(|| status.to_string(), redact::text))
        }
        other => on_the_wire(other).or_else(|| host::fact(other)).or_else(|| process::fact(other)).unwrap_or_default(),
    }
}

/// Where an answer came from that no upstream gave.
fn origin(of: &Fact) -> String {
    match of {
        Fact::Configured { directive, place } => {
            format!("the configuration says `{}` in {}", redact::text(directive), redact::text(place))
        }
        Fact::FromCache => "nginx's upstream module answered before it looked for a server: from its cache".to_owned(),
        Fact::StoredBefore { case, before_us } => {
            format!("the same request had failed {} before: case {case}", micros(*before_us))
        }
        _ => String::new(),
    }
}

/// What packets and their repetition tell.
fn on_the_wire(of: &Fact) -> Option<String> {
    Some(match of {
        Fact::LooksLike { what } => format!("it looks like {what}"),
        Fact::ForeignTtl { reset, peer } => {
            format!("that RST came with TTL {reset}, the upstream's other packets with TTL {peer}")
        }
        Fact::ForeignId { reset, peer } => {
            format!("that RST came with IP id {reset}; the upstream's other packets count up, the nearest with {peer}")
        }
        Fact::SentOn { bytes, after_us } => {
            let after = micros(*after_us);
            format!("the upstream sent {bytes} more bytes {after} after that RST: it had not ended the connection")
        }
        Fact::SynAckLost { times } => {
            format!("{} of the upstream seen, and nginx's socket had taken none", counted(u64::from(*times), "SYN-ACK"))
        }
        Fact::ClosedUnaccepted { process } => {
            format!("pid {process} closed the listener, and with it this connection, which nobody had accepted")
        }
        Fact::AnswerDestroyed { bytes } => {
            format!("{bytes} bytes that the upstream had written by then never reached nginx's socket")
        }
        Fact::AnswerArrived => "all that the upstream had written by then had reached nginx's socket".to_owned(),
        Fact::AnswerNotTaken { bytes, times: 0 } => {
            format!("the upstream had sent {bytes} bytes of its answer, and nginx's side had none of them")
        }
        Fact::AnswerNotTaken { bytes, times } => {
            format!(
                "the upstream sent {bytes} bytes of its answer {times} more times, and nginx's side took none of them"
            )
        }
        _ => return None,
    })
}

fn listener(process: Option<&(Option<Pid>, String)>) -> String {
    match process {
        Some((Some(pid), command)) => who(*pid, command),
        Some((None, command)) => redact::text(command),
        None => "somebody".to_owned(),
    }
}

/// `1 request`, `2 requests`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}
