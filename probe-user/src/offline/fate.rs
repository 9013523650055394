//! What became of a connection, in the words of Zeek: its connection states and its history.
//!
//! The states and what each means: <https://docs.zeek.org/en/master/scripts/base/protocols/conn/main.zeek.html>, field `conn_state`; the
//! letters of the history stand in the same table. People know both, and tests can compare.

use std::fmt;

use super::segment::Segment;
use crate::model::packet::TcpFlags;

/// How far one side of a connection has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nothing was seen of it.
    #[default]
    Inactive,
    /// It sent a SYN.
    SynSent,
    /// As originator it sent a SYN-ACK.
    SynAckSent,
    /// It was seen in the middle of a connection.
    Partial,
    /// Its handshake is done.
    Established,
    /// It sent a FIN.
    Closed,
    /// It sent a RST.
    Reset,
}

/// How a connection stands or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are Zeek's, and each is explained at `meaning`")]
pub enum ConnState {
    S0,
    S1,
    S2,
    S3,
    Sf,
    Rej,
    Rsto,
    Rstr,
    Rstos0,
    Rstrh,
    Sh,
    Shr,
    Oth,
}

impl ConnState {
    /// Zeek's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::S0 => "S0",
            Self::S1 => "S1",
            Self::S2 => "S2",
            Self::S3 => "S3",
            Self::Sf => "SF",
            Self::Rej => "REJ",
            Self::Rsto => "RSTO",
            Self::Rstr => "RSTR",
            Self::Rstos0 => "RSTOS0",
            Self::Rstrh => "RSTRH",
            Self::Sh => "SH",
            Self::Shr => "SHR",
            Self::Oth => "OTH",
        }
    }

    /// In plain words.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::S0 => "SYN, no answer",
            Self::S1 => "connected, not closed",
            Self::S2 => "connected, only the originator closed",
            Self::S3 => "connected, only the responder closed",
            Self::Sf => "connected and closed in order",
            Self::Rej => "refused",
            Self::Rsto => "reset by the originator",
            Self::Rstr => "reset by the responder",
            Self::Rstos0 => "SYN, then reset by the originator; the responder was not seen",
            Self::Rstrh => "reset by the responder; the originator was not seen",
            Self::Sh => "SYN and FIN of the originator; the responder was not seen",
            Self::Shr => "SYN-ACK and FIN of the responder; the originator was not seen",
            Self::Oth => "seen in the middle, not closed",
        }
    }
}

/// The letters of a history; an originator's are capitals.
const LONGEST_HISTORY: usize = 28;

/// What happened, letter by letter. What does not fit is left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct History {
    letters: [u8; LONGEST_HISTORY],
    length: u8,
}

impl History {
    fn push(&mut self, letter: u8, by_originator: bool) {
        let letter = if by_originator { letter.to_ascii_uppercase() } else { letter };
        if let Some(place) = self.letters.get_mut(usize::from(self.length)) {
            *place = letter;
            self.length += 1;
        }
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = self.letters.get(..usize::from(self.length)).unwrap_or_default();
        letters.iter().try_for_each(|letter| f.write_fmt(format_args!("{}", char::from(*letter))))
    }
}

/// One side.
#[derive(Clone, Copy, Debug, Default)]
pub struct Side {
    /// How far it has come.
    pub state: State,
    before: State,
    /// Its first sequence number, that of its SYN (or the one before its first byte).
    pub start: u32,
    /// One past the highest it sent.
    pub next: u32,
    /// The highest of it that the other side acknowledged.
    pub acknowledged: u32,
    /// Payload bytes seen, each counted once.
    pub bytes: u64,
    /// Letters it has in the history.
    letters: u16,
    last_syn: u32,
    last_fin: u32,
    last_reset: u32,
    retransmitted: u32,
    zero_windows: u32,
    gaps: u32,
}

const SYN: u16 = 1;
const ACK: u16 = 4;
const DATA: u16 = 8;
const FIN: u16 = 16;
const RST: u16 = 32;
const SEVERAL: u16 = 64;
const FIN_RST: u16 = 128;

impl Side {
    /// Nothing of it was seen from its beginning.
    const fn unseen(&self) -> bool {
        matches!(self.state, State::Inactive | State::Partial)
    }

    fn enter(&mut self, state: State) {
        if self.state != state {
            self.before = self.state;
            self.state = state;
        }
    }

    /// Its handshake is done, as far as was seen.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        matches!(self.state, State::Established | State::Partial)
    }

    /// It sent a FIN or a RST.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        matches!(self.state, State::Closed | State::Reset)
    }
}

