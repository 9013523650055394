//! The words for what a server's processes were doing.

use super::{open_files, redact, who};
use crate::model::{
    evidence::Fact,
    host::HostFact,
    process::{Acceptor, Halt, Pid},
};

/// So many processes of one server are named.
const NAMED: usize = 3;

/// A fact about the host, where it is one of these.
pub(super) fn host_fact(fact: &HostFact) -> Option<String> {
    Some(match fact {
        HostFact::ProcessState { pid, command, state: letter, wait_channel, call, halt } => {
            state((*pid, command), *letter, wait_channel.as_deref(), call.as_deref(), halt.as_ref())
        }
        HostFact::Acceptors { upstream, processes, .. } => {
            format!("{} may be accepted by {}", redact::text(&upstream.to_string()), acceptors(processes))
        }
        _ => return None,
    })
}

/// A fact a verdict rests on, where it is one of these.
pub(super) fn fact(of: &Fact) -> Option<String> {
    Some(match of {
        Fact::ProcessState { process: (pid, command), state: letter, wait_channel, call, halt } => {
            state((*pid, command), *letter, wait_channel.as_deref(), call.as_deref(), halt.as_ref())
        }
        Fact::NeverAccepted => "nobody had accepted this connection: it lay in the accept queue".to_owned(),
        Fact::Acceptors { processes } => format!("connections may be accepted by {}", acceptors(processes)),
        _ => return None,
    })
}

fn state(
    (pid, command): (Pid, &str),
    state: char,
    wait_channel: Option<&str>,
    call: Option<&str>,
    halt: Option<&Halt>,
) -> String {
    let doing = match (halt, state) {
        (Some(halt), _) => return format!("{} {}", who(pid, command), halted(halt)),
        (None, 'R') => "running",
        (None, 'S') => "asleep",
        (None, 'D') => "in uninterruptible sleep",
        (None, 'T' | 't') => "stopped",
        (None, 'Z') => "dead, not yet reaped",
        (None, 'I') => "idle",
        (None, _) => "in an unknown state",
    };
    let at = wait_channel.map(|channel| format!(" in {}", redact::text(channel))).unwrap_or_default();
    let call = call.map(|call| format!(", called by {}", redact::text(call))).unwrap_or_default();
    format!("{} is {doing}{at}{call}", who(pid, command))
}

fn halted(halt: &Halt) -> String {
    match halt {
        Halt::Stopped => "is stopped".to_owned(),
        Halt::Traced(None) => "is held by a debugger".to_owned(),
        Halt::Traced(Some(debugger)) => format!("is held by {}", who(debugger.pid, &debugger.command)),
        Halt::Frozen(switch) => format!("is frozen with its control group ({})", redact::text(switch)),
    }
}

fn acceptors(processes: &[Acceptor]) -> String {
    let one = |process: &Acceptor| {
        let files = process.files.map_or_else(
            || who(process.pid, &process.command),
            |(open, limit)| open_files(process.pid, &process.command, open, limit),
        );
        let halt = process.halt.as_ref().map(|halt| format!(" and {}", halted(halt))).unwrap_or_default();
        format!("{files}{halt}")
    };
    let named: Vec<String> = processes.iter().take(NAMED).map(one).collect();
    let more = processes.len().saturating_sub(NAMED);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    if named.is_empty() { "nobody".to_owned() } else { format!("{}{more}", named.join("; ")) }
}
