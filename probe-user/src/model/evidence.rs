//! What a verdict rests on.

use std::net::{IpAddr, SocketAddr};

use super::{
    event::EventId,
    host::{Asker, PathPart, RouteKind},
    net::Errno,
    process::{Acceptor, Ending, Halt, Pid, Sender},
};

/// How much a piece of evidence proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Fits: timing, a log line alone.
    Fits,
    /// The symptom itself was seen, by the kernel or on the wire.
    Symptom,
    /// The cause itself was seen, by the kernel or on the wire.
    Direct,
}

/// A fact with the events it rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// The fact.
    pub fact: Fact,
    /// The events.
    pub events: Vec<EventId>,
    /// How much it proves.
    pub weight: Weight,
}

/// Facts, with their values. Their wording belongs to the reports.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// nginx logged this.
    Complained {
        /// The text.
        text: String,
        /// The errno.
        errno: Option<Errno>,
    },
    /// A RST answered the SYN.
    SynReset {
        /// Who was asked.
        upstream: SocketAddr,
    },
    /// This host's kernel sent that RST because no socket listens there.
    NoListener {
        /// The address.
        upstream: SocketAddr,
    },
    /// Somebody does listen there.
    ListensThere {
        /// Where.
        address: SocketAddr,
        /// Who.
        process: Option<(Option<Pid>, String)>,
    },
    /// Something listens nearby.
    ListensNearby {
        /// Where.
        address: SocketAddr,
        /// Who.
        process: Option<(Option<Pid>, String)>,
    },
    /// Who used to listen there, and what became of it.
    FormerListener {
        /// Where.
        upstream: SocketAddr,
        /// Who.
        process: (Pid, String),
        /// How it ended, where that was seen.
        how: Option<Ending>,
        /// The signal that asked it to, and who sent it.
        signal: Option<(u32, Option<Sender>)>,
        /// How long before nginx asked it was gone, microseconds.
        ago_us: Option<u64>,
    },
    /// Full accept queues of the listener's network namespace refused handshakes meanwhile.
    ListenOverflows {
        /// How many.
        count: u64,
    },
    /// The route this host has to the upstream.
    Route {
        /// What it does.
        kind: RouteKind,
        /// For what.
        destination: Option<String>,
    },
    /// This host led the connection elsewhere ([`super::host::HostFact::Translated`]).
    Translated {
        /// The upstream, as nginx has it.
        upstream: SocketAddr,
        /// Where it went.
        to: SocketAddr,
    },
    /// It led others to the same upstream there; of this one nobody knows.
    OthersTranslated {
        /// The upstream, as nginx has it.
        upstream: SocketAddr,
        /// Where they went, latest first.
        to: Vec<SocketAddr>,
    },
    /// Local ports towards the upstream.
    LocalPorts {
        /// First and last.
        range: (u16, u16),
        /// Held.
        in_use: u32,
        /// Of these, in `TIME_WAIT`.
        waiting: u32,
    },
    /// Open files of the system.
    SystemFiles {
        /// Open.
        open: u64,
        /// The limit.
        limit: u64,
    },
    /// A name of the configuration has other addresses now than the one nginx holds.
    NameMoved {
        /// The name.
        name: String,
        /// What nginx holds.
        holds: SocketAddr,
        /// What it resolves to now.
        now: Vec<SocketAddr>,
    },
    /// A part of the path denies the worker.
    PathDenied {
        /// Which.
        part: PathPart,
        /// Whom.
        asker: Asker,
        /// To write; else to search.
        write: bool,
    },
    /// A part of the path does not exist.
    PathMissing {
        /// Which.
        path: String,
    },
    /// Nobody listens on the unix socket.
    NoUnixListener {
        /// Its path.
        path: String,
    },
    /// The queue of the unix socket.
    UnixQueue {
        /// Who listens.
        process: Option<(Option<Pid>, String)>,
        /// Waiting.
        waiting: u32,
        /// The limit.
        limit: u32,
    },
    /// The socket was told this errno.
    SocketError {
        /// The errno.
        errno: Errno,
    },
    /// The upstream's FIN arrived.
    FinReceived {
        /// Whether it acknowledged the whole request: `false` means the close crossed the request. `None`: not known.
        acknowledged_request: Option<bool>,
    },
    /// A RST arrived on nginx's socket.
    ResetReceived {
        /// Microseconds after nginx began the attempt.
        after_request_us: Option<u64>,
    },
    /// The upstream's end on this host sent that RST.
    UpstreamKernelReset {
        /// The kernel's reason.
        reason: Option<String>,
        /// Bytes of the request the upstream's application had not read.
        unread: Option<u32>,
    },
    /// The upstream's process on this host closed the connection.
    UpstreamClosed {
        /// The process.
        process: Option<(Pid, String)>,
    },
    /// The connection had served requests before and was idle.
    IdleConnection {
        /// Requests before this one.
        requests_before: Option<u64>,
        /// How long, microseconds.
        idle_us: Option<u64>,
    },
    /// Not a byte of a response came.
    NoResponseByte,
    /// Part of a response header came.
    PartialResponse {
        /// Bytes.
        bytes: u64,
    },
    /// The SYN was sent again so many times, and no answer arrived.
    SynUnanswered {
        /// Retransmissions.
        retransmits: u32,
        /// Microseconds from the first SYN to giving up.
        waited_us: Option<u64>,
    },
    /// The upstream answered the SYN, and its answer had not arrived when nginx gave up.
    SynAckLost {
        /// How many SYN-ACKs were seen.
        times: u32,
    },
    /// nginx's own timer ended it.
    NginxTimer {
        /// The directive.
        directive: &'static str,
        /// Its value as configured, where one value holds.
        configured: Option<String>,
    },
    /// The kernel gave up.
    KernelTimer,
    /// The request was taken: every byte acknowledged.
    RequestAcknowledged {
        /// Bytes.
        bytes: Option<u64>,
    },
    /// Nothing came back for so long, microseconds.
    Silence {
        /// How long.
        us: Option<u64>,
    },
    /// A system call failed.
    SyscallFailed {
        /// Which.
        call: &'static str,
        /// Who called.
        process: Option<(Pid, String)>,
        /// The errno.
        errno: Errno,
    },
    /// Open files against the limit.
    OpenFiles {
        /// The process.
        process: (Pid, String),
        /// Open.
        open: u64,
        /// The limit.
        limit: Option<u64>,
    },
    /// An ICMP message came about the connection.
    Icmp {
        /// From whom.
        from: IpAddr,
        /// Type.
        icmp_type: u8,
        /// Code.
        code: u8,
        /// `ICMPv6`.
        v6: bool,
    },
    /// The upstream sent a TLS alert.
    TlsAlert {
        /// 1 warning, 2 fatal.
        level: u8,
        /// Its number (RFC 8446, section 6).
        description: u8,
    },
    /// Bytes of an answer lay unread in nginx's socket when it was reset.
    UnreadAnswer {
        /// How many.
        bytes: u32,
    },
    /// Everything on the way was acknowledged, and so much more waited for room at the other end.
    HeldBack {
        /// How many bytes.
        bytes: u32,
    },
    /// The upstream closed its receive window.
    ZeroWindow,
    /// Bytes were sent again and not acknowledged.
    Unacknowledged {
        /// How many at the end.
        bytes: Option<u32>,
        /// How often segments were sent again.
        times: u32,
    },
    /// A process accepted this very connection.
    AcceptedBy {
        /// Who.
        process: (Pid, String),
    },
    /// A process closed its listener, and with it the connection, which nobody had accepted.
    ClosedUnaccepted {
        /// Who.
        process: Pid,
    },
    /// A process still held the connection when it ended.
    HeldAtEnd {
        /// Who.
        process: (Pid, String),
    },
    /// A process ended.
    ProcessEnded {
        /// Who.
        process: (Pid, String),
        /// How.
        how: Ending,
    },
    /// A signal was sent.
    Signalled {
        /// To whom.
        process: Pid,
        /// Which.
        signal: u32,
        /// By whom; `None`: the kernel.
        sender: Option<Sender>,
    },
    /// The OOM killer took a process.
    OomKilled {
        /// Who.
        process: Pid,
    },
    /// A peer had failed before and was out of rotation.
    PeerDisabled {
        /// The peer.
        peer: String,
        /// The case it failed in.
        case: String,
        /// The cause there.
        cause: Option<&'static str>,
        /// Microseconds before this one.
        before_us: u64,
    },
    /// No socket was opened and no packet sent for this request.
    NothingTried,
    /// The configuration itself answers.
    Configured {
        /// The directive as written.
        directive: String,
        /// Where: `location /cart`.
        place: String,
    },
    /// nginx's upstream module made the answer before it looked for a peer.
    FromCache,
    /// The same request had failed before.
    StoredBefore {
        /// In this case.
        case: String,
        /// Microseconds before this one.
        before_us: u64,
    },
    /// What came does not look like what was expected.
    LooksLike {
        /// The protocol it looks like.
        what: &'static str,
    },
    /// A RST whose TTL is not that of the upstream's other packets.
    ForeignTtl {
        /// The RST's.
        reset: u8,
        /// The others'.
        peer: u8,
    },
    /// A RST whose IP identification is far from those of the upstream's other packets, which count up.
    ForeignId {
        /// The RST's.
        reset: u16,
        /// The nearest of the others'.
        peer: u16,
    },
    /// The upstream sent on after that RST, as an end that has reset a connection does not.
    SentOn {
        /// New bytes of payload.
        bytes: u32,
        /// How long after the RST the first of them came, microseconds.
        after_us: u64,
    },
    /// The upstream's kernel, this host's own, sent an answer that never arrived.
    AnswerNotTaken {
        /// Bytes of it that were under way.
        bytes: u32,
        /// How often segments were sent again.
        times: u32,
    },
    /// The upstream's reset destroyed bytes that its application had written.
    AnswerDestroyed {
        /// How many.
        bytes: u32,
    },
    /// Every byte that the upstream's application had written by its close arrived.
    AnswerArrived,
    /// The kernel dropped a packet of the flow.
    Dropped {
        /// The reason.
        reason: Option<String>,
    },
    /// The accept queue of the listener.
    AcceptQueue {
        /// Waiting.
        waiting: u32,
        /// The limit.
        limit: u32,
    },
    /// The upstream answered this status itself.
    UpstreamStatus {
        /// The status.
        status: u16,
        /// The line as seen.
        line: Option<String>,
    },
    /// What a process was doing.
    ProcessState {
        /// The process.
        process: (Pid, String),
        /// Its state letter.
        state: char,
        /// The kernel function it slept in.
        wait_channel: Option<String>,
        /// The system call that it slept in.
        call: Option<String>,
        /// What kept it from running.
        halt: Option<Halt>,
    },
    /// Nobody had accepted the connection when nginx left it.
    NeverAccepted,
    /// What those who may accept there are doing.
    Acceptors {
        /// Each of them.
        processes: Vec<Acceptor>,
    },
}
