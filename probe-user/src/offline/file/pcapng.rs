//! pcapng: <https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng-02.html>.

use super::{Damage, Endian, LONGEST_RECORD, Record, Step};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;

/// The most interfaces a section is believed to have; their descriptions are kept.
const MOST_INTERFACES: usize = 4_096;

/// How an interface counts time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// So many nanoseconds.
    Nanoseconds(u64),
    /// Ten to the minus this, finer than a nanosecond.
    Finer(u64),
    /// Two to the minus this.
    Binary(u32),
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    link: u16,
    snap_length: u32,
    unit: Unit,
    /// Seconds to add.
    offset: i64,
    /// What its statistics have said so far of losses.
    lost: u64,
}

/// What is known of the section that is being read.
#[derive(Debug)]
pub(super) struct Section {
    endian: Endian,
    interfaces: Vec<Interface>,
    /// Its header was read.
    begun: bool,
}

impl Default for Section {
    fn default() -> Self {
        Self { endian: Endian::Little, interfaces: Vec::new(), begun: false }
    }
}

/// Whether a section begins here.
pub(super) fn begins(bytes: &[u8]) -> bool {
    byte_order(bytes).is_some()
}

/// The byte order of a section that begins here.
fn byte_order(bytes: &[u8]) -> Option<Endian> {
    bytes.strip_prefix(&SECTION_HEADER.to_be_bytes())?;
    match bytes.get(8..12)? {
        [0x4d, 0x3c, 0x2b, 0x1a] => Some(Endian::Little),
        [0x1a, 0x2b, 0x3c, 0x4d] => Some(Endian::Big),
        _ => None,
    }
}

