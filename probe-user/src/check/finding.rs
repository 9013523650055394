//! Something that causes failures, or may, or is worth knowing.

use crate::{decode::config::layout::Place, model::process::Pid};

/// How much a finding weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Requests fail now, or would with the next request.
    Fault,
    /// Requests will fail under circumstances that occur.
    Risk,
    /// Worth knowing when requests fail.
    Note,
}

impl Weight {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fault => "fault",
            Self::Risk => "risk",
            Self::Note => "note",
        }
    }
}

/// What was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Area {
    /// Names, connections, handshakes, answers.
    Upstream,
    /// nginx's configuration.
    Configuration,
    /// What nginx, the upstreams and the kernel may use, and do use.
    Limits,
    /// nginx's own logs.
    Logs,
    /// Routes and packet filters.
    Network,
}

impl Area {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Configuration => "configuration",
            Self::Limits => "limits",
            Self::Logs => "logs",
            Self::Network => "network",
        }
    }
}

/// One finding. Texts may hold what came from the wire or the disk as it was: whoever prints them makes them harmless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it weighs.
    pub weight: Weight,
    /// What was looked at.
    pub area: Area,
    /// The row of the catalogue that it leads to, where it leads to one.
    pub cause: Option<&'static str>,
    /// What it is about: an address, a name, a directive, a process.
    pub subject: String,
    /// In a line.
    pub title: String,
    /// What was seen.
    pub seen: Vec<String>,
    /// Why it matters.
    pub why: String,
    /// What to do, most effective first.
    pub fix: Vec<String>,
    /// Where the configuration says so.
    pub places: Vec<Place>,
    /// The nginx it is about; `None` for a configuration that nobody runs.
    pub nginx: Option<Pid>,
}

impl Finding {
    /// A finding with its title; the rest is added.
    pub(super) fn new(
        weight: Weight,
        area: Area,
        cause: Option<&'static str>,
        subject: &str,
        title: impl Into<String>,
    ) -> Self {
        Self {
            weight,
            area,
            cause,
            subject: subject.to_owned(),
            title: title.into(),
            seen: Vec::new(),
            why: String::new(),
            fix: Vec::new(),
            places: Vec::new(),
            nginx: None,
        }
    }

    /// Adds what was seen.
    pub(super) fn seen(mut self, text: impl Into<String>) -> Self {
        self.seen.push(text.into());
        self
    }

    /// Says why it matters.
    pub(super) fn why(mut self, text: impl Into<String>) -> Self {
        self.why = text.into();
        self
    }

    /// Adds something to do.
    pub(super) fn fix(mut self, text: impl Into<String>) -> Self {
        self.fix.push(text.into());
        self
    }

    /// Says where it is written.
    pub(super) fn at(mut self, places: impl IntoIterator<Item = Place>) -> Self {
        self.places.extend(places);
        self
    }
}
