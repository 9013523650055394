//! How a connection's end looks to nginx: which of its attempts failed by it.

use super::{
    fate::{Fate, State},
    segment::Segment,
    talk::{Speaks, Talk},
};
use crate::model::attempt::Outcome;

/// nginx ends an attempt on which nothing has happened for so long because of a timer, sooner because it has changed its mind (the
/// client left, the answer could not be taken). Its timers are set in seconds, but for those who know what they do.
const TIMER_NS: u64 = 900_000_000;

/// nginx drops this soon what it cannot take; a busy one has more to do first.
const AT_ONCE_NS: u64 = 20_000_000;

/// What a connection on which something else than HTTP/1 was spoken came to by its first FIN or RST, should nginx then answer with a
/// failure of its own.
pub(super) fn foreign(before: &Fate, talk: &Talk, segment: &Segment, by_client: bool) -> Outcome {
    let no_tls = match (&talk.foreign, talk.is_http) {
        (_, true) => true,
        // Anything but a handshake: an alert, or no TLS at all.
        (Some((_, first)), _) => !matches!(first.as_slice(), [22, 3, ..]),
        // nginx gave up before a byte came.
        (None, _) => by_client && before.responder.bytes == 0,
    };
    match (talk.speaks, by_client, segment.flags.rst()) {
        (Some(Speaks::Tls), ..) if no_tls => Outcome::TlsFailed,
        (_, true, _) => Outcome::Unknown,
        (_, false, true) => Outcome::Reset,
        (_, false, false) => Outcome::Closed,
    }
}

/// What the exchange under way has come to by this FIN or RST; `before`: how the connection stood until then.
pub(super) fn outcome(before: &Fate, talk: &Talk, segment: &Segment, by_client: bool) -> Option<Outcome> {
    let reset = segment.flags.rst();
    let by_server = !by_client;
    if before.originator.state == State::SynSent && before.responder.state == State::Inactive {
        return (by_server && reset).then_some(Outcome::Refused);
    }
    let silent_server = before.responder.bytes == 0 && before.originator.bytes > 0;
    // Whoever asked has not gone away before.
    let waits = !before.originator.has_ended();
    let foreign = !talk.is_http && talk.exchanges.is_empty() && waits;
    let exchange = talk.outstanding();
    if by_server {
        let broken = exchange.is_some() || talk.cut_short() || (foreign && silent_server && before.responder.is_up());
        if let Some(exchange) = exchange.filter(|exchange| exchange.foreign.is_some() && !reset) {
            // What nginx asked for in HTTP was answered in something else. Between others that ends as their protocol wants.
            return (!exchange.outer.is_empty()).then_some(Outcome::BadResponse);
        }
        let ended = match (reset, talk.speaks) {
            (true, _) => Outcome::Reset,
            (false, Some(Speaks::Tls)) => Outcome::TlsFailed,
            (false, _) => Outcome::Closed,
        };
        return broken.then_some(ended);
    }
    if talk.cut_short() {
        // An answer whose head is whole, and whoever asked closes in the middle of its body.
        return Some(Outcome::Unknown);
    }
    let exchange = exchange?;
    if exchange.foreign.is_some() {
        return Some(Outcome::BadResponse);
    }
    if before.responder.state == State::Closed {
        // The server had closed before, and the request crossed it.
        return Some(Outcome::Closed);
    }
    if talk.in_answers_head() {
        // What nginx cannot take it drops as it reads it; its timer, set once for the whole head, ends it at any time after.
        let last = talk.last_answer_ns.unwrap_or(exchange.sent_ns);
        let since_answer_ns = segment.unix_ns.saturating_sub(last);
        if since_answer_ns < AT_ONCE_NS {
            return Some(Outcome::BadResponse);
        }
        let timed_out = segment.unix_ns.saturating_sub(exchange.sent_ns) >= TIMER_NS;
        return Some(if timed_out { Outcome::TimeoutRead } else { Outcome::Unknown });
    }
    let last = exchange.sent_ns.max(exchange.first_answer_ns.unwrap_or(0));
    let silent_ns = segment.unix_ns.saturating_sub(last);
    if silent_ns < TIMER_NS {
        return Some(Outcome::Unknown);
    }
    let untaken = super::fate::distance(before.originator.next, before.originator.acknowledged) > 0;
    Some(if untaken { Outcome::TimeoutSend } else { Outcome::TimeoutRead })
}
