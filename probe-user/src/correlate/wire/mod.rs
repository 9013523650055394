//! Failures that are known from packets only: attempts that failed, and the answers of the requests they can have been made for.
//!
//! A request to nginx and its attempts are tied by what they ask for and by time, the attempt within the request; so the link is
//! inferred. Where an attempt can have been made for several requests, only what happened next can tell which: nginx answers at once
//! when its last attempt fails. Where that fits several too, none is chosen.

mod lines;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub(super) use self::lines::with_lines;
use super::{lines::split_request_line, requests::is_unasked};
use crate::model::{
    attempt::{Attempt, Joined, Link, Outcome},
    case::{CaseKind, Origin, Request},
    event::Event,
    flow::{Flow, FlowId},
    net::Address,
    packet::{PacketEvent, PacketRef},
    time::{At, Moment},
    wire::{Wire, WireAnswer, WireAttempt, WireId, WireSide},
};

/// nginx answers this soon after its last attempt has failed. Captures on two interfaces of a busy host differ by less.
const AT_ONCE_NS: u64 = 100_000_000;
/// An answer waits this long for attempts and other answers.
const ANSWER_WAIT_NS: u64 = 150_000_000;
/// With nginx's log at hand its line comes first; it knows the second only, and is waited for.
const LOG_WAIT_NS: u64 = 2_500_000_000;
/// An attempt of which no request is known waits this long for its repetition.
const LONE_WAIT_NS: u64 = 1_000_000_000;
/// An attempt waits this long for the answer of a request: nginx's own timers are 60 s by default, and several attempts add up.
const REQUEST_WAIT_NS: u64 = 300_000_000_000;
/// What is remembered of each kind; what is too much is told without its partner.
const MOST: usize = 16_384;
/// Packets that wait for their attempt.
const MOST_PACKETS: usize = 65_536;

/// An attempt, and what happened to it here.
#[derive(Clone, Debug)]
struct Held {
    event: Event,
    attempt: WireAttempt,
    flow: Flow,
    /// It is part of a case.
    told: bool,
    due: Moment,
}

/// An answer, and what happened to it here.
#[derive(Clone, Debug)]
struct Answered {
    event: Event,
    answer: WireAnswer,
    /// It is part of a case, or of none.
    told: bool,
}

/// Everything that is waiting.
#[derive(Debug, Default)]
pub(super) struct Wires {
    on: bool,
    /// nginx's error log is read too.
    pub(super) with_log: bool,
    packets: BTreeMap<PacketRef, Event>,
    attempts: BTreeMap<WireId, Held>,
    answers: BTreeMap<WireId, Answered>,
    order: VecDeque<(Moment, WireId)>,
    dues: BTreeSet<(Moment, WireId, bool)>,
    ended: bool,
}

/// What is to become a case.
#[derive(Clone, Debug)]
pub struct WireGroup {
    /// Incident or near miss.
    pub kind: CaseKind,
    /// Who made the status.
    pub origin: Origin,
    /// The status the client saw.
    pub status: Option<u16>,
    /// When it was decided.
    pub at: At,
    /// The event that shows it.
    pub decided_by: Event,
    /// The request.
    pub request: Request,
    /// The attempts in order.
    pub attempts: Vec<Attempt>,
}

impl Wires {
    /// Whether packets come from here.
    pub(super) const fn is_on(&self) -> bool {
        self.on
    }

    /// A packet of an attempt that follows.
    pub(super) fn packet(&mut self, event: &Event, packet: &PacketEvent) {
        if self.packets.len() >= MOST_PACKETS {
            self.packets.pop_first();
        }
        self.packets.insert(packet.reference, event.clone());
    }

    /// Takes what the wire shows.
    pub(super) fn handle(&mut self, event: &Event, wire: &Wire) {
        match wire {
            Wire::Begins => self.on = true,
            Wire::Attempt(attempt) => self.attempt(event, attempt),
            Wire::Answer(answer) => {
                let wait = if self.with_log { LOG_WAIT_NS } else { ANSWER_WAIT_NS };
                let due = event.at.latest.plus_ns(wait);
                if let Some(reference) = answer.packet {
                    self.packets.remove(&reference);
                }
                self.bound();
                self.dues.insert((due, answer.id, false));
                self.order.push_back((due, answer.id));
                let held = Answered { event: event.clone(), answer: (**answer).clone(), told: false };
                self.answers.insert(answer.id, held);
            }
        }
    }