/// Both sides.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fate {
    /// Who opened it.
    pub originator: Side,
    /// Who answered.
    pub responder: Side,
    /// What happened.
    pub history: History,
}

/// `a - b` on the sequence circle.
#[must_use]
pub const fn distance(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b).cast_signed()
}

/// A SYN or RST whose number is further off than this says nothing of the stream.
const FAR: i32 = 1 << 20;

impl Fate {
    /// How it stands.
    #[must_use]
    pub const fn state(&self) -> ConnState {
        let (o, r) = (&self.originator, &self.responder);
        match (o.state, r.state) {
            (State::SynSent | State::SynAckSent, State::Reset) => ConnState::Rej,
            (State::Reset, State::Reset) if o.bytes == 0 && r.bytes == 0 => ConnState::Rej,
            (State::Inactive | State::Partial, State::Reset) => ConnState::Rstrh,
            (_, State::Reset) => ConnState::Rstr,
            (State::Reset, State::Inactive | State::Partial) => ConnState::Rstos0,
            (State::Reset, _) => ConnState::Rsto,
            (State::Closed, State::Closed) => ConnState::Sf,
            (State::Closed, _) if r.unseen() => ConnState::Sh,
            (State::Closed, _) => ConnState::S2,
            (_, State::Closed) if o.unseen() => ConnState::Shr,
            (_, State::Closed) => ConnState::S3,
            (State::SynSent, State::Inactive) => ConnState::S0,
            (State::Established, State::Established) => ConnState::S1,
            _ => ConnState::Oth,
        }
    }

    /// Nothing more is to come: both sides have closed, or one has reset.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        matches!(
            (self.originator.state, self.responder.state),
            (State::Reset, _) | (_, State::Reset) | (State::Closed, State::Closed)
        )
    }

    /// Takes a segment; `originator`: it sent it.
    pub fn take(&mut self, segment: &Segment, originator: bool) {
        let (mut side, mut peer) =
            if originator { (self.originator, self.responder) } else { (self.responder, self.originator) };
        let flags = segment.flags;
        // The data of a RST is no part of the stream.
        let payload = if flags.rst() { 0 } else { segment.length };
        let end = segment.sequence.wrapping_add(payload + u32::from(flags.syn()) + u32::from(flags.fin()));
        begin(&mut side, segment, end);
        self.tell(&mut side, segment, originator);
        if segment.window == 0
            && !flags.rst()
            && peer.state != State::Closed
            && side.state != State::Reset
            && counts_up(&mut side.zero_windows)
        {
            self.history.push(b'w', originator);
        }
        if flags.ack() {
            acknowledge(&mut peer, segment, flags.rst());
        }
        let news = distance(end, side.next);
        if advances(&side, flags, news, end) {
            side.bytes +=
                u64::from(news.unsigned_abs().saturating_sub(u32::from(flags.syn()) + u32::from(flags.fin())));
            side.next = end;
        } else if news <= 0 && payload > 0 && counts_up(&mut side.retransmitted) {
            self.history.push(b't', originator);
        }
        step(&mut side, &mut peer, segment, originator);
        let lost = if flags.ack() && !flags.fin() && !flags.rst() { distance(peer.acknowledged, peer.next) } else { 0 };
        if lost > 0 && peer.is_up() {
            // Acknowledged, and never seen: the capture lost it.
            peer.bytes += u64::from(lost.unsigned_abs());
            peer.next = peer.acknowledged;
            if counts_up(&mut peer.gaps) {
                self.history.push(b'g', !originator);
            }
        }
        (self.originator, self.responder) = if originator { (side, peer) } else { (peer, side) };
    }

    /// Writes its letter, the first time; of SYN, FIN and RST every one with another number.
    fn tell(&mut self, side: &mut Side, segment: &Segment, originator: bool) {
        let flags = segment.flags;
        let first = |side: &mut Side, bit: u16| {
            let new = side.letters & bit == 0;
            side.letters |= bit;
            new
        };
        let set = u8::from(flags.syn()) + u8::from(flags.fin()) + u8::from(flags.rst());
        if set > 1 {
            let (bit, letter) = if flags.fin() && flags.rst() { (FIN_RST, b'i') } else { (SEVERAL, b'q') };
            if first(side, bit) {
                self.history.push(letter, originator);
            }
        } else if flags.syn() {
            let letter = if flags.ack() { b'h' } else { b's' };
            if first(side, SYN) || segment.sequence != side.last_syn {
                self.history.push(letter, originator);
            }
            side.last_syn = segment.sequence;
        } else if flags.fin() {
            let end = segment.sequence.wrapping_add(segment.length);
            if first(side, FIN) || end != side.last_fin {
                self.history.push(b'f', originator);
            }
            side.last_fin = end;
        } else if flags.rst() {
            if first(side, RST) || segment.sequence != side.last_reset {
                self.history.push(b'r', originator);
            }
            side.last_reset = segment.sequence;
        } else if segment.length > 0 {
            if first(side, DATA) {
                self.history.push(b'd', originator);
            }
        } else if flags.ack() && first(side, ACK) {
            self.history.push(b'a', originator);
        }
    }
}

