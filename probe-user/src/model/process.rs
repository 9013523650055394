//! Processes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A process (thread group) as the initial pid namespace numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pid(pub u32);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a watched process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// An nginx master.
    NginxMaster,
    /// An nginx worker.
    NginxWorker,
    /// Serves an upstream address on this host.
    Upstream,
    /// None of these.
    Other,
}

/// Something happened to a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessEvent {
    /// A watched process forked.
    Forked {
        /// The parent.
        parent: Pid,
        /// The child.
        child: Pid,
        /// The child's role.
        role: Role,
        /// The parent's name.
        command: String,
    },
    /// A process executed a program.
    Executed {
        /// The process.
        pid: Pid,
        /// Its role before.
        role: Role,
        /// Its new name.
        command: String,
    },
    /// A watched process ended.
    Exited {
        /// The process.
        pid: Pid,
        /// Its role.
        role: Role,
        /// Its name.
        command: String,
        /// How.
        how: Ending,
        /// Signals that it had been sent, and did not take any more.
        untaken: Untaken,
    },
    /// A server is ending (its [`ProcessEvent::Exited`] follows), and its descriptors are not closed yet.
    Held {
        /// The process.
        pid: Pid,
        /// Its role.
        role: Role,
        /// Unix connections from nginx that it still holds: the inodes of nginx's ends.
        connections: Vec<u64>,
        /// These are all of them.
        all: bool,
    },
    /// A signal was sent to a watched process.
    Signalled {
        /// The receiver.
        target: Pid,
        /// The receiver's role.
        role: Role,
        /// The signal's number.
        signal: u32,
        /// Who sent it; `None`: the kernel.
        sender: Option<Sender>,
    },
    /// The OOM killer chose a process.
    OomVictim {
        /// The victim.
        victim: Pid,
        /// Its role.
        role: Role,
    },
}

/// Signals 1 to 15 that a process had blocked and so never took, as bits by their numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Untaken(pub u16);

impl Untaken {
    /// Whether this one is among them.
    #[must_use]
    pub const fn has(self, signal: u32) -> bool {
        signal <= 15 && self.0 >> signal & 1 != 0
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// By itself, with this status.
    Exit(u8),
    /// By this signal.
    Signal {
        /// Its number.
        signal: u8,
        /// A core was dumped.
        core: bool,
    },
}

/// Who sent a signal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    /// The process.
    pub pid: Pid,
    /// Its name.
    pub command: String,
}

/// Whether a signal stops a process by default (SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU), or ends that (SIGCONT).
#[must_use]
pub const fn stops_or_continues(signal: u32) -> bool {
    stops(signal) || signal == SIGCONT
}

/// Whether it stops a process; of these only SIGSTOP leaves it no choice.
#[must_use]
pub const fn stops(signal: u32) -> bool {
    matches!(signal, SIGSTOP..=22)
}

/// The numbers are x86-64's and aarch64's (include/uapi/asm-generic/signal.h).
pub const SIGCONT: u32 = 18;
/// Likewise.
pub const SIGSTOP: u32 = 19;

/// What keeps a process from running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Halt {
    /// A signal has stopped it.
    Stopped,
    /// A debugger holds it: which, where that can be read.
    Traced(Option<Sender>),
    /// Its control group is frozen: which, as the host's hierarchy names it.
    Frozen(String),
}

/// A process that has a listening socket, and so may accept from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptor {
    /// The process.
    pub pid: Pid,
    /// Its parent.
    pub parent: Pid,
    /// Its name.
    pub command: String,
    /// What keeps it from running.
    pub halt: Option<Halt>,
    /// Open descriptors, and `RLIMIT_NOFILE` (soft) where there is a limit; `None`: they could not be counted.
    pub files: Option<(u64, Option<u64>)>,
}

impl Acceptor {
    /// Whether it has a descriptor left for one more connection; `None`: not known.
    #[must_use]
    pub fn has_room(&self) -> Option<bool> {
        let (open, limit) = self.files?;
        Some(limit.is_none_or(|limit| open < limit))
    }
}
