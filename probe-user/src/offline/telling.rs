//! What of a capture goes on into the pipeline: failed attempts with their packets, and the answers of the requests they were made for.

use super::{
    analysis::{Analysis, Finding},
    connection::Connection,
    fate::State,
    open::{self, Waiting},
    segment::{End, Pair, Segment, Unreachable},
    talk::{Exchange, Speaks, Talk},
    trace::{FileNumber, Mark},
};
use crate::model::{
    attempt::Outcome,
    event::Body,
    packet::{Content, IcmpPacket, PacketBody, PacketEvent, PacketRef, TcpPacket},
    time::{At, Moment},
    wire::{Wire, WireAnswer, WireAttempt, WireId, WireRequest, WireSide},
};

/// A connection whose SYN was repeated for so long without an answer was given up for that.
const PATIENCE_NS: u64 = 900_000_000;

/// A packet's name: its file and its number in it.
pub(super) fn reference(file: FileNumber, number: u64) -> PacketRef {
    PacketRef((u64::from(file) << 48) | (number & 0xffff_ffff_ffff))
}

/// The file and the number that a packet's name means.
#[must_use]
pub fn place(reference: PacketRef) -> (FileNumber, u64) {
    (FileNumber::try_from(reference.0 >> 48).unwrap_or(FileNumber::MAX), reference.0 & 0xffff_ffff_ffff)
}

impl Exchange {
    pub(super) fn request(&self) -> Option<WireRequest> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (!self.line.is_empty()).then(|| WireRequest { line: text(&self.line), host: self.host.as_deref().map(text) })
    }
}

impl Analysis {
    /// A request has its line.
    pub(super) fn asked(&mut self, slot: u32, talk: &mut Talk, place: usize) {
        let id = self.next_number();
        let Some(connection) = self.at_mut(slot) else { return };
        connection.requests += 1;
        let (client, server) = (connection.originator(), connection.responder());
        let Some(exchange) = talk.exchanges.get_mut(place) else { return };
        exchange.id = id;
        exchange.key = open::key(&exchange.line);
        let waiting = Waiting { client, server, begun_ns: exchange.begun_ns, inside: false };
        exchange.outer = self.open.begin(exchange.key, id, waiting);
        exchange.after = self.open.repeats(exchange.key, client, exchange.begun_ns);
    }

    /// A request is answered: the final status is there.
    pub(super) fn answered(&mut self, slot: u32, talk: &mut Talk) {
        let Some(exchange) = talk.exchanges.front() else { return };
        let Some(status) = exchange.status else { return };
        let (id, key) = (exchange.id, exchange.key);
        let failure = self.options.statuses.contains(&status);
        let tried = self.open.take_tried(id);
        let Some(connection) = self.at_mut(slot) else { return };
        connection.count(status);
        let (client, server) = (connection.originator(), connection.responder());
        let outer = self.open.end(key, id, &exchange.outer);
        for (_, proxy) in &outer {
            self.roles.lies_inside(*proxy, server);
        }
        let watched_outer = exchange.outer.iter().any(|outer| self.open.is_watched(*outer));
        let watched = self.open.is_watched(id);
        if !failure && !watched && !watched_outer && exchange.after.is_none() {
            return;
        }
        let side = self.roles.side(server);
        let inside = !exchange.outer.is_empty() || self.roles.is_upstream(server);
        if inside || exchange.after.is_some() {
            let ended = At::exactly(Moment(exchange.answered_ns.unwrap_or(exchange.begun_ns)));
            self.attempt(slot, talk, Outcome::Ok, ended, None);
        }
        if watched || (failure && (side != WireSide::Upstream || !inside)) {
            if failure {
                // What nginx waits for in vain when it gives up shows in no packet.
                self.give_up_unanswered(server, talk.exchanges.front().map_or(0, |exchange| exchange.begun_ns));
                let unexplained = !self.open.is_watched(id);
                if let Some(tried) = tried.filter(|tried| tried.exchange.status != Some(status)) {
                    self.tried(*tried);
                } else if unexplained && let Some(exchange) = talk.exchanges.front() {
                    self.tried_in_another_protocol(id, server, (exchange.begun_ns, exchange.answered_ns));
                }
            }
            if let Some(exchange) = talk.exchanges.front() {
                self.answer(slot, talk, exchange, (client, server, side));
            }
        }
    }

