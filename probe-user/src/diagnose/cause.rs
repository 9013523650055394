//! A row of the catalogue: what it is called, what `explain` prints, and the rule that recognises it.

use std::fmt::{self, Write as _};

use super::reading::Reading;
use crate::model::{evidence::Evidence, verdict::Need};

/// Where in the life of an attempt the cause strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// No connection came about.
    Connect,
    /// Connected, but no whole answer.
    Connection,
    /// An answer that nginx cannot take.
    Protocol,
    /// Not the connection's fault.
    Origin,
}

impl Family {
    /// The catalogue's word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Connection => "connection",
            Self::Protocol => "protocol",
            Self::Origin => "origin",
        }
    }
}

/// How much a cause says. When several are equally sure, the one that says more is the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// What nginx noticed: a reset, a close, a timer.
    Symptom,
    /// What made that happen on the connection or the host.
    Mechanism,
    /// The process at the other end is gone.
    ProcessGone,
    /// What made the process go: a fault of its own.
    ProcessCrash,
    /// Somebody ended the process.
    ProcessKilled,
    /// The kernel's OOM killer ended the process.
    ProcessOom,
}

/// For whom, and what to do.
pub type Remedy = (&'static str, &'static str);

/// The families of servers that every page speaks to, in the order in which the tables that pages share do.
pub const FAMILIES: [&str; 8] = ["gunicorn", "uvicorn", "Node.js", "Puma", "php-fpm", "uWSGI", "Go", "Java"];

/// The page that `explain` prints.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// What happened, in plain words.
    pub happened: &'static str,
    /// What makes the verdict `confirmed`.
    pub proof: &'static str,
    /// What would show that it is something else.
    pub refuted: &'static str,
    /// What to do: nginx and the host, then the server at the other end, with a line for each of [`FAMILIES`].
    pub remedies: &'static [Remedy],
}

/// A row of the catalogue.
#[derive(Clone, Copy, Debug)]
pub struct Cause {
    /// Its id; never changes its meaning.
    pub id: &'static str,
    /// In half a line.
    pub title: &'static str,
    /// Where it strikes.
    pub family: Family,
    /// What nginx answers by default when this is the last attempt's fate; empty: anything.
    pub statuses: &'static [u16],
    /// How much it says.
    pub depth: Depth,
    /// What `explain` prints.
    pub page: Page,
    /// Recognises it; `None`: it does not fit at all.
    pub(super) rule: fn(&Reading<'_>) -> Option<Finding>,
}

/// What a rule found. It says what was seen and what was not; how sure that makes us is not its business.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Finding {
    /// What speaks for the cause.
    pub because: Vec<Evidence>,
    /// What speaks against it.
    pub against: Vec<Evidence>,
    /// Parts of the proof that are not there, and who would have seen them.
    pub missing: Vec<Need>,
    /// Causes with the same symptom that are not excluded.
    pub rivals: Vec<&'static str>,
    /// What happened, with the values seen.
    pub summary: String,
    /// What to do, most effective first.
    pub fix: Vec<String>,
}

impl Finding {
    /// Adds evidence for it, if there is any; whether there was.
    pub(super) fn support(&mut self, evidence: Option<Evidence>) -> bool {
        let present = evidence.is_some();
        self.because.extend(evidence);
        present
    }

    /// Adds evidence against it, if there is any; whether there was.
    pub(super) fn oppose(&mut self, evidence: Option<Evidence>) -> bool {
        let present = evidence.is_some();
        self.against.extend(evidence);
        present
    }

    /// A part of the proof: the evidence, or the need for it.
    pub(super) fn require(&mut self, evidence: Option<Evidence>, need: impl FnOnce() -> Need) -> bool {
        let present = self.support(evidence);
        if !present {
            self.missing.push(need());
        }
        present
    }

    /// Adds to the summary.
    pub(super) fn say(&mut self, words: fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.summary.write_fmt(words);
    }

    /// Names causes that are not excluded.
    pub(super) fn not_excluded(&mut self, rivals: &[&'static str]) {
        for rival in rivals {
            if !self.rivals.contains(rival) {
                self.rivals.push(rival);
            }
        }
    }
}
