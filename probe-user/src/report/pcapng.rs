//! Packets as a pcapng file (<https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng-04.html>), block by block: what `-o DIR` leaves
//! and what a recording holds.

mod read;
#[cfg(test)]
mod tests;

pub use self::read::{Contents, ReadError, read};
use crate::model::packet::{Direction, LinkType};

/// An option's length has 16 bits; a comment this long is somebody's mistake already.
const COMMENT: usize = 4096;

/// Block types.
mod block {
    pub(super) const SECTION: u32 = 0x0A0D_0D0A;
    pub(super) const INTERFACE: u32 = 1;
    pub(super) const STATISTICS: u32 = 5;
    pub(super) const PACKET: u32 = 6;
    /// Written in the byte order of the section.
    pub(super) const BYTE_ORDER: u32 = 0x1A2B_3C4D;
}

/// Option codes; each kind of block numbers its own.
mod option {
    pub(super) const COMMENT: u16 = 1;
    pub(super) const APPLICATION: u16 = 4;
    pub(super) const INTERFACE_NAME: u16 = 2;
    pub(super) const INTERFACE_DESCRIPTION: u16 = 3;
    pub(super) const TIME_RESOLUTION: u16 = 9;
    pub(super) const FILTER: u16 = 11;
    pub(super) const PACKET_FLAGS: u16 = 2;
    pub(super) const RECEIVED: u16 = 4;
    pub(super) const DROPPED: u16 = 7;
}

/// An interface packets were captured on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// More about it: the network namespace it is in.
    pub description: Option<String>,
    /// What its packets begin with.
    pub link: LinkType,
    /// Bytes kept of a packet at most.
    pub snap_length: u32,
    /// The filter it was captured with.
    pub filter: Option<String>,
    /// Packets the capture saw, where known.
    pub received: Option<u64>,
    /// Packets it lost, where known.
    pub dropped: Option<u64>,
}

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Position of its interface in the list.
    pub interface: u32,
    /// Nanoseconds since 1970-01-01T00:00:00Z.
    pub unix_ns: u64,
    /// Bytes on the wire.
    pub wire_length: u32,
    /// Bytes kept.
    pub bytes: &'a [u8],
    /// Which way.
    pub direction: Direction,
    /// What the report has to say about it.
    pub comment: Option<&'a str>,
}

/// The whole file. Packets stand in the order given, so the first is number 1 in every reader.
#[must_use]
pub fn write(interfaces: &[Interface], packets: &[Packet<'_>]) -> Vec<u8> {
    let size: usize = packets.iter().map(|packet| packet.bytes.len() + 128).sum();
    let mut file = Encoder::with_capacity(size + 512);
    for interface in interfaces {
        file.interface(interface);
    }
    for packet in packets {
        file.packet(packet);
    }
    let end = packets.iter().map(|packet| packet.unix_ns).max().unwrap_or(0);
    for (id, interface) in (0..).zip(interfaces) {
        file.statistics(id, end, interface.received, interface.dropped);
    }
    file.into_bytes()
}

/// A pcapng section that is being written. An interface is described before its first packet.
#[derive(Clone, Debug)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::with_capacity(4096)
    }
}

impl Encoder {
    /// Begins a section.
    #[must_use]
    pub fn with_capacity(size: usize) -> Self {
        let mut encoder = Self { bytes: Vec::with_capacity(size) };
        encoder.block(block::SECTION, |encoder| {
            encoder.u32(block::BYTE_ORDER);
            // Version 1.0; the section's length is not known.
            encoder.u16(1);
            encoder.u16(0);
            encoder.bytes.extend(u64::MAX.to_le_bytes());
            encoder.option(option::APPLICATION, concat!("probe502 ", env!("CARGO_PKG_VERSION")).as_bytes());
            encoder.end_options();
        });
        encoder
    }

