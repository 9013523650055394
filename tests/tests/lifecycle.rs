//! The probe before and after nginx, through reloads, new masters and killed workers; and nothing stays attached after it.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use probe_tests::attached::Attached;
use probe_tests::client::Connection;
use probe_tests::config::Config;
use probe_tests::expect::{AttemptExpectation, Expectation, Witness};
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::line::{EvidenceSource, Outcome};
use probe_tests::nginx::Nginx;
use probe_tests::probe::Probe;
use probe_tests::site::Site;
use probe_tests::trial::WITHIN;

/// The contract: a new nginx is picked up within so long.
const PICKED_UP: Duration = Duration::from_secs(1);

/// Every nginx of the host: others beside ours (another lab, a developer's own) may be reported too and are not looked at.
const NO_ARGUMENTS: [&str; 0] = [];

fn refused() -> Result<Fault> {
    Fault::named("upstream-refused")
}

#[test]
fn started_before_nginx_with_wait() -> Result<()> {
    let lab = Lab::new()?;
    let probe = Probe::watch_without_waiting(["--wait"])?;
    std::thread::sleep(Duration::from_millis(1500));
    let fault = refused()?;
    let site = Site::start(&lab, &[fault])?;
    std::thread::sleep(PICKED_UP);
    probe.wait_ready(Duration::from_secs(10))?;
    probe.check_all(&site.provoke(&fault)?, WITHIN)?;
    probe.stop()?;
    Ok(())
}

#[test]
fn started_after_nginx_with_warm_connections() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start(&lab, &[Fault::named("upstream-reset-late")?])?;
    let mut client = site.connect()?;
    client.get("/upstream-reset-late/warm")?;
    // Both the client's and the upstream's connection are older than the probe.
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let exchange = client.post("/upstream-reset-late/cart")?;
    let attempt = AttemptExpectation::reused(site.app_address(), &[Outcome::Reset], &[Some("ECONNRESET")]);
    let expected = Expectation::incident(502, &["upstream-reset"], vec![attempt]).never(&["keepalive-race"]);
    let incidents = probe.check_all(&[Witness::new(exchange, expected)?], WITHIN)?;
    let local = incidents[0].attempts[0].local.as_deref();
    ensure!(local.is_some_and(|local| local.starts_with("10.77.2.1:")), "nginx's own end is known: {local:?}");
    probe.stop()?;
    Ok(())
}

/// While nothing happens anywhere the sources rest. What comes first then is told as soon as anything else, and on as much.
#[test]
fn a_failure_after_a_silence_is_told_in_time() -> Result<()> {
    const SILENCE: Duration = Duration::from_secs(4);
    let lab = Lab::new()?;
    let faults = [refused()?, Fault::named("premature-close")?, Fault::named("upstream-reset")?];
    let site = Site::start(&lab, &faults)?;
    for depth in ["light", "standard"] {
        let probe = Probe::watch_nginx(site.nginx().master(), &["--depth", depth])?;
        for fault in &faults {
            std::thread::sleep(SILENCE);
            let mut witnesses = site.provoke(fault)?;
            if depth == "light" {
                for witness in &mut witnesses {
                    witness.expected = witness.expected.clone().at_light();
                }
            }
            probe.check_all(&witnesses, WITHIN)?;
        }
        let ended = probe.stop()?;
        let summary = ended.summary()?;
        ensure!(summary.events_lost == 0, "{summary:?}");
    }
    Ok(())
}

#[test]
fn further_masters_appear() -> Result<()> {
    let lab = Lab::new()?;
    let fault = refused()?;
    let site = Site::start(&lab, &[fault])?;
    let probe = Probe::watch(NO_ARGUMENTS)?;

    // One in a namespace that is known already, on another port ...
    let mut config = Config { port: 8081, ..Config::default() };
    let nobody = site.app(9097);
    config.location("/second/", &[&format!("proxy_pass http://{nobody};")]);
    let second = Nginx::start(&lab, "second", &config)?;
    // ... and one in a namespace of its own.
    let other_lab = Lab::new()?;
    let other_site = Site::start(&other_lab, &[fault])?;
    std::thread::sleep(PICKED_UP);

    let target = std::net::SocketAddr::new(lab.proxy_address(false), second.port());
    let exchange = Connection::open(lab.client(), target)?.get("/second/cart")?;
    let attempt = AttemptExpectation::fresh(nobody, &[Outcome::Refused], &[Some("ECONNREFUSED")]);
    let witness = Witness::new(exchange, Expectation::incident(502, &["upstream-refused"], vec![attempt]))?;
    let incident = &probe.check_all(&[witness], WITHIN)?[0];
    ensure!(incident.nginx.pid.is_some_and(|pid| second.workers().is_ok_and(|workers| workers.contains(&pid))));
    probe.check_all(&other_site.provoke(&fault)?, WITHIN)?;
    probe.check_all(&site.provoke(&fault)?, WITHIN)?;
    second.stop()?;
    probe.stop()?;
    Ok(())
}

#[test]
fn a_reload_leaves_no_gap() -> Result<()> {
    let lab = Lab::new()?;
    let hang = Fault::named("read-timeout")?;
    let fault = refused()?;
    let site = Site::start(&lab, &[fault, hang])?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let old = site.nginx().workers()?;
    let (in_flight, fresh) = std::thread::scope(|scope| {
        // Begun on an old worker, failed there a second later, when the new ones have long taken over.
        let in_flight = scope.spawn(|| site.provoke(&hang));
        std::thread::sleep(Duration::from_millis(200));
        let fresh = site.nginx().reload().and_then(|_new| site.provoke(&fault));
        (in_flight.join(), fresh)
    });
    let Ok(in_flight) = in_flight else { anyhow::bail!("the request in flight panicked") };
    let of_old = &probe.check_all(&in_flight?, WITHIN)?[0];
    let of_new = &probe.check_all(&fresh?, WITHIN)?[0];
    ensure!(of_old.nginx.pid.is_some_and(|pid| old.contains(&pid)), "by an old worker {old:?}: {of_old:?}");
    ensure!(of_new.nginx.pid.is_some_and(|pid| !old.contains(&pid)), "by a new worker, not {old:?}: {of_new:?}");
    let ended = probe.stop()?;
    ensure!(ended.summary()?.incidents == 2, "{:?}", ended.summary()?);
    Ok(())
}

