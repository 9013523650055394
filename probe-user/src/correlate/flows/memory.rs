//! What is remembered of connections, for a recorder.

use std::{borrow::Cow, net::SocketAddr};

use super::Flows;
use crate::model::{
    event::{Event, EventId},
    flow::Flow,
    time::At,
};

impl Flows {
    /// Every connection that is remembered, oldest first. Some of those of which nothing was seen within `window` are left out.
    pub fn seen_within(&self, window: At) -> impl Iterator<Item = Cow<'_, Flow>> {
        self.known.flows(None, window)
    }

    /// Every event of a connection that is remembered, and those that wait for their connection.
    pub fn for_each_event(&self, mut each: impl FnMut(&Event)) {
        self.known.for_each_event(&mut each);
        self.unplaced.iter().for_each(each);
    }

    /// The events that told of connections that were open before the probe looked.
    pub fn told_by(&self) -> impl Iterator<Item = EventId> {
        self.known.heads().filter_map(|head| head.told_in)
    }

    /// Addresses known to be upstreams.
    pub fn upstreams(&self) -> impl Iterator<Item = SocketAddr> {
        self.upstreams.iter().copied()
    }
}
