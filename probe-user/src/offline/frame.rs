//! What stands before TCP: link layers, tags, tunnels, IP and its fragments.
//!
//! Captures cut packets and copy them out of tunnels, so every header is read as far as it goes, and what cannot be TCP ends the search.

use super::segment::End;

/// Headers one inside the other beyond this are nobody's network.
const DEEPEST: usize = 16;

/// TCP, ICMP or a fragment of them, found in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner<'a> {
    /// The sender, without port.
    pub source: End,
    /// The receiver, without port.
    pub destination: End,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4 identification.
    pub ip_id: Option<u16>,
    /// The innermost VLAN; 0: none.
    pub vlan: u16,
    /// The protocol of what follows.
    pub protocol: u8,
    /// Length of what follows on the wire.
    pub length: usize,
    /// What follows, as far as it was captured.
    pub payload: &'a [u8],
    /// It is a fragment.
    pub fragment: Option<Fragment>,
}

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The packet's number.
    pub id: u32,
    /// Bytes before it.
    pub offset: usize,
    /// More follow.
    pub more: bool,
}

/// Protocol numbers.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}

/// What is to be read next.
#[derive(Clone, Copy)]
enum Layer {
    Ethernet,
    /// By an Ethernet type.
    Type(u16),
    /// An IP packet whose version its first bits tell.
    Ip,
    /// PPP with its protocol number first.
    Ppp,
    /// MPLS labels.
    Mpls,
    /// By an IP protocol number.
    Protocol(u8),
}

/// Whether packets of this link type can be read.
#[must_use]
pub const fn knows(link: u16) -> bool {
    matches!(link, 0 | 1 | 9 | 12 | 14 | 50 | 51 | 101 | 108 | 113 | 219 | 228 | 229 | 276)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// Finds TCP or ICMP in a packet of this link type, `wire` bytes long before it was cut; `None`: there is none, or too little of it.
#[must_use]
pub fn dissect(link: u16, bytes: &[u8], wire: usize) -> Option<Inner<'_>> {
    let (layer, skip) = match link {
        1 => (Layer::Ethernet, 0),
        // The address family's number differs between systems; the packet itself says which version it is.
        0 | 108 => (Layer::Ip, 4),
        // 12 and 14 are what systems call LINKTYPE_RAW inside libpcap.
        101 | 12 | 14 | 228 | 229 => (Layer::Ip, 0),
        113 => (Layer::Type(be16(bytes, 14)?), 16),
        276 => (Layer::Type(be16(bytes, 0)?), 20),
        // PPP, with or without the HDLC header before it.
        9 | 50 => (Layer::Ppp, if bytes.starts_with(&[0xff, 0x03]) { 2 } else { 0 }),
        // PPPoE.
        51 => (Layer::Ppp, 6),
        _ => return None,
    };
    let mut walk = Walk { bytes, wire, vlan: 0, around: None };
    walk.skip(skip)?;
    walk.run(layer)
}

/// Reads an IP packet without anything before it, as ICMP errors quote them.
#[must_use]
pub fn quoted(bytes: &[u8]) -> Option<Inner<'_>> {
    Walk { bytes, wire: bytes.len(), vlan: 0, around: None }.run(Layer::Ip)
}

/// Goes on where a packet was put together from fragments: `payload` is what `first` and its like carried, `length` bytes on the wire.
#[must_use]
pub fn resume<'a>(first: &Inner<'_>, payload: &'a [u8], length: usize) -> Option<Inner<'a>> {
    let around = Around { source: first.source, destination: first.destination, ttl: first.ttl, ip_id: first.ip_id };
    Walk { bytes: payload, wire: length, vlan: first.vlan, around: Some(around) }.run(Layer::Protocol(first.protocol))
}

struct Walk<'a> {
    bytes: &'a [u8],
    wire: usize,
    vlan: u16,
    around: Option<Around>,
}

/// The IP header around what is read now.
#[derive(Clone, Copy)]
struct Around {
    source: End,
    destination: End,
    ttl: u8,
    ip_id: Option<u16>,
}

/// What a layer leads to.
enum Next {
    Layer(Layer),
    Found(u8, Option<Fragment>),
}

