//! A case as a rule reads it: questions about the attempt under judgement, each answered with the events the answer rests on.

mod ending;
mod foreign;
mod handshake;
mod host;
mod led;
mod local;
mod place;
mod process;
mod request;
mod still;
mod unaccepted;

use std::net::SocketAddr;

pub(super) use self::{
    ending::{Broken, Reset},
    host::{Locality, named},
    place::Timer,
    process::{Death, FailedAccept, Survival, is_fault},
    request::LostAnswer,
    still::{Sent, Standstill, Still},
};
use crate::model::{
    attempt::{Attempt, Link, Outcome},
    case::{Case, CaseKind},
    complaint::{Complaint, Message, Phase},
    coverage::Sensor,
    event::{Event, EventId, Source},
    evidence::{Evidence, Fact, Weight},
    flow::{Flow, Side},
    host::UpstreamGroup,
    net::{Address, Errno},
    socket::{Socket, TcpCounters, TcpState},
    time::Moment,
    verdict::Need,
};

/// Clocks of sources differ by less than this.
const SKEW_NS: u64 = 2_000_000;

/// What a sentence says where a value is not known.
const UNKNOWN: &str = "an address that was not seen";

/// A case, and the attempt the verdict is about.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    /// The case.
    pub(super) case: &'a Case,
    /// The attempt under judgement; `None`: nothing was tried.
    pub(super) attempt: Option<&'a Attempt>,
    /// The verdict is about the request as a whole: what nginx complained of beside the attempts counts.
    pub(super) whole: bool,
}

/// Evidence in one line.
pub(super) fn evidence(fact: Fact, events: &[EventId], weight: Weight) -> Evidence {
    Evidence { fact, events: events.to_vec(), weight }
}

/// A need in one line.
pub(super) fn need(sensor: Sensor, what: &str) -> Need {
    Need { sensor: Some(sensor), what: what.to_owned() }
}

impl<'a> Reading<'a> {
    /// Reads what made the status: the last attempt; of a near miss the last that failed; nothing where nginx found no server to try.
    pub(super) fn of(case: &'a Case) -> Self {
        let attempt = match case.kind {
            CaseKind::Incident => case.attempts.last(),
            CaseKind::NearMiss => {
                let failed = |attempt: &&Attempt| attempt.outcome != Outcome::Ok;
                let answered_502 = |attempt: &&Attempt| attempt.status == Some(502);
                let mut latest_first = case.attempts.iter().rev();
                latest_first.clone().find(failed).or_else(|| latest_first.find(answered_502)).or(case.attempts.last())
            }
        };
        let said = attempt.and_then(|attempt| attempt.complaint.as_ref()).map(|(event, _)| event.id);
        let later_blackout = case.complaints.iter().any(|(event, complaint)| {
            complaint.message == Message::NoLiveUpstreams && said.is_none_or(|id| id < event.id)
        });
        let answered = attempt.is_some_and(|attempt| attempt.outcome == Outcome::Ok);
        Self { case, attempt: attempt.filter(|_| !later_blackout || answered), whole: true }
    }

    /// Reads one attempt for itself.
    pub(super) const fn of_attempt(case: &'a Case, attempt: &'a Attempt) -> Self {
        Self { case, attempt: Some(attempt), whole: false }
    }

