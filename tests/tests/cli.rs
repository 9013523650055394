//! The commands and flags of the contract, as typed.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::line::{Incident, Line};
use probe_tests::probe::{Probe, binary, output};
use probe_tests::process::Start;
use probe_tests::site::Site;

/// The causes that are known from the first slice on.
const CAUSES: [&str; 10] = [
    "upstream-refused",
    "upstream-reset",
    "premature-close",
    "keepalive-race",
    "syn-timeout",
    "read-timeout",
    "fd-exhausted-nginx",
    "fd-exhausted-upstream",
    "no-live-upstreams",
    "unknown",
];

#[test]
fn bad_usage_exits_2_with_a_word_on_stderr() -> Result<()> {
    let wrong: [&[&str]; 8] = [
        &[],
        &["frobnicate"],
        &["watch", "--frobnicate"],
        &["watch", "--depth", "bottomless"],
        &["watch", "--status", "five"],
        &["watch", "--duration", "soon"],
        &["watch", "--pid", "nginx"],
        &["explain", "bad-karma"],
    ];
    for arguments in wrong {
        let output = output(arguments)?;
        ensure!(output.status.code() == Some(2), "{arguments:?} exits {}: {}", output.status, output.stderr);
        ensure!(!output.stderr.is_empty(), "{arguments:?} says nothing");
        ensure!(output.stdout.is_empty(), "{arguments:?} prints data: {}", output.stdout);
    }
    Ok(())
}

#[test]
fn help_and_version_are_no_errors() -> Result<()> {
    for arguments in [&["--help"][..], &["--version"], &["watch", "--help"], &["doctor", "--help"]] {
        let output = output(arguments)?;
        ensure!(output.status.code() == Some(0), "{arguments:?} exits {}: {}", output.status, output.stderr);
        ensure!(!output.stdout.is_empty(), "{arguments:?} prints nothing");
    }
    Ok(())
}

#[test]
fn explain_knows_every_cause() -> Result<()> {
    let list = output(&["explain"])?;
    ensure!(list.status.code() == Some(0), "{}", list.stderr);
    for cause in CAUSES {
        ensure!(list.stdout.contains(cause), "no {cause} in:\n{}", list.stdout);
        let page = output(&["explain", cause])?;
        ensure!(page.status.code() == Some(0), "explain {cause}: {}", page.stderr);
        let text = &page.stdout;
        ensure!(text.contains(cause) && text.lines().count() >= 3, "explain {cause}:\n{text}");
        ensure!(text.lines().all(|line| line.chars().count() <= 100), "explain {cause} is too wide:\n{text}");
    }
    Ok(())
}

#[test]
fn doctor_says_what_can_be_seen() -> Result<()> {
    let output = output(&["doctor"])?;
    ensure!(output.status.code() == Some(0), "doctor exits {}: {}", output.status, output.stderr);
    let text = &output.stdout;
    for word in ["BTF", "uprobe", "packet"] {
        ensure!(text.to_lowercase().contains(&word.to_lowercase()), "no {word} in:\n{text}");
    }
    ensure!(!text.contains('\x1b'), "colour in a pipe:\n{text}");
    Ok(())
}

#[test]
fn count_and_duration_end_the_watch() -> Result<()> {
    let lab = Lab::new()?;
    let fault = Fault::named("upstream-refused")?;
    let site = Site::start(&lab, &[fault])?;
    let probe = Probe::watch_nginx(site.nginx().master(), &["--count", "1"])?;
    site.provoke(&fault)?;
    let ended = probe.wait_end(Duration::from_secs(10))?;
    ensure!(ended.status.code() == Some(0), "{} {}", ended.status, ended.stderr);
    ensure!(ended.summary()?.incidents == 1, "{:?}", ended.summary()?);

    let probe = Probe::watch_nginx(site.nginx().master(), &["--duration", "1s"])?;
    let ended = probe.wait_end(Duration::from_secs(10))?;
    ensure!(ended.status.code() == Some(0), "{} {}", ended.status, ended.stderr);
    ensure!(ended.summary()?.incidents == 0, "{:?}", ended.summary()?);
    Ok(())
}

