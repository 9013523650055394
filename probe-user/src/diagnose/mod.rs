//! Pure judgement: a case goes in, one verdict comes out. Rules find evidence; one table says how sure it makes us.

pub mod cause;
mod causes;
mod confidence;
mod departure;
mod reading;
mod said;
mod standstill;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use self::{
    cause::{Cause, Finding},
    reading::Reading,
};
use crate::model::{
    attempt::{Attempt, Joined, Outcome},
    case::Case,
    coverage::{Sensor, Sight},
    evidence::{Evidence, Weight},
    flow::Flow,
    verdict::{Confidence, Explanation, Need, Verdict},
};

/// The catalogue, in the order in which it is shown.
#[must_use]
pub const fn catalogue() -> &'static [&'static Cause] {
    causes::ALL
}

/// The row with this id.
#[must_use]
pub fn find(id: &str) -> Option<&'static Cause> {
    catalogue().iter().copied().find(|cause| cause.id == id)
}

/// Judges a case: the verdict is about what made the status, the last attempt or the failure to find one to make.
#[must_use]
pub fn judge(case: &Case) -> Verdict {
    let reading = Reading::of(case);
    let mut verdict = judge_reading(&reading);
    if let Some((evidence, sentence)) = reading.translation() {
        match &mut verdict {
            Verdict::Explained(explanation) => {
                explanation.because.push(evidence);
                explanation.summary.push_str(&sentence);
            }
            Verdict::Contested(candidates) => candidates.iter_mut().for_each(|one| one.because.push(evidence.clone())),
            Verdict::Unexplained { seen, .. } => seen.push(evidence),
        }
    }
    verdict
}

/// The cause of each failed attempt, by the peer's name. Blackouts (`no live upstreams`) are blamed on these.
#[must_use]
pub fn attempt_causes(case: &Case) -> Vec<(String, &'static str)> {
    case.attempts
        .iter()
        .filter(|attempt| attempt.outcome != Outcome::Ok)
        .filter_map(|attempt| Some((attempt.peer_name.clone()?, cause_of_attempt(case, attempt))))
        .collect()
}

/// The cause of one attempt, as if it had made the status.
fn cause_of_attempt(case: &Case, attempt: &Attempt) -> &'static str {
    match judge_reading(&Reading::of_attempt(case, attempt)) {
        Verdict::Explained(explanation) => explanation.cause,
        Verdict::Contested(_) | Verdict::Unexplained { .. } => causes::unknown::CAUSE.id,
    }
}