impl<'a> Walk<'a> {
    fn run(mut self, mut layer: Layer) -> Option<Inner<'a>> {
        for _ in 0..DEEPEST {
            let next = match layer {
                Layer::Ethernet => {
                    let kind = be16(self.bytes, 12)?;
                    self.skip(14)?;
                    Next::Layer(Layer::Type(kind))
                }
                Layer::Type(kind) => Next::Layer(self.ether_type(kind)?),
                Layer::Ppp => Next::Layer(self.ppp()?),
                Layer::Mpls => Next::Layer(self.mpls()?),
                Layer::Ip => match self.bytes.first()? >> 4 {
                    4 => self.ipv4()?,
                    6 => self.ipv6()?,
                    _ => return None,
                },
                Layer::Protocol(number) => self.protocol(number)?,
            };
            layer = match next {
                Next::Layer(layer) => layer,
                Next::Found(protocol, fragment) => {
                    let ip = self.around?;
                    return Some(Inner {
                        source: ip.source,
                        destination: ip.destination,
                        ttl: ip.ttl,
                        ip_id: ip.ip_id,
                        vlan: self.vlan,
                        protocol,
                        length: self.wire,
                        payload: self.bytes.get(..self.wire).unwrap_or(self.bytes),
                        fragment,
                    });
                }
            };
        }
        None
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.bytes = self.bytes.get(count..)?;
        self.wire = self.wire.saturating_sub(count);
        Some(())
    }

    /// Numbers: <https://www.iana.org/assignments/ieee-802-numbers>.
    fn ether_type(&mut self, kind: u16) -> Option<Layer> {
        match kind {
            0x0800 | 0x86dd => Some(Layer::Ip),
            // VLAN tags: 802.1Q, 802.1ad, and what QinQ was before it had a number.
            0x8100 | 0x88a8 | 0x9100 | 0x9200 => {
                self.vlan = be16(self.bytes, 0)? & 0x0fff;
                let kind = be16(self.bytes, 2)?;
                self.skip(4)?;
                Some(Layer::Type(kind))
            }
            0x8847 | 0x8848 => Some(Layer::Mpls),
            // PPPoE session: version, code, session, length.
            0x8864 => {
                self.skip(6)?;
                Some(Layer::Ppp)
            }
            0x880b => Some(Layer::Ppp),
            // A bridged frame in a tunnel.
            0x6558 => Some(Layer::Ethernet),
            // A length: LLC, and SNAP in it.
            0..=1_500 => {
                let snap = self.bytes.starts_with(&[0xaa, 0xaa, 0x03]);
                let kind = be16(self.bytes, 6).filter(|_| snap)?;
                self.skip(8)?;
                Some(Layer::Type(kind))
            }
            _ => None,
        }
    }

    fn ppp(&mut self) -> Option<Layer> {
        if self.bytes.starts_with(&[0xff, 0x03]) {
            self.skip(2)?;
        }
        // A protocol number whose first byte is odd is one byte long.
        let first = *self.bytes.first()?;
        let (number, length) = if first & 1 == 1 { (u16::from(first), 1) } else { (be16(self.bytes, 0)?, 2) };
        self.skip(length)?;
        match number {
            0x0021 | 0x0057 => Some(Layer::Ip),
            0x0281 | 0x0283 => Some(Layer::Mpls),
            _ => None,
        }
    }

    fn mpls(&mut self) -> Option<Layer> {
        loop {
            let bottom = *self.bytes.get(2)? & 1 == 1;
            self.skip(4)?;
            if bottom {
                break;
            }
        }
        // Nothing says what follows but its first bits: a pseudowire begins with a control word of zeros, then Ethernet.
        match self.bytes.first()? >> 4 {
            4 | 6 => Some(Layer::Ip),
            0 => {
                self.skip(4)?;
                Some(Layer::Ethernet)
            }
            _ => None,
        }
    }

    fn ipv4(&mut self) -> Option<Next> {
        let header: &[u8; 20] = self.bytes.first_chunk()?;
        let header_length = usize::from(header[0] & 0x0f) * 4;
        if header_length < 20 {
            return None;
        }
        // 0: longer than 64 KiB, or not yet cut by the network card.
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let total = if total == 0 { self.wire } else { total };
        let bits = u16::from_be_bytes([header[6], header[7]]);
        let id = u16::from_be_bytes([header[4], header[5]]);
        let offset = usize::from(bits & 0x1fff) * 8;
        let more = bits & 0x2000 != 0;
        let protocol = header[9];
        self.around = Some(Around {
            source: End::v4([header[12], header[13], header[14], header[15]], 0),
            destination: End::v4([header[16], header[17], header[18], header[19]], 0),
            ttl: header[8],
            ip_id: Some(id),
        });
        self.bytes = self.bytes.get(header_length..)?;
        self.wire = total.checked_sub(header_length)?;
        if offset != 0 || more {
            return Some(Next::Found(protocol, Some(Fragment { id: u32::from(id), offset, more })));
        }
        Some(Next::Layer(Layer::Protocol(protocol)))
    }

    fn ipv6(&mut self) -> Option<Next> {
        let header: &[u8; 40] = self.bytes.first_chunk()?;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let mut next = header[6];
        let ttl = header[7];
        let address = |at: usize| header.get(at..at + 16)?.first_chunk::<16>().copied();
        self.around =
            Some(Around { source: End::v6(address(8)?, 0), destination: End::v6(address(24)?, 0), ttl, ip_id: None });
        // 0: a jumbogram, or not yet cut by the network card.
        let length = if length == 0 { self.wire.checked_sub(40)? } else { length };
        self.bytes = self.bytes.get(40..)?;
        self.wire = length;
        for _ in 0..DEEPEST {
            match next {
                // Hop-by-hop, routing, destination, mobility, HIP, shim6: next header, length in eights after the first eight.
                0 | 43 | 60 | 135 | 139 | 140 => {
                    let length = usize::from(*self.bytes.get(1)?) * 8 + 8;
                    next = *self.bytes.first()?;
                    self.skip(length)?;
                }
                // Authentication: length in fours, less two.
                51 => {
                    let length = usize::from(*self.bytes.get(1)?) * 4 + 8;
                    next = *self.bytes.first()?;
                    self.skip(length)?;
                }
                44 => {
                    let [after, _, high, low, i0, i1, i2, i3] = *self.bytes.first_chunk::<8>()?;
                    let bits = u16::from_be_bytes([high, low]);
                    let fragment = Fragment {
                        id: u32::from_be_bytes([i0, i1, i2, i3]),
                        offset: usize::from(bits & 0xfff8),
                        more: bits & 1 == 1,
                    };
                    next = after;
                    self.skip(8)?;
                    // One that is alone is no fragment (RFC 6946).
                    if fragment.offset != 0 || fragment.more {
                        return Some(Next::Found(next, Some(fragment)));
                    }
                }
                _ => return Some(Next::Layer(Layer::Protocol(next))),
            }
        }
        None
    }

    fn protocol(&mut self, number: u8) -> Option<Next> {
        match number {
            protocol::TCP | protocol::ICMP | protocol::ICMPV6 => Some(Next::Found(number, None)),
            // IP in IP.
            4 | 41 => Some(Next::Layer(Layer::Ip)),
            47 => self.gre().map(Next::Layer),
            137 => Some(Next::Layer(Layer::Mpls)),
            // An authentication header in IPv4.
            51 => {
                let length = usize::from(*self.bytes.get(1)?) * 4 + 8;
                let next = *self.bytes.first()?;
                self.skip(length)?;
                Some(Next::Layer(Layer::Protocol(next)))
            }
            17 => self.udp().map(Next::Layer),
            _ => None,
        }
    }

    /// RFC 2784, 2890, and version 1 of RFC 2637 (PPTP).
    fn gre(&mut self) -> Option<Layer> {
        let flags = be16(self.bytes, 0)?;
        let kind = be16(self.bytes, 2)?;
        let has = |bit: u16| usize::from(flags & bit != 0) * 4;
        let version = flags & 7;
        let length = match version {
            // Checksum (and the old routing), key, sequence number.
            0 => 4 + if flags & 0xc000 != 0 { 4 } else { 0 } + has(0x2000) + has(0x1000),
            // Key with length and call, sequence and acknowledgement number.
            1 => 8 + has(0x1000) + has(0x0080),
            _ => return None,
        };
        self.skip(length)?;
        match kind {
            // ERSPAN II has a header of eight bytes where it has a sequence number; without one it is the bare frame.
            0x88be => {
                if flags & 0x1000 != 0 {
                    self.skip(8)?;
                }
                Some(Layer::Ethernet)
            }
            // ERSPAN III.
            0x22eb => {
                let more = *self.bytes.get(11)? & 1 == 1;
                self.skip(if more { 20 } else { 12 })?;
                Some(Layer::Ethernet)
            }
            kind => Some(Layer::Type(kind)),
        }
    }

    /// Tunnels over UDP, by their port.
    fn udp(&mut self) -> Option<Layer> {
        let port = be16(self.bytes, 2)?;
        match port {
            // VXLAN, and where Linux had it first: flags with bit I, network.
            4_789 | 8_472 => {
                self.skip(8)?;
                let valid = self.bytes.first()? & 0x08 != 0;
                self.skip(8).filter(|()| valid)?;
                Some(Layer::Ethernet)
            }
            // VXLAN-GPE says what follows.
            4_790 => {
                self.skip(8)?;
                let next = *self.bytes.get(3)?;
                self.skip(8)?;
                match next {
                    1 | 2 => Some(Layer::Ip),
                    3 => Some(Layer::Ethernet),
                    _ => None,
                }
            }
            // Geneve: version and option length, flags, protocol, network (RFC 8926).
            6_081 => {
                self.skip(8)?;
                let options = usize::from(self.bytes.first()? & 0x3f) * 4;
                let kind = be16(self.bytes, 2)?;
                self.skip(8 + options)?;
                Some(Layer::Type(kind))
            }
            _ => None,
        }
    }
}
