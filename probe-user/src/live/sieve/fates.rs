//! What is known of each connection of which something lies in the sieve.

use probe_abi::{
    Endpoint,
    socket::{Socket, StateChange, present, state},
};

use super::{Fast, led::Led};

/// Names a connection by both of its ends, whichever of them speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(Endpoint2, Endpoint2);

/// An endpoint as three words, so that it hashes fast.
pub(super) type Endpoint2 = (u64, u64, u32);

impl Key {
    pub(super) fn of(one: &Endpoint, other: &Endpoint) -> Option<Self> {
        if one.family == 0 || other.family == 0 {
            return None;
        }
        Some(Self::between(words(one), words(other)))
    }

    fn between(one: Endpoint2, other: Endpoint2) -> Self {
        if one <= other { Self(one, other) } else { Self(other, one) }
    }

    /// The same connection by the addresses that nginx has.
    pub(super) fn led(self, led: &Led) -> Self {
        if led.is_empty() {
            return self;
        }
        Self::between(led.origin(self.0), led.origin(self.1))
    }

    pub(super) fn of_addresses(one: std::net::SocketAddr, other: std::net::SocketAddr) -> Option<Self> {
        Self::of(&endpoint(one), &endpoint(other))
    }
}

pub(super) fn words(endpoint: &Endpoint) -> Endpoint2 {
    let (low, high) = endpoint.address.split_at(8);
    let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
    (word(low), word(high), u32::from(endpoint.family) << 16 | u32::from(endpoint.port()))
}

pub(super) fn endpoint(address: std::net::SocketAddr) -> Endpoint {
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

/// Room for connections that is not given back.
const ROOM: usize = 8_192;

/// Where a connection's fate is kept; another's once nothing of it lies in the sieve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(u32);

/// The fates. Each is looked for by its key once for a record; what lies in the sieve knows the place.
#[derive(Debug, Default)]
pub(super) struct Fates {
    places: Fast<Key, Place>,
    known: Vec<Fate>,
    free: Vec<Place>,
    /// Which was looked for last: a connection's records come several together.
    last: Option<(Key, Place)>,
}

impl Fates {
    /// The place of this connection, which is made if there is none.
    pub(super) fn of(&mut self, key: Key) -> Place {
        let Self { places, known, free, last } = self;
        if let Some((_, place)) = last.filter(|(same, _)| *same == key) {
            return place;
        }
        let place = *places.entry(key).or_insert_with(|| {
            let fate = Fate::of(key);
            if let Some(place) = free.pop() {
                known[place.0 as usize] = fate;
                return place;
            }
            known.push(fate);
            Place(u32::try_from(known.len() - 1).unwrap_or(u32::MAX))
        });
        *last = Some((key, place));
        place
    }

    /// The place of this connection, if something of it lies here.
    pub(super) fn find(&self, key: &Key) -> Option<Place> {
        self.places.get(key).copied()
    }

    /// The fate at a place that [`Fates::of`] gave and that was not forgotten.
    pub(super) fn at(&mut self, place: Place) -> &mut Fate {
        &mut self.known[place.0 as usize]
    }

    /// Nothing of it lies here any more.
    pub(super) fn forget(&mut self, place: Place) {
        self.places.remove(&self.known[place.0 as usize].key);
        self.free.push(place);
        if self.last.is_some_and(|(_, last)| last == place) {
            self.last = None;
        }
        // After a storm.
        if self.places.is_empty() && self.known.capacity() > ROOM {
            *self = Self::default();
        }
    }

    /// Of how many connections something lies here.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.places.len()
    }
}

/// What is known of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fate {
    key: Key,
    /// Things of it that lie here.
    pub(super) held: u32,
    /// Sides seen opening, and sides seen closing without an error: the connecting one and the accepting one.
    opened: Sides,
    closed: Sides,
    /// The worker that connected, and when: as the count of records.
    pub(super) worker: u32,
    pub(super) connected: u64,
    /// Something is to be told of it.
    pub(super) spoken_of: bool,
    /// Some of it has gone on, so the rest must.
    pub(super) went_on: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sides {
    connecting: u64,
    accepting: u64,
}

impl Fate {
    const fn of(key: Key) -> Self {
        let neither = Sides { connecting: 0, accepting: 0 };
        Self {
            key,
            held: 0,
            opened: neither,
            closed: neither,
            worker: 0,
            connected: 0,
            spoken_of: false,
            went_on: false,
        }
    }

    /// nginx made it, and it was answered.
    pub(super) const fn came_about(&self) -> bool {
        self.worker != 0 && self.opened.connecting != 0
    }

    /// The connecting side is nginx's: without it nothing is known to be whole.
    pub(super) fn is_over_and_well(&self) -> bool {
        !self.spoken_of && !self.went_on && self.opened.connecting != 0 && self.opened == self.closed
    }

    pub(super) fn change(&mut self, change: &StateChange) {
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
