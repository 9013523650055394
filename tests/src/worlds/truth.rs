//! What really happened: the ground that every law stands on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A stretch of life of an nginx and its upstreams.
#[derive(Clone, Debug)]
pub struct World {
    /// nginx masters; the workers are theirs in turn.
    pub masters: usize,
    /// Their workers.
    pub workers: usize,
    /// The servers of its one upstream group.
    pub peers: Vec<Peer>,
    /// `max_fails` is 1 and `fail_timeout` 10 s; else `max_fails=0`.
    pub counts_failures: bool,
    /// The access log has `$connection` and `$pid` in it.
    pub detailed_access_log: bool,
    /// Clients' requests, in the order in which they begin.
    pub requests: Vec<Request>,
    /// Things that have nothing to do with them.
    pub noise: Vec<Noise>,
    /// For what no law depends on: latencies, ports, sequence numbers.
    pub seed: u64,
}

/// A server of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where it is.
    pub place: Place,
    /// Over IPv6.
    pub v6: bool,
}

/// Where a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the loopback interface.
    Loopback,
    /// In another network namespace of this host.
    Neighbour,
    /// On another host, whose kernel is not ours.
    Elsewhere,
}

impl Place {
    /// Whether its kernel is ours.
    #[must_use]
    pub const fn is_here(self) -> bool {
        matches!(self, Self::Loopback | Self::Neighbour)
    }
}

/// A client's request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Milliseconds after the one before it.
    pub gap_ms: u32,
    /// Which worker, counted round the workers there are.
    pub worker: usize,
    /// Over the client connection of the request before it on this worker, if that is over and stayed open.
    pub same_client: bool,
    /// A POST: not tried again once it was sent.
    pub post: bool,
    /// What it is.
    pub course: Course,
    /// What stands between the upstream's fate and the client.
    pub dress: Dress,
}

/// What stands between the upstream's fate and the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dress {
    /// Nothing.
    Plain,
    /// `error_page 500 502 504 /sorry.html;`: the status stays.
    ErrorPage,
    /// `error_page 500 502 504 =200 /sorry.html;`: the client sees 200.
    HiddenPage,
    /// It is `auth_request`'s subrequest that is passed to the upstream; when it fails the client sees 500.
    Subrequest,
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Course {
    /// It is passed to upstreams, one after the other while the fates allow and demand it.
    Passed(Vec<Attempt>),
    /// `return 502;` (or another status).
    Returned(u16),
    /// The upstream's name is not resolved.
    Unresolved,
    /// A 502 that nginx has in its cache.
    Cached,
    /// It is passed to a unix socket, the only server.
    Unix(UnixFate),
    /// The client goes away while the upstream works.
    Abandoned {
        /// Which peer.
        peer: usize,
    },
}

/// What becomes of an attempt over a unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnixFate {
    /// There is no such file.
    Missing,
    /// Nobody listens on it.
    Refused,
    /// nginx's user may not.
    Denied,
    /// The backlog is full.
    Full,
    /// The application closes without an answer.
    Closed,
    /// The application closes without having read the request.
    Reset,
    /// The application says nothing until nginx gives up.
    Silent,
    /// The process that holds the connection ends.
    Died {
        /// How.
        death: Death,
        /// The request was read before.
        read: bool,
    },
}

/// One try at one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Which peer, counted round the peers there are.
    pub peer: usize,
    /// Over a connection that has served a request before, so many milliseconds ago.
    pub idle_ms: Option<u32>,
    /// What becomes of it.
    pub fate: Fate,
}

/// How much of the request the upstream's application has read when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Not a byte.
    Nothing,
    /// Some.
    Part,
    /// All.
    All,
}