    /// Its connection, where there is exactly one candidate.
    pub(super) fn flow(&self) -> Option<&'a Flow> {
        let attempt = self.attempt?;
        // A connection for which there is no local port, or no such address, sends nothing: what has packets is another's.
        let flow = attempt.flow.one().filter(|_| attempt.errno != Some(Errno::EADDRNOTAVAIL))?;
        // One that began after nginx complained is a later one with the same addresses.
        let failed = self.failed_at().plus_ns(SKEW_NS);
        flow.events.front().is_none_or(|first| first.at.earliest <= failed).then_some(flow)
    }

    /// The upstream's TCP address.
    pub(super) fn upstream(&self) -> Option<SocketAddr> {
        let attempt = self.attempt?;
        match &attempt.upstream {
            Some(Address::Ip(address)) => Some(*address),
            Some(Address::Unix(_)) => None,
            None => attempt.flow.one().map(|flow| flow.upstream),
        }
    }

    /// The upstream's unix socket.
    pub(super) fn unix_path(&self) -> Option<&'a str> {
        match &self.attempt?.upstream {
            Some(Address::Unix(path)) => Some(path),
            _ => None,
        }
    }

    /// The upstream as a sentence names it: the server that the connection was led to, where it was.
    pub(super) fn upstream_name(&self) -> String {
        if let Some(server) = self.server().filter(|server| Some(*server) != self.upstream()) {
            return server.to_string();
        }
        match self.attempt.and_then(|attempt| attempt.upstream.as_ref()) {
            Some(address) => address.to_string(),
            None => self
                .upstream()
                .map(|address| address.to_string())
                .or_else(|| self.attempt.and_then(|attempt| attempt.peer_name.clone()))
                .unwrap_or_else(|| UNKNOWN.to_owned()),
        }
    }

    /// What nginx complained of about this attempt; when nothing was tried, of the request.
    pub(super) fn complaint(&self) -> Option<(&'a Event, &'a Complaint)> {
        match self.attempt {
            Some(attempt) => attempt.complaint.as_ref().map(|(event, complaint)| (event, complaint)),
            None => None,
        }
    }

    /// The first complaint that means this, of the attempt or of the request.
    pub(super) fn complained(&self, message: Message) -> Option<(&'a Event, &'a Complaint)> {
        self.complaint()
            .into_iter()
            .chain(self.case.complaints.iter().filter(|_| self.whole).map(|(event, complaint)| (event, complaint)))
            .find(|(_, complaint)| complaint.message == message)
    }

    /// The attempt's complaint as evidence.
    pub(super) fn complaint_evidence(&self) -> Option<Evidence> {
        self.complaint().map(|(event, complaint)| complaint_evidence(event, complaint))
    }

    /// Whether the attempt's complaint has one of these meanings.
    pub(super) fn complains_of(&self, messages: &[Message]) -> bool {
        self.complaint().is_some_and(|(_, complaint)| messages.contains(&complaint.message))
    }

    /// What nginx was doing when it complained.
    pub(super) fn phase(&self) -> Option<Phase> {
        self.complaint().map(|(_, complaint)| complaint.phase)
    }

    /// The errno of the attempt, from wherever it is known.
    pub(super) fn errno(&self) -> Option<Errno> {
        let attempt = self.attempt?;
        attempt
            .errno
            .or_else(|| attempt.complaint.as_ref().and_then(|(_, complaint)| complaint.errno))
            .or_else(|| attempt.socket_at_failure.as_ref().and_then(|socket| socket.error))
    }

    /// What became of the attempt.
    pub(super) fn outcome(&self) -> Outcome {
        self.attempt.map_or(Outcome::Unknown, |attempt| attempt.outcome)
    }

    /// When the attempt failed, at the latest.
    pub(super) fn failed_at(&self) -> Moment {
        self.complaint().map_or(self.case.decided.latest, |(event, _)| event.at.latest)
    }

    /// When the attempt began, where it is known to the microsecond: of a connection that was made for it.
    pub(super) fn began(&self) -> Option<Moment> {
        self.started().filter(|_| self.reused() == Some(false))
    }

    /// How much earlier than [`Reading::started`] the attempt may have begun. Of a kept connection it is nginx's own count of whole
    /// milliseconds between two readings of a clock that it renews once a turn of its event loop.
    pub(super) fn started_uncertain_ns(&self) -> u64 {
        if self.began().is_some() { 0 } else { 2_000_000 }
    }

    /// When the attempt began.
    pub(super) fn started(&self) -> Option<Moment> {
        self.attempt.and_then(|attempt| attempt.started)
    }

    /// The upstream's socket when nginx complained, and the event that shows it.
    pub(super) fn socket_at_failure(&self) -> Option<(&'a Socket, EventId)> {
        let attempt = self.attempt?;
        let socket = attempt.socket_at_failure.as_ref()?;
        let event = attempt.complaint.as_ref().map_or(self.case.decided_by, |(event, _)| event.id);
        Some((socket, event))
    }

    /// Its counters.
    pub(super) fn counters_at_failure(&self) -> Option<(&'a TcpCounters, EventId)> {
        let at_complaint = self.socket_at_failure().and_then(|(s, event)| s.tcp.as_ref().map(|tcp| (tcp, event)));
        if self.attempt.is_none_or(|attempt| attempt.link > Link::Inferred) {
            return at_complaint;
        }
        // Known from the log only, the last snapshot is one after nginx's own close, whose FIN takes a sequence number too. The change of
        // state that began that close came right after the failure, and before its FIN was counted.
        let closing = self.flow().and_then(|flow| {
            let states = [TcpState::FinWait1, TcpState::LastAck];
            states.iter().find_map(|state| {
                flow.entered(Side::Nginx, *state)
                    .find_map(|(event, e)| e.socket.tcp.as_ref().map(|tcp| (tcp, event.id)))
            })
        });
        closing.or(at_complaint)
    }

    /// Whether this sensor's silence is evidence.
    pub(super) fn sees(&self, sensor: Sensor) -> bool {
        self.case.coverage.silence_counts(sensor)
    }

    /// The events of the connection.
    pub(super) fn flow_events(&self) -> impl Iterator<Item = &'a Event> {
        self.flow().into_iter().flat_map(|flow| flow.events.iter())
    }

    /// The `upstream` block that holds the peer.
    pub(super) fn group(&self) -> Option<&'a UpstreamGroup> {
        let wanted = self.attempt?.upstream.as_ref()?;
        let groups = &self.case.configuration.as_ref()?.groups;
        groups.iter().find(|group| group.servers.iter().any(|server| server.addresses.contains(wanted)))
    }

    /// A timer's value, for a sentence in brackets: as configured where one value holds everywhere, else as it was seen to fire. A
    /// directive that is not set, or has different values in different places, is not guessed.
    pub(super) fn timeout_in_force(&self, name: &str) -> String {
        match (self.directive(name), self.attempt.and_then(|attempt| attempt.duration_us)) {
            (Some(value), _) => format!("now {value}"),
            (None, Some(us)) => format!("it ended this attempt after {}", duration(us)),
            (None, None) => "60s by default".to_owned(),
        }
    }
}

/// nginx's complaint as evidence: from a log line it is a word, from inside nginx a symptom that was seen.
pub(super) fn complaint_evidence(event: &Event, complaint: &Complaint) -> Evidence {
    let weight = if event.source == Source::Kernel { Weight::Symptom } else { Weight::Fits };
    evidence(Fact::Complained { text: complaint.text.clone(), errno: complaint.errno }, &[event.id], weight)
}

/// `5.0 s`, `120.0 ms`, `83 µs`: as long as it needs to be read at a glance.
pub(super) fn duration(us: u64) -> String {
    let (whole, unit, scale) = match us {
        0..=9_999 => return format!("{us} µs"),
        10_000..=999_999 => (us / 1_000, "ms", 1_000),
        _ => (us / 1_000_000, "s", 1_000_000),
    };
    format!("{whole}.{} {unit}", us % scale * 10 / scale)
}
