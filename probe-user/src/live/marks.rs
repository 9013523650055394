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
    /// Where it is held up, and since which of the thread's turns.
    held: Option<(Moment, Moment)>,
}

impl Pace {
    /// `now` is the thread's own turn; a pause of the whole program lies between two turns, and so is nobody's fault.
    pub(super) fn until(&mut self, wanted: Moment, read: Moment, now: Moment) -> Moment {
        if read >= wanted {
            self.held = None;
            return wanted;
        }
        let since = match self.held {
            Some((at, since)) if at == read => since,
            _ => now,
        };
        self.held = Some((read, since));
        if now.since_ns(since) > PATIENCE_NS { wanted } else { read }
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

    #[test]
    fn the_stream_waits_for_a_source_that_catches_up_and_not_for_one_that_is_stuck() {
        let second = 1_000_000_000;
        let mut pace = Pace::default();
        assert_eq!(pace.until(Moment(10), Moment(20), Moment(30)), Moment(10));
        // Five seconds have passed without a turn.
        let (wanted, now) = (Moment(5 * second), Moment(5 * second + 80));
        assert_eq!(pace.until(wanted, Moment(20), now), Moment(20));
        // It moves: the patience begins anew.
        assert_eq!(pace.until(wanted, Moment(second), now.plus_ns(PATIENCE_NS)), Moment(second));
        assert_eq!(pace.until(wanted, Moment(second), now.plus_ns(2 * PATIENCE_NS)), Moment(second));
        // It does not.
        let later = now.plus_ns(2 * PATIENCE_NS + 1);
        assert_eq!(pace.until(wanted, Moment(second), later), wanted);
        assert_eq!(pace.until(wanted, wanted, later), wanted);
    }
}
