//! What may be needed, in bounded memory: the newest part of the stream, and what matters from before it.

mod chunk;
mod settled;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

pub use self::chunk::Interfaces;
use self::{
    chunk::{Chunk, Sealed},
    settled::Settled,
};
use super::{
    entry::Entry,
    manifest::{Asked, Earlier, Forgotten, Gap, Mark, Opening},
    packets::CapturedPacket,
    section::{self, Kind},
};
use crate::model::{
    case::EarlierFailure,
    event::EventId,
    process::Pid,
    time::{At, Moment},
};

/// A chunk is closed when it is this long: what a killed recorder loses is younger.
const CHUNK_NS: u64 = 1_000_000_000;
/// … or holds so many bytes.
const CHUNK_BYTES: usize = 256 << 10;
/// An entry at most: what comes before a window is written in parts of some MiB and one entry more, which must be readable as one.
const LONGEST_ENTRY: usize = section::WHOLE / 2;
/// What is told of earlier failures in an opening, in bytes of text: thousands of them with URIs of the usual kind.
const ASKED_BYTES: usize = 32 << 20;
/// How often it is worth asking what still matters.
const ASK_EVERY_NS: u64 = 2_000_000_000;

/// How much to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Nanoseconds before a case.
    pub before_ns: u64,
    /// Nanoseconds after one.
    pub after_ns: u64,
    /// Bytes of memory.
    pub memory: usize,
    /// Bytes of a window: a longer one is ended, so that a limit of the file can take out its beginning.
    pub window: usize,
}

/// A raw input, as it was before it was decoded (and after it was redacted).
#[derive(Clone, Debug, PartialEq)]
pub enum Raw {
    /// A kernel record.
    Kernel(Box<[u8]>),
    /// A packet, with the network namespace it was captured in.
    Packet(Box<CapturedPacket>, Option<u32>),
    /// A line of the error log.
    ErrorLine(Vec<u8>),
    /// A line of the access log, and its format.
    AccessLine(Arc<str>, Vec<u8>),
    /// What the probe found out, as an entry.
    Finding(Entry<'static>),
}

/// What is known of the stream's past when a window is opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Past<'a> {
    /// Addresses known to be upstreams.
    pub upstreams: &'a [std::net::SocketAddr],
    /// Workers that were heard from inside.
    pub speaking: &'a [Pid],
    /// Failures that blackouts may be blamed on.
    pub earlier: &'a [EarlierFailure],
    /// Requests that failed.
    pub asked: Vec<Asked>,
    /// What the run could not remember.
    pub forgotten: Vec<Forgotten>,
    /// The earliest decision that still waits.
    pub undecided_since: Option<Moment>,
}

/// A piece of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A window begins with these bytes.
    Window(Arc<Vec<u8>>),
    /// It goes on with these.
    More(Arc<Vec<u8>>),
    /// What was written so far holds one more case.
    Case,
}

/// The newest part of the stream.
#[derive(Debug)]
pub struct Tape {
    bounds: Bounds,
    interfaces: Interfaces,
    /// Inputs whose place in the stream is not known yet, by the arrival's number.
    waiting: BTreeMap<u64, (At, Raw)>,
    open: Chunk,
    sealed: VecDeque<Sealed>,
    settled: Settled,
    /// What was let go although it is younger than it should become.
    gaps: VecDeque<Gap>,
    told: Moment,
    asked: Moment,
    /// The events that mattered when it was last asked.
    mattered: Vec<EventId>,
    window: Option<Window>,
    pieces: Vec<Piece>,
}

#[derive(Debug)]
struct Window {
    until: Moment,
    bytes: usize,
    /// It is being written; else it is over, and the next one goes on with it if they overlap.
    writing: bool,
}

impl Tape {
    /// Holds nothing yet. The interfaces are described by somebody else, as they are opened.
    #[must_use]
    pub fn new(bounds: Bounds, interfaces: Interfaces) -> Self {
        Self {
            bounds,
            interfaces,
            waiting: BTreeMap::new(),
            open: Chunk::default(),
            sealed: VecDeque::new(),
            settled: Settled::default(),
            gaps: VecDeque::new(),
            told: Moment(0),
            asked: Moment(0),
            mattered: Vec::new(),
            window: None,
            pieces: Vec::new(),
        }
    }

    /// Takes an input with the number of its arrival.
    pub fn hold(&mut self, arrival: u64, at: At, raw: Raw) {
        self.waiting.insert(arrival, (at, raw));
    }

