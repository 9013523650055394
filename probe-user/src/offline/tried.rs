//! Attempts that were answered in full, kept until nginx has answered too: usually it passes the answer on and nobody need hear of the
//! attempt. Where nginx answers with a failure of its own, that answer is what it could not take.

use super::{
    analysis::{Analysis, Finding},
    segment::{End, Pair},
    talk::{Exchange, Talk},
    trace::Mark,
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
    client: End,
    server: End,
    pair: Pair,
    from_start: bool,
    served: u64,
    marks: Vec<Mark>,
}

impl Analysis {
    /// Keeps the exchange that is over, if it was made for a request that still waits.
    pub(super) fn keep_tried(&mut self, slot: u32, talk: &mut Talk) {
        let fits = |done: &Exchange| done.status.is_some() && !done.told && done.outer.len() == 1;
        if !self.options.attempts || !talk.done.as_ref().is_some_and(fits) {
            return;
        }
        let Some(connection) = self.at(slot) else { return };
        let (client, server, pair) = (connection.originator(), connection.responder(), connection.pair);
        let from_start = connection.seen_from_start;
        let Some(exchange) = talk.done.take() else { return };
        let Some(made_for) = exchange.outer.first().copied().filter(|outer| self.open.waits(exchange.key, *outer))
        else {
            return;
        };
        // It is counted among those served already.
        let served = talk.served.saturating_sub(1);
        let marks = talk.trace.packets();
        self.open.was_tried(made_for, Tried { exchange, made_for, client, server, pair, from_start, served, marks });
    }

    /// nginx answered otherwise than this attempt did.
    pub(super) fn tried(&mut self, tried: Tried) {
        let Tried { exchange, made_for, client, server, pair, from_start, served, marks } = tried;
        self.open.watch(made_for);
        let packets: Vec<PacketRef> = marks.iter().map(|mark| self.packet(mark, &pair, &exchange)).collect();
        let at = At::exactly(Moment(exchange.answered_ns.unwrap_or(exchange.begun_ns)));
        let attempt = WireAttempt {
            id: WireId(exchange.id),
            local: client.socket(),
            upstream: server.socket(),
            packets,
            seen_from_start: from_start,
            request: exchange.request(),
            outcome: Outcome::Ok,
            status: exchange.status,
            requests_before: from_start.then_some(served),
            idle_us: None,
            started: Moment(exchange.begun_ns),
            ended: at,
            bytes_sent: exchange.sent,
            bytes_received: exchange.received,
            head: exchange.head,
            made_for: vec![WireId(made_for)],
            after: exchange.after.map(WireId),
        };
        self.findings.push_back(Finding::Event(at, Box::new(Body::Wire(Wire::Attempt(Box::new(attempt))))));
    }
}
