//! The bench works, in its shortest form: it measures everybody it is asked for, and the probe tells every failure and loses nothing. What it
//! measures is not judged here: a machine that tests is no machine that measures.

use std::time::Duration;

use anyhow::{Result, ensure};
use probe_tests::bench::contender::{Contender, HOOKS};
use probe_tests::bench::stage::Load;
use probe_tests::bench::wrk::CONNECTIONS;
use probe_tests::bench::{self, Plan};
use probe_tests::bench::{crowd, promptness};

#[test]
fn every_failure_under_load_is_told_and_nothing_is_lost() -> Result<()> {
    let contenders = vec![Contender::Bare, Contender::Light, Contender::Standard];
    let plan =
        Plan { rounds: 1, seconds: 1, contenders, loads: vec![Load::Keepalive, Load::Failing], access_log: true };
    let table = bench::run(&plan, |_| ())?;
    ensure!(table.rows.len() == 6, "a row for each load and watcher: {table}");
    for row in &table.rows {
        ensure!(row.rounds == 1, "{} under {} could not be measured", row.watcher, row.load);
        ensure!(row.cpu_us.is_some_and(|cpu| cpu.median > 0.0), "no processor time: {row:?}");
        ensure!(row.lost.unwrap_or(0) == 0, "lost: {row:?}");
        let counted = row.failed..=row.failed + if row.failed > 0 { CONNECTIONS } else { 0 };
        ensure!(row.told.is_none_or(|told| counted.contains(&told)), "not every failure was told: {row:?}");
        ensure!((row.load == "failing") == (row.failed > 0), "what failed: {row:?}");
    }
    Ok(())
}

#[test]
fn hooks_are_priced_alone() -> Result<()> {
    let hook = |wanted: &str| HOOKS.iter().copied().find(|name| *name == wanted).map(Contender::Hook);
    let contenders: Vec<Contender> = ["nothing", "ngx_http_send_header"].into_iter().filter_map(hook).collect();
    ensure!(contenders.len() == 2, "the hooks have other names now: {HOOKS:?}");
    let plan = Plan { rounds: 1, seconds: 1, contenders, loads: vec![Load::Keepalive], access_log: false };
    let table = bench::run(&plan, |_| ())?;
    ensure!(table.rows.iter().all(|row| row.rounds == 1 && row.rate.is_some()), "{table}");
    Ok(())
}

#[test]
fn promptness_is_measured() -> Result<()> {
    let promptness = promptness::measure(200)?;
    ensure!(promptness.ready_ms > 0.0 && promptness.ready_bytes > 0, "{promptness:?}");
    ensure!(promptness.line_ms.is_sorted() && promptness.line_ms[0] > 0.0, "{promptness:?}");
    Ok(())
}

#[test]
fn memory_is_measured_while_connections_are_open() -> Result<()> {
    let crowd = crowd::measure(500, Duration::from_secs(1))?;
    ensure!(crowd.lost == 0, "{crowd}");
    // Five hundred connections are not a tenth of what is there without any.
    ensure!(crowd.open.iter().all(|bytes| *bytes < crowd.before + (8 << 20)), "{crowd}");
    Ok(())
}
