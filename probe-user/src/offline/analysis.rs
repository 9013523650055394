//! The second stage: the table of connections, and what is found out about them.

use std::collections::{BTreeSet, VecDeque};

use super::{
    connection::{Connection, Ended},
    fate::{Fate, State, distance},
    index::Index,
    open::Open,
    roles::Roles,
    segment::{Batch, End, Item, Segment},
    talk::{Exchange, Said, Talk},
    trace::FileNumber,
    tried::Foreign,
};
use crate::model::{event::Body, time::At};

/// A connection that is over is kept this long for what comes late, as Zeek does (`tcp_close_delay`).
const LINGER_NS: u64 = 5_000_000_000;
/// A SYN without an answer is kept this long after its last repetition: Linux repeats six times in 127 s.
const UNANSWERED_NS: u64 = 130_000_000_000;
/// A connection on which nothing happens is believed to have ended unseen after this long.
const IDLE_NS: u64 = 3_600_000_000_000;
/// Connections beyond this many: those that have been idle for a minute go.
const MANY: usize = 1 << 20;
/// Idle for this long where there are too many.
const IDLE_AMONG_MANY_NS: u64 = 60_000_000_000;

/// Servers that are remembered where it matters who is one.
const MOST_SERVING: usize = 1 << 16;

/// What is asked of an analysis.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is asked for by itself")]
pub struct Options {
    /// Every connection's end is wanted.
    pub connections: bool,
    /// Every exchange is wanted.
    pub exchanges: bool,
    /// The same packet may be in several captures.
    pub several: bool,
    /// Failed attempts and what became of their requests are wanted.
    pub attempts: bool,
    /// It is wanted who serves: [`Analysis::serves`].
    pub servers: bool,
    /// Statuses that nginx answers when an attempt fails.
    pub statuses: Vec<u16>,
    /// Servers that are upstreams.
    pub upstreams: Vec<End>,
    /// Addresses that nginx listens on.
    pub nginx: Vec<End>,
}

/// Something that was found out.
#[derive(Clone, Debug)]
pub enum Finding {
    /// A connection is over, or the capture is.
    Connection(Box<Ended>),
    /// A request and its answer: client, server.
    Exchange(Box<(End, End, Exchange)>),
    /// What is worth thinking about.
    Event(At, Box<Body>),
}

/// The table, and what was found.
#[derive(Debug, Default)]
pub struct Analysis {
    pub(super) options: Options,
    pub(super) connections: Vec<Option<Connection>>,
    free: Vec<u32>,
    pub(super) index: Index,
    pub(super) open: Open,
    pub(super) roles: Roles,
    /// Connections in other protocols that ended just now.
    pub(super) foreign: VecDeque<Foreign>,
    /// Connections whose SYN waits for an answer.
    pub(super) waiting: BTreeSet<u32>,
    /// Connections that are over, with the time.
    over: VecDeque<(u64, u32, u64)>,
    pub(super) findings: VecDeque<Finding>,
    pub(super) now: u64,
    began: Option<u64>,
    swept_ns: u64,
    sweep_at: usize,
    serials: u64,
    numbers: u64,
    doubles: u64,
    most_open: usize,
    /// Addresses that answered a SYN.
    serving: BTreeSet<[u64; 2]>,
}

