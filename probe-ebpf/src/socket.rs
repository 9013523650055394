//! Records about TCP sockets: states, resets, retransmissions, errors, drops.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Endpoint, Header};

/// TCP states as the kernel numbers them (`include/net/tcp_states.h`, unchanged since 2.6).
pub mod state {
    /// The connection carries data.
    pub const ESTABLISHED: u8 = 1;
    /// A SYN was sent.
    pub const SYN_SENT: u8 = 2;
    /// A SYN was received (the server's side).
    pub const SYN_RECV: u8 = 3;
    /// This side closed first, its FIN is not acknowledged yet.
    pub const FIN_WAIT1: u8 = 4;
    /// This side closed first, its FIN is acknowledged.
    pub const FIN_WAIT2: u8 = 5;
    /// The connection is over, its numbers rest.
    pub const TIME_WAIT: u8 = 6;
    /// Not connected.
    pub const CLOSE: u8 = 7;
    /// The peer's FIN arrived, this side has not closed.
    pub const CLOSE_WAIT: u8 = 8;
    /// The peer closed, then this side.
    pub const LAST_ACK: u8 = 9;
    /// A listener.
    pub const LISTEN: u8 = 10;
    /// Both closed at once.
    pub const CLOSING: u8 = 11;
    /// A request socket, not yet a connection.
    pub const NEW_SYN_RECV: u8 = 12;
}

/// What a socket looked like at one moment. Fields that the kernel's BTF does not have, or that could not be read, are zero;
/// [`Socket::present`] tells a zero read from a zero not read.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Socket {
    /// The address of the `struct sock`; names the socket for as long as it lives, then is reused. 0: no socket.
    pub pointer: u64,
    /// `skc_cookie`: unique since boot, 0 until somebody asked the kernel for it.
    pub cookie: u64,
    /// Bytes the peer acknowledged (`tcp_sock.bytes_acked`). Counts the SYN's and FIN's sequence numbers as the kernel does.
    pub bytes_acked: u64,
    /// Payload bytes received (`tcp_sock.bytes_received`).
    pub bytes_received: u64,
    /// Payload bytes sent, retransmissions included (`tcp_sock.bytes_sent`).
    pub bytes_sent: u64,
    /// Which fields were read: `present::*`.
    pub present: u32,
    /// Network namespace (inode number).
    pub netns: u32,
    /// `sk_err`: the errno the application will get. Positive.
    pub error: u32,
    /// `sk_err_soft`: the last transient error (an ICMP error while the SYN is repeated). Positive.
    pub soft_error: u32,
    /// Sequence number of the next byte the application writes.
    pub write_seq: u32,
    /// First byte sent and not acknowledged.
    pub snd_una: u32,
    /// Next byte to be sent for the first time (`snd_nxt`).
    pub snd_nxt: u32,
    /// Next byte expected from the peer.
    pub rcv_nxt: u32,
    /// Next byte the application will read; `rcv_nxt - copied_seq` bytes lie unread.
    pub copied_seq: u32,
    /// Smoothed round-trip time, microseconds times eight.
    pub srtt_us_8: u32,
    /// Retransmissions in the connection's life (`total_retrans`).
    pub total_retransmits: u32,
    /// `lsndtime`: low 32 bits of jiffies at the last data sent.
    pub last_sent_jiffies: u32,
    /// `icsk_ack.lrcvtime`: low 32 bits of jiffies at the last data received.
    pub last_received_jiffies: u32,
    /// Connections waiting to be accepted (listener).
    pub accept_queue: u32,
    /// The accept queue's limit (listener).
    pub accept_queue_limit: u32,
    /// TCP state, `state::*`; 0 where the kernel's record does not say.
    pub state: u8,
    /// `sk_shutdown`: 1 receiving is shut, 2 sending is shut.
    pub shutdown: u8,
    /// `icsk_retransmits`: retransmissions of the segment now outstanding.
    pub retransmits: u8,
    /// The state the kernel left, in [`StateChange`]; else equal to `state`.
    pub old_state: u8,
    /// This side.
    pub local: Endpoint,
    /// The other side.
    pub remote: Endpoint,
}

/// Bits of [`Socket::present`].
pub mod present {
    /// Addresses, state and namespace.
    pub const TUPLE: u32 = 1;
    /// `error`, `soft_error`, `shutdown`.
    pub const ERROR: u32 = 2;
    /// Sequence numbers, byte counters, round-trip time, times: everything from `tcp_sock`.
    pub const TCP: u32 = 4;
    /// Accept queue fields.
    pub const QUEUE: u32 = 8;
}

/// A watched socket changed its state (`sock:inet_sock_set_state`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StateChange {
    /// `header.tgid` is meaningful only if `in_task` is 1.
    pub header: Header,
    /// The socket after the change; `old_state` is the state before.
    pub socket: Socket,
    /// Jiffies now.
    pub jiffies: u64,
    /// 1 if the change was made by the current task (connect, close), 0 if in softirq, 2 if not known.
    pub in_task: u32,
    /// Zero.
    pub reserved: u32,
}

/// Retransmission, error report, reset received: a socket and a number.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketEvent {
    /// `header.kind` says which.
    pub header: Header,
    /// The socket.
    pub socket: Socket,
    /// Jiffies now.
    pub jiffies: u64,
    /// `ResetSent`: the kernel's reason number or [`NO_REASON`]. `Retransmit`: payload bytes of the segment.
    /// `ErrorReport`: the errno. Else 0.
    pub value: u32,
    /// `ResetSent`: 1 if the reset answers a packet (`packet` is its header), 0 if an application or timer caused it.
    pub has_packet: u32,
    /// The packet that was answered, dropped or repeated, where there is one.
    pub packet: Packet,
}

/// The kernel gives no reason with this event.
pub const NO_REASON: u32 = u32::MAX;

/// The TCP header of a packet as the kernel held it.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Packet {
    /// Sender.
    pub source: Endpoint,
    /// Receiver.
    pub destination: Endpoint,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// TCP flags, the header's byte 13; for ICMP the type.
    pub flags: u8,
    /// IP protocol (6 TCP, 1 ICMP, 58 `ICMPv6`).
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Zero.
    pub reserved: u8,
    /// Length of the packet from the IP header on, bytes; 0 unknown.
    pub length: u32,
}

/// The kernel dropped a packet of a watched flow (`skb:kfree_skb`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Drop {
    /// `header.tgid` says nothing here.
    pub header: Header,
    /// The drop reason's number, named in user space by the running kernel's enum; [`NO_REASON`] where the kernel gives none.
    pub reason: u32,
    /// Network namespace (inode number), 0 unknown.
    pub netns: u32,
    /// The code address that dropped it.
    pub location: u64,
    /// The packet.
    pub packet: Packet,
}
