//! Connections that begin and end well while the stream waits for its slowest source are let go before anybody thinks of them.
//!
//! The stream lags the clock anyway (`thinker::LAG_NS`). Meanwhile records and packets lie here as they came. What belongs to a connection
//! of which the whole life is here, opened and closed on every side that is watched, without an error, a reset, a retransmission, a drop, or
//! a word from nginx, is dropped; everything else goes on in its order. So a healthy connection costs a look-up for each of its records, and
//! the correlator, which would forget it at its end, never hears of it. Where nginx itself cannot be heard nothing is let go: a
//! connection may then be part of a failure that only a later log line tells.

mod fates;
mod led;
mod strangers;

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::net::SocketAddr;

use probe_abi::{
    Header, Kind,
    nginx::{Connection, Log},
    socket::{Drop, Socket, SocketEvent, StateChange, state},
    syscall::{Accept, Connect},
};
use rustc_hash::FxHasher;
use zerocopy::FromBytes;

use self::{
    fates::{Fate, Fates, Key, Place, words},
    led::Led,
    strangers::Strangers,
};
use super::capture::batch::Batch;
use crate::{
    decode::{kernel::address, packet::glance::glance},
    model::time::Moment,
    pipeline::Question,
};

/// `-EINPROGRESS`: how a connection normally begins in nginx.
const IN_PROGRESS: i32 = -115;

/// Bytes of records that may lie here; then the oldest go on early, judged by what is known by then.
const HELD: usize = 32 << 20;

/// One connection in this time of each serving process goes on although it is healthy: so that who serves is known.
const SAMPLE_NS: u64 = 1_000_000_000;

/// Serving processes remembered before those that are due again are forgotten.
const SAMPLED: usize = 1_024;

/// Workers that spoke of failures, remembered before those that did so long ago are forgotten.
const SPEAKERS: usize = 1_024;
/// So long after its word nothing lies here that was there when a worker spoke, as far as time alone decides.
const SPOKE_NS: u64 = 10_000_000_000;

type Fast<K, V> = HashMap<K, V, BuildHasherDefault<FxHasher>>;

/// A descriptor that a worker made a connection of; the `connect()` that follows says which.
#[derive(Clone, Copy, Debug)]
struct Opening {
    descriptor: i32,
    /// Which of the records taken told it.
    told: u64,
}

/// A record that lies here.
#[derive(Debug)]
struct Held {
    time_ns: u64,
    /// Whose it is.
    place: Option<Place>,
    /// So many bytes of `Sieve::records`, behind those of the records before.
    length: usize,
}

/// Packets of a capture that lie here.
#[derive(Debug)]
struct HeldPackets {
    batch: Batch,
    /// Whose each of them is.
    places: Vec<Option<Place>>,
    /// How many of them have left.
    left: usize,
}

