//! What was looked at, as plain values.

use std::net::{IpAddr, SocketAddr};

use super::{plan::Endpoint, speaks::Speaks};
use crate::{
    decode::config::layout::Layout,
    model::{
        host::Listener,
        net::{Address, Errno},
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
}

/// Why there is no connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectFailure {
    /// The error; `None`: nobody answered as long as we waited.
    pub errno: Option<Errno>,
    /// The ICMP message that said so.
    pub icmp: Option<Icmp>,
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
    /// Nothing came.
    Silent,
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