    /// The input got its place. `behind`: it came too late for its moment, time had been told up to here.
    pub fn place(&mut self, arrival: u64, id: EventId, behind: Option<Moment>) {
        let Some((at, raw)) = self.waiting.remove(&arrival) else { return };
        if let Raw::Finding(Entry::Finding { json, .. }) = &raw
            && json.len() > LONGEST_ENTRY
        {
            // What follows has names that do not follow the last one's.
            self.seal();
            let why =
                format!("a finding of the probe is longer than the {} MiB that are recorded", LONGEST_ENTRY >> 20);
            self.let_go(Gap { from: at.earliest, to: at.latest, events: 1, why });
            return;
        }
        if let Some(told) = behind {
            self.open.remark(&Entry::Tick(told));
        }
        match raw {
            Raw::Packet(packet, netns) => self.open.packet(id, at.latest, &packet, netns, &self.interfaces),
            Raw::Kernel(record) => self.open.event(id, at.latest, &Entry::Kernel(Cow::Borrowed(&record))),
            Raw::ErrorLine(line) => {
                self.open.event(id, at.latest, &Entry::ErrorLine { at, line: Cow::Borrowed(&line) });
            }
            Raw::AccessLine(format, line) => {
                let entry = Entry::AccessLine { at, format: Cow::Borrowed(&format), line: Cow::Borrowed(&line) };
                self.open.event(id, at.latest, &entry);
            }
            Raw::Finding(entry) => {
                self.open.event(id, at.latest, &entry);
                self.settled.found(id, at.latest, &entry);
            }
        }
        if self.open.len() >= CHUNK_BYTES {
            self.seal();
        }
    }

    /// Time was told up to here. `true`: somebody should say what still matters ([`Tape::forget`]).
    #[must_use]
    pub fn tell(&mut self, told: Moment) -> bool {
        self.told = self.told.max(told);
        if self.open.began().is_some_and(|began| self.told.since_ns(began) >= CHUNK_NS) {
            self.seal();
        }
        if self.window.as_ref().is_some_and(|window| window.writing && self.told > window.until) {
            self.seal();
            if let Some(window) = &mut self.window {
                window.writing = false;
            }
        }
        if self.size() > self.bounds.memory {
            self.evict();
        }
        let due = self.told.since_ns(self.asked) >= ASK_EVERY_NS;
        due && (self.settled.size() > 0 || self.sealed.front().is_some_and(|oldest| self.is_old(oldest)))
    }

    /// Lets go what is old and does not matter any more.
    pub fn forget(&mut self, matters: &[EventId]) {
        self.asked = self.told;
        self.mattered = matters.to_vec();
        self.settled.prune(matters, self.told, self.bounds.before_ns);
        while self.sealed.front().is_some_and(|oldest| self.is_old(oldest)) {
            if let Some(oldest) = self.sealed.pop_front() {
                self.settled.settle(&oldest, matters);
            }
        }
        let oldest = self.told.minus_ns(self.bounds.before_ns);
        while self.gaps.front().is_some_and(|gap| gap.to < oldest) {
            self.gaps.pop_front();
        }
    }

    /// A case was printed: its window is to be written. `number` counts the run's cases from 1.
    pub fn case(&mut self, number: u64, decided: Moment, mark: &Mark, past: &Past<'_>) {
        self.open.remark(&Entry::Tick(self.told));
        if let Ok(json) = serde_json::to_vec(mark) {
            self.open.remark(&Entry::Case(json.into()));
        }
        self.seal();
        let until = self.told.plus_ns(self.bounds.after_ns);
        let begins = self.begins_window();
        match &mut self.window {
            Some(window) if !begins => {
                window.until = until;
                window.writing = true;
                self.write();
            }
            _ => {
                self.window = Some(Window { until, bytes: 0, writing: true });
                self.begin(number, decided, past);
            }
        }
        self.pieces.push(Piece::Case);
    }

    /// Whether a case that was printed now would begin a window, and not go on with the last one.
    #[must_use]
    pub fn begins_window(&self) -> bool {
        let overlaps = self.sealed.iter().any(|sealed| sealed.written);
        self.window.as_ref().is_none_or(|window| !overlaps || window.bytes >= self.bounds.window)
    }

    /// The run is over; cases that are judged now may still follow.
    pub fn end(&mut self, told: Moment) {
        self.open.remark(&Entry::End(told));
        self.seal();
    }

    /// What was handed over could not be written: the window is over.
    pub fn abandon(&mut self) {
        self.window = None;
        self.pieces.clear();
        for sealed in &mut self.sealed {
            sealed.written = false;
        }
    }

    /// What is to be written since the last call.
    pub fn take(&mut self) -> Vec<Piece> {
        std::mem::take(&mut self.pieces)
    }

    /// Bytes held.
    #[must_use]
    pub fn size(&self) -> usize {
        let sealed: usize = self.sealed.iter().map(Sealed::size).sum();
        sealed + self.open.len() + self.settled.size()
    }

