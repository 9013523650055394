//! The lab itself: every fault really yields the status, the attempts and the error-log line it claims, without any probe.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use probe_tests::each_fault;
use probe_tests::expect::Witness;
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::process::wait_until;
use probe_tests::site::Site;

/// Checks what nginx logged about a witness: the error line's words beside this request's target, and in the access log the
/// client's own port, the status and as many upstream addresses as attempts are expected.
fn check_logs(site: &Site<'_>, witness: &Witness) -> Result<()> {
    let Witness { exchange, expected } = witness;
    let target = format!("{} {} HTTP/1.1", exchange.method, exchange.uri);
    let errors = site.nginx().error_log()?;
    let of_request: Vec<&str> = errors.lines().filter(|line| line.contains(&target)).collect();
    match expected.error_log {
        Some(piece) => ensure!(of_request.iter().any(|line| line.contains(piece)), "no {piece:?} in\n{errors}"),
        None => ensure!(of_request.is_empty(), "an unexpected line in\n{errors}"),
    }
    let port = format!(" {} ", exchange.local.port());
    let mut line = None;
    wait_until("the access log has the request", Duration::from_secs(2), || {
        let log = site.nginx().access_log()?;
        line = log.lines().find(|line| line.contains(&port) && line.contains(&target)).map(str::to_owned);
        Ok(line.is_some())
    })?;
    let line = line.context("the access log's line")?;
    let status = expected.status.unwrap_or(499);
    ensure!(line.starts_with(&format!("{status} ")), "status {status} in {line}");
    if expected.error_log.is_some() && !expected.attempts.is_empty() && expected.status != Some(500) {
        let peers: Vec<&str> = expected.attempts.iter().map(|attempt| attempt.upstream.as_str()).collect();
        ensure!(line.contains(&format!("\"{}\"", peers.join(", "))), "the peers {peers:?} in {line}");
    }
    Ok(())
}

/// Brings one fault about in a lab of its own, amid healthy traffic that must stay healthy.
fn prove(name: &str) -> Result<()> {
    let lab = Lab::new()?;
    let fault = Fault::named(name)?;
    let site = Site::start(&lab, &[fault])?;
    let load = site.healthy(fault.healthy, 100, 4)?;
    let witnesses = site.provoke(&fault)?;
    for witness in &witnesses {
        check_logs(&site, witness)?;
    }
    let tally = load.stop()?;
    ensure!(tally.all_ok() && tally.sent() > 3, "the healthy traffic suffered: {tally:?}");
    Ok(())
}

each_fault!(prove);

#[test]
fn on_the_loopback_everything_works_in_one_namespace() -> Result<()> {
    let lab = Lab::on_host_loopback()?;
    let faults: Vec<Fault> = Fault::sharing().into_iter().filter(|fault| !fault.apart).collect();
    let site = Site::start(&lab, &faults)?;
    for fault in &faults {
        for witness in site.provoke(fault)? {
            check_logs(&site, &witness)?;
        }
    }
    Ok(())
}

/// The load of `mixed_load.rs` can be had on this machine at all.
#[test]
fn two_thousand_healthy_requests_a_second() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start(&lab, &[])?;
    let load = site.healthy("/ok", 2_000, 20)?;
    std::thread::sleep(Duration::from_secs(3));
    let tally = load.stop()?;
    ensure!(tally.all_ok(), "{tally:?}");
    ensure!(tally.sent() >= 3 * 2_000 * 95 / 100, "{tally:?}");
    Ok(())
}

/// A lab whose process is gone is removed by the next one, with everything that still runs in it.
#[test]
fn what_a_lost_lab_left_is_swept() -> Result<()> {
    // Pids end at 4194304: nobody is this one.
    let lost = "p502-4194399-0-proxy";
    let ip = |arguments: &[&str]| Command::new("ip").args(arguments).stdin(Stdio::null()).output();
    ensure!(ip(&["netns", "add", lost])?.status.success());
    let directory = std::env::temp_dir().join("p502-4194399-0-x");
    std::fs::create_dir(&directory)?;
    let mut orphan = Command::new("ip").args(["netns", "exec", lost, "sleep", "60"]).spawn()?;
    wait_until("the orphan runs", Duration::from_secs(5), || Ok(!ip(&["netns", "pids", lost])?.stdout.is_empty()))?;
    let _lab = Lab::new()?;
    let ended = orphan.wait()?;
    ensure!(!ended.success(), "the orphan was killed, not left to its end");
    ensure!(!Path::new("/run/netns").join(lost).exists() && !directory.exists());
    Ok(())
}

/// The lab leaves nothing behind, also when a test panics in the middle of it.
#[test]
fn a_panic_leaves_nothing_behind() -> Result<()> {
    let seen = std::sync::Mutex::new((Vec::new(), std::path::PathBuf::new()));
    let result = std::panic::catch_unwind(|| {
        let lab = Lab::new().unwrap();
        let _site = Site::start(&lab, &[]).unwrap();
        let names = [lab.client(), lab.proxy(), lab.app()].map(|namespace| namespace.name().to_owned());
        *seen.lock().unwrap() = (names.to_vec(), lab.directory().to_owned());
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    ensure!(result.is_err());
    let (names, directory) = seen.into_inner()?;
    assert_eq!(names.len(), 3);
    for name in names {
        ensure!(!Path::new("/run/netns").join(&name).exists(), "{name} is left");
    }
    ensure!(!directory.exists());
    Ok(())
}

/// What `lifecycle.rs` relies on: reload, rotation and a killed worker as nginx really does them.
#[test]
fn nginx_reloads_rotates_and_replaces_workers() -> Result<()> {
    let lab = Lab::new()?;
    let fault = Fault::named("upstream-refused")?;
    let site = Site::start(&lab, &[fault])?;
    let nginx = site.nginx();
    let old = nginx.workers()?;
    let new = nginx.reload()?;
    assert_eq!(new.len(), old.len());
    let served_by = |exchange: &probe_tests::client::Exchange| -> Result<u32> {
        let log = nginx.access_log()?;
        let port = format!(" {} ", exchange.local.port());
        let line = log.lines().rfind(|line| line.contains(&port)).context("the access log's line")?;
        line.split(' ').rev().skip(4).find_map(|word| word.parse().ok()).context("a pid")
    };
    let exchange = &site.provoke(&fault)?[0].exchange;
    ensure!(new.contains(&served_by(exchange)?), "served by none of {new:?}");

    nginx.rotate_error_log()?;
    ensure!(nginx.error_log()?.is_empty());
    site.provoke(&fault)?;
    ensure!(nginx.error_log()?.contains("Connection refused"));

    let replacement = nginx.kill_worker(new[0])?;
    ensure!(!new.contains(&replacement) && nginx.workers()?.len() == new.len());
    Ok(())
}
