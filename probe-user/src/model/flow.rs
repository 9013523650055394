//! One TCP connection of nginx to an upstream, one incarnation: 4-tuples repeat, flows do not.

use std::{borrow::Cow, collections::VecDeque, net::SocketAddr};

use super::{
    event::{Body, Event, EventId},
    packet::{PacketBody, TcpPacket},
    process::Pid,
    socket::{Socket, SocketChange, SocketEvent, TcpState},
};

/// Names a flow within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(pub u64);

/// A connection's history as far as it was seen, in stream order.
#[derive(Clone, Debug, PartialEq)]
pub struct Flow {
    /// Its name.
    pub id: FlowId,
    /// nginx's side; `None` where the port was never seen (a connect that failed early).
    pub local: Option<SocketAddr>,
    /// The upstream.
    pub upstream: SocketAddr,
    /// The worker that owns it, where known.
    pub worker: Option<Pid>,
    /// The local upstream process that accepted it, where seen, with its name. In an attempt: that had accepted it before the attempt ended.
    pub accepted_by: Option<(Pid, String)>,
    /// Its first moments were seen; if not, it was open before the probe looked.
    pub seen_from_start: bool,
    /// Events on nginx's side of it (sockets, syscalls), on the upstream's side (its socket on this host), and packets.
    pub events: VecDeque<Event>,
    /// Older events that had to be forgotten.
    pub forgotten: u64,
    /// Where this host's address translation led it, if what happened there was watched.
    pub led: Option<Led>,
}

/// The other end of a connection whose address is translated on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Led {
    /// The server's address.
    pub to: SocketAddr,
    /// What was seen under that address. The events have the upstream's in its place, as nginx has it.
    pub there: Vec<EventId>,
}

/// Whose socket a socket event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// nginx's.
    Nginx,
    /// The upstream's, on this host.
    Upstream,
}

impl Flow {
    /// An event of it with the addresses under which it was seen.
    #[must_use]
    pub fn as_seen<'a>(&self, event: &'a Event) -> Cow<'a, Event> {
        let Some(led) = self.led.as_ref().filter(|led| led.there.contains(&event.id)) else {
            return Cow::Borrowed(event);
        };
        let mut seen = event.clone();
        seen.readdress(self.upstream, led.to);
        Cow::Owned(seen)
    }

    /// Whose socket this is, by its addresses.
    #[must_use]
    pub fn side_of(&self, socket: &Socket) -> Option<Side> {
        if socket.remote == Some(self.upstream) && (self.local.is_none() || socket.local == self.local) {
            Some(Side::Nginx)
        } else if socket.local == Some(self.upstream) {
            Some(Side::Upstream)
        } else {
            None
        }
    }

    /// Whose socket an event of it is about.
    #[must_use]
    pub fn side(&self, event: &Event) -> Option<Side> {
        match &event.body {
            Body::Socket(socket) => self.side_of(&socket.socket),
            _ => None,
        }
    }

    /// Socket events of one side, in order.
    pub fn sockets(&self, side: Side) -> impl Iterator<Item = (&Event, &SocketEvent)> {
        self.events.iter().filter_map(move |event| match &event.body {
            Body::Socket(socket) if self.side_of(&socket.socket) == Some(side) => Some((event, &**socket)),
            _ => None,
        })
    }

    /// State changes of one side into this state.
    pub fn entered(&self, side: Side, state: TcpState) -> impl Iterator<Item = (&Event, &SocketEvent)> {
        self.sockets(side)
            .filter(move |(_, e)| matches!(e.change, SocketChange::State { .. }) && e.socket.state == state)
    }

    /// RSTs that nginx's socket accepted.
    pub fn resets_received(&self) -> impl Iterator<Item = (&Event, &SocketEvent)> {
        self.sockets(Side::Nginx).filter(|(_, e)| matches!(e.change, SocketChange::ResetReceived))
    }

    /// RSTs that this host's kernel sent from the upstream's end: by its socket, or because there was none.
    pub fn resets_sent_by_upstream(&self) -> impl Iterator<Item = (&Event, &SocketEvent, Option<&str>)> {
        self.events.iter().filter_map(|event| match &event.body {
            Body::Socket(socket) => match &socket.change {
                SocketChange::ResetSent { reason, .. } if socket.socket.local == Some(self.upstream) => {
                    Some((event, &**socket, reason.as_deref()))
                }
                _ => None,
            },
            _ => None,
        })
    }

    /// Packets from the upstream.
    pub fn packets_from_upstream(&self) -> impl Iterator<Item = (&Event, &TcpPacket)> {
        self.tcp_packets().filter(|(_, packet)| packet.header.source == self.upstream)
    }

    /// Packets to the upstream.
    pub fn packets_to_upstream(&self) -> impl Iterator<Item = (&Event, &TcpPacket)> {
        self.tcp_packets().filter(|(_, packet)| packet.header.destination == self.upstream)
    }

    fn tcp_packets(&self) -> impl Iterator<Item = (&Event, &TcpPacket)> {
        self.events.iter().filter_map(|event| match &event.body {
            Body::Packet(packet) => match &packet.body {
                PacketBody::Tcp(tcp) => Some((event, tcp)),
                PacketBody::Icmp(_) => None,
            },
            _ => None,
        })
    }
}
