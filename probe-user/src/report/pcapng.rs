//! Packets as a pcapng file (<https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng-04.html>).

#[cfg(test)]
mod tests;

use std::{borrow::Cow, time::Duration};

use pcap_file::{
    DataLink, Endianness, PcapError,
    pcapng::{
        PcapNgBlock, PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
            interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption},
            section_header::{SectionHeaderBlock, SectionHeaderOption},
        },
    },
};
use thiserror::Error;

use crate::model::packet::{Direction, LinkType};

/// An option's length has 16 bits; a comment this long is somebody's mistake already.
const COMMENT: usize = 4096;

/// An interface packets were captured on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name; with the network namespace where there are several of that name.
    pub name: String,
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

/// Why no file could be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("cannot write the packets as pcapng: {0}")]
pub struct PcapngError(String);

/// The whole file. Packets stand in the order given, so the first is number 1 in every reader.
pub fn write(interfaces: &[Interface], packets: &[Packet<'_>]) -> Result<Vec<u8>, PcapngError> {
    let size: usize = packets.iter().map(|packet| packet.bytes.len() + 128).sum();
    build(Vec::with_capacity(size + 512), interfaces, packets).map_err(|error| PcapngError(error.to_string()))
}

fn build(mut bytes: Vec<u8>, interfaces: &[Interface], packets: &[Packet<'_>]) -> Result<Vec<u8>, PcapError> {
    let section = SectionHeaderBlock {
        // In statistics pcap-file writes a time as one 64-bit number, the format wants its high half first: the same only in this order.
        endianness: Endianness::Big,
        options: vec![SectionHeaderOption::UserApplication(Cow::Borrowed(concat!(
            "probe502 ",
            env!("CARGO_PKG_VERSION")
        )))],
        ..SectionHeaderBlock::default()
    };
    let mut writer = PcapNgWriter::with_section_header(&mut bytes, section)?;
    for interface in interfaces {
        let mut options = vec![
            InterfaceDescriptionOption::IfName(Cow::Borrowed(&interface.name)),
            // 10^-9 seconds.
            InterfaceDescriptionOption::IfTsResol(9),
        ];
        // A leading 0 says that the filter is libpcap's language.
        options.extend(interface.filter.as_ref().map(|filter| {
            InterfaceDescriptionOption::IfFilter(Cow::Owned([&[0], clip(filter, COMMENT).as_bytes()].concat()))
        }));
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::from(u32::from(interface.link.0)),
            snaplen: interface.snap_length,
            options,
        };
        writer.write_block(&block.into_block())?;
    }
    for packet in packets {
        let mut options = Vec::new();
        options.extend(packet.comment.map(|text| EnhancedPacketOption::Comment(Cow::Borrowed(clip(text, COMMENT)))));
        // Bits 0 and 1: 1 inbound, 2 outbound.
        match packet.direction {
            Direction::Inbound => options.push(EnhancedPacketOption::Flags(1)),
            Direction::Outbound => options.push(EnhancedPacketOption::Flags(2)),
            Direction::Unknown => {}
        }
        let block = EnhancedPacketBlock {
            interface_id: packet.interface,
            timestamp: Duration::from_nanos(packet.unix_ns),
            original_len: packet.wire_length,
            data: Cow::Borrowed(packet.bytes),
            options,
        };
        writer.write_block(&block.into_block())?;
    }
    let end = packets.iter().map(|packet| packet.unix_ns).max().unwrap_or(0);
    for (id, interface) in (0..).zip(interfaces) {
        let received = interface.received.map(InterfaceStatisticsOption::IsbIfRecv);
        // Lost between the interface and the reader, which is what libpcap's "dropped by kernel" counts.
        let dropped = interface.dropped.map(InterfaceStatisticsOption::IsbOsDrop);
        let options: Vec<_> = received.into_iter().chain(dropped).collect();
        if !options.is_empty() {
            let block = InterfaceStatisticsBlock { interface_id: id, timestamp: end, options };
            writer.write_block(&block.into_block())?;
        }
    }
    drop(writer);
    Ok(bytes)
}

/// At most so many bytes, without half a character at the end.
fn clip(text: &str, length: usize) -> &str {
    let end = (0..=length.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    &text[..end]
}
