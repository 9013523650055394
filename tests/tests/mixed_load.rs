//! Forty failures of five kinds among 2,000 healthy requests a second: forty incidents, no more, each right, nothing lost.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use probe_tests::expect::Witness;
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::load::{Load, Traffic};
use probe_tests::probe::Probe;
use probe_tests::site::Site;
use probe_tests::trial::WITHIN;

/// Fresh and reused connections, on the client's side and on the upstream's.
const KINDS: [&str; 5] =
    ["upstream-refused", "upstream-reset", "premature-close", "upstream-reset-late", "read-timeout"];
const ROUNDS: usize = 8;
const LASTS: Duration = Duration::from_secs(20);
const RATE: u32 = 2_000;

/// Half of the traffic on connections that stay, half on connections that are replaced all the time.
fn healthy(site: &Site<'_>) -> Result<[Load; 2]> {
    let traffic =
        Traffic { target: site.address(), uri: "/ok".to_owned(), rate: RATE / 2, connections: 10, requests_each: None };
    let kept = Load::start(site.lab().client(), &traffic)?;
    let replaced = Load::start(site.lab().client(), &Traffic { requests_each: Some(10), ..traffic })?;
    Ok([kept, replaced])
}

/// The slowest test: 20 s of traffic.
#[test]
fn forty_failures_among_forty_thousand_requests() -> Result<()> {
    let lab = Lab::new()?;
    let faults = KINDS.iter().map(|name| Fault::named(name)).collect::<Result<Vec<_>>>()?;
    let site = Site::start(&lab, &faults)?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let loads = healthy(&site)?;
    let start = Instant::now();
    let total = faults.len() * ROUNDS;
    let pause = LASTS / u32::try_from(total)?;
    // Each on a thread of its own: a read timeout must not hold up the next failure.
    let witnesses: Vec<Witness> = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for number in 0..total {
            let due = start + pause * u32::try_from(number)?;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let (site, fault) = (&site, &faults[number % faults.len()]);
            threads.push(scope.spawn(move || site.provoke(fault)));
        }
        let mut witnesses = Vec::new();
        for thread in threads {
            witnesses.extend(thread.join().map_err(|_panic| anyhow!("a failure's thread panicked"))??);
        }
        anyhow::Ok(witnesses)
    })?;
    std::thread::sleep(LASTS.saturating_sub(start.elapsed()));
    let lasted = start.elapsed();
    let mut sent = 0;
    for load in loads {
        let tally = load.stop()?;
        ensure!(tally.all_ok(), "the healthy traffic suffered: {tally:?}");
        sent += tally.sent();
    }
    let wanted = u128::from(RATE) * lasted.as_millis() / 1000;
    ensure!(u128::from(sent) * 100 >= wanted * 95, "only {sent} healthy requests in {lasted:?} instead of {wanted}");

    assert_eq!(witnesses.len(), total);
    probe.check_all(&witnesses, WITHIN)?;
    let ended = probe.stop()?;
    let summary = ended.summary()?;
    ensure!(summary.incidents == total as u64 && summary.near_misses == 0, "{total} incidents, not {summary:?}");
    ensure!(summary.events_lost == 0, "events were lost: {summary:?}");
    let cause = |name: &str| summary.by_cause.get(name).copied().unwrap_or(0);
    let by_cause = ["upstream-refused", "upstream-reset", "premature-close", "read-timeout"].map(cause);
    assert_eq!(by_cause, [8, 16, 8, 8]);
    Ok(())
}
