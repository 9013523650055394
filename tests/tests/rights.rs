//! What the running probe may do: as `/proc/PID/status` shows it, of every thread; and whose the files are that it leaves.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::probe::{Probe, binary, output};
use probe_tests::process::Start;
use probe_tests::site::Site;
use probe_tests::trial::WITHIN;

/// `CAP_DAC_READ_SEARCH` and what lets root write for another user (`linux/capability.h`).
const READ_SEARCH: u64 = 1 << 2;
const WRITE_FOR_OTHERS: u64 = 1 | 1 << 1 | 1 << 3;

/// The lines of a thread's status.
type Status = BTreeMap<String, String>;

/// Of every thread, with its name.
fn threads(pid: u32) -> Result<Vec<(String, Status)>> {
    let mut all = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("status"))?;
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let status: Status = lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        all.push((status.get("Name").context("a name")?.clone(), status));
    }
    Ok(all)
}

fn capabilities(status: &Status, set: &str) -> Result<u64> {
    Ok(u64::from_str_radix(status.get(set).context("a set of capabilities")?, 16)?)
}

/// Threads that read what strangers sent hold nothing but what they open again, and cannot start anything.
#[test]
fn threads_hold_no_more_than_they_need() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start(&lab, &[])?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("run.p502");
    let probe = Probe::record_nginx(site.nginx().master(), &file, &[])?;
    let mut seen = Vec::new();
    for (name, status) in threads(probe.pid())? {
        let most = match name.as_str() {
            "ring" | "packets" | "thinker" => 0,
            "log" => READ_SEARCH,
            "recorder" => WRITE_FOR_OTHERS,
            _ => continue,
        };
        for set in ["CapEff", "CapPrm"] {
            ensure!(capabilities(&status, set)? & !most == 0, "{name}: {set} {:?}", status.get(set));
        }
        ensure!(status.get("Seccomp").is_some_and(|mode| mode == "2"), "{name}: no seccomp filter: {status:?}");
        seen.push(name);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen, ["log", "packets", "recorder", "ring", "thinker"]);
    probe.stop()?;
    Ok(())
}

/// With `--no-follow` nothing is left, in no thread, and what fails is explained all the same, after a reload too.
#[test]
fn without_following_every_right_is_given_up() -> Result<()> {
    let lab = Lab::new()?;
    let faults = ["upstream-refused", "upstream-reset", "premature-close"].map(Fault::named);
    let faults = faults.into_iter().collect::<Result<Vec<_>>>()?;
    let site = Site::start(&lab, &faults)?;
    let out = lab.directory().join("incidents");
    let name = out.to_str().context("a name that is text")?;
    let probe = Probe::watch_nginx(site.nginx().master(), &["--no-follow", "--user", "nobody", "--out", name])?;
    let mut incidents = Vec::new();
    for round in 0..2 {
        for fault in &faults {
            let mut witnesses = site.provoke(fault)?;
            for witness in &mut witnesses {
                // Who listens, and whether anybody does, is not looked up any more.
                witness.expected = witness.expected.clone().at_light();
            }
            incidents.extend(probe.check_all(&witnesses, WITHIN)?);
        }
        let threads = threads(probe.pid())?;
        ensure!(threads.len() > 3, "{threads:?}");
        for (thread, status) in threads {
            ensure!(
                status.get("Uid").is_some_and(|ids| ids.split_whitespace().all(|id| id == "65534")),
                "{thread}: {status:?}"
            );
            ensure!(
                status.get("Gid").is_some_and(|ids| ids.split_whitespace().all(|id| id == "65534")),
                "{thread}: {status:?}"
            );
            ensure!(status.get("Groups").is_some_and(String::is_empty), "{thread}: {status:?}");
            for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
                ensure!(capabilities(&status, set)? == 0, "{thread}: {set} {:?}", status.get(set));
            }
            ensure!(status.get("NoNewPrivs").is_some_and(|set| set == "1"), "{thread}: {status:?}");
        }
        if round == 0 {
            site.nginx().reload()?;
        }
    }
    let summary = probe.stop()?.summary()?.clone();
    ensure!(summary.incidents == 6 && summary.events_lost == 0, "{summary:?}");
    for incident in incidents {
        ensure!(out.join(&incident.id).join("incident.json").exists(), "no files for {}", incident.id);
    }
    owned_by(&out, 65_534)
}

/// Everything below, and the folder itself.
fn owned_by(path: &Path, user: u32) -> Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    ensure!(metadata.uid() == user, "{} belongs to {}", path.display(), metadata.uid());
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            owned_by(&entry?.path(), user)?;
        }
    }
    Ok(())
}

/// What root writes for whoever called sudo is theirs, also in a folder that was there before and stays whose it was.
#[test]
fn files_belong_to_whoever_called_sudo() -> Result<()> {
    let lab = Lab::new()?;
    let fault = Fault::named("upstream-refused")?;
    let site = Site::start(&lab, &[fault])?;
    let home = lab.subdirectory("home")?;
    std::os::unix::fs::chown(&home, Some(4_242), Some(4_243))?;
    fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let master = site.nginx().master().to_string();
    for (command, place) in [("watch", "incidents"), ("record", "run.p502")] {
        let mut probe = Command::new(binary()?);
        probe.args([command, "--json", "--pid", &master, "--out"]).arg(home.join(place));
        probe.env("SUDO_UID", "4242").env("SUDO_GID", "4243");
        let probe = Probe::run(probe, Start::default())?;
        probe.wait_ready(std::time::Duration::from_secs(10))?;
        probe.check_all(&site.provoke(&fault)?, WITHIN)?;
        probe.stop()?;
        ensure!(home.join(place).exists(), "nothing is written to {place}");
    }
    ensure!(fs::read_dir(home.join("incidents"))?.count() == 1, "an incident's folder");
    owned_by(&home, 4_242)
}

/// `doctor` shows each fence, and why one is not there.
#[test]
fn doctor_shows_the_fences() -> Result<()> {
    let printed = output(&["doctor", "--json"])?;
    let report: serde_json::Value = serde_json::from_str(&printed.stdout)?;
    let findings = report["findings"].as_array().context("findings")?;
    for name in ["account", "thread capabilities", "Landlock", "seccomp"] {
        let finding = findings.iter().find(|finding| finding["name"] == name);
        let finding = finding.with_context(|| format!("no word about {name}"))?;
        ensure!(finding["why"].as_str().is_some_and(|why| !why.is_empty()), "{finding}");
        ensure!(name == "Landlock" || finding["state"] == "on", "{finding}");
    }
    Ok(())
}

/// A user that does not exist, and root, are refused before anything is attached.
#[test]
fn nobody_to_become_is_an_error() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start(&lab, &[])?;
    let master = site.nginx().master().to_string();
    for (user, why) in [("no-such-user-502", "no-such-user-502"), ("root", "--user")] {
        let printed = output(&["watch", "--pid", &master, "--no-follow", "--user", user])?;
        ensure!(printed.status.code() == Some(3) && printed.stderr.contains(why), "{printed:?}");
    }
    let printed = output(&["watch", "--user", "nobody"])?;
    ensure!(printed.status.code() == Some(2) && printed.stderr.contains("--no-follow"), "{printed:?}");
    Ok(())
}