    /// An exchange is over.
    pub(super) fn done(&mut self, slot: u32, talk: &mut Talk) {
        let Some(done) = &talk.done else { return };
        let Some(connection) = self.at(slot) else { return };
        let ends = (connection.originator(), connection.responder());
        if done.status.is_none() {
            self.open.end(done.key, done.id, &done.outer);
            if self.open.is_watched(done.id) {
                let side = self.roles.side(ends.1);
                self.answer(slot, talk, done, (ends.0, ends.1, side));
            }
        }
        if self.options.exchanges {
            self.findings.push_back(Finding::Exchange(Box::new((ends.0, ends.1, done.clone()))));
        }
        self.keep_tried(slot, talk);
    }

    fn answer(&mut self, slot: u32, talk: &Talk, exchange: &Exchange, (client, server, side): (End, End, WireSide)) {
        self.open.unwatch(exchange.id);
        let Some(connection) = self.at(slot) else { return };
        let at = At::exactly(Moment(exchange.answered_ns.unwrap_or(connection.last_ns)));
        let pair = connection.pair;
        let packet = exchange.status.map(|_| reference(exchange.answered_packet.0, exchange.answered_packet.1));
        let mark = talk
            .trace
            .packets()
            .into_iter()
            .find(|mark| exchange.status.is_some() && (mark.file, mark.number) == exchange.answered_packet);
        if let Some(mark) = &mark {
            self.packet(mark, &pair, exchange);
        }
        let answer = WireAnswer {
            id: WireId(exchange.id),
            side,
            client: client.socket(),
            server: server.socket(),
            request: exchange.request(),
            status: exchange.status,
            packet: packet.filter(|_| mark.is_some()),
            started: Moment(exchange.begun_ns),
        };
        self.findings.push_back(Finding::Event(at, Box::new(Body::Wire(Wire::Answer(Box::new(answer))))));
    }

