//! Descriptors that became upstream connections, and for which request: told before anything fails.

use std::collections::{BTreeMap, VecDeque};

use super::limits;
use crate::model::{event::EventId, nginx::RequestKey, time::Moment};

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    /// When.
    pub(super) at: Moment,
    /// `*N` of the client's connection.
    pub(super) number: u64,
    /// The descriptor.
    pub(super) fd: i32,
    /// Where it was told.
    pub(super) told_in: EventId,
}

/// The newest of them.
#[derive(Debug, Default)]
pub(super) struct Connections {
    /// Whose, oldest first.
    order: VecDeque<RequestKey>,
    /// nginx uses a request's memory again: several requests in turn have the same key.
    of: BTreeMap<RequestKey, VecDeque<Made>>,
}

impl Connections {
    /// Keeps one.
    pub(super) fn keep(&mut self, key: RequestKey, made: Made) {
        if self.order.len() >= limits::CONNECTIONS
            && let Some(oldest) = self.order.pop_front()
            && let Some(list) = self.of.get_mut(&oldest)
        {
            list.pop_front();
            if list.is_empty() {
                self.of.remove(&oldest);
            }
        }
        self.order.push_back(key);
        self.of.entry(key).or_default().push_back(made);
    }

    /// Those made for this request up to that moment: when, and the descriptor.
    pub(super) fn of(&self, key: RequestKey, number: Option<u64>, until: Moment) -> Vec<(Moment, i32)> {
        let mine = |made: &&Made| number.is_none_or(|number| number == made.number) && made.at <= until;
        self.of.get(&key).into_iter().flatten().filter(mine).map(|made| (made.at, made.fd)).collect()
    }

    /// All of them, by request.
    pub(super) fn all(&self) -> impl Iterator<Item = (RequestKey, &Made)> {
        self.of.iter().flat_map(|(key, list)| list.iter().map(|made| (*key, made)))
    }
}