    fn attempt(&mut self, event: &Event, attempt: &WireAttempt) {
        let mut events: Vec<Event> = attempt.packets.iter().filter_map(|name| self.packets.remove(name)).collect();
        events.sort_by_key(|event| (event.at.earliest, event.id));
        let flow = Flow {
            id: FlowId(attempt.id.0),
            local: Some(attempt.local),
            upstream: attempt.upstream,
            worker: None,
            accepted_by: None,
            seen_from_start: attempt.seen_from_start,
            events: events.into(),
            forgotten: 0,
            led: None,
        };
        let wait = match (attempt.made_for.is_empty(), self.with_log) {
            (false, _) => REQUEST_WAIT_NS,
            (true, true) => LOG_WAIT_NS,
            (true, false) => LONE_WAIT_NS,
        };
        let due = event.at.latest.plus_ns(wait);
        self.bound();
        self.dues.insert((due, attempt.id, true));
        let held = Held { event: event.clone(), attempt: attempt.clone(), flow, told: false, due };
        self.attempts.insert(attempt.id, held);
    }

    /// Too much waits: the oldest is due now.
    fn bound(&mut self) {
        if self.dues.len() >= MOST
            && let Some((_, id, attempt)) = self.dues.pop_first()
        {
            self.dues.insert((Moment(0), id, attempt));
        }
    }

    /// When something has waited long enough.
    pub(super) fn next_due(&self) -> Option<Moment> {
        self.dues.first().map(|(due, ..)| *due)
    }

    /// No more will come: nothing need wait.
    pub(super) const fn hurry(&mut self) {
        self.ended = true;
    }

    /// The next group that is due.
    pub(super) fn poll(&mut self, now: Moment, statuses: &[u16]) -> Option<WireGroup> {
        loop {
            let (due, id, is_attempt) = self.dues.first().copied()?;
            if due > now && !self.ended {
                self.forget(now);
                return None;
            }
            // At the end answers come before attempts: an attempt that belongs to one is not alone.
            let first = if self.ended && is_attempt { self.dues.iter().find(|(.., attempt)| !attempt) } else { None };
            let entry = first.copied().unwrap_or((due, id, is_attempt));
            self.dues.remove(&entry);
            let group = if entry.2 { self.alone(entry.1) } else { self.answered(entry.1, statuses) };
            if group.is_some() {
                return group;
            }
        }
    }

    /// Answers are remembered a little longer than their turn, for attempts that can belong to several.
    fn forget(&mut self, now: Moment) {
        while let Some((due, id)) = self.order.front().copied() {
            if now.since_ns(due) < REQUEST_WAIT_NS && self.order.len() < MOST {
                break;
            }
            self.order.pop_front();
            self.answers.remove(&id);
        }
        let due: Vec<WireId> =
            self.attempts.values().filter(|held| held.due < now && held.told).map(|h| h.attempt.id).collect();
        for id in due {
            self.attempts.remove(&id);
        }
    }

    /// Of the requests that an attempt can have been made for, those that were answered as its failure would have made nginx answer.
    fn answered_by_its_failure(&self, held: &Held, statuses: &[u16]) -> Vec<WireId> {
        let made = |id: &&WireId| {
            self.answers.get(id).is_some_and(|answered| {
                let failure = answered.answer.status.is_some_and(|status| statuses.contains(&status));
                let ended = held.attempt.ended;
                let at = answered.event.at;
                let soon = At::between(ended.earliest, ended.latest.plus_ns(AT_ONCE_NS));
                failure && at.overlaps(&At::between(soon.earliest.minus_ns(2_000_000), soon.latest))
            })
        };
        held.attempt.made_for.iter().filter(made).copied().collect()
    }