/// What becomes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The application answers with this status.
    Answered(u16),
    /// Nobody listens there; somebody does again after so many milliseconds.
    Refused {
        /// `None`: not in this world's time.
        back_ms: Option<u32>,
    },
    /// A packet filter answers for the upstream, which listens.
    Rejected(Answer),
    /// The SYN, or its answer, is lost.
    Unanswered {
        /// Where.
        lost: Lost,
        /// The kernel gives up before nginx does: ETIMEDOUT and 502.
        by_kernel: bool,
    },
    /// The accept queue is full. `established`: the handshake's last packet is the one that is lost.
    QueueFull {
        /// nginx believes to be connected.
        established: bool,
    },
    /// The application, alive, throws the connection away.
    Reset {
        /// After reading so much; what is left unread makes the reset.
        read: Read,
        /// After so many bytes of a response header.
        header: u16,
        /// Microseconds after the request came.
        after_us: u32,
    },
    /// The application, alive, closes after reading everything.
    Closed {
        /// After so many bytes of a response header.
        header: u16,
        /// Microseconds after the request came.
        after_us: u32,
    },
    /// The idle connection is closed while the request is on its way. Always over a reused connection.
    Race(Race),
    /// The application says nothing until nginx gives up.
    Silent,
    /// `socket()` of the worker fails with EMFILE.
    NginxFiles,
    /// `accept()` of the upstream fails with EMFILE.
    UpstreamFiles {
        /// The connection stays in the queue; else it is accepted with a spare descriptor and closed at once, as libuv does.
        stuck: bool,
    },
    /// The process that holds the connection ends.
    Died {
        /// How.
        death: Death,
        /// After reading so much.
        read: Read,
        /// Microseconds after the request came.
        after_us: u32,
    },
    /// `connect()` fails at once, and no packet leaves.
    Local(Shortage),
    /// The worker has no connection left.
    NginxConnections,
    /// The answer's header does not fit.
    TooBig,
    /// The answer's header is malformed after a good status line.
    Malformed,
    /// The peer closes in the TLS handshake.
    TlsClosed,
    /// The peer's certificate is not accepted.
    TlsCertificate,
    /// The application answers early, closes with the rest of the request unread, and its reset destroys the answer.
    EarlyLost,
    /// Somebody between the two resets the connection while the application works.
    Injected {
        /// From another distance than the peer's.
        other_ttl: bool,
        /// Microseconds after the request came.
        after_us: u32,
    },
    /// The request is lost on its way, however often it is sent.
    Stalled,
    /// The connection breaks after the header was passed on.
    Truncated {
        /// By a reset.
        reset: bool,
    },
}

/// Why `connect()` fails at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// EADDRNOTAVAIL.
    Ports,
    /// ENETUNREACH.
    Route,
    /// EACCES.
    Permission,
}

/// What a packet filter answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A reset.
    Reset,
    /// ICMP port unreachable.
    PortUnreachable,
    /// ICMP administratively prohibited.
    Prohibited,
    /// ICMP host unreachable, from a router: not a filter at all.
    HostUnreachable,
}

/// Where a handshake is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Beyond this host, or for no reason that this host's kernel gives.
    Beyond,
    /// A packet filter of this host drops the SYN.
    SynHere,
    /// A packet filter of this host drops the answer.
    AnswerHere,
}

/// How the close of an idle connection meets the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Race {
    /// The FIN had arrived when nginx wrote, unnoticed.
    FinBefore,
    /// The FIN was on its way when nginx wrote (another host only).
    FinCrossed,
    /// A reset had arrived; nginx finds it when it tests the connection.
    ResetBefore,
    /// The request lay unread when the application closed.
    Unread,
    /// The upstream had forgotten the connection, its FIN was lost (another host only).
    Forgotten,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// A fault of its own.
    Fault,
    /// `abort()`.
    Abort,
    /// Killed by another process with this signal.
    Killed(u8),
    /// Asked by another process with this signal, and exited with this status in its handler.
    Asked(u8, u8),
    /// The OOM killer.
    Oom,
    /// By itself.
    Exit(u8),
}

/// Something that has nothing to do with any request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise {
    /// Milliseconds after the beginning.
    pub at_ms: u32,
    /// At which peer.
    pub peer: usize,
    /// What.
    pub kind: NoiseKind,
}

