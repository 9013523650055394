//! Reads back what [`super::Encoder`] wrote. Captures of other programs are read elsewhere: they need more than this.

use thiserror::Error;

use super::{Interface, Packet, block, option};
use crate::model::packet::{Direction, LinkType};

/// What a section holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents<'a> {
    /// The interfaces, in the order of their numbers.
    pub interfaces: Vec<Interface>,
    /// The packets in order.
    pub packets: Vec<Packet<'a>>,
}

/// It is not a section as we write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the packets are not in the form probe502 writes: {what} at byte {at}")]
pub struct ReadError {
    what: &'static str,
    at: usize,
}

/// Reads a section. Takes no more memory than a few words for each packet.
pub fn read(bytes: &[u8]) -> Result<Contents<'_>, ReadError> {
    let mut contents = Contents::default();
    let mut at = 0;
    while at < bytes.len() {
        let broken = |what| ReadError { what, at };
        let length = number(bytes, at + 4).ok_or(broken("a cut block"))?;
        let length = usize::try_from(length).map_err(|_| broken("a block too long"))?;
        let end = at.checked_add(length).filter(|_| length >= 12 && length.is_multiple_of(4));
        let block = end.and_then(|end| bytes.get(at..end)).ok_or(broken("a block of a wrong length"))?;
        let body = &block[8..length - 4];
        match number(block, 0) {
            Some(block::SECTION) if at == 0 && number(body, 0) == Some(block::BYTE_ORDER) => {}
            Some(_) if at == 0 => return Err(broken("no section header in little-endian order")),
            Some(block::SECTION) => return Err(broken("a second section")),
            Some(block::INTERFACE) => {
                contents.interfaces.push(interface(body).ok_or(broken("an incomplete interface"))?);
            }
            Some(block::PACKET) => contents.packets.push(packet(body).ok_or(broken("an incomplete packet"))?),
            Some(block::STATISTICS) => statistics(body, &mut contents.interfaces),
            _ => {}
        }
        at += length;
    }
    Ok(contents)
}

fn interface(body: &[u8]) -> Option<Interface> {
    let mut interface = Interface {
        name: String::new(),
        description: None,
        link: LinkType(u16::from_le_bytes(*body.first_chunk()?)),
        snap_length: number(body, 4)?,
        filter: None,
        received: None,
        dropped: None,
    };
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    for (code, value) in options(body.get(8..)?) {
        match code {
            option::INTERFACE_NAME => interface.name = text(value),
            option::INTERFACE_DESCRIPTION => interface.description = Some(text(value)),
            option::FILTER => interface.filter = value.get(1..).map(text),
            _ => {}
        }
    }
    Some(interface)
}

fn packet(body: &[u8]) -> Option<Packet<'_>> {
    let captured = usize::try_from(number(body, 12)?).ok()?;
    let end = 20_usize.checked_add(captured)?;
    let mut packet = Packet {
        interface: number(body, 0)?,
        unix_ns: (u64::from(number(body, 4)?) << 32) | u64::from(number(body, 8)?),
        wire_length: number(body, 16)?,
        bytes: body.get(20..end)?,
        direction: Direction::Unknown,
        comment: None,
    };
    for (code, value) in options(body.get(end.next_multiple_of(4)..).unwrap_or_default()) {
        match (code, number(value, 0)) {
            (option::COMMENT, _) => packet.comment = std::str::from_utf8(value).ok(),
            (option::PACKET_FLAGS, Some(flags)) if flags & 3 == 1 => packet.direction = Direction::Inbound,
            (option::PACKET_FLAGS, Some(flags)) if flags & 3 == 2 => packet.direction = Direction::Outbound,
            _ => {}
        }
    }
    Some(packet)
}

fn statistics(body: &[u8], interfaces: &mut [Interface]) {
    let interface = number(body, 0).and_then(|id| interfaces.get_mut(usize::try_from(id).ok()?));
    let (Some(interface), Some(rest)) = (interface, body.get(12..)) else { return };
    for (code, value) in options(rest) {
        let count = value.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        match code {
            option::RECEIVED => interface.received = count,
            option::DROPPED => interface.dropped = count,
            _ => {}
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

/// Code and value of each option; the list ends where it is cut.
fn options(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [c0, c1, l0, l1] = *rest.first_chunk()?;
        let (code, length) = (u16::from_le_bytes([c0, c1]), usize::from(u16::from_le_bytes([l0, l1])));
        let value = rest.get(4..4 + length)?;
        rest = rest.get((4 + length).next_multiple_of(4)..).unwrap_or_default();
        (code != 0).then_some((code, value))
    })
}
