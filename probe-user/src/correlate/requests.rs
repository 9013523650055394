//! Requests with a failed attempt, from the first complaint to the status the client saw.

use std::collections::BTreeMap;

use super::limits::{Limits, MILLISECOND_NS, REQUEST_PATIENCE_NS, TURN_NS};
use crate::model::{
    case::{CaseKind, Origin},
    complaint::{Complaint, Message, Phase},
    event::{Event, EventId},
    nginx::{NginxAttempt, NginxLog, NginxStatus, RequestKey},
    process::Pid,
    time::Moment,
};

/// A request about which something bad was heard.
#[derive(Clone, Debug)]
pub struct OpenRequest {
    /// Its key (the main request's).
    pub key: RequestKey,
    /// When it was first heard of.
    pub since: Moment,
    /// `*N` and the number of the request on that connection: tells a reused pointer.
    pub identity: (Option<u64>, Option<u64>),
    /// What nginx complained of, in order.
    pub complaints: Vec<(Event, NginxLog, Complaint)>,
    /// nginx made an error response itself.
    pub special: Option<(Event, NginxStatus)>,
    /// nginx sent the request elsewhere afterwards.
    pub redirected: bool,
    /// nginx's own list of attempts, the last one heard.
    pub attempts: Vec<NginxAttempt>,
    /// Whose list that is: the main request's or a subrequest's.
    pub told_by: Option<RequestKey>,
    /// nginx's list could be read.
    pub attempts_known: bool,
    /// How many entries it has. More than are in `attempts`: the middle of a long list is not told, and records may be lost.
    pub attempts_total: u32,
    /// A complaint was about a subrequest.
    pub subrequest: bool,
    /// Descriptors that became upstream connections for it.
    pub connections: Vec<(Moment, i32)>,
    /// The `accept()` of each unix connection that nginx complained of, where it was seen.
    pub accepts: Vec<Event>,
    /// The events that said all this.
    pub heard: Vec<EventId>,
}

impl OpenRequest {
    /// One of which nginx said nothing.
    pub(super) fn of_nobody(since: Moment) -> Self {
        Self::new(RequestKey { worker: Pid(0), pointer: 0 }, since, (None, None))
    }

    /// Its first attempt did not begin before, as nginx measured its attempts; without its list that is not known.
    pub(super) fn began_after(&self, decided: Moment) -> Moment {
        let told = usize::try_from(self.attempts_total).is_ok_and(|total| total == self.attempts.len());
        if !self.attempts_known || !told {
            return Moment(0);
        }
        // Of the one that answers now only the header's time is known.
        let lasted = self.attempts.iter().map(|attempt| attempt.response_ms.or(attempt.header_ms)).sum::<Option<u64>>();
        let Some(lasted) = lasted else { return Moment(0) };
        // Before the first failure a name may have been looked up, after one too; nothing else comes between attempts.
        self.since.min(decided).minus_ns(lasted.saturating_mul(MILLISECOND_NS)).minus_ns(TURN_NS)
    }

    /// The last entry of nginx's list, where it is known.
    fn last_attempt(&self) -> Option<&NginxAttempt> {
        self.attempts.iter().find(|attempt| attempt.index + 1 == self.attempts_total)
    }

    pub(super) fn new(key: RequestKey, since: Moment, identity: (Option<u64>, Option<u64>)) -> Self {
        Self {
            key,
            since,
            identity,
            complaints: Vec::new(),
            special: None,
            redirected: false,
            attempts: Vec::new(),
            told_by: None,
            attempts_known: false,
            attempts_total: 0,
            subrequest: false,
            connections: Vec::new(),
            accepts: Vec::new(),
            heard: Vec::new(),
        }
    }
}

/// Requests that are not decided yet.
#[derive(Debug, Default)]
pub struct Requests {
    open: BTreeMap<RequestKey, OpenRequest>,
    limits: Limits,
}

impl Requests {
    /// With these bounds.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// The request with this key and identity, made if it is not known. A known one with another identity is over: nginx reuses the memory.
    pub fn entry(&mut self, key: RequestKey, identity: (Option<u64>, Option<u64>), now: Moment) -> &mut OpenRequest {
        if self.open.len() >= self.limits.requests && !self.open.contains_key(&key) {
            self.forget_oldest();
        }
        let request = self.open.entry(key).or_insert_with(|| OpenRequest::new(key, now, identity));
        if differs(request.identity, identity) {
            *request = OpenRequest::new(key, now, identity);
        }
        request
    }

    /// The open request with this key.
    pub fn get_mut(&mut self, key: RequestKey) -> Option<&mut OpenRequest> {
        self.open.get_mut(&key)
    }

    /// Every open request.
    pub fn open(&self) -> impl Iterator<Item = &OpenRequest> {
        self.open.values()
    }

    /// Takes it out, for its decision.
    pub fn take(&mut self, key: RequestKey, identity: (Option<u64>, Option<u64>)) -> Option<OpenRequest> {
        self.open.remove(&key).filter(|request| !differs(request.identity, identity))
    }

    /// Opens a request with what was heard of it elsewhere.
    pub(super) fn put(&mut self, request: OpenRequest) {
        let place = self.entry(request.key, request.identity, request.since);
        *place = request;
    }

    /// Forgets requests whose end nobody saw (the client went away: no answer is sent then).
    pub fn forget(&mut self, now: Moment) {
        self.open.retain(|_, request| now.since_ns(request.since) < REQUEST_PATIENCE_NS);
    }

