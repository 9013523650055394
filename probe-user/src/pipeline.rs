//! The middle in one piece: arrivals in, judged cases and questions out. Live, replay and offline run this and nothing else.

mod confine;

use std::collections::VecDeque;

use self::confine::Confine;
use crate::{
    correlate::Correlator,
    diagnose,
    merge::Merge,
    model::{case::Case, time::Moment, verdict::Verdict},
};
pub use crate::{
    correlate::{Question, Settings, limits::Limits},
    merge::Arrival,
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
    confine: Confine,
    correlator: Correlator,
    judged: VecDeque<Judged>,
}

impl Pipeline {
    /// Empty.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            merge: Merge::default(),
            confine: Confine::default(),
            correlator: Correlator::new(settings),
            judged: VecDeque::new(),
        }
    }

    /// Takes an arrival.
    pub fn push(&mut self, arrival: Arrival) {
        self.merge.push(arrival);
    }

    /// Every source has delivered everything up to here: thinks up to here.
    pub fn advance(&mut self, complete_until: Moment) {
        self.think(complete_until);
        self.pass_time(complete_until);
    }

    /// The end: everything that waits is thought through and judged.
    pub fn finish(&mut self) {
        self.think(Moment(u64::MAX));
        self.correlator.end();
        while let Some(deadline) = self.correlator.next_deadline() {
            self.pass_time(deadline);
        }
        self.correlator.finish();
        self.judge();
    }

    /// What is known of a case when it closes must not depend on how much was delivered at once: a recording read in one go gives the
    /// cases that were seen live. So everything whose wait is over before an event closes before it.
    fn think(&mut self, complete_until: Moment) {
        self.merge.advance(complete_until);
        while let Some(event) = self.merge.pop() {
            self.pass_time(event.at.latest.minus_ns(1));
            if let Some(event) = self.confine.admit(event) {
                self.correlator.handle(&event);
            }
        }
    }

    /// Lets time pass, stopping wherever a wait is over: what is forgotten by then is forgotten, nothing else.
    fn pass_time(&mut self, to: Moment) {
        while let Some(deadline) = self.correlator.next_deadline().filter(|deadline| *deadline <= to) {
            self.correlator.advance(deadline);
            self.judge();
        }
        self.correlator.advance(to);
        self.judge();
    }

    fn judge(&mut self) {
        while let Some(case) = self.correlator.poll_case() {
            let verdict = diagnose::judge(&case);
            for (peer, cause) in diagnose::attempt_causes(&case) {
                self.correlator.judged(&case.id, &peer, cause);
            }
            self.judged.push_back(Judged { case, verdict });
        }
    }

    /// The next judged case.
    pub fn poll_case(&mut self) -> Option<Judged> {
        self.judged.pop_front()
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
