//! The words for what the host looked like around a connection that did not come about.

use std::net::SocketAddr;

use super::{ending, redact, who};
use crate::model::{
    evidence::Fact,
    host::{Asker, HostFact, PathPart, UnixSocket},
    process::Pid,
};

/// A fact about the host, where it is one of these.
pub(super) fn host_fact(fact: &HostFact) -> Option<String> {
    Some(match fact {
        HostFact::OtherListeners { pid, listeners } => match listeners.as_slice() {
            [] => format!("pid {pid} listens nowhere else"),
            some => super::list(some),
        },
        HostFact::ListenOverflows { netns, count } => {
            format!("TcpExtListenOverflows of network namespace {netns}: {count}")
        }
        HostFact::Route { upstream, kind, destination, .. } => {
            let to = destination.as_deref().map(|to| format!(" {}", redact::text(to))).unwrap_or_default();
            format!("the route to {}: {}{to}", upstream.ip(), kind.name())
        }
        HostFact::Translated { upstream, local, to, seen_as, .. } => translated(*upstream, *local, *to, *seen_as),
        HostFact::LocalPorts { upstream, range, in_use, waiting, .. } => {
            format!("towards {upstream}: {}", ports(*range, *in_use, *waiting))
        }
        HostFact::SystemFiles { open, limit } => system_files(*open, *limit),
        HostFact::Name { name, port, addresses } => {
            format!("{} now resolves to {}", redact::text(&format!("{name}:{port}")), addresses_of(addresses))
        }
        HostFact::UnixSocket(socket) => unix_socket(socket),
        HostFact::Served { upstream, pid, command, .. } => {
            format!("{} used to listen on {upstream}", who(*pid, command.as_deref().unwrap_or("a process")))
        }
        _ => return None,
    })
}

fn translated(upstream: SocketAddr, local: SocketAddr, to: SocketAddr, seen_as: Option<SocketAddr>) -> String {
    let seen_as = seen_as.map(|other| format!(", which sees it come from {other}")).unwrap_or_default();
    format!("address translation (conntrack): {local} > {upstream} went to {to}{seen_as}")
}

/// A fact a verdict rests on, where it is one of these.
pub(super) fn fact(of: &Fact) -> Option<String> {
    Some(match of {
        Fact::FormerListener { upstream, process: (pid, command), how, signal: asked, ago_us } => {
            let ago = ago_us.map(|us| format!(", {} before nginx asked", super::micros(us))).unwrap_or_default();
            let how = how.map_or_else(|| " has closed its socket".to_owned(), |how| format!(" ended: {}", ending(how)));
            let by = match asked {
                Some((number, Some(sender))) => {
                    format!(" (signal {number} from {})", who(sender.pid, &sender.command))
                }
                _ => String::new(),
            };
            format!("{}, which listened on {upstream},{how}{by}{ago}", who(*pid, command))
        }
        Fact::Translated { upstream, to } => format!("the server behind {upstream} was {to}"),
        Fact::OthersTranslated { upstream, to } => {
            let to: Vec<String> = to.iter().map(ToString::to_string).collect();
            format!("where connections to {upstream} were led before: {}", to.join(", "))
        }
        Fact::ListenOverflows { count } => {
            format!("{count} handshakes refused meanwhile for a full accept queue (TcpExtListenOverflows)")
        }
        Fact::Route { kind, destination } => {
            let to = destination.as_deref().map(|to| format!(" {}", redact::text(to))).unwrap_or_default();
            format!("this host's route: {}{to}", kind.name())
        }
        Fact::LocalPorts { range, in_use, waiting } => ports(*range, *in_use, *waiting),
        Fact::SystemFiles { open, limit } => system_files(*open, *limit),
        Fact::NameMoved { name, holds, now } => {
            format!("{} now resolves to {}; nginx holds {holds}", redact::text(name), addresses_of(now))
        }
        Fact::PathDenied { part, asker, write } => denied(part, asker, *write),
        Fact::PathMissing { path } => format!("{} does not exist", redact::text(path)),
        Fact::NoUnixListener { path } => format!("nobody listens on {}", redact::text(path)),
        Fact::UnixQueue { process, waiting, limit } => {
            format!("queue of {}: {waiting} waiting, limit {limit}", super::listener(process.as_ref()))
        }
        _ => return None,
    })
}

fn ports((first, last): (u16, u16), in_use: u32, waiting: u32) -> String {
    let all = u32::from(last.saturating_sub(first)) + 1;
    format!("{in_use} of {all} local ports ({first} to {last}) in use, {waiting} of them in TIME_WAIT")
}

fn system_files(open: u64, limit: u64) -> String {
    format!("the system has {open} files open, fs.file-max is {limit}")
}

fn addresses_of(addresses: &[SocketAddr]) -> String {
    match addresses {
        [] => "nothing".to_owned(),
        some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn named((id, name): &(u32, Option<String>)) -> String {
    name.as_deref().map_or_else(|| id.to_string(), redact::text)
}

fn denied(part: &PathPart, asker: &Asker, write: bool) -> String {
    let user = named(&(asker.user, asker.name.clone()));
    let what = if part.directory { "directory " } else { "" };
    let needs = if write { "write (w)" } else { "search (x)" };
    format!(
        "{what}{} (mode {:04o}, owner {}:{}) does not give {user} {needs}",
        redact::text(&part.path),
        part.mode,
        named(&part.owner),
        named(&part.group),
    )
}

fn unix_socket(socket: &UnixSocket) -> String {
    let path = redact::text(&socket.path);
    if let Some(missing) = &socket.missing {
        return format!("{} does not exist", redact::text(missing));
    }
    match &socket.listener {
        None => format!("nobody listens on {path}"),
        Some(listener) => {
            let name = listener.command.as_deref().unwrap_or("a process");
            let process = listener.pid.map_or_else(|| redact::text(name), |pid: Pid| who(pid, name));
            let queue = listener.queue.map(|(n, limit)| format!(", {n} waiting, limit {limit}")).unwrap_or_default();
            format!("{process} listens on {path}{queue}")
        }
    }
}