    /// Describes the next interface: the first one is number 0.
    pub fn interface(&mut self, interface: &Interface) {
        self.block(block::INTERFACE, |encoder| {
            encoder.u16(interface.link.0);
            encoder.u16(0);
            encoder.u32(interface.snap_length);
            encoder.option(option::INTERFACE_NAME, clip(&interface.name, COMMENT).as_bytes());
            if let Some(description) = &interface.description {
                encoder.option(option::INTERFACE_DESCRIPTION, clip(description, COMMENT).as_bytes());
            }
            // 10^-9 seconds.
            encoder.option(option::TIME_RESOLUTION, &[9]);
            if let Some(filter) = &interface.filter {
                // A leading 0 says that the filter is libpcap's language.
                encoder.option(option::FILTER, &[&[0], clip(filter, COMMENT).as_bytes()].concat());
            }
            encoder.end_options();
        });
    }

    /// Adds a packet.
    pub fn packet(&mut self, packet: &Packet<'_>) {
        let captured = u32::try_from(packet.bytes.len()).unwrap_or(u32::MAX);
        self.block(block::PACKET, |encoder| {
            encoder.u32(packet.interface);
            encoder.time(packet.unix_ns);
            encoder.u32(captured);
            encoder.u32(packet.wire_length);
            encoder.bytes.extend(packet.bytes);
            encoder.pad();
            if let Some(comment) = packet.comment {
                encoder.option(option::COMMENT, clip(comment, COMMENT).as_bytes());
            }
            // Bits 0 and 1: 1 inbound, 2 outbound.
            match packet.direction {
                Direction::Inbound => encoder.option(option::PACKET_FLAGS, &1_u32.to_le_bytes()),
                Direction::Outbound => encoder.option(option::PACKET_FLAGS, &2_u32.to_le_bytes()),
                Direction::Unknown => {}
            }
            encoder.end_options();
        });
    }

    /// What the capture of an interface counted up to this time; nothing where nothing is known.
    pub fn statistics(&mut self, interface: u32, unix_ns: u64, received: Option<u64>, dropped: Option<u64>) {
        if received.is_none() && dropped.is_none() {
            return;
        }
        self.block(block::STATISTICS, |encoder| {
            encoder.u32(interface);
            encoder.time(unix_ns);
            if let Some(received) = received {
                encoder.option(option::RECEIVED, &received.to_le_bytes());
            }
            if let Some(dropped) = dropped {
                // Lost between the interface and the reader, which is what libpcap's "dropped by kernel" counts.
                encoder.option(option::DROPPED, &dropped.to_le_bytes());
            }
            encoder.end_options();
        });
    }

    /// Bytes so far.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never: a section has a header.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The section.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn block(&mut self, kind: u32, body: impl FnOnce(&mut Self)) {
        let begin = self.bytes.len();
        self.u32(kind);
        self.u32(0);
        body(self);
        let length = u32::try_from(self.bytes.len() - begin + 4).unwrap_or(u32::MAX);
        self.u32(length);
        if let Some(place) = self.bytes.get_mut(begin + 4..begin + 8) {
            place.copy_from_slice(&length.to_le_bytes());
        }
    }

    fn u16(&mut self, value: u16) {
        self.bytes.extend(value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes.extend(value.to_le_bytes());
    }

    /// The high half first, whatever the byte order.
    fn time(&mut self, unix_ns: u64) {
        self.u32(u32::try_from(unix_ns >> 32).unwrap_or(u32::MAX));
        self.u32(u32::try_from(unix_ns & u64::from(u32::MAX)).unwrap_or(u32::MAX));
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        self.u16(code);
        self.u16(u16::try_from(value.len()).unwrap_or(u16::MAX));
        self.bytes.extend(value);
        self.pad();
    }

    fn end_options(&mut self) {
        self.u32(0);
    }

    /// Everything begins at a multiple of four; every section of ours begins at the vector's beginning.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// At most so many bytes, without half a character at the end.
fn clip(text: &str, length: usize) -> &str {
    let end = (0..=length.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    &text[..end]
}
