//! What is said where a process of the upstream could not run: who, since when, by whose doing, and how to let it go on.

use super::{
    cause::Finding,
    causes::signal_name,
    reading::{Reading, Sent, Standstill, Still, duration, evidence},
};
use crate::model::{
    evidence::{Evidence, Fact, Weight},
    process::{Halt, SIGSTOP},
};

/// So many processes are named.
const NAMED: usize = 3;

/// Adds it to a finding that it explains. Whether there was anything to say.
pub(super) fn remark_standstill(finding: &mut Finding, reading: &Reading<'_>) -> bool {
    let Some(standstill) = reading.standstill() else { return false };
    for still in standstill.processes.iter().take(NAMED) {
        for evidence in evidence_of(still, &standstill) {
            // The look at who has the connection may have been told already.
            if !finding.because.iter().any(|known| known.events == evidence.events) {
                finding.because.push(evidence);
            }
        }
    }
    say(finding, reading, &standstill);
    if let Some(fix) = fix(&standstill) {
        finding.fix.insert(0, fix);
    }
    true
}

fn evidence_of(still: &Still<'_>, standstill: &Standstill<'_>) -> Vec<Evidence> {
    let (pid, command) = still.process;
    let sent = [still.stopped, still.continued].into_iter().flatten().map(|sent| {
        let fact = Fact::Signalled { process: pid, signal: sent.signal, sender: sent.sender.cloned() };
        evidence(fact, &[sent.event.id], Weight::Fits)
    });
    let found = still.halt.zip(standstill.look).map(|(halt, look)| {
        let state = if matches!(halt, Halt::Traced(_)) { 't' } else { 'T' };
        let (wait_channel, call) = (None, None);
        let fact = Fact::ProcessState {
            process: (pid, command.to_owned()),
            state,
            wait_channel,
            call,
            halt: Some(halt.clone()),
        };
        evidence(fact, &[look], Weight::Fits)
    });
    sent.chain(found).collect()
}

fn say(finding: &mut Finding, reading: &Reading<'_>, standstill: &Standstill<'_>) {
    let Some(first) = standstill.processes.first() else { return };
    let names: Vec<String> = standstill.processes.iter().take(NAMED).map(name).collect();
    let names = names.join(", ");
    let still = if standstill.processes.iter().all(|one| one.halt.is_none()) { "stood still" } else { "stands still" };
    let (many, how) = (standstill.processes.len(), how(reading, first));
    match standstill.of {
        None | Some(1) => finding.say(format_args!(" {names} {still}: {how}.")),
        Some(of) if of == many => {
            finding.say(format_args!(" All {of} processes that may accept there stand still ({names}): {how}."));
        }
        Some(usize::MAX) => finding.say(format_args!(
            " Of the processes that may accept there {many} at least {} still ({names}): {how}.",
            if many == 1 { "stands" } else { "stand" }
        )),
        Some(of) => finding.say(format_args!(
            " {many} of the {of} processes that may accept there {} still ({names}): {how}.",
            if many == 1 { "stands" } else { "stand" }
        )),
    }
}

fn name(still: &Still<'_>) -> String {
    format!("{} (pid {})", still.process.1, still.process.0)
}

/// What made it stand still.
fn how(reading: &Reading<'_>, still: &Still<'_>) -> String {
    match (still.halt, still.stopped, still.continued) {
        (Some(Halt::Frozen(switch)), ..) => format!("its control group is frozen ({switch})"),
        (Some(Halt::Traced(Some(debugger))), ..) => {
            format!("{} (pid {}) holds it as a debugger does", debugger.command, debugger.pid)
        }
        (Some(Halt::Traced(None)), ..) => "a debugger holds it".to_owned(),
        (_, Some(stopped), None) => format!("{} {}", from(&stopped), when(reading, &stopped)),
        (_, Some(stopped), Some(continued)) => {
            let lasted = continued.event.at.latest.since_ns(stopped.event.at.latest) / 1_000;
            let (stop, go_on) = (from(&stopped), from(&continued));
            format!("{stop} {}, and {} later {go_on}", when(reading, &stopped), duration(lasted))
        }
        (_, None, _) => {
            "it was stopped when it was looked at (SIGSTOP, or a terminal's SIGTSTP); who did that was not \
                         seen"
                .to_owned()
        }
    }
}

/// `SIGSTOP from bash (pid 99)`.
fn from(sent: &Sent<'_>) -> String {
    let name = signal_name(sent.signal);
    match sent.sender {
        Some(sender) => format!("{name} from {} (pid {})", sender.command, sender.pid),
        // The kernel sends it for who attaches to a process; the others it sends for a terminal.
        None if sent.signal == SIGSTOP => format!("{name} as a debugger attached to it"),
        None => format!("{name} from the kernel"),
    }
}

fn when(reading: &Reading<'_>, sent: &Sent<'_>) -> String {
    let at = sent.event.at.latest;
    match reading.started().filter(|started| at < *started) {
        Some(started) => format!("{} before this attempt began", duration(started.since_ns(at) / 1_000)),
        None => format!("{} before nginx gave up", duration(reading.failed_at().since_ns(at) / 1_000)),
    }
}

fn fix(standstill: &Standstill<'_>) -> Option<String> {
    let first = standstill.processes.first()?;
    let by = first.stopped.and_then(|stopped| stopped.sender);
    let by = by.map(|sender| format!("{} (pid {})", sender.command, sender.pid));
    let stopped = |one: &&Still<'_>| matches!(one.halt, Some(Halt::Stopped));
    let pids: Vec<String> = standstill.processes.iter().filter(stopped).map(|one| one.process.0.to_string()).collect();
    Some(match (first.halt, by) {
        (Some(Halt::Frozen(switch)), _) => {
            let word = if switch.ends_with("freezer.state") { "THAWED" } else { "0" };
            format!(
                "Thaw the control group: `echo {word} > {switch}`, or by whatever froze it (`docker unpause`, `systemctl thaw`)."
            )
        }
        (Some(Halt::Traced(_)), _) => format!("Let the debugger go on, or detach it from {}.", name(first)),
        (Some(Halt::Stopped), by) => {
            let who = by.map_or_else(|| "who stopped it".to_owned(), |by| format!("why {by} stopped it"));
            let only = if standstill.is_whole() { "" } else { " (if they are the ones that accept)" };
            format!("`kill -CONT {}` lets it go on{only}; then find out {who}.", pids.join(" "))
        }
        (None, by) => format!("Find out why {} stopped it.", by.unwrap_or_else(|| "somebody".to_owned())),
    })
}
