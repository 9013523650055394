//! The connections between nginx and its upstreams: which event belongs to which incarnation of a 4-tuple.

mod asleep;
mod connects;
mod ends;
mod forget;
mod incarnations;
mod known;
mod led;
mod memory;

use std::{
    borrow::Cow,
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
};

pub(super) use self::ends::ends;
use self::{
    connects::Connects,
    ends::{concerns, ended_well, note_nginx_state},
    incarnations::Incarnations,
    known::Known,
};
use super::{limits::Limits, tuple::Tuple};
use crate::model::{
    event::{Body, Event, EventId},
    flow::{Flow, FlowId},
    net::Address,
    packet::{IcmpPacket, PacketBody, TcpHeader},
    process::Pid,
    socket::{Socket, SocketChange, Syscall, TcpState},
    time::{At, Moment},
};

/// Packets and kernel records are stamped by different clocks, which differ by less than this.
const CLOCK_SKEW_NS: u64 = 200_000;

/// Events kept until an upstream's address is learnt. What shows it follows its first events within microseconds; on a busy host the
/// packets of clients come between.
const UNPLACED: usize = 256;

/// Events up to which a connection's room grows one by one, and by how many it grows then.
const FEW: usize = 8;

#[derive(Debug)]
#[cfg_attr(test, derive(PartialEq))]
struct State {
    flow: Flow,
    tuple: Tuple,
    /// Sequence number of nginx's SYN, where a SYN was seen.
    syn: Option<u32>,
    /// The `connect()` that made it was seen.
    connected_by_syscall: bool,
    /// It left `SYN_SENT`: another `SYN_SENT` on the tuple is another connection.
    beyond_syn: bool,
    /// nginx's socket is gone.
    ended: Option<Moment>,
    /// nginx has complained of it.
    complained_of: bool,
    /// Only for that it is still remembered, since then.
    kept_since: Option<Moment>,
    /// When its first event happened.
    begun: Moment,
    /// The incarnation of the same tuple before it.
    older: Option<FlowId>,
    /// It was open before the probe looked, as told in this event.
    told_in: Option<EventId>,
}

/// What an event says about the incarnation it belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beginning {
    /// It can belong to a connection that is on.
    No,
    /// It belongs to a handshake; `Some`: with this initial sequence number.
    Handshake(Option<u32>),
    /// It is the `connect()` call itself, which is recorded after its packets on loopback; `Some`: with this initial sequence number.
    Call(Option<u32>),
}

/// All connections known.
#[derive(Debug, Default)]
pub struct Flows {
    known: Known,
    newest: Incarnations,
    connects: Connects,
    /// Addresses that are upstreams: decides which end of a packet is nginx.
    upstreams: BTreeSet<SocketAddr>,
    ended: VecDeque<(Moment, FlowId)>,
    clean: VecDeque<(Moment, FlowId)>,
    /// Those that are remembered only because nginx complained of them.
    complained_of: BTreeSet<(Moment, FlowId)>,
    /// nginx's own complaints are heard: one about a connection comes before nginx closes it.
    nginx_complains_itself: bool,
    /// Only some changes of state are heard: a connection may have begun or ended unseen.
    states_are_sparse: bool,
    /// The newest events between addresses of which none is known to be an upstream yet.
    unplaced: VecDeque<Event>,
    last: u64,
    /// Connections there were when the trees were filled last.
    filled: usize,
    limits: Limits,
}

impl Flows {
    /// With these bounds.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Whether nginx's own complaints are heard.
    pub const fn hear_complaints(&mut self, heard: bool) {
        self.nginx_complains_itself = heard;
    }

    /// Whether every beginning and end of a connection is heard.
    pub const fn hear_states(&mut self, heard: bool) {
        self.states_are_sparse = !heard;
    }

    /// This address is an upstream.
    pub fn add_upstream(&mut self, address: SocketAddr) {
        if !self.upstreams.insert(address) {
            return;
        }
        // On loopback a whole refused handshake is recorded before the connect() that shows the address.
        let waiting = std::mem::take(&mut self.unplaced);
        let (placeable, rest) = waiting.into_iter().partition(|event| concerns(event, address));
        self.unplaced = rest;
        let placeable: VecDeque<Event> = placeable;
        for event in &placeable {
            self.place(event);
        }
    }

    /// Whether this address is known to be an upstream.
    #[must_use]
    pub fn is_upstream(&self, address: SocketAddr) -> bool {
        self.upstreams.contains(&address)
    }

    /// Takes an event that is about a connection; `None` if it is not, or not about one with a known upstream.
    pub fn handle(&mut self, event: &Event) -> Option<FlowId> {
        if let Some(upstream) = self.shown_by(event) {
            self.add_upstream(upstream);
        }
        if self.states_are_sparse {
            self.part_from_the_quiet(event);
        }
        let id = self.place(event);
        if id.is_none() && ends(event).is_some() {
            if self.unplaced.len() >= UNPLACED {
                self.unplaced.pop_front();
            }
            self.unplaced.push_back(event.clone());
        }
        id
    }

