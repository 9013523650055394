//! Where a piece of evidence happened, for whoever draws it: at which side, between which ends, in which process, and in a word or two.

use std::{borrow::Cow, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::{json::Word, redact, wording};
use crate::model::{
    case::Case,
    event::{Body, Event},
    flow::Side,
    host::HostFact,
    nginx::{NginxEvent, StatusPoint},
    packet::{Content, PacketBody, TcpPacket},
    process::{Pid, ProcessEvent, Role},
    socket::{DropEvent, Socket, SocketChange, SocketEvent, Syscall, SyscallEvent, TcpState},
};

/// A request line, a message: no more of it than this in a word or two, characters.
const BRIEF: usize = 48;

/// Where something happened. What is not known is `None`. The upstream's end has the address that nginx has for it, also where this host
/// translates it: the attempts are named by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Place {
    /// `nginx` or `upstream`: whose socket, process or file it is. A packet is on its way and belongs to neither.
    pub side: Option<Word>,
    /// The sender's end, or this side's: `IP:port`.
    pub from: Option<String>,
    /// The receiver's end, or the other side's.
    pub to: Option<String>,
    /// The process.
    pub pid: Option<u32>,
    /// Its name.
    pub process: Option<String>,
    /// What happened, in a word or two: `RST`, `ESTABLISHED → CLOSE_WAIT`.
    pub brief: String,
}

impl Place {
    /// The place of an event of a case; `None`: nowhere in particular.
    #[must_use]
    pub fn of(event: &Event, case: &Case) -> Option<Self> {
        match &event.body {
            Body::Socket(socket) => {
                Some(of_socket(socket, wording::flow_of(event, case).and_then(|flow| flow.side(event))))
            }
            Body::Drop(drop) => Some(of_drop(drop)),
            Body::Syscall(syscall) => Some(of_syscall(syscall)),
            Body::Process(process) => Some(of_process(process)),
            Body::Nginx(inside) => of_nginx(inside, case),
            Body::Packet(packet) => Some(match &packet.body {
                PacketBody::Tcp(tcp) => of_packet(tcp),
                PacketBody::Icmp(icmp) => Self {
                    from: Some(icmp.from.to_string()),
                    to: Some(icmp.about.0.to_string()),
                    brief: format!("ICMP {}/{}", icmp.icmp_type, icmp.code),
                    ..Self::default()
                },
            }),
            Body::ErrorLine(line) => Some(at_nginx(case, &format!("error log: {}", line.message))),
            Body::AccessLine(line) => {
                let status = line.status.map_or_else(|| "?".to_owned(), |status| status.to_string());
                Some(at_nginx(case, &format!("access log: {status}")))
            }
            Body::Host(fact) => of_host(fact, case),
            Body::Coverage(_) | Body::Wire(_) => None,
        }
    }

    /// The moment nginx decided, where no event of the case tells it.
    #[must_use]
    pub fn decision(case: &Case, status: &str) -> Self {
        at_nginx(case, &format!("decides {status}"))
    }

    /// nginx decides or answers a status here.
    #[must_use]
    pub fn decides(&self) -> bool {
        self.side.as_deref() == Some("nginx")
            && (self.brief.starts_with("decides ") || self.brief.starts_with("answers "))
    }
}

const NGINX: Word = Cow::Borrowed("nginx");
const UPSTREAM: Word = Cow::Borrowed("upstream");

fn at_nginx(case: &Case, brief: &str) -> Place {
    Place {
        side: Some(NGINX),
        pid: case.worker.map(|worker| worker.0),
        brief: cut(&redact::message(brief)),
        ..Place::default()
    }
}

const fn word(side: Side) -> Word {
    match side {
        Side::Nginx => NGINX,
        Side::Upstream => UPSTREAM,
    }
}

const fn word_of(role: Role) -> Option<Word> {
    match role {
        Role::NginxMaster | Role::NginxWorker => Some(NGINX),
        Role::Upstream => Some(UPSTREAM),
        Role::Other => None,
    }
}

