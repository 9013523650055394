//! A probe that is not given what it needs: stopped for seconds, flooded, short of memory.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use probe_tests::attached::Attached;
use probe_tests::cgroup::MemoryLimit;
use probe_tests::lab::Lab;
use probe_tests::load::{Load, Traffic};
use probe_tests::probe::Probe;
use probe_tests::site::Site;

use crate::scene::{all_is_well, check_summary, fail_for, faults, humbler, notices};

/// What waits for the probe while it stands still, and what it takes to catch up.
const CAUGHT_UP: Duration = Duration::from_secs(10);

/// SIGSTOP for 5 s among failures: everything was kept for it, so everything is explained as if nothing had been.
#[test]
fn stopped_for_five_seconds() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start(&lab, &faults()?)?;
    let load = site.healthy("/ok", 100, 4)?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let before = all_is_well(&site, &probe, 0)?;
    probe.signal(Signal::SIGSTOP)?;
    let mut witnesses = fail_for(&site, Duration::from_secs(5), Duration::from_millis(200))?;
    probe.signal(Signal::SIGCONT)?;
    // What the kernel keeps is told by nobody for five seconds: more may have happened than it has room for, not something else.
    humbler(&mut witnesses);
    probe.check_all(&witnesses, CAUGHT_UP)?;
    let after = all_is_well(&site, &probe, 1000)?;
    load.stop()?;
    let ended = probe.stop()?;
    let summary = ended.summary()?;
    let all = before + witnesses.len() + after;
    ensure!(summary.incidents == all as u64 && summary.near_misses == 0, "{all} incidents, not {summary:?}");
    ensure!(summary.events_lost == 0, "the ring holds more than that: {summary:?}");
    // The capture's buffer is cut into pieces that are closed 50 times a second, so it does not last for 5 s: it is said.
    let told = notices(&ended, "lost");
    ensure!(
        summary.packets_dropped == 0 || told.iter().any(|notice| notice.text.contains("packets")),
        "{summary:?}: {told:?}"
    );
    Ok(())
}

/// The ring overrun on purpose: stopped amid so many connections that the ring is full long before the end. What was lost is said with its
/// span; what was told before stays told, and what comes after is explained as ever. Of the failures meanwhile nothing untrue is said.
#[test]
fn ring_overrun_on_purpose() -> Result<()> {
    let lab = Lab::new()?;
    // A fresh connection to the upstream for each request: a dozen records each.
    let site = Site::start_with(&lab, "site", &faults()?, |plan| {
        let pass = format!("proxy_pass http://{}/ok;", plan.app(9001));
        plan.config.location("/fresh", &[&pass]);
    })?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let before = all_is_well(&site, &probe, 0)?;
    let traffic =
        Traffic { target: site.address(), uri: "/fresh".into(), rate: 4_000, connections: 16, requests_each: Some(1) };
    let load = Load::start(lab.client(), &traffic)?;
    probe.signal(Signal::SIGSTOP)?;
    let mut witnesses = fail_for(&site, Duration::from_secs(5), Duration::from_millis(100))?;
    let tally = load.stop()?;
    probe.signal(Signal::SIGCONT)?;
    let lost = probe
        .wait_notice(Duration::from_secs(5), |notice| notice.what == "lost" && notice.text.contains("ring full"))?;
    ensure!(lost.count.is_some_and(|count| count > 0), "{lost:?}");
    ensure!(lost.text.contains(" from ") && lost.text.contains(" to "), "the span is not said: {lost:?}");
    // So much was lost that a failure may not be seen at all; those that are seen are true.
    std::thread::sleep(Duration::from_secs(2));
    humbler(&mut witnesses);
    let told = probe.incidents();
    let mut seen = 0;
    for witness in &witnesses {
        let Some((report, incident)) = told.iter().find(|(_, incident)| witness.is_meant_by(incident)) else {
            continue;
        };
        probe_tests::expect::check(witness, *report, incident)?;
        ensure!(
            incident.losses.events_lost > 0 || incident.verdict.cause == witness.expected.cause[0],
            "{incident:#?}"
        );
        seen += 1;
    }
    let after = all_is_well(&site, &probe, 1000)?;
    let ended = probe.stop()?;
    let summary = ended.summary()?;
    ensure!(summary.events_lost > 0, "{summary:?} after {tally:?}");
    ensure!(summary.incidents == (before + seen + after) as u64, "{before} and {seen} and {after}, not {summary:?}");
    Ok(())
}

/// A control group that lets the probe have a little more than it has: it keeps within, and explains what fails.
#[test]
fn memory_limit_on_the_probe() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start(&lab, &faults()?)?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let limit = MemoryLimit::hold(probe.pid(), 48 << 20)?;
    let traffic =
        Traffic { target: site.address(), uri: "/ok".into(), rate: 1_000, connections: 10, requests_each: Some(5) };
    let load = Load::start(lab.client(), &traffic)?;
    let witnesses = fail_for(&site, Duration::from_secs(3), Duration::from_millis(50))?;
    load.stop()?;
    probe.check_all(&witnesses, Duration::from_secs(3))?;
    let ended = probe.stop()?;
    drop(limit);
    ensure!(ended.summary()?.incidents == witnesses.len() as u64, "{:?}", ended.summary()?);
    Ok(())
}

/// One that lets it have nothing more: the kernel ends it, nothing stays attached, nginx has not noticed, and it can be started again.
#[test]
fn killed_for_its_memory() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start(&lab, &faults()?)?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let attached = Attached::of(probe.pid())?;
    let limit = MemoryLimit::hold(probe.pid(), 256 << 10)?;
    let witnesses = fail_for(&site, Duration::from_secs(2), Duration::from_millis(20))?;
    ensure!(!witnesses.is_empty());
    let ended = probe.wait_end(Duration::from_secs(5)).context("it was to be killed")?;
    drop(limit);
    ensure!(!ended.status.success(), "{}", ended.status);
    attached.wait_gone(Duration::from_secs(5))?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let after = all_is_well(&site, &probe, 1000)?;
    let ended = probe.stop()?;
    ensure!(notices(&ended, "lost").is_empty());
    check_summary(&ended, after)
}
