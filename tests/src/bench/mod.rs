//! What watching costs: an nginx under load, bare and watched by turns, its CPU time a request by the scheduler's own figures.
//!
//! Requests a second vary by a tenth from round to round on a small machine; the CPU time a request does not. So that is the figure
//! to judge by: bare divided by watched, both of the same round, the median over the rounds.

pub mod contender;
pub mod crowd;
pub mod figures;
mod memory;
pub mod promptness;
pub mod shares;
pub mod stage;
pub mod wrk;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

use contender::Contender;
use figures::{Round, Table};
use stage::{Load, Stage};

/// What is measured, how often and how long.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Times everything is measured.
    pub rounds: usize,
    /// How long each load runs, seconds.
    pub seconds: u32,
    /// Who watches; the bare run is always among them.
    pub contenders: Vec<Contender>,
    /// Which loads.
    pub loads: Vec<Load>,
    /// nginx writes its access log.
    pub access_log: bool,
}

/// Runs it; `say` is told what is going on.
pub fn run(plan: &Plan, mut say: impl FnMut(&str)) -> Result<Table> {
    let stage = Stage::set_up(plan.access_log)?;
    // What is cold is made warm: caches, connections, the page cache of the programs.
    for load in &plan.loads {
        stage.load(*load, 1)?;
    }
    let mut measured: BTreeMap<(Load, Contender), Vec<Option<Round>>> = BTreeMap::new();
    for round in 0..plan.rounds {
        for load in &plan.loads {
            // Everybody is once the first after the others.
            let order = (0..plan.contenders.len()).map(|place| (place + round) % plan.contenders.len());
            for contender in order.map(|place| plan.contenders[place]) {
                let figures = contest(&stage, *load, contender, plan.seconds)
                    .with_context(|| format!("{} under the load {}", contender.name(), load.name()));
                let who = format!("round {}: {:9} {:18}", round + 1, load.name(), contender.name());
                match &figures {
                    Ok(figures) => say(&format!("{who} {figures}")),
                    Err(error) => say(&format!("{who} {error:#}")),
                }
                measured.entry((*load, contender)).or_default().push(figures.ok());
            }
        }
    }
    Ok(Table::of(&measured))
}

/// One contender through one load.
fn contest(stage: &Stage, load: Load, contender: Contender, seconds: u32) -> Result<Round> {
    let watcher = contender.start(stage)?;
    // What a watcher does once when it starts is not what it costs.
    std::thread::sleep(Duration::from_millis(300));
    let before = (stage.spent()?, watcher.spent()?);
    let result = stage.load(load, seconds)?;
    let after = (stage.spent()?, watcher.spent()?);
    let peak_bytes = watcher.peak_bytes();
    let said = watcher.stop()?;
    Ok(Round {
        servers_ns: after.0 - before.0,
        watcher_ns: after.1.saturating_sub(before.1),
        seconds: result.seconds,
        requests: result.requests,
        failed: result.failed,
        latency_us: result.latency_us,
        peak_bytes,
        said,
    })
}
