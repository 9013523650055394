//! All faults of one family at the same moment, on two workers, among 1,000 healthy requests a second: every incident right, no more,
//! no less, nothing lost.

use std::sync::Barrier;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use probe_tests::expect::{Report, WRONG, Witness};
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::load::{Load, Traffic};
use probe_tests::probe::Probe;
use probe_tests::site::Site;
use probe_tests::trial::WITHIN;

const RATE: u32 = 1_000;

/// Those of a family.
fn of(family: &str) -> Result<Vec<Fault>> {
    let (_, faults) = Fault::families().into_iter().find(|(name, _)| *name == family).context("a family")?;
    Ok(faults)
}

#[test]
fn every_fault_is_in_a_family() {
    let suites = [Fault::sharing(), Fault::of_connection(), Fault::of_protocol(), Fault::of_connect()];
    let mut all: Vec<&str> = suites.iter().flatten().filter(|fault| !fault.alone).map(|fault| fault.name).collect();
    let mut families: Vec<&str> =
        Fault::families().iter().flat_map(|(_, faults)| faults).map(|fault| fault.name).collect();
    all.sort_unstable();
    families.sort_unstable();
    assert_eq!(families, all);
}

#[test]
fn connect() -> Result<()> {
    at_once(&of("connect")?)
}

#[test]
fn filters() -> Result<()> {
    at_once(&of("filters")?)
}

#[test]
fn routes_and_queues() -> Result<()> {
    at_once(&of("routes")?)
}

#[test]
fn unix_sockets_and_names() -> Result<()> {
    at_once(&of("names")?)
}

#[test]
fn connection() -> Result<()> {
    at_once(&of("connection")?)
}

#[test]
fn protocol() -> Result<()> {
    at_once(&of("protocol")?)
}

#[test]
fn origin() -> Result<()> {
    at_once(&of("origin")?)
}

#[test]
fn unannounced() -> Result<()> {
    at_once(&of("unannounced")?)
}

/// Half of the traffic on connections that stay, half on connections that are replaced all the time.
fn healthy(site: &Site<'_>) -> Result<[Load; 2]> {
    let uri = "/ok".to_owned();
    let traffic = Traffic { target: site.address(), uri, rate: RATE / 2, connections: 8, requests_each: None };
    let kept = Load::start(site.lab().client(), &traffic)?;
    let replaced = Load::start(site.lab().client(), &Traffic { requests_each: Some(10), ..traffic })?;
    Ok([kept, replaced])
}

fn at_once(faults: &[Fault]) -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start(&lab, faults)?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let loads = healthy(&site)?;
    std::thread::sleep(Duration::from_millis(500));
    let gate = Barrier::new(faults.len());
    let provoked: Vec<Result<Vec<Witness>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = faults
            .iter()
            .map(|fault| {
                let (site, gate) = (&site, &gate);
                scope.spawn(move || {
                    gate.wait();
                    site.provoke(fault)
                })
            })
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Vec<Witness>>>| {
            thread.join().unwrap_or_else(|_panic| Err(anyhow!("a fault's thread panicked")))
        };
        threads.into_iter().map(join).collect()
    });
    let mut failures = Vec::new();
    let mut expected = [0, 0];
    for (fault, witnesses) in faults.iter().zip(provoked) {
        let witnesses = match witnesses {
            Ok(witnesses) => witnesses,
            Err(error) => {
                failures.push(format!("{error:#}"));
                continue;
            }
        };
        for witness in &witnesses {
            match witness.expected.report {
                Report::Incident => expected[0] += 1,
                Report::NearMiss => expected[1] += 1,
                Report::Nothing => {}
            }
        }
        if let Err(error) = probe.check_all(&witnesses, WITHIN) {
            failures.push(format!("=== {}\n{error:#}", fault.name));
        }
    }
    // Anything that should not be said has had its time.
    std::thread::sleep(WITHIN);
    for load in loads {
        let tally = load.stop()?;
        ensure!(tally.all_ok(), "the healthy traffic suffered: {tally:?}");
        ensure!(tally.sent() > 500, "hardly any healthy traffic: {tally:?}");
    }
    let ended = probe.stop()?;
    let summary = ended.summary()?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    let told = [summary.incidents, summary.near_misses];
    let too_many = if told.iter().zip(&expected).any(|(told, expected)| told > expected) { WRONG } else { "the count" };
    ensure!(told == expected, "{too_many}: {expected:?}, not {summary:?}");
    ensure!(summary.events_lost == 0, "events were lost: {summary:?}");
    Ok(())
}
