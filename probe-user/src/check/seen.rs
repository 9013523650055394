//! What was looked at, as plain values.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

pub use super::host::{GroupSeen, Growth, HostSeen, ProcessSeen};
use super::{logs::Pauses, plan::Endpoint, speaks::Speaks};
use crate::{
    decode::{config::layout::Layout, rules::Hit},
    model::{
        host::Listener,
        net::{Address, Errno},
        nginx::ErrorLine,
        process::Pid,
    },
};

/// Everything that was seen of one nginx, or of one configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// The nginx.
    pub nginx: Nginx,
    /// Its configuration.
    pub layout: Layout,
    /// Its upstreams, as far as they were examined.
    pub endpoints: Vec<Endpoint>,
    /// Names that were resolved.
    pub names: Vec<NameSeen>,
    /// Addresses that were tried.
    pub tries: Vec<Try>,
    /// Limits and counters of the host.
    pub host: Option<HostSeen>,
    /// nginx's error logs.
    pub errors: Vec<ErrorSeen>,
    /// nginx's access logs.
    pub accesses: Vec<AccessSeen>,
    /// What could not be looked at, one plain sentence each.
    pub left_out: Vec<String>,
}

/// The nginx itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Nginx {
    /// Its master; `None` for a configuration that nobody runs.
    pub master: Option<Pid>,
    /// `1.22.1`
    pub version: Option<String>,
    /// Why nginx refuses its own configuration as it is on the disk; `None` when it takes it or was not asked.
    pub refused: Option<String>,
}

/// A name, resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct NameSeen {
    /// The endpoint: an index into [`Seen::endpoints`].
    pub endpoint: usize,
    /// How long it took.
    pub took_us: u64,
    /// What came of it.
    pub result: Result<Vec<IpAddr>, NameFailure>,
    /// Addresses nginx was seen to use for it.
    pub held: Vec<SocketAddr>,
}

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameFailure {
    /// The name server says that there is no such name.
    NoSuchName,
    /// The name exists and has no address.
    NoAddress,
    /// The name server answered with this error.
    Refused(String),
    /// No name server answered in time.
    Silent,
    /// nginx has no resolver to ask.
    NoResolver,
    /// It could not be asked.
    NotAsked(String),
}

/// One address, tried in one way.
#[derive(Clone, Debug, PartialEq)]
pub struct Try {
    /// The endpoint: an index into [`Seen::endpoints`].
    pub endpoint: usize,
    /// The address.
    pub address: Address,
    /// How long the connection took to come about, or to fail.
    pub connect_us: u64,
    /// Whether it came about.
    pub connect: Result<(), ConnectFailure>,
    /// Our own end.
    pub local: Option<SocketAddr>,
    /// The TLS handshake, where there is one.
    pub tls: Option<TlsSeen>,
    /// What came back.
    pub answer: Option<AnswerSeen>,
    /// What the port speaks, found by a second connection after the first made no sense.
    pub speaks: Option<Speaks>,
    /// Who listens there, where the address is on this host.
    pub here: Option<Here>,
    /// The way to a unix socket.
    pub path: Option<Vec<PathPart>>,
    /// How long an idle connection lasted, where that was measured.
    pub idle: Option<Idle>,
    /// The answer's status to another Host, where the first was refused: the name and the status.
    pub other_host: Option<(String, u16)>,
    /// Packet filter rules that stop the connection, or may.
    pub rules: Vec<Barrier>,
    /// The way packets take to it; `None` for a unix socket, and where there is none.
    pub route: Option<Route>,
}

impl Try {
    /// One that came about, of which nothing more is known.
    #[must_use]
    pub fn new(endpoint: usize, address: Address) -> Self {
        Self {
            endpoint,
            address,
            connect_us: 0,
            connect: Ok(()),
            local: None,
            tls: None,
            answer: None,
            speaks: None,
            here: None,
            path: None,
            idle: None,
            other_host: None,
            rules: Vec::new(),
            route: None,
        }
    }
}

/// The way that packets take out of nginx's network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// The device.
    pub device: Option<String>,
    /// The router; `None`: the address is on the device's own network.
    pub gateway: Option<IpAddr>,
    /// The address that packets are sent from.
    pub source: Option<IpAddr>,
}

impl fmt::Display for Route {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.device.as_deref().unwrap_or("no device"))?;
        if let Some(gateway) = self.gateway {
            write!(formatter, " via {gateway}")?;
        }
        self.source.map_or(Ok(()), |source| write!(formatter, " from {source}"))
    }
}

/// A packet filter rule in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Barrier {
    /// It is in force where the upstream runs; else where nginx does.
    pub at_upstream: bool,
    /// It is in the way of the answer, not of the connection request.
    pub answer: bool,
    /// The rule.
    pub hit: Hit,
}

/// Why there is no connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectFailure {
    /// The error; `None`: nobody answered as long as we waited.
    pub errno: Option<Errno>,
    /// The ICMP message that said so.
    pub icmp: Option<Icmp>,
    /// It was `bind()` that failed, to the address that `proxy_bind` gives; nothing was connected.
    pub at_bind: bool,
}

