//! Attempts that were answered in full, kept until nginx has answered too: usually it passes the answer on and nobody need hear of the
//! attempt. Where nginx answers with a failure of its own, that answer is what it could not take.
//!
//! Likewise connections on which something else than HTTP/1 was spoken, which nobody can see the answer in: one that ends just before nginx
//! answers with a failure is the attempt, if it is the only one.

use super::{
    analysis::{Analysis, Finding},
    connection::Connection,
    failure,
    fate::Fate,
    segment::{End, Pair, Segment},
    talk::{Exchange, Speaks, Talk},
    trace::Trace,
};
use crate::model::{
    attempt::Outcome,
    event::Body,
    packet::PacketRef,
    time::{At, Moment},
    wire::{Wire, WireAttempt, WireId},
};

/// An attempt that was answered in full.
#[derive(Debug)]
pub(super) struct Tried {
    pub(super) exchange: Exchange,
    made_for: u64,
    leg: Leg,
    served: u64,
    trace: Trace,
}

/// The connection of an attempt, as far as it is told.
#[derive(Clone, Copy, Debug)]
struct Leg {
    client: End,
    server: End,
    pair: Pair,
    from_start: bool,
}

impl Leg {
    const fn of(connection: &Connection) -> Self {
        Self {
            client: connection.originator(),
            server: connection.responder(),
            pair: connection.pair,
            from_start: connection.seen_from_start,
        }
    }
}

/// nginx answers this soon after it has closed its connection to the upstream, or has seen it closed.
const AT_ONCE_NS: u64 = 100_000_000;
/// Of captures on two interfaces the later packet can have the earlier time.
const SLACK_NS: u64 = 2_000_000;
/// Connections in other protocols that are kept so long.
const MOST_FOREIGN: usize = 4_096;

/// A connection on which something else than HTTP/1 was spoken, and which has ended.
#[derive(Debug)]
pub(super) struct Foreign {
    first_ns: u64,
    ended_ns: u64,
    leg: Leg,
    outcome: Outcome,
    bytes: (u64, Option<u64>),
    /// What answered, as far as it can be read.
    answer: Exchange,
    trace: Trace,
}

impl Analysis {
    /// Keeps a connection in another protocol of which this FIN or RST is the first.
    pub(super) fn keep_foreign(
        &mut self,
        slot: u32,
        talk: &Talk,
        segment: &Segment,
        (before, by_client): (&Fate, bool),
    ) {
        let first = !before.originator.has_ended() && before.responder.is_up();
        let Some(speaks) = talk.speaks.filter(|_| first && self.options.attempts) else { return };
        let Some(connection) = self.at(slot) else { return };
        let mut answer = talk.exchanges.front().or(talk.plain.as_ref()).cloned().unwrap_or_default();
        if let Some((packet, bytes)) = &talk.foreign {
            (answer.answered_packet, answer.foreign) = (*packet, Some(bytes.clone()));
        }
        let received = before.responder.bytes;
        let kept = Foreign {
            first_ns: connection.first_ns,
            ended_ns: segment.unix_ns,
            leg: Leg::of(connection),
            outcome: failure::foreign(before, talk, segment, by_client),
            bytes: (before.originator.bytes, (speaks != Speaks::Tls).then_some(received)),
            answer,
            trace: talk.trace.clone(),
        };
        while self.foreign.len() >= MOST_FOREIGN
            || self.foreign.front().is_some_and(|old| self.now.saturating_sub(old.ended_ns) > 2 * AT_ONCE_NS)
        {
            self.foreign.pop_front();
        }
        self.foreign.push_back(kept);
    }