fn judge_reading(reading: &Reading<'_>) -> Verdict {
    if let Some(attempt) = reading.attempt
        && let Joined::Several(candidates) = &attempt.flow
        && let Some(verdict) = each_alike(reading, attempt, candidates)
    {
        return verdict;
    }
    let tie = confidence::tie(reading);
    let candidates: Vec<(&'static Cause, Explanation)> = catalogue()
        .iter()
        .filter_map(|cause| (cause.rule)(reading).map(|finding| (*cause, explain(cause, finding, tie))))
        .collect();
    choose(candidates).unwrap_or_else(|| unexplained(reading))
}

/// Where several connections can be the attempt's, each is judged as if it were the one. If all tell the same, it does not matter
/// which it was, and the least sure of them is the verdict; if they do not, none of them is taken.
fn each_alike(reading: &Reading<'_>, attempt: &Attempt, candidates: &[Flow]) -> Option<Verdict> {
    let mut least: Option<Explanation> = None;
    for candidate in candidates {
        let one = Attempt { flow: Joined::One(candidate.clone()), ..attempt.clone() };
        let Verdict::Explained(explanation) = judge_reading(&Reading { attempt: Some(&one), ..*reading }) else {
            return None;
        };
        least = match least {
            Some(least) if least.cause != explanation.cause => return None,
            Some(least) if least.confidence <= explanation.confidence => Some(least),
            _ => Some(explanation),
        };
    }
    let mut least = least?;
    least.summary.push_str(" One of ");
    least.summary.push_str(&candidates.len().to_string());
    least
        .summary
        .push_str(" connections that fit this request, all of which ended like this; what is shown is of one of them.");
    Some(Verdict::Explained(least))
}

/// A finding with its confidence.
fn explain(cause: &Cause, mut finding: Finding, tie: confidence::Tie) -> Explanation {
    if tie == confidence::Tie::Loose {
        finding.missing.push(reading::need(
            Sensor::NginxFunctions,
            "a certain tie between the request, its last attempt and this connection, with no record lost",
        ));
    }
    let confidence = confidence::derive(&finding, tie);
    Explanation {
        cause: cause.id,
        confidence,
        because: finding.because,
        against: finding.against,
        blind: finding.missing,
        rivals: finding.rivals,
        summary: finding.summary,
        fix: finding.fix,
    }
}

/// The surest explanation; among equally sure ones the one that says most; two that say equally much are contested.
fn choose(mut candidates: Vec<(&'static Cause, Explanation)>) -> Option<Verdict> {
    yield_to_deeper(&mut candidates);
    let surest = candidates.iter().map(|(_, explanation)| explanation.confidence).max()?;
    let deepest = candidates
        .iter()
        .filter(|(_, explanation)| explanation.confidence == surest)
        .map(|(cause, _)| cause.depth)
        .max()?;
    let (mut leaders, others): (Vec<_>, Vec<_>) = candidates
        .into_iter()
        .partition(|(cause, explanation)| explanation.confidence == surest && cause.depth == deepest);
    if leaders.len() > 1 {
        return Some(Verdict::Contested(
            leaders.into_iter().map(|(_, explanation)| with_doubts(explanation)).collect(),
        ));
    }
    let (_, mut explanation) = leaders.pop()?;
    // What says no less and still fits is a rival, unless the winner is certain; what says less is part of the story.
    if explanation.confidence < Confidence::Confirmed {
        for (cause, _) in others.iter().filter(|(cause, _)| cause.depth >= deepest) {
            name_rival(&mut explanation, cause.id);
        }
    }
    Some(Verdict::Explained(with_doubts(explanation)))
}

/// Nothing is certain while something that says more still fits and is not certain itself.
fn yield_to_deeper(candidates: &mut [(&'static Cause, Explanation)]) {
    let unsure: Vec<&'static Cause> = candidates
        .iter()
        .filter(|(_, explanation)| explanation.confidence < Confidence::Confirmed)
        .map(|(cause, _)| *cause)
        .collect();
    for (cause, explanation) in candidates.iter_mut().filter(|(_, e)| e.confidence == Confidence::Confirmed) {
        for deeper in unsure.iter().filter(|other| other.depth > cause.depth) {
            explanation.confidence = Confidence::Likely;
            name_rival(explanation, deeper.id);
        }
    }
}

fn name_rival(explanation: &mut Explanation, rival: &'static str) {
    if !explanation.rivals.contains(&rival) {
        explanation.rivals.push(rival);
    }
}

/// The summary of what is not certain names what else it can be.
fn with_doubts(mut explanation: Explanation) -> Explanation {
    if explanation.confidence < Confidence::Confirmed && !explanation.rivals.is_empty() {
        explanation.summary.push_str(" Not excluded: ");
        explanation.summary.push_str(&explanation.rivals.join(", "));
        explanation.summary.push('.');
    }
    explanation
}

/// Nothing fits: what was seen, and what would have been needed.
fn unexplained(reading: &Reading<'_>) -> Verdict {
    let mut seen: Vec<Evidence> = Vec::new();
    seen.extend(reading.complaint_evidence());
    for (event, complaint) in &reading.case.complaints {
        seen.push(reading::complaint_evidence(event, complaint));
    }
    seen.extend(reading.connect_error().map(|(_, evidence)| evidence));
    seen.extend(reading.syn_reset());
    seen.extend(reading.close().map(|close| close.evidence(Weight::Symptom)));
    seen.extend(reading.reset().map(|reset| reading.reset_evidence(&reset, Weight::Symptom)));
    seen.extend(reading.answer_evidence());
    let mut needed: Vec<Need> = Vec::new();
    for (sensor, sight, why) in &reading.case.coverage.sensors {
        if *sight != Sight::On {
            let what = why.clone().unwrap_or_else(|| format!("what {sensor} would have shown"));
            needed.push(Need { sensor: Some(*sensor), what });
        }
    }
    if reading.case.coverage.events_lost > 0 {
        needed.push(Need {
            sensor: None,
            what: format!("{} kernel records that were lost meanwhile", reading.case.coverage.events_lost),
        });
    }
    if reading.case.coverage.packets_dropped > 0 {
        needed.push(Need {
            sensor: Some(Sensor::Packets),
            what: format!("{} packets that the capture dropped meanwhile", reading.case.coverage.packets_dropped),
        });
    }
    causes::unknown::verdict(reading, seen, needed)
}
