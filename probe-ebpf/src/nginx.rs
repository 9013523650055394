//! Records made from nginx's own memory at uprobes, and the layout they need.
//!
//! Offsets and their history: `ngx_http_request.h`, `ngx_connection.h`, `ngx_http_upstream.h`, 1.18 to 1.31.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Endpoint, Header, socket::Socket};

/// Bytes of a peer's name kept: `unix:` and the longest path there is (107) fit.
pub const PEER: usize = 128;
/// Bytes of a log message's format kept. A power of two, as everything that is copied by length.
pub const FORMAT: usize = 128;
/// Bytes of the log's action ("while connecting to upstream") kept.
pub const ACTION: usize = 48;
/// Bytes of the request line kept.
pub const REQUEST_LINE: usize = 256;
/// Bytes of the Host header kept.
pub const HOST: usize = 64;
/// Attempts reported for one request: all of them, or half of these from the list's beginning and half from its end.
pub const ATTEMPTS: u32 = 8;
/// `ngx_http_request_t.signature`: "HTTP" read as a little-endian number.
pub const SIGNATURE: u32 = 0x5054_5448;
/// An offset that this nginx does not have or that is not known.
pub const ABSENT: u32 = u32::MAX;

/// Member offsets in bytes of one nginx binary. [`ABSENT`] where not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "each field is named after the nginx member it locates: struct, then member")]
pub struct Layout {
    pub request_connection: u32,
    pub request_upstream: u32,
    pub request_upstream_states: u32,
    pub request_host: u32,
    pub request_status: u32,
    pub request_err_status: u32,
    pub request_line: u32,
    pub request_main: u32,
    pub connection_data: u32,
    pub connection_fd: u32,
    pub connection_log: u32,
    pub connection_sockaddr: u32,
    pub connection_number: u32,
    pub connection_requests: u32,
    pub log_connection: u32,
    pub log_data: u32,
    pub log_action: u32,
    pub context_request: u32,
    pub context_current_request: u32,
    pub upstream_peer: u32,
    pub peer_connection: u32,
    pub peer_sockaddr: u32,
    pub peer_name: u32,
    pub state_status: u32,
    pub state_response_time: u32,
    pub state_connect_time: u32,
    pub state_header_time: u32,
    pub state_bytes_received: u32,
    pub state_bytes_sent: u32,
    pub state_peer: u32,
}

/// Bits of [`Log::found`] and [`Status::found`]: how far the walk through nginx's memory got.
pub mod found {
    /// A request with the right signature.
    pub const REQUEST: u32 = 1;
    /// The request has an upstream.
    pub const UPSTREAM: u32 = 2;
    /// The upstream has an open connection; `upstream_fd` is valid.
    pub const UPSTREAM_CONNECTION: u32 = 4;
    /// The descriptor led to a kernel socket; `socket` is valid.
    pub const SOCKET: u32 = 8;
    /// The client's address is valid.
    pub const CLIENT: u32 = 16;
    /// The peer's name is valid.
    pub const PEER: u32 = 32;
    /// The upstream socket is a unix socket: `socket` has no addresses.
    pub const UNIX: u32 = 64;
    /// The request line is valid.
    pub const REQUEST_LINE: u32 = 128;
    /// The upstream states array was read; `attempts` is valid.
    pub const ATTEMPTS: u32 = 256;
}

