//! `fd-exhausted-system`: the whole system is out of file descriptors.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::Reading,
    },
    fd_exhausted_nginx::shortage,
};
use crate::model::net::Errno;

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "fd-exhausted-system",
    title: "the whole system is out of file descriptors",
    family: Family::Connect,
    statuses: &[500],
    depth: Depth::Mechanism,
    page: Page {
        happened: "The worker could not open a socket because the kernel's limit for all processes together is reached (ENFILE). \
                   Everything else on the host suffers too.",
        proof: "socket() of this worker returning ENFILE in this request.",
        refuted: "EMFILE: the worker's own limit (fd-exhausted-nginx).",
        remedies: &[
            (
                "kernel",
                "`cat /proc/sys/fs/file-nr` shows open, unused, limit; sysctl fs.file-max raises it. Find who holds them: \
                        `for p in /proc/[0-9]*; do echo $(ls $p/fd | wc -l) $p; done | sort -n | tail`.",
            ),
            (
                "nginx",
                "worker_rlimit_nofile bounds what each worker can take; worker_connections, keepalive and open_file_cache what it does.",
            ),
            (
                "gunicorn",
                "Each worker takes up to --worker-connections (1000) and its own to databases, times --workers.",
            ),
            ("uvicorn", "--limit-concurrency bounds each process, times --workers."),
            (
                "Node.js",
                "Raises its own limit to the hard one when it starts: a leak goes on until LimitNOFILE= or --ulimit stops it.",
            ),
            (
                "Puma",
                "Takes one for each thread, database connection and kept connection: threads, workers, persistent_timeout.",
            ),
            ("php-fpm", "rlimit_files of each pool, times pm.max_children."),
            ("uWSGI", "--max-fd, times --processes."),
            ("Go", "Raises its own limit to the hard one when it starts (from 1.19): set LimitNOFILE= or --ulimit."),
            ("Java", "Raises its own limit to the hard one when it starts; -XX:-MaxFDLimit keeps the soft one."),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let mut finding = shortage(reading, Errno::ENFILE)?;
    finding.summary.push_str("nginx could not open a socket: the whole system is out of file descriptors (ENFILE).");
    if let Some(((open, limit), evidence)) = reading.system_files() {
        finding.say(format_args!(" {open} are open, fs.file-max is {limit}."));
        finding.support(Some(evidence));
    }
    finding.fix.push("`cat /proc/sys/fs/file-nr`, find the process that holds most, and raise fs.file-max.".to_owned());
    Some(finding)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::fd_exhausted_nginx::tests::exhausted;
    use crate::model::{coverage::Sensor, net::Errno, verdict::Confidence};

    #[test]
    fn the_plain_case_and_without_the_call() {
        let mut world = exhausted(Errno::ENFILE);
        world.expect("fd-exhausted-system", Confidence::Confirmed);
        world.attempt().syscalls.clear();
        world.blind(Sensor::Syscalls);
        world.expect("fd-exhausted-system", Confidence::Likely);
    }

    #[test]
    fn the_workers_own_limit_is_not_it() {
        exhausted(Errno::EMFILE).expect("fd-exhausted-nginx", Confidence::Confirmed);
    }
}
