//! Upstreams whose address this host translates (DNAT), so that their own end and the wire have another one than nginx.
//!
//! What is seen under the other address is told to the rest of the correlator under nginx's. Only where that address can be no other:
//! one that two upstreams lead to, or that nginx connects to by itself as well, stays what it is. And only of connections that began when
//! the address was watched: of an older one the upstream's side is known in part, and what was not seen of it would seem not to have
//! happened.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
};

use super::{
    flows::{Flows, ends},
    limits::{SECOND_NS, TRANSLATIONS, TRANSLATIONS_ASKED},
};
use crate::model::{
    event::{Body, Event, EventId},
    host::HostFact,
    packet::{PacketBody, TcpHeader},
    socket::{SocketChange, Syscall},
    time::{At, Moment},
};

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

    /// Where this connection was led, as told last.
    pub(super) fn of(&self, local: SocketAddr, upstream: SocketAddr) -> Option<&(EventId, At, HostFact)> {
        self.connections.iter().rev().find(|(.., fact)| {
            matches!(fact, HostFact::Translated { local: l, upstream: u, .. } if (*l, *u) == (local, upstream))
        })
    }

    /// What was told of another connection to this upstream, if all of them are led to the same address.
    pub(super) fn of_any(&self, upstream: SocketAddr) -> Option<&(EventId, At, HostFact)> {
        let mut led = self.connections.iter().rev().filter_map(|told| match told.2 {
            HostFact::Translated { upstream: of, to, .. } if of == upstream => Some((to, told)),
            _ => None,
        });
        let (to, told) = led.next()?;
        led.all(|(other, _)| other == to).then_some(told)
    }

    /// Since when both sides of connections that lead here are watched.
    pub(super) fn watched_since(&self, destination: SocketAddr) -> Option<Moment> {
        self.destinations.get(&destination).filter(|known| known.upstream.is_some()).map(|known| known.since)
    }

    /// The event as nginx would have it.
    pub(super) fn canonical<'a>(&self, event: &'a Event, flows: &mut Flows) -> Cow<'a, Event> {
        if self.destinations.is_empty() {
            return Cow::Borrowed(event);
        }
        let mut upstream = |address: SocketAddr, other: Option<SocketAddr>| {
            let known = self.destinations.get(&address)?;
            let upstream = known.upstream.filter(|_| !flows.is_upstream(address))?;
            let older = other.is_some_and(|local| flows.is_older(local, upstream, known.since));
            (!older).then_some(upstream)
        };
        let Some((one, other)) = ends_of(event) else { return Cow::Borrowed(event) };
        let mut led = |from: SocketAddr, other| Some((from, upstream(from, other)?));
        let found = other.and_then(|other| led(other, Some(one))).or_else(|| led(one, other));
        let Some((from, to)) = found else { return Cow::Borrowed(event) };
        let mut event = event.clone();
        each_address(&mut event, |address| {
            if *address == from {
                *address = to;
            }
        });
        Cow::Owned(event)
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

fn each_address(event: &mut Event, mut change: impl FnMut(&mut SocketAddr)) {
    let mut of_header = |header: &mut TcpHeader| {
        change(&mut header.source);
        change(&mut header.destination);
    };
    match &mut event.body {
        Body::Socket(e) => {
            if let SocketChange::ResetSent { answered: Some(answered), .. } = &mut e.change {
                of_header(answered);
            }
            [&mut e.socket.local, &mut e.socket.remote].into_iter().flatten().for_each(change);
        }
        Body::Drop(drop) => of_header(&mut drop.packet),
        Body::Syscall(call) => {
            if let Syscall::Accept { socket: Some(socket), .. } = &mut call.call {
                [&mut socket.local, &mut socket.remote].into_iter().flatten().for_each(change);
            }
        }
        Body::Packet(packet) => match &mut packet.body {
            PacketBody::Tcp(tcp) => of_header(&mut tcp.header),
            PacketBody::Icmp(icmp) => [&mut icmp.about.0, &mut icmp.about.1].into_iter().for_each(change),
        },
        _ => {}
    }
}