    /// The exchange under way on this connection, or the connection itself, was an attempt that came to this.
    pub(super) fn attempt(
        &mut self,
        slot: u32,
        talk: &mut Talk,
        outcome: Outcome,
        ended: At,
        unreachable: Option<(FileNumber, &Unreachable)>,
    ) {
        if !self.options.attempts || talk.exchanges.front().is_some_and(|exchange| exchange.told) {
            return;
        }
        let Some(connection) = self.at(slot) else { return };
        let (client, server, pair) = (connection.originator(), connection.responder(), connection.pair);
        let begun_ns = connection.first_ns;
        let from_start = connection.seen_from_start;
        let bytes = (connection.fate.originator.bytes, connection.fate.responder.bytes);
        let made_for = if let Some(exchange) = talk.exchanges.front() {
            exchange.outer.clone()
        } else {
            let roles = &mut self.roles;
            self.open.behind(client, server, begun_ns, |end| roles.is_only_upstream(end))
        };
        let certain = !made_for.is_empty() || self.roles.is_upstream(server);
        if !certain && (outcome == Outcome::Unknown || self.roles.side(server) == WireSide::Client) {
            // A client's own connection to nginx: how it ends is the client's affair.
            return;
        }
        if !certain && talk.exchanges.front().is_some_and(|exchange| self.open.is_watched(exchange.id)) {
            // Attempts were made for it: what became of it is their affair.
            return;
        }
        if !certain && self.roles.knows_nginx() && !self.roles.is_nginx_host(client) {
            // Where nginx is known, what others do is not its affair.
            return;
        }
        for id in &made_for {
            self.open.watch(*id);
        }
        let id = talk.exchanges.front().map_or(0, |exchange| exchange.id);
        let id = if id == 0 { self.next_number() } else { id };
        let default = Exchange::default();
        let exchange = talk.exchanges.front().unwrap_or(&default);
        let marks = talk.trace.packets();
        let mut packets: Vec<PacketRef> = Vec::with_capacity(marks.len());
        for mark in &marks {
            packets.push(self.packet(mark, &pair, exchange));
        }
        packets.extend(unreachable.map(|(file, unreachable)| self.icmp(file, unreachable)));
        let asked = !exchange.line.is_empty() || exchange.begun_ns > 0;
        let fresh = talk.served == 0 && talk.exchanges.len() <= 1;
        let started = if asked && !(fresh && from_start) { exchange.begun_ns } else { begun_ns };
        let idle_us = talk
            .last_answer_ns
            .filter(|last| asked && *last <= exchange.begun_ns && talk.served > 0)
            .map(|last| (exchange.begun_ns - last) / 1_000);
        let attempt = WireAttempt {
            id: WireId(id),
            local: client.socket(),
            upstream: server.socket(),
            packets,
            seen_from_start: from_start,
            request: exchange.request(),
            outcome,
            // An answer that nginx gave up on is none that it passed on.
            status: exchange.status.filter(|_| outcome != Outcome::Unknown),
            requests_before: if from_start { Some(talk.served) } else { None },
            idle_us,
            started: Moment(started),
            ended,
            bytes_sent: if asked { exchange.sent } else { bytes.0 },
            bytes_received: (talk.speaks != Some(Speaks::Tls)).then_some(if asked {
                exchange.received
            } else {
                bytes.1
            }),
            head: exchange.head,
            made_for: made_for.into_iter().map(WireId).collect(),
            after: exchange.after.map(WireId),
        };
        let key = exchange.key;
        if outcome != Outcome::Ok {
            if asked {
                self.open.failed(key, client, ended.latest.ns(), id);
            }
            if let Some(exchange) = talk.exchanges.front_mut() {
                exchange.told = true;
            }
        }
        self.tell_attempt(attempt);
    }

    /// A packet of an attempt; its name.
    pub(super) fn packet(&mut self, mark: &Mark, pair: &Pair, exchange: &Exchange) -> PacketRef {
        let reference = reference(mark.file, mark.number);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into();
        let here = (mark.file, mark.number);
        let content = match (mark.length, mark.captured) {
            (0, _) => Content::Empty,
            (_, false) => Content::NotCaptured,
            _ if here == exchange.answered_packet && exchange.status.is_some() => {
                Content::HttpStatus { code: exchange.status.unwrap_or(0), line: text(&exchange.status_line) }
            }
            _ if here == exchange.begun_packet && !exchange.line.is_empty() => {
                Content::HttpRequest { line: text(&exchange.line), host: exchange.host.as_deref().map(text) }
            }
            _ => {
                let foreign = exchange.foreign.as_deref().filter(|_| here == exchange.answered_packet);
                foreign
                    .and_then(|bytes| Content::tls(bytes).or_else(|| Content::foreign(bytes)))
                    .unwrap_or(Content::Other)
            }
        };
        let tcp = TcpPacket {
            header: mark.header(pair),
            payload_length: mark.length,
            window: mark.window,
            ip_id: mark.ip_id(),
            content,
            promised: None,
        };
        let event = PacketEvent { reference, netns: None, body: PacketBody::Tcp(tcp) };
        self.findings.push_back(Finding::Event(At::exactly(Moment(mark.unix_ns)), Box::new(Body::Packet(event))));
        reference
    }

    fn icmp(&mut self, file: FileNumber, unreachable: &Unreachable) -> PacketRef {
        let reference = reference(file, unreachable.number);
        let icmp = IcmpPacket {
            from: unreachable.from.socket().ip(),
            icmp_type: unreachable.kind,
            code: unreachable.code,
            v6: unreachable.v6,
            about: (unreachable.source.socket(), unreachable.destination.socket()),
            // The connection is known by now.
            syn: None,
        };
        let event = PacketEvent { reference, netns: None, body: PacketBody::Icmp(icmp) };
        self.findings
            .push_back(Finding::Event(At::exactly(Moment(unreachable.unix_ns)), Box::new(Body::Packet(event))));
        reference
    }

