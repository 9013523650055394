//! One try of nginx to get a response from one upstream peer for one request.

use super::{
    complaint::Complaint,
    event::{Body, Event, EventId},
    flow::Flow,
    net::{Address, Errno},
    process::Pid,
    socket::{Socket, Syscall},
    time::Moment,
    wire::WireHead,
};

/// How things from two sources belong together. Nobody picks the first of several.
#[derive(Clone, Debug, PartialEq)]
pub enum Joined<T> {
    /// Certainly this one.
    One(T),
    /// It can be any of these.
    Several(Vec<T>),
    /// Nothing fits.
    None,
}

impl<T> Joined<T> {
    /// The only one, if there is only one.
    #[must_use]
    pub const fn one(&self) -> Option<&T> {
        match self {
            Self::One(value) => Some(value),
            Self::Several(_) | Self::None => None,
        }
    }
}

/// How an attempt is tied to its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    /// Time and content.
    Inferred,
    /// Same worker, same turn of the event loop.
    Strong,
    /// nginx's own connection number or pointers.
    Exact,
}

impl Link {
    /// The contract's word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inferred => "inferred",
            Self::Strong => "strong",
            Self::Exact => "exact",
        }
    }
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the contract defines these words")]
pub enum Outcome {
    Refused,
    Unreachable,
    TimeoutConnect,
    LocalError,
    Reset,
    Closed,
    TimeoutRead,
    TimeoutSend,
    BadResponse,
    TlsFailed,
    Ok,
    Unknown,
}

impl Outcome {
    /// The contract's word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TimeoutConnect => "timeout-connect",
            Self::LocalError => "local-error",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::TimeoutRead => "timeout-read",
            Self::TimeoutSend => "timeout-send",
            Self::BadResponse => "bad-response",
            Self::TlsFailed => "tls-failed",
            Self::Ok => "ok",
            Self::Unknown => "unknown",
        }
    }
}

/// An attempt. What is not known is `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// The peer's address.
    pub upstream: Option<Address>,
    /// The peer's name as nginx has it: its address, or the group's name when no peer was taken.
    pub peer_name: Option<String>,
    /// Its connection.
    pub flow: Joined<Flow>,
    /// The upstream's socket at the moment nginx complained.
    pub socket_at_failure: Option<Socket>,
    /// When nginx complained, and the event (uprobe record or log line) it was heard in.
    pub complaint: Option<(Event, Complaint)>,
    /// What became of it.
    pub outcome: Outcome,
    /// The errno.
    pub errno: Option<Errno>,
    /// nginx's status for it.
    pub status: Option<u16>,
    /// The connection had served requests before.
    pub reused: Option<bool>,
    /// How many.
    pub requests_before: Option<u64>,
    /// How long it had been idle before this request, microseconds.
    pub idle_us: Option<u64>,
    /// When it began.
    pub started: Option<Moment>,
    /// How long it took, microseconds.
    pub duration_us: Option<u64>,
    /// Bytes sent to the peer for this request.
    pub bytes_sent: Option<u64>,
    /// Bytes received from the peer for this request.
    pub bytes_received: Option<u64>,
    /// What a capture shows of the answer's head.
    pub head: Option<WireHead>,
    /// System calls that belong to it and to no flow: of the worker a failed `socket()`, a `connect()` to a unix socket; of the server the
    /// `accept()` of a connection over one.
    pub syscalls: Vec<Event>,
    /// How it is tied to the request.
    pub link: Link,
}

impl Attempt {
    /// The process that accepted its connection, and its name.
    #[must_use]
    pub fn holder(&self) -> Option<(Pid, &str)> {
        let of_flow = self.flow.one().and_then(|flow| flow.accepted_by.as_ref());
        of_flow
            .map(|(pid, command)| (*pid, command.as_str()))
            .or_else(|| self.unix_accept().map(|(_, pid, name)| (pid, name)))
    }

    /// Whether everything of the answer that its header promised had reached nginx's host when nginx complained. `None`: not known. Of a
    /// reused connection it is not asked: an earlier answer can be the one whose header was seen.
    #[must_use]
    pub fn answer_was_whole(&self) -> Option<bool> {
        let (complained, _) = self.complaint.as_ref()?;
        let flow = self.flow.one().filter(|_| self.reused == Some(false))?;
        let tcp = self.socket_at_failure.as_ref()?.tcp?;
        let (sequence, promised) = flow.packets_from_upstream().find_map(|(event, packet)| {
            let promised = packet.promised.filter(|_| event.at.earliest <= complained.at.latest)?;
            Some((packet.header.sequence, promised))
        })?;
        let received = u64::from(tcp.rcv_nxt.wrapping_sub(sequence));
        Some(received >= u64::from(promised.header).saturating_add(promised.body))
    }

    /// The `accept()` of its connection over a unix socket, who called it, and the caller's name.
    #[must_use]
    pub fn unix_accept(&self) -> Option<(EventId, Pid, &str)> {
        self.syscalls.iter().find_map(|event| match &event.body {
            Body::Syscall(call) => match &call.call {
                Syscall::Accept { result: Ok(_), peer: Some(_), command, .. } => {
                    Some((event.id, call.pid, command.as_str()))
                }
                _ => None,
            },
            _ => None,
        })
    }
}
