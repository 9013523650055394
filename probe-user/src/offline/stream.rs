//! One direction of a connection, put in order.

use super::{
    fate::distance,
    http::{Kind, Messages},
};

/// Segments that wait for one before them.
const MOST_WAITING: usize = 64;
/// Their bytes.
const MOST_BYTES: usize = 256 << 10;
/// Once the other side has acknowledged what is missing, the capture may still bring it a little later (several queues of one card).
const LATE_NS: u64 = 100_000_000;
/// A number further off than this belongs to nothing that was seen.
const FAR: i32 = 1 << 28;

/// A segment that came too early.
#[derive(Debug)]
pub(super) struct Early {
    pub(super) sequence: u32,
    pub(super) wire: u32,
    pub(super) bytes: Vec<u8>,
    unix_ns: u64,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Stream {
    /// The next byte's number, once one was seen.
    next: Option<u32>,
    /// What it says.
    pub(super) messages: Messages,
    early: Vec<Early>,
}

/// What is to be done with a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It is next, but for so many bytes of it that came before.
    Now(u32),
    /// It was kept.
    Kept,
    /// All of it came before.
    Again,
}

impl Stream {
    pub(super) fn new(kind: Kind) -> Self {
        Self { next: None, messages: Messages::new(kind), early: Vec::new() }
    }

    /// The stream begins here: a SYN.
    pub(super) fn begin(&mut self, sequence: u32) {
        if self.next.is_none() {
            self.next = Some(sequence);
        }
    }

    /// A payload with this number; what has its turn counts as taken.
    pub(super) fn place(&mut self, sequence: u32, wire: u32, captured: &[u8], unix_ns: u64) -> Turn {
        if self.next.is_none() {
            // In the middle of something: a message begins here, or the next that can be recognised.
            self.messages.look_for_beginning();
        }
        let next = *self.next.get_or_insert(sequence);
        let ahead = distance(sequence, next);
        if ahead <= 0 {
            let known = next.wrapping_sub(sequence);
            if known >= wire {
                return Turn::Again;
            }
            self.next = Some(sequence.wrapping_add(wire));
            return Turn::Now(known);
        }
        if ahead < FAR && !self.messages.is_foreign() {
            self.early.push(Early { sequence, wire, bytes: captured.to_vec(), unix_ns });
        }
        Turn::Kept
    }

    /// Some segments wait.
    pub(super) fn waits(&self) -> bool {
        !self.early.is_empty()
    }

    /// The next segment that waited and has its turn. Where one is missing for good (`over`, or acknowledged and long gone, or too many
    /// wait for it), the hole before it is counted as lost.
    pub(super) fn pop(&mut self, acknowledged: u32, now: u64, over: bool) -> Option<(Early, u32)> {
        loop {
            let next = self.next?;
            let first = (0..self.early.len())
                .min_by_key(|index| self.early.get(*index).map_or(i32::MAX, |early| distance(early.sequence, next)))?;
            let candidate = self.early.get(first)?;
            let ahead = distance(candidate.sequence, next);
            if ahead > 0 {
                let known = distance(acknowledged, candidate.sequence) >= 0;
                let late = now.saturating_sub(candidate.unix_ns) > LATE_NS;
                let bytes: usize = self.early.iter().map(|early| early.bytes.len()).sum();
                let full = self.early.len() >= MOST_WAITING || bytes >= MOST_BYTES;
                if !(over || full || (known && late)) {
                    return None;
                }
                self.messages.skip(u64::from(ahead.unsigned_abs()));
                self.next = Some(candidate.sequence);
                continue;
            }
            let early = self.early.swap_remove(first);
            let known = next.wrapping_sub(early.sequence);
            if known < early.wire {
                self.next = Some(early.sequence.wrapping_add(early.wire));
                return Some((early, known));
            }
        }
    }
}
