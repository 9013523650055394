//! kill -9 at any moment: nothing stays attached, no file is half written under its final name, and the next start is clean.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use probe_tests::attached::Attached;
use probe_tests::lab::Lab;
use probe_tests::line::Incident;
use probe_tests::probe::{Probe, binary, output};
use probe_tests::process::Start;
use probe_tests::site::Site;
use probe_tests::trial::WITHIN;

use crate::scene::{KINDS, faults};

/// How often, unless `PROBE502_KILLS` says otherwise.
const KILLS: usize = 10;
/// From before the program has read its arguments until long after it has begun to tell.
const MOMENTS: Duration = Duration::from_millis(1_800);

#[test]
fn killed_at_random_moments() -> Result<()> {
    let kills = std::env::var("PROBE502_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let lab = Lab::new()?;
    let site = Site::start(&lab, &faults()?)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let failing = scope.spawn(|| {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                KINDS[number % KINDS.len()].provoke(&site, number)?;
                number += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            anyhow::Ok(number)
        });
        let mut state = seed;
        let folder = tempfile::tempdir_in(lab.directory())?;
        let outs = [folder.path().join("incidents"), folder.path().join("run.p502")];
        // The same place every time: each start finds what the one before has left.
        let killed = (0..kills).try_for_each(|round| {
            // A linear congruential generator is random enough for a moment (constants of Knuth's MMIX).
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let part = u32::try_from(state >> 33 & 0xffff_ffff).unwrap_or(0);
            let moment = MOMENTS.mul_f64(f64::from(part) / f64::from(u32::MAX));
            let what = || format!("round {round}, killed after {moment:?}, seed {seed}");
            kill_at(&site, moment, &outs[round % 2], round % 2 == 1).with_context(what)
        });
        stop.store(true, Ordering::Relaxed);
        let failed = failing.join().map_err(|_panic| anyhow!("the failing thread panicked"))??;
        ensure!(failed > kills, "only {failed} failures");
        killed?;
        start_clean(&site, &outs)
    })
}

/// Starts the probe, kills it after a moment and looks at what it leaves.
fn kill_at(site: &Site<'_>, moment: Duration, out: &Path, record: bool) -> Result<()> {
    let master = site.nginx().master().to_string();
    let mut command = Command::new(binary()?);
    command.args([if record { "record" } else { "watch" }, "--json", "--pid", &master, "--out"]).arg(out);
    let probe = Probe::run(command, Start::default())?;
    std::thread::sleep(moment);
    // Stopped first, so that it is known what it had attached, if anything yet.
    probe.signal(Signal::SIGSTOP)?;
    let attached = Attached::of(probe.pid()).ok();
    probe.signal(Signal::SIGKILL)?;
    probe.wait_end(Duration::from_secs(3))?;
    if let Some(attached) = attached {
        attached.wait_gone(Duration::from_secs(5))?;
    }
    if record { check_recording(out) } else { check_folder(out) }
}

/// The next start finds its way in the same places, explains what fails, and leaves nothing of those before.
fn start_clean(site: &Site<'_>, [folder, file]: &[PathBuf; 2]) -> Result<()> {
    let name = folder.to_str().context("a name that is text")?;
    let probes = [
        Probe::watch_nginx(site.nginx().master(), &["--out", name])?,
        Probe::record_nginx(site.nginx().master(), file, &[])?,
    ];
    for (probe, number) in probes.into_iter().zip(1_000_000..) {
        probe.check_all(&[KINDS[0].provoke(site, number)?], WITHIN)?;
        probe.stop()?;
    }
    let left: Vec<PathBuf> = hidden(folder)?;
    ensure!(left.is_empty(), "left over: {left:?}");
    check_folder(folder)?;
    check_recording(file)
}

/// What lies under a final name is whole: an incident with its packets.
fn check_folder(out: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(out) else { return Ok(()) };
    for entry in entries {
        let incident = entry?.path();
        if is_hidden(&incident) {
            continue;
        }
        let text = fs::read_to_string(incident.join("incident.json"))?;
        let whole = serde_json::from_str::<Incident>(&text);
        ensure!(whole.is_ok(), "half an incident in {}: {whole:?}\n{text}", incident.display());
        let packets = incident.join("packets.pcapng");
        let read = Command::new("tcpdump").arg("-nr").arg(&packets).output()?;
        let said = String::from_utf8_lossy(&read.stderr).into_owned();
        ensure!(read.status.success() && !said.contains("truncated"), "{}: {said}", packets.display());
    }
    Ok(())
}

/// A recording is written from its beginning on: what is there opens, or nothing is.
fn check_recording(file: &Path) -> Result<()> {
    if fs::metadata(file).map_or(0, |metadata| metadata.len()) == 0 {
        return Ok(());
    }
    let read = output(&["analyze", "--json", file.to_str().context("a name that is text")?])?;
    ensure!(read.status.success(), "{}: {}", file.display(), read.stderr);
    Ok(())
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn hidden(out: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(out)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    Ok(entries.into_iter().filter(|path| is_hidden(path)).collect())
}
