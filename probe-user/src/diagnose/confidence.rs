//! The one place where confidence comes from.

use super::{cause::Finding, reading::Reading};
use crate::model::{attempt::Link, coverage::Sensor, evidence::Weight, verdict::Confidence};

/// How far the tie between attempt and connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tie {
    /// The evidence certainly belongs to this request.
    Firm,
    /// It was matched by time and content, or a later attempt can have gone unseen.
    Loose,
}

/// The table:
///
/// | cause itself seen | every part of the proof there | nothing against | no rival left | tie | confidence |
/// | --- | --- | --- | --- | --- | --- |
/// | yes | yes | yes | yes | firm | confirmed |
/// | at least the symptom, by the kernel or on the wire | | | | | likely |
/// | log or timing alone | | | | | possible |
///
/// Something against it takes one step more.
pub(super) fn derive(finding: &Finding, tie: Tie) -> Confidence {
    let heaviest = finding.because.iter().map(|evidence| evidence.weight).max();
    let contradicted = !finding.against.is_empty();
    match heaviest {
        Some(Weight::Direct)
            if !contradicted && finding.missing.is_empty() && finding.rivals.is_empty() && tie == Tie::Firm =>
        {
            Confidence::Confirmed
        }
        Some(Weight::Direct | Weight::Symptom) if !contradicted => Confidence::Likely,
        _ => Confidence::Possible,
    }
}

/// A link by time and content is never certain: lines of one request can have been taken for two, and its last attempt for another's.
/// Nor is an exact one while nginx was seen with gaps or records were lost: what was not seen can have been about a later attempt,
/// which made the status.
pub(super) fn tie(reading: &Reading<'_>) -> Tie {
    let link = reading.attempt.map_or(reading.case.link, |attempt| attempt.link.min(reading.case.link));
    // nginx's own list of attempts was read when it decided, or every decision would have been seen.
    let listed = reading.attempt.is_none_or(|attempt| attempt.status.is_some());
    let seen = match link {
        Link::Exact => reading.sees(Sensor::NginxFunctions) && (listed || reading.sees(Sensor::NginxStatuses)),
        Link::Strong => reading.sees(Sensor::Syscalls),
        Link::Inferred => false,
    };
    if seen && reading.case.attempts_complete { Tie::Firm } else { Tie::Loose }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        evidence::{Evidence, Fact},
        verdict::Need,
    };

    fn finding(weights: &[Weight]) -> Finding {
        let because = weights
            .iter()
            .map(|weight| Evidence { fact: Fact::KernelTimer, events: Vec::new(), weight: *weight })
            .collect();
        Finding { because, ..Finding::default() }
    }

    #[test]
    fn the_cause_itself_seen_is_confirmed() {
        assert_eq!(derive(&finding(&[Weight::Fits, Weight::Direct]), Tie::Firm), Confidence::Confirmed);
    }

    #[test]
    fn the_symptom_is_likely_and_a_log_line_is_possible() {
        assert_eq!(derive(&finding(&[Weight::Fits, Weight::Symptom]), Tie::Firm), Confidence::Likely);
        assert_eq!(derive(&finding(&[Weight::Fits]), Tie::Firm), Confidence::Possible);
        assert_eq!(derive(&finding(&[]), Tie::Firm), Confidence::Possible);
    }

    #[test]
    fn each_lack_takes_a_step() {
        let whole = finding(&[Weight::Direct]);
        let mut missing = whole.clone();
        missing.missing.push(Need { sensor: None, what: "x".to_owned() });
        let mut rival = whole.clone();
        rival.rivals.push("unknown");
        let mut against = whole.clone();
        against.against.push(Evidence { fact: Fact::KernelTimer, events: Vec::new(), weight: Weight::Fits });
        assert_eq!(derive(&whole, Tie::Loose), Confidence::Likely);
        assert_eq!(derive(&missing, Tie::Firm), Confidence::Likely);
        assert_eq!(derive(&rival, Tie::Firm), Confidence::Likely);
        assert_eq!(derive(&against, Tie::Firm), Confidence::Possible);
    }
}
