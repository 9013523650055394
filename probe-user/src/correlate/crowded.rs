//! What had to be forgotten although it was young enough to explain a failure: a loss like any other.

use std::collections::BTreeMap;

use super::limits::{NOTABLE_LINGER_NS, NOTABLE_REACH_NS, SECOND_NS};
use crate::model::{
    coverage::Sensor,
    event::{Body, Event},
    process::ProcessEvent,
    time::{At, Moment},
};

/// Why.
pub const WHY: &str = "exits, signals and failed system calls came faster than they can be remembered";

/// Events of one second that were forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forgotten {
    /// What had seen them.
    pub sensor: Sensor,
    /// From the earliest on, they may concern a failure until then.
    pub at: At,
    /// How many.
    pub count: u64,
}

/// The losses, by the second of the events.
#[derive(Debug, Default)]
pub(super) struct Crowded {
    seconds: BTreeMap<(u64, Sensor), Second>,
    total: u64,
}

#[derive(Debug)]
struct Second {
    at: At,
    /// Forgotten by this run.
    count: u64,
    /// Forgotten by the run that this one takes up, of which this one forgets some once more.
    told: u64,
}

impl Crowded {
    /// This one is forgotten.
    pub(super) fn note(&mut self, event: &Event) {
        let at = At::between(event.at.earliest, event.at.latest.plus_ns(NOTABLE_REACH_NS));
        self.second(sensor_of(event), at).count += 1;
        self.total += 1;
    }

    /// What another run had forgotten.
    pub(super) fn resume(&mut self, forgotten: &Forgotten) {
        self.second(forgotten.sensor, forgotten.at).told += forgotten.count;
    }

    /// Everything that still matters.
    pub(super) fn all(&self) -> impl Iterator<Item = Forgotten> {
        self.seconds.iter().map(|((_, sensor), second)| Forgotten {
            sensor: *sensor,
            at: second.at,
            count: second.count.max(second.told),
        })
    }

    /// How many in all.
    pub(super) const fn total(&self) -> u64 {
        self.total
    }

    /// What is too old.
    pub(super) fn forget(&mut self, now: Moment) {
        let old = now.minus_ns(NOTABLE_LINGER_NS).ns() / SECOND_NS;
        while let Some(entry) = self.seconds.first_entry().filter(|entry| entry.key().0 < old) {
            entry.remove();
        }
    }

    fn second(&mut self, sensor: Sensor, at: At) -> &mut Second {
        let key = (at.earliest.ns() / SECOND_NS, sensor);
        let second = self.seconds.entry(key).or_insert(Second { at, count: 0, told: 0 });
        second.at = At::between(second.at.earliest.min(at.earliest), second.at.latest.max(at.latest));
        second
    }
}

fn sensor_of(event: &Event) -> Sensor {
    match &event.body {
        Body::Process(ProcessEvent::Signalled { .. }) => Sensor::Signals,
        Body::Process(ProcessEvent::OomVictim { .. }) => Sensor::OomKills,
        Body::Syscall(_) => Sensor::Syscalls,
        Body::Socket(_) => Sensor::SocketStates,
        _ => Sensor::Processes,
    }
}