/// What goes on.
#[derive(Debug)]
pub(super) enum GoesOn<'a> {
    /// A record of the ring.
    Record(&'a [u8]),
    /// A packet, captured then: the one in this place of the batch.
    Packet(Moment, &'a Batch, usize),
}

/// The sieve.
#[derive(Debug, Default)]
pub(super) struct Sieve {
    held: VecDeque<Held>,
    packets: VecDeque<HeldPackets>,
    /// The bytes of the held records, as they came together; those of the first before `from` are gone.
    records: VecDeque<Vec<u8>>,
    from: usize,
    /// How many bytes of records are held.
    bytes: usize,
    fates: Fates,
    sampled: Fast<u32, u64>,
    /// What each worker is about to connect.
    openings: Fast<u32, Opening>,
    /// Records taken so far.
    taken: u64,
    /// When each worker of nginx spoke of a failure last: as the count of records, and by the clock.
    spoke: Fast<u32, (u64, u64)>,
    let_go: u64,
    /// Nothing is let go.
    open: bool,
    /// Where connections to a translated address arrive, and that address: both ends of such a connection are one's.
    led: Led,
    /// Upstreams that were not asked about yet, and what is to be asked.
    strangers: Strangers,
    questions: Vec<Question>,
}

impl Sieve {
    /// With `open`, everything goes on: where nginx's own words are not heard.
    pub(super) fn set_open(&mut self, open: bool) {
        self.open = open;
    }

    /// Connections to `upstream` arrive at another address. One that two upstreams lead to stays what it is.
    pub(super) fn learn_translation(&mut self, upstream: SocketAddr, to: SocketAddr) {
        self.led.learn(upstream, to);
    }

    /// Takes records, which lie one behind the other and are so long.
    pub(super) fn records(&mut self, bytes: Vec<u8>, lengths: &[usize]) {
        let mut from = 0;
        for length in lengths {
            self.record(bytes.get(from..from + length).unwrap_or_default());
            from += length;
        }
        if !bytes.is_empty() {
            self.bytes += bytes.len();
            self.records.push_back(bytes);
        }
    }

    fn record(&mut self, record: &[u8]) {
        self.taken += 1;
        // One that is too short to have a header: its reader says so.
        let (time_ns, place) = Header::ref_from_prefix(record)
            .map_or((0, None), |(header, _)| (header.time_ns, self.note(header, record)));
        if let Some(place) = place {
            self.fates.at(place).held += 1;
        }
        self.held.push_back(Held { time_ns, place, length: record.len() });
    }

    /// Takes packets. They are decoded when they go on.
    pub(super) fn packets(&mut self, batch: Batch) {
        let places = (0..batch.len())
            .map(|place| {
                let (_, bytes) = batch.get(place)?;
                let seen = glance(batch.link, bytes)?;
                let key = Key::of_addresses(seen.source, seen.destination)?.led(&self.led);
                let place = self.fates.of(key);
                let fate = self.fates.at(place);
                fate.held += 1;
                fate.spoken_of |= seen.flags.rst();
                Some(place)
            })
            .collect();
        self.packets.push_back(HeldPackets { batch, places, left: 0 });
    }

    /// Learns from a record; gives the connection that it is part of.
    fn note(&mut self, header: &Header, record: &[u8]) -> Option<Place> {
        match Kind::from_number(header.kind)? {
            Kind::StateChange => {
                let (change, _) = StateChange::ref_from_prefix(record).ok()?;
                let key = Key::of(&change.socket.local, &change.socket.remote)?.led(&self.led);
                let place = self.fates.of(key);
                self.fates.at(place).change(change);
                if change.socket.old_state == state::SYN_SENT {
                    self.greet(place, &change.socket, header.time_ns);
                }
                Some(place)
            }
            Kind::Connect => {
                let (call, _) = Connect::ref_from_prefix(record).ok()?;
                let opening = self.openings.remove(&header.tgid);
                let key = Key::of(&call.socket.local, &call.socket.remote)?.led(&self.led);
                let place = self.fates.of(key);
                if let Some(opening) = opening.filter(|opening| opening.descriptor == call.fd) {
                    self.join(opening, place);
                }
                let fate = self.fates.at(place);
                fate.spoken_of |= was_spoken_of(&self.spoke, fate) || (call.result != 0 && call.result != IN_PROGRESS);
                (fate.worker, fate.connected) = (header.tgid, self.taken);
                self.greet(place, &call.socket, header.time_ns);
                Some(place)
            }
            Kind::Accept => {
                let (call, _) = Accept::ref_from_prefix(record).ok()?;
                let key = Key::of(&call.socket.local, &call.socket.remote)?.led(&self.led);
                let last = self.sampled.entry(header.tgid).or_default();
                let due = header.time_ns.saturating_sub(*last) >= SAMPLE_NS;
                if due {
                    *last = header.time_ns;
                }
                if self.sampled.len() > SAMPLED {
                    // Servers that fork for each connection are many over the days; who was not seen for a while is sampled anew anyway.
                    self.sampled.retain(|_, last| header.time_ns.saturating_sub(*last) < SAMPLE_NS);
                }
                let place = self.fates.of(key);
                self.fates.at(place).spoken_of |= due || call.result < 0;
                Some(place)
            }
            Kind::ResetSent | Kind::ResetReceived | Kind::Retransmit | Kind::ErrorReport | Kind::SynAckRetransmit => {
                let (event, _) = SocketEvent::ref_from_prefix(record).ok()?;
                self.speak_of(Key::of(&event.packet.source, &event.packet.destination));
                self.speak_of(Key::of(&event.socket.local, &event.socket.remote));
                None
            }
            Kind::Drop => {
                let (drop, _) = Drop::ref_from_prefix(record).ok()?;
                self.speak_of(Key::of(&drop.packet.source, &drop.packet.destination));
                None
            }
            Kind::NginxLog => {
                let (log, _) = Log::ref_from_prefix(record).ok()?;
                self.speak_of(Key::of(&log.socket.local, &log.socket.remote));
                None
            }
            Kind::NginxConnection => {
                let (made, _) = Connection::ref_from_prefix(record).ok()?;
                self.openings.insert(header.tgid, Opening { descriptor: made.fd, told: self.taken });
                if self.openings.len() > SPEAKERS {
                    // Workers that are gone, most of them; what is forgotten goes on by itself.
                    self.openings.clear();
                }
                None
            }
            // A failure that nginx passes on is not logged, and the record does not say which connection it came by: it may be any that the
            // worker has made by now.
            Kind::NginxSpecialResponse | Kind::NginxSendHeader | Kind::NginxRedirect | Kind::NginxAttempt => {
                self.spoke.insert(header.tgid, (self.taken, header.time_ns));
                if self.spoke.len() > SPEAKERS {
                    // Whatever was made before a worker's word of that age has left.
                    self.spoke.retain(|_, (_, at)| header.time_ns.saturating_sub(*at) < SPOKE_NS);
                }
                None
            }
            _ => None,
        }
    }

    /// What nginx said of a descriptor just before it connected shares the connection's fate.
    fn join(&mut self, opening: Opening, place: Place) {
        // The record that is being taken is not held yet; one that has gone on is none of those that are.
        let behind = usize::try_from(self.taken - opening.told).ok();
        let index = behind.and_then(|behind| self.held.len().checked_sub(behind));
        if let Some(held) = index.and_then(|index| self.held.get_mut(index)) {
            held.place = Some(place);
            self.fates.at(place).held += 1;
        }
    }

    /// Where an upstream leads that nginx has not connected to before is asked of its first connection that comes about, of which this is
    /// nginx's end.
    fn greet(&mut self, place: Place, socket: &Socket, now_ns: u64) {
        if self.fates.at(place).came_about()
            && self.strangers.meet(socket.netns, words(&socket.remote), now_ns)
            && let Some((local, upstream)) = address(&socket.local).zip(address(&socket.remote))
        {
            let netns = Some(socket.netns).filter(|netns| *netns != 0);
            self.questions.push(Question::Translation { local, upstream, netns });
        }
    }

    /// What is to be looked up.
    pub(super) fn take_questions(&mut self) -> Vec<Question> {
        std::mem::take(&mut self.questions)
    }

    fn speak_of(&mut self, key: Option<Key>) {
        // Of a connection of which nothing lies here nothing can be let go either.
        if let Some(place) = key.and_then(|key| self.fates.find(&key.led(&self.led))) {
            self.fates.at(place).spoken_of = true;
        }
    }

    /// Lets everything up to this moment (nanoseconds since boot) go on, or go.
    pub(super) fn release(&mut self, until_ns: u64, mut each: impl FnMut(GoesOn<'_>)) {
        while let Some(first) = self.held.front() {
            if first.time_ns > until_ns && self.bytes <= HELD {
                break;
            }
            let Some(Held { place, length, .. }) = self.held.pop_front() else { break };
            let goes_on = place.is_none_or(|place| !self.leaves(place));
            let together = self.records.front().map_or(&[][..], Vec::as_slice);
            if goes_on {
                each(GoesOn::Record(together.get(self.from..self.from + length).unwrap_or_default()));
            } else {
                self.let_go += 1;
            }
            self.from += length;
            self.bytes -= length;
            if self.from >= together.len() {
                self.records.pop_front();
                self.from = 0;
            }
        }
        // Of several captures each is in order, and they are not among each other.
        let mut packets = std::mem::take(&mut self.packets);
        for held in &mut packets {
            let HeldPackets { batch, places, left } = held;
            while let Some((head, _)) = batch.get(*left) {
                let moment = batch.moment(head);
                if moment.0 > until_ns {
                    break;
                }
                if places.get(*left).copied().flatten().is_some_and(|place| self.leaves(place)) {
                    self.let_go += 1;
                } else {
                    each(GoesOn::Packet(moment, batch, *left));
                }
                *left += 1;
            }
        }
        packets.retain(|held| held.left < held.batch.len());
        self.packets = packets;
    }

    /// One thing less of this connection lies here; whether it is let go.
    fn leaves(&mut self, place: Place) -> bool {
        let fate = self.fates.at(place);
        let well = !self.open && fate.is_over_and_well() && !was_spoken_of(&self.spoke, fate);
        fate.went_on |= !well;
        fate.held -= 1;
        if fate.held == 0 {
            // What comes later of it, without its beginning, goes on in any case.
            self.fates.forget(place);
        }
        well
    }

    /// Records and packets that nobody had to think of.
    pub(super) const fn let_go(&self) -> u64 {
        self.let_go
    }
}

/// Whether the worker that connected has spoken of a failure since.
fn was_spoken_of(spoke: &Fast<u32, (u64, u64)>, fate: &Fate) -> bool {
    fate.worker != 0 && spoke.get(&fate.worker).is_some_and(|(at, _)| *at > fate.connected)
}

#[cfg(test)]
#[path = "sieve_tests.rs"]
mod tests;