    /// The upstream whose address this event shows. The kernel side follows the workers' connects itself and may know an upstream before
    /// anybody told us: whoever opens a connection that it records is on nginx's side.
    fn shown_by(&self, event: &Event) -> Option<SocketAddr> {
        match &event.body {
            Body::Socket(e) => {
                let (local, remote) = (e.socket.local?, e.socket.remote?);
                let opener = matches!(e.change, SocketChange::State { from: TcpState::SynSent })
                    || e.socket.state == TcpState::SynSent;
                (opener && !self.upstreams.contains(&local)).then_some(remote)
            }
            Body::Syscall(call) => match &call.call {
                Syscall::Connect { socket: Some(socket), address, .. } => {
                    socket.local?;
                    socket.remote.or_else(|| address.as_ref().and_then(Address::ip))
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn place(&mut self, event: &Event) -> Option<FlowId> {
        match &event.body {
            Body::Socket(socket) => {
                let (tuple, beginning, nginx_side) = self.place_socket(&socket.socket, &socket.change)?;
                let id = self.incarnation(tuple, beginning, event.at.latest);
                let state = self.known.wake(id)?;
                if nginx_side {
                    let over = state.ended.is_some();
                    note_nginx_state(state, &socket.socket, &socket.change, event.at.latest);
                    if let (Some(by), SocketChange::State { .. }) = (socket.by, &socket.change) {
                        state.flow.worker.get_or_insert(by);
                    }
                    if let (false, Some(ended)) = (over, state.ended) {
                        let clean = self.nginx_complains_itself && ended_well(state, &socket.socket);
                        if clean { &mut self.clean } else { &mut self.ended }.push_back((ended, id));
                    }
                }
                self.append(id, event);
                Some(id)
            }
            Body::Syscall(call) => match &call.call {
                Syscall::Connect { fd, socket: Some(socket), address, .. } => {
                    let (local, upstream) =
                        (socket.local?, socket.remote.or_else(|| address.as_ref().and_then(Address::ip))?);
                    let tuple = self.zoned(local, upstream, socket.netns);
                    let sequence = socket.tcp.map(|tcp| tcp.write_seq.wrapping_sub(1));
                    let id = self.incarnation(tuple, Beginning::Call(sequence), event.at.latest);
                    if let Some(state) = self.known.wake(id) {
                        state.connected_by_syscall = true;
                        state.beyond_syn |= socket.state != TcpState::SynSent;
                        state.flow.worker = Some(call.pid);
                    }
                    self.append(id, event);
                    self.connects.keep(call.pid, *fd, event.at.latest, id);
                    Some(id)
                }
                Syscall::Accept { result: Ok(_), socket: Some(socket), command, .. } => {
                    let (upstream, local) = (socket.local?, socket.remote?);
                    if !self.upstreams.contains(&upstream) {
                        return None;
                    }
                    let id = self.current(local, upstream, None)?;
                    let state = self.known.wake(id)?;
                    state.flow.accepted_by = Some((call.pid, command.clone()));
                    state.beyond_syn = true;
                    self.append(id, event);
                    Some(id)
                }
                _ => None,
            },
            Body::Drop(drop) => {
                let id = self.of_packet(&drop.packet, drop.netns, event.at.latest)?;
                self.append(id, event);
                Some(id)
            }
            Body::Packet(packet) => {
                let id = match &packet.body {
                    PacketBody::Tcp(tcp) => self.of_packet(&tcp.header, packet.netns, event.at.latest)?,
                    PacketBody::Icmp(icmp) => self.of_icmp(icmp, packet.netns, event.at.latest)?,
                };
                self.append(id, event);
                Some(id)
            }
            _ => None,
        }
    }

    /// A connection that was open before the probe looked.
    pub fn already_open(&mut self, worker: Pid, local: SocketAddr, upstream: SocketAddr, told: &Event) {
        self.add_upstream(upstream);
        if self.current(local, upstream, None).is_none() {
            let id = self.begin(Tuple::of(local, upstream, None), false, told.at.latest);
            if let Some(state) = self.known.wake(id) {
                state.flow.worker = Some(worker);
                state.beyond_syn = true;
                state.told_in = Some(told.id);
            }
        }
    }

    /// The newest incarnation of this tuple.
    #[must_use]
    pub fn current(&self, local: SocketAddr, upstream: SocketAddr, netns: Option<u32>) -> Option<FlowId> {
        if let Some(id) = self.newest.get(&Tuple::of(local, upstream, netns)) {
            return Some(id);
        }
        if netns.is_some() && !upstream.ip().is_loopback() {
            return None;
        }
        // The namespace is not known (or was not known to the others): any zone, if there is only one.
        let mut found = self.newest.between(local, upstream).filter(|(zone, _)| netns.is_none() || *zone == 0);
        match (found.next(), found.next()) {
            (Some((_, id)), None) => Some(id),
            _ => None,
        }
    }

    /// The incarnation of this tuple that was on at `moment`: a case is put together later, and the port may have come back meanwhile.
    #[must_use]
    pub fn at(&self, local: SocketAddr, upstream: SocketAddr, netns: Option<u32>, moment: Moment) -> Option<FlowId> {
        let mut id = self.current(local, upstream, netns)?;
        loop {
            let state = self.known.head(id)?;
            if state.begun <= moment.plus_ns(CLOCK_SKEW_NS) {
                return Some(id);
            }
            id = state.older?;
        }
    }

    /// The connection with this name.
    #[must_use]
    pub fn get(&self, id: FlowId) -> Option<Cow<'_, Flow>> {
        self.known.flow(id)
    }

    /// The connections towards `upstream`, oldest first. Some of those of which nothing was seen within `window` are left out.
    pub fn towards(&self, upstream: SocketAddr, window: At) -> impl Iterator<Item = Cow<'_, Flow>> {
        self.known.flows(Some(upstream), window)
    }

    /// The connections towards `upstream` that `connect()` on this descriptor made within `window`, oldest first, and perhaps others.
    #[must_use]
    pub fn connected(&self, upstream: SocketAddr, worker: Pid, fd: i32, window: At) -> Vec<Cow<'_, Flow>> {
        match self.connects.of(worker, fd, window.earliest, window.latest) {
            // Each connection towards a busy upstream would be looked at otherwise, for each failure.
            Some(made) => {
                let towards = |flow: &Cow<'_, Flow>| flow.upstream == upstream;
                made.into_iter().filter_map(|id| self.known.flow(id)).filter(towards).collect()
            }
            None => self.towards(upstream, window).collect(),
        }
    }

    /// Connections remembered.
    #[must_use]
    pub fn known(&self) -> usize {
        self.known.len()
    }

    /// nginx complains of this connection: the request may go on elsewhere for long before its case is put together.
    pub fn keep(&mut self, socket: &Socket) {
        let (Some(local), Some(upstream)) = (socket.local, socket.remote) else { return };
        if let Some(state) = self.current(local, upstream, socket.netns).and_then(|id| self.known.wake(id)) {
            state.complained_of = true;
        }
    }

    /// The tuple under which the connection is known. A record without a namespace (a RST that no socket sent) belongs to the only
    /// connection of those addresses, and the other way round.
    fn zoned(&self, local: SocketAddr, upstream: SocketAddr, netns: Option<u32>) -> Tuple {
        let known = self.current(local, upstream, netns).and_then(|id| self.known.head(id)).map(|head| head.tuple);
        known.unwrap_or_else(|| Tuple::of(local, upstream, netns))
    }

    fn place_socket(&mut self, socket: &Socket, change: &SocketChange) -> Option<(Tuple, Beginning, bool)> {
        let (mut local, mut remote) = (socket.local, socket.remote);
        if let (true, SocketChange::ResetSent { answered: Some(answered), .. }) = (remote.is_none(), change) {
            // No socket, or a listener: the RST goes back where the packet came from.
            (local, remote) = (Some(answered.destination), Some(answered.source));
        }
        let (local, remote) = (local?, remote?);
        // Nothing is written before the handshake is over: the SYN's number stands before the next one to be written.
        let sequence = socket.tcp.map(|tcp| tcp.write_seq.wrapping_sub(1));
        let beginning = match change {
            SocketChange::State { from: TcpState::SynSent } => Beginning::Handshake(sequence),
            SocketChange::Retransmitted { .. } | SocketChange::ResetReceived | SocketChange::ErrorReported
                if socket.state == TcpState::SynSent =>
            {
                Beginning::Handshake(sequence)
            }
            SocketChange::ResetSent { answered: Some(answered), .. }
                if answered.flags.syn() && !answered.flags.ack() =>
            {
                Beginning::Handshake(Some(answered.sequence))
            }
            _ => Beginning::No,
        };
        if self.upstreams.contains(&remote) {
            Some((self.zoned(local, remote, socket.netns), beginning, true))
        } else if self.upstreams.contains(&local) {
            // The upstream's end may live in another namespace; loopback addresses cannot.
            Some((self.zoned(remote, local, socket.netns), beginning, false))
        } else {
            None
        }
    }

    fn of_packet(&mut self, header: &TcpHeader, netns: Option<u32>, at: Moment) -> Option<FlowId> {
        let (local, upstream, outward) = if self.upstreams.contains(&header.destination) {
            (header.source, header.destination, true)
        } else if self.upstreams.contains(&header.source) {
            (header.destination, header.source, false)
        } else {
            return None;
        };
        if header.flags.syn() && !header.flags.ack() && outward {
            let tuple = self.zoned(local, upstream, netns);
            return Some(self.incarnation(tuple, Beginning::Handshake(Some(header.sequence)), at));
        }
        let current = self.current(local, upstream, netns);
        let state = current.and_then(|id| self.known.wake(id));
        if header.flags.syn() && header.flags.ack() && !outward {
            // It may be the first that is seen of a connection. Of one that is on, another number is somebody's who guessed.
            let answered = header.acknowledgement.wrapping_sub(1);
            if state.is_none_or(|state| state.ended.is_some() || state.syn.is_none_or(|syn| syn == answered)) {
                let tuple = self.zoned(local, upstream, netns);
                return Some(self.incarnation(tuple, Beginning::Handshake(Some(answered)), at));
            }
        }
        current.or_else(|| Some(self.begin(Tuple::of(local, upstream, netns), false, at)))
    }

    /// A router's word about a SYN may come before the call that sent it has returned, and the SYN itself need not have been captured.
    fn of_icmp(&mut self, icmp: &IcmpPacket, netns: Option<u32>, at: Moment) -> Option<FlowId> {
        let (local, upstream) = icmp.about;
        match icmp.syn.filter(|_| self.upstreams.contains(&upstream)) {
            Some(sequence) => {
                let tuple = self.zoned(local, upstream, netns);
                Some(self.incarnation(tuple, Beginning::Handshake(Some(sequence)), at))
            }
            None => self.current(local, upstream, netns),
        }
    }

    /// The incarnation of `tuple` that an event belongs to, made if there is none that fits.
    fn incarnation(&mut self, tuple: Tuple, beginning: Beginning, at: Moment) -> FlowId {
        if let Some(id) = self.newest.get(&tuple)
            && let Some(state) = self.known.wake(id)
        {
            let fits = match beginning {
                Beginning::No => true,
                Beginning::Handshake(Some(sequence)) => match state.syn {
                    Some(known) => known == sequence,
                    None => !state.beyond_syn && state.ended.is_none() && state.flow.seen_from_start,
                },
                Beginning::Handshake(None) => !state.beyond_syn && state.ended.is_none(),
                Beginning::Call(sequence) => {
                    let same = state.syn.zip(sequence).is_none_or(|(known, said)| known == said);
                    same && !state.connected_by_syscall && state.flow.seen_from_start
                }
            };
            if fits {
                if let Beginning::Handshake(Some(sequence)) | Beginning::Call(Some(sequence)) = beginning {
                    state.syn = Some(sequence);
                }
                return id;
            }
        }
        let id = self.begin(tuple, beginning != Beginning::No, at);
        if let (Beginning::Handshake(sequence) | Beginning::Call(sequence), Some(state)) =
            (beginning, self.known.wake(id))
        {
            state.syn = sequence;
        }
        id
    }

    fn begin(&mut self, tuple: Tuple, seen_from_start: bool, at: Moment) -> FlowId {
        self.last += 1;
        let id = FlowId(self.last);
        let older = self.newest.insert(tuple, id);
        if let Some(older) = older {
            // Its end was not seen, or is over: it will be forgotten in its time.
            if let Some(state) = self.known.wake(older)
                && state.ended.is_none()
            {
                state.ended = Some(at);
                self.ended.push_back((at, older));
            }
        }
        let flow = Flow {
            id,
            local: Some(tuple.local),
            upstream: tuple.upstream,
            worker: None,
            accepted_by: None,
            seen_from_start,
            events: VecDeque::new(),
            forgotten: 0,
            led: None,
        };
        let state = State {
            flow,
            tuple,
            syn: None,
            connected_by_syscall: false,
            beyond_syn: false,
            ended: None,
            complained_of: false,
            kept_since: None,
            begun: at,
            older,
            told_in: None,
        };
        self.known.insert(id, state);
        id
    }

    fn append(&mut self, id: FlowId, event: &Event) {
        let keep = self.limits.events_per_flow.max(8);
        let Some(state) = self.known.wake(id) else { return };
        let events = &mut state.flow.events;
        if events.len() >= keep + keep / 4 {
            // The handshake stays, the middle goes; several at once, as what stands before them is moved.
            let gone = events.drain(keep / 4..keep / 4 * 2).len();
            state.flow.forgotten += u64::try_from(gone).unwrap_or(u64::MAX);
        }
        if events.len() == events.capacity() {
            // Most connections have some five events of 368 bytes: room for what does not come would be a third of them.
            events.reserve_exact(if events.len() < FEW { 1 } else { FEW });
        }
        events.push_back(event.clone());
    }
}