/// An ICMP (or `ICMPv6`) error about our SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// Who sent it.
    pub from: Option<IpAddr>,
    /// Of version 6.
    pub v6: bool,
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
}

impl Icmp {
    /// A packet filter says so: administratively prohibited, or a port unreachable, which no TCP of a host sends.
    #[must_use]
    pub const fn is_filter(self) -> bool {
        if self.v6 {
            matches!((self.kind, self.code), (1, 1 | 4 | 5 | 6))
        } else {
            matches!((self.kind, self.code), (3, 2 | 3 | 9 | 10 | 13))
        }
    }
}

/// A TLS handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSeen {
    /// How long it took.
    pub took_us: u64,
    /// What came of it.
    pub result: Result<TlsDone, TlsFailure>,
    /// With the name sent (SNI), though nginx sends none, it came about.
    pub works_with_name: bool,
}

/// A handshake that came about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsDone {
    /// `TLSv1.3`
    pub version: String,
    /// What is wrong with the certificate, whether or not nginx looks.
    pub certificate: Option<CertificateFault>,
    /// The upstream asked for a certificate of ours.
    pub wants_certificate: bool,
}

/// What is wrong with a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateFault {
    /// It has expired.
    Expired,
    /// It is not valid yet.
    NotYetValid,
    /// Nobody trusted has signed it.
    UnknownIssuer,
    /// It is for other names.
    WrongName,
    /// It was revoked.
    Revoked,
    /// Another reason, which nginx's own TLS library need not share.
    Other(String),
    /// There is nothing to verify it against, and why.
    NoTrust(String),
}

/// A handshake that did not come about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsFailure {
    /// These bytes are no TLS.
    NotTls(Vec<u8>),
    /// The upstream sent an alert.
    Alert(String),
    /// The upstream asked for a certificate, got none, and sent an alert.
    WantsCertificate(String),
    /// The upstream closed.
    Closed,
    /// The upstream reset.
    Reset,
    /// The upstream said nothing.
    Silent,
    /// Another reason.
    Other(String),
    /// Not tried, and why.
    NotTried(String),
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerSeen {
    /// From the request to the whole header.
    pub took_us: u64,
    /// What it is.
    pub kind: Answer,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// HTTP/1, whole header.
    Http {
        /// The status.
        status: u16,
        /// Bytes up to and with the empty line.
        header_bytes: usize,
        /// `Server`.
        server: Option<String>,
        /// `Location`.
        location: Option<String>,
        /// The first bytes of the body.
        body: Vec<u8>,
    },
    /// As the protocol has it (`FastCGI`, HTTP/2, memcached).
    Right,
    /// These bytes, which are something else.
    Wrong(Vec<u8>),
    /// A header without end.
    Endless(usize),
    /// The peer closed after so many bytes.
    Closed(usize),
    /// The peer reset.
    Reset,
    /// The peer ended TLS with this alert.
    Alert(String),
    /// Nothing came.
    Silent,
    /// So many bytes of a header came, and no more while we waited.
    Unfinished(usize),
    /// The request could not be sent or the answer not be read.
    Failed(Errno),
}

/// Who listens on an address of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Here {
    /// The address belongs to this host.
    pub local: bool,
    /// Who listens there.
    pub listeners: Vec<Owner>,
    /// The same port on other addresses, then other ports.
    pub nearby: Vec<Owner>,
}

/// A listener and where its process belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The listener.
    pub listener: Listener,
    /// systemd unit or container.
    pub unit: Option<String>,
}

/// One component of the path to a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPart {
    /// The path so far.
    pub path: String,
    /// Mode bits; `None`: it is not there.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The worker may pass through it, or write to it where it is the socket.
    pub allowed: bool,
}

/// An error log's last lines.
#[derive(Clone, Debug, PartialEq)]
pub struct ErrorSeen {
    /// Where it is.
    pub path: String,
    /// Its level.
    pub level: String,
    /// There was more than could be looked at.
    pub cut: bool,
    /// The lines, the oldest first.
    pub lines: Vec<Said>,
}

/// One line of an error log.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// Seconds ago.
    pub ago_s: i64,
    /// The line.
    pub line: ErrorLine,
}

/// An access log's last lines, counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessSeen {
    /// Where it is.
    pub path: String,
    /// Its format.
    pub format: String,
    /// There was more than could be looked at.
    pub cut: bool,
    /// Lines of the time looked at.
    pub lines: u64,
    /// Lines that do not have the format.
    pub unread: u64,
    /// 500, 502, 503 and 504, by status and upstream (empty where the format does not say).
    pub failed: BTreeMap<(u16, String), Failed>,
    /// Upstreams that fail after a pause and not otherwise, by address.
    pub pauses: BTreeMap<String, Pauses>,
}

/// Failures of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// How many.
    pub count: u64,
    /// nginx made the status itself; `None` where the format does not say.
    pub own: Option<bool>,
    /// The last, seconds ago.
    pub last_ago_s: Option<i64>,
}

/// How long the upstream keeps an idle connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// It closed after so many milliseconds.
    Closed(u64),
    /// It was still open after so many.
    Open(u64),
}
