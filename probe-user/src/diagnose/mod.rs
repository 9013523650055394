//! placeholder until the judgement lands
use crate::model::{case::Case, verdict::Verdict};
pub fn judge(_: &Case) -> Verdict {
    Verdict::Contested(Vec::new())
}
pub fn attempt_causes(_: &Case, _: &Verdict) -> Vec<(String, &'static str)> {
    Vec::new()
}