    fn forget_oldest(&mut self) {
        let oldest = self.open.values().min_by_key(|request| request.since).map(|request| request.key);
        if let Some(key) = oldest {
            self.open.remove(&key);
        }
    }
}

/// Two identities that cannot be the same request's.
fn differs(one: (Option<u64>, Option<u64>), other: (Option<u64>, Option<u64>)) -> bool {
    let unequal = |a: Option<u64>, b: Option<u64>| matches!((a, b), (Some(a), Some(b)) if a != b);
    unequal(one.0, other.0) || unequal(one.1, other.1)
}

/// What nginx complains of is `auth_request`'s alone.
fn only_auth_complains(request: &OpenRequest) -> bool {
    matches!(request.complaints.as_slice(), [(.., only)] if only.message == Message::AuthRequest)
}

/// The status that the server said itself which `auth_request` asked; `None`: none is known to have been asked.
fn said_to_auth(request: &OpenRequest) -> Option<u16> {
    request.last_attempt().filter(|last| last.header_ms.is_some())?.status
}

/// What a message of nginx complains of, if it is a failure of an attempt or a shortage, and not a warning that accompanies one.
#[must_use]
pub fn complaint(log: &NginxLog) -> Option<Complaint> {
    let message = Message::classify(&log.format)?;
    let warning = log.level >= 5;
    if message == Message::TemporarilyDisabled || (warning && message != Message::TimedOut) {
        return None;
    }
    let phase = match (log.action.as_deref(), message) {
        (Some(action), _) => Phase::classify(action),
        // In a worker that was just forked the action's text may not be there to be read. This message is of one phase only.
        (None, Message::ConnectFailed | Message::ConnectFailedAtOnce) => Phase::Connecting,
        (None, _) => Phase::Other,
    };
    Some(Complaint { message, phase, errno: log.errno, text: log.format.clone() })
}

/// A server failed, or answered 502, and nginx went on to the next, or to a page of its own (`proxy_intercept_errors`).
fn hides_failure(request: &OpenRequest, status: u16) -> bool {
    let replaced = request.special.as_ref().is_some_and(|(_, special)| special.status == 502);
    let last = request.last_attempt().filter(|last| last.header_ms.is_some() && last.status == Some(502));
    if replaced && last.is_some() && status != 502 {
        return true;
    }
    let mut before = request.attempts.iter().filter(|attempt| attempt.index + 1 < request.attempts_total);
    // Between two locations nginx's list has an empty entry.
    before.any(|attempt| attempt.peer.is_some() && (attempt.header_ms.is_none() || attempt.status == Some(502)))
}

/// A gateway failure's status that nobody asked about. Where nginx itself made it, the client was not answered: that is no near miss.
pub(super) fn is_unasked(status: u16, watched: &[u16]) -> bool {
    matches!(status, 500 | 502..=504) && !watched.contains(&status)
}

/// What the status sent to the client means.
#[must_use]
pub fn decide(request: &OpenRequest, status: u16, watched: &[u16]) -> Option<(CaseKind, Origin)> {
    if only_auth_complains(request) {
        // Without a server that said so it was a page of nginx's own, or nobody knows whose.
        let said = said_to_auth(request).filter(|_| !is_unasked(status, watched))?;
        // Its own 502 is passed on in other words; of what else it said nginx alone makes a failure.
        let origin = if said == 502 { Origin::Upstream } else { Origin::Nginx };
        let kind = if watched.contains(&status) { CaseKind::Incident } else { CaseKind::NearMiss };
        return Some((kind, origin));
    }
    let complained = !request.complaints.is_empty();
    let last = request.last_attempt();
    let last_accepted = last.is_some_and(|attempt| attempt.header_ms.is_some());
    // A special response after an accepted header is `proxy_intercept_errors`, unless the request had gone on elsewhere meanwhile: to
    // the page of an `error_page`, if the status is still the upstream's.
    let upstreams = last.is_some_and(|attempt| attempt.status == Some(status));
    let intercepted = last_accepted && (!request.redirected || upstreams);
    let made_by_nginx = request.special.is_some() && !intercepted;
    let origin = if made_by_nginx {
        Origin::Nginx
    } else if last_accepted {
        Origin::Upstream
    } else if request.attempts_total > 0 && last.is_none() {
        // What was tried last is lost: it may have answered.
        Origin::Unknown
    } else if complained {
        Origin::Nginx
    } else {
        Origin::Unknown
    };
    let near_miss = (complained || hides_failure(request, status)).then_some((CaseKind::NearMiss, origin));
    if !watched.contains(&status) {
        // Unless it hides one that was asked about.
        let hides = request.special.as_ref().is_some_and(|(_, special)| watched.contains(&special.status));
        if origin == Origin::Nginx && is_unasked(status, watched) && !hides {
            return None;
        }
        return near_miss;
    }
    match origin {
        // The application's own 500, 503 and 504 are answers; its 502 is asked about.
        Origin::Upstream if status == 502 => Some((CaseKind::Incident, origin)),
        Origin::Upstream => near_miss,
        Origin::Nginx | Origin::Unknown => {
            let failed_attempt = request.attempts.iter().any(|attempt| attempt.header_ms.is_none());
            let incident = complained || failed_attempt || status == 502;
            incident.then_some((CaseKind::Incident, origin))
        }
    }
}
