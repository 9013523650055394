//! A storm: nobody listens at the upstream, and every request fails as fast as clients can ask. Every failure is counted, those that are told
//! one by one are right, and the end comes soon.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use probe_tests::bench::stage::{Load, Stage};
use probe_tests::bench::wrk::CONNECTIONS;
use probe_tests::line::{Confidence, Line};
use probe_tests::probe::{Ended, Probe};

/// From the order to end to the end: a build without optimisation is ten times as slow as what is shipped.
const ENDS_WITHIN: Duration = Duration::from_secs(45);

/// The counts of the notices `what`.
fn noticed(ended: &Ended, what: &str) -> u64 {
    let count = |line: &Result<Line, String>| match line {
        Ok(Line::Notice(notice)) if notice.what == what => notice.count,
        _ => None,
    };
    ended.lines.iter().filter_map(|arrived| count(&arrived.line)).sum()
}

#[test]
fn every_failure_of_a_storm_is_counted_and_those_that_are_explained_are_right() -> Result<()> {
    let stage = Stage::set_up(false)?;
    let probe = Probe::watch_nginx(stage.nginx().master(), &["-q"])?;
    let asked = stage.load(Load::Storm, 1)?;
    ensure!(asked.failed > 0 && asked.failed == asked.requests, "every request fails: {asked:?}");
    probe.signal(Signal::SIGINT)?;
    let ended = probe.wait_end(ENDS_WITHIN)?;
    let summary = ended.summary()?;
    let mut told: u64 = 0;
    for arrived in &ended.lines {
        let Ok(Line::Incident(incident)) = &arrived.line else { continue };
        told += 1;
        // With something lost it may be less sure of itself, and may not be wrong.
        let confirmed = incident.verdict.confidence == Confidence::Confirmed;
        let right = confirmed && incident.verdict.cause == "upstream-refused";
        let lost = incident.losses.events_lost + incident.losses.packets_dropped;
        ensure!(right || (lost > 0 && !confirmed), "with {lost} lost a refused connection is {}", arrived.text);
    }
    let folded = noticed(&ended, "folded");
    ensure!(told > 0 && told + folded == summary.incidents, "{told} told, {folded} folded: {summary:?}");
    ensure!(folded == summary.folded, "{folded} folded: {summary:?}");
    if summary.events_lost + summary.packets_dropped == 0 {
        let counted = asked.failed..=asked.failed + CONNECTIONS;
        ensure!(counted.contains(&summary.incidents), "{} failed: {summary:?}", asked.failed);
    }
    Ok(())
}

/// How long the probe stands still while the storm goes on, and what is not looked at on either side of that.
const STANDS_STILL: Duration = Duration::from_millis(700);
const EDGE_US: i128 = 20_000;

fn unix_us() -> Result<i128> {
    Ok(i128::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_micros())?)
}

#[test]
fn what_was_lost_is_told_with_every_failure_of_its_time() -> Result<()> {
    let stage = Stage::set_up(false)?;
    let probe = Probe::watch_nginx(stage.nginx().master(), &["-q"])?;
    let still = std::thread::scope(|scope| {
        let storm = scope.spawn(|| stage.load(Load::Storm, 2));
        std::thread::sleep(Duration::from_millis(500));
        probe.signal(Signal::SIGSTOP)?;
        let from = unix_us()?;
        std::thread::sleep(STANDS_STILL);
        let to = unix_us()?;
        probe.signal(Signal::SIGCONT)?;
        storm.join().map_err(|_panic| anyhow!("the storm's thread panicked"))??;
        anyhow::Ok(from + EDGE_US..to - EDGE_US)
    })?;
    probe.signal(Signal::SIGINT)?;
    let ended = probe.wait_end(ENDS_WITHIN)?;
    let summary = ended.summary()?;
    ensure!(summary.events_lost > 0, "the ring is too large for this test: {summary:?}");
    let mut with_losses = 0;
    for arrived in &ended.lines {
        let Ok(Line::Incident(incident)) = &arrived.line else { continue };
        // What the kernel itself told of the connection proves the cause without packets.
        let lost = incident.losses.events_lost;
        let confirmed = incident.verdict.confidence == Confidence::Confirmed;
        with_losses += usize::from(lost > 0);
        ensure!(lost == 0 || !confirmed, "confirmed with {lost} lost: {}", arrived.text);
        let decided: jiff::Timestamp = incident.time.as_deref().context("its time")?.parse()?;
        if still.contains(&(decided.as_nanosecond() / 1_000)) {
            ensure!(incident.losses.events_lost > 0, "it was lost meanwhile, and is not told: {}", arrived.text);
        }
    }
    ensure!(with_losses > 0, "no failure was told with a loss: {summary:?}");
    Ok(())
}
