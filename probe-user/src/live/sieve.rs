//! Connections that begin and end well while the stream waits for its slowest source are let go before anybody thinks of them.
//!
//! The stream lags the clock anyway (`thinker::LAG_NS`). Meanwhile records and packets lie here as they came. What belongs to a connection
//! of which the whole life is here, opened and closed on every side that is watched, without an error, a reset, a retransmission, a drop, or
//! a word from nginx, is dropped; everything else goes on in its order. So a healthy connection costs a hash and a copy of its records, and
//! the correlator, which would forget it at its end, never hears of it. Where nginx itself cannot be heard nothing is let go: a
//! connection may then be part of a failure that only a later log line tells.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;

use probe_abi::{
    Endpoint, Header, Kind,
    nginx::Log,
    socket::{Drop, Socket, SocketEvent, StateChange, present, state},
    syscall::{Accept, Connect},
};
use rustc_hash::FxHasher;
use zerocopy::FromBytes;

use super::capture::{CapturedPacket, batch::Batch};
use crate::{decode::packet::glance::glance, model::time::Moment};

/// `-EINPROGRESS`: how a connection normally begins in nginx.
const IN_PROGRESS: i32 = -115;

/// Bytes of records that may lie here; then the oldest go on early, judged by what is known by then.
const HELD: usize = 32 << 20;

/// Room for records that is not given back, bytes; and how many times more than what lies here is.
const ROOM: usize = 1 << 20;
const SPARE: usize = 4;

/// One connection in this time of each serving process goes on although it is healthy: so that who serves is known.
const SAMPLE_NS: u64 = 1_000_000_000;

/// Serving processes remembered before those that are due again are forgotten.
const SAMPLED: usize = 1_024;

/// Workers that spoke of failures, remembered before those that did so long ago are forgotten.
const SPEAKERS: usize = 1_024;
/// So long after its word nothing lies here that was there when a worker spoke, as far as time alone decides.
const SPOKE_NS: u64 = 10_000_000_000;

type Fast<K, V> = HashMap<K, V, BuildHasherDefault<FxHasher>>;

/// Names a connection by both of its ends, whichever of them speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key(Endpoint2, Endpoint2);

/// An endpoint as three words, so that it hashes fast.
type Endpoint2 = (u64, u64, u32);

impl Key {
    fn of(one: &Endpoint, other: &Endpoint) -> Option<Self> {
        if one.family == 0 || other.family == 0 {
            return None;
        }
        let (one, other) = (words(one), words(other));
        Some(if one <= other { Self(one, other) } else { Self(other, one) })
    }

    fn of_addresses(one: std::net::SocketAddr, other: std::net::SocketAddr) -> Option<Self> {
        Self::of(&endpoint(one), &endpoint(other))
    }
}

fn words(endpoint: &Endpoint) -> Endpoint2 {
    let (low, high) = endpoint.address.split_at(8);
    let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
    (word(low), word(high), u32::from(endpoint.family) << 16 | u32::from(endpoint.port()))
}

fn endpoint(address: std::net::SocketAddr) -> Endpoint {
    let mut made = Endpoint { port: address.port().to_be_bytes(), ..Endpoint::UNKNOWN };
    match address.ip().to_canonical() {
        std::net::IpAddr::V4(ip) => {
            made.family = probe_abi::endpoint::FAMILY_INET;
            made.address[..4].copy_from_slice(&ip.octets());
        }
        std::net::IpAddr::V6(ip) => {
            made.family = probe_abi::endpoint::FAMILY_INET6;
            made.address = ip.octets();
        }
    }
    made
}

/// What is known of a connection.
#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    /// Things of it that lie here.
    held: u32,
    /// Sides seen opening, and sides seen closing without an error: the connecting one and the accepting one.
    opened: Sides,
    closed: Sides,
    /// The worker that connected, and when: as the count of records.
    worker: u32,
    connected: u64,
    /// Something is to be told of it.
    spoken_of: bool,
    /// Some of it has gone on, so the rest must.
    went_on: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sides {
    connecting: u64,
    accepting: u64,
}

