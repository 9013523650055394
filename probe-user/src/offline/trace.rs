//! The packets of a connection that matter if it ends badly: its handshake, the beginning of the exchange that is on, and the last ones.

use super::segment::{Pair, Segment};
use crate::model::packet::{TcpFlags, TcpHeader};

/// The first packets of a connection that are kept: the handshake.
const FIRST: usize = 3;
/// The first packets of an exchange that are kept: the request, its acknowledgement, the beginning of an answer.
const BEGINNING: usize = 4;
/// The last packets that are kept: retransmissions, the end and its echo.
const LAST: usize = 12;

/// Which of the captures a packet is of.
pub type FileNumber = u16;

/// What is kept of a packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    /// When it was captured.
    pub(super) unix_ns: u64,
    /// Its number in its file.
    pub(super) number: u64,
    sequence: u32,
    acknowledgement: u32,
    /// Payload bytes on the wire.
    pub(super) length: u32,
    /// Its window, not scaled.
    pub(super) window: u16,
    ip_id: u16,
    /// Its file.
    pub(super) file: FileNumber,
    /// Its flags.
    pub(super) flags: TcpFlags,
    ttl: u8,
    from_low: bool,
    has_id: bool,
    /// Some of the payload was captured.
    pub(super) captured: bool,
}

impl Mark {
    fn of(file: FileNumber, segment: &Segment) -> Self {
        Self {
            unix_ns: segment.unix_ns,
            number: segment.number,
            sequence: segment.sequence,
            acknowledgement: segment.acknowledgement,
            length: segment.length,
            window: segment.window,
            ip_id: segment.ip_id.unwrap_or(0),
            file,
            flags: segment.flags,
            ttl: segment.ttl,
            from_low: segment.from_low,
            has_id: segment.ip_id.is_some(),
            captured: segment.payload.length > 0,
        }
    }

    /// Its header.
    pub(super) fn header(&self, pair: &Pair) -> TcpHeader {
        let (source, destination) = if self.from_low { (pair.low, pair.high) } else { (pair.high, pair.low) };
        TcpHeader {
            source: source.socket(),
            destination: destination.socket(),
            sequence: self.sequence,
            acknowledgement: self.acknowledgement,
            flags: self.flags,
            ttl: self.ttl,
        }
    }

    /// Its IPv4 identification.
    pub(super) fn ip_id(&self) -> Option<u16> {
        self.has_id.then_some(self.ip_id)
    }
}

/// The packets.
#[derive(Clone, Debug, Default)]
pub(super) struct Trace {
    first: Vec<Mark>,
    beginning: Vec<Mark>,
    last: Vec<Mark>,
    /// Where in `last` the next one goes.
    turn: usize,
}

impl Trace {
    /// Adds a packet.
    pub(super) fn add(&mut self, file: FileNumber, segment: &Segment) {
        let mark = Mark::of(file, segment);
        if self.first.len() < FIRST {
            self.first.push(mark);
        } else if self.beginning.len() < BEGINNING {
            self.beginning.push(mark);
        } else {
            self.add_last(mark);
        }
    }

    fn add_last(&mut self, mark: Mark) {
        if self.last.len() < LAST {
            self.last.push(mark);
        } else if let Some(oldest) = self.last.get_mut(self.turn) {
            *oldest = mark;
            self.turn = (self.turn + 1) % LAST;
        }
    }

    /// An exchange begins with this packet, which is in already.
    pub(super) fn begin(&mut self, file: FileNumber, segment: &Segment) {
        for mark in std::mem::take(&mut self.beginning) {
            // What closed an idle connection may have been captured before the request that crossed it.
            if mark.flags.fin() || mark.flags.rst() {
                self.add_last(mark);
            }
        }
        self.beginning.push(Mark::of(file, segment));
    }

    /// The packets that were kept, in order, each once.
    pub(super) fn packets(&self) -> Vec<Mark> {
        let mut all: Vec<Mark> = self.first.iter().chain(&self.beginning).chain(&self.last).copied().collect();
        all.sort_by_key(|mark| (mark.unix_ns, mark.file, mark.number));
        all.dedup_by_key(|mark| (mark.file, mark.number));
        all
    }
}
