//! Up to when the sources that tell of themselves have told everything. The stream's lag behind the clock is room enough while every thread
//! gets its turn; on a host that has none to give, or after the whole program was stopped, a case must not be judged before the ring was
//! read and it was asked what was lost.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::time::Moment;

/// So long the stream waits for a source that does not come, of the time in which the waiting thread itself ran: the contract allows a second
/// to an incident's line.
const PATIENCE_NS: u64 = 500_000_000;
/// A thread that turns every 10 ms and was away for longer did not run meanwhile.
const TURN_NS: u64 = 20_000_000;

/// How far each of them has come, nanoseconds since boot.
#[derive(Debug)]
pub struct Heard {
    ring: AtomicU64,
    losses: AtomicU64,
}

impl Default for Heard {
    /// What is not there is not waited for.
    fn default() -> Self {
        Self { ring: AtomicU64::new(u64::MAX), losses: AtomicU64::new(u64::MAX) }
    }
}

impl Heard {
    /// Every record of the ring up to here was delivered.
    pub fn ring(&self, until: Moment) {
        self.ring.store(until.0, Ordering::Release);
    }

    /// Everything lost up to here was told.
    pub fn losses(&self, until: Moment) {
        self.losses.store(until.0, Ordering::Release);
    }

    /// What both have told. To be asked before what they delivered is taken.
    #[must_use]
    pub fn until(&self) -> Moment {
        Moment(self.ring.load(Ordering::Acquire).min(self.losses.load(Ordering::Acquire)))
    }
}

/// Decides how far the stream may go.
#[derive(Debug, Default)]
pub(super) struct Patience {
    heard: Moment,
    turned: Moment,
    waited_ns: u64,
}

impl Patience {
    /// The stream may go as far as `usual`, unless somebody has not told that much yet.
    pub(super) fn until(&mut self, now: Moment, usual: Moment, heard: Moment) -> Moment {
        let ran_ns = now.since_ns(self.turned).min(TURN_NS);
        let waits = heard < usual && heard == self.heard;
        self.waited_ns = if waits { self.waited_ns.saturating_add(ran_ns) } else { 0 };
        (self.turned, self.heard) = (now, heard);
        if self.waited_ns > PATIENCE_NS { usual } else { usual.min(heard) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// The program's threads turn every 10 ms from `from` on; how far the stream may go at the end, behind `usual` by milliseconds.
    fn behind(patience: &mut Patience, from: u64, turns: u64, heard: impl Fn(u64) -> u64) -> u64 {
        let mut behind = 0;
        for now in (0..turns).map(|turn| from + turn * 10) {
            let usual = now - 80;
            let until = patience.until(Moment(now * MS), Moment(usual * MS), Moment(heard(now) * MS));
            behind = usual - until.0 / MS;
        }
        behind
    }

    #[test]
    fn who_has_told_enough_holds_nobody_up() {
        assert_eq!(behind(&mut Patience::default(), 1_000, 100, |now| now - 50), 0);
        let unknown = Heard::default().until();
        assert_eq!(Patience::default().until(Moment(1_000), Moment(900), unknown), Moment(900));
    }

    #[test]
    fn after_a_pause_of_the_whole_program_the_others_are_waited_for() {
        let mut patience = Patience::default();
        assert_eq!(behind(&mut patience, 1_000, 10, |now| now - 10), 0);
        // Two seconds later nobody but this thread has had a turn.
        assert_eq!(behind(&mut patience, 3_000, 1, |_| 1_080), 1_840);
        assert_eq!(behind(&mut patience, 3_010, 1, |now| now - 10), 0);
    }

    #[test]
    fn who_never_comes_is_not_waited_for_for_ever() {
        let mut patience = Patience::default();
        assert!(behind(&mut patience, 1_000, 40, |_| 900) > 0);
        assert_eq!(behind(&mut patience, 1_400, 40, |_| 900), 0);
    }

    #[test]
    fn the_slower_of_the_two_counts() {
        let heard = Heard::default();
        heard.ring(Moment(5));
        heard.losses(Moment(3));
        assert_eq!(heard.until(), Moment(3));
    }
}
