//! TCP sockets of this host, and the system calls about them.

use std::net::SocketAddr;

use super::{
    net::{Address, Errno},
    packet::TcpHeader,
    process::Pid,
};

/// TCP states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are RFC 9293's")]
pub enum TcpState {
    Established,
    SynSent,
    SynReceived,
    FinWait1,
    FinWait2,
    TimeWait,
    Closed,
    CloseWait,
    LastAck,
    Listen,
    Closing,
    /// A request socket of Linux, not yet a connection.
    NewSynReceived,
    /// A number that no kernel known to us uses.
    Unknown(u8),
}

/// Names one `struct sock` while it lives: its address and its network namespace. Reused after the socket is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketPointer(pub u64);

/// A socket at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Socket {
    /// Which; `None` where the kernel had none (a RST for a port without listener).
    pub pointer: Option<SocketPointer>,
    /// Unique since boot, where the kernel has given one. Of a unix socket: its inode's number.
    pub cookie: Option<u64>,
    /// Network namespace (inode number), `None` unknown.
    pub netns: Option<u32>,
    /// This side.
    pub local: Option<SocketAddr>,
    /// The other side.
    pub remote: Option<SocketAddr>,
    /// The state.
    pub state: TcpState,
    /// What the application will be told.
    pub error: Option<Errno>,
    /// A transient error (an ICMP message while the SYN is repeated).
    pub soft_error: Option<Errno>,
    /// Retransmissions of the segment now outstanding.
    pub retransmits: u8,
    /// Counters and sequence numbers, where they could be read.
    pub tcp: Option<TcpCounters>,
    /// A listener's accept queue: waiting, limit.
    pub accept_queue: Option<(u32, u32)>,
}

impl Socket {
    /// An end of a connection over a unix socket, which has neither addresses nor counters; `inode`: what the kernel's records name it by.
    #[must_use]
    pub const fn over_unix(inode: u64) -> Self {
        Self {
            pointer: None,
            cookie: Some(inode),
            netns: None,
            local: None,
            remote: None,
            state: TcpState::Established,
            error: None,
            soft_error: None,
            retransmits: 0,
            tcp: None,
            accept_queue: None,
        }
    }
}

/// Whether an accept queue (waiting, limit) takes nobody more: only beyond its limit
/// (`sk_acceptq_is_full()`, <https://elixir.bootlin.com/linux/v6.12/source/include/net/sock.h>).
#[must_use]
pub const fn is_full((waiting, limit): (u32, u32)) -> bool {
    waiting > limit
}

/// What `tcp_sock` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpCounters {
    /// Bytes acknowledged by the peer.
    pub bytes_acked: u64,
    /// Payload bytes received.
    pub bytes_received: u64,
    /// Payload bytes sent, retransmissions included.
    pub bytes_sent: u64,
    /// Next byte the application writes.
    pub write_seq: u32,
    /// First byte not acknowledged.
    pub snd_una: u32,
    /// Next byte to send.
    pub snd_nxt: u32,
    /// Next byte expected.
    pub rcv_nxt: u32,
    /// Next byte the application reads.
    pub copied_seq: u32,
    /// Smoothed round-trip time, microseconds.
    pub rtt_us: u32,
    /// Retransmissions so far.
    pub total_retransmits: u32,
    /// How long ago data was last sent, microseconds, as coarse as the kernel's tick; `None` if never or not known.
    pub since_sent_us: Option<u64>,
    /// How long ago data was last received, likewise.
    pub since_received_us: Option<u64>,
}

impl TcpCounters {
    /// Bytes received that the application has not read. A FIN counts one.
    #[must_use]
    pub const fn unread(&self) -> u32 {
        self.rcv_nxt.wrapping_sub(self.copied_seq)
    }

    /// Bytes written that the peer has not acknowledged.
    #[must_use]
    pub const fn unacknowledged(&self) -> u32 {
        self.write_seq.wrapping_sub(self.snd_una)
    }
}

/// Something happened to a socket.
#[derive(Clone, Debug, PartialEq)]
pub struct SocketEvent {
    /// What.
    pub change: SocketChange,
    /// The socket afterwards.
    pub socket: Socket,
    /// The process that did it, only where the kernel's context proves it.
    pub by: Option<Pid>,
}

/// What happened to a socket.
#[derive(Clone, Debug, PartialEq)]
pub enum SocketChange {
    /// The state changed; the new one is in the socket.
    State {
        /// The state before.
        from: TcpState,
    },
    /// This host sent a RST.
    ResetSent {
        /// The kernel's reason by name, without its prefix (`NO_SOCKET`, `TCP_ABORT_ON_CLOSE`), where it gives one.
        reason: Option<String>,
        /// The packet that was answered, if one was.
        answered: Option<TcpHeader>,
    },
    /// A valid RST arrived.
    ResetReceived,
    /// A segment was sent again.
    Retransmitted {
        /// Payload bytes; 0 for a SYN or FIN.
        payload: u32,
    },
    /// A SYN-ACK was sent again by a listener.
    SynAckRetransmitted,
    /// An error became visible to the application (`error` in the socket).
    ErrorReported,
}

/// The kernel dropped a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropEvent {
    /// The reason by name, without its prefix (`NETFILTER_DROP`), where the kernel gives one.
    pub reason: Option<String>,
    /// Network namespace.
    pub netns: Option<u32>,
    /// The packet.
    pub packet: TcpHeader,
}

/// A system call returned.
#[derive(Clone, Debug, PartialEq)]
pub struct SyscallEvent {
    /// Who called.
    pub pid: Pid,
    /// Which thread.
    pub tid: Pid,
    /// What.
    pub call: Syscall,
}

/// The system calls that are watched.
#[derive(Clone, Debug, PartialEq)]
pub enum Syscall {
    /// `connect()`.
    Connect {
        /// The descriptor.
        fd: i32,
        /// The address, where it could be read.
        address: Option<Address>,
        /// The result.
        result: Result<i32, Errno>,
        /// The socket afterwards.
        socket: Option<Socket>,
    },
    /// `accept()` or `accept4()`.
    Accept {
        /// The listener's descriptor.
        listener: i32,
        /// The new descriptor.
        result: Result<i32, Errno>,
        /// The accepted socket; on failure the listener.
        socket: Option<Socket>,
        /// The other end, where it is a unix socket: its inode's number.
        peer: Option<u64>,
        /// The caller's name.
        command: String,
    },
    /// `socket()` failed.
    Socket {
        /// The address family.
        family: i32,
        /// Why.
        error: Errno,
    },
    /// `open()` or `openat()` failed for want of a descriptor.
    Open {
        /// `EMFILE` or `ENFILE`.
        error: Errno,
    },
}
