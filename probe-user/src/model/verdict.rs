//! Judgements.

use super::{coverage::Sensor, evidence::Evidence};

/// How sure a verdict is. Derived by one table from the evidence, never set by a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// Log or timing alone.
    Possible,
    /// The symptom was seen, the cause is inferred.
    Likely,
    /// The cause itself was seen by the kernel or on the wire.
    Confirmed,
}

impl Confidence {
    /// The contract's word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Possible => "possible",
            Self::Likely => "likely",
            Self::Confirmed => "confirmed",
        }
    }
}

/// Something that would have been needed to tell, and was not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Who would have seen it; `None`: no sensor of ours could.
    pub sensor: Option<Sensor>,
    /// What, in one plain sentence without a full stop.
    pub what: String,
}

/// One explanation of a case.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// The cause's id.
    pub cause: &'static str,
    /// How sure.
    pub confidence: Confidence,
    /// What speaks for it.
    pub because: Vec<Evidence>,
    /// What speaks against it.
    pub against: Vec<Evidence>,
    /// What could not be seen.
    pub blind: Vec<Need>,
    /// Other causes that fit the same symptom and are not excluded, by id.
    pub rivals: Vec<&'static str>,
    /// What happened, in a sentence or two, with the values seen.
    pub summary: String,
    /// What to do, most effective first, with the directive or setting named.
    pub fix: Vec<String>,
}

/// The judgement of a case.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// One explanation stands.
    Explained(Explanation),
    /// Several stand equally; none is named as the cause.
    Contested(Vec<Explanation>),
    /// None stands: what was seen, and what would have been needed.
    Unexplained {
        /// What was seen.
        seen: Vec<Evidence>,
        /// What would have been needed.
        needed: Vec<Need>,
        /// In a sentence or two.
        summary: String,
        /// What to do to learn more.
        fix: Vec<String>,
    },
}