#[test]
fn the_status_list_chooses() -> Result<()> {
    let lab = Lab::new()?;
    let (refused, hang) = (Fault::named("upstream-refused")?, Fault::named("read-timeout")?);
    let site = Site::start(&lab, &[refused, hang])?;
    let probe = Probe::watch_nginx(site.nginx().master(), &["--status", "504"])?;
    site.provoke(&refused)?;
    let witnesses = site.provoke(&hang)?;
    probe.check_all(&witnesses, Duration::from_secs(1))?;
    let ended = probe.stop()?;
    ensure!(ended.summary()?.incidents == 1, "{:?}", ended.summary()?);
    Ok(())
}

#[test]
fn the_text_form_is_for_people() -> Result<()> {
    let lab = Lab::new()?;
    let fault = Fault::named("upstream-refused")?;
    let site = Site::start(&lab, &[fault])?;
    let mut command = Command::new(binary()?);
    command.args(["watch", "--count", "1", "--pid", &site.nginx().master().to_string()]);
    let mut probe = probe_tests::process::Process::spawn(
        "probe502",
        {
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
            command
        },
        Start::default(),
    )?;
    // There is no `ready` line to wait for: fail until one failure has been seen.
    let witness = loop {
        let witness = site.provoke(&fault)?.remove(0);
        std::thread::sleep(Duration::from_millis(500));
        if probe.ended()?.is_some() {
            break witness;
        }
        ensure!(witness.exchange.sent.elapsed()? < Duration::from_secs(15));
    };
    let mut text = String::new();
    let mut pipe = probe.child().stdout.take().context("the text")?;
    std::io::Read::read_to_string(&mut pipe, &mut text)?;
    let address = site.app(9091).to_string();
    for word in ["502", "upstream-refused", "confirmed", &address, &witness.exchange.uri, "ECONNREFUSED"] {
        ensure!(text.contains(word), "no {word} in:\n{text}");
    }
    ensure!(text.lines().all(|line| line.chars().count() <= 100), "wider than 100 columns:\n{text}");
    ensure!(!text.contains('\x1b'), "colour in a pipe:\n{text}");
    Ok(())
}

#[test]
fn every_incident_leaves_its_files() -> Result<()> {
    let lab = Lab::new()?;
    let fault = Fault::named("upstream-reset")?;
    let site = Site::start(&lab, &[fault])?;
    let out = lab.directory().join("incidents");
    let path = out.to_str().context("a path in UTF-8")?;
    let probe = Probe::watch_nginx(site.nginx().master(), &["-o", path])?;
    let incident = probe.check_all(&site.provoke(&fault)?, Duration::from_secs(1))?.remove(0);
    probe.stop()?;

    let directory = out.join(&incident.id);
    let text = fs::read_to_string(directory.join("incident.json")).context("incident.json")?;
    let Line::Incident(kept) = serde_json::from_str(&text)? else { anyhow::bail!("no incident: {text}") };
    assert_eq!(kept.id, incident.id);
    let same = serde_json::from_str::<Incident>(&text)?;
    assert_eq!(same.verdict.cause, incident.verdict.cause);

    let packets = directory.join("packets.pcapng");
    let read = Command::new("tcpdump").arg("-nr").arg(&packets).stdin(Stdio::null()).output()?;
    ensure!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let listed = String::from_utf8_lossy(&read.stdout);
    let upstream = site.app_address();
    let named = format!("{}.{}", upstream.ip(), upstream.port());
    let reset = listed.lines().any(|line| line.contains(&format!("{named} > ")) && line.contains("Flags [R"));
    ensure!(reset, "the upstream's RST is among the packets:\n{listed}");
    Ok(())
}
