//! Strangers that send garbage at full speed, from the clients' side and from the upstream's: nothing is lost unsaid, memory stays flat, and
//! failures of honest requests amid it are explained.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use probe_tests::expect::check;
use probe_tests::lab::Lab;
use probe_tests::line::Incident;
use probe_tests::probe::Probe;
use probe_tests::site::Site;
use probe_tests::strangers::{self, Strangers};

use crate::scene::{KINDS, all_is_well, faults, humbler, notices};

/// Seconds, unless `PROBE502_SOAK` says otherwise (60 and more for a real soak).
const LASTS: u64 = 8;

/// A debug build on a crowded machine judges some two hundred failures a second.
const CAUGHT_UP: Duration = Duration::from_secs(30);

/// Resident memory, KiB.
fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[test]
fn garbage_at_full_speed() -> Result<()> {
    let lasts = std::env::var("PROBE502_SOAK").ok().and_then(|text| text.parse().ok()).unwrap_or(LASTS);
    let lasts = Duration::from_secs(lasts);
    let seed = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?;
    soak(lasts, seed).with_context(|| format!("seed {seed}"))
}

fn soak(lasts: Duration, seed: u64) -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start_with(&lab, "site", &faults()?, strangers::configure)?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let before = all_is_well(&site, &probe, 0)?;
    let strangers = Strangers::start(&lab, site.address(), seed)?;
    let began = Instant::now();
    let (mut settled, mut most) = (0, 0);
    let mut witnesses = Vec::new();
    while began.elapsed() < lasts {
        let number = before + witnesses.len();
        witnesses.push(KINDS[number % KINDS.len()].provoke(&site, number)?);
        std::thread::sleep(Duration::from_millis(100));
        let now = resident(probe.pid())?;
        // Everything that is bounded has been filled once by then.
        if began.elapsed() < lasts / 2 { settled = settled.max(now) } else { most = most.max(now) }
    }
    let sent = strangers.stop()?;
    for (stranger, count) in &sent {
        ensure!(*count > 20, "{stranger} has sent {count} only: {sent:?}");
    }
    // What waits is thought through: the stream may be behind, and catches up.
    let last = KINDS[0].provoke(&site, 99_999)?;
    let caught_up = |_, incident: &Incident| last.is_meant_by(incident);
    probe.wait_incident(CAUGHT_UP, caught_up).context("the stream did not catch up")?;
    humbler(&mut witnesses);
    let told = probe.incidents();
    let mut unseen = 0;
    for witness in &witnesses {
        match told.iter().find(|(_, incident)| witness.is_meant_by(incident)) {
            Some((report, incident)) => check(witness, *report, incident)?,
            None => unseen += 1,
        }
    }
    all_is_well(&site, &probe, 100_000)?;
    let ended = probe.stop()?;
    let summary = ended.summary()?;
    ensure!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    ensure!(
        unseen == 0 || summary.events_lost > 0,
        "{unseen} failures are not told, and nothing was lost: {summary:?}"
    );
    let said: u64 = notices(&ended, "lost").iter().filter_map(|notice| notice.count).sum();
    ensure!(said == summary.events_lost + summary.packets_dropped, "{said} losses are said of {summary:?}");
    // Over 60 s of a build of release with 10,667 failures told: from 51,408 to 53,932 KiB.
    ensure!(most < settled + settled / 4, "memory grew from {settled} to {most} KiB ({sent:?}, {summary:?})");
    Ok(())
}
