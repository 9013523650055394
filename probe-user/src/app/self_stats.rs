//! What the probe itself costs: `--self-stats`, and `SIGUSR1` at any time.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::session::Session;
use crate::live::spent;

impl Session<'_> {
    /// Says it on stderr, also where little else is said: it was asked for.
    pub(super) fn tell_own_cost(&mut self, started: Instant) {
        self.hide_progress();
        let text = self.own_cost(started);
        let _ = write!(io::stderr(), "probe502: {text}");
    }

    /// The same, if the command line asked for it.
    pub(super) fn tell_own_cost_at_the_end(&mut self, started: Instant) {
        if self.plan.self_stats {
            self.tell_own_cost(started);
        }
    }

    /// The probe's own cost since `started`, some lines of text.
    fn own_cost(&mut self, started: Instant) -> String {
        let elapsed = started.elapsed();
        let mut text = String::new();
        let threads = spent::processor_time();
        let sum: Duration = threads.values().sum();
        // Writing into a String cannot fail, here and below.
        let _ = writeln!(text, "own cost in {:.1} s:", elapsed.as_secs_f64());
        let _ = write!(text, "  processor    {:.3} s, {:.2} % of one:", sum.as_secs_f64(), percent(sum, elapsed));
        for (name, time) in &threads {
            let _ = write!(text, " {name} {:.3} s", time.as_secs_f64());
        }
        let memory = spent::memory().unwrap_or_default();
        let _ = writeln!(
            text,
            "\n  memory       {:.1} MiB, {:.1} at most",
            mebibytes(memory.resident),
            mebibytes(memory.peak)
        );
        let packets = self.followers.packet_statistics();
        let _ = writeln!(
            text,
            "  taken in     {} kernel records, {} packets; {} records and {} packets lost",
            self.counts.records.load(Ordering::Relaxed),
            packets.received,
            self.events_lost(),
            packets.dropped(),
        );
        if let Some(counters) = self.followers.kernel().and_then(|kernel| kernel.counters().ok()) {
            let _ = writeln!(
                text,
                "  left out     {} packets dropped for reasons that mean nothing, {} failures of accept() that only repeat the last",
                counters.drops_noise, counters.accepts_repeated,
            );
        }
        let misses = self.followers.kernel().map(|kernel| kernel.misses()).unwrap_or_default();
        if !misses.is_empty() {
            let each: Vec<String> = misses.iter().map(|(name, count)| format!("{name} {count}")).collect();
            let _ = writeln!(text, "  not run      for events amid another of their kind: {}", each.join(", "));
        }
        let programs = self.followers.kernel().map(|kernel| kernel.program_costs()).unwrap_or_default();
        if programs.is_empty() {
            let _ = writeln!(text, "  programs     not counted: start with --self-stats to have the kernel time them");
            return text;
        }
        let _ = writeln!(text, "  in the kernel, without what reaching each hook costs:");
        for (name, cost) in programs {
            let each = cost.time.as_nanos() / u128::from(cost.runs.max(1));
            let _ = writeln!(
                text,
                "    {name:34} {:>10} runs {each:>6} ns each {:>7.3} % of a processor",
                cost.runs,
                percent(cost.time, elapsed),
            );
        }
        text
    }
}

fn percent(part: Duration, whole: Duration) -> f64 {
    part.as_secs_f64() / whole.as_secs_f64().max(f64::MIN_POSITIVE) * 100.0
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
