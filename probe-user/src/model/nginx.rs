//! What is seen inside nginx: through uprobes, and in its logs.

use std::net::SocketAddr;

use super::{net::Errno, process::Pid, socket::Socket};

/// Names a request of a worker while it lives: the worker and nginx's pointer. nginx reuses the memory for later requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestKey {
    /// The worker.
    pub worker: Pid,
    /// `ngx_http_request_t *`.
    pub pointer: u64,
}

/// Something happened inside nginx.
#[derive(Clone, Debug, PartialEq)]
pub enum NginxEvent {
    /// nginx is writing to its error log.
    Log(Box<NginxLog>),
    /// nginx decided a status.
    Status(Box<NginxStatus>),
    /// One attempt of the request whose status was decided just before.
    Attempt(NginxAttempt),
    /// A descriptor became a connection of nginx towards an upstream.
    Connection {
        /// The worker.
        worker: Pid,
        /// `*N` of the client connection it serves.
        number: u64,
        /// The request.
        request: Option<RequestKey>,
        /// The descriptor.
        fd: i32,
    },
}

/// A log message, at the moment it is made.
#[derive(Clone, Debug, PartialEq)]
pub struct NginxLog {
    /// The worker.
    pub worker: Pid,
    /// The request being worked on.
    pub request: Option<RequestKey>,
    /// The main request, if `request` is a subrequest of it.
    pub parent: Option<RequestKey>,
    /// `*N`, the number of the client's connection.
    pub number: Option<u64>,
    /// Requests on the client's connection, this one included.
    pub client_requests: Option<u64>,
    /// 1 emerg … 4 error … 8 debug.
    pub level: u32,
    /// The errno nginx logs.
    pub errno: Option<Errno>,
    /// The message's printf-like format; the text itself where nginx was given a whole text.
    pub format: String,
    /// The status of the client's answer so far (the main request's): what it has got once the header is sent.
    pub status: Option<u16>,
    /// `connecting to upstream` and so on.
    pub action: Option<String>,
    /// The peer's name as nginx prints it.
    pub peer: Option<String>,
    /// The upstream connection that was open.
    pub upstream: Option<UpstreamConnection>,
    /// The client as nginx sees it.
    pub client: Option<SocketAddr>,
    /// `GET /cart HTTP/1.1`; of errors with an upstream only.
    pub request_line: Option<String>,
    /// The Host header, likewise.
    pub host: Option<String>,
}

/// nginx's connection to an upstream at the moment of a message.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamConnection {
    /// The descriptor.
    pub fd: i32,
    /// Requests sent on it, this one included: 1 for a fresh connection.
    pub requests: Option<u64>,
    /// Over a unix socket.
    pub unix: bool,
    /// The socket behind the descriptor.
    pub socket: Option<Socket>,
}

/// A status was decided.
#[derive(Clone, Debug, PartialEq)]
pub struct NginxStatus {
    /// Where in nginx.
    pub point: StatusPoint,
    /// The worker.
    pub worker: Pid,
    /// The request.
    pub request: RequestKey,
    /// The main request, if `request` is a subrequest of it.
    pub parent: Option<RequestKey>,
    /// `*N`.
    pub number: Option<u64>,
    /// Requests on the client's connection, this one included.
    pub client_requests: Option<u64>,
    /// The status.
    pub status: u16,
    /// What an `error_page` with a code of its own will make of it.
    pub overriding: Option<u16>,
    /// `GET /cart HTTP/1.1`.
    pub request_line: Option<String>,
    /// The Host header.
    pub host: Option<String>,
    /// The client as nginx sees it.
    pub client: Option<SocketAddr>,
    /// nginx's upstream module had begun to work on the request: it looks into the cache first, then for a peer. `None`: not known.
    pub upstream_begun: Option<bool>,
    /// How many entries nginx's list of attempts has, of which [`NginxAttempt`]s follow at once; `None`: they could not be read.
    pub attempts: Option<u32>,
}

/// Where a status was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StatusPoint {
    /// nginx makes an error response itself.
    SpecialResponse,
    /// The response header is on its way to the client: final.
    SendHeader,
    /// The request goes on elsewhere inside nginx (`error_page`, `X-Accel-Redirect`).
    Redirect,
}

/// One attempt as nginx keeps it for its `$upstream_*` variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NginxAttempt {
    /// The request.
    pub request: RequestKey,
    /// Position, from 0.
    pub index: u32,
    /// How many there are.
    pub total: u32,
    /// The peer's name; a group's name when no peer was taken; `None` when nginx has none (it failed before).
    pub peer: Option<String>,
    /// The attempt's status as nginx counts it; `None` when nginx kept none.
    pub status: Option<u16>,
    /// Milliseconds until connected.
    pub connect_ms: Option<u64>,
    /// Milliseconds until the header was accepted.
    pub header_ms: Option<u64>,
    /// Milliseconds in all.
    pub response_ms: Option<u64>,
    /// Bytes sent to the peer.
    pub bytes_sent: u64,
    /// Bytes received from the peer.
    pub bytes_received: u64,
}

/// A line of the error log, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorLine {
    /// `error`, `crit` …
    pub level: String,
    /// The worker, as its own pid namespace numbers it.
    pub pid: u32,
    /// `*N`.
    pub number: Option<u64>,
    /// The message, without errno and context.
    pub message: String,
    /// The errno.
    pub errno: Option<Errno>,
    /// `while …`.
    pub action: Option<String>,
    /// The client's address (no port).
    pub client: Option<String>,
    /// The server's name.
    pub server: Option<String>,
    /// The request line.
    pub request: Option<String>,
    /// The subrequest's URI.
    pub subrequest: Option<String>,
    /// `upstream: "http://127.0.0.1:8000/cart"`, unquoted.
    pub upstream: Option<String>,
    /// The Host header.
    pub host: Option<String>,
}

/// A line of the access log, taken apart as far as its format goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLine {
    /// The client's address (no port, unless the format has it).
    pub client: Option<String>,
    /// The request line.
    pub request: Option<String>,
    /// The status.
    pub status: Option<u16>,
    /// `$connection`.
    pub number: Option<u64>,
    /// `$connection_requests`.
    pub client_requests: Option<u64>,
    /// `$pid`.
    pub pid: Option<u32>,
    /// `$upstream_status`; empty: no upstream was asked.
    pub upstream_status: Option<String>,
    /// `$upstream_addr`; empty: no upstream was asked.
    pub upstream_address: Option<String>,
    /// `$upstream_cache_status`: `HIT`, `MISS` …; empty: no cache was asked.
    pub cache_status: Option<String>,
}
