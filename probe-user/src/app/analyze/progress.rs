//! How far an analysis has come, on standard error, where somebody looks at it and it takes longer than a second.

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::input::Reached;

/// What is over sooner needs no bar.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it moves.
const STEP: Duration = Duration::from_millis(200);
/// Its length in characters.
const WIDTH: u64 = 40;

/// The bar.
#[derive(Debug)]
pub(super) struct Bar {
    wanted: bool,
    started: Instant,
    shown: Option<Instant>,
    done: Vec<Arc<AtomicU64>>,
    /// Bytes there are; `None`: of one input nobody knows.
    total: Option<u64>,
}

impl Bar {
    /// Not shown yet.
    pub(super) fn new(wanted: bool) -> Self {
        let wanted = wanted && io::stderr().is_terminal();
        Self { wanted, started: Instant::now(), shown: None, done: Vec::new(), total: Some(0) }
    }

    /// Counts this input too.
    pub(super) fn follow(&mut self, reached: &Reached) {
        self.done.push(Arc::clone(&reached.done));
        self.total = self.total.zip(reached.total).map(|(all, one)| all + one);
    }

    /// Shows it, if it is time.
    pub(super) fn show(&mut self) {
        if !self.wanted || self.started.elapsed() < PATIENCE || self.shown.is_some_and(|at| at.elapsed() < STEP) {
            return;
        }
        self.shown = Some(Instant::now());
        let done: u64 = self.done.iter().map(|done| done.load(Ordering::Relaxed)).sum();
        let text = match self.total.filter(|total| *total > 0) {
            Some(total) => {
                let filled = (done.min(total) * WIDTH) / total;
                let bar: String = (0..WIDTH).map(|at| if at < filled { '#' } else { '.' }).collect();
                format!("[{bar}] {} of {} MB", done / 1_000_000, total / 1_000_000)
            }
            None => format!("{} MB read", done / 1_000_000),
        };
        let _ = write!(io::stderr(), "\r\x1b[K{text}");
        let _ = io::stderr().flush();
    }

    /// Takes it away: something else is to be written.
    pub(super) fn hide(&mut self) {
        if self.shown.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
            let _ = io::stderr().flush();
        }
    }
}