impl Fate {
    /// The connecting side is nginx's: without it nothing is known to be whole.
    fn is_over_and_well(&self) -> bool {
        !self.spoken_of && !self.went_on && self.opened.connecting != 0 && self.opened == self.closed
    }

    fn change(&mut self, change: &StateChange) {
        let Socket { pointer, old_state, state: new_state, .. } = change.socket;
        match (old_state, new_state) {
            (state::SYN_SENT, state::ESTABLISHED) => self.open(pointer, true),
            (state::SYN_RECV, state::ESTABLISHED) => self.open(pointer, false),
            (_, state::CLOSE) => {
                let well = present::TCP | present::ERROR;
                let socket = &change.socket;
                let fine = socket.present & well == well
                    && socket.error == 0
                    && socket.total_retransmits == 0
                    && socket.bytes_received > 0
                    && socket.bytes_sent > 0
                    && socket.rcv_nxt.wrapping_sub(socket.copied_seq) <= 1;
                if !fine {
                    self.spoken_of = true;
                } else if pointer == self.opened.connecting {
                    self.closed.connecting = pointer;
                } else if pointer == self.opened.accepting {
                    self.closed.accepting = pointer;
                } else {
                    self.spoken_of = true;
                }
            }
            _ => {}
        }
    }

    fn open(&mut self, pointer: u64, connecting: bool) {
        let side = if connecting { &mut self.opened.connecting } else { &mut self.opened.accepting };
        if *side != 0 || pointer == 0 {
            // The same addresses again within a moment: whose is whose must be thought about.
            self.spoken_of = true;
        }
        *side = pointer;
    }
}

/// A record that lies here.
#[derive(Debug)]
struct Held {
    time_ns: u64,
    key: Option<Key>,
    /// So many bytes of `Sieve::records`, behind those of the records before.
    length: usize,
}

/// Packets of a capture that lie here.
#[derive(Debug)]
struct HeldPackets {
    batch: Batch,
    /// Whose each of them is.
    keys: Vec<Option<Key>>,
    /// How many of them have left.
    left: usize,
}

/// What goes on.
#[derive(Debug)]
pub(super) enum GoesOn<'a> {
    /// A record of the ring.
    Record(&'a [u8]),
    /// A packet, captured then, in that network namespace.
    Packet(Moment, CapturedPacket, Option<u32>),
}

/// The sieve.
#[derive(Debug, Default)]
pub(super) struct Sieve {
    held: VecDeque<Held>,
    packets: VecDeque<HeldPackets>,
    /// The bytes of the held records; those before `from` are gone.
    records: Vec<u8>,
    from: usize,
    fates: Fast<Key, Fate>,
    sampled: Fast<u32, u64>,
    /// Records taken so far.
    taken: u64,
    /// When each worker of nginx spoke of a failure last: as the count of records, and by the clock.
    spoke: Fast<u32, (u64, u64)>,
    let_go: u64,
    /// Nothing is let go.
    open: bool,
}

impl Sieve {
    /// With `open`, everything goes on: where nginx's own words are not heard.
    pub(super) fn set_open(&mut self, open: bool) {
        self.open = open;
    }

    /// Takes a record.
    pub(super) fn record(&mut self, record: &[u8]) {
        let Ok((header, _)) = Header::ref_from_prefix(record) else {
            // Too short to be one; its reader says so.
            self.hold(0, None, record);
            return;
        };
        self.taken += 1;
        let key = self.note(header, record);
        self.hold(header.time_ns, key, record);
    }

    /// Takes packets. They are decoded when they go on.
    pub(super) fn packets(&mut self, batch: Batch) {
        let keys = (0..batch.len())
            .map(|place| {
                let (_, bytes) = batch.get(place)?;
                let seen = glance(batch.link, bytes)?;
                let key = Key::of_addresses(seen.source, seen.destination)?;
                let fate = self.fates.entry(key).or_default();
                fate.held += 1;
                fate.spoken_of |= seen.flags.rst();
                Some(key)
            })
            .collect();
        self.packets.push_back(HeldPackets { batch, keys, left: 0 });
    }

    fn hold(&mut self, time_ns: u64, key: Option<Key>, record: &[u8]) {
        if let Some(key) = key {
            self.fates.entry(key).or_default().held += 1;
        }
        self.records.extend_from_slice(record);
        self.held.push_back(Held { time_ns, key, length: record.len() });
    }