impl Analysis {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let roles = Roles::new(&options.upstreams, &options.nginx);
        Self { options, roles, ..Self::default() }
    }

    /// The next thing that was found.
    pub fn poll(&mut self) -> Option<Finding> {
        self.findings.pop_front()
    }

    /// How far the captures were read.
    #[must_use]
    pub const fn now(&self) -> u64 {
        self.now
    }

    /// When the first packet was captured.
    #[must_use]
    pub fn began(&self) -> u64 {
        self.began.unwrap_or(0)
    }

    /// Whether this address is one of nginx or of an upstream, as the user says, or answered a SYN: it is no mere client. Only with
    /// [`Options::servers`].
    #[must_use]
    pub fn serves(&self, end: End) -> bool {
        let told = self.options.nginx.iter().chain(&self.options.upstreams).any(|known| known.address == end.address);
        told || self.serving.contains(&end.address)
    }

    /// Packets that were in the captures twice.
    #[must_use]
    pub const fn doubles(&self) -> u64 {
        self.doubles
    }

    /// Takes a batch of one file.
    pub fn take(&mut self, file: FileNumber, batch: &Batch) {
        for item in &batch.items {
            self.item(file, item, batch);
        }
    }

    /// Takes one thing of a batch.
    pub fn item(&mut self, file: FileNumber, item: &Item, batch: &Batch) {
        self.now = self.now.max(item.unix_ns());
        self.began.get_or_insert(self.now);
        // First what is over by now: a late packet is of another connection then.
        if self.now.saturating_sub(self.swept_ns) >= 1_000_000_000 {
            self.swept_ns = self.now;
            self.sweep();
        }
        match item {
            Item::Segment(segment) => self.segment(file, segment, batch.payload(segment)),
            Item::Unreachable(unreachable) => self.unreachable(file, unreachable),
        }
    }

    /// The captures are over.
    pub fn finish(&mut self) {
        while let Some((_, slot, serial)) = self.over.pop_front() {
            if self.is(slot, serial) {
                self.remove(slot);
            }
        }
        for slot in 0..u32::try_from(self.connections.len()).unwrap_or(u32::MAX) {
            self.remove(slot);
        }
    }

    pub(super) fn at(&self, slot: u32) -> Option<&Connection> {
        self.connections.get(usize::try_from(slot).ok()?)?.as_ref()
    }

    pub(super) fn at_mut(&mut self, slot: u32) -> Option<&mut Connection> {
        self.connections.get_mut(usize::try_from(slot).ok()?)?.as_mut()
    }

    fn is(&self, slot: u32, serial: u64) -> bool {
        self.at(slot).is_some_and(|connection| connection.serial == serial)
    }

    fn segment(&mut self, file: FileNumber, segment: &Segment, payload: &[u8]) {
        let fits = |slot: u32| self.at(slot).is_some_and(|connection| connection.fits(segment));
        let found = self.index.find(segment.hash, fits);
        let slot = match found {
            Some(slot) if !self.at(slot).is_some_and(|connection| is_another(connection, segment)) => slot,
            Some(slot) => {
                self.remove(slot);
                self.add(segment, payload)
            }
            None => self.add(segment, payload),
        };
        let watch_doubles = segment.may_repeat || self.options.several;
        let Some(connection) = self.connections.get_mut(usize::try_from(slot).unwrap_or(usize::MAX)) else { return };
        let Some(connection) = connection.as_mut() else { return };
        if watch_doubles && connection.repeats(file, segment) {
            self.doubles += 1;
            return;
        }
        connection.adopt(segment);
        connection.last_ns = connection.last_ns.max(segment.unix_ns);
        let by_client = segment.from_low == connection.low_opened;
        let before = connection.fate;
        connection.fate.take(segment, by_client);
        if before.responder.state == State::Inactive && connection.fate.responder.state != State::Inactive {
            self.waiting.remove(&slot);
            // Beyond the limit an address is taken for a client's: more is taken out, not less.
            if self.options.servers && segment.flags.syn() && self.serving.len() < MOST_SERVING {
                self.serving.insert(connection.responder().address);
            }
        }
        let Some(mut talk) = connection.talk.take() else { return };
        talk.trace.add(file, segment);
        let sender = if by_client { connection.fate.originator } else { connection.fate.responder };
        if segment.flags.syn() {
            talk.begin(by_client, segment.sequence);
        }
        if segment.length > 0 && !segment.flags.rst() {
            let sequence = segment.sequence.wrapping_add(u32::from(segment.flags.syn()));
            let shifted;
            let of_stream = if segment.flags.syn() {
                shifted = Segment { sequence, ..*segment };
                &shifted
            } else {
                segment
            };
            talk.take(file, of_stream, payload, (by_client, sender.acknowledged), &mut |talk, said| {
                self.said(slot, talk, said);
            });
        }
        if segment.flags.fin() || segment.flags.rst() {
            self.closing(slot, &mut talk, (file, segment), (&before, by_client));
        }
        if let Some(connection) = self.at_mut(slot) {
            let over = connection.fate.is_over();
            if over && !connection.over {
                connection.over = true;
                let serial = connection.serial;
                self.over.push_back((segment.unix_ns, slot, serial));
            } else if !over {
                connection.talk = Some(talk);
            }
        }
    }

    /// A FIN or RST went by.
    fn closing(
        &mut self,
        slot: u32,
        talk: &mut Talk,
        (file, segment): (FileNumber, &Segment),
        (before, by_client): (&Fate, bool),
    ) {
        talk.end(file, segment, by_client, &mut |talk, said| self.said(slot, talk, said));
        let over = self.at(slot).is_some_and(|connection| connection.fate.is_over());
        if over {
            talk.end(file, segment, !by_client, &mut |talk, said| self.said(slot, talk, said));
        }
        self.ending(slot, talk, segment, (before, by_client));
        // An answer that ends with the connection is whole now.
        let ended = !by_client && !segment.flags.rst();
        if over || ended {
            while talk.exchanges.front().is_some_and(|exchange| over || exchange.status.is_some()) {
                talk.over(&mut |talk, said| self.said(slot, talk, said));
            }
        }
    }

    /// A new connection with this segment as its first.
    fn add(&mut self, segment: &Segment, payload: &[u8]) -> u32 {
        self.serials += 1;
        let opened = opened_by_source(segment, payload);
        let connection = Connection::new(segment, opened, self.serials);
        let slot = if let Some(slot) = self.free.pop() {
            if let Some(place) = self.connections.get_mut(usize::try_from(slot).unwrap_or(usize::MAX)) {
                *place = Some(connection);
            }
            slot
        } else {
            self.connections.push(Some(connection));
            u32::try_from(self.connections.len() - 1).unwrap_or(u32::MAX)
        };
        self.index.insert(segment.hash, slot);
        if segment.flags.syn() && !segment.flags.ack() {
            self.waiting.insert(slot);
        }
        self.most_open = self.most_open.max(self.connections.len() - self.free.len());
        slot
    }

    /// Nothing more is expected of it.
    pub(super) fn remove(&mut self, slot: u32) {
        if self.waiting.remove(&slot) {
            self.unanswered(slot, self.now);
        }
        let Some(connection) = self.at_mut(slot) else { return };
        if let Some(mut talk) = connection.talk.take() {
            while !talk.exchanges.is_empty() {
                talk.over(&mut |talk, said| self.said(slot, talk, said));
            }
        }
        let Some(place) = self.connections.get_mut(usize::try_from(slot).unwrap_or(usize::MAX)) else { return };
        let Some(connection) = place.take() else { return };
        self.index.remove(connection.hash, slot);
        self.free.push(slot);
        if self.options.connections {
            self.findings.push_back(Finding::Connection(Box::new(connection.ended())));
        }
    }

    /// Forgets what has been over or silent for long enough.
    fn sweep(&mut self) {
        while let Some((at, slot, serial)) = self.over.front().copied() {
            if self.now.saturating_sub(at) < LINGER_NS {
                break;
            }
            self.over.pop_front();
            if !self.is(slot, serial) {
                continue;
            }
            let last = self.at(slot).map_or(0, |connection| connection.last_ns);
            if self.now.saturating_sub(last) < LINGER_NS && last > at {
                self.over.push_back((last, slot, serial));
            } else {
                self.remove(slot);
            }
        }
        // A part of the table each time, so that no single packet waits for all of it.
        let share = self.connections.len().div_ceil(8);
        for _ in 0..share {
            let slot = u32::try_from(self.sweep_at).unwrap_or(0);
            self.sweep_at = if self.sweep_at + 1 >= self.connections.len() { 0 } else { self.sweep_at + 1 };
            let Some(connection) = self.at(slot).filter(|connection| !connection.over) else { continue };
            let many = self.connections.len() - self.free.len() > MANY;
            let limit = match connection.fate.responder.state {
                State::Inactive => UNANSWERED_NS,
                _ if many => IDLE_AMONG_MANY_NS,
                _ => IDLE_NS,
            };
            if self.now.saturating_sub(connection.last_ns) > limit {
                self.remove(slot);
            }
        }
    }

    fn said(&mut self, slot: u32, talk: &mut Talk, said: Said) {
        match said {
            Said::Asked(place) => self.asked(slot, talk, place),
            Said::Answered => self.answered(slot, talk),
            Said::Done => self.done(slot, talk),
        }
    }

    /// The next number of a request or an attempt.
    pub(super) const fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

