//! A storm: the same failure thousands of times a second. Beyond a number of cases a second ([`Limits::explained`]) those that are like one
//! of them in everything that is known before a case is put together are counted, and not put together. Whatever differs is explained
//! however many there are: a rare cause does not hide behind a frequent one.
//!
//! [`Limits::explained`]: super::limits::Limits::explained

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
};

use super::{Correlator, Decided, build, limits::SECOND_NS, lines};
use crate::model::{
    case::{CaseId, CaseKind, Folded, Origin},
    complaint::{Complaint, Message, Phase},
    event::Body,
    flow::{Flow, Side},
    net::Errno,
    nginx::{NginxAttempt, NginxLog},
    process::Pid,
    socket::{Socket, TcpState},
    time::Moment,
};

/// So often in a second the end of a process makes everything worth explaining anew; servers that end with every request do not.
const RENEWALS: u32 = 64;

/// What two failures have in common if one need not be explained beside the other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Signature {
    worker: Pid,
    kind: CaseKind,
    origin: Origin,
    status: Option<u16>,
    subrequest: bool,
    special: bool,
    redirected: bool,
    upstream_begun: Option<bool>,
    said: Vec<Said>,
    tried: Vec<Tried>,
    /// What the access log says of the attempts, and of the cache.
    logged: Vec<(String, Option<u16>)>,
    cache_status: Option<String>,
    /// Processes that had ended or been told to.
    ends: u64,
    /// Something was being lost.
    losses: u64,
}

/// A complaint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Said {
    message: Message,
    phase: Phase,
    errno: Option<Errno>,
    peer: Option<String>,
    format: Option<String>,
    reused: Option<bool>,
    socket: Option<Seen>,
}

/// An entry of nginx's list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, and all of them are only compared")]
struct Tried {
    peer: Option<String>,
    status: Option<u16>,
    connected: bool,
    /// It was waited for this long: the power of two of milliseconds.
    waited: Option<u32>,
    accepted: bool,
    sent: bool,
    received: bool,
}

/// The connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    upstream: Option<SocketAddr>,
    state: TcpState,
    error: Option<Errno>,
    unread: bool,
    retransmitted: bool,
    flow: Option<Life>,
}

/// What was seen of its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, and all of them are only compared")]
struct Life {
    from_start: bool,
    accepted_by: Option<Pid>,
    resets: bool,
    fin: bool,
    drops: bool,
}

/// What was explained in the current second, and what was like it.
#[derive(Debug, Default)]
pub(super) struct Folding {
    second: u64,
    explained: u64,
    known: BTreeMap<Signature, (CaseId, Option<Folded>)>,
    /// [`Signature::ends`] as far as it still makes a difference.
    ends: u64,
    renewals: u32,
    told: VecDeque<Folded>,
}

impl Folding {
    /// Time has come this far: what was counted before can be told.
    pub(super) fn tell(&mut self, now: Moment) {
        if now.ns() / SECOND_NS > self.second {
            self.second = now.ns() / SECOND_NS;
            (self.explained, self.renewals) = (0, 0);
            let mut folded: Vec<Folded> =
                std::mem::take(&mut self.known).into_values().filter_map(|(_, folded)| folded).collect();
            folded.sort_by(|one, other| (one.from, &one.like).cmp(&(other.from, &other.like)));
            self.told.extend(folded);
        }
    }

    /// The next that is told.
    pub(super) fn poll(&mut self) -> Option<Folded> {
        self.told.pop_front()
    }

    fn ends(&mut self, ends: u64) -> u64 {
        if ends != self.ends && self.renewals < RENEWALS {
            self.ends = ends;
            self.renewals += 1;
        }
        self.ends
    }
}