/// Without uprobes the error log is what names the request; it must be followed into the new file.
#[test]
fn a_rotated_error_log_is_followed() -> Result<()> {
    let lab = Lab::new()?;
    let (before, after) = (refused()?, Fault::named("upstream-refused-v6")?);
    let site = Site::start(&lab, &[before, after])?;
    let probe = Probe::watch_nginx(site.nginx().master(), &["--no-uprobes"])?;
    for fault in [before, after] {
        let mut witnesses = site.provoke(&fault)?;
        for witness in &mut witnesses {
            witness.expected = witness.expected.clone().without_uprobes();
        }
        let incident = &probe.check_all(&witnesses, WITHIN)?[0];
        let logged = incident.evidence.iter().any(|evidence| evidence.source == EvidenceSource::Log);
        ensure!(logged, "no line of the error log is among the evidence: {incident:#?}");
        site.nginx().rotate_error_log()?;
    }
    let ended = probe.stop()?;
    ensure!(ended.summary()?.incidents == 2, "{:?}", ended.summary()?);
    Ok(())
}

#[test]
fn a_killed_worker_is_replaced_before_our_eyes() -> Result<()> {
    let lab = Lab::new()?;
    let fault = refused()?;
    let site = Site::start_with(&lab, "site", &[fault], |plan| plan.config.workers = 1)?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let old = site.nginx().workers()?[0];
    let new = site.nginx().kill_worker(old)?;
    let incident = &probe.check_all(&site.provoke(&fault)?, WITHIN)?[0];
    assert_eq!(incident.nginx.pid, Some(new));
    let ended = probe.stop()?;
    ensure!(ended.summary()?.incidents == 1, "{:?}", ended.summary()?);
    Ok(())
}

#[test]
fn an_interrupt_ends_in_order_and_judges_what_is_pending() -> Result<()> {
    let lab = Lab::new()?;
    let fault = refused()?;
    let site = Site::start(&lab, &[fault])?;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
        let attached = Attached::of(probe.pid())?;
        let witnesses = site.provoke(&fault)?;
        probe.signal(signal)?;
        let ended = probe.wait_end(Duration::from_secs(10))?;
        ensure!(ended.status.code() == Some(0), "{signal}: {} {}", ended.status, ended.stderr);
        ensure!(ended.summary()?.incidents == 1, "what was pending is judged: {:?}", ended.summary()?);
        let told = ended.lines.iter().any(|arrived| match &arrived.line {
            Ok(probe_tests::line::Line::Incident(incident)) => witnesses[0].is_meant_by(incident),
            _ => false,
        });
        ensure!(told, "what was pending is written");
        attached.wait_gone(Duration::from_secs(3))?;
    }
    Ok(())
}

#[test]
fn a_second_interrupt_ends_at_once() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start(&lab, &[])?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let attached = Attached::of(probe.pid())?;
    probe.signal(Signal::SIGINT)?;
    // It may be over already: then the second signal has nobody to reach.
    let _ = probe.signal(Signal::SIGINT);
    probe.wait_end(Duration::from_secs(3))?;
    attached.wait_gone(Duration::from_secs(3))
}

#[test]
fn a_killed_probe_leaves_nothing_attached() -> Result<()> {
    let lab = Lab::new()?;
    let fault = refused()?;
    let site = Site::start(&lab, &[fault])?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let attached = Attached::of(probe.pid())?;
    probe.check_all(&site.provoke(&fault)?, WITHIN)?;
    probe.signal(Signal::SIGKILL)?;
    probe.wait_end(Duration::from_secs(3))?;
    attached.wait_gone(Duration::from_secs(5))?;
    // nginx has not noticed.
    let answer = site.connect()?.get("/ok")?;
    assert_eq!(answer.status, Some(200));
    Ok(())
}

/// What is never used is given up for good: by what runs, and by what it could become.
#[test]
fn rights_that_are_not_needed_are_given_up() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start(&lab, &[])?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let mut threads = 0;
    for thread in std::fs::read_dir(format!("/proc/{}/task", probe.pid()))? {
        let status = std::fs::read_to_string(thread?.path().join("status"))?;
        let value =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
        let capabilities = |name: &str| u64::from_str_radix(&value(name), 16);
        // CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_BOOT, CAP_SYS_TIME, CAP_MKNOD, CAP_AUDIT_CONTROL, CAP_SETFCAP, CAP_MAC_ADMIN.
        let never = [16, 17, 22, 25, 27, 30, 31, 33].into_iter().fold(0_u64, |all, bit| all | 1 << bit);
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            ensure!(capabilities(set)? & never == 0, "{set} {}", value(set));
        }
        ensure!(capabilities("CapInh:")? == 0 && capabilities("CapAmb:")? == 0, "{status}");
        ensure!(value("NoNewPrivs:") == "1", "{status}");
        threads += 1;
    }
    ensure!(threads > 1, "{threads} threads");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", probe.pid()))?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap_or_default();
    ensure!(core.split_whitespace().nth(4) == Some("0"), "{core}");
    probe.stop()?;
    Ok(())
}
