//! What the first stage hands to the second: a TCP segment, or an ICMP message about one.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::model::packet::{TcpFlags, TcpHeader};

/// An address with a port, IPv4 as IPv4-mapped IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// Upper and lower half of the address.
    pub address: [u64; 2],
    /// The port.
    pub port: u16,
}

/// `::ffff:0:0/96`.
const MAPPED: u64 = 0xffff_0000_0000;

impl End {
    /// Of an IPv4 address.
    #[must_use]
    pub fn v4(address: [u8; 4], port: u16) -> Self {
        Self { address: [0, MAPPED | u64::from(u32::from_be_bytes(address))], port }
    }

    /// Of an IPv6 address.
    #[must_use]
    pub fn v6(address: [u8; 16], port: u16) -> Self {
        let whole = u128::from_be_bytes(address);
        let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or(0);
        Self { address: [half(whole >> 64), half(whole)], port }
    }

    /// As others write it.
    #[must_use]
    pub fn socket(self) -> SocketAddr {
        let [high, low] = self.address;
        let ip = Ipv6Addr::from((u128::from(high) << 64) | u128::from(low));
        let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
        SocketAddr::new(ip, self.port)
    }

    /// From what others write.
    #[must_use]
    pub fn of(address: SocketAddr) -> Self {
        match address.ip() {
            IpAddr::V4(ip) => Self::v4(ip.octets(), address.port()),
            IpAddr::V6(ip) => Self::v6(ip.octets(), address.port()),
        }
    }
}

/// A connection's two ends, the lower one first, so that both directions have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// The lower end.
    pub low: End,
    /// The higher end.
    pub high: End,
}

impl Pair {
    /// Of a packet's source and destination; also whether the source is the lower end.
    #[must_use]
    pub fn of(source: End, destination: End) -> (Self, bool) {
        if source <= destination {
            (Self { low: source, high: destination }, true)
        } else {
            (Self { low: destination, high: source }, false)
        }
    }

    /// A number that is spread evenly: by folded multiplication, with constants that have as many ones as zeros.
    #[must_use]
    pub fn hash(&self) -> u32 {
        let fold = |a: u64, b: u64| {
            let wide = u128::from(a) * u128::from(b);
            // Both halves of the product.
            u64::try_from(wide >> 64).unwrap_or(0) ^ u64::try_from(wide & u128::from(u64::MAX)).unwrap_or(0)
        };
        let ports = (u64::from(self.low.port) << 16) | u64::from(self.high.port);
        let first = fold(self.low.address[1] ^ 0x9e37_79b9_7f4a_7c15, self.high.address[1] ^ 0xc2b2_ae3d_27d4_eb4f);
        let second = fold(
            self.low.address[0] ^ self.high.address[0].rotate_left(32) ^ 0x1656_67b1_9e37_79f9,
            ports ^ 0x27d4_eb2f_1656_67c5,
        );
        let mixed = fold(first ^ ports.rotate_left(17), second ^ 0x8536_7ac3_1b4d_9e07);
        u32::try_from((mixed ^ (mixed >> 32)) & u64::from(u32::MAX)).unwrap_or(0)
    }
}

/// Where the bytes of a payload are: in the batch's block, or in what was put together from fragments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Their beginning.
    pub at: u32,
    /// How many were captured.
    pub length: u32,
    /// They are in [`Batch::mended`].
    pub mended: bool,
}

/// A TCP segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Nanoseconds since 1970.
    pub unix_ns: u64,
    /// The packet's number in its file, from 1, as other tools count.
    pub number: u64,
    /// The two ends.
    pub pair: Pair,
    /// [`Pair::hash`].
    pub hash: u32,
    /// The lower end sent it.
    pub from_low: bool,
    /// Which interface of the file.
    pub interface: u16,
    /// The innermost VLAN; 0: none.
    pub vlan: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Payload bytes on the wire.
    pub length: u32,
    /// What was captured of them.
    pub payload: Span,
    /// Receive window, not scaled.
    pub window: u16,
    /// IPv4 identification; `None` for IPv6.
    pub ip_id: Option<u16>,
    /// Flags.
    pub flags: TcpFlags,
    /// TTL or hop limit.
    pub ttl: u8,
    /// The capture may have seen it twice by its nature (Linux' "any", several interfaces).
    pub may_repeat: bool,
}

impl Segment {
    /// Who sent it.
    #[must_use]
    pub const fn source(&self) -> End {
        if self.from_low { self.pair.low } else { self.pair.high }
    }

    /// Who is to get it.
    #[must_use]
    pub const fn destination(&self) -> End {
        if self.from_low { self.pair.high } else { self.pair.low }
    }

    /// Its header as the rest of the program has it.
    #[must_use]
    pub fn header(&self) -> TcpHeader {
        TcpHeader {
            source: self.source().socket(),
            destination: self.destination().socket(),
            sequence: self.sequence,
            acknowledgement: self.acknowledgement,
            flags: self.flags,
            ttl: self.ttl,
        }
    }
}

/// An ICMP error about a TCP segment.
#[derive(Clone, Copy, Debug)]
pub struct Unreachable {
    /// Nanoseconds since 1970.
    pub unix_ns: u64,
    /// The packet's number in its file.
    pub number: u64,
    /// Who sent it.
    pub from: End,
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// ICMPv6.
    pub v6: bool,
    /// Source of the segment it is about.
    pub source: End,
    /// Destination of it.
    pub destination: End,
}

/// One thing that was read.
#[derive(Clone, Copy, Debug)]
pub enum Item {
    /// A segment.
    Segment(Segment),
    /// An ICMP error.
    Unreachable(Unreachable),
}

impl Item {
    /// When it was captured.
    #[must_use]
    pub const fn unix_ns(&self) -> u64 {
        match self {
            Self::Segment(segment) => segment.unix_ns,
            Self::Unreachable(unreachable) => unreachable.unix_ns,
        }
    }
}

/// What was read from one block of a file.
#[derive(Debug, Default)]
pub struct Batch {
    /// The block, as it was read.
    pub block: Vec<u8>,
    /// Payloads that were put together from fragments.
    pub mended: Vec<u8>,
    /// What was in it, in the file's order.
    pub items: Vec<Item>,
}

impl Batch {
    /// A segment's captured payload.
    #[must_use]
    pub fn payload(&self, segment: &Segment) -> &[u8] {
        let bytes = if segment.payload.mended { &self.mended } else { &self.block };
        let begin = usize::try_from(segment.payload.at).unwrap_or(usize::MAX);
        let length = usize::try_from(segment.payload.length).unwrap_or(usize::MAX);
        bytes.get(begin..).and_then(|rest| rest.get(..length)).unwrap_or_default()
    }
}