fn ends(socket: &Socket) -> (Option<String>, Option<String>) {
    let show = |end: Option<SocketAddr>| end.map(|end| end.to_string());
    (show(socket.local), show(socket.remote))
}

fn of_socket(event: &SocketEvent, side: Option<Side>) -> Place {
    let (from, to) = ends(&event.socket);
    let brief = match &event.change {
        SocketChange::State { from } => {
            format!("{} → {}", wording::state(*from), wording::state(event.socket.state))
        }
        SocketChange::ResetSent { reason, .. } => {
            let reason = reason.as_deref().map(|reason| format!(": {}", redact::text(reason))).unwrap_or_default();
            format!("sends RST{reason}")
        }
        SocketChange::ResetReceived => "takes RST".to_owned(),
        SocketChange::Retransmitted { .. } if event.socket.state == TcpState::SynSent => "SYN again".to_owned(),
        SocketChange::Retransmitted { payload } => format!("{payload} bytes again"),
        SocketChange::SynAckRetransmitted => "SYN-ACK again".to_owned(),
        SocketChange::ErrorReported => {
            event.socket.error.map_or_else(|| "told an error".to_owned(), |errno| format!("told {errno}"))
        }
    };
    Place { side: side.map(word), from, to, pid: event.by.map(|pid| pid.0), process: None, brief: cut(&brief) }
}

fn of_drop(drop: &DropEvent) -> Place {
    let reason = drop.reason.as_deref().map(|reason| format!(": {}", redact::text(reason))).unwrap_or_default();
    Place {
        from: Some(drop.packet.source.to_string()),
        to: Some(drop.packet.destination.to_string()),
        brief: cut(&format!("dropped{reason}")),
        ..Place::default()
    }
}

fn of_syscall(event: &SyscallEvent) -> Place {
    let result = |result: &Result<i32, _>| match result {
        Ok(_) => String::new(),
        Err(errno) => format!(" = {errno}"),
    };
    let pid = Some(event.pid.0);
    match &event.call {
        Syscall::Connect { address, result: returned, socket, .. } => Place {
            side: Some(NGINX),
            from: socket.as_ref().and_then(|socket| ends(socket).0),
            to: address.as_ref().map(|address| redact::text(&address.to_string())),
            pid,
            process: None,
            brief: format!("connect(){}", result(returned)),
        },
        Syscall::Accept { result: returned, socket, command, .. } => {
            let (from, to) = socket.as_ref().map_or((None, None), ends);
            let (process, brief) = (Some(redact::text(command)), format!("accept(){}", result(returned)));
            Place { side: Some(UPSTREAM), from, to, pid, process, brief }
        }
        Syscall::Socket { error, .. } => Place { pid, brief: format!("socket() = {error}"), ..Place::default() },
        Syscall::Open { error } => Place { pid, brief: format!("open() = {error}"), ..Place::default() },
    }
}

fn of_process(event: &ProcessEvent) -> Place {
    let at = |side: Option<Word>, pid: Pid, command: Option<&str>, brief: &str| Place {
        side,
        pid: Some(pid.0),
        process: command.map(redact::text),
        brief: cut(&redact::text(brief)),
        ..Place::default()
    };
    match event {
        ProcessEvent::Forked { parent, child, role, command } => {
            at(word_of(*role), *parent, Some(command), &format!("forks pid {child}"))
        }
        ProcessEvent::Executed { pid, role, command } => {
            at(word_of(*role), *pid, Some(command), &format!("becomes {command}"))
        }
        ProcessEvent::Exited { pid, role, command, how, .. } => {
            at(word_of(*role), *pid, Some(command), &wording::ending(*how))
        }
        ProcessEvent::Held { pid, role, connections, .. } => {
            at(word_of(*role), *pid, None, &format!("still holds {} of nginx's connections", connections.len()))
        }
        ProcessEvent::Signalled { target, role, signal, sender } => {
            let from = sender.as_ref().map_or_else(|| "the kernel".to_owned(), |sender| sender.command.clone());
            at(word_of(*role), *target, None, &format!("signal {signal} from {from}"))
        }
        ProcessEvent::OomVictim { victim, role } => at(word_of(*role), *victim, None, "chosen by the OOM killer"),
    }
}