/// Counts, and says whether the number is one that is written down: 1, 10, 100 …
const fn counts_up(count: &mut u32) -> bool {
    *count = count.saturating_add(1);
    matches!(*count, 1 | 10 | 100 | 1_000 | 10_000 | 100_000 | 1_000_000)
}

/// Where the numbers of a side begin.
const fn begin(side: &mut Side, segment: &Segment, end: u32) {
    let syn = segment.flags.syn();
    match side.state {
        State::Inactive => {
            // In the middle of a connection as though its SYN had been seen.
            side.start = if syn { segment.sequence } else { segment.sequence.wrapping_sub(1) };
            side.acknowledged = side.start;
            side.next = segment.sequence;
            side.bytes = 0;
        }
        State::SynSent | State::SynAckSent | State::Established | State::Partial
            if syn && segment.sequence != side.start =>
        {
            // This SYN will be the one that sets it up.
            side.start = segment.sequence;
            side.acknowledged = side.start;
            side.next = end;
            side.bytes = 0;
        }
        _ => {}
    }
}

const fn acknowledge(peer: &mut Side, segment: &Segment, reset: bool) {
    if matches!(peer.state, State::Inactive) {
        peer.start = segment.acknowledgement.wrapping_sub(1);
        peer.next = segment.acknowledgement;
        peer.acknowledged = segment.acknowledgement;
    } else if !reset {
        let news = distance(segment.acknowledgement, peer.acknowledged);
        if news > 0 && !(segment.acknowledgement == 0 && news > FAR) {
            peer.acknowledged = segment.acknowledgement;
        }
    }
}

/// Whether the stream has come to `end` by this.
fn advances(side: &Side, flags: TcpFlags, news: i32, end: u32) -> bool {
    if (flags.syn() || flags.rst()) && news.unsigned_abs() > FAR.unsigned_abs() {
        return false;
    }
    // More than 2 GiB of which only the beginning and the end were seen.
    if flags.fin() && side.next == side.start.wrapping_add(1) && end != side.next && news < 0 {
        return false;
    }
    side.state != State::Reset && news > 0
}

/// What a segment makes of the side that sent it, and of the other.
fn step(side: &mut Side, peer: &mut Side, segment: &Segment, originator: bool) {
    let flags = segment.flags;
    match side.state {
        State::Inactive => from_inactive(side, peer, segment, originator),
        State::SynSent | State::SynAckSent => {
            if flags.fin() {
                side.enter(State::Closed);
            }
            if flags.rst() {
                side.enter(State::Reset);
            }
        }
        State::Established | State::Partial => {
            if flags.syn() && !flags.ack() && side.state == State::Partial && peer.state == State::Inactive {
                side.enter(State::SynSent);
            }
            if flags.fin() && !flags.rst() {
                side.enter(State::Closed);
                // A FIN, and a RST after it from the same side: an end in order after all.
                if peer.state == State::Reset && peer.before == State::Closed {
                    peer.enter(State::Closed);
                }
            }
            if flags.rst() {
                side.enter(State::Reset);
            }
        }
        State::Closed => {
            if flags.rst() && peer.state != State::Closed {
                side.enter(State::Reset);
            }
        }
        State::Reset => {}
    }
}

fn from_inactive(side: &mut Side, peer: &mut Side, segment: &Segment, originator: bool) {
    let flags = segment.flags;
    if flags.syn() {
        if originator {
            side.enter(if flags.ack() { State::SynAckSent } else { State::SynSent });
        } else {
            if peer.state == State::SynSent || (peer.state == State::SynAckSent && !flags.ack()) {
                peer.enter(State::Established);
            }
            side.enter(State::Established);
        }
    }
    if flags.fin() {
        side.enter(State::Closed);
    }
    if flags.rst() {
        side.enter(State::Reset);
    }
    if side.state != State::Inactive {
        return;
    }
    if !originator && segment.length == 0 && peer.state == State::SynSent {
        // Some acknowledge a SYN before they answer it.
    } else if flags.ack() && peer.state == State::Established {
        // A SYN-ACK was seen, and now the acknowledgement: only the SYN was missed.
        side.enter(State::Established);
    } else {
        side.enter(State::Partial);
    }
}
