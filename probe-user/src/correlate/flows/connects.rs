//! Which connection each `connect()` made, for who knows the call and not the addresses.

use std::collections::VecDeque;

use crate::{
    correlate::limits::CONNECTS,
    model::{flow::FlowId, process::Pid, time::Moment},
};

/// The newest calls, in the order of the stream.
#[derive(Debug, Default)]
pub(super) struct Connects {
    calls: VecDeque<Call>,
    /// When the latest was made of those that are not remembered any more.
    forgotten: Option<Moment>,
}

#[derive(Debug)]
struct Call {
    /// The latest moment so far: that one never goes back, and a late call is found all the same.
    reached: Moment,
    at: Moment,
    worker: Pid,
    fd: i32,
    made: FlowId,
}

impl Connects {
    /// A call.
    pub(super) fn keep(&mut self, worker: Pid, fd: i32, at: Moment, made: FlowId) {
        if self.calls.len() >= CONNECTS
            && let Some(oldest) = self.calls.pop_front()
        {
            self.forgotten = self.forgotten.max(Some(oldest.at));
        }
        let reached = self.calls.back().map_or(at, |last| last.reached.max(at));
        self.calls.push_back(Call { reached, at, worker, fd, made });
    }

    /// What the calls on this descriptor made from one moment to the other, oldest first. `None`: not all of them are remembered.
    pub(super) fn of(&self, worker: Pid, fd: i32, from: Moment, to: Moment) -> Option<Vec<FlowId>> {
        if self.forgotten.is_some_and(|forgotten| forgotten >= from) {
            return None;
        }
        let begin = self.calls.partition_point(|call| call.reached < from);
        let meant = |call: &&Call| (call.worker, call.fd) == (worker, fd) && call.at >= from && call.at <= to;
        let mut made: Vec<FlowId> = self.calls.range(begin..).filter(meant).map(|call| call.made).collect();
        made.sort_unstable();
        made.dedup();
        Some(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_remembered_whole_is_not_told() {
        let mut connects = Connects::default();
        let count = u64::try_from(CONNECTS).unwrap();
        for number in 0..=count {
            connects.keep(Pid(1), 3, Moment(number), FlowId(number));
        }
        let of = |from, to| connects.of(Pid(1), 3, Moment(from), Moment(to));
        // The first had to go.
        assert_eq!((of(0, 1), of(1, 2)), (None, Some(vec![FlowId(1), FlowId(2)])));
        assert_eq!((of(count, u64::MAX), of(count + 1, u64::MAX)), (Some(vec![FlowId(count)]), Some(Vec::new())));
    }

    #[test]
    fn a_late_call_is_found_where_it_belongs() {
        let mut connects = Connects::default();
        for (at, made) in [(10, 1), (30, 2), (20, 3), (40, 4)] {
            connects.keep(Pid(1), 3, Moment(at), FlowId(made));
        }
        assert_eq!(connects.of(Pid(1), 3, Moment(15), Moment(25)), Some(vec![FlowId(3)]));
        assert_eq!(connects.of(Pid(1), 4, Moment(15), Moment(25)), Some(Vec::new()));
    }
}
