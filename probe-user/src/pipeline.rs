//! The middle in one piece: arrivals in, judged cases and questions out. Live, replay and offline run this and nothing else.

mod confine;

use std::collections::VecDeque;

use self::confine::Confine;
use crate::{
    correlate::Correlator,
    diagnose,
    merge::Merge,
    model::{
        case::{Case, Folded},
        event::EventId,
        time::Moment,
        verdict::Verdict,
    },
};
pub use crate::{
    correlate::{
        Question, Settings,
        crowded::{Forgotten, WHY as CROWDED},
        limits::Limits,
        memory::{AskedFor, Memory, Resume},
    },
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

/// An arrival that got its place in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Which arrival: what [`Pipeline::push`] returned.
    pub arrival: u64,
    /// Its name in the stream.
    pub id: EventId,
    /// It came too late for its moment: time had been told up to here before it was thought about.
    pub behind: Option<Moment>,
}

/// Merge, correlator and judgement.
#[derive(Debug)]
pub struct Pipeline {
    merge: Merge,
    confine: Confine,
    correlator: Correlator,
    judged: VecDeque<Judged>,
    folded: VecDeque<Folded>,
    /// The latest moment up to which time was told.
    told: Moment,
    /// For a recorder: what got its place since it last asked.
    placed: Option<Vec<Placed>>,
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
            folded: VecDeque::new(),
            told: Moment(0),
            placed: None,
        }
    }

    /// Remembers from now on which arrival got which place, for [`Pipeline::take_placed`].
    pub fn keep_places(&mut self) {
        self.placed.get_or_insert_default();
    }

    /// What got its place since the last call, in the order of the stream.
    pub fn take_placed(&mut self) -> Vec<Placed> {
        self.placed.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes up where another run stood, whose stream is heard from here on.
    pub fn resume(&mut self, resume: Resume) {
        self.confine.know(&resume.upstreams);
        self.correlator.resume(resume);
    }

    /// What still matters for cases to come.
    #[must_use]
    pub fn memory(&self) -> Memory {
        self.correlator.memory()
    }

    /// The latest moment up to which time was told.
    #[must_use]
    pub const fn told(&self) -> Moment {
        self.told
    }

    /// Takes an arrival and says which it was, counted from 1.
    pub fn push(&mut self, arrival: Arrival) -> u64 {
        self.merge.push(arrival)
    }

    /// Takes the next event of a stream that is in order already: a recording. Time is told by the events alone.
    pub fn replay(&mut self, arrival: Arrival) {
        let at = arrival.at.latest;
        self.merge.push(arrival);
        self.think(at);
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
        while let Some((arrival, event)) = self.merge.pop_numbered() {
            let before = event.at.latest.minus_ns(1);
            if let Some(placed) = &mut self.placed {
                let behind = (before < self.told).then_some(self.told);
                placed.push(Placed { arrival, id: event.id, behind });
            }
            self.pass_time(before);
            if let Some(event) = self.confine.admit(event) {
                self.correlator.handle(&event);
            }
        }
    }

    /// Lets time pass, stopping wherever a wait is over: what is forgotten by then is forgotten, nothing else.
    fn pass_time(&mut self, to: Moment) {
        self.told = self.told.max(to);
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
        while let Some(folded) = self.correlator.poll_folded() {
            self.folded.push_back(folded);
        }
    }

    /// The next judged case.
    pub fn poll_case(&mut self) -> Option<Judged> {
        self.judged.pop_front()
    }

    /// The next failures that were counted only: there were more of them than can be explained one by one, and they are like a case that was.
    pub fn poll_folded(&mut self) -> Option<Folded> {
        self.folded.pop_front()
    }

    /// The next thing to look up on the host; its answer is to be pushed.
    pub fn poll_question(&mut self) -> Option<Question> {
        self.correlator.poll_question()
    }

    /// Whether a case waits for its late evidence: time alone will end that.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.correlator.next_deadline().is_some()
    }

    /// Arrivals that came too late for their place.
    #[must_use]
    pub const fn late(&self) -> u64 {
        self.merge.late()
    }

    /// Events that were forgotten although they might have explained a failure; cases they might have explained say so.
    #[must_use]
    pub const fn crowded_out(&self) -> u64 {
        self.correlator.crowded_out()
    }

    /// Connections remembered.
    #[must_use]
    pub fn flows_known(&self) -> usize {
        self.correlator.flows_known()
    }
}
