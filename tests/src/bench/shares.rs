//! Where the time goes, by sampling: of the servers' processor time, the share that is spent in what a watcher has attached.
//!
//! Whole runs compared with each other vary by a tenth on a machine that others use too. A sample tells within one run whose the moment
//! was: rounds differ by half a percent. What it does not see: what the kernel does before and after a hook to get there (the slow
//! way into a system call, a trap that the hypervisor handles), and caches that are cold afterwards. So it is a lower bound.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::Plan;
use super::contender::Contender;
use super::figures::Spread;
use super::stage::{Load, Stage};
use crate::process::{Process, Start};

/// Samples a second and processor: a prime, so that nothing that happens every millisecond is met each time.
const FREQUENCY: &str = "3989";

/// What a sample belongs to, by a word that one function in its stack contains; the first that fits.
const PLACES: &[(&str, &[&str])] = &[
    ("uprobes", &["exc_int3", "uprobe"]),
    ("packets", &["tpacket_rcv", "packet_rcv", "dev_queue_xmit_nit"]),
    ("state changes", &["_inet_sock_set_state"]),
    ("connect()", &["_sys_exit_connect", "_connect_return"]),
    ("accept()", &["_sys_exit_accept", "_accept_return", "_accept4_return"]),
    ("other programs", &["bpf_prog_", "bpf_trace_run", "trace_call_bpf"]),
    ("call tracepoints", &["perf_syscall_exit", "syscall_exit_work", "syscall_trace_enter", "trace_sys_exit"]),
];

/// Of one watcher under one load.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The load.
    pub load: &'static str,
    /// Who watched.
    pub watcher: &'static str,
    /// The servers' time without the hooks, divided by all that was spent: what `bare / watched` is at most.
    pub ratio: Spread,
    /// Percent of the servers' time, by place; medians.
    pub hooks: BTreeMap<&'static str, f64>,
    /// The watcher's own threads, in percent of the servers' time; median.
    pub own: f64,
}

/// Samples by whose they are.
#[derive(Debug, Default)]
struct Samples {
    servers: u64,
    own: u64,
    hooks: BTreeMap<&'static str, u64>,
}

/// Measures each watcher under each load so many times, by turns; `say` is told what is going on.
pub fn measure(plan: &Plan, mut say: impl FnMut(&str)) -> Result<Vec<Row>> {
    let Plan { rounds, seconds, contenders, loads, access_log } = plan;
    let stage = Stage::set_up(*access_log)?;
    let mut all: BTreeMap<(Load, Contender), Vec<Samples>> = BTreeMap::new();
    for round in 0..*rounds {
        for load in loads {
            for contender in contenders.iter().filter(|contender| **contender != Contender::Bare) {
                let samples = sample(&stage, *load, *contender, *seconds)
                    .with_context(|| format!("{} under the load {}", contender.name(), load.name()))?;
                let (ratio, name) = (samples.ratio(), contender.name());
                say(&format!("round {}: {:9} {name:18} at most {ratio:.3}", round + 1, load.name()));
                all.entry((*load, *contender)).or_default().push(samples);
            }
        }
    }
    Ok(all.into_iter().filter_map(|((load, contender), samples)| Row::of(load, contender, &samples)).collect())
}