    /// Learns from a record; gives the connection that it is part of.
    fn note(&mut self, header: &Header, record: &[u8]) -> Option<Key> {
        match Kind::from_number(header.kind)? {
            Kind::StateChange => {
                let (change, _) = StateChange::ref_from_prefix(record).ok()?;
                let key = Key::of(&change.socket.local, &change.socket.remote)?;
                self.fates.entry(key).or_default().change(change);
                Some(key)
            }
            Kind::Connect => {
                let (call, _) = Connect::ref_from_prefix(record).ok()?;
                let key = Key::of(&call.socket.local, &call.socket.remote)?;
                let fate = self.fates.entry(key).or_default();
                fate.spoken_of |= was_spoken_of(&self.spoke, fate) || (call.result != 0 && call.result != IN_PROGRESS);
                (fate.worker, fate.connected) = (header.tgid, self.taken);
                Some(key)
            }
            Kind::Accept => {
                let (call, _) = Accept::ref_from_prefix(record).ok()?;
                let key = Key::of(&call.socket.local, &call.socket.remote)?;
                let last = self.sampled.entry(header.tgid).or_default();
                let due = header.time_ns.saturating_sub(*last) >= SAMPLE_NS;
                if due {
                    *last = header.time_ns;
                }
                if self.sampled.len() > SAMPLED {
                    // Servers that fork for each connection are many over the days; who was not seen for a while is sampled anew anyway.
                    self.sampled.retain(|_, last| header.time_ns.saturating_sub(*last) < SAMPLE_NS);
                }
                self.fates.entry(key).or_default().spoken_of |= due || call.result < 0;
                Some(key)
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

    fn speak_of(&mut self, key: Option<Key>) {
        // Of a connection of which nothing lies here nothing can be let go either.
        if let Some(fate) = key.and_then(|key| self.fates.get_mut(&key)) {
            fate.spoken_of = true;
        }
    }

    /// Lets everything up to this moment (nanoseconds since boot) go on, or go.
    pub(super) fn release(&mut self, until_ns: u64, mut each: impl FnMut(GoesOn<'_>)) {
        while let Some(first) = self.held.front() {
            if first.time_ns > until_ns && self.records.len() - self.from <= HELD {
                break;
            }
            let Some(Held { key, length, .. }) = self.held.pop_front() else { break };
            if key.is_some_and(|key| self.leaves(key)) {
                self.let_go += 1;
            } else {
                each(GoesOn::Record(self.records.get(self.from..self.from + length).unwrap_or_default()));
            }
            self.from += length;
        }
        // Of several captures each is in order, and they are not among each other.
        let mut packets = std::mem::take(&mut self.packets);
        for held in &mut packets {
            let HeldPackets { batch, keys, left } = held;
            while let Some((head, _)) = batch.get(*left) {
                let moment = batch.moment(head);
                if moment.0 > until_ns {
                    break;
                }
                if keys.get(*left).copied().flatten().is_some_and(|key| self.leaves(key)) {
                    self.let_go += 1;
                } else if let Some(packet) = batch.packet(*left) {
                    each(GoesOn::Packet(moment, packet, batch.netns));
                }
                *left += 1;
            }
        }
        packets.retain(|held| held.left < held.batch.len());
        self.packets = packets;
        // What is gone is cut off when it is a third: each byte is moved twice on average, and little more is held than has to be.
        if self.from > self.records.len() / 3 {
            self.records.drain(..self.from);
            self.from = 0;
            // After a storm.
            if self.records.capacity() / SPARE > self.records.len().max(ROOM) {
                self.records.shrink_to(ROOM);
            }
        }
    }

    /// One thing less of this connection lies here; whether it is let go.
    fn leaves(&mut self, key: Key) -> bool {
        let Some(fate) = self.fates.get_mut(&key) else { return false };
        let well = !self.open && fate.is_over_and_well() && !was_spoken_of(&self.spoke, fate);
        fate.went_on |= !well;
        fate.held -= 1;
        if fate.held == 0 {
            // What comes later of it, without its beginning, goes on in any case.
            self.fates.remove(&key);
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
