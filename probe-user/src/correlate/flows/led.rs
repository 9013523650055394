//! Where the host's address translation led a connection.

use std::net::SocketAddr;

use super::Flows;
use crate::model::{
    event::EventId,
    flow::{FlowId, Led},
};

impl Flows {
    /// This event of a connection was seen under another address than the upstream's: there it was led.
    pub fn led(&mut self, id: FlowId, event: EventId, to: SocketAddr) {
        let Some(state) = self.known.wake(id) else { return };
        let events = &state.flow.events;
        let led = state.flow.led.get_or_insert_with(|| Led { to, there: Vec::new() });
        if led.to != to {
            return;
        }
        if led.there.len() > events.len() {
            // As many as are remembered themselves.
            led.there.retain(|there| events.iter().any(|event| event.id == *there));
        }
        led.there.push(event);
    }
}