/// One run under load.
fn sample(stage: &Stage, load: Load, contender: Contender, seconds: u32) -> Result<Samples> {
    let watcher = contender.start(stage)?;
    let data = stage.lab().directory().join("perf.data");
    let mut command = Command::new("perf");
    command.args(["record", "-q", "-a", "-g", "-e", "cpu-clock", "-F", FREQUENCY, "-o"]).arg(&data);
    command.args(["--", "sleep", &seconds.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let servers = stage.workers()?;
    let own = watcher.pid();
    let mut perf = Process::spawn("perf", command, Start::default()).context("is linux-perf installed?")?;
    stage.load(load, seconds + 1)?;
    let status = perf.wait(Duration::from_secs(20))?;
    ensure!(status.success(), "perf record: {status}");
    watcher.stop()?;
    let mut script = Command::new("perf")
        .args(["script", "-F", "pid,ip,sym", "-i"])
        .arg(&data)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("start perf script")?;
    let output = script.stdout.take().context("perf script has no output")?;
    let mut samples = Samples::default();
    let mut stack: Vec<String> = Vec::new();
    let mut pid = None;
    for line in BufReader::new(output).lines() {
        let line = line.context("read what perf script prints")?;
        if line.trim().is_empty() {
            samples.take(pid.take(), &stack, &servers, own);
            stack.clear();
        } else if pid.is_none() {
            pid = line.trim().trim_end_matches(':').parse::<u32>().ok();
        } else {
            stack.extend(line.split_whitespace().nth(1).map(str::to_owned));
        }
    }
    samples.take(pid, &stack, &servers, own);
    script.wait().context("wait for perf script")?;
    ensure!(samples.servers > 0, "perf saw nothing of the servers");
    Ok(samples)
}

impl Samples {
    fn take(&mut self, pid: Option<u32>, stack: &[String], servers: &BTreeSet<u32>, own: Option<u32>) {
        let Some(pid) = pid else { return };
        if Some(pid) == own {
            self.own += 1;
            return;
        }
        self.servers += u64::from(servers.contains(&pid));
        // Packets arrive in whoever's time it is.
        let contains = |words: &[&str]| stack.iter().any(|function| words.iter().any(|word| function.contains(word)));
        if let Some((place, _)) = PLACES.iter().find(|(_, words)| contains(words)) {
            *self.hooks.entry(place).or_default() += 1;
        }
    }

    fn ratio(&self) -> f64 {
        let hooks: u64 = self.hooks.values().sum();
        float(self.servers.saturating_sub(hooks)) / float(self.servers + self.own)
    }
}

impl Row {
    fn of(load: Load, contender: Contender, samples: &[Samples]) -> Option<Self> {
        let percent = |part: u64, of: &Samples| 100.0 * float(part) / float(of.servers);
        let median = |values: Vec<f64>| Spread::of(values).map_or(0.0, |spread| spread.median);
        let hook = |place: &'static str| {
            median(samples.iter().map(|one| percent(one.hooks.get(place).copied().unwrap_or(0), one)).collect())
        };
        Some(Self {
            load: load.name(),
            watcher: contender.name(),
            ratio: Spread::of(samples.iter().map(Samples::ratio).collect())?,
            hooks: PLACES.iter().map(|(place, _)| (*place, hook(place))).collect(),
            own: median(samples.iter().map(|one| percent(one.own, one)).collect()),
        })
    }
}

impl Display for Row {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let Self { load, watcher, ratio, hooks, own } = self;
        let Spread { median, low, high } = ratio;
        write!(formatter, "{load:9} {watcher:18} at most {median:.3} ({low:.3}-{high:.3}); of the servers' time: ")?;
        for (place, percent) in hooks.iter().filter(|(_, percent)| **percent >= 0.05) {
            write!(formatter, "{place} {percent:.1} %, ")?;
        }
        write!(formatter, "its own threads {own:.1} %")
    }
}

#[expect(clippy::cast_precision_loss, reason = "samples of some seconds")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_somebodys() {
        let servers = BTreeSet::from([10, 11]);
        let mut samples = Samples::default();
        let stack = |functions: &[&str]| functions.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        samples.take(Some(10), &stack(&["tcp_ack", "tcp_v4_rcv"]), &servers, Some(9));
        samples.take(
            Some(11),
            &stack(&["memset", "bpf_prog_0980e_inet_sock_set_state", "bpf_trace_run3"]),
            &servers,
            Some(9),
        );
        samples.take(Some(10), &stack(&["up_read", "uprobe_notify_resume", "asm_exc_int3"]), &servers, Some(9));
        // In the time of somebody who only happened to be there, in the watcher's, in nobody's.
        samples.take(Some(7), &stack(&["tpacket_rcv"]), &servers, Some(9));
        samples.take(Some(9), &stack(&["memmove"]), &servers, Some(9));
        samples.take(None, &stack(&["tpacket_rcv"]), &servers, Some(9));
        assert_eq!((samples.servers, samples.own), (3, 1));
        let hooks: Vec<(&str, u64)> = samples.hooks.iter().map(|(place, count)| (*place, *count)).collect();
        assert_eq!(hooks, [("packets", 1), ("state changes", 1), ("uprobes", 1)]);
        assert!(samples.ratio().abs() < 1e-9);
    }
}