impl Correlator {
    /// Numbers a failure, and counts it instead of explaining it where there were enough like it.
    pub(super) fn folds(&mut self, decided: &Decided) -> bool {
        let told_before = decided.at.latest < self.told_before;
        self.last_case += u64::from(!told_before);
        // What is known from packets only is judged at leisure.
        if self.settings.limits.explained == u64::MAX || decided.from_wire.is_some() {
            return false;
        }
        self.folding.tell(decided.close_at);
        let signature = self.signature(decided);
        let enough = self.folding.explained >= self.settings.limits.explained;
        let name = || build::name(self.settings.clock, decided.at.latest, self.last_case);
        let Some((like, folded)) = self.folding.known.get_mut(&signature).filter(|_| enough) else {
            self.folding.explained += 1;
            self.folding.known.entry(signature).or_insert_with(|| (name(), None));
            return false;
        };
        if !told_before {
            let at = decided.at.latest;
            let folded = folded.get_or_insert_with(|| Folded {
                kind: decided.kind,
                like: like.clone(),
                count: 0,
                from: at,
                to: at,
            });
            (folded.count, folded.from, folded.to) = (folded.count + 1, folded.from.min(at), folded.to.max(at));
        }
        true
    }

    fn signature(&mut self, decided: &Decided) -> Signature {
        let ends = self.folding.ends(self.notable.ends());
        let (request, group) = (&decided.request, decided.from_lines.as_ref());
        let said = match group {
            Some(group) => group.lines.iter().map(Said::of_line).collect(),
            None => request.complaints.iter().map(|(event, log, c)| self.log_said(log, c, event.at.latest)).collect(),
        };
        Signature {
            worker: request.key.worker,
            kind: decided.kind,
            origin: decided.origin,
            status: decided.status,
            subrequest: request.subrequest,
            special: request.special.is_some(),
            redirected: request.redirected,
            upstream_begun: decided.statuses.iter().find_map(|status| status.upstream_begun),
            said,
            tried: request.attempts.iter().map(Tried::of).collect(),
            logged: group.map(|group| group.logged.clone()).unwrap_or_default(),
            cache_status: group.and_then(lines::LineGroup::cache_status),
            ends,
            losses: self.losses_told,
        }
    }

    fn log_said(&self, log: &NginxLog, complaint: &Complaint, at: Moment) -> Said {
        let connection = log.upstream.as_ref();
        Said {
            peer: log.peer.clone(),
            format: Some(log.format.clone()),
            reused: connection.and_then(|connection| connection.requests).map(|requests| requests > 1),
            socket: connection.and_then(|connection| connection.socket.as_ref()).map(|socket| self.seen(socket, at)),
            ..Said::of(complaint)
        }
    }

    fn seen(&self, socket: &Socket, at: Moment) -> Seen {
        let tcp = socket.tcp.as_ref();
        let id =
            socket.local.zip(socket.remote).and_then(|(local, remote)| self.flows.at(local, remote, socket.netns, at));
        Seen {
            upstream: socket.remote,
            state: socket.state,
            error: socket.error,
            unread: tcp.is_some_and(|tcp| tcp.unread() > 1),
            retransmitted: tcp.is_some_and(|tcp| tcp.total_retransmits > 0),
            flow: id.and_then(|id| self.flows.get(id)).map(|flow| Life::of(&flow)),
        }
    }
}

impl Said {
    fn of_line(line: &lines::Line) -> Self {
        Self { peer: lines::peer_of(&line.line), ..Self::of(&line.complaint) }
    }

    fn of(complaint: &Complaint) -> Self {
        let Complaint { message, phase, errno, .. } = complaint;
        Self { message: *message, phase: *phase, errno: *errno, peer: None, format: None, reused: None, socket: None }
    }
}

impl Tried {
    fn of(attempt: &NginxAttempt) -> Self {
        Self {
            peer: attempt.peer.clone(),
            status: attempt.status,
            connected: attempt.connect_ms.is_some(),
            waited: attempt.response_ms.map(|ms| u64::BITS - ms.leading_zeros()),
            accepted: attempt.header_ms.is_some(),
            sent: attempt.bytes_sent > 0,
            received: attempt.bytes_received > 0,
        }
    }
}

impl Life {
    fn of(flow: &Flow) -> Self {
        Self {
            from_start: flow.seen_from_start,
            accepted_by: flow.accepted_by.as_ref().map(|(pid, _)| *pid),
            resets: flow.resets_received().next().is_some(),
            fin: flow.entered(Side::Nginx, TcpState::CloseWait).next().is_some(),
            drops: flow.events.iter().any(|event| matches!(event.body, Body::Drop(_))),
        }
    }
}
