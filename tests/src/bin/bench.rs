//! `cargo xtask bench live`: what watching costs.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line program for the people who build this")]

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use probe_tests::bench::{
    self, Plan,
    contender::{Contender, HOOKS},
    crowd::{self, Crowd},
    figures::Table,
    promptness::{self, Promptness},
    shares,
    stage::Load,
};
use serde::Serialize;

const USAGE: &str = "bench [--rounds N] [--seconds S] [--loads A,B] [--watchers A,B | --hooks all|A+B] \
                     [--promptness yes|no|only] [--memory yes|no|only] [--shares yes|no|only] \
                     [--access-log yes|no] [--json FILE]";

/// Connections that are open when the probe is started to see how soon it is ready.
const OPEN: usize = 10_000;

/// How long connections stay open before memory is looked at, twice.
const REST: Duration = Duration::from_secs(20);

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// Processor time a request and latency, of whole runs.
    Costs,
    /// Whose each moment is, by sampling.
    Shares,
    /// How soon the probe says what it says.
    Promptness,
    /// What it holds while very many connections are open.
    Memory,
}

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
struct Figures {
    #[serde(flatten)]
    table: Option<Table>,
    promptness: Option<Promptness>,
    memory: Option<Crowd>,
    shares: Vec<shares::Row>,
}

fn main() -> Result<()> {
    let (contenders, loads) = (Contender::ALL.to_vec(), Load::ALL.to_vec());
    let mut plan = Plan { rounds: 7, seconds: 2, contenders, loads, access_log: false };
    let mut json: Option<PathBuf> = None;
    let mut parts = BTreeSet::from([Part::Costs, Part::Promptness, Part::Memory]);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{argument} needs a value; {USAGE}"))?;
        match argument.as_str() {
            "--rounds" => plan.rounds = value.parse().context("--rounds takes a number")?,
            "--seconds" => plan.seconds = value.parse().context("--seconds takes a number")?,
            "--loads" => plan.loads = chosen(&value, &Load::ALL, Load::name)?,
            "--watchers" => {
                let all = [&Contender::ALL[..], &Contender::BEFORE].concat();
                plan.contenders = chosen(&value, &all, Contender::name)?;
            }
            "--hooks" => (plan.contenders, parts) = (hooks(&value)?, BTreeSet::from([Part::Costs])),
            "--promptness" => choose(&mut parts, Part::Promptness, &value)?,
            "--memory" => choose(&mut parts, Part::Memory, &value)?,
            "--shares" => choose(&mut parts, Part::Shares, &value)?,
            "--access-log" => plan.access_log = yes(&value)?,
            "--json" => json = Some(value.into()),
            _ => bail!("{argument} is not known; {USAGE}"),
        }
    }
    if !plan.contenders.contains(&Contender::Bare) {
        plan.contenders.insert(0, Contender::Bare);
    }
    let mut figures = Figures::default();
    if parts.contains(&Part::Costs) {
        let table = bench::run(&plan, |text| eprintln!("{text}"))?;
        println!("{table}");
        figures.table = Some(table);
    }
    if parts.contains(&Part::Shares) {
        figures.shares = shares::measure(&plan, |text| eprintln!("{text}"))?;
        for row in &figures.shares {
            println!("{row}");
        }
    }
    if parts.contains(&Part::Promptness) {
        let promptness = promptness::measure(OPEN)?;
        println!("{promptness}");
        figures.promptness = Some(promptness);
    }
    if parts.contains(&Part::Memory) {
        let crowd = crowd::measure(crowd::CONNECTIONS, REST)?;
        println!("{crowd}");
        figures.memory = Some(crowd);
    }
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&figures).context("write the figures")?;
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Adds a part, leaves it out, or leaves out all others.
fn choose(parts: &mut BTreeSet<Part>, part: Part, value: &str) -> Result<()> {
    match value {
        "yes" => _ = parts.insert(part),
        "no" => _ = parts.remove(&part),
        "only" => *parts = BTreeSet::from([part]),
        _ => bail!("{value} is none of yes, no, only; {USAGE}"),
    }
    Ok(())
}

fn yes(value: &str) -> Result<bool> {
    match value {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => bail!("{value} is none of yes, no; {USAGE}"),
    }
}

/// The hooks whose names contain one of those given, with `+` between them.
fn hooks(list: &str) -> Result<Vec<Contender>> {
    let wanted = |name: &str| list == "all" || list.split('+').any(|part| name.contains(part));
    let found: Vec<Contender> = HOOKS.iter().filter(|name| wanted(name)).map(|name| Contender::Hook(name)).collect();
    if found.is_empty() {
        bail!("{list} names no hook; {}", HOOKS.join(" "));
    }
    Ok(found)
}

/// Those of `all` that are named in a list with commas.
fn chosen<T: Copy>(list: &str, all: &[T], name: fn(T) -> &'static str) -> Result<Vec<T>> {
    list.split(',')
        .map(|wanted| {
            let found = all.iter().copied().find(|item| name(*item) == wanted);
            let names = || all.iter().map(|item| name(*item)).collect::<Vec<_>>().join(", ");
            found.with_context(|| format!("{wanted} is not one of {}", names()))
        })
        .collect()
}
