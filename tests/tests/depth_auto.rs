//! `--depth auto`: light until a failure that light cannot prove, then standard for a minute, then light again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::line::{Confidence, Notice};
use probe_tests::probe::Probe;
use probe_tests::recording::Recording;
use probe_tests::site::Site;
use probe_tests::trial::WITHIN;

/// How long it looks deeper.
const DEEPER: Duration = Duration::from_mins(1);

/// Hooks that the probe holds: links and descriptors of tracepoints and uprobes.
fn hooks(pid: u32) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        // Descriptors come and go meanwhile.
        let target = std::fs::read_link(entry?.path()).unwrap_or_default();
        count += usize::from(
            ["anon_inode:[perf_event]", "anon_inode:bpf_link"].iter().any(|kind| target.as_os_str() == *kind),
        );
    }
    Ok(count)
}

/// About 70 s, most of it waiting.
#[test]
fn looks_deeper_after_what_light_cannot_prove() -> Result<()> {
    let lab = Lab::new()?;
    let [closes, hidden, refused] = ["premature-close", "masked-retry", "upstream-refused"].map(Fault::named);
    let (closes, hidden, refused) = (closes?, hidden?, refused?);
    let site = Site::start(&lab, &[closes, hidden, refused])?;
    let load = site.healthy("/ok", 200, 6)?;
    let recording = Recording::new()?;
    let probe = Probe::record_nginx(site.nginx().master(), recording.file(), &["--depth", "auto"])?;
    let changes = |text: &'static str| move |notice: &Notice| notice.what == "depth" && notice.text.contains(text);
    let at_light = |fault: &Fault, confidence: Confidence| -> Result<()> {
        let mut witnesses = site.provoke(fault)?;
        for witness in &mut witnesses {
            witness.expected = witness.expected.clone().at_light();
        }
        for incident in probe.check_all(&witnesses, WITHIN)? {
            ensure!(incident.verdict.confidence == confidence, "{incident:#?}");
        }
        Ok(())
    };
    let light = hooks(probe.pid())?;

    // What light proves changes nothing.
    at_light(&refused, Confidence::Confirmed)?;
    ensure!(hooks(probe.pid())? == light, "it looks deeper though it knows all");

    at_light(&closes, Confidence::Likely)?;
    probe.wait_notice(Duration::from_secs(2), changes("depth standard for 60 s"))?;
    let began = Instant::now();
    let standard = hooks(probe.pid())?;
    ensure!(standard > light, "{standard} hooks, and {light} before");
    // As at standard: the same failure is proved, and one that a retry hides is seen at all.
    for fault in [&closes, &refused, &hidden] {
        probe.check_all(&site.provoke(fault)?, WITHIN)?;
    }

    let over = DEEPER.saturating_sub(began.elapsed()) + Duration::from_secs(3);
    probe.wait_notice(over, changes("depth light again"))?;
    ensure!(began.elapsed() + Duration::from_secs(1) > DEEPER, "after {:?}", began.elapsed());
    ensure!(hooks(probe.pid())? == light, "{} hooks, and {light} at first", hooks(probe.pid())?);
    at_light(&refused, Confidence::Confirmed)?;
    at_light(&closes, Confidence::Likely)?;

    ensure!(load.stop()?.all_ok(), "the healthy traffic suffered");
    let ended = probe.stop()?;
    let summary = ended.summary()?;
    ensure!((summary.incidents, summary.near_misses) == (6, 1), "{summary:?}");
    ensure!(summary.events_lost == 0, "{summary:?}");
    recording.check_replay(&ended)
}
