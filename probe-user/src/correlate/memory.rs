//! What the correlator still needs of the past: what a recorder must keep so that a recording can be understood from its middle.

use std::{collections::BTreeSet, net::SocketAddr};

use super::{Correlator, crowded::Forgotten};
use crate::model::{
    case::{CaseId, EarlierFailure},
    event::{Body, EventId},
    process::Pid,
    socket::Syscall,
    time::{At, Moment},
};

/// A log line and the complaint it belongs to are at most so far apart (see `written`).
const LINE_WITHIN_NS: u64 = 1_000_000_000;
/// `ngx_get_connection` and the `connect()` that follows it (see `attempts`).
const CONNECTED_WITHIN_NS: u64 = 50_000_000;

/// What was asked for when a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedFor {
    /// The Host header.
    pub host: Option<String>,
    /// The URI.
    pub uri: String,
    /// The status the client saw.
    pub status: Option<u16>,
    /// The case.
    pub case: CaseId,
    /// When.
    pub at: Moment,
}

/// What still matters for cases to come.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// Events that may become part of a case, in the order of the stream.
    pub events: Vec<EventId>,
    /// Addresses known to be upstreams.
    pub upstreams: Vec<SocketAddr>,
    /// Workers that were heard from inside.
    pub speaking: Vec<Pid>,
    /// Failures that blackouts may be blamed on.
    pub earlier: Vec<EarlierFailure>,
    /// Requests that failed: the same may be answered from nginx's cache later.
    pub asked: Vec<AskedFor>,
    /// What could not be remembered.
    pub forgotten: Vec<Forgotten>,
    /// The earliest decision that still waits for its late evidence.
    pub undecided_since: Option<Moment>,
}

/// Where a recording takes up a run that had begun before it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resume {
    /// Cases before it.
    pub cases: u64,
    /// What was decided before this moment is one of those.
    pub from: Moment,
    /// [`Memory::upstreams`].
    pub upstreams: Vec<SocketAddr>,
    /// [`Memory::speaking`].
    pub speaking: Vec<Pid>,
    /// [`Memory::earlier`].
    pub earlier: Vec<EarlierFailure>,
    /// [`Memory::asked`].
    pub asked: Vec<AskedFor>,
    /// [`Memory::forgotten`].
    pub forgotten: Vec<Forgotten>,
}

impl Correlator {
    /// Takes up where another run stood.
    pub fn resume(&mut self, resume: Resume) {
        self.last_case = resume.cases;
        self.told_before = resume.from;
        self.speaking.extend(resume.speaking);
        self.failures.extend(resume.earlier);
        self.answered.resume(resume.asked);
        self.notable.resume(&resume.forgotten);
        for upstream in resume.upstreams {
            self.flows.add_upstream(upstream);
        }
    }

    /// What still matters.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let mut events: Vec<EventId> = Vec::new();
        let mut connects: BTreeSet<(Pid, i32, Moment)> = BTreeSet::new();
        self.flows.for_each_event(|event| {
            events.push(event.id);
            if let Body::Syscall(call) = &event.body
                && let Syscall::Connect { fd, .. } = call.call
            {
                connects.insert((call.pid, fd, event.at.latest));
            }
        });
        events.extend(self.flows.told_by());
        events.extend(self.notable.events().map(|event| event.id));
        events.extend(self.host.events().chain(self.translations.events()));
        events.extend(self.unix.events().chain(self.stops.events()));
        for (key, made) in self.connections.all() {
            let following =
                (key.worker, made.fd, made.at)..=(key.worker, made.fd, made.at.plus_ns(CONNECTED_WITHIN_NS));
            if connects.range(following).next().is_some() {
                events.push(made.told_in);
            }
        }
        let mut complained = Vec::new();
        for request in self.requests.open().chain(self.decided.iter().map(|decided| &decided.request)) {
            events.extend(request.heard.iter().copied());
            complained.extend(request.complaints.iter().map(|(event, ..)| {
                At::between(event.at.earliest.minus_ns(LINE_WITHIN_NS), event.at.latest.plus_ns(LINE_WITHIN_NS))
            }));
        }
        events.extend(self.written.within(&complained));
        events.sort_unstable();
        events.dedup();
        Memory {
            events,
            upstreams: self.flows.upstreams().collect(),
            speaking: self.speaking.iter().copied().collect(),
            earlier: self.failures.iter().cloned().collect(),
            asked: self.answered.all().collect(),
            forgotten: self.notable.forgotten().collect(),
            undecided_since: self.decided.iter().map(|decided| decided.at.latest).min(),
        }
    }
}
