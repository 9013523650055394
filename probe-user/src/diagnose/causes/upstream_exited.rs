//! `upstream-exited`: the process that held the connection ended by itself.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        departure::{Manner, departure, finding, signals_needed, story},
        reading::Reading,
    },
    server_advice,
};
use crate::model::process::Ending;

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "upstream-exited",
    title: "the upstream's process ended by itself",
    family: Family::Connection,
    statuses: &[502],
    depth: Depth::ProcessGone,
    page: Page {
        happened: "The process that held this connection called exit() while nginx waited for its answer; the kernel closed its \
                   sockets, and nginx saw a FIN or RST. Worker recycling, an unhandled error, or the end of a deployment.",
        proof: "The end of the very process that had accepted this connection, without a signal, just before the FIN or RST.",
        refuted: "A signal from another process shortly before (upstream-killed, even where a handler turned it into an exit); \
                  another process that held the connection.",
        remedies: &[
            ("nginx", "proxy_next_upstream error (the default) tries another server, except for POST, LOCK and PATCH."),
            (
                "gunicorn",
                "--max-requests (0) with --max-requests-jitter recycles workers; status 3 means that a worker could not \
                          boot, 4 that the application could not be loaded: on either the arbiter stops the whole server, also \
                          where the application itself called os._exit(3).",
            ),
            ("uvicorn", "--limit-max-requests ends the process; leave restarts to a supervisor that keeps several."),
            (
                "Node.js",
                "process.exit() in a handler, or status 1 after an uncaught exception; let a process manager restart, and close \
                         the server with server.close() first.",
            ),
            ("Puma", "worker_shutdown_timeout (30 s); puma_worker_killer and the like end workers on purpose."),
            ("php-fpm", "pm.max_requests recycles children between requests; the pool's log says `exited with code`."),
            ("uWSGI", "--max-requests with --worker-reload-mercy (60 s); --evil-reload-on-rss does not wait."),
            (
                "Go",
                "log.Fatal and os.Exit end the process under running requests; use http.Server.Shutdown. Status 2 is a panic.",
            ),
            (
                "Java",
                "System.exit(), or -XX:+ExitOnOutOfMemoryError (status 3); server.shutdown=graceful in Spring Boot.",
            ),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let (death, manner) = departure(reading)?;
    if manner != Manner::Exited {
        return None;
    }
    let mut found = finding(reading, &death);
    signals_needed(&mut found, reading, &death);
    if death.closed_first {
        // It had let go of the connection before: whether it did so in order to end, its own log says.
        found.not_excluded(&["premature-close"]);
    }
    found.summary = format!("{}.", story(reading, &death));
    let command = &death.process.1;
    found.fix.push(match death.how {
        Ending::Exit(0) => format!(
            "Status 0 is an orderly end: find what told {command} to stop, and let it finish its requests first."
        ),
        _ => format!(
            "Look into the log of {command} just before this time: it ended with an error under a running request."
        ),
    });
    found.fix.extend(server_advice(&CAUSE, reading));
    Some(found)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::{SERVER, World, broken_by_exit, closed_by_handler, unaccepted},
        model::{
            coverage::Sensor,
            event::Body,
            process::{Ending, Pid, ProcessEvent, Role, Untaken},
            verdict::Confidence,
        },
    };

    pub(crate) fn exited() -> World {
        broken_by_exit(Ending::Exit(1))
    }

    #[test]
    fn the_plain_case() {
        let explanation = exited().expect("upstream-exited", Confidence::Confirmed);
        assert!(explanation.summary.contains("gunicorn (pid 88)"), "{}", explanation.summary);
        assert!(explanation.summary.contains("exit status 1"), "{}", explanation.summary);
    }

    /// sys.exit(3) in a handler: Python closes what is open, and ends some milliseconds later.
    #[test]
    fn one_that_closed_first_and_then_failed_is_likely() {
        let explanation = closed_by_handler(Ending::Exit(3)).expect("upstream-exited", Confidence::Likely);
        assert!(explanation.summary.contains("closed it unanswered and ended (exit status 3) 20."), "{explanation:?}");
        assert_eq!(explanation.rivals, ["premature-close"]);
    }

    /// The last one with the listener ends in order because another of the server's processes has failed: which of the two it was is open.
    #[test]
    fn a_server_that_gave_up_after_a_failure_of_another_process() {
        let mut world = unaccepted(SERVER);
        world.exit(-120, Ending::Exit(0));
        world.expect("upstream-exited", Confidence::Confirmed);
        let (pid, role, command) = (Pid(80), Role::Upstream, "gunicorn".to_owned());
        let how = Ending::Signal { signal: 11, core: false };
        world.process(-900_000, ProcessEvent::Exited { pid, role, command, how, untaken: Untaken::default() });
        world.expect("upstream-exited", Confidence::Likely);
    }

    #[test]
    fn a_signal_from_another_process_makes_it_killed() {
        let mut world = exited();
        world.signal(-900, 6, Some((80, "gunicorn")));
        world.expect("upstream-killed", Confidence::Confirmed);
    }

    /// A signal that was still waiting when the process ended had been blocked: it has not heard of it.
    #[test]
    fn a_blocked_signal_is_not_why_it_ended() {
        let blocked = |signals: &[i64]| {
            let mut world = exited();
            for event in &mut world.case.processes {
                if let Body::Process(ProcessEvent::Exited { untaken, .. }) = &mut event.body {
                    *untaken = Untaken(1 << 15);
                }
            }
            for us in signals {
                world.signal(*us, 15, Some((80, "deploy")));
            }
            world.case.processes.sort_by_key(|event| event.at.latest);
            world
        };
        blocked(&[-500_000]).expect("upstream-exited", Confidence::Confirmed);
        // Of two, the first may have been taken.
        let explanation = blocked(&[-500_000, -400_000]).expect("upstream-killed", Confidence::Likely);
        assert_eq!(explanation.rivals, ["upstream-exited"]);
    }

    #[test]
    fn a_signal_that_does_not_ask_to_end_changes_nothing() {
        let mut world = exited();
        world.signal(-900, 17, Some((80, "gunicorn")));
        world.expect("upstream-exited", Confidence::Confirmed);
    }

    #[test]
    fn an_exit_long_before_the_close_is_not_it() {
        let mut world = exited();
        world.case.processes.clear();
        world.exit(-9_000_000, Ending::Exit(1));
        world.expect("premature-close", Confidence::Confirmed);
    }

    #[test]
    fn without_sight_of_signals_it_is_likely() {
        let mut world = exited();
        world.blind(Sensor::Signals);
        let explanation = world.expect("upstream-exited", Confidence::Likely);
        assert_eq!(explanation.rivals, ["upstream-killed"]);
    }

    #[test]
    fn without_the_exit_only_the_close_is_left_and_not_certain() {
        let mut world = exited();
        world.case.processes.clear();
        world.blind(Sensor::Processes);
        let explanation = world.expect("premature-close", Confidence::Likely);
        assert!(explanation.rivals.contains(&"upstream-exited"));
    }
}
