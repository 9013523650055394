//! `unix-backlog-full`: the unix socket's queue is full.

use super::super::{
    cause::{Cause, Depth, Family, Finding, Page},
    reading::{Reading, evidence},
    said::connect_returned,
    standstill::remark_standstill,
};
use crate::model::{
    evidence::{Fact, Weight},
    net::Errno,
};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "unix-backlog-full",
    title: "the unix socket's queue of connections is full",
    family: Family::Connect,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "The server does not accept as fast as nginx connects. On a unix socket a full queue is told at once (EAGAIN), where TCP would wait: 502 without delay, under load.",
        proof: "EAGAIN from connect() with that path; the queue's length against its limit is shown (sock_diag).",
        refuted: "A socket without a listener says ECONNREFUSED.",
        remedies: &[
            (
                "any server",
                "More workers, or faster answers; then a longer queue: the listen() backlog, bounded by net.core.somaxconn (4096; 128 before Linux 5.4). `ss -xl` shows Recv-Q against Send-Q.",
            ),
            (
                "php-fpm",
                "pm.max_children is what runs out first; listen.backlog (default 511, in PHP 8.2 all that somaxconn allows); pm.status_path shows the listen queue.",
            ),
            ("uWSGI", "--listen 1024 (default 100), and somaxconn at least that."),
            ("gunicorn", "--backlog 2048; more --workers or --threads."),
            ("Puma", "bind 'unix:///run/app.sock?backlog=1024'."),
            ("uvicorn", "--backlog 2048 (the default); more --workers."),
            ("Node.js", "server.listen({ path, backlog: 2048 }) (default 511); node:cluster for more processes."),
            ("Go", "The queue is somaxconn as it was at the start: raise the sysctl, then restart."),
            ("Java", "The backlog is bind()'s second argument (default 50)."),
            ("nginx", "proxy_next_upstream error tries another server; limit_req and queueing in front spread bursts."),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let path = reading.unix_path()?;
    let (mut finding, errno) = connect_returned(reading, &[Errno::EAGAIN])?;
    finding.summary = format!(
        "The queue of connections at {path} is full: connect() returned {errno}; the server does not accept fast enough."
    );
    if let Some((id, listener)) = reading.unix_socket().and_then(|(id, socket)| Some((id, socket.listener.as_ref()?)))
        && let Some((waiting, limit)) = listener.queue
    {
        let command = listener.command.clone().unwrap_or_else(|| "the server".to_owned());
        finding.say(format_args!(" {command} has {waiting} waiting, limit {limit}."));
        let fact = Fact::UnixQueue { process: Some((listener.pid, command)), waiting, limit };
        finding.support(Some(evidence(fact, &[id], Weight::Symptom)));
    }
    finding.fix.push("More workers (php-fpm: pm.max_children), or find out what keeps them busy.".to_owned());
    finding.fix.push("A longer queue for bursts: the server's backlog (php-fpm listen.backlog, uWSGI --listen) and net.core.somaxconn.".to_owned());
    remark_standstill(&mut finding, reading);
    Some(finding)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::World,
        model::{coverage::Sensor, net::Errno, verdict::Confidence},
    };

    pub(crate) fn world() -> World {
        World::connect_fails("unix:/run/app.sock", Errno::EAGAIN)
    }

    #[test]
    fn the_plain_case() {
        world().expect("unix-backlog-full", Confidence::Confirmed);
    }

    #[test]
    fn the_nearest_case_is_not_it() {
        let other = World::connect_fails("unix:/run/app.sock", Errno::ENOENT);
        assert_eq!(crate::report::cause(&other.judge()), "unix-socket-missing");
    }

    #[test]
    fn without_the_call_it_is_likely() {
        let mut world = world();
        world.attempt().syscalls.clear();
        world.blind(Sensor::Syscalls);
        world.expect("unix-backlog-full", Confidence::Likely);
    }
}