/// Whether this SYN opens another connection between the same ends.
fn is_another(connection: &Connection, segment: &Segment) -> bool {
    if !segment.flags.syn() || segment.flags.ack() || segment.flags.rst() {
        return false;
    }
    let by_originator = segment.from_low == connection.low_opened;
    let fate = &connection.fate;
    if !by_originator {
        return connection.over && fate.responder.start != segment.sequence;
    }
    let known = matches!(fate.originator.state, State::Inactive | State::Partial);
    // One that was seen from the middle on can have no SYN any more, unless it is a new one.
    if known {
        distance(segment.sequence, fate.originator.next) != 0
    } else {
        fate.originator.start != segment.sequence
    }
}

/// Ports that servers have, beside those below 1024.
const SERVER_PORTS: [u16; 21] = [
    1_080, 1_433, 3_000, 3_128, 3_268, 3_306, 3_389, 5_000, 5_432, 5_672, 6_379, 6_443, 8_000, 8_008, 8_080, 8_081,
    8_443, 8_888, 9_000, 9_200, 27_017,
];

/// Whether the source of a connection's first segment opened it.
fn opened_by_source(segment: &Segment, payload: &[u8]) -> bool {
    if segment.flags.syn() {
        return !segment.flags.ack();
    }
    let serves = |port: u16| port < 1_024 || SERVER_PORTS.contains(&port);
    let (source, destination) = (segment.source().port, segment.destination().port);
    match (serves(source), serves(destination)) {
        (true, false) => false,
        (false, true) => true,
        (true, true) if source != destination => source > destination,
        _ => !payload.starts_with(b"HTTP/1."),
    }
}