fn of_nginx(event: &NginxEvent, case: &Case) -> Option<Place> {
    match event {
        NginxEvent::Log(log) => Some(at_nginx(case, &format!("logs: {}", log.format))),
        NginxEvent::Status(status) => Some(match status.point {
            StatusPoint::SpecialResponse => at_nginx(case, &format!("decides {}", status.status)),
            StatusPoint::SendHeader => at_nginx(case, &format!("answers {}", status.status)),
            StatusPoint::Redirect => at_nginx(case, "redirects inside itself"),
        }),
        NginxEvent::Attempt(_) | NginxEvent::Connection { .. } => None,
    }
}

fn of_packet(packet: &TcpPacket) -> Place {
    let flags = packet.header.flags;
    let mut words: Vec<&str> = Vec::new();
    for (set, word) in [(flags.syn(), "SYN"), (flags.fin(), "FIN"), (flags.rst(), "RST")] {
        if set {
            words.push(word);
        }
    }
    if flags.ack() && flags.syn() {
        words.push("ACK");
    }
    let flagged = words.join("-");
    let content = match &packet.content {
        Content::HttpStatus { line, .. } => redact::text(line),
        Content::HttpRequest { line, .. } => redact::request_line(line),
        Content::Tls { alert: Some((_, description)), .. } => format!("TLS alert {description}"),
        Content::Tls { .. } => "TLS".to_owned(),
        Content::Foreign(foreign) => foreign.name().to_owned(),
        Content::Empty | Content::Other | Content::NotCaptured if packet.payload_length > 0 => {
            format!("{} bytes", packet.payload_length)
        }
        Content::Empty | Content::Other | Content::NotCaptured if flagged.is_empty() => "ACK".to_owned(),
        Content::Empty | Content::Other | Content::NotCaptured => String::new(),
    };
    let parts: Vec<&str> = [flagged.as_str(), content.as_str()].into_iter().filter(|part| !part.is_empty()).collect();
    Place {
        from: Some(packet.header.source.to_string()),
        to: Some(packet.header.destination.to_string()),
        brief: cut(&parts.join(" ")),
        ..Place::default()
    }
}

/// Something of nginx's own host.
fn own_host(brief: &str) -> Place {
    Place { side: Some(NGINX), brief: cut(brief), ..Place::default() }
}