impl Section {
    /// Reads a block.
    pub(super) fn step<'a>(&mut self, bytes: &'a [u8]) -> Step<'a> {
        if bytes.len() < 12 {
            return Step::Need(12);
        }
        let is_section = bytes.starts_with(&SECTION_HEADER.to_be_bytes());
        if is_section {
            match byte_order(bytes) {
                Some(endian) => self.endian = endian,
                None => return Step::Damaged(Damage { what: "a section of pcapng without its byte order" }),
            }
        } else if !self.begun {
            return Step::Damaged(Damage { what: "pcapng without a section header" });
        }
        let (Some(kind), Some(length)) = (self.endian.u32_at(bytes, 0), self.endian.u32_at(bytes, 4)) else {
            return Step::Need(12);
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length < 12 || length % 4 != 0 {
            return Step::Damaged(Damage { what: "a block of pcapng with a length that cannot be" });
        }
        if !matches!(
            kind,
            SECTION_HEADER
                | INTERFACE_DESCRIPTION
                | OBSOLETE_PACKET
                | SIMPLE_PACKET
                | INTERFACE_STATISTICS
                | ENHANCED_PACKET
        ) {
            return Step::Skip(length);
        }
        if length > LONGEST_RECORD + 4_096 {
            return Step::Damaged(Damage { what: "a block of pcapng longer than any capture makes" });
        }
        let Some(block) = bytes.get(..length) else { return Step::Need(length) };
        if self.endian.u32_at(block, length - 4).and_then(|l| usize::try_from(l).ok()) != Some(length) {
            return Step::Damaged(Damage { what: "a block of pcapng whose two lengths differ" });
        }
        let body = block.get(8..length - 4).unwrap_or_default();
        let step = match kind {
            SECTION_HEADER => {
                self.begun = true;
                self.interfaces.clear();
                if self.endian.u16_at(body, 4) == Some(1) {
                    Some(Step::Skip(length))
                } else {
                    Some(Step::Damaged(Damage { what: "a version of pcapng that is not known" }))
                }
            }
            INTERFACE_DESCRIPTION => self.interface(body).map(|()| Step::Skip(length)),
            ENHANCED_PACKET => self.enhanced(body, length),
            OBSOLETE_PACKET => self.obsolete(body, length),
            SIMPLE_PACKET => self.simple(body, length),
            _ => Some(self.statistics(body).map_or(Step::Skip(length), |lost| Step::Lost(lost, length))),
        };
        step.unwrap_or(Step::Damaged(Damage { what: "a block of pcapng that contradicts itself" }))
    }

    fn interface(&mut self, body: &[u8]) -> Option<()> {
        if self.interfaces.len() >= MOST_INTERFACES {
            return None;
        }
        let mut interface = Interface {
            link: self.endian.u16_at(body, 0)?,
            snap_length: self.endian.u32_at(body, 4)?,
            unit: Unit::Nanoseconds(1_000),
            offset: 0,
            lost: 0,
        };
        for (code, value) in self.options(body.get(8..)?) {
            match (code, value) {
                (9, [resolution, ..]) => interface.unit = unit(*resolution),
                (14, value) => {
                    if let Some(bytes) = value.first_chunk::<8>() {
                        interface.offset = match self.endian {
                            Endian::Little => i64::from_le_bytes(*bytes),
                            Endian::Big => i64::from_be_bytes(*bytes),
                        };
                    }
                }
                _ => {}
            }
        }
        self.interfaces.push(interface);
        Some(())
    }

    fn enhanced<'a>(&self, body: &'a [u8], length: usize) -> Option<Step<'a>> {
        let interface = self.endian.u32_at(body, 0)?;
        self.packet(interface, body, 4, length)
    }

    fn obsolete<'a>(&self, body: &'a [u8], length: usize) -> Option<Step<'a>> {
        let interface = self.endian.u16_at(body, 0)?;
        self.packet(u32::from(interface), body, 4, length)
    }

    /// Time, lengths and data, from `at`.
    fn packet<'a>(&self, interface: u32, body: &'a [u8], at: usize, length: usize) -> Option<Step<'a>> {
        let index = usize::try_from(interface).ok()?;
        let described = self.interfaces.get(index)?;
        let high = self.endian.u32_at(body, at)?;
        let low = self.endian.u32_at(body, at + 4)?;
        let captured = usize::try_from(self.endian.u32_at(body, at + 8)?).ok()?;
        let wire = self.endian.u32_at(body, at + 12)?;
        let data = body.get(at + 16..)?.get(..captured)?;
        let unix_ns = moment((u64::from(high) << 32) | u64::from(low), described);
        let record = Record {
            unix_ns,
            link: described.link,
            interface: u16::try_from(index).unwrap_or(u16::MAX),
            wire_length: wire.max(u32::try_from(captured).unwrap_or(0)),
            captured: data,
        };
        Some(Step::Packet(record, length))
    }

    fn simple<'a>(&self, body: &'a [u8], length: usize) -> Option<Step<'a>> {
        let described = self.interfaces.first()?;
        let wire = self.endian.u32_at(body, 0)?;
        let limit = if described.snap_length == 0 { wire } else { wire.min(described.snap_length) };
        let data = body.get(4..)?;
        let captured = data.get(..usize::try_from(limit).ok()?)?;
        let record = Record { unix_ns: None, link: described.link, interface: 0, wire_length: wire, captured };
        Some(Step::Packet(record, length))
    }

    /// What an interface lost since its statistics were last told.
    fn statistics(&mut self, body: &[u8]) -> Option<u64> {
        let endian = self.endian;
        let index = usize::try_from(endian.u32_at(body, 0)?).ok()?;
        let number = |value: &[u8]| {
            value.first_chunk::<8>().map(|bytes| match endian {
                Endian::Little => u64::from_le_bytes(*bytes),
                Endian::Big => u64::from_be_bytes(*bytes),
            })
        };
        // isb_ifdrop and isb_osdrop.
        let dropped: u64 = self
            .options(body.get(12..)?)
            .filter(|(code, _)| matches!(code, 5 | 7))
            .filter_map(|(_, value)| number(value))
            .fold(0, u64::saturating_add);
        let interface = self.interfaces.get_mut(index)?;
        let news = dropped.saturating_sub(interface.lost);
        interface.lost = interface.lost.max(dropped);
        (news > 0).then_some(news)
    }

    fn options<'a>(&self, mut rest: &'a [u8]) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        let endian = self.endian;
        std::iter::from_fn(move || {
            let code = endian.u16_at(rest, 0)?;
            let length = usize::from(endian.u16_at(rest, 2)?);
            let value = rest.get(4..4 + length)?;
            rest = rest.get(4 + length.next_multiple_of(4)..).unwrap_or_default();
            (code != 0).then_some((code, value))
        })
    }
}

/// `if_tsresol`: the lower seven bits are an exponent, of two if the highest is set, else of ten.
const fn unit(resolution: u8) -> Unit {
    let exponent = (resolution & 0x7f) as u32;
    if resolution & 0x80 != 0 {
        Unit::Binary(if exponent > 64 { 64 } else { exponent })
    } else if exponent <= 9 {
        Unit::Nanoseconds(10_u64.pow(9 - exponent))
    } else {
        let finer = if exponent > 28 { 19 } else { exponent - 9 };
        Unit::Finer(10_u64.pow(finer))
    }
}

/// Nanoseconds since 1970; `None` where that is before 1970 or after 2554.
fn moment(units: u64, interface: &Interface) -> Option<u64> {
    let ns = match interface.unit {
        Unit::Nanoseconds(scale) => u128::from(units) * u128::from(scale),
        Unit::Finer(divisor) => u128::from(units / divisor),
        Unit::Binary(exponent) => (u128::from(units) * 1_000_000_000) >> exponent,
    };
    let offset = i128::from(interface.offset) * 1_000_000_000;
    u64::try_from(i128::try_from(ns).ok()?.checked_add(offset)?).ok()
}
