//! The middle in one piece: arrivals in, judged cases and questions out. Live, replay and offline run this and nothing else.

use crate::{
    correlate::{Correlator, Question, Settings},
    diagnose,
    merge::{Arrival, Merge},
    model::{case::Case, time::Moment, verdict::Verdict},
};

/// A case with its judgement.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// The case.
    pub case: Case,
    /// The judgement.
    pub verdict: Verdict,
}

/// Merge, correlator and judgement.
#[derive(Debug)]
pub struct Pipeline {
    merge: Merge,
    correlator: Correlator,
}

impl Pipeline {
    /// Empty.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { merge: Merge::default(), correlator: Correlator::new(settings) }
    }

    /// Takes an arrival.
    pub fn push(&mut self, arrival: Arrival) {
        self.merge.push(arrival);
    }

    /// Every source has delivered everything up to here: thinks up to here.
    pub fn advance(&mut self, complete_until: Moment) {
        self.merge.advance(complete_until);
        while let Some(event) = self.merge.pop() {
            self.correlator.handle(&event);
        }
        self.correlator.advance(complete_until);
    }

    /// The end: everything that waits is thought through and judged.
    pub fn finish(&mut self) {
        self.merge.advance(Moment(u64::MAX));
        while let Some(event) = self.merge.pop() {
            self.correlator.handle(&event);
        }
        self.correlator.finish();
    }

    /// The next judged case.
    pub fn poll_case(&mut self) -> Option<Judged> {
        let case = self.correlator.poll_case()?;
        let verdict = diagnose::judge(&case);
        for (peer, cause) in diagnose::attempt_causes(&case) {
            self.correlator.judged(&case.id, &peer, cause);
        }
        Some(Judged { case, verdict })
    }

    /// The next thing to look up on the host; its answer is to be pushed.
    pub fn poll_question(&mut self) -> Option<Question> {
        self.correlator.poll_question()
    }

    /// Arrivals that came too late for their place.
    #[must_use]
    pub const fn late(&self) -> u64 {
        self.merge.late()
    }

    /// Connections remembered.
    #[must_use]
    pub fn flows_known(&self) -> usize {
        self.correlator.flows_known()
    }
}
