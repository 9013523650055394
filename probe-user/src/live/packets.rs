//! The newest captured packets, kept for the incidents that will need them.

use std::collections::VecDeque;

use super::capture::CapturedPacket;
use crate::model::packet::PacketRef;

/// Packets in the order they were captured, bounded in bytes.
#[derive(Debug)]
pub struct PacketStore {
    packets: VecDeque<(PacketRef, CapturedPacket)>,
    bytes: usize,
    limit: usize,
}

impl PacketStore {
    /// Keeps at most so many captured bytes.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self { packets: VecDeque::new(), bytes: 0, limit }
    }

    /// Keeps a packet; the oldest go.
    pub fn push(&mut self, reference: PacketRef, packet: CapturedPacket) {
        self.bytes += packet.bytes.len();
        self.packets.push_back((reference, packet));
        while self.bytes > self.limit {
            let Some((_, oldest)) = self.packets.pop_front() else { break };
            self.bytes -= oldest.bytes.len();
        }
    }

    /// The packet with this reference, if it is still kept.
    #[must_use]
    pub fn get(&self, reference: PacketRef) -> Option<&CapturedPacket> {
        let index = self.packets.binary_search_by_key(&reference, |(reference, _)| *reference).ok()?;
        self.packets.get(index).map(|(_, packet)| packet)
    }
}
