//! A connection as the table keeps it.

use std::collections::BTreeMap;

use super::{
    fate::Fate,
    segment::{End, Pair, Segment},
    talk::Talk,
    trace::FileNumber,
};

/// Segments that are remembered for their doubles.
const REMEMBERED: usize = 16;
/// The same packet past the same interface: what a bridge or loopback hands on at once.
const SAME_PLACE_NS: u64 = 1_000_000;
/// The same packet past another interface, or on another host whose clock may differ a little.
const OTHER_PLACE_NS: u64 = 50_000_000;
/// Different statuses that are counted.
const MOST_STATUSES: usize = 64;

/// The direction's VLAN is not known.
const NO_VLAN: u16 = u16::MAX;

/// What tells a packet from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Print {
    sequence: u32,
    acknowledgement: u32,
    length: u32,
    window: u16,
    ip_id: Option<u16>,
    flags: u8,
    from_low: bool,
}

/// Where and when it was seen.
type Seen = (Print, u64, FileNumber, u16);

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) pair: Pair,
    pub(super) hash: u32,
    /// The lower end opened it.
    pub(super) low_opened: bool,
    pub(super) fate: Fate,
    pub(super) first_ns: u64,
    pub(super) last_ns: u64,
    /// It is over.
    pub(super) over: bool,
    /// Its SYN was seen.
    pub(super) seen_from_start: bool,
    vlans: [u16; 2],
    /// What is said on it, while it is on.
    pub(super) talk: Option<Box<Talk>>,
    seen: Vec<Seen>,
    turn: usize,
    /// How many answers had which status.
    pub(super) statuses: Vec<(u16, u32)>,
    /// Requests seen.
    pub(super) requests: u64,
    /// Tells it from another in the same slot.
    pub(super) serial: u64,
}

impl Connection {
    /// With this segment as its first.
    pub(super) fn new(segment: &Segment, source_opened: bool, serial: u64) -> Self {
        let low_opened = segment.from_low == source_opened;
        let mut vlans = [NO_VLAN; 2];
        vlans[usize::from(segment.from_low)] = segment.vlan;
        Self {
            pair: segment.pair,
            hash: segment.hash,
            low_opened,
            fate: Fate::default(),
            first_ns: segment.unix_ns,
            last_ns: segment.unix_ns,
            over: false,
            seen_from_start: segment.flags.syn() && !segment.flags.ack(),
            vlans,
            talk: Some(Box::new(Talk::new())),
            seen: Vec::new(),
            turn: 0,
            statuses: Vec::new(),
            requests: 0,
            serial,
        }
    }

    /// Who opened it.
    pub(super) const fn originator(&self) -> End {
        if self.low_opened { self.pair.low } else { self.pair.high }
    }

    /// Who answered.
    pub(super) const fn responder(&self) -> End {
        if self.low_opened { self.pair.high } else { self.pair.low }
    }

    /// Whether the segment can be of this connection: of its VLAN, or the first one in its direction (a router's two legs have two).
    pub(super) fn fits(&self, segment: &Segment) -> bool {
        let own = self.vlans[usize::from(segment.from_low)];
        let fresh = segment.flags.syn() && !segment.flags.ack();
        self.pair == segment.pair && (own == segment.vlan || (own == NO_VLAN && !fresh))
    }

    /// The segment is of this connection, and so is its VLAN.
    pub(super) const fn adopt(&mut self, segment: &Segment) {
        self.vlans[segment.from_low as usize] = segment.vlan;
    }

    /// Whether this is the double of a packet that was seen before, at another place or handed on at this one.
    pub(super) fn repeats(&mut self, file: FileNumber, segment: &Segment) -> bool {
        let print = Print {
            sequence: segment.sequence,
            acknowledgement: segment.acknowledgement,
            length: segment.length,
            window: segment.window,
            ip_id: segment.ip_id,
            flags: segment.flags.0,
            from_low: segment.from_low,
        };
        let double = self.seen.iter().any(|(known, at, of, interface)| {
            let here = (*of, *interface) == (file, segment.interface);
            let limit = if here { SAME_PLACE_NS } else { OTHER_PLACE_NS };
            *known == print && segment.unix_ns.abs_diff(*at) <= limit
        });
        let seen = (print, segment.unix_ns, file, segment.interface);
        if self.seen.len() < REMEMBERED {
            self.seen.push(seen);
        } else if let Some(oldest) = self.seen.get_mut(self.turn) {
            *oldest = seen;
            self.turn = (self.turn + 1) % REMEMBERED;
        }
        double
    }

    /// Counts an answer.
    pub(super) fn count(&mut self, status: u16) {
        if let Some((_, count)) = self.statuses.iter_mut().find(|(known, _)| *known == status) {
            *count += 1;
        } else if self.statuses.len() < MOST_STATUSES {
            self.statuses.push((status, 1));
        }
    }

    /// What it was, for those who ask about connections.
    pub(super) fn ended(&self) -> Ended {
        Ended {
            originator: self.originator(),
            responder: self.responder(),
            fate: self.fate,
            first_ns: self.first_ns,
            last_ns: self.last_ns,
            requests: self.requests,
            statuses: self.statuses.iter().copied().collect(),
        }
    }
}

/// A connection that is over, or of which no more is to come.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Who opened it.
    pub originator: End,
    /// Who answered.
    pub responder: End,
    /// What became of it.
    pub fate: Fate,
    /// When its first packet was captured.
    pub first_ns: u64,
    /// When its last packet was captured.
    pub last_ns: u64,
    /// HTTP/1 requests on it.
    pub requests: u64,
    /// How many HTTP/1 answers had which status.
    pub statuses: BTreeMap<u16, u32>,
}
