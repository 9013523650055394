//! Many sources, one order. Concurrency ends here.
//!
//! Events wait until every source has said that nothing earlier will come from it; then they leave in the order of the moment by which
//! they had certainly happened, ties broken by source and by the source's own order. The order therefore does not depend on how the
//! sources' deliveries interleave (a law with its test below), only on the events and on the watermarks.

use std::collections::{BTreeMap, VecDeque};

use crate::model::{
    event::{Body, Event, EventId, Source},
    time::{At, Moment},
};

/// An event that has no place in the stream yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrival {
    /// When it happened. Its latest moment decides its place: a log line is placed where it was certainly written.
    pub at: At,
    /// Who saw it.
    pub source: Source,
    /// What.
    pub body: Body,
}

/// Puts arrivals in order.
///
/// Each source delivers nearly in its own order, so that most arrivals go to the end of their source's queue; one tree of all of them would
/// move kilobytes for each.
#[derive(Debug, Default)]
pub struct Merge {
    /// Of each source, in order; see [`SOURCES`].
    queues: [VecDeque<(Key, Arrival)>; SOURCES.len()],
    /// What came after a later one of its source.
    behind: BTreeMap<Key, Arrival>,
    arrived: u64,
    released: u64,
    watermark: Moment,
    late: u64,
}

/// An arrival's place: its moment, its source, and which arrival it was.
type Key = (Moment, Source, u64);

/// In the order of the queues.
const SOURCES: [Source; 5] = [Source::Probe, Source::Packet, Source::Kernel, Source::ErrorLog, Source::AccessLog];

/// Room for arrivals of a source that is not given back: some 3 MB, more than a step of the stream fills even in a storm, so that it is not
/// made anew for each.
const ROOM: usize = 8_192;

impl Merge {
    /// Takes an arrival and says which it was, counted from 1. One that comes after its moment has been released is counted as late and
    /// leaves next.
    pub fn push(&mut self, arrival: Arrival) -> u64 {
        self.arrived += 1;
        if arrival.at.latest < self.watermark {
            self.late += 1;
        }
        let key = (arrival.at.latest, arrival.source, self.arrived);
        let queue = &mut self.queues[arrival.source as usize];
        if queue.back().is_none_or(|(last, _)| *last < key) {
            queue.push_back((key, arrival));
        } else {
            self.behind.insert(key, arrival);
        }
        self.arrived
    }

    /// Promises that every source has delivered everything up to and including this moment. Going back is ignored.
    pub fn advance(&mut self, complete_until: Moment) {
        self.watermark = self.watermark.max(complete_until);
    }

    /// The next event in order, if it can be known.
    pub fn pop(&mut self) -> Option<Event> {
        self.pop_numbered().map(|(_, event)| event)
    }

    /// The same, with the number [`Merge::push`] gave the arrival.
    pub fn pop_numbered(&mut self) -> Option<(u64, Event)> {
        let fronts = self.queues.iter().filter_map(|queue| queue.front().map(|(key, _)| *key));
        let first = fronts.chain(self.behind.keys().next().copied()).min()?;
        let (moment, source, number) = first;
        if moment > self.watermark {
            return None;
        }
        let queue = &mut self.queues[source as usize];
        let own = if queue.front().is_some_and(|(key, _)| *key == first) { queue.pop_front() } else { None };
        if queue.is_empty() && queue.capacity() > ROOM {
            // After a storm.
            *queue = VecDeque::new();
        }
        let Arrival { at, source, body } = match own {
            Some((_, arrival)) => arrival,
            None => self.behind.remove(&first)?,
        };
        self.released += 1;
        Some((number, Event { id: EventId(self.released), at, source, body }))
    }

    /// Everything up to here has left or can leave.
    #[must_use]
    pub const fn watermark(&self) -> Moment {
        self.watermark
    }

    /// Arrivals that came too late for their place so far.
    #[must_use]
    pub const fn late(&self) -> u64 {
        self.late
    }

    /// Arrivals that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum::<usize>() + self.behind.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::process::{Pid, ProcessEvent, Role};

