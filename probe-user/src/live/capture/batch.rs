//! Captured packets on their way to whoever thinks of them: many in two allocations.

use crate::{
    bundle::packets::CapturedPacket,
    model::{
        packet::{Direction, LinkType},
        time::{Moment, WallClock},
    },
};

/// Bytes kept of a packet, on the average: what room is made for.
const USUAL: usize = 96;

/// A packet without its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// Running number over all captures of the run.
    pub number: u64,
    /// By the kernel's wall clock.
    pub unix_ns: u64,
    /// Bytes on the wire.
    pub wire_length: u32,
    /// Which way it went.
    pub direction: Direction,
}

/// Packets of one capture, in its order.
#[derive(Debug)]
pub struct Batch {
    /// Number of the capture's interface.
    pub interface: u32,
    /// What they begin with.
    pub link: LinkType,
    /// The network namespace they were captured in (inode number); set by whoever knows it.
    pub netns: Option<u32>,
    /// The offset between wall and boot time when they were read: the wall clock may be stepped while we run.
    pub clock: WallClock,
    /// Each with the end of its bytes.
    heads: Vec<(Head, usize)>,
    bytes: Vec<u8>,
}

impl Batch {
    /// None yet.
    #[must_use]
    pub const fn new(interface: u32, link: LinkType, clock: WallClock) -> Self {
        Self { interface, link, netns: None, clock, heads: Vec::new(), bytes: Vec::new() }
    }

    /// Adds a packet.
    pub fn push(&mut self, head: Head, bytes: &[u8]) {
        if self.heads.is_empty() {
            self.heads.reserve(16);
            self.bytes.reserve(16 * USUAL);
        }
        self.bytes.extend_from_slice(bytes);
        self.heads.push((head, self.bytes.len()));
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.heads.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// What it holds, bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        size_of::<Self>() + self.bytes.len() + size_of_val(self.heads.as_slice())
    }

    /// Changes the bytes of each packet, not how many they are.
    pub fn each_mut(&mut self, mut change: impl FnMut(&mut [u8])) {
        let mut from = 0;
        for (_, end) in &self.heads {
            let end = *end;
            change(self.bytes.get_mut(from..end).unwrap_or_default());
            from = end;
        }
    }

    /// The packet in this place, from 0, and its bytes.
    #[must_use]
    pub fn get(&self, place: usize) -> Option<(Head, &[u8])> {
        let (head, end) = *self.heads.get(place)?;
        let begin = place.checked_sub(1).map_or(0, |before| self.heads.get(before).map_or(0, |(_, end)| *end));
        Some((head, self.bytes.get(begin..end)?))
    }

    /// When a packet was captured, since boot.
    #[must_use]
    pub fn moment(&self, head: Head) -> Moment {
        self.clock.moment(i128::from(head.unix_ns))
    }

    /// The packet in this place by itself.
    #[must_use]
    pub fn packet(&self, place: usize) -> Option<CapturedPacket> {
        let (head, bytes) = self.get(place)?;
        Some(CapturedPacket {
            number: head.number,
            interface: self.interface,
            link: self.link,
            unix_ns: head.unix_ns,
            wire_length: head.wire_length,
            bytes: bytes.to_vec(),
            direction: head.direction,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_out_as_they_went_in() {
        let mut batch = Batch::new(3, LinkType::RAW, WallClock { offset_ns: 10 });
        assert!(batch.is_empty());
        for (number, bytes) in [(1, b"one".as_slice()), (2, b""), (3, b"three")] {
            let head = Head { number, unix_ns: 100 * number, wire_length: 60, direction: Direction::Unknown };
            batch.push(head, bytes);
        }
        batch.each_mut(|bytes| bytes.make_ascii_uppercase());
        let packets: Vec<CapturedPacket> = (0..4).filter_map(|place| batch.packet(place)).collect();
        let out: Vec<(u64, &[u8])> = packets.iter().map(|packet| (packet.number, packet.bytes.as_slice())).collect();
        assert_eq!(out, [(1, b"ONE".as_slice()), (2, b""), (3, b"THREE")]);
        assert_eq!(batch.get(1).map(|(head, _)| batch.moment(head)), Some(Moment(190)));
        assert_eq!(batch.len(), 3);
        assert!(batch.weight() > 8);
    }
}
