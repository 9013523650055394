//! Puts IP packets together again from their fragments.

use std::collections::{BTreeMap, VecDeque};

use super::{
    frame::{Fragment, Inner},
    segment::End,
};

/// Bytes of unfinished packets that are kept; a capture full of fragments that never become whole must not cost more.
const MOST_BYTES: usize = 4 << 20;
/// Unfinished packets that are kept, as each costs more than its bytes.
const MOST_PACKETS: usize = 4_096;
/// How long one may take: what Linux allows (`net.ipv4.ipfrag_time`).
const PATIENCE_NS: u64 = 30_000_000_000;
/// The longest packet there can be.
const LONGEST: usize = 65_535;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    source: End,
    destination: End,
    id: u32,
    protocol: u8,
}

#[derive(Debug)]
struct Unfinished {
    begun_ns: u64,
    /// Which of the queue's entries is its own: an older one may have the same name.
    turn: u64,
    /// Offset, length on the wire, what was captured.
    parts: Vec<(usize, usize, Vec<u8>)>,
    /// Length on the wire, once the last fragment was seen.
    whole: Option<usize>,
    bytes: usize,
}

/// Packets that wait for fragments.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    unfinished: BTreeMap<Name, Unfinished>,
    order: VecDeque<(Name, u64)>,
    bytes: usize,
    turns: u64,
    /// Packets given up.
    pub(super) lost: u64,
}

impl Fragments {
    /// Takes a fragment; when its packet is whole, what was captured of its payload from the beginning, and its length on the wire.
    pub(super) fn add(&mut self, inner: &Inner<'_>, fragment: Fragment, unix_ns: u64) -> Option<(Vec<u8>, usize)> {
        let end = fragment.offset.checked_add(inner.length).filter(|end| *end <= LONGEST)?;
        let name =
            Name { source: inner.source, destination: inner.destination, id: fragment.id, protocol: inner.protocol };
        self.forget(unix_ns);
        if !self.unfinished.contains_key(&name) {
            self.turns += 1;
            self.order.push_back((name, self.turns));
        }
        let turn = self.turns;
        let packet = self.unfinished.entry(name).or_insert_with(|| Unfinished {
            begun_ns: unix_ns,
            turn,
            parts: Vec::new(),
            whole: None,
            bytes: 0,
        });
        // The same one twice, as a capture of several interfaces sees it.
        if packet.parts.iter().any(|(offset, length, _)| *offset == fragment.offset && *length == inner.length) {
            return None;
        }
        if !fragment.more {
            packet.whole = Some(end);
        }
        let kept = inner.payload.get(..inner.length).unwrap_or(inner.payload).to_vec();
        // A part costs more than its bytes.
        packet.bytes += kept.len() + 64;
        self.bytes += kept.len() + 64;
        packet.parts.push((fragment.offset, inner.length, kept));
        let whole = packet.whole?;
        let covered: usize = packet.parts.iter().map(|(_, length, _)| *length).sum();
        if covered < whole {
            return None;
        }
        let packet = self.unfinished.remove(&name)?;
        self.bytes -= packet.bytes;
        joined(packet.parts, whole)
    }

    fn forget(&mut self, now: u64) {
        while let Some((name, turn)) = self.order.front().copied() {
            let Some(packet) = self.unfinished.get(&name).filter(|packet| packet.turn == turn) else {
                self.order.pop_front();
                continue;
            };
            let old = now.saturating_sub(packet.begun_ns) > PATIENCE_NS;
            if !old && self.bytes <= MOST_BYTES && self.unfinished.len() <= MOST_PACKETS {
                break;
            }
            self.order.pop_front();
            if let Some(packet) = self.unfinished.remove(&name) {
                self.bytes -= packet.bytes;
                self.lost += 1;
            }
        }
    }
}

/// The payload up to the first byte that was not captured; `None`: fragments that overlap leave a hole.
fn joined(mut parts: Vec<(usize, usize, Vec<u8>)>, whole: usize) -> Option<(Vec<u8>, usize)> {
    parts.sort_by_key(|(offset, ..)| *offset);
    let mut payload: Vec<u8> = Vec::with_capacity(whole);
    let (mut reached, mut cut) = (0, false);
    for (offset, length, bytes) in parts {
        if offset > reached {
            return None;
        }
        // What came first stands, as it does with BSD and Windows; Linux drops such packets altogether.
        let known = reached - offset;
        if !cut && known < length {
            payload.extend_from_slice(bytes.get(known..).unwrap_or_default());
            cut = bytes.len() < length;
        }
        reached = reached.max(offset + length);
    }
    (reached >= whole).then(|| {
        payload.truncate(whole);
        (payload, whole)
    })
}
