//! One file per row of the catalogue.

pub(super) mod unknown;
mod upstream_refused;

use super::cause::Cause;
use crate::model::process::Ending;

/// Every row that has a rule, in the catalogue's order.
pub(super) const ALL: &[&Cause] = &[&upstream_refused::CAUSE, &unknown::CAUSE];

/// How a process ended, as a sentence says it.
fn ending(how: Ending) -> String {
    match how {
        Ending::Exit(code) => format!("exit status {code}"),
        Ending::Signal { signal, core } => {
            let core = if core { ", core dumped" } else { "" };
            format!("killed by {}{core}", signal_name(u32::from(signal)))
        }
    }
}

/// `SIGKILL` and so on; the numbers are x86-64's and aarch64's (include/uapi/asm-generic/signal.h).
fn signal_name(signal: u32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}