/// What.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoiseKind {
    /// Somebody else's connection to the same server, and what becomes of it.
    Foreign(ForeignEnd),
    /// Another process of that server, which holds no connection of nginx's, ends.
    OtherDeath(Death),
}

/// What becomes of somebody else's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignEnd {
    /// It is served.
    Served,
    /// It is reset.
    Reset,
    /// It is closed without an answer.
    Closed,
}

impl World {
    /// The peer with this number, counted round.
    #[must_use]
    pub fn peer_index(&self, index: usize) -> usize {
        index % self.peers.len().max(1)
    }

    /// The address of a peer.
    #[must_use]
    pub fn address(&self, peer: usize) -> SocketAddr {
        let index = self.peer_index(peer);
        let Some(Peer { place, v6 }) = self.peers.get(index).copied() else {
            return SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        };
        let number = u8::try_from(index).unwrap_or(0);
        let ip: IpAddr = match (place, v6) {
            (Place::Loopback, false) => Ipv4Addr::LOCALHOST.into(),
            (Place::Loopback, true) => Ipv6Addr::LOCALHOST.into(),
            (Place::Neighbour, false) => Ipv4Addr::new(10, 1, 0, 10 + number).into(),
            (Place::Neighbour, true) => Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x10 + u16::from(number)).into(),
            (Place::Elsewhere, false) => Ipv4Addr::new(192, 0, 2, 10 + number).into(),
            (Place::Elsewhere, true) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10 + u16::from(number)).into(),
        };
        SocketAddr::new(ip, 8000 + u16::from(number))
    }

    /// The address nginx speaks to a peer from.
    #[must_use]
    pub fn local_ip(&self, peer: usize) -> IpAddr {
        match self.peers.get(self.peer_index(peer)) {
            Some(Peer { place: Place::Neighbour, v6: false }) => Ipv4Addr::new(10, 1, 0, 1).into(),
            Some(Peer { place: Place::Neighbour, v6: true }) => Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1).into(),
            Some(Peer { place: Place::Elsewhere, v6: false }) => Ipv4Addr::new(192, 0, 2, 1).into(),
            Some(Peer { place: Place::Elsewhere, v6: true }) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
            _ => self.address(peer).ip(),
        }
    }

    /// Where a peer is.
    #[must_use]
    pub fn place(&self, peer: usize) -> Place {
        self.peers.get(self.peer_index(peer)).map_or(Place::Loopback, |peer| peer.place)
    }
}

/// The close reached the connection before the application had read a byte of the request, so soon that it was not about the request:
/// scheduling of the application between its timer and its `close()`.
pub const CROSSING_US: u32 = 5_000;

