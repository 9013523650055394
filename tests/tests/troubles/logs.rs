//! Error logs that are rotated under the probe's eyes, or cannot be written any more.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use probe_tests::expect::Witness;
use probe_tests::lab::Lab;
use probe_tests::line::EvidenceSource;
use probe_tests::probe::Probe;
use probe_tests::site::Site;
use probe_tests::trial::WITHIN;

use crate::scene::{KINDS, all_is_well, check_summary, faults, notices};

/// How often a log is rotated.
const ROTATIONS: usize = 3;

/// From the log alone, as far as nginx's own word goes.
fn by_the_log(mut witness: Witness) -> Witness {
    witness.expected = witness.expected.at_light().without_uprobes();
    witness
}

/// Rotates again and again, a failure before and after each time: each has its line among the evidence, none is told twice.
fn rotate(rotate: impl Fn(&Site<'_>, usize) -> Result<()>) -> Result<Vec<probe_tests::line::Notice>> {
    let lab = Lab::new()?;
    let site = Site::start(&lab, &faults()?)?;
    let probe = Probe::watch_nginx(site.nginx().master(), &["--no-uprobes"])?;
    let mut count = 0;
    for round in 0..ROTATIONS {
        for kind in &KINDS[..2] {
            let witness = by_the_log(kind.provoke(&site, count)?);
            let incident = probe.check_all(&[witness], WITHIN)?.remove(0);
            let logged = incident.evidence.iter().any(|evidence| evidence.source == EvidenceSource::Log);
            ensure!(logged, "round {round}: no line of the error log is among the evidence: {incident:#?}");
            count += 1;
        }
        rotate(&site, round)?;
    }
    let ended = probe.stop()?;
    check_summary(&ended, count)?;
    Ok(notices(&ended, "log-truncated"))
}

/// As logrotate does it by default.
#[test]
fn rotation_by_rename() -> Result<()> {
    let told = rotate(|site, round| {
        site.nginx().rotate_error_log()?;
        let directory = site.nginx().directory();
        fs::rename(directory.join("error.log.1"), directory.join(format!("error.log.{}", round + 2)))?;
        Ok(())
    })?;
    ensure!(told.is_empty(), "nothing was cut off: {told:?}");
    Ok(())
}

/// As logrotate does it with `copytruncate`: nginx is not told. What it wrote between the copy and the cut is lost for everybody, and that
/// this may have happened is said, with the time.
#[test]
fn rotation_by_copytruncate() -> Result<()> {
    let told = rotate(|site, round| {
        let directory = site.nginx().directory();
        let log = directory.join("error.log");
        fs::copy(&log, directory.join(format!("error.log.{}", round + 1)))?;
        OpenOptions::new().write(true).open(&log)?.set_len(0)?;
        std::thread::sleep(Duration::from_millis(150));
        Ok(())
    })?;
    ensure!(told.len() == ROTATIONS, "said {} times of {ROTATIONS}: {told:?}", told.len());
    for notice in &told {
        ensure!(notice.text.contains("error.log") && notice.text.contains("may be lost"), "{notice:?}");
    }
    Ok(())
}

/// The disk of the error log is full: nginx's own functions still tell what it wanted to write.
#[test]
fn log_on_a_full_disk() -> Result<()> {
    let lab = Lab::new()?;
    let directory = lab.subdirectory("disk")?;
    let disk = Disk::mount(&directory)?;
    let log = directory.join("error.log");
    let log_name = log.to_str().context("a name that is text")?.to_owned();
    let site = Site::start_with(&lab, "site", &faults()?, |plan| {
        let _ = writeln!(plan.config.http, "    error_log {log_name} error;");
    })?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let before = all_is_well(&site, &probe, 0)?;
    let mut ballast = fs::File::create(directory.join("ballast"))?;
    while ballast.write_all(&[1; 512]).is_ok() {}
    let size = fs::metadata(&log)?.len();
    // Long enough that even what is left of a page of the log's own is used up.
    let mut count = before;
    for round in 0..8 {
        for kind in &KINDS {
            let witness = kind.provoke(&site, count)?;
            probe.check_all(&[witness], WITHIN).with_context(|| format!("round {round}"))?;
            count += 1;
        }
    }
    let grown = fs::metadata(&log)?.len() - size;
    ensure!(grown < 4096, "the disk was not full: the log has grown by {grown} bytes");
    check_summary(&probe.stop()?, count)?;
    drop(site);
    drop(disk);
    Ok(())
}

/// A small file system, unmounted when dropped.
struct Disk(std::path::PathBuf);

impl Disk {
    fn mount(at: &Path) -> Result<Self> {
        mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), Some("size=32k")).context("mount a small disk")?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
