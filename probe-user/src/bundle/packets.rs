//! Packets as they were captured, and the newest of them, kept for the incidents that will need them.

use std::collections::BTreeMap;

use crate::model::packet::{Direction, LinkType, PacketRef};

/// What keeping a packet costs besides its bytes: the structure, its allocation and its place in the tree.
const OVERHEAD: usize = 160;

/// A packet as it was captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedPacket {
    /// Running number over all captures of the run, from 1. A packet lost on its way into the sink leaves a gap.
    pub number: u64,
    /// Number of the capture's interface.
    pub interface: u32,
    /// What it begins with.
    pub link: LinkType,
    /// Nanoseconds since 1970-01-01T00:00:00Z, by the kernel.
    pub unix_ns: u64,
    /// Bytes on the wire.
    pub wire_length: u32,
    /// Bytes captured.
    pub bytes: Vec<u8>,
    /// Which way, where the interface tells.
    pub direction: Direction,
}

/// An interface packets come from, as its capture counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The network namespace it is in (inode number).
    pub netns: Option<u32>,
    /// The filter it is captured with.
    pub filter: String,
    /// Bytes kept of a packet at most.
    pub snap_length: u32,
    /// Packets that passed the filter so far.
    pub received: u64,
    /// Packets lost so far.
    pub dropped: u64,
}

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
