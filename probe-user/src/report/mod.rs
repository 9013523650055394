//! Verdicts as people and programs read them, as text and files. Pure: values in, text and bytes out, and somebody else writes them.

pub mod collection;
pub mod connection;
pub mod digest;
pub mod explain;
pub mod findings;
pub mod html;
pub mod json;
pub mod markdown;
pub mod pcapng;
pub mod place;
pub mod redact;
pub mod text;
pub mod timeline;
mod wording;

pub use self::wording::fact;
use crate::model::verdict::{Explanation, Verdict};

/// The cause's id where none is proved.
pub const UNKNOWN: &str = "unknown";

/// The cause a verdict names, by id: what a summary counts.
#[must_use]
pub fn cause(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Explained(explanation) => explanation.cause,
        Verdict::Contested(_) | Verdict::Unexplained { .. } => UNKNOWN,
    }
}

/// What a contested verdict says: both, and that neither is named as the cause.
fn contested_summary(explanations: &[Explanation]) -> String {
    let names: Vec<&str> = explanations.iter().map(|explanation| explanation.cause).collect();
    let details: Vec<String> =
        explanations.iter().map(|explanation| format!("{}: {}", explanation.cause, explanation.summary)).collect();
    format!("Equally well proved: {}; none is named as the cause. {}", names.join(", "), details.join(" "))
}
