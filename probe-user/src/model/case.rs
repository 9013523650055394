//! Everything that belongs to one failed (or nearly failed) request. What a verdict is made from.

use std::{net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    attempt::{Attempt, Link},
    coverage::CaseCoverage,
    event::{Event, EventId},
    host::{Configuration, HostFact},
    process::Pid,
    time::{At, Moment},
};

/// A case's name, as it is printed: wall time of the decision and a running number (`20261121T140207.331204-000017`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CaseId(pub String);

/// What kind of case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CaseKind {
    /// The client got a gateway failure.
    Incident,
    /// Attempts failed, and the client was answered nevertheless.
    NearMiss,
}

/// The client's request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `GET`.
    pub method: Option<String>,
    /// The URI as the client sent it, query included (redaction is the reports' business).
    pub uri: Option<String>,
    /// `HTTP/1.1`.
    pub protocol: Option<String>,
    /// The Host header.
    pub host: Option<String>,
    /// The client.
    pub client: Option<SocketAddr>,
    /// The client's address where its port is not known (it came from a log line).
    pub client_address: Option<String>,
    /// `*N`, nginx's number of the client's connection.
    pub connection: Option<u64>,
}

/// Who made the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// nginx itself (`ngx_http_special_response_handler`, or an error line about this request).
    Nginx,
    /// It was the upstream's own answer (its status line was seen, or nginx accepted its header).
    Upstream,
    /// Not known.
    Unknown,
}

/// An earlier failure: at the same peers, for blackouts (`no live upstreams`); or of the nginx behind this one.
#[derive(Clone, Debug, PartialEq)]
pub struct EarlierFailure {
    /// The case it belongs to.
    pub case: CaseId,
    /// When.
    pub at: Moment,
    /// The peer.
    pub peer: String,
    /// The cause found there, by id; `None` while that case is still open.
    pub cause: Option<&'static str>,
    /// The worker whose counter it raised.
    pub worker: Option<Pid>,
    /// The client of that request.
    pub client: Option<SocketAddr>,
}

/// Failures that were counted, and not put together one by one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folded {
    /// What they are.
    pub kind: CaseKind,
    /// The case they are like.
    pub like: CaseId,
    /// How many there were.
    pub count: u64,
    /// When the first of them was decided.
    pub from: Moment,
    /// When the last of them was decided.
    pub to: Moment,
}

/// An earlier failure of the same request, which nginx may have put into its cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The case.
    pub case: CaseId,
    /// When.
    pub at: Moment,
}

/// A case.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Its name.
    pub id: CaseId,
    /// Incident or near miss.
    pub kind: CaseKind,
    /// The status the client saw; `None` not known.
    pub status: Option<u16>,
    /// Who made it.
    pub origin: Origin,
    /// When nginx decided the failure; exact unless it is known from a log only.
    pub decided: At,
    /// The event that decided it.
    pub decided_by: EventId,
    /// The client's request.
    pub request: Request,
    /// The worker.
    pub worker: Option<Pid>,
    /// nginx's version.
    pub nginx_version: Option<String>,
    /// nginx's configuration.
    pub configuration: Option<Arc<Configuration>>,
    /// The attempts in order. The status is that of the last one.
    pub attempts: Vec<Attempt>,
    /// It is certain that nothing else was tried: the last attempt here made the status. Without nginx's own list another attempt may
    /// have followed that left no line.
    pub attempts_complete: bool,
    /// It is known from packets only: nginx said nothing of it.
    pub by_wire: bool,
    /// The failure was in a subrequest.
    pub subrequest: bool,
    /// How the attempts are tied to the request: the weakest of theirs, or of the request itself when there are none.
    pub link: Link,
    /// Complaints of nginx for this request that belong to no attempt (`no live upstreams`, DNS, resources), in order.
    pub complaints: Vec<(Event, super::complaint::Complaint)>,
    /// Events about processes that could matter: exits, signals, OOM kills of upstream processes and of the worker; failed accepts of
    /// local upstream processes; failed `socket()` of the worker.
    pub processes: Vec<Event>,
    /// What the host looked like.
    pub host: Vec<(EventId, At, HostFact)>,
    /// For blackouts: failures of the same group's peers within their `fail_timeout`, newest last. Otherwise: failures of another nginx
    /// that is watched too, for requests that came over the connections of these attempts.
    pub earlier: Vec<EarlierFailure>,
    /// nginx's upstream module had begun to work on the request; `None`: not known.
    pub upstream_begun: Option<bool>,
    /// What the access log says of nginx's cache, where it is all there is and its format has it; empty: no cache was asked.
    pub cache_status: Option<String>,
    /// Where nothing was tried: the last case with the same host, URI and status in which something was.
    pub stored: Option<Stored>,
    /// What could be seen.
    pub coverage: CaseCoverage,
}