    /// An ICMP error: a connection that was being opened fails by it at once, on Linux whatever it says (`tcp_v4_err`,
    /// <https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/tcp_ipv4.c>); on one that is up it is a hint.
    pub(super) fn unreachable(&mut self, file: FileNumber, unreachable: &Unreachable) {
        let (pair, from_low) = Pair::of(unreachable.source, unreachable.destination);
        let opening = |connection: &Connection| {
            connection.pair == pair
                && connection.low_opened == from_low
                && connection.fate.originator.state == State::SynSent
                && connection.fate.responder.state == State::Inactive
        };
        let slot = self.index.find(pair.hash(), |slot| self.at(slot).is_some_and(opening));
        // "Fragmentation needed" and redirects end nothing.
        let fatal = if unreachable.v6 { unreachable.kind == 1 } else { unreachable.kind == 3 && unreachable.code != 4 };
        let Some(slot) = slot.filter(|_| fatal) else { return };
        let Some(mut talk) = self.at_mut(slot).and_then(|connection| connection.talk.take()) else { return };
        let at = At::exactly(Moment(unreachable.unix_ns));
        self.attempt(slot, &mut talk, Outcome::Unreachable, at, Some((file, unreachable)));
        // It is over for whoever opened it; what follows is of no exchange.
        self.waiting.remove(&slot);
    }

    /// Nobody answers this connection's SYN, and nobody will.
    pub(super) fn unanswered(&mut self, slot: u32, latest_ns: u64) {
        let Some(connection) = self.at_mut(slot) else { return };
        let waited = connection.last_ns.saturating_sub(connection.first_ns);
        let hopeless = connection.fate.responder.state == State::Inactive
            && connection.fate.originator.state == State::SynSent
            && waited >= PATIENCE_NS;
        let last_ns = connection.last_ns;
        if !hopeless {
            return;
        }
        if let Some(mut talk) = connection.talk.take() {
            let ended = At::between(Moment(last_ns), Moment(latest_ns.max(last_ns)));
            self.attempt(slot, &mut talk, Outcome::TimeoutConnect, ended, None);
        }
    }

    /// nginx gives up on a request that began then: so it does on what it waits for in vain.
    fn give_up_unanswered(&mut self, server: End, begun_ns: u64) {
        let theirs: Vec<u32> = self
            .waiting
            .iter()
            .copied()
            .filter(|slot| {
                self.at(*slot).is_some_and(|connection| {
                    connection.originator().address == server.address && connection.first_ns >= begun_ns
                })
            })
            .take(MOST_GIVEN_UP)
            .collect();
        for slot in theirs {
            self.unanswered(slot, self.now);
            if self.at(slot).is_some_and(|connection| connection.talk.is_none()) {
                self.waiting.remove(&slot);
            }
        }
    }

    /// A FIN or RST went by: what it means to the exchange under way.
    pub(super) fn ending(
        &mut self,
        slot: u32,
        talk: &mut Talk,
        segment: &Segment,
        (before, by_client): (&super::fate::Fate, bool),
    ) {
        match super::failure::outcome(before, talk, segment, by_client) {
            Some(outcome) if talk.speaks.is_none() || !talk.is_http => {
                self.attempt(slot, talk, outcome, At::exactly(Moment(segment.unix_ns)), None);
            }
            _ => self.keep_foreign(slot, talk, segment, (before, by_client)),
        }
        if by_client {
            // Nobody waits for these any more, whether they are answered or not.
            for exchange in &mut talk.exchanges {
                let outer = std::mem::take(&mut exchange.outer);
                self.open.end(exchange.key, exchange.id, &outer);
            }
        }
    }
}

/// Connections that are looked at when nginx gives up.
const MOST_GIVEN_UP: usize = 256;
