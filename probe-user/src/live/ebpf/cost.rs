//! What each program of ours has cost, as the kernel counts it.

use std::{collections::BTreeMap, io, os::fd::OwnedFd, time::Duration};

use aya::sys::{Stats, enable_stats};

use super::load::Kernel;

/// While it lives the kernel counts how long every program of the host runs (5.8). That costs two looks at the clock each time one does.
#[derive(Debug)]
pub struct Counting(#[expect(dead_code, reason = "closing it ends the counting")] OwnedFd);

/// Asks the kernel to count.
pub fn count_run_times() -> io::Result<Counting> {
    enable_stats(Stats::RunTime).map(Counting).map_err(|error| error.io_error)
}

/// What one program has cost since it was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramCost {
    /// How often it ran while the kernel counted.
    pub runs: u64,
    /// How long it ran altogether, without what the hook itself costs (a breakpoint's trap, a tracepoint's entry).
    pub time: Duration,
}

impl Kernel {
    /// Every program that has run, by name. Empty if nobody asked the kernel to count.
    #[must_use]
    pub fn program_costs(&self) -> BTreeMap<String, ProgramCost> {
        self.ebpf
            .programs()
            .filter_map(|(name, program)| {
                let info = program.info().ok()?;
                let cost = ProgramCost { runs: info.run_count(), time: info.run_time() };
                (cost.runs > 0).then(|| (name.to_owned(), cost))
            })
            .collect()
    }
}
