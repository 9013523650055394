//! The first stage: blocks of a file in, [`Batch`]es out. Touches headers only.

use super::{
    file::{Damage, Reader, Record, Step},
    fragments::Fragments,
    frame::{self, Inner, protocol},
    segment::{Batch, End, Item, Pair, Segment, Span, Unreachable},
};
use crate::model::packet::TcpFlags;

/// What a file turned out to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets.
    pub packets: u64,
    /// TCP segments among them.
    pub segments: u64,
    /// Packets of link types that cannot be read, and the last of these types.
    pub foreign: u64,
    /// The type.
    pub foreign_link: u16,
    /// Packets cut before the end of their TCP header.
    pub cut: u64,
    /// Packets that were cut anywhere.
    pub shortened: u64,
    /// Packets lost by the capture, as it says itself.
    pub lost: u64,
    /// Packets that could not be put together from fragments.
    pub fragments_lost: u64,
    /// When the first packet was captured.
    pub first_ns: Option<u64>,
    /// When the last packet was captured.
    pub last_ns: Option<u64>,
}

/// How far a block was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All but what stands at the end: a record that needs so many bytes from there on.
    Need {
        /// Bytes read.
        read: usize,
        /// Bytes needed from there.
        need: usize,
    },
    /// All, and so many bytes that follow are of no interest.
    Skip(u64),
    /// Up to this byte; the rest cannot be read.
    Damaged(usize, Damage),
}

/// Reads one file, block by block.
#[derive(Debug, Default)]
pub struct Decoder {
    reader: Reader,
    fragments: Fragments,
    counts: Counts,
    /// Time of the packet before: one without a time happened then at the earliest.
    last_ns: u64,
    begun: bool,
}

impl Decoder {
    /// What was found so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts { fragments_lost: self.fragments.lost, ..self.counts.clone() }
    }

    /// Something of the file's format was read.
    #[must_use]
    pub const fn begun(&self) -> bool {
        self.begun
    }

    /// Reads `batch.block` and adds what it finds to the batch.
    pub fn read(&mut self, batch: &mut Batch) -> Progress {
        let mut at = 0;
        let block = std::mem::take(&mut batch.block);
        let progress = loop {
            let rest = block.get(at..).unwrap_or_default();
            match self.reader.step(rest) {
                Step::Packet(record, length) => {
                    // What was captured stands at the end of its record, but for padding and the block's second length.
                    let begin = offset_in(&block, record.captured).unwrap_or(at);
                    self.packet(&record, begin, batch);
                    at += length;
                }
                Step::Lost(count, length) => {
                    self.counts.lost = self.counts.lost.saturating_add(count);
                    at += length;
                }
                Step::Skip(length) => {
                    self.begun = true;
                    let left = rest.len();
                    if length >= left && length > 0 {
                        break Progress::Skip(u64::try_from(length - left).unwrap_or(u64::MAX));
                    }
                    at += length;
                }
                Step::Need(need) => break Progress::Need { read: at, need },
                Step::Damaged(damage) => break Progress::Damaged(at, damage),
            }
        };
        batch.block = block;
        progress
    }

    fn packet(&mut self, record: &Record<'_>, begin: usize, batch: &mut Batch) {
        self.counts.packets += 1;
        let unix_ns = record.unix_ns.unwrap_or(self.last_ns);
        self.last_ns = unix_ns;
        self.counts.first_ns.get_or_insert(unix_ns);
        self.counts.last_ns = Some(self.counts.last_ns.map_or(unix_ns, |last| last.max(unix_ns)));
        let wire = usize::try_from(record.wire_length).unwrap_or(usize::MAX);
        if record.captured.len() < wire {
            self.counts.shortened += 1;
        }
        let Some(inner) = frame::dissect(record.link, record.captured, wire) else {
            if !frame::knows(record.link) {
                self.counts.foreign += 1;
                self.counts.foreign_link = record.link;
            }
            return;
        };
        let about = About {
            unix_ns,
            number: self.counts.packets,
            interface: record.interface,
            // Linux' "any" sees a packet on loopback, and one that a bridge hands on, more than once.
            may_repeat: matches!(record.link, 113 | 276) || record.interface > 0,
        };
        let Some(fragment) = inner.fragment else {
            let at = begin + offset_in(record.captured, inner.payload).unwrap_or(0);
            self.found(&inner, &about, at, false, batch);
            return;
        };
        if let Some((payload, length)) = self.fragments.add(&inner, fragment, unix_ns)
            && let Some(whole) = frame::resume(&inner, &payload, length)
            && whole.fragment.is_none()
        {
            let at = batch.mended.len() + offset_in(&payload, whole.payload).unwrap_or(0);
            self.found(&whole, &about, at, true, batch);
            batch.mended.extend_from_slice(&payload);
        }
    }

    fn found(&mut self, inner: &Inner<'_>, about: &About, at: usize, mended: bool, batch: &mut Batch) {
        match inner.protocol {
            protocol::TCP => match segment(inner, about, at, mended) {
                Some(segment) => {
                    self.counts.segments += 1;
                    batch.items.push(Item::Segment(segment));
                }
                None => self.counts.cut += 1,
            },
            protocol::ICMP | protocol::ICMPV6 => {
                if let Some(unreachable) = unreachable(inner, about) {
                    batch.items.push(Item::Unreachable(unreachable));
                }
            }
            _ => {}
        }
    }
}