impl Attempt {
    /// The causes that may be `confirmed` for this attempt. Each beyond the first is literally true of it and says less; why stands
    /// beside it. Everything else confirmed is a lie.
    #[must_use]
    pub fn true_causes(&self) -> Vec<&'static str> {
        let reused = self.idle_ms.is_some();
        match self.fate {
            Fate::Answered(502) => vec!["upstream-sent-502"],
            Fate::Answered(_) => vec![],
            Fate::Refused { .. } => vec!["upstream-refused"],
            Fate::Rejected(Answer::HostUnreachable) => vec!["host-unreachable"],
            Fate::Rejected(_) => vec!["firewall-rejected"],
            // No answer ever reached the socket: that is all that syn-timeout says.
            Fate::Unanswered { lost: Lost::Beyond, .. } => vec!["syn-timeout"],
            Fate::Unanswered { .. } => vec!["firewall-dropped", "syn-timeout"],
            Fate::QueueFull { established: false } => vec!["accept-queue-overflow", "syn-timeout"],
            // The request is never acknowledged: neither a read timeout nor a silent application.
            Fate::QueueFull { established: true } => vec!["accept-queue-overflow"],
            Fate::Reset { read, after_us, header, .. } => {
                let mut causes = vec!["upstream-reset"];
                causes.extend(crossing(reused, read, header, after_us));
                causes
            }
            Fate::Closed { .. } => vec!["premature-close"],
            // A FIN without an answer is what premature-close says; of the order of close and request it says nothing.
            Fate::Race(Race::FinBefore | Race::FinCrossed) => vec!["keepalive-race", "premature-close"],
            // Here a reset came before the request: upstream-reset says "after", and is not true.
            Fate::Race(Race::ResetBefore) => vec!["keepalive-race"],
            // The reset came after the request had been taken by the upstream's kernel: upstream-reset says no more than that.
            Fate::Race(Race::Unread | Race::Forgotten) => vec!["keepalive-race", "upstream-reset"],
            Fate::Silent => vec!["read-timeout"],
            Fate::NginxFiles => vec!["fd-exhausted-nginx"],
            // The upstream's kernel took the request and nothing came back: all that read-timeout says.
            Fate::UpstreamFiles { stuck: true } => vec!["fd-exhausted-upstream", "read-timeout"],
            // It closed, or reset, a connection without an answer: so much is true whatever made it do so.
            Fate::UpstreamFiles { stuck: false } => vec!["fd-exhausted-upstream", "premature-close", "upstream-reset"],
            Fate::Died { death, read, after_us } => {
                let mut causes = vec![death.cause()];
                // How the connection ended is true as well, and says less: FIN when everything was read, else RST.
                causes.push(if read == Read::All { "premature-close" } else { "upstream-reset" });
                causes.extend(crossing(reused, read, 0, after_us));
                causes
            }
            Fate::Local(Shortage::Ports) => vec!["ephemeral-ports-exhausted"],
            Fate::Local(Shortage::Route) => vec!["no-route"],
            Fate::Local(Shortage::Permission) => vec!["connect-denied"],
            Fate::NginxConnections => vec!["worker-connections-exhausted"],
            Fate::TooBig => vec!["header-too-big"],
            Fate::Malformed => vec!["invalid-response"],
            // A FIN without an answer, said with less.
            Fate::TlsClosed => vec!["tls-handshake-failed", "premature-close"],
            Fate::TlsCertificate => vec!["tls-certificate-invalid"],
            // The reset after the request is true as well.
            Fate::EarlyLost => vec!["early-response-lost", "upstream-reset"],
            Fate::Injected { .. } => vec!["network-reset"],
            Fate::Stalled => vec!["path-stall"],
            Fate::Truncated { .. } => vec!["response-truncated"],
        }
    }
}

/// A reused connection ended before the application had read a byte of the request, within the time a crossing takes: whatever made it
/// end, that is a keepalive race by the catalogue's words.
fn crossing(reused: bool, read: Read, header: u16, after_us: u32) -> Option<&'static str> {
    (reused && read == Read::Nothing && header == 0 && after_us <= CROSSING_US).then_some("keepalive-race")
}

impl UnixFate {
    /// The causes that may be `confirmed`; the first says most.
    #[must_use]
    pub fn causes(self) -> Vec<&'static str> {
        match self {
            Self::Missing => vec!["unix-socket-missing"],
            Self::Refused => vec!["unix-socket-refused"],
            Self::Denied => vec!["unix-socket-denied"],
            Self::Full => vec!["unix-backlog-full"],
            Self::Closed => vec!["premature-close"],
            Self::Reset => vec!["upstream-reset"],
            Self::Silent => vec!["read-timeout"],
            Self::Died { death, read } => {
                vec![death.cause(), if read { "premature-close" } else { "upstream-reset" }]
            }
        }
    }
}

impl Death {
    /// The cause it is.
    #[must_use]
    pub const fn cause(self) -> &'static str {
        match self {
            Self::Fault | Self::Abort => "upstream-crashed",
            Self::Killed(_) | Self::Asked(..) => "upstream-killed",
            Self::Oom => "upstream-oom-killed",
            Self::Exit(_) => "upstream-exited",
        }
    }
}
