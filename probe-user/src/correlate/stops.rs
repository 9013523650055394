//! Which processes were stopped by a signal, and let go on by another: remembered while they live, for nothing limits how long a process may
//! stand still.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::model::{
    event::{Body, Event, EventId},
    process::{Pid, ProcessEvent, stops_or_continues},
    time::Moment,
};

/// Processes; the one that was sent its last signal longest ago goes first.
const PROCESSES: usize = 1_024;
/// Signals of each, newest last: some programs (cpulimit) stop another many times a second.
const SIGNALS: usize = 8;

/// The memory.
#[derive(Debug, Default)]
pub(super) struct Stops {
    by_process: BTreeMap<Pid, VecDeque<Event>>,
}

impl Stops {
    /// Takes any event.
    pub(super) fn handle(&mut self, event: &Event) {
        match &event.body {
            Body::Process(ProcessEvent::Signalled { target, signal, .. }) if stops_or_continues(*signal) => {
                self.signalled(*target, event);
            }
            Body::Process(ProcessEvent::Exited { pid, .. }) => {
                self.by_process.remove(pid);
            }
            _ => {}
        }
    }

    fn signalled(&mut self, target: Pid, event: &Event) {
        if self.by_process.len() >= PROCESSES && !self.by_process.contains_key(&target) {
            let last = |signals: &VecDeque<Event>| signals.back().map(|event| event.id);
            let oldest = self.by_process.iter().min_by_key(|(_, signals)| last(signals)).map(|(pid, _)| *pid);
            if let Some(oldest) = oldest {
                self.by_process.remove(&oldest);
            }
        }
        let signals = self.by_process.entry(target).or_default();
        if signals.len() >= SIGNALS {
            signals.pop_front();
        }
        signals.push_back(event.clone());
    }

    /// What is known of these processes, up to a moment.
    pub(super) fn of(&self, processes: &BTreeSet<Pid>, until: Moment) -> Vec<Event> {
        let all = processes.iter().filter_map(|pid| self.by_process.get(pid)).flatten();
        all.filter(|event| event.at.earliest <= until).cloned().collect()
    }

    /// The events that are remembered.
    pub(super) fn events(&self) -> impl Iterator<Item = EventId> {
        self.by_process.values().flatten().map(|event| event.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        event::Source,
        process::{Ending, Role, Untaken},
        time::At,
    };

    fn event(id: u64, body: ProcessEvent) -> Event {
        Event { id: EventId(id), at: At::exactly(Moment(id)), source: Source::Kernel, body: Body::Process(body) }
    }

    fn signal(id: u64, target: u32, signal: u32) -> Event {
        event(id, ProcessEvent::Signalled { target: Pid(target), role: Role::Upstream, signal, sender: None })
    }

    fn known(stops: &Stops, pid: u32, until: u64) -> Vec<u64> {
        stops.of(&BTreeSet::from([Pid(pid)]), Moment(until)).iter().map(|event| event.id.0).collect()
    }

    #[test]
    fn a_stop_is_remembered_until_the_process_ends() {
        let mut stops = Stops::default();
        for one in [signal(1, 7, 19), signal(2, 8, 19), signal(3, 7, 15), signal(900_000_000_000, 7, 18)] {
            stops.handle(&one);
        }
        assert_eq!(known(&stops, 7, u64::MAX), [1, 900_000_000_000]);
        assert_eq!(known(&stops, 7, 5), [1]);
        assert_eq!(stops.events().count(), 3);
        let exit = ProcessEvent::Exited {
            pid: Pid(7),
            role: Role::Upstream,
            command: "app".to_owned(),
            how: Ending::Exit(0),
            untaken: Untaken::default(),
        };
        stops.handle(&event(900_000_000_001, exit));
        assert!(known(&stops, 7, u64::MAX).is_empty());
        assert_eq!(known(&stops, 8, u64::MAX), [2]);
    }

    #[test]
    fn it_is_bounded() {
        let mut stops = Stops::default();
        for id in 0..20 {
            stops.handle(&signal(id, 7, if id % 2 == 0 { 19 } else { 18 }));
        }
        assert_eq!(known(&stops, 7, u64::MAX), (12..20).collect::<Vec<_>>());
        for id in 100..3_000 {
            stops.handle(&signal(id, u32::try_from(id).unwrap(), 19));
        }
        assert_eq!(stops.by_process.len(), PROCESSES);
        assert!(known(&stops, 7, u64::MAX).is_empty());
        assert_eq!(known(&stops, 2_999, u64::MAX), [2_999]);
    }
}
