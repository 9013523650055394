//! More than one nginx on the host: one behind the other, two beside each other, one in namespaces of its own as in a container.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use probe_tests::expect::Report;
use probe_tests::fault::{Fault, servers::nginx::INNER};
use probe_tests::lab::Lab;
use probe_tests::probe::Probe;
use probe_tests::site::Site;
use probe_tests::trial::WITHIN;

/// Longer than a line may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Two incidents for one failure: the inner one says why, the outer one that it lies behind, and where.
#[test]
fn an_nginx_behind_nginx_is_to_blame() -> Result<()> {
    let lab = Lab::new()?;
    let fault = Fault::named("nginx-behind")?;
    let site = Site::start(&lab, &[fault])?;
    let inner = site.upstream(INNER)?;
    let pids = [site.nginx().master().to_string(), inner.pid().to_string()];
    let probe = Probe::watch(["--pid", &pids[0], "--pid", &pids[1]])?;
    let witnesses = site.provoke(&fault)?;
    let outer = probe.check_all(&witnesses, WITHIN)?.remove(0);

    let local = outer.attempts[0].local.clone();
    let (report, root, _) = probe.wait_incident(PATIENCE, |_, incident| incident.request.client == local)?;
    assert_eq!(report, Report::Incident);
    assert_eq!(root.verdict.cause, "upstream-refused");
    ensure!(inner.workers()?.contains(&root.nginx.pid.unwrap_or(0)), "not by the inner nginx: {root:#?}");
    ensure!(outer.verdict.summary.contains(&root.id), "the inner incident is not named: {outer:#?}");
    let summary = probe.stop()?.summary()?.clone();
    assert_eq!((summary.incidents, summary.near_misses), (2, 0));
    Ok(())
}

/// As in a container: other pids and other files inside than outside, and nothing to read the logs from.
#[test]
fn nginx_in_namespaces_of_its_own() -> Result<()> {
    let lab = Lab::new()?;
    let names = ["upstream-refused", "upstream-reset", "keepalive-race-post", "gunicorn-segfault", "read-timeout"];
    let faults = names.iter().map(|name| Fault::named(name)).collect::<Result<Vec<_>>>()?;
    let site = Site::start_with(&lab, "site", &faults, |plan| plan.config.container = true)?;
    let load = site.healthy("/ok", 200, 6)?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    for fault in &faults {
        for incident in probe.check_all(&site.provoke(fault)?, WITHIN)? {
            let workers = site.nginx().workers()?;
            ensure!(
                incident.nginx.pid.is_some_and(|pid| workers.contains(&pid)),
                "the pid is not the host's: {incident:#?}"
            );
        }
    }
    ensure!(load.stop()?.all_ok(), "the healthy traffic suffered");
    let summary = probe.stop()?.summary()?.clone();
    assert_eq!((summary.incidents, summary.near_misses), (names.len() as u64, 0));
    Ok(())
}

/// Two nginx with the same addresses in different network namespaces, a failure in each at the same time.
#[test]
fn two_masters_with_a_failure_each() -> Result<()> {
    let labs = [Lab::new()?, Lab::new()?];
    let faults = [Fault::named("upstream-reset")?, Fault::named("upstream-refused")?];
    let mut sites = Vec::new();
    for (lab, fault) in labs.iter().zip(faults) {
        sites.push(Site::start(lab, &[fault])?);
    }
    let pids: Vec<String> = sites.iter().map(|site| site.nginx().master().to_string()).collect();
    let probe = Probe::watch(["--pid", &pids[0], "--pid", &pids[1]])?;
    for round in 0..5 {
        let witnesses = std::thread::scope(|scope| {
            let threads: Vec<_> =
                sites.iter().zip(&faults).map(|(site, fault)| scope.spawn(|| site.provoke(fault))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_panic| anyhow!("a site's thread panicked"))?)
                .collect::<Result<Vec<_>>>()
        })?;
        for (site, witnesses) in sites.iter().zip(witnesses) {
            for incident in probe.check_all(&witnesses, WITHIN)? {
                let workers = site.nginx().workers()?;
                ensure!(
                    incident.nginx.pid.is_some_and(|pid| workers.contains(&pid)),
                    "round {round}: another's: {incident:#?}"
                );
            }
        }
    }
    let summary = probe.stop()?.summary()?.clone();
    assert_eq!((summary.incidents, summary.near_misses), (10, 0));
    Ok(())
}
