//! Processes.

use probe_abi::{
    Kind,
    process::{self as abi, role},
};

use super::{RecordError, read, text};
use crate::model::{
    event::Body,
    process::{Ending, Pid, ProcessEvent, Role, Sender, Untaken},
};

/// Reads a record of one of these kinds.
pub(super) fn decode(kind: Kind, record: &[u8]) -> Result<Body, RecordError> {
    let event = match kind {
        Kind::Fork => {
            let fork: abi::Fork = read(record, "a fork")?;
            ProcessEvent::Forked {
                parent: Pid(fork.header.tgid),
                child: Pid(fork.child),
                role: of_number(fork.role),
                command: text(&fork.command),
            }
        }
        Kind::Exec => {
            let exec: abi::Exec = read(record, "an exec")?;
            ProcessEvent::Executed {
                pid: Pid(exec.header.tgid),
                role: of_number(exec.role),
                command: text(&exec.command),
            }
        }
        Kind::Exit => {
            let exit: abi::Exit = read(record, "an exit")?;
            ProcessEvent::Exited {
                pid: Pid(exit.header.tgid),
                role: of_number(exit.role),
                command: text(&exit.command),
                how: ending(exit.code),
                untaken: untaken(exit.code),
            }
        }
        Kind::Signal => {
            let signal: abi::Signal = read(record, "a signal")?;
            ProcessEvent::Signalled {
                target: Pid(signal.target),
                role: of_number(signal.role),
                signal: signal.signal,
                sender: (signal.from_kernel == 0)
                    .then(|| Sender { pid: Pid(signal.header.tgid), command: text(&signal.command) }),
            }
        }
        Kind::OomVictim => {
            let victim: abi::OomVictim = read(record, "an OOM victim")?;
            ProcessEvent::OomVictim { victim: Pid(victim.victim), role: of_number(victim.role) }
        }
        Kind::Held => {
            let held: abi::Held = read(record, "a process's connections")?;
            let count = usize::try_from(held.count).unwrap_or(usize::MAX);
            ProcessEvent::Held {
                pid: Pid(held.header.tgid),
                role: of_number(held.role),
                connections: held.peers.into_iter().take(count).collect(),
                all: held.all == 1 && count <= abi::HELD,
            }
        }
        other => return Err(RecordError::Unusable { kind: other, what: "process" }),
    };
    Ok(Body::Process(event))
}

fn of_number(number: u32) -> Role {
    match number {
        role::NGINX_MASTER => Role::NginxMaster,
        role::NGINX_WORKER => Role::NginxWorker,
        role::UPSTREAM => Role::Upstream,
        _ => Role::Other,
    }
}

/// What the kernel side has put above the exit code.
fn untaken(code: u32) -> Untaken {
    let [.., low, high] = code.to_le_bytes();
    Untaken(u16::from_le_bytes([low, high]))
}

/// As `wait()` encodes it.
fn ending(code: u32) -> Ending {
    let [low, status, ..] = code.to_le_bytes();
    match low & 0x7f {
        0 => Ending::Exit(status),
        signal => Ending::Signal { signal, core: low & 0x80 != 0 },
    }
}