fn of_host(fact: &HostFact, case: &Case) -> Option<Place> {
    let process = |pid: Pid, command: &str, brief: String| Place {
        side: Some(if case.worker == Some(pid) { NGINX } else { UPSTREAM }),
        pid: Some(pid.0),
        process: Some(redact::text(command)),
        brief: cut(&brief),
        ..Place::default()
    };
    match fact {
        HostFact::Listeners { upstream, local, listeners, .. } => {
            let listener = listeners.first().filter(|_| listeners.len() == 1);
            Some(Place {
                side: Some(UPSTREAM),
                from: Some(upstream.to_string()),
                pid: listener.and_then(|listener| listener.pid).map(|pid| pid.0),
                process: listener.and_then(|listener| listener.command.as_deref()).map(redact::text),
                brief: match (local, listeners.len()) {
                    (false, _) => "not of this host".to_owned(),
                    (true, 0) => "nobody listens".to_owned(),
                    (true, 1) => "listens".to_owned(),
                    (true, several) => format!("{several} listen"),
                },
                to: None,
            })
        }
        HostFact::OpenFiles { pid, command, open, limit } => {
            let limit = limit.map(|limit| format!(" of {limit}")).unwrap_or_default();
            Some(process(*pid, command, format!("{open}{limit} files open")))
        }
        HostFact::ProcessState { pid, command, state, .. } => Some(process(*pid, command, format!("state {state}"))),
        HostFact::Acceptors { upstream, processes, .. } => {
            let halted = processes.iter().filter(|process| process.halt.is_some()).count();
            let brief = format!("{halted} of {} that may accept stand still", processes.len());
            Some(Place {
                side: Some(UPSTREAM),
                from: Some(redact::text(&upstream.to_string())),
                brief: cut(&brief),
                ..Place::default()
            })
        }
        HostFact::OpenConnection { local, upstream, .. } => Some(Place {
            side: Some(NGINX),
            from: Some(local.to_string()),
            to: Some(upstream.to_string()),
            brief: "already open".to_owned(),
            ..Place::default()
        }),
        HostFact::Served { upstream, pid, command, ended, .. } => {
            let brief = if ended.is_some() { "gone" } else { "stopped listening" };
            let at = Some(upstream.to_string());
            Some(Place { from: at, ..process(*pid, command.as_deref().unwrap_or_default(), brief.to_owned()) })
        }
        HostFact::OtherListeners { listeners, .. } => {
            let listener = listeners.first()?;
            Some(Place {
                from: Some(listener.address.to_string()),
                ..process(listener.pid?, listener.command.as_deref()?, "listens elsewhere".to_owned())
            })
        }
        HostFact::ListenOverflows { count, .. } => {
            Some(Place { side: Some(UPSTREAM), brief: cut(&format!("ListenOverflows {count}")), ..Place::default() })
        }
        HostFact::Route { kind, .. } => Some(own_host(&format!("route: {}", kind.name()))),
        HostFact::Translated { local, to, .. } => Some(Place {
            side: Some(NGINX),
            from: Some(local.to_string()),
            to: Some(to.to_string()),
            brief: "translated (DNAT)".to_owned(),
            ..Place::default()
        }),
        HostFact::LocalPorts { in_use, .. } => Some(own_host(&format!("{in_use} local ports in use"))),
        HostFact::SystemFiles { open, limit } => Some(own_host(&format!("{open} of {limit} files open in all"))),
        HostFact::Name { name, .. } => Some(own_host(&format!("{} resolved", redact::text(name)))),
        HostFact::UnixSocket(socket) => Some(own_host(&redact::text(&socket.path))),
        HostFact::Nginx(_) | HostFact::NginxGone { .. } => None,
    }
}

/// Cuts what is too long for a picture.
fn cut(text: &str) -> String {
    if text.chars().count() <= BRIEF {
        return text.to_owned();
    }
    let mut out: String = text.chars().take(BRIEF - 1).collect();
    out.push('…');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        diagnose::testing::World,
        model::complaint::{Message, Phase},
        report::timeline,
    };

    #[test]
    fn a_packet_goes_from_end_to_end_and_a_log_line_is_nginxs() {
        let mut world = World::new(502);
        world.packet_from_upstream(-85, 0x14, 0);
        world.complain(Message::PrematurelyClosed, Phase::ReadingHeader, None, "upstream prematurely closed");
        let rows = timeline::rows(&world.case, &world.judge());
        let places: Vec<Place> = rows.into_iter().filter_map(|row| row.place).collect();
        let packet = places.iter().find(|place| place.brief.contains("RST")).expect("the packet");
        let upstream = world.case.attempts[0].upstream.as_ref().map(ToString::to_string);
        assert_eq!(packet.from, upstream);
        assert_eq!(packet.side, None);
        assert!(packet.to.is_some());
        let log = places.iter().find(|place| place.brief.starts_with("logs: upstream prem")).expect("the log line");
        assert_eq!(log.side.as_deref(), Some("nginx"));
    }

    #[test]
    fn long_words_are_cut() {
        assert_eq!(cut(&"x".repeat(BRIEF)).chars().count(), BRIEF);
        assert_eq!(cut(&"ä".repeat(BRIEF * 200)).chars().count(), BRIEF);
    }
}