    fn is_old(&self, sealed: &Sealed) -> bool {
        self.told.since_ns(sealed.to) > self.bounds.before_ns
    }

    fn seal(&mut self) {
        let chunk = std::mem::take(&mut self.open);
        let Some(sealed) = chunk.seal(&self.interfaces, self.told) else { return };
        self.sealed.push_back(sealed);
        if self.window.as_ref().is_some_and(|window| window.writing) {
            self.write();
        }
    }

    /// Writes what is not written yet.
    fn write(&mut self) {
        let mut bytes = 0;
        for sealed in self.sealed.iter_mut().filter(|sealed| !sealed.written) {
            sealed.written = true;
            bytes += sealed.bytes.len();
            self.pieces.push(Piece::More(Arc::clone(&sealed.bytes)));
        }
        if let Some(window) = &mut self.window {
            window.bytes += bytes;
        }
    }

    /// Begins a window: where the run stood, what matters from before, and everything that is kept.
    fn begin(&mut self, number: u64, decided: Moment, past: &Past<'_>) {
        let since = self.told.minus_ns(self.bounds.before_ns);
        let is_before = |case: &str| {
            let case = case.rsplit_once('-').and_then(|(_, number)| number.parse::<u64>().ok());
            case.is_some_and(|case| case < number)
        };
        let opening = Opening {
            cases: number.saturating_sub(1),
            from: past.undecided_since.map_or(decided, |undecided| undecided.min(decided)),
            upstreams: past.upstreams.to_vec(),
            speaking: past.speaking.iter().map(|pid| pid.0).collect(),
            earlier: past.earlier.iter().filter(|failure| is_before(&failure.case.0)).map(Earlier::from).collect(),
            asked: past.asked.iter().filter(|asked| is_before(&asked.case)).cloned().collect(),
            evicted: self.gaps.iter().filter(|gap| gap.to >= since).cloned().collect(),
            forgotten: past.forgotten.clone(),
        };
        let opening = readable(opening, decided);
        let mut bytes =
            serde_json::to_vec(&opening).map(|json| section::section(Kind::Opening, &json)).unwrap_or_default();
        let first = self.sealed.front().map_or(EventId(u64::MAX), |oldest| oldest.first);
        for chunk in self.settled.before(first, &self.interfaces) {
            if let Some(sealed) = chunk.seal(&self.interfaces, self.told) {
                bytes.extend(sealed.bytes.iter());
            }
        }
        if let Some(window) = &mut self.window {
            window.bytes = bytes.len();
        }
        self.pieces.push(Piece::Window(Arc::new(bytes)));
        for sealed in &mut self.sealed {
            sealed.written = false;
        }
        self.write();
    }

    /// There is no room: the oldest goes, and that is remembered as long as it would have been.
    fn evict(&mut self) {
        let mattered = std::mem::take(&mut self.mattered);
        while self.size() > self.bounds.memory {
            let settled = self.settled.size() > self.bounds.memory / 2;
            let gap = if settled {
                self.settled.evict()
            } else {
                self.sealed.pop_front().map(|oldest| {
                    self.settled.settle(&oldest, &mattered);
                    Gap { from: oldest.from, to: oldest.to, events: oldest.count, why: String::new() }
                })
            };
            let Some(gap) = gap else { break };
            self.let_go(Gap { why: "the recorder's memory was full (--memory)".to_owned(), ..gap });
        }
        self.mattered = mattered;
    }

    /// Remembers what is not in the stream any more; what went for the same reason is one gap.
    fn let_go(&mut self, gap: Gap) {
        match self.gaps.iter_mut().rev().find(|last| last.why == gap.why) {
            Some(last) => {
                last.from = last.from.min(gap.from);
                last.to = last.to.max(gap.to);
                last.events += gap.events;
            }
            None => self.gaps.push_back(gap),
        }
    }
}

/// An opening that can be read: the newest failures are kept, and the others told as a gap.
fn readable(mut opening: Opening, decided: Moment) -> Opening {
    let size = |asked: &Asked| asked.uri.len() + asked.host.as_ref().map_or(0, String::len);
    let mut bytes = 0;
    let fits = opening.asked.iter().rev().take_while(|asked| {
        bytes += size(asked);
        bytes <= ASKED_BYTES
    });
    let too_many = opening.asked.len() - fits.count();
    if let Some(oldest) = opening.asked.drain(..too_many).map(|asked| asked.at).min() {
        let why = "requests that failed before are more than a recording's opening holds".to_owned();
        opening.evicted.push(Gap {
            from: oldest,
            to: decided,
            events: u64::try_from(too_many).unwrap_or(u64::MAX),
            why,
        });
    }
    opening
}
