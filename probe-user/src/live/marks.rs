//! How far each source has been read. The stream stays behind the clock by a fixed lag, which is enough while every thread gets its turn;
//! on a host that is short of time, or after the whole program stood still (SIGSTOP, a suspended machine), a reader may be seconds behind
//! while the thinking thread is not, and would judge failures on half of what was seen.

use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    atomic::{AtomicU64, Ordering},
};

use crate::model::time::Moment;

/// How long the stream waits for a source that does not move at all, nanoseconds of the thinking thread's own turns: with the stream's lag
/// and the wait for late evidence a line still comes within a second. What comes after that comes late, and is counted so.
const PATIENCE_NS: u64 = 300_000_000;

/// A thread that turns every 10 ms and was away for longer did not run meanwhile.
const TURN_NS: u64 = 20_000_000;

/// How far one source has been read.
#[derive(Debug)]
struct Place {
    /// Everything up to here was delivered.
    read: AtomicU64,
    /// What comes from it is wanted only so long after it happened.
    slack_ns: u64,
}

/// Set by a source. A source that is gone holds nobody up.
#[derive(Debug)]
pub struct Mark(Arc<Place>);

impl Mark {
    /// Everything that happened up to here was delivered (or counted as lost).
    pub fn set(&self, moment: Moment) {
        // After the deliveries it speaks of.
        self.0.read.store(moment.0, Ordering::Release);
    }
}

/// The marks of all sources.
#[derive(Clone, Debug, Default)]
pub struct Marks(Arc<Mutex<Vec<Weak<Place>>>>);

impl Marks {
    /// A source that has delivered everything up to now; what it delivers is wanted so long after it happened.
    #[must_use]
    pub fn add(&self, now: Moment, slack_ns: u64) -> Mark {
        let place = Arc::new(Place { read: AtomicU64::new(now.0), slack_ns });
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|place| place.strong_count() > 0);
        all.push(Arc::downgrade(&place));
        Mark(place)
    }

    /// Up to where every source has been read. To be asked before what was delivered is taken.
    #[must_use]
    pub fn earliest(&self) -> Moment {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |place: Arc<Place>| place.read.load(Ordering::Acquire).saturating_add(place.slack_ns);
        Moment(all.iter().filter_map(Weak::upgrade).map(read).min().unwrap_or(u64::MAX))
    }
}

/// How far the stream may go: to the wanted moment, or as far as every source has been read, unless one does not move at all.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Where it is held up.
    held: Moment,
    /// The thread's last turn.
    turned: Moment,
    /// For how long it has waited there, of the time in which the thread itself ran.
    waited_ns: u64,
}

impl Pace {
    /// `now` is the thread's own turn. In a pause of the whole program nobody could move: it is not waited through.
    pub(super) fn until(&mut self, wanted: Moment, read: Moment, now: Moment) -> Moment {
        let ran_ns = now.since_ns(self.turned).min(TURN_NS);
        let waits = read < wanted && read == self.held;
        self.waited_ns = if waits { self.waited_ns.saturating_add(ran_ns) } else { 0 };
        (self.turned, self.held) = (now, read);
        if self.waited_ns > PATIENCE_NS { wanted } else { wanted.min(read) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_source_counts_while_it_is_there() {
        let marks = Marks::default();
        assert_eq!(marks.earliest(), Moment(u64::MAX));
        let (ring, capture) = (marks.add(Moment(100), 0), marks.add(Moment(100), 50));
        ring.set(Moment(120));
        assert_eq!(marks.earliest(), Moment(120));
        ring.set(Moment(400));
        assert_eq!(marks.earliest(), Moment(150));
        drop(capture);
        assert_eq!(marks.earliest(), Moment(400));
    }

    /// The program's threads turn every 10 ms from `from` on; how far the stream may go at the end, behind what is wanted by milliseconds.
    fn behind(pace: &mut Pace, from: u64, turns: u64, read: impl Fn(u64) -> u64) -> u64 {
        const MS: u64 = 1_000_000;
        let mut behind = 0;
        for now in (0..turns).map(|turn| from + turn * 10) {
            let wanted = now - 80;
            let until = pace.until(Moment(wanted * MS), Moment(read(now) * MS), Moment(now * MS));
            behind = wanted - until.0 / MS;
        }
        behind
    }

    #[test]
    fn who_has_read_enough_holds_nobody_up() {
        assert_eq!(behind(&mut Pace::default(), 1_000, 100, |now| now - 50), 0);
    }

    #[test]
    fn after_a_pause_of_the_whole_program_the_others_are_waited_for() {
        let mut pace = Pace::default();
        assert_eq!(behind(&mut pace, 1_000, 10, |now| now - 10), 0);
        // Two seconds later nobody but this thread has had a turn, or two.
        assert_eq!(behind(&mut pace, 3_000, 2, |_| 1_080), 1_850);
        assert_eq!(behind(&mut pace, 5_000, 1, |_| 1_080), 3_840);
        assert_eq!(behind(&mut pace, 5_010, 1, |now| now - 10), 0);
    }

    #[test]
    fn who_never_comes_is_not_waited_for_for_ever() {
        let mut pace = Pace::default();
        assert!(behind(&mut pace, 1_000, 20, |_| 900) > 0);
        assert_eq!(behind(&mut pace, 1_200, 40, |_| 900), 0);
        // It moves: the patience begins anew.
        assert!(behind(&mut pace, 1_600, 2, |_| 1_000) > 0);
    }
}
