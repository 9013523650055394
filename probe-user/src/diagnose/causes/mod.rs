//! One file per row of the catalogue.

pub(crate) mod fd_exhausted_nginx;
pub(crate) mod fd_exhausted_upstream;
pub(crate) mod keepalive_race;
pub(crate) mod no_live_upstreams;
pub(crate) mod premature_close;
pub(crate) mod read_timeout;
pub(crate) mod syn_timeout;
pub(super) mod unknown;
pub(crate) mod upstream_crashed;
pub(crate) mod upstream_exited;
pub(crate) mod upstream_killed;
pub(crate) mod upstream_oom_killed;
pub(crate) mod upstream_refused;
pub(crate) mod upstream_reset;

use super::{cause::Cause, reading::Reading};
use crate::model::process::Ending;

/// Every row that has a rule, in the catalogue's order.
pub(super) const ALL: &[&Cause] = &[
    &upstream_refused::CAUSE,
    &syn_timeout::CAUSE,
    &fd_exhausted_nginx::CAUSE,
    &fd_exhausted_upstream::CAUSE,
    &no_live_upstreams::CAUSE,
    &keepalive_race::CAUSE,
    &upstream_reset::CAUSE,
    &premature_close::CAUSE,
    &upstream_crashed::CAUSE,
    &upstream_killed::CAUSE,
    &upstream_oom_killed::CAUSE,
    &upstream_exited::CAUSE,
    &read_timeout::CAUSE,
    &unknown::CAUSE,
];

/// What a process that is gone can have met.
const PROCESS_GONE: &[&str] = &["upstream-exited", "upstream-killed", "upstream-crashed", "upstream-oom-killed"];

/// The page's advice for the server that is at the other end, where its name tells which it is.
fn server_advice(cause: &Cause, reading: &Reading<'_>) -> Option<String> {
    const NAMES: [(&str, &str); 8] = [
        ("gunicorn", "gunicorn"),
        ("uvicorn", "uvicorn"),
        ("node", "Node.js"),
        ("puma", "Puma"),
        ("php-fpm", "php-fpm"),
        ("uwsgi", "uWSGI"),
        ("java", "Java"),
        ("http-nio-", "Java"),
    ];
    let command = reading.server_command()?;
    let (_, family) = NAMES.iter().find(|(part, _)| command.contains(part))?;
    let (_, advice) = cause.page.remedies.iter().find(|(who, _)| who == family)?;
    Some(format!("{family}: {advice}"))
}

/// How a process ended, as a sentence says it.
pub(super) fn ending(how: Ending) -> String {
    match how {
        Ending::Exit(code) => format!("exit status {code}"),
        Ending::Signal { signal, core } => {
            let core = if core { ", core dumped" } else { "" };
            format!("killed by {}{core}", signal_name(u32::from(signal)))
        }
    }
}

/// `SIGKILL` and so on; the numbers are x86-64's and aarch64's (include/uapi/asm-generic/signal.h).
pub(super) fn signal_name(signal: u32) -> String {
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
