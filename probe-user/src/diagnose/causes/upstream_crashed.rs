//! `upstream-crashed`: the process that held the connection died by a signal of its own making.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        departure::{Manner, caught_fault, departure, finding, signals_needed, story},
        reading::Reading,
    },
    server_advice, signal_name,
};
use crate::model::process::Ending;

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "upstream-crashed",
    title: "the upstream's process crashed",
    family: Family::Connection,
    statuses: &[502],
    depth: Depth::ProcessCrash,
    page: Page {
        happened: "The process that held this connection was ended by a signal that it brought upon itself: a bad memory access \
                   (SIGSEGV, SIGBUS), an illegal instruction or system call (SIGILL, SIGSYS), abort() (SIGABRT), arithmetic (SIGFPE). \
                   The kernel closed its sockets, and nginx saw a FIN or RST.",
        proof: "The end of the very process that had accepted this connection, by such a signal which no other process had sent, \
                just before the FIN or RST.",
        refuted: "The same signal sent by another process (upstream-killed), or by the OOM killer (upstream-oom-killed).",
        remedies: &[
            (
                "any server",
                "Get the core: coredumpctl gdb PID, or /proc/sys/kernel/core_pattern; ulimit -c unlimited (systemd: \
                            LimitCORE=infinity). `dmesg` names the faulting library. Suspect native extensions first.",
            ),
            (
                "nginx",
                "proxy_next_upstream error (the default) tries another server, except for POST, LOCK and PATCH; a request that \
                       crashes one server will crash the next: proxy_next_upstream_tries 2 limits the damage.",
            ),
            ("gunicorn", "PYTHONFAULTHANDLER=1 prints the Python stack of a crash; the arbiter starts a new worker."),
            ("uvicorn", "PYTHONFAULTHANDLER=1."),
            (
                "Node.js",
                "SIGABRT is an out-of-memory of V8: --max-old-space-size; --report-on-fatalerror writes a report.",
            ),
            ("Puma", "Ruby prints the native stack of a crash to stderr."),
            (
                "php-fpm",
                "rlimit_core = unlimited and catch_workers_output = yes in the pool; try without opcache.jit and extensions.",
            ),
            (
                "uWSGI",
                "Its handler writes a backtrace of the worker to the log and ends it with status 1; --use-abort makes a core instead.",
            ),
            ("Go", "GOTRACEBACK=crash makes a core; SIGABRT follows a fatal runtime error; cgo is the usual suspect."),
            ("Java", "hs_err_pidN.log in the working directory names the frame."),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let (death, manner) = departure(reading)?;
    if manner != Manner::Crashed {
        return None;
    }
    let mut found = finding(reading, &death);
    signals_needed(&mut found, reading, &death);
    found.summary = format!("{}: it crashed.", story(reading, &death));
    let (pid, command) = &death.process;
    if let Some(signal) = caught_fault(&death) {
        let name = signal_name(signal);
        found.say(format_args!(" The kernel had sent it {name}, and a handler of its own made an exit of it."));
    }
    let broken = match death.how {
        Ending::Signal { signal, .. } => {
            rule_broken(signal).map(|(what, remedy)| (signal_name(signal.into()), what, remedy))
        }
        Ending::Exit(_) => None,
    };
    if let Some((name, what, _)) = &broken {
        found.say(format_args!(" {name} means that {what}."));
    }
    found.fix.push(match death.how {
        Ending::Exit(_) => format!(
            "{command} catches the signal itself: read what it wrote to its log, and let it make a core (uWSGI: --use-abort)."
        ),
        Ending::Signal { .. } if let Some((.., remedy)) = broken => remedy.to_owned(),
        Ending::Signal { core: true, .. } => {
            format!("A core was dumped: `coredumpctl gdb {pid}`, or the file that core_pattern names.")
        }
        Ending::Signal { .. } => format!(
            "No core was dumped: let {command} make one (LimitCORE=infinity, ulimit -c unlimited), and read `dmesg`."
        ),
    });
    found.fix.extend(server_advice(&CAUSE, reading));
    Some(found)
}

/// Signals by which the kernel ends who breaks a rule that somebody has set: not a fault of the program's code.
const fn rule_broken(signal: u8) -> Option<(&'static str, &'static str)> {
    match signal {
        24 => Some((
            "it had used up the processor time it is allowed (RLIMIT_CPU)",
            "Find who limits it, and whether its work is meant to take so long: LimitCPU= of its unit, `ulimit -t`, setrlimit() in its code.",
        )),
        25 => Some((
            "a file it wrote reached the size it is allowed (RLIMIT_FSIZE), a log perhaps",
            "Find the large file (`ls -l /proc/PID/fd` of its successor) and who limits it: LimitFSIZE= of its unit, `ulimit -f`.",
        )),
        31 => Some((
            "it made a system call that a seccomp filter forbids",
            "Find which call (`dmesg`, or audit: type=SECCOMP) and whose filter: SystemCallFilter= of its unit, the container's seccomp profile.",
        )),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::{World, broken_by_exit},
        model::{
            coverage::Sensor,
            event::Body,
            process::{Ending, ProcessEvent},
            verdict::Confidence,
        },
    };

    pub(crate) fn crashed() -> World {
        let mut world = broken_by_exit(Ending::Signal { signal: 11, core: true });
        world.signal(-130, 11, None);
        world
    }

    #[test]
    fn the_plain_case() {
        let explanation = crashed().expect("upstream-crashed", Confidence::Confirmed);
        assert!(explanation.summary.contains("SIGSEGV, core dumped"), "{}", explanation.summary);
        assert!(explanation.fix[0].contains("coredumpctl gdb 88"));
    }

    #[test]
    fn a_limit_that_was_reached_is_named() {
        for (signal, word) in [(24, "RLIMIT_CPU"), (25, "RLIMIT_FSIZE"), (31, "seccomp")] {
            let mut world = broken_by_exit(Ending::Signal { signal, core: false });
            world.signal(-130, signal.into(), None);
            let explanation = world.expect("upstream-crashed", Confidence::Confirmed);
            assert!(explanation.summary.contains(word), "{}", explanation.summary);
            assert!(explanation.fix[0].starts_with("Find "), "{:?}", explanation.fix);
        }
    }

    #[test]
    fn a_fault_that_a_handler_turned_into_an_exit() {
        let mut world = broken_by_exit(Ending::Exit(1));
        world.signal(-900, 11, None);
        let explanation = world.expect("upstream-crashed", Confidence::Confirmed);
        assert!(explanation.summary.contains("sent it SIGSEGV"), "{}", explanation.summary);
        let mut orderly = broken_by_exit(Ending::Exit(0));
        orderly.signal(-900, 11, None);
        orderly.expect("upstream-exited", Confidence::Confirmed);
        let mut long_ago = broken_by_exit(Ending::Exit(1));
        long_ago.signal(-5_000_000, 11, None);
        long_ago.expect("upstream-exited", Confidence::Confirmed);
    }

    #[test]
    fn the_java_machine_takes_faults_for_its_own_ends() {
        let mut world = broken_by_exit(Ending::Exit(1));
        world.signal(-900, 11, None);
        for event in &mut world.case.processes {
            if let Body::Process(ProcessEvent::Exited { command, .. }) = &mut event.body {
                "java".clone_into(command);
            }
        }
        world.expect("upstream-exited", Confidence::Confirmed);
    }

    #[test]
    fn abort_is_sent_by_the_process_to_itself() {
        let mut world = broken_by_exit(Ending::Signal { signal: 6, core: false });
        world.signal(-130, 6, Some((88, "gunicorn")));
        world.expect("upstream-crashed", Confidence::Confirmed);
    }

    #[test]
    fn the_same_signal_from_another_process_is_not_it() {
        let mut world = broken_by_exit(Ending::Signal { signal: 11, core: false });
        world.signal(-130, 11, Some((4711, "bash")));
        world.expect("upstream-killed", Confidence::Confirmed);
    }

    #[test]
    fn without_sight_of_signals_somebody_can_have_sent_it() {
        let mut world = broken_by_exit(Ending::Signal { signal: 11, core: false });
        world.blind(Sensor::Signals);
        let explanation = world.expect("upstream-crashed", Confidence::Likely);
        assert_eq!(explanation.rivals, ["upstream-killed"]);
    }

    #[test]
    fn without_the_exit_only_the_close_is_left_and_not_certain() {
        let mut world = crashed();
        world.case.processes.clear();
        world.case.coverage.events_lost = 2;
        world.expect("premature-close", Confidence::Likely);
    }
}
