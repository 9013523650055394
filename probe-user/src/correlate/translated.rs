//! Upstreams whose address this host translates (DNAT), so that their own end and the wire have another one than nginx.
//!
//! What is seen under the other address is told to the rest of the correlator under nginx's. Only where that address can be no other:
//! one that two upstreams lead to, or that nginx connects to by itself as well, stays what it is. And only of connections that began when
//! the address was watched: of an older one the upstream's side is known in part, and what was not seen of it would seem not to have
//! happened.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
};

use super::{
    flows::{Flows, ends},
    limits::{SECOND_NS, TRANSLATIONS, TRANSLATIONS_ASKED},
};
use crate::model::{
    event::{Body, Event, EventId},
    host::HostFact,
    socket::Syscall,
    time::{At, Moment},
};

/// Servers behind one address that are told of a connection of which it is not known where it was led.
const SEVERAL: usize = 4;

/// What is known of an address that connections were led to.
#[derive(Debug)]
struct Destination {
    /// The upstream it stands for; `None`: more than one.
    upstream: Option<SocketAddr>,
    /// Where that was told.
    told: EventId,
    /// Since when it is watched.
    since: Moment,
}

/// The state.
#[derive(Debug, Default)]
pub(super) struct Translations {
    destinations: BTreeMap<SocketAddr, Destination>,
    /// Connections that were asked about, newest last.
    connections: VecDeque<(EventId, At, HostFact)>,
    /// The second in which was asked last, and how often.
    asked: (u64, u32),
}

impl Translations {
    pub(super) fn learn(&mut self, event: &Event, fact: &HostFact) {
        let HostFact::Translated { upstream, to, seen_as, .. } = fact else { return };
        if self.connections.len() >= TRANSLATIONS {
            self.connections.pop_front();
        }
        self.connections.push_back((event.id, event.at, fact.clone()));
        // Where nginx's end has another address too, its connections cannot be told by it.
        let upstream = seen_as.is_none().then_some(*upstream);
        if let Some(known) = self.destinations.get_mut(to) {
            if known.upstream != upstream {
                known.upstream = None;
            }
        } else {
            if self.destinations.len() >= TRANSLATIONS {
                let oldest = self.destinations.iter().min_by_key(|(_, known)| known.told).map(|(to, _)| *to);
                oldest.map(|oldest| self.destinations.remove(&oldest));
            }
            self.destinations.insert(*to, Destination { upstream, told: event.id, since: event.at.latest });
        }
    }

    /// Whether one more connection may be asked about.
    pub(super) fn may_ask(&mut self, now: Moment) -> bool {
        let second = now.ns() / SECOND_NS;
        if self.asked.0 != second {
            self.asked = (second, 0);
        }
        self.asked.1 += 1;
        self.asked.1 <= TRANSLATIONS_ASKED
    }

    /// Where what is known was told.
    pub(super) fn events(&self) -> impl Iterator<Item = EventId> {
        self.destinations.values().map(|known| known.told).chain(self.connections.iter().map(|(id, ..)| *id))
    }

    /// Where this connection was led, as told last; not what was told before it `began`, of another one with its addresses.
    pub(super) fn of(
        &self,
        (local, upstream): (SocketAddr, SocketAddr),
        began: Moment,
    ) -> Option<&(EventId, At, HostFact)> {
        self.connections.iter().rev().find(|(_, at, fact)| {
            let same =
                matches!(fact, HostFact::Translated { local: l, upstream: u, .. } if (*l, *u) == (local, upstream));
            same && at.latest >= began
        })
    }

    /// What was told of other connections to this upstream: of each server behind it the newest, newest first.
    pub(super) fn of_others(&self, upstream: SocketAddr) -> Vec<&(EventId, At, HostFact)> {
        let mut servers = BTreeSet::new();
        let newest = |told: &&(EventId, At, HostFact)| matches!(told.2, HostFact::Translated { upstream: of, to, .. } if of == upstream && servers.insert(to));
        self.connections.iter().rev().filter(newest).take(SEVERAL).collect()
    }

    /// Since when what is seen of connections that lead here is theirs; where nginx connects by itself as well, it never is.
    pub(super) fn watched_since(&self, destination: SocketAddr, flows: &Flows) -> Option<Moment> {
        let known = self.destinations.get(&destination).filter(|known| known.upstream.is_some())?;
        (!flows.is_upstream(destination)).then_some(known.since)
    }

    /// The event as nginx would have it, and the address in whose place it has nginx's.
    pub(super) fn canonical<'a>(&self, event: &'a Event, flows: &mut Flows) -> (Cow<'a, Event>, Option<SocketAddr>) {
        if self.destinations.is_empty() {
            return (Cow::Borrowed(event), None);
        }
        let mut upstream = |address: SocketAddr, other: Option<SocketAddr>| {
            let known = self.destinations.get(&address)?;
            let upstream = known.upstream.filter(|_| !flows.is_upstream(address))?;
            let older = other.is_some_and(|local| flows.is_older(local, upstream, known.since));
            (!older).then_some(upstream)
        };
        let Some((one, other)) = ends_of(event) else { return (Cow::Borrowed(event), None) };
        let mut led = |from: SocketAddr, other| Some((from, upstream(from, other)?));
        let found = other.and_then(|other| led(other, Some(one))).or_else(|| led(one, other));
        let Some((from, to)) = found else { return (Cow::Borrowed(event), None) };
        let mut event = event.clone();
        event.readdress(from, to);
        (Cow::Owned(event), Some(from))
    }
}

/// The ends of the connection that an event is about; of a listener only its own.
fn ends_of(event: &Event) -> Option<(SocketAddr, Option<SocketAddr>)> {
    let listener = || match &event.body {
        Body::Socket(e) => e.socket.local,
        Body::Syscall(call) => match &call.call {
            Syscall::Accept { socket: Some(socket), .. } => socket.local,
            _ => None,
        },
        _ => None,
    };
    ends(event).map(|(one, other)| (one, Some(other))).or_else(|| Some((listener()?, None)))
}
