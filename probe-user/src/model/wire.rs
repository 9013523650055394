//! What packets alone show of requests: where nginx itself could not be watched, and only a capture is left.

use std::net::SocketAddr;

use super::{
    attempt::Outcome,
    packet::PacketRef,
    time::{At, Moment},
};

/// Names a request or an attempt within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireId(pub u64);

/// Something the wire shows.
#[derive(Clone, Debug, PartialEq)]
pub enum Wire {
    /// From here on the packets that are told are those of attempts: somebody has looked through all the others.
    Begins,
    /// An attempt at an upstream, its packets told before it.
    Attempt(Box<WireAttempt>),
    /// A request was answered, or will not be any more.
    Answer(Box<WireAnswer>),
}

/// A request as it stood on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireRequest {
    /// `GET /cart HTTP/1.1`; cut where the capture cut it.
    pub line: String,
    /// The Host header.
    pub host: Option<String>,
}

/// An attempt at an upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct WireAttempt {
    /// Its name.
    pub id: WireId,
    /// nginx's side.
    pub local: SocketAddr,
    /// The upstream.
    pub upstream: SocketAddr,
    /// Its packets, as far as they matter.
    pub packets: Vec<PacketRef>,
    /// The connection's first packet is in the capture.
    pub seen_from_start: bool,
    /// What was asked; `None`: nothing was, or not in HTTP/1.
    pub request: Option<WireRequest>,
    /// What became of it.
    pub outcome: Outcome,
    /// The status of its answer, where the answer's head was whole.
    pub status: Option<u16>,
    /// Requests before it on the connection; `None`: the connection's beginning was not seen.
    pub requests_before: Option<u64>,
    /// How long the connection had been idle, microseconds.
    pub idle_us: Option<u64>,
    /// When it began.
    pub started: Moment,
    /// When it ended.
    pub ended: At,
    /// Bytes of the request.
    pub bytes_sent: u64,
    /// Bytes of the answer; `None`: it was encrypted.
    pub bytes_received: Option<u64>,
    /// What was seen of the answer's head; `None`: it was not whole.
    pub head: Option<WireHead>,
    /// The requests to nginx that it can have been made for; of more than one it is not known which.
    pub made_for: Vec<WireId>,
    /// The attempt before it that failed, and asked the same.
    pub after: Option<WireId>,
}

/// The head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireHead {
    /// It was whole, so many bytes; anything that came before it (`100 Continue`) counts too.
    Whole(u64),
    /// What came does not begin like HTTP/1.
    Foreign,
}

/// Which side of nginx a connection is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WireSide {
    /// Between a client and nginx.
    Client,
    /// Between nginx and an upstream.
    Upstream,
    /// The capture does not tell.
    Unknown,
}

/// A request's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct WireAnswer {
    /// The request's name.
    pub id: WireId,
    /// Which side it is on.
    pub side: WireSide,
    /// Who asked.
    pub client: SocketAddr,
    /// Who answered.
    pub server: SocketAddr,
    /// What was asked.
    pub request: Option<WireRequest>,
    /// The status; `None`: there was no answer.
    pub status: Option<u16>,
    /// The packet with the answer's head.
    pub packet: Option<PacketRef>,
    /// When the request began.
    pub started: Moment,
}
