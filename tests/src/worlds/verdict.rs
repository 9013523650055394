//! What the pipeline said, beside what is true.

use probe502::{
    model::{
        case::{Case, CaseKind},
        process::Pid,
        verdict::{Confidence, Verdict},
    },
    pipeline::Judged,
};

use super::{
    stage::MS,
    story::{Story, Truth},
};

/// A verdict, reduced to what it claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// Nothing: unknown.
    Nothing,
    /// One of several causes, this surely.
    Several(Confidence),
    /// This cause, this surely.
    Cause(Confidence, &'static str),
}

impl Claim {
    /// What a verdict claims.
    #[must_use]
    pub fn of(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Explained(explanation) => Self::Cause(explanation.confidence, explanation.cause),
            Verdict::Contested(list) => {
                list.iter().map(|explanation| explanation.confidence).max().map_or(Self::Nothing, Self::Several)
            }
            Verdict::Unexplained { .. } => Self::Nothing,
        }
    }

    /// How sure it is.
    #[must_use]
    pub const fn confidence(self) -> Option<Confidence> {
        match self {
            Self::Nothing => None,
            Self::Several(confidence) | Self::Cause(confidence, _) => Some(confidence),
        }
    }

    /// The cause, if it is certain.
    #[must_use]
    pub const fn confirmed(self) -> Option<&'static str> {
        match self {
            Self::Cause(Confidence::Confirmed, cause) => Some(cause),
            _ => None,
        }
    }
}

/// The requests a case can be about: its connection number, its worker, its time. One with uprobes; without them several requests of
/// one client connection can fit.
#[must_use]
pub fn subjects<'s>(story: &'s Story, case: &Case) -> Vec<&'s Truth> {
    let mine = |truth: &&Truth| Some(truth.number) == case.request.connection && Some(truth.key.worker) == case.worker;
    // What nginx's own functions say has nginx's own moment.
    let exact = |truth: &&Truth| case.decided.is_exact() && truth.decided == Some(case.decided.latest.0);
    let found: Vec<&Truth> = story.truths.iter().filter(mine).filter(exact).collect();
    if !found.is_empty() {
        return found;
    }
    let from = case.decided.earliest.0.saturating_sub(5 * MS);
    let to = case.decided.latest.0.saturating_add(5 * MS);
    story
        .truths
        .iter()
        .filter(mine)
        .filter(|truth| truth.begun <= to && truth.decided.is_some_and(|decided| decided >= from))
        .collect()
}

/// Whether what is confirmed is true. `Err` says what is wrong.
pub fn check(story: &Story, judged: &Judged) -> Result<(), String> {
    let Some(cause) = Claim::of(&judged.verdict).confirmed() else { return Ok(()) };
    let subjects = subjects(story, &judged.case);
    if subjects.iter().any(|truth| truth.causes.contains(&cause)) {
        return Ok(());
    }
    let truths: Vec<_> = subjects.iter().map(|truth| &truth.causes).collect();
    Err(format!("{} is confirmed as {cause}, and true is {truths:?}\n{:#?}", judged.case.id.0, judged.verdict))
}

/// A request as cases name it, and the kind of case.
pub type Subject = (Pid, u64, u64, CaseKind);

/// What was said: of every case the requests it can be about, and its claim.
#[must_use]
pub fn claims(story: &Story, judged: &[Judged]) -> Vec<(Vec<Subject>, Claim)> {
    let claim = |judged: &Judged| {
        let subject = |truth: &Truth| (truth.key.worker, truth.number, truth.client_requests, judged.case.kind);
        let about: Vec<Subject> = subjects(story, &judged.case).into_iter().map(subject).collect();
        (about, Claim::of(&judged.verdict))
    };
    judged.iter().map(claim).filter(|(about, _)| !about.is_empty()).collect()
}

/// The surest that was said of any of these requests; `None`: nothing was.
#[must_use]
pub fn surest(claims: &[(Vec<Subject>, Claim)], about: &[Subject]) -> Option<Claim> {
    claims.iter().filter(|(said, _)| said.iter().any(|subject| about.contains(subject))).map(|(_, claim)| *claim).max()
}