    fn answered(&mut self, id: WireId, statuses: &[u16]) -> Option<WireGroup> {
        let answered = self.answers.get(&id).filter(|answered| !answered.told)?.clone();
        let Answered { event, answer, .. } = answered;
        let mut own: Vec<&Held> = Vec::new();
        let mut shared: Vec<&Held> = Vec::new();
        for held in self.attempts.values() {
            if !held.attempt.made_for.contains(&id) || held.attempt.ended.earliest > event.at.latest.plus_ns(2_000_000)
            {
                continue;
            }
            let candidates = self.answered_by_its_failure(held, statuses);
            match (held.attempt.made_for.as_slice(), candidates.as_slice()) {
                ([_], _) => own.push(held),
                (_, [only]) if *only == id => own.push(held),
                (_, several) if several.contains(&id) => shared.push(held),
                _ => {}
            }
        }
        own.sort_by_key(|held| (held.attempt.started, held.attempt.id));
        shared.sort_by_key(|held| (held.attempt.started, held.attempt.id));
        let failure = answer.status.is_some_and(|status| statuses.contains(&status));
        let mut attempts: Vec<Attempt> = own.iter().map(|held| made(held)).collect();
        if failure && !attempts.iter().any(|attempt| attempt.outcome != Outcome::Ok) {
            attempts.extend(one_of(&shared));
        }
        // A change of mind is a failure only if nginx answered one; then it was about what had come, if something had.
        attempts.retain(|attempt| failure || attempt.outcome != Outcome::Unknown);
        for attempt in attempts.iter_mut().filter(|attempt| attempt.outcome == Outcome::Unknown) {
            if answer.status != Some(504) && attempt.bytes_received.is_some_and(|bytes| bytes > 0) {
                attempt.outcome = Outcome::BadResponse;
            }
        }
        // A 504 that no upstream sent is a timer's, whatever had come before it fired (`ngx_http_upstream_next()`, 1.22.1).
        if let (Some(504), Some(last)) = (answer.status, attempts.last_mut())
            && matches!(last.outcome, Outcome::Unknown | Outcome::BadResponse)
        {
            last.outcome = Outcome::TimeoutRead;
        }
        // It answered, and nginx did not pass that on.
        if let (Some(502), Some(last)) = (answer.status, attempts.last_mut())
            && last.outcome == Outcome::Ok
            && last.status.is_some_and(|status| status != 502)
        {
            last.outcome = Outcome::BadResponse;
        }
        let names: Vec<WireId> = own.iter().map(|held| held.attempt.id).collect();
        let shared_names: Vec<WireId> =
            if failure { shared.iter().map(|held| held.attempt.id).collect() } else { Vec::new() };
        let failed = attempts.iter().any(|attempt| attempt.outcome != Outcome::Ok);
        let passed_on =
            failure && attempts.last().is_some_and(|a| a.outcome == Outcome::Ok && a.status == answer.status);
        let answered_well = attempts.last().is_some_and(|last| last.outcome == Outcome::Ok);
        if failed && !answered_well && answer.status.is_some_and(|status| is_unasked(status, statuses)) {
            for name in names {
                self.attempts.remove(&name);
            }
            return None;
        }
        let (kind, origin) = match (failure, passed_on, failed) {
            (true, true, _) if answer.status == Some(502) => (CaseKind::Incident, Origin::Upstream),
            (true, true, true) => (CaseKind::NearMiss, Origin::Upstream),
            (false, _, true) if answer.status.is_some() => (CaseKind::NearMiss, Origin::Nginx),
            // What does not begin like HTTP/1 nginx relays as it is: the client has no status, and has what came.
            (false, _, true) if attempts.last().is_some_and(|last| last.outcome == Outcome::BadResponse) => {
                (CaseKind::NearMiss, Origin::Nginx)
            }
            (true, false, true) | (false, _, true) => (CaseKind::Incident, Origin::Nginx),
            // Of 500 and 503 nobody but nginx can say who made them.
            (true, false, false) if matches!(answer.status, Some(502 | 504)) && answer.side != WireSide::Upstream => {
                (CaseKind::Incident, Origin::Unknown)
            }
            _ => return None,
        };
        for name in names {
            self.attempts.remove(&name);
        }
        for name in shared_names {
            if let Some(held) = self.attempts.get_mut(&name) {
                held.told = true;
            }
        }
        if let Some(answered) = self.answers.get_mut(&id) {
            answered.told = true;
        }
        let mut request = Request { client: Some(answer.client), ..Request::default() };
        if let Some(asked) = &answer.request {
            split_request_line(&asked.line, &mut request);
            request.host.clone_from(&asked.host);
        }
        Some(WireGroup { kind, origin, status: answer.status, at: event.at, decided_by: event, request, attempts })
    }