/// What a record says beside its bytes.
struct About {
    unix_ns: u64,
    number: u64,
    interface: u16,
    may_repeat: bool,
}

/// Where `part`, a part of `whole`, begins in it.
fn offset_in(whole: &[u8], part: &[u8]) -> Option<usize> {
    let offset = part.as_ptr().addr().checked_sub(whole.as_ptr().addr())?;
    (offset <= whole.len()).then_some(offset)
}

fn segment(inner: &Inner<'_>, about: &About, at: usize, mended: bool) -> Option<Segment> {
    // A header whose options the capture cut is still a header.
    let [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, offset, flags, w0, w1] = *inner.payload.first_chunk::<16>()?;
    let header = usize::from(offset >> 4) * 4;
    if header < 20 {
        return None;
    }
    let length = inner.length.checked_sub(header)?;
    let captured = inner.payload.len().saturating_sub(header).min(length);
    let source = End { port: u16::from_be_bytes([s0, s1]), ..inner.source };
    let destination = End { port: u16::from_be_bytes([d0, d1]), ..inner.destination };
    let (pair, from_low) = Pair::of(source, destination);
    Some(Segment {
        unix_ns: about.unix_ns,
        number: about.number,
        hash: pair.hash(),
        pair,
        from_low,
        interface: about.interface,
        vlan: inner.vlan,
        sequence: u32::from_be_bytes([q0, q1, q2, q3]),
        acknowledgement: u32::from_be_bytes([a0, a1, a2, a3]),
        length: u32::try_from(length).ok()?,
        payload: Span { at: u32::try_from(at + header).ok()?, length: u32::try_from(captured).ok()?, mended },
        window: u16::from_be_bytes([w0, w1]),
        ip_id: inner.ip_id,
        flags: TcpFlags(flags),
        ttl: inner.ttl,
        may_repeat: about.may_repeat,
    })
}

fn unreachable(inner: &Inner<'_>, about: &About) -> Option<Unreachable> {
    let v6 = inner.protocol == protocol::ICMPV6;
    let [kind, code, ..] = *inner.payload.first_chunk::<8>()?;
    // Errors quote the packet they are about after eight bytes (RFC 792, RFC 4443); everything else is no error.
    let is_error = if v6 { matches!(kind, 1..=4) } else { matches!(kind, 3 | 4 | 5 | 11 | 12) };
    if !is_error {
        return None;
    }
    let quoted = frame::quoted(inner.payload.get(8..)?)?;
    if quoted.protocol != protocol::TCP || quoted.fragment.is_some_and(|fragment| fragment.offset != 0) {
        return None;
    }
    let [s0, s1, d0, d1] = *quoted.payload.first_chunk::<4>()?;
    Some(Unreachable {
        unix_ns: about.unix_ns,
        number: about.number,
        from: inner.source,
        kind,
        code,
        v6,
        source: End { port: u16::from_be_bytes([s0, s1]), ..quoted.source },
        destination: End { port: u16::from_be_bytes([d0, d1]), ..quoted.destination },
    })
}
