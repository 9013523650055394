//! `upstream-killed`: somebody ended the process that held the connection.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        departure::{Manner, departure, finding, signal_from, story},
        reading::{Death, Reading, need},
    },
    server_advice, signal_name,
};
use crate::model::{coverage::Sensor, process::Ending, verdict::Need};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "upstream-killed",
    title: "somebody killed the upstream's process",
    family: Family::Connection,
    statuses: &[502],
    depth: Depth::ProcessKilled,
    page: Page {
        happened: "Another process sent a signal to the one that held this connection, and it ended under the running request: a \
                   supervisor that restarts it, a master that gives up on a slow worker, a deployment, a person. How it then ended \
                   does not matter: gunicorn's arbiter sends SIGABRT to a worker past its timeout, which a handler turns into exit(1).",
        proof: "The signal with its sender, then the end of the very process that had accepted this connection, then the FIN or RST.",
        refuted: "The OOM killer's record for the process (upstream-oom-killed); a signal that the process sent to itself \
                  (upstream-crashed).",
        remedies: &[
            ("nginx", "proxy_next_upstream error (the default) tries another server, except for POST, LOCK and PATCH."),
            (
                "systemd",
                "TimeoutStopSec (90 s) before SIGKILL, KillMode=mixed for servers with workers; stop by the server's own \
                         graceful signal (KillSignal=).",
            ),
            (
                "gunicorn",
                "A signal from the arbiter (the parent) is WORKER TIMEOUT: --timeout (30 s) exceeded by one request; raise \
                          it, or use gthread workers. --graceful-timeout (30 s) bounds a reload.",
            ),
            (
                "uvicorn",
                "--timeout-graceful-shutdown (from 0.22) bounds the wait for running requests; the default waits without end, the supervisor may not.",
            ),
            (
                "Node.js",
                "Handle SIGTERM with server.close() and wait; containers send SIGKILL after 10 s (docker stop) or 30 s (pods).",
            ),
            ("Puma", "worker_timeout (60 s) lets the master end a worker that does not check in."),
            (
                "php-fpm",
                "request_terminate_timeout ends a slow child by SIGTERM; process_control_timeout (0) lets children finish on reload.",
            ),
            ("uWSGI", "--harakiri kills a worker whose request takes too long; --worker-reload-mercy (60 s)."),
            ("Go", "signal.NotifyContext and http.Server.Shutdown let running requests finish."),
            (
                "Java",
                "server.shutdown=graceful, spring.lifecycle.timeout-per-shutdown-phase (30 s), and a longer grace period outside.",
            ),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let (death, manner) = departure(reading)?;
    if manner != Manner::Killed {
        return None;
    }
    let mut found = finding(reading, &death);
    if death.signal.is_none() {
        found.missing.push(need(Sensor::Signals, "who sent the signal"));
    }
    if death.may_be_its_own() {
        found
            .missing
            .push(Need { sensor: None, what: "whether the signal was why it ended: its own log says".to_owned() });
        found.not_excluded(&["upstream-exited"]);
    }
    let sigkill = matches!(death.how, Ending::Signal { signal: 9, .. });
    let by_process = death.signal.as_ref().is_some_and(|(_, _, sender)| sender.is_some());
    if sigkill && !by_process && !reading.sees(Sensor::OomKills) {
        found.missing.push(need(Sensor::OomKills, "whether the OOM killer chose the process"));
        found.not_excluded(&["upstream-oom-killed"]);
    }
    describe(&mut found, reading, &death);
    Some(found)
}

/// What the masters of servers do so to their own workers: the name, the signal, what it means.
const HABITS: [(&str, u32, &str); 3] = [
    // <https://github.com/benoitc/gunicorn/blob/20.1.0/gunicorn/arbiter.py#L486-L504>
    ("gunicorn", 6, " This is gunicorn's WORKER TIMEOUT: the request took longer than --timeout (30 s by default)."),
    // <https://github.com/php/php-src/blob/php-8.2.0/sapi/fpm/fpm/fpm_request.c#L250-L280>
    (
        "php-fpm",
        15,
        " So php-fpm's master ends a child whose request took longer than request_terminate_timeout (off by default), and all of \
         them when it is stopped or reloaded.",
    ),
    // <https://github.com/unbit/uwsgi/blob/2.0.21/core/master_utils.c#L36-L100>
    (
        "uwsgi",
        9,
        " So uWSGI's master ends a worker whose request took longer than --harakiri (off by default), or than --worker-reload-mercy \
         when it reloads.",
    ),
];

fn describe(found: &mut Finding, reading: &Reading<'_>, death: &Death<'_>) {
    let (pid, command) = &death.process;
    let sender = death.signal.as_ref().and_then(|(_, signal, sender)| sender.as_ref().map(|sender| (*signal, sender)));
    let own_doing = sender.filter(|(_, sender)| sender.pid == *pid);
    let timer = match death.how {
        // Not recorded (probe-ebpf/src/kernel/process.rs): timers send them all the time.
        Ending::Signal { signal: signal @ (14 | 26 | 27), .. } => Some(signal_name(u32::from(signal))),
        _ => None,
    };
    let by = match (own_doing, signal_from(death), timer) {
        (Some((signal, _)), ..) => format!("by {}, which it sent to itself", signal_name(signal)),
        (None, Some(signal), _) => format!("by {signal}"),
        (None, None, Some(name)) => {
            format!("by {name}: a timer of its own, or somebody sent that; who sends this signal is not recorded")
        }
        (None, None, None) => "by a signal whose sender was not seen".to_owned(),
    };
    found.summary = format!("{}: it was ended {by}.", story(reading, death));
    if let Some((signal, sender)) = sender.filter(|(_, sender)| sender.command == *command && sender.pid != *pid) {
        let habit = HABITS.iter().find(|(command, by, _)| signal == *by && sender.command.contains(command));
        let habit = habit.map_or("", |(_, _, text)| text);
        found.say(format_args!(" The sender is the server's own {} (pid {}).{habit}", sender.command, sender.pid));
    }
    found.fix.push(match (own_doing, sender) {
        (Some((signal, _)), _) => {
            format!("Find out why {command} sends {} to itself: look into its log and its code.", signal_name(signal))
        }
        (None, Some((_, sender))) => format!(
            "Find out why {} (pid {}) ended it, and let it wait for running requests.",
            sender.command, sender.pid
        ),
        (None, None) if !reading.sees(Sensor::Signals) => {
            "Find out who ended it: with the signal sensor on (see `probe502 doctor`) the sender is named.".to_owned()
        }
        (None, None) => format!("Find out who ended it: look into the log of {command}, and of what supervises it."),
    });
    found.fix.extend(server_advice(&CAUSE, reading));
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::{SERVER, World, broken_by_exit, closed_by_handler, listener_closed, unaccepted},
        model::{
            coverage::Sensor,
            process::{Ending, Pid},
            verdict::Confidence,
        },
    };

    const KILLED: Ending = Ending::Signal { signal: 9, core: false };

    pub(crate) fn killed() -> World {
        let mut world = broken_by_exit(KILLED);
        world.signal(-200, 9, Some((1, "systemd")));
        world
    }

    #[test]
    fn the_plain_case_names_the_sender() {
        let explanation = killed().expect("upstream-killed", Confidence::Confirmed);
        assert!(explanation.summary.contains("SIGKILL from systemd (pid 1)"), "{}", explanation.summary);
    }

    #[test]
    fn gunicorns_worker_timeout() {
        let mut world = broken_by_exit(Ending::Exit(1));
        world.signal(-900, 6, Some((80, "gunicorn")));
        let explanation = world.expect("upstream-killed", Confidence::Confirmed);
        assert!(explanation.summary.contains("WORKER TIMEOUT"), "{}", explanation.summary);
    }

    #[test]
    fn a_signal_that_the_handler_sent_on_to_its_own_process() {
        let mut world = broken_by_exit(Ending::Signal { signal: 15, core: false });
        world.signal(-300, 15, Some((80, "php-fpm8.2")));
        world.signal(-290, 15, Some((88, "php-fpm8.2")));
        let explanation = world.expect("upstream-killed", Confidence::Confirmed);
        assert!(explanation.summary.contains("SIGTERM from php-fpm8.2 (pid 80)"), "{}", explanation.summary);
    }

    #[test]
    fn a_handler_closes_the_connection_and_the_end_comes_later() {
        let mut world = closed_by_handler(Ending::Exit(1));
        world.signal(-600, 6, Some((80, "gunicorn")));
        let explanation = world.expect("upstream-killed", Confidence::Confirmed);
        assert!(explanation.summary.contains("WORKER TIMEOUT"), "{}", explanation.summary);
        assert!(explanation.summary.contains("closed it unanswered and ended"), "{}", explanation.summary);
    }

    #[test]
    fn a_handler_whose_end_was_not_seen_leaves_it_open() {
        let mut world = closed_by_handler(Ending::Exit(1));
        world.signal(-600, 6, Some((80, "gunicorn")));
        world.case.processes.remove(0);
        let explanation = world.expect("premature-close", Confidence::Likely);
        assert!(explanation.rivals.contains(&"upstream-killed"), "{:?}", explanation.rivals);
    }

    #[test]
    fn a_close_before_the_end_is_nobodys_doing_without_a_signal_before_it() {
        closed_by_handler(Ending::Exit(1)).expect("upstream-exited", Confidence::Likely);
        let mut later = closed_by_handler(Ending::Exit(1));
        later.signal(10_000, 15, Some((80, "gunicorn")));
        later.expect("premature-close", Confidence::Confirmed);
        let mut long_ago = closed_by_handler(Ending::Exit(1));
        long_ago.signal(-10_000_000, 15, Some((80, "gunicorn")));
        long_ago.expect("premature-close", Confidence::Confirmed);
    }

    pub(crate) fn killed_unaccepted() -> World {
        let mut world = unaccepted(SERVER);
        world.signal(-200, 9, Some((1, "systemd")));
        world.exit(-120, KILLED);
        world.case.processes.sort_by_key(|event| event.at.latest);
        world
    }

    /// With the listener the kernel closes what waits in its queue; nobody had accepted it, and so nobody but the listener held it.
    #[test]
    fn a_connection_that_waited_in_the_queue() {
        let explanation = killed_unaccepted().expect("upstream-killed", Confidence::Confirmed);
        assert!(explanation.summary.contains("in whose accept queue at 127.0.0.1:8000"), "{}", explanation.summary);
        assert!(explanation.summary.contains("SIGKILL from systemd (pid 1)"), "{}", explanation.summary);
    }

    #[test]
    fn of_two_listeners_on_one_address_nobody_knows_whose_queue_it_was() {
        let mut world = killed_unaccepted();
        listener_closed(&mut world, -90, Pid(89));
        let explanation = world.expect("upstream-reset", Confidence::Likely);
        assert!(explanation.rivals.contains(&"upstream-killed"), "{:?}", explanation.rivals);
    }

    #[test]
    fn without_sight_of_accept_it_may_have_been_taken() {
        let mut world = killed_unaccepted();
        world.blind(Sensor::Syscalls);
        let explanation = world.expect("upstream-reset", Confidence::Likely);
        assert!(explanation.rivals.contains(&"upstream-killed"), "{:?}", explanation.rivals);
    }

    #[test]
    fn the_oom_killer_says_more() {
        let mut world = killed();
        world.oom(-250);
        world.expect("upstream-oom-killed", Confidence::Confirmed);
    }

    #[test]
    fn a_term_long_ago_is_not_what_ended_it() {
        let mut world = broken_by_exit(Ending::Exit(1));
        world.signal(-60_000_000, 15, Some((1, "systemd")));
        world.expect("upstream-exited", Confidence::Confirmed);
    }

    #[test]
    fn without_the_sender_it_is_likely() {
        let mut world = killed();
        world.case.processes.remove(1);
        world.blind(Sensor::Signals).blind(Sensor::OomKills);
        let explanation = world.expect("upstream-killed", Confidence::Likely);
        assert_eq!(explanation.rivals, ["upstream-oom-killed"]);
    }

    /// It had a handler that did not end it, or had the signal blocked: its exit seconds later need not have to do with it.
    #[test]
    fn an_exit_long_after_the_signal_may_be_its_own() {
        for (code, us, confidence) in [
            (3, -3_000_000, Confidence::Likely),
            (3, -100_000, Confidence::Confirmed),
            (0, -3_000_000, Confidence::Confirmed),
            (143, -3_000_000, Confidence::Confirmed),
        ] {
            let mut world = broken_by_exit(Ending::Exit(code));
            world.signal(us, 15, Some((4711, "deploy")));
            world.case.processes.sort_by_key(|event| event.at.latest);
            let explanation = world.expect("upstream-killed", confidence);
            assert_eq!(explanation.rivals.contains(&"upstream-exited"), confidence == Confidence::Likely);
        }
    }
}