    /// An attempt whose request nobody saw answered, with those that repeated it.
    fn alone(&mut self, id: WireId) -> Option<WireGroup> {
        let first = self.attempts.get(&id).filter(|held| !held.told)?.clone();
        if first.attempt.outcome == Outcome::Unknown {
            self.attempts.remove(&id);
            return None;
        }
        if first.attempt.after.is_some_and(|before| self.attempts.get(&before).is_some_and(|held| !held.told)) {
            // The one it repeats tells of it; that is not due yet where this one failed sooner.
            let before = first.attempt.after?;
            return self.alone(before);
        }
        let mut chain = vec![first];
        while let Some(last) = chain.last().map(|held| held.attempt.id)
            && let Some(next) = self.attempts.values().find(|held| held.attempt.after == Some(last) && !held.told)
            && chain.len() < 16
        {
            chain.push(next.clone());
        }
        for held in &chain {
            self.attempts.remove(&held.attempt.id);
        }
        let last = chain.last()?;
        let (attempt, event) = (&last.attempt, &last.event);
        let failed = chain.iter().any(|held| held.attempt.outcome != Outcome::Ok);
        let answered_well = attempt.outcome == Outcome::Ok;
        // The header was passed on: the client has its status, and not the whole body.
        let cut_short = !answered_well && attempt.status.is_some();
        let of_requests = |held: &Held| {
            let known: Vec<Option<u16>> =
                held.attempt.made_for.iter().filter_map(|id| self.answers.get(id)).map(|a| a.answer.status).collect();
            !known.is_empty() && known.iter().all(Option::is_some)
        };
        let masked = of_requests(last);
        let (kind, origin, status) = match (answered_well, attempt.status) {
            (true, Some(502)) => (CaseKind::Incident, Origin::Upstream, Some(502)),
            (true, status) if failed => (CaseKind::NearMiss, Origin::Nginx, status),
            (true, _) => return None,
            (false, status) if cut_short => (CaseKind::NearMiss, Origin::Upstream, status),
            (false, _) if masked => (CaseKind::NearMiss, Origin::Nginx, None),
            (false, _) => (CaseKind::Incident, Origin::Unknown, None),
        };
        let mut request = Request::default();
        if let Some(asked) = &attempt.request {
            split_request_line(&asked.line, &mut request);
            request.host.clone_from(&asked.host);
        }
        let (at, decided_by) = (event.at, event.clone());
        let attempts = chain.iter().map(made).collect();
        Some(WireGroup { kind, origin, status, at, decided_by, request, attempts })
    }
}

/// The attempt as a case has it.
fn made(held: &Held) -> Attempt {
    let attempt = &held.attempt;
    Attempt {
        upstream: Some(Address::Ip(attempt.upstream)),
        peer_name: Some(attempt.upstream.to_string()),
        flow: Joined::One(held.flow.clone()),
        socket_at_failure: None,
        complaint: None,
        outcome: attempt.outcome,
        errno: None,
        status: attempt.status,
        reused: attempt.requests_before.map(|before| before > 0),
        requests_before: attempt.requests_before,
        idle_us: attempt.idle_us,
        started: Some(attempt.started),
        duration_us: attempt.ended.is_exact().then(|| attempt.ended.latest.since_ns(attempt.started) / 1_000),
        bytes_sent: Some(attempt.bytes_sent),
        bytes_received: attempt.bytes_received,
        head: attempt.head,
        syscalls: Vec::new(),
        link: Link::Inferred,
    }
}

/// One of several attempts, of which nobody can say which: what they have in common.
fn one_of(several: &[&Held]) -> Option<Attempt> {
    let (first, rest) = several.split_first()?;
    let mut attempt = made(first);
    if rest.is_empty() {
        return Some(attempt);
    }
    let all: Vec<Attempt> = several.iter().map(|held| made(held)).collect();
    let same = |of: fn(&Attempt) -> Option<u64>| {
        let value = all.first().and_then(of);
        value.filter(|_| all.iter().all(|other| of(other) == value))
    };
    (attempt.requests_before, attempt.idle_us) = (same(|a| a.requests_before), same(|a| a.idle_us));
    (attempt.bytes_sent, attempt.bytes_received) = (same(|a| a.bytes_sent), same(|a| a.bytes_received));
    (attempt.started, attempt.duration_us) = (None, None);
    if !all.iter().all(|other| other.reused == attempt.reused) {
        attempt.reused = None;
    }
    if !all.iter().all(|other| other.outcome == attempt.outcome) {
        attempt.outcome = Outcome::Unknown;
    }
    if !all.iter().all(|other| other.upstream == attempt.upstream) {
        (attempt.upstream, attempt.peer_name) = (None, None);
    }
    attempt.flow = Joined::Several(several.iter().map(|held| held.flow.clone()).collect());
    Some(attempt)
}
