//! What nginx complained of, whichever way it was heard.

use super::net::Errno;

/// The messages of nginx about upstreams, by what they mean. Texts and versions: `ngx_http_upstream.c`, `ngx_event_connect.c`, 1.18 to 1.31.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Message {
    /// `connect() to … failed`: `connect()` itself returned the errno.
    ConnectFailedAtOnce,
    /// `connect() failed`: the errno came later, from the socket.
    ConnectFailed,
    /// `upstream timed out`: nginx's own timer.
    TimedOut,
    /// `upstream prematurely closed connection`.
    PrematurelyClosed,
    /// `recv() failed`, `readv() failed`, `SSL_read() failed`.
    ReceiveFailed,
    /// `writev() failed`, `send() failed`, `sendfile() failed`, `SSL_write() failed`.
    SendFailed,
    /// `socket() failed`.
    SocketFailed,
    /// `bind(…) failed`.
    BindFailed,
    /// `accept() failed`, `accept4() failed`.
    AcceptFailed,
    /// `… worker_connections are not enough`.
    WorkerConnections,
    /// `no live upstreams`.
    NoLiveUpstreams,
    /// `upstream server temporarily disabled` (a warning that accompanies a failure).
    TemporarilyDisabled,
    /// `auth request unexpected status: N`: what `auth_request`'s server said is neither yes nor no, and nginx answers 500
    /// (`ngx_http_auth_request_module.c`, 1.22.1). It follows the failure of that subrequest, or stands alone where the server said so itself.
    AuthRequest,
    /// `… could not be resolved`, `no resolver defined to resolve …`.
    NotResolved,
    /// `invalid URL prefix in …`, `no host in upstream …`, `invalid port in upstream …`: what variables make of `proxy_pass` is no upstream
    /// (`ngx_http_proxy_eval()`, 1.22.1).
    NoTarget,
    /// `peer closed connection in SSL handshake`, `SSL_do_handshake() failed`.
    TlsHandshake,
    /// `upstream SSL certificate verify error`, `upstream SSL certificate does not match`.
    TlsCertificate,
    /// `upstream sent too big header`.
    TooBigHeader,
    /// `upstream sent invalid header`, `invalid status`, `no valid HTTP/1.0 header`, duplicate lines and the like.
    InvalidHeader,
    /// `upstream sent unsupported FastCGI protocol version` and the other FastCGI, uwsgi, SCGI texts.
    FastCgi,
    /// `upstream rejected request with error`, `upstream sent goaway`, frames.
    Grpc,
    /// About an upstream, but none of these.
    Other,
}

/// What nginx was doing. The words are nginx's `log->action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// `connecting to upstream`.
    Connecting,
    /// `SSL handshaking to upstream`.
    TlsHandshake,
    /// `sending request to upstream`.
    Sending,
    /// `reading response header from upstream`.
    ReadingHeader,
    /// `reading upstream`: the body, after the header was passed on.
    ReadingBody,
    /// `proxying upgraded connection`: after a 101, for instance to a WebSocket.
    Upgraded,
    /// `resolving`.
    Resolving,
    /// Something else, or not said.
    Other,
}

/// A complaint of nginx about one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// What it means.
    pub message: Message,
    /// What nginx was doing.
    pub phase: Phase,
    /// The errno nginx logged.
    pub errno: Option<Errno>,
    /// The text: from the log line where it was read, else the message's format.
    pub text: String,
}

impl Phase {
    /// The header was passed on to the client: no status can tell of a failure any more.
    #[must_use]
    pub const fn is_after_header(self) -> bool {
        matches!(self, Self::ReadingBody | Self::Upgraded)
    }
}

