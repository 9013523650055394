//! Captures made up packet by packet: what clients, nginx and upstreams say to each other, as Ethernet frames, in the file formats and
//! the wrappings that captures come in.

use std::net::{IpAddr, SocketAddr};

/// A frame and when it was captured, nanoseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// When.
    pub unix_ns: u64,
    /// The IP packet in it.
    pub packet: Vec<u8>,
}

/// Frames in the order of their times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capture {
    /// The frames.
    pub frames: Vec<Frame>,
}

/// TCP's flags.
mod flag {
    pub(super) const FIN: u8 = 1;
    pub(super) const SYN: u8 = 2;
    pub(super) const RST: u8 = 4;
    pub(super) const PSH: u8 = 8;
    pub(super) const ACK: u8 = 16;
}

/// How a file says which bytes and times it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// The most significant byte first.
    pub big_endian: bool,
    /// Nanoseconds instead of microseconds.
    pub nanoseconds: bool,
}

/// What is around an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrap {
    /// Ethernet.
    Ethernet,
    /// Ethernet with an 802.1Q tag.
    Vlan,
    /// Ethernet with two tags.
    QinQ,
    /// Nothing.
    Raw,
    /// BSD's loopback, the family in the byte order of the host.
    Null,
    /// Linux' "any".
    Sll,
    /// Linux' "any", newer.
    Sll2,
    /// Generic routing encapsulation in IPv4 in Ethernet.
    Gre,
    /// VXLAN in UDP in IPv4 in Ethernet.
    Vxlan,
}

impl Wrap {
    /// All of them.
    pub const ALL: [Self; 9] =
        [Self::Ethernet, Self::Vlan, Self::QinQ, Self::Raw, Self::Null, Self::Sll, Self::Sll2, Self::Gre, Self::Vxlan];

    /// The link type (<https://www.tcpdump.org/linktypes.html>).
    #[must_use]
    pub const fn link(self) -> u16 {
        match self {
            Self::Ethernet | Self::Vlan | Self::QinQ | Self::Gre | Self::Vxlan => 1,
            Self::Raw => 101,
            Self::Null => 0,
            Self::Sll => 113,
            Self::Sll2 => 276,
        }
    }

    /// The packet in its wrapping.
    #[must_use]
    pub fn around(self, packet: &[u8]) -> Vec<u8> {
        const ETHERNET: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        let v6 = packet.first().is_some_and(|first| first >> 4 == 6);
        let protocol: [u8; 2] = if v6 { [0x86, 0xdd] } else { [8, 0] };
        match self {
            Self::Ethernet => [&ETHERNET[..], &protocol, packet].concat(),
            Self::Vlan => [&ETHERNET[..], &[0x81, 0, 0, 7], &protocol, packet].concat(),
            Self::QinQ => [&ETHERNET[..], &[0x88, 0xa8, 0, 9, 0x81, 0, 0, 7], &protocol, packet].concat(),
            Self::Raw => packet.to_vec(),
            // AF_INET6 is 30 where this link type comes from most often, macOS.
            Self::Null => [&[if v6 { 30 } else { 2 }, 0, 0, 0], packet].concat(),
            Self::Sll => [&[0, 0, 3, 4, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0], &protocol[..], packet].concat(),
            Self::Sll2 => [&protocol[..], &[0, 0, 0, 0, 0, 2, 3, 4, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0], packet].concat(),
            Self::Gre => {
                let inner = [&[0, 0], &protocol[..], packet].concat();
                [&ETHERNET[..], &[8, 0], &outer(47, &inner)].concat()
            }
            Self::Vxlan => {
                let inner = [&[8, 0, 0, 0, 0, 0, 7, 0], &ETHERNET[..], &protocol, packet].concat();
                let length = u16::try_from(inner.len() + 8).unwrap_or(u16::MAX).to_be_bytes();
                let udp = [&[0xc0, 1], &4_789_u16.to_be_bytes()[..], &length, &[0, 0], &inner].concat();
                [&ETHERNET[..], &[8, 0], &outer(17, &udp)].concat()
            }
        }
    }
}

