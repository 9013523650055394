//! `upstream-oom-killed`: the kernel's OOM killer took the process that held the connection.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        departure::{Manner, departure, finding, story},
        reading::Reading,
    },
    server_advice,
};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "upstream-oom-killed",
    title: "the kernel's OOM killer took the upstream's process",
    family: Family::Connection,
    statuses: &[502],
    depth: Depth::ProcessOom,
    page: Page {
        happened: "Memory ran out - the host's, or the limit of the process's control group (container, systemd unit) - and the \
                   kernel chose the process that held this connection and killed it. The application's own log says nothing.",
        proof: "The OOM killer's record for that process, its end by SIGKILL, then the FIN or RST.",
        refuted: "A SIGKILL with a sender (upstream-killed).",
        remedies: &[
            (
                "any server",
                "`dmesg` or `journalctl -k` shows who used how much, and whether the limit was the group's (memory.max; \
                            systemd: MemoryMax=; docker: --memory) or the host's. Raise the limit, or run fewer workers.",
            ),
            ("nginx", "proxy_next_upstream error (the default) tries another server, except for POST, LOCK and PATCH."),
            (
                "gunicorn",
                "Fewer --workers; --max-requests 1000 --max-requests-jitter 100 bounds leaks; --preload shares memory.",
            ),
            ("uvicorn", "Fewer --workers; --limit-max-requests bounds leaks."),
            ("Node.js", "--max-old-space-size below the limit makes V8 collect, or fail with a message of its own."),
            ("Puma", "Fewer workers; MALLOC_ARENA_MAX=2 or jemalloc; puma_worker_killer recycles in time."),
            ("php-fpm", "pm.max_children times memory_limit must fit; pm.max_requests bounds leaks."),
            ("uWSGI", "--reload-on-rss below the limit; --processes."),
            ("Go", "GOMEMLIMIT at about 90 % of the limit."),
            (
                "Java",
                "-XX:MaxRAMPercentage (25 by default of the container's limit) leaves room for what is not heap: threads, \
                      metaspace, direct buffers.",
            ),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let (death, manner) = departure(reading)?;
    if manner != Manner::OomKilled {
        return None;
    }
    let mut found = finding(reading, &death);
    found.summary = format!("{}: the kernel's OOM killer took it.", story(reading, &death));
    found.fix.push(
        "See `journalctl -k` for who used how much, and whether the limit was a control group's or the host's."
            .to_owned(),
    );
    found.fix.extend(server_advice(&CAUSE, reading));
    Some(found)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::{World, broken_by_exit},
        model::{coverage::Sensor, process::Ending, verdict::Confidence},
    };

    pub(crate) fn taken() -> World {
        let mut world = broken_by_exit(Ending::Signal { signal: 9, core: false });
        world.oom(-300);
        world.signal(-290, 9, None);
        world
    }

    #[test]
    fn the_plain_case() {
        taken().expect("upstream-oom-killed", Confidence::Confirmed);
    }

    #[test]
    fn without_the_oom_record_it_is_a_kill_and_not_certain() {
        let mut world = taken();
        world.case.processes.remove(1);
        world.blind(Sensor::OomKills);
        let explanation = world.expect("upstream-killed", Confidence::Likely);
        assert_eq!(explanation.rivals, ["upstream-oom-killed"]);
    }

    #[test]
    fn another_victim_is_not_it() {
        let mut world = broken_by_exit(Ending::Exit(1));
        world.process(
            -300,
            crate::model::process::ProcessEvent::OomVictim {
                victim: crate::model::process::Pid(5),
                role: crate::model::process::Role::Upstream,
            },
        );
        world.expect("upstream-exited", Confidence::Confirmed);
    }
}