impl Message {
    /// Reads a message's format (from the uprobe) or its text (from the log); `None` when it is not about an upstream or a local shortage.
    #[must_use]
    pub fn classify(text: &str) -> Option<Self> {
        const TABLE: &[(&str, Message)] = &[
            ("connect() to ", Message::ConnectFailedAtOnce),
            ("connect() failed", Message::ConnectFailed),
            ("upstream timed out", Message::TimedOut),
            ("upstream prematurely closed FastCGI", Message::FastCgi),
            ("upstream prematurely closed stream", Message::Grpc),
            ("upstream prematurely closed", Message::PrematurelyClosed),
            ("upstream prematurely sent response", Message::InvalidHeader),
            ("recv() failed", Message::ReceiveFailed),
            ("readv() failed", Message::ReceiveFailed),
            ("SSL_read() failed", Message::ReceiveFailed),
            ("writev() failed", Message::SendFailed),
            ("send() failed", Message::SendFailed),
            ("sendfile() failed", Message::SendFailed),
            ("SSL_write() failed", Message::SendFailed),
            ("socket() failed", Message::SocketFailed),
            ("bind(", Message::BindFailed),
            ("accept() failed", Message::AcceptFailed),
            ("accept4() failed", Message::AcceptFailed),
            ("no live upstreams", Message::NoLiveUpstreams),
            ("upstream server temporarily disabled", Message::TemporarilyDisabled),
            ("no resolver defined to resolve", Message::NotResolved),
            ("auth request unexpected status", Message::AuthRequest),
            ("invalid URL prefix in ", Message::NoTarget),
            ("no host in upstream ", Message::NoTarget),
            ("invalid host in upstream ", Message::NoTarget),
            ("no port in upstream ", Message::NoTarget),
            ("invalid port in upstream ", Message::NoTarget),
            ("%s in upstream ", Message::NoTarget),
            ("peer closed connection in SSL handshake", Message::TlsHandshake),
            ("SSL_do_handshake() failed", Message::TlsHandshake),
            ("upstream SSL certificate", Message::TlsCertificate),
            ("upstream sent too big header", Message::TooBigHeader),
            ("upstream sent unsupported FastCGI", Message::FastCgi),
            ("upstream sent invalid FastCGI", Message::FastCgi),
            ("upstream sent unexpected FastCGI", Message::FastCgi),
            ("upstream rejected request", Message::Grpc),
            ("upstream violated", Message::Grpc),
            ("memcached sent invalid", Message::InvalidHeader),
            ("upstream sent no valid", Message::InvalidHeader),
            ("upstream sent invalid", Message::InvalidHeader),
            ("upstream sent duplicate", Message::InvalidHeader),
            ("upstream sent unknown", Message::InvalidHeader),
            ("upstream sent \"Content-Length\" and", Message::InvalidHeader),
        ];
        if is_about_http2(text) {
            return Some(Self::Grpc);
        }
        if let Some((_, message)) = TABLE.iter().find(|(start, _)| text.starts_with(start)) {
            return Some(*message);
        }
        // The accept text is made from two literals in nginx ("accept%s() failed"), these begin with a value.
        if text.starts_with("accept%s() failed") {
            return Some(Self::AcceptFailed);
        }
        if text.contains("worker_connections are not enough") {
            // The same words at level warn mean that nginx found a connection to reuse; the caller checks the level.
            return Some(Self::WorkerConnections);
        }
        if text.contains("could not be resolved") {
            return Some(Self::NotResolved);
        }
        // ngx_connection_error() formats "%s" in versions that pass the text as an argument; upstream texts all begin with the word.
        text.starts_with("upstream ").then_some(Self::Other)
    }
}

/// Frames, streams and windows are HTTP/2's own words. (`ngx_http_grpc_module.c`, `ngx_http_proxy_v2_module.c`; what stands in quotes is
/// the upstream's.)
fn is_about_http2(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("upstream sent ") else { return false };
    let own = rest.split('"').next().unwrap_or(rest);
    ["goaway", "http2", "frame", "stream", "window"].iter().any(|word| own.contains(word))
}

impl Phase {
    /// Reads `log->action`, or what a log line has after `while `.
    #[must_use]
    pub fn classify(action: &str) -> Self {
        const TABLE: &[(&str, Phase)] = &[
            ("connecting to upstream", Phase::Connecting),
            ("SSL handshaking to upstream", Phase::TlsHandshake),
            ("sending request to upstream", Phase::Sending),
            ("reading response header from upstream", Phase::ReadingHeader),
            ("reading upstream", Phase::ReadingBody),
            ("proxying upgraded connection", Phase::Upgraded),
            ("resolving", Phase::Resolving),
        ];
        TABLE.iter().find(|(start, _)| action.starts_with(start)).map_or(Self::Other, |(_, phase)| *phase)
    }
}
