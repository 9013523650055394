//! Packets.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

/// Methods of HTTP that are believed even where the capture cut the request line before its end.
pub const METHODS: &[&[u8]] =
    &[b"GET", b"POST", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE", b"PROPFIND", b"REPORT"];

/// Points back at a captured packet: `packets.pcapng#12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketRef(pub u64);

/// What a captured packet begins with: a number of <https://www.tcpdump.org/linktypes.html>.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LinkType(pub u16);

impl LinkType {
    /// Four bytes of address family in the capturing host's byte order (BSD loopback).
    pub const NULL: Self = Self(0);
    /// Ethernet.
    pub const ETHERNET: Self = Self(1);
    /// An IP packet without anything before it.
    pub const RAW: Self = Self(101);
    /// Four bytes of address family in network order.
    pub const LOOP: Self = Self(108);
    /// Linux "cooked", version 1.
    pub const LINUX_SLL: Self = Self(113);
    /// An IPv4 packet.
    pub const IPV4: Self = Self(228);
    /// An IPv6 packet.
    pub const IPV6: Self = Self(229);
    /// Linux "cooked", version 2.
    pub const LINUX_SLL2: Self = Self(276);
}

/// Which way a packet went past the capturing interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Direction {
    /// Into this host (or namespace).
    Inbound,
    /// Out of it.
    Outbound,
    /// The capture does not say.
    #[default]
    Unknown,
}

/// The part of a TCP header that decides fates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpHeader {
    /// Sender.
    pub source: SocketAddr,
    /// Receiver.
    pub destination: SocketAddr,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number (meaningful with the ACK flag).
    pub acknowledgement: u32,
    /// Flags.
    pub flags: TcpFlags,
    /// TTL or hop limit, 0 if not known.
    pub ttl: u8,
}

/// TCP flags, byte 13 of the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// FIN.
    #[must_use]
    pub const fn fin(self) -> bool {
        self.0 & 1 != 0
    }

    /// SYN.
    #[must_use]
    pub const fn syn(self) -> bool {
        self.0 & 2 != 0
    }

    /// RST.
    #[must_use]
    pub const fn rst(self) -> bool {
        self.0 & 4 != 0
    }

    /// PSH.
    #[must_use]
    pub const fn psh(self) -> bool {
        self.0 & 8 != 0
    }

    /// ACK.
    #[must_use]
    pub const fn ack(self) -> bool {
        self.0 & 16 != 0
    }
}

/// A packet seen on an interface.
#[derive(Clone, Debug, PartialEq)]
pub struct PacketEvent {
    /// Where it is kept.
    pub reference: PacketRef,
    /// The network namespace it was captured in (inode number).
    pub netns: Option<u32>,
    /// What it is.
    pub body: PacketBody,
}

/// What a packet is.
#[derive(Clone, Debug, PartialEq)]
pub enum PacketBody {
    /// TCP.
    Tcp(TcpPacket),
    /// ICMP or ICMPv6 about a TCP flow.
    Icmp(IcmpPacket),
}

/// A TCP packet.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpPacket {
    /// Its header.
    pub header: TcpHeader,
    /// Payload bytes on the wire (may be more than were captured).
    pub payload_length: u32,
    /// Receive window as in the header, not scaled.
    pub window: u16,
    /// IPv4 identification, `None` for IPv6.
    pub ip_id: Option<u16>,
    /// What the first payload bytes look like.
    pub content: Content,
    /// Of a response whose whole header was captured: how long it says it is.
    pub promised: Option<Promised>,
}

/// How long a response is by its own header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promised {
    /// Bytes of the header, its empty line included.
    pub header: u32,
    /// `Content-Length`.
    pub body: u64,
}

/// What a payload begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// No payload.
    Empty,
    /// `HTTP/1.1 502 Bad Gateway`.
    HttpStatus {
        /// The code.
        code: u16,
        /// The status line, without the line end; cut where the capture cut it.
        line: Arc<str>,
    },
    /// `GET /cart HTTP/1.1`.
    HttpRequest {
        /// The request line; cut where the capture cut it.
        line: Arc<str>,
        /// The Host header, where it was captured.
        host: Option<Arc<str>>,
    },
    /// A TLS record of this content type (20 … 24).
    Tls {
        /// 20 change cipher spec, 21 alert, 22 handshake, 23 data.
        content_type: u8,
        /// Level and description of an alert in the clear.
        alert: Option<(u8, u8)>,
    },
    /// The first words of another protocol.
    Foreign(Foreign),
    /// Anything else.
    Other,
    /// There is a payload, and none of it was captured.
    NotCaptured,
}

impl Content {
    /// How other servers begin to speak.
    #[must_use]
    pub fn foreign(payload: &[u8]) -> Option<Self> {
        Foreign::of(payload).map(|(foreign, _)| Self::Foreign(foreign))
    }

    /// A record header: type, version 3.x, length of at most 2^14 + 2048 (RFC 5246, section 6.2.3).
    #[must_use]
    pub fn tls(payload: &[u8]) -> Option<Self> {
        let [content_type @ 20..=24, 3, 0..=4, high, low, fragment @ ..] = payload else { return None };
        let length = u16::from_be_bytes([*high, *low]);
        if length == 0 || length > 16_384 + 2_048 {
            return None;
        }
        let alert = match (content_type, length, fragment) {
            // An encrypted alert is longer.
            (21, 2, [level @ 1..=2, description, ..]) => Some((*level, *description)),
            _ => None,
        };
        Some(Self::Tls { content_type: *content_type, alert })
    }
}

/// Protocols that are met where HTTP was expected, by how they begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Foreign {
    /// `SSH-2.0-…` (RFC 4253, section 4.2).
    Ssh,
    /// `220 …`: SMTP or FTP.
    Mail,
    /// `-ERR …`: Redis, or POP3.
    Redis,
    /// `<html…` or `<!DOCTYPE…` without a header before it.
    Html,
    /// A `SETTINGS` frame (RFC 9113, section 3.4).
    Http2,
}

impl Foreign {
    /// What a payload is of, and how many bytes show it.
    #[must_use]
    pub fn of(payload: &[u8]) -> Option<(Self, usize)> {
        const BEGINNINGS: [(&[u8], Foreign); 6] = [
            (b"SSH-", Foreign::Ssh),
            (b"220 ", Foreign::Mail),
            (b"-ERR", Foreign::Redis),
            (b"<htm", Foreign::Html),
            (b"<HTM", Foreign::Html),
            (b"<!DO", Foreign::Html),
        ];
        // A `SETTINGS` frame on stream 0: its header has nine bytes.
        if let [0, 0, 0..=60, 4, 0, 0, 0, 0, 0, ..] = payload {
            return Some((Self::Http2, 9));
        }
        let found = BEGINNINGS.iter().find(|(beginning, _)| payload.starts_with(beginning));
        found.map(|(beginning, foreign)| (*foreign, beginning.len()))
    }

    /// As a sentence says it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ssh => "SSH",
            Self::Mail => "SMTP or FTP",
            Self::Redis => "Redis or POP3",
            Self::Html => "HTML without a header",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// An ICMP message about a TCP flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IcmpPacket {
    /// Who sent it.
    pub from: IpAddr,
    /// Type (numbering of ICMP or ICMPv6 after `v6`).
    pub icmp_type: u8,
    /// Code.
    pub code: u8,
    /// ICMPv6.
    pub v6: bool,
    /// The TCP packet it is about: source and destination.
    pub about: (SocketAddr, SocketAddr),
    /// The sequence number of that packet, where it is a SYN and so much of it is quoted.
    pub syn: Option<u32>,
}
