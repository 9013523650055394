//! What the four causes about a departed process have in common: whose end it was, and which of the four it is.

use super::{
    cause::Finding,
    causes::{ending, signal_name},
    reading::{Death, Reading, Survival, duration, evidence, is_fault, need},
};
use crate::model::{
    coverage::Sensor,
    evidence::{Fact, Weight},
    process::Ending,
    verdict::Need,
};

/// Which of the four it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// It ended by itself.
    Exited,
    /// By a signal of its own making.
    Crashed,
    /// Somebody ended it.
    Killed,
    /// The OOM killer did.
    OomKilled,
}

/// The end of the process that held the connection, if that is what broke it, and in which manner.
pub(super) fn departure<'a>(reading: &Reading<'a>) -> Option<(Box<Death<'a>>, Manner)> {
    reading.broken()?;
    let Survival::Ended(death) = reading.survival() else { return None };
    let manner = manner(&death);
    Some((death, manner))
}

fn manner(death: &Death<'_>) -> Manner {
    if death.oom.is_some() {
        return Manner::OomKilled;
    }
    let foreign =
        death.signal.as_ref().and_then(|(_, _, sender)| sender.as_ref()).is_some_and(|s| s.pid != death.process.0);
    match death.how {
        _ if foreign => Manner::Killed,
        // SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGXCPU, SIGXFSZ, SIGSYS: what a process brings upon itself.
        // And SIGPIPE, where it was its own write that nobody reads.
        Ending::Signal { signal: 4..=8 | 11 | 24 | 25 | 31, .. } => Manner::Crashed,
        Ending::Signal { signal: 13, .. } if death.signal.is_some() => Manner::Crashed,
        Ending::Signal { .. } => Manner::Killed,
        Ending::Exit(_) if caught_fault(death).is_some() => Manner::Crashed,
        Ending::Exit(_) => Manner::Exited,
    }
}

/// The fault of the processor that a handler of the process's own turned into an exit.
pub(super) fn caught_fault(death: &Death<'_>) -> Option<u32> {
    match (&death.signal, death.how) {
        (Some((_, signal, None)), Ending::Exit(_)) if is_fault(*signal) => Some(*signal),
        _ => None,
    }
}

/// The evidence the four share: the end of the process, what was done to it, and the end of the connection that followed.
pub(super) fn finding(reading: &Reading<'_>, death: &Death<'_>) -> Finding {
    let mut finding = Finding::default();
    finding.support(reading.complaint_evidence());
    if let Some((event, signal, sender)) = &death.signal {
        let fact = Fact::Signalled { process: death.process.0, signal: *signal, sender: sender.clone() };
        finding.support(Some(evidence(fact, &[event.id], Weight::Direct)));
    }
    if let Some(event) = death.oom {
        finding.support(Some(evidence(Fact::OomKilled { process: death.process.0 }, &[event.id], Weight::Direct)));
    }
    finding.support(reading.accepted_over_unix());
    if death.unaccepted {
        finding.support(reading.unaccepted_evidence());
        if reading.another_ended_before(death.process.0) {
            let what = "why the last process of that server ended: another one had failed just before";
            finding.missing.push(Need { sensor: None, what: what.to_owned() });
        }
    }
    if let Some(event) = death.held {
        let fact = Fact::HeldAtEnd { process: death.process.clone() };
        finding.support(Some(evidence(fact, &[event], Weight::Direct)));
    }
    let ended = Fact::ProcessEnded { process: death.process.clone(), how: death.how };
    finding.support(Some(evidence(ended, &[death.event.id], Weight::Direct)));
    let (close, reset) = (reading.close(), reading.reset());
    finding.support(close.as_ref().map(|close| close.evidence(Weight::Symptom)));
    finding.support(reset.as_ref().map(|reset| reading.reset_evidence(reset, Weight::Symptom)));
    if !death.order_known {
        finding
            .missing
            .push(need(Sensor::SocketStates, "the kernel's record of the connection's end, after that of the process"));
    }
    finding.support(reading.answer_evidence());
    finding
}

/// Who, and how long before the connection broke.
pub(super) fn story(reading: &Reading<'_>, death: &Death<'_>) -> String {
    let (pid, command) = &death.process;
    let (upstream, how) = (reading.upstream_name(), ending(death.how));
    let who = if death.unaccepted {
        format!("{command} (pid {pid}), in whose accept queue at {upstream} this connection waited")
    } else {
        format!("{command} (pid {pid}), which held this connection at {upstream}")
    };
    if death.closed_first {
        let after = death.event.at.latest.since_ns(reading.ended_at()) / 1_000;
        return format!("{who}, closed it unanswered and ended ({how}) {} later", duration(after));
    }
    let before = reading.ended_at().since_ns(death.event.at.latest) / 1_000;
    format!("{who}, ended ({how}) {} before the connection broke", duration(before))
}

/// Without a view of signals, what looks like the process's own doing can be another's.
pub(super) fn signals_needed(finding: &mut Finding, reading: &Reading<'_>, death: &Death<'_>) {
    if death.signal.is_none() && !reading.sees(Sensor::Signals) {
        finding.missing.push(need(Sensor::Signals, "whether somebody had sent the process a signal"));
        finding.not_excluded(&["upstream-killed"]);
    }
}

/// `SIGTERM from systemd (pid 1)`.
pub(super) fn signal_from(death: &Death<'_>) -> Option<String> {
    death.signal.as_ref().map(|(_, signal, sender)| {
        let name = signal_name(*signal);
        match sender {
            Some(sender) => format!("{name} from {} (pid {})", sender.command, sender.pid),
            None => format!("{name} from the kernel"),
        }
    })
}