/// An IPv4 packet between two hosts that tunnel.
fn outer(protocol: u8, content: &[u8]) -> Vec<u8> {
    ip(
        SocketAddr::from(([192, 0, 2, 1], 0)).ip(),
        SocketAddr::from(([192, 0, 2, 2], 0)).ip(),
        protocol,
        (1, 0),
        content,
    )
}

/// An IP packet; the identification and the fragment field are IPv4's.
fn ip(source: IpAddr, destination: IpAddr, protocol: u8, (id, fragment): (u16, u16), content: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = u16::try_from(20 + content.len()).unwrap_or(u16::MAX).to_be_bytes();
            let (id, fragment) = (id.to_be_bytes(), fragment.to_be_bytes());
            let head = [0x45, 0, length[0], length[1], id[0], id[1], fragment[0], fragment[1], 63, protocol, 0, 0];
            [&head[..], &source.octets(), &destination.octets(), content].concat()
        }
        (source, destination) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V6(v6) => v6.octets(),
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            };
            let length = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
            let head = [0x60, 0, 0, 0, length[0], length[1], protocol, 63];
            [&head[..], &octets(source), &octets(destination), content].concat()
        }
    }
}

impl Capture {
    /// As a pcap file.
    #[must_use]
    pub fn pcap(&self, form: Form, wrap: Wrap) -> Vec<u8> {
        let magic: u32 = if form.nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
        let word = |value: u32| if form.big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        let half = |value: u16| if form.big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        let mut file =
            [&word(magic)[..], &half(2), &half(4), &[0; 8], &word(262_144), &word(wrap.link().into())].concat();
        for frame in &self.frames {
            let bytes = wrap.around(&frame.packet);
            let length = word(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            let part = frame.unix_ns % 1_000_000_000 / if form.nanoseconds { 1 } else { 1_000 };
            file.extend(word(u32::try_from(frame.unix_ns / 1_000_000_000).unwrap_or(u32::MAX)));
            file.extend(word(u32::try_from(part).unwrap_or(0)));
            file.extend([length, length].concat());
            file.extend(bytes);
        }
        file
    }

    /// As a pcapng file.
    #[must_use]
    pub fn pcapng(&self, wrap: Wrap) -> Vec<u8> {
        let block = |kind: u32, body: &[u8]| {
            let body = [body, &[0, 0, 0][..body.len().wrapping_neg() % 4]].concat();
            let length = u32::try_from(body.len() + 12).unwrap_or(u32::MAX).to_le_bytes();
            [&kind.to_le_bytes()[..], &length, &body, &length].concat()
        };
        let mut file = block(0x0a0d_0d0a, &[&0x1a2b_3c4d_u32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat());
        // if_tsresol 9: nanoseconds.
        let options = [9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        file.extend(block(1, &[&wrap.link().to_le_bytes()[..], &[0, 0, 0, 0, 4, 0], &options].concat()));
        for frame in &self.frames {
            let bytes = wrap.around(&frame.packet);
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
            let half = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0).to_le_bytes();
            let head = [[0; 4], half(frame.unix_ns >> 32), half(frame.unix_ns), length, length].concat();
            file.extend(block(6, &[&head[..], &bytes].concat()));
        }
        file
    }

    /// Only what these see.
    #[must_use]
    pub fn only(&self, sees: impl Fn(&Frame) -> bool) -> Self {
        Self { frames: self.frames.iter().filter(|frame| sees(frame)).cloned().collect() }
    }

    /// Every packet with payload in two IP fragments (IPv4).
    #[must_use]
    pub fn fragmented(&self) -> Self {
        let mut frames = Vec::new();
        for frame in &self.frames {
            let Some((head, content)) = frame.packet.split_at_checked(20).filter(|(_, content)| content.len() > 48)
            else {
                frames.push(frame.clone());
                continue;
            };
            // The second begins at a multiple of eight, behind the TCP header.
            let (first, second) = content.split_at(40);
            for (offset, part) in [(0x2000_u16, first), (5, second)] {
                let mut head = head.to_vec();
                let length = u16::try_from(20 + part.len()).unwrap_or(u16::MAX).to_be_bytes();
                head.splice(2..4, length);
                head.splice(6..8, offset.to_be_bytes());
                frames.push(Frame { unix_ns: frame.unix_ns, packet: [head, part.to_vec()].concat() });
            }
        }
        Self { frames }
    }
}

/// One TCP connection that is being made up.
#[derive(Clone, Debug)]
pub struct Conversation {
    client: SocketAddr,
    server: SocketAddr,
    /// Next sequence numbers: the client's, the server's.
    next: [u32; 2],
    id: u16,
}

impl Conversation {
    /// Between these.
    #[must_use]
    pub fn new(client: SocketAddr, server: SocketAddr) -> Self {
        let number = u32::from(client.port());
        Self { client, server, next: [number.wrapping_mul(70_001), number.wrapping_mul(90_001)], id: client.port() }
    }

    fn packet(&mut self, capture: &mut Capture, unix_ns: u64, by_client: bool, flags: u8, payload: &[u8]) {
        let (source, destination) = if by_client { (self.client, self.server) } else { (self.server, self.client) };
        let [client, server] = self.next;
        let (own, other) = if by_client { (client, server) } else { (server, client) };
        let other = if flags & flag::ACK == 0 { 0 } else { other };
        let mut segment = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
        segment.extend([own.to_be_bytes(), other.to_be_bytes()].concat());
        segment.extend([0x50, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
        segment.extend(payload);
        let moved = u32::try_from(payload.len()).unwrap_or(0) + u32::from(flags & (flag::SYN | flag::FIN) != 0);
        self.next[usize::from(!by_client)] = own.wrapping_add(moved);
        self.id = self.id.wrapping_add(1);
        let packet = ip(source.ip(), destination.ip(), 6, (self.id, 0), &segment);
        capture.frames.push(Frame { unix_ns, packet });
        capture.frames.sort_by_key(|frame| frame.unix_ns);
    }

    /// The handshake, 20 µs from packet to packet.
    pub fn open(&mut self, capture: &mut Capture, unix_ns: u64) {
        self.packet(capture, unix_ns, true, flag::SYN, &[]);
        self.packet(capture, unix_ns + 20_000, false, flag::SYN | flag::ACK, &[]);
        self.packet(capture, unix_ns + 40_000, true, flag::ACK, &[]);
    }

    /// The client's SYN is answered with a RST.
    pub fn refused(&mut self, capture: &mut Capture, unix_ns: u64) {
        self.packet(capture, unix_ns, true, flag::SYN, &[]);
        self.packet(capture, unix_ns + 20_000, false, flag::RST | flag::ACK, &[]);
    }

    /// The client says something.
    pub fn ask(&mut self, capture: &mut Capture, unix_ns: u64, bytes: &[u8]) {
        self.packet(capture, unix_ns, true, flag::ACK | flag::PSH, bytes);
    }

    /// The server says something.
    pub fn answer(&mut self, capture: &mut Capture, unix_ns: u64, bytes: &[u8]) {
        self.packet(capture, unix_ns, false, flag::ACK | flag::PSH, bytes);
    }

    /// The server resets it.
    pub fn reset(&mut self, capture: &mut Capture, unix_ns: u64) {
        self.packet(capture, unix_ns, false, flag::RST | flag::ACK, &[]);
    }

    /// Both close it, the server first.
    pub fn closed(&mut self, capture: &mut Capture, unix_ns: u64) {
        self.packet(capture, unix_ns, false, flag::FIN | flag::ACK, &[]);
        self.packet(capture, unix_ns + 20_000, true, flag::FIN | flag::ACK, &[]);
        self.packet(capture, unix_ns + 40_000, false, flag::ACK, &[]);
    }

    /// Both close it, the client first.
    pub fn close(&mut self, capture: &mut Capture, unix_ns: u64) {
        self.packet(capture, unix_ns, true, flag::FIN | flag::ACK, &[]);
        self.packet(capture, unix_ns + 20_000, false, flag::FIN | flag::ACK, &[]);
        self.packet(capture, unix_ns + 40_000, true, flag::ACK, &[]);
    }
}