    fn arrival(source: Source, ns: u64, pid: u32) -> Arrival {
        let body = Body::Process(ProcessEvent::OomVictim { victim: Pid(pid), role: Role::Other });
        Arrival { at: At::exactly(Moment(ns)), source, body }
    }

    fn drain(merge: &mut Merge) -> Vec<(u64, Source, Body)> {
        std::iter::from_fn(|| merge.pop()).map(|e| (e.at.latest.0, e.source, e.body)).collect()
    }

    #[test]
    fn nothing_leaves_before_the_watermark() {
        let mut merge = Merge::default();
        merge.push(arrival(Source::Kernel, 10, 1));
        assert_eq!(merge.pop(), None);
        merge.advance(Moment(9));
        assert_eq!(merge.pop(), None);
        merge.advance(Moment(10));
        assert_eq!(merge.pop().map(|e| e.id), Some(EventId(1)));
    }

    #[test]
    fn a_late_arrival_is_counted_and_not_lost() {
        let mut merge = Merge::default();
        merge.advance(Moment(100));
        merge.push(arrival(Source::Packet, 50, 1));
        assert_eq!(merge.late(), 1);
        assert!(merge.pop().is_some());
    }

    #[test]
    fn a_log_line_is_placed_where_it_was_certainly_written() {
        let mut merge = Merge::default();
        let mut line = arrival(Source::ErrorLog, 0, 1);
        line.at = At::between(Moment(0), Moment(1_000));
        merge.push(line);
        merge.push(arrival(Source::Kernel, 500, 2));
        merge.advance(Moment(2_000));
        assert_eq!(drain(&mut merge).iter().map(|e| e.1).collect::<Vec<_>>(), [Source::Kernel, Source::ErrorLog]);
    }

    #[test]
    fn every_source_has_its_queue() {
        for (place, source) in SOURCES.into_iter().enumerate() {
            assert_eq!(source as usize, place);
        }
    }

    #[test]
    fn one_that_comes_behind_a_later_one_of_its_source_finds_its_place() {
        let mut merge = Merge::default();
        for ns in [30, 10, 20, 40, 10] {
            merge.push(arrival(Source::Kernel, ns, 1));
        }
        merge.push(arrival(Source::Packet, 10, 1));
        assert_eq!(merge.waiting(), 6);
        merge.advance(Moment(30));
        let order: Vec<(u64, u64)> =
            std::iter::from_fn(|| merge.pop_numbered()).map(|(number, e)| (e.at.latest.0, number)).collect();
        assert_eq!(order, [(10, 6), (10, 2), (10, 5), (20, 3), (30, 1)]);
        merge.advance(Moment(40));
        assert_eq!(merge.pop_numbered().map(|(number, _)| number), Some(4));
        assert_eq!((merge.pop_numbered(), merge.waiting()), (None, 0));
    }

    proptest! {
        /// Confluence: however the deliveries of the sources interleave, the order is the same.
        #[test]
        fn any_interleaving_gives_the_same_order(
            kernel in prop::collection::vec(0u64..50, 0..20),
            packets in prop::collection::vec(0u64..50, 0..20),
            choices in prop::collection::vec(any::<bool>(), 40),
        ) {
            // A source delivers its own events in its own order; only the interleaving between sources varies.
            let make = |source, times: &[u64]| -> Vec<Arrival> {
                times.iter().enumerate().map(|(i, t)| arrival(source, *t, u32::try_from(i).unwrap())).collect()
            };
            let (kernel, packets) = (make(Source::Kernel, &kernel), make(Source::Packet, &packets));
            let mut one = Merge::default();
            for a in kernel.iter().chain(&packets) {
                one.push(a.clone());
            }
            let mut other = Merge::default();
            let (mut k, mut p) = (kernel.iter(), packets.iter());
            for choice in choices {
                if let Some(a) = if choice { k.next() } else { p.next() } {
                    other.push(a.clone());
                }
            }
            for a in p.chain(k) {
                other.push(a.clone());
            }
            one.advance(Moment(100));
            other.advance(Moment(100));
            prop_assert_eq!(drain(&mut one), drain(&mut other));
        }
    }
}
