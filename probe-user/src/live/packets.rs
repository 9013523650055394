//! The newest captured packets, kept for the incidents that will need them.

use std::collections::BTreeMap;

use super::capture::CapturedPacket;
use crate::model::packet::PacketRef;

/// What keeping a packet costs besides its bytes: the structure, its allocation and its place in the tree.
const OVERHEAD: usize = 160;

/// Packets in the order they were captured, bounded in bytes.
#[derive(Debug)]
pub struct PacketStore {
    /// Several captures share the numbers, so that neighbours can come in a different order.
    packets: BTreeMap<u64, CapturedPacket>,
    bytes: usize,
    limit: usize,
}

impl PacketStore {
    /// Keeps at most so many captured bytes.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self { packets: BTreeMap::new(), bytes: 0, limit }
    }

    /// Keeps a packet; the oldest go.
    pub fn push(&mut self, packet: CapturedPacket) {
        self.bytes += packet.bytes.len() + OVERHEAD;
        self.packets.insert(packet.number, packet);
        while self.bytes > self.limit {
            let Some((_, oldest)) = self.packets.pop_first() else { break };
            self.bytes -= oldest.bytes.len() + OVERHEAD;
        }
    }

    /// The packet with this reference, if it is still kept.
    #[must_use]
    pub fn get(&self, reference: PacketRef) -> Option<&CapturedPacket> {
        self.packets.get(&reference.0)
    }
}