/// `ngx_log_error_core`: nginx is writing a line to its error log, for a request or not.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Log {
    /// Tgid is the worker's.
    pub header: Header,
    /// `ngx_http_request_t *` being worked on, 0 if none: with the tgid it names the request until it is freed.
    pub request: u64,
    /// The main request; differs from `request` in a subrequest. 0 if not known.
    pub main_request: u64,
    /// `log->connection`: the number `*N` of the client's connection, 0 if none.
    pub number: u64,
    /// Requests served on the client's connection so far, this one included; 0 if not known.
    pub client_requests: u64,
    /// Requests sent on the upstream connection so far, this one included (1: fresh connection); 0 if not known.
    pub upstream_requests: u64,
    /// Jiffies now.
    pub jiffies: u64,
    /// nginx's level: 1 emerg … 4 error, 5 warn … 8 debug.
    pub level: u32,
    /// The errno nginx logs, 0 if none.
    pub errno: u32,
    /// `found::*`.
    pub found: u32,
    /// The upstream's descriptor, -1 if none.
    pub upstream_fd: i32,
    /// The client's descriptor, -1 if none.
    pub client_fd: i32,
    /// Length of `peer`.
    pub peer_length: u32,
    /// The status of the client's answer so far (`headers_out.status` of the main request): what it has got once the header is sent. 0
    /// if none yet.
    pub status: u32,
    /// Zero.
    pub reserved: u32,
    /// The client as nginx sees it (may have been changed by `realip`).
    pub client: Endpoint,
    /// The client's socket's remote address, as the kernel has it.
    pub client_socket: Endpoint,
    /// The peer's name as nginx prints it: `127.0.0.1:8000`, `unix:/path`, or the group's name.
    pub peer: [u8; PEER],
    /// The message's printf-like format, NUL-terminated or cut. Where that is only `%*s` (OpenSSL's messages), the text itself.
    pub format: [u8; FORMAT],
    /// "connecting to upstream" and so on, NUL-terminated or cut.
    pub action: [u8; ACTION],
    /// The upstream's socket.
    pub socket: Socket,
    /// Length of `request_line` before cutting.
    pub request_line_length: u32,
    /// Length of `host` before cutting.
    pub host_length: u32,
    /// `GET /cart HTTP/1.1`, of an error with an upstream: a response that breaks off has had its status told, or none that counted.
    pub request_line: [u8; REQUEST_LINE],
    /// The Host header, likewise.
    pub host: [u8; HOST],
}

/// A response status was decided. The kind says where: special response, send header, redirect.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Status {
    /// Tgid is the worker's.
    pub header: Header,
    /// `ngx_http_request_t *`.
    pub request: u64,
    /// The main request; differs in a subrequest. 0 if not known.
    pub main_request: u64,
    /// `*N` of the client's connection.
    pub number: u64,
    /// Requests served on the client's connection so far, this one included.
    pub client_requests: u64,
    /// The status: the argument at a special response, what is about to be sent at send header.
    pub status: u32,
    /// `err_status` (0: the answer's own status counts).
    pub err_status: u32,
    /// `found::*`.
    pub found: u32,
    /// The client's descriptor, -1 if none.
    pub client_fd: i32,
    /// Entries of the request's upstream states; that many [`Attempt`] records, but at most [`ATTEMPTS`], follow at once.
    pub attempts: u32,
    /// Length of `request_line` before cutting.
    pub request_line_length: u32,
    /// Length of `host` before cutting.
    pub host_length: u32,
    /// Zero.
    pub reserved: u32,
    /// The client as nginx sees it.
    pub client: Endpoint,
    /// The client's socket's remote address, as the kernel has it.
    pub client_socket: Endpoint,
    /// `GET /cart HTTP/1.1`.
    pub request_line: [u8; REQUEST_LINE],
    /// The Host header.
    pub host: [u8; HOST],
}

/// One entry of the request's upstream states, following a [`Status`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Attempt {
    /// Tgid is the worker's.
    pub header: Header,
    /// `ngx_http_request_t *`, as in the status.
    pub request: u64,
    /// Milliseconds, `u64::MAX` if it never got there.
    pub response_time_ms: u64,
    /// Milliseconds until connected, `u64::MAX` if never.
    pub connect_time_ms: u64,
    /// Milliseconds until the response header was accepted, `u64::MAX` if never.
    pub header_time_ms: u64,
    /// Bytes received from the peer.
    pub bytes_received: u64,
    /// Bytes sent to the peer.
    pub bytes_sent: u64,
    /// The attempt's status as nginx counts it (502 for a failed connect).
    pub status: u32,
    /// Position, from 0.
    pub index: u32,
    /// Entries in all.
    pub total: u32,
    /// Length of `peer` before cutting.
    pub peer_length: u32,
    /// The peer's name.
    pub peer: [u8; PEER],
}

/// `ngx_get_connection`: a descriptor became a connection of nginx.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Connection {
    /// Tgid is the worker's.
    pub header: Header,
    /// `*N` of the client connection it serves; 0 for accepted and resolver connections.
    pub number: u64,
    /// The request being worked on, 0 if none.
    pub request: u64,
    /// The descriptor.
    pub fd: i32,
    /// Zero.
    pub reserved: u32,
}