    /// nginx answered this request with a failure, and no attempt at it is known. One in another protocol that began after it and ended
    /// just before the answer is it, unless there are several.
    pub(super) fn tried_in_another_protocol(
        &mut self,
        id: u64,
        server: End,
        (begun_ns, answered_ns): (u64, Option<u64>),
    ) {
        let Some(answered_ns) = answered_ns else { return };
        let can_be = |kept: &Foreign| {
            kept.leg.client.address == server.address
                && kept.leg.server != server
                && kept.first_ns >= begun_ns
                && kept.ended_ns <= answered_ns.saturating_add(SLACK_NS)
                && answered_ns.saturating_sub(kept.ended_ns) <= AT_ONCE_NS
        };
        let mut fitting = self.foreign.iter().enumerate().filter(|(_, kept)| can_be(kept)).map(|(place, _)| place);
        let (Some(place), None) = (fitting.next(), fitting.next()) else { return };
        let Some(kept) = self.foreign.remove(place) else { return };
        let number = self.next_number();
        let ended = At::exactly(Moment(kept.ended_ns));
        let attempt = WireAttempt {
            id: WireId(number),
            request: None,
            outcome: kept.outcome,
            status: None,
            requests_before: kept.leg.from_start.then_some(0),
            started: Moment(kept.first_ns),
            bytes_sent: kept.bytes.0,
            bytes_received: kept.bytes.1,
            head: None,
            after: None,
            ..self.answered_attempt(id, kept.leg, &kept.answer, &kept.trace, ended)
        };
        self.tell_attempt(attempt);
    }

    /// Keeps the exchange that is over, if it was made for a request that still waits.
    pub(super) fn keep_tried(&mut self, slot: u32, talk: &mut Talk) {
        let fits = |done: &Exchange| done.status.is_some() && !done.told && done.outer.len() == 1;
        if !self.options.attempts || !talk.done.as_ref().is_some_and(fits) {
            return;
        }
        let Some(leg) = self.at(slot).map(Leg::of) else { return };
        let Some(exchange) = talk.done.take() else { return };
        let Some(made_for) = exchange.outer.first().copied().filter(|outer| self.open.waits(exchange.key, *outer))
        else {
            return;
        };
        // It is counted among those served already.
        let served = talk.served.saturating_sub(1);
        let trace = talk.trace.clone();
        self.open.was_tried(made_for, Tried { exchange, made_for, leg, served, trace });
    }

    /// nginx answered otherwise than this attempt did.
    pub(super) fn tried(&mut self, tried: Tried) {
        let Tried { exchange, made_for, leg, served, trace } = tried;
        let ended = At::exactly(Moment(exchange.answered_ns.unwrap_or(exchange.begun_ns)));
        let attempt = self.answered_attempt(made_for, leg, &exchange, &trace, ended);
        self.tell_attempt(WireAttempt { requests_before: leg.from_start.then_some(served), ..attempt });
    }

    /// An attempt for this request as its exchange tells it; its packets are told.
    fn answered_attempt(
        &mut self,
        made_for: u64,
        leg: Leg,
        exchange: &Exchange,
        trace: &Trace,
        ended: At,
    ) -> WireAttempt {
        self.open.watch(made_for);
        let packets: Vec<PacketRef> =
            trace.packets().iter().map(|mark| self.packet(mark, &leg.pair, exchange)).collect();
        WireAttempt {
            id: WireId(exchange.id),
            local: leg.client.socket(),
            upstream: leg.server.socket(),
            packets,
            seen_from_start: leg.from_start,
            request: exchange.request(),
            outcome: Outcome::Ok,
            status: exchange.status,
            requests_before: None,
            idle_us: None,
            started: Moment(exchange.begun_ns),
            ended,
            bytes_sent: exchange.sent,
            bytes_received: Some(exchange.received),
            head: exchange.head,
            made_for: vec![WireId(made_for)],
            after: exchange.after.map(WireId),
        }
    }

    /// Gives out an attempt, after its packets.
    pub(super) fn tell_attempt(&mut self, attempt: WireAttempt) {
        self.findings.push_back(Finding::Event(attempt.ended, Box::new(Body::Wire(Wire::Attempt(Box::new(attempt))))));
    }
}
