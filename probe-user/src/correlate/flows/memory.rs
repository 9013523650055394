//! What is remembered of connections, for a recorder.

use std::net::SocketAddr;

use super::Flows;
use crate::model::{
    event::{Event, EventId},
    flow::Flow,
};

impl Flows {
    /// Every connection that is remembered, oldest first.
    pub fn all(&self) -> impl Iterator<Item = &Flow> {
        self.known.values().map(|state| &state.flow)
    }

    /// Every event of a connection that is remembered, and those that wait for their connection.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.known.values().flat_map(|state| &state.flow.events).chain(&self.unplaced)
    }

    /// The events that told of connections that were open before the probe looked.
    pub fn told_by(&self) -> impl Iterator<Item = EventId> {
        self.known.values().filter_map(|state| state.told_in)
    }

    /// Addresses known to be upstreams.
    pub fn upstreams(&self) -> impl Iterator<Item = SocketAddr> {
        self.upstreams.iter().copied()
    }
}
