//! Descriptors that became upstream connections, and for which request: told before anything fails.

use super::{limits, newest::Newest};
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

/// The newest of them, by request: nginx uses a request's memory again, and several requests in turn have the same key.
#[derive(Debug)]
pub(super) struct Connections(Newest<RequestKey, Made>);

impl Default for Connections {
    fn default() -> Self {
        Self(Newest::new(limits::CONNECTIONS))
    }
}

impl Connections {
    /// Keeps one.
    pub(super) fn keep(&mut self, key: RequestKey, made: Made) {
        self.0.keep(key, made);
    }

    /// Those made for this request in that time, oldest first: when, and the descriptor.
    pub(super) fn of(&self, key: RequestKey, number: Option<u64>, from: Moment, until: Moment) -> Vec<(Moment, i32)> {
        let mine = |made: &&Made| number.is_none_or(|number| number == made.number) && made.at <= until;
        // The memory, and the client's connection, may have been those of many requests before.
        let newest = self.0.of(key).rev().take_while(|made| made.at >= from);
        let mut made: Vec<(Moment, i32)> = newest.filter(mine).map(|made| (made.at, made.fd)).collect();
        made.reverse();
        made
    }

    /// All of them, by request.
    pub(super) fn all(&self) -> impl Iterator<Item = (RequestKey, &Made)> {
        self.0.all()
    }
}
