//! One file per row of the catalogue.

pub(crate) mod accept_queue_overflow;
pub(crate) mod bind_failed;
pub(crate) mod cached_502;
pub(crate) mod configured_502;
pub(crate) mod connect_denied;
pub(crate) mod dns_failure;
pub(crate) mod early_response_lost;
pub(crate) mod ephemeral_ports_exhausted;
pub(crate) mod fastcgi_error;
pub(crate) mod fd_exhausted_nginx;
pub(crate) mod fd_exhausted_system;
pub(crate) mod fd_exhausted_upstream;
pub(crate) mod firewall_dropped;
pub(crate) mod firewall_rejected;
pub(crate) mod grpc_error;
pub(crate) mod header_too_big;
pub(crate) mod host_unreachable;
pub(crate) mod invalid_response;
pub(crate) mod keepalive_race;
pub(crate) mod network_reset;
pub(crate) mod no_live_upstreams;
pub(crate) mod no_route;
pub(crate) mod path_stall;
pub(crate) mod premature_close;
pub(crate) mod read_timeout;
pub(crate) mod response_truncated;
pub(crate) mod send_timeout;
pub(crate) mod servers;
pub(crate) mod syn_timeout;
pub(crate) mod tls_certificate_invalid;
pub(crate) mod tls_handshake_failed;
pub(crate) mod unix_backlog_full;
pub(crate) mod unix_socket_denied;
pub(crate) mod unix_socket_missing;
pub(crate) mod unix_socket_refused;
pub(crate) mod unknown;
pub(crate) mod upstream_crashed;
pub(crate) mod upstream_exited;
pub(crate) mod upstream_killed;
pub(crate) mod upstream_oom_killed;
pub(crate) mod upstream_refused;
pub(crate) mod upstream_reset;
pub(crate) mod upstream_sent_502;
pub(crate) mod worker_connections_exhausted;

use super::{cause::Cause, reading::Reading};
use crate::model::process::Ending;

/// Every row that has a rule, in the catalogue's order.
pub(super) const ALL: &[&Cause] = &[
    &upstream_refused::CAUSE,
    &firewall_rejected::CAUSE,
    &host_unreachable::CAUSE,
    &no_route::CAUSE,
    &syn_timeout::CAUSE,
    &firewall_dropped::CAUSE,
    &accept_queue_overflow::CAUSE,
    &ephemeral_ports_exhausted::CAUSE,
    &bind_failed::CAUSE,
    &fd_exhausted_nginx::CAUSE,
    &fd_exhausted_system::CAUSE,
    &fd_exhausted_upstream::CAUSE,
    &worker_connections_exhausted::CAUSE,
    &connect_denied::CAUSE,
    &unix_socket_missing::CAUSE,
    &unix_socket_refused::CAUSE,
    &unix_socket_denied::CAUSE,
    &unix_backlog_full::CAUSE,
    &dns_failure::CAUSE,
    &no_live_upstreams::CAUSE,
    &keepalive_race::CAUSE,
    &upstream_reset::CAUSE,
    &premature_close::CAUSE,
    &upstream_crashed::CAUSE,
    &upstream_killed::CAUSE,
    &upstream_oom_killed::CAUSE,
    &upstream_exited::CAUSE,
    &early_response_lost::CAUSE,
    &network_reset::CAUSE,
    &read_timeout::CAUSE,
    &send_timeout::CAUSE,
    &path_stall::CAUSE,
    &response_truncated::CAUSE,
    &invalid_response::CAUSE,
    &header_too_big::CAUSE,
    &tls_handshake_failed::CAUSE,
    &tls_certificate_invalid::CAUSE,
    &fastcgi_error::CAUSE,
    &grpc_error::CAUSE,
    &upstream_sent_502::CAUSE,
    &cached_502::CAUSE,
    &configured_502::CAUSE,
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
        18 => "SIGCONT",
        19 => "SIGSTOP",
        20 => "SIGTSTP",
        21 => "SIGTTIN",
        22 => "SIGTTOU",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}
