//! Captured bytes into TCP and ICMP packets.
//!
//! Captures cut packets, so every length comes from the IP header and every header is read as far as it goes.
//! Checksums say nothing on a host that lets its network card compute them, and are not looked at.

mod content;
pub mod glance;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use etherparse::{EtherType, IpNumber, LaxNetSlice, LaxSlicedPacket, ip_number};

use crate::model::packet::{Content, IcmpPacket, LinkType, PacketBody, TcpFlags, TcpHeader, TcpPacket};

/// Reads a captured packet; `None` when it is neither TCP nor ICMP about TCP, or too short to tell. `wire_length` is the packet's
/// length before the capture cut it.
#[must_use]
pub fn decode(link: LinkType, captured: &[u8], wire_length: u32) -> Option<PacketBody> {
    let (sliced, link_length) = slice(link, captured)?;
    let ip = Ip::new(sliced.net.as_ref()?)?;
    let extensions: usize = sliced.link_exts.iter().map(etherparse::LaxLinkExtSlice::header_len).sum();
    let on_wire = usize::try_from(wire_length).ok()?.checked_sub(link_length + extensions)?;
    match ip.protocol {
        ip_number::TCP => tcp(&ip, on_wire).map(PacketBody::Tcp),
        ip_number::ICMP if ip.source.is_ipv4() => icmp(&ip, false).map(PacketBody::Icmp),
        ip_number::IPV6_ICMP if ip.source.is_ipv6() => icmp(&ip, true).map(PacketBody::Icmp),
        _ => None,
    }
}

/// Takes off the link layer. Also its length, VLAN tags not counted.
fn slice(link: LinkType, captured: &[u8]) -> Option<(LaxSlicedPacket<'_>, usize)> {
    let protocol = |at: usize| Some(EtherType(u16::from_be_bytes([*captured.get(at)?, *captured.get(at + 1)?])));
    let by_protocol = |at: usize, length: usize| {
        Some((LaxSlicedPacket::from_ether_type(protocol(at)?, captured.get(length..)?), length))
    };
    let by_version = |length: usize| {
        let packet = captured.get(length..)?;
        // Reading an IP header without its length is impossible for etherparse's lax reader too; then nothing is known.
        LaxSlicedPacket::from_ip(packet).ok().map(|sliced| (sliced, length))
    };
    match link {
        LinkType::ETHERNET => by_protocol(12, 14),
        LinkType::LINUX_SLL => by_protocol(14, 16),
        LinkType::LINUX_SLL2 => by_protocol(0, 20),
        // The address family's number differs between systems; the packet itself says which version it is.
        LinkType::NULL | LinkType::LOOP => by_version(4),
        // 12 and 14 are what systems call LINKTYPE_RAW inside libpcap.
        LinkType::RAW | LinkType::IPV4 | LinkType::IPV6 | LinkType(12 | 14) => by_version(0),
        _ => None,
    }
}

/// An IP packet without what TCP does not care for.
struct Ip<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: IpNumber,
    ttl: u8,
    id: Option<u16>,
    /// Header and extension headers.
    headers: usize,
    /// The whole packet's length as its header has it; `None` where the header says 0 (more than 64 KiB, merged or not cut yet).
    total: Option<usize>,
    payload: &'a [u8],
}

impl<'a> Ip<'a> {
    /// `None` for ARP and for a fragment that is not the first: it has no TCP header.
    fn new(net: &LaxNetSlice<'a>) -> Option<Self> {
        match net {
            LaxNetSlice::Ipv4(ip) => {
                let header = ip.header();
                if header.fragments_offset().value() != 0 {
                    return None;
                }
                let extensions = ip.extensions().auth.map_or(0, |auth| auth.slice().len());
                let total = usize::from(header.total_len());
                Some(Self {
                    source: header.source_addr().into(),
                    destination: header.destination_addr().into(),
                    protocol: ip.payload().ip_number,
                    ttl: header.ttl(),
                    id: Some(header.identification()),
                    headers: header.slice().len() + extensions,
                    total: (total != 0).then_some(total),
                    payload: ip.payload().payload,
                })
            }
            LaxNetSlice::Ipv6(ip) => {
                let header = ip.header();
                let later_fragment = is_later_fragment(header.next_header(), ip.extensions().slice());
                if later_fragment {
                    return None;
                }
                let length = usize::from(header.payload_length());
                Some(Self {
                    source: header.source_addr().into(),
                    destination: header.destination_addr().into(),
                    protocol: ip.payload().ip_number,
                    ttl: header.hop_limit(),
                    id: None,
                    headers: header.slice().len() + ip.extensions().slice().len(),
                    total: (length != 0).then_some(header.slice().len() + length),
                    payload: ip.payload().payload,
                })
            }
            LaxNetSlice::Arp(_) => None,
        }
    }
}

/// Whether a fragment header among these extension headers says that something comes before.
///
/// Read by hand: where the capture cut an extension header, etherparse 0.21's iterator over them reads beyond their end
/// (`Ipv6ExtensionSliceIter::next` believes the last whole header about what follows it).
fn is_later_fragment(first: IpNumber, mut rest: &[u8]) -> bool {
    let mut kind = first;
    while let [next, length, o0, o1, ..] = *rest {
        let length = match kind {
            IpNumber::IPV6_FRAGMENTATION_HEADER if u16::from_be_bytes([o0, o1]) >> 3 != 0 => return true,
            IpNumber::IPV6_FRAGMENTATION_HEADER => 8,
            // RFC 4302 counts words of four bytes, less two.
            IpNumber::AUTHENTICATION_HEADER => (usize::from(length) + 2) * 4,
            _ => (usize::from(length) + 1) * 8,
        };
        kind = IpNumber(next);
        rest = rest.get(length..).unwrap_or_default();
    }
    false
}

fn tcp(ip: &Ip<'_>, on_wire: usize) -> Option<TcpPacket> {
    // Read by hand: a header whose options the capture cut is still a header.
    let fixed: &[u8; 16] = ip.payload.first_chunk()?;
    let [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, offset, flags, w0, w1] = *fixed;
    let header_length = usize::from(offset >> 4) * 4;
    if header_length < 20 {
        return None;
    }
    let segment = ip.total.unwrap_or(on_wire).checked_sub(ip.headers)?;
    let payload_length = segment.checked_sub(header_length)?;
    let captured = ip.payload.get(header_length..).unwrap_or_default();
    let captured = captured.get(..payload_length).unwrap_or(captured);
    let content = match (payload_length, captured) {
        (0, _) => Content::Empty,
        (_, []) => Content::NotCaptured,
        (_, captured) => content::classify(captured),
    };
    Some(TcpPacket {
        header: TcpHeader {
            source: SocketAddr::new(ip.source, u16::from_be_bytes([s0, s1])),
            destination: SocketAddr::new(ip.destination, u16::from_be_bytes([d0, d1])),
            sequence: u32::from_be_bytes([q0, q1, q2, q3]),
            acknowledgement: u32::from_be_bytes([a0, a1, a2, a3]),
            flags: TcpFlags(flags),
            ttl: ip.ttl,
        },
        payload_length: u32::try_from(payload_length).ok()?,
        window: u16::from_be_bytes([w0, w1]),
        ip_id: ip.id,
        promised: content::promised(captured),
        content,
    })
}

fn icmp(ip: &Ip<'_>, v6: bool) -> Option<IcmpPacket> {
    let [icmp_type, code, ..] = *ip.payload.first_chunk::<8>()?;
    // Errors quote the packet they are about after eight bytes (RFC 792, RFC 4443); everything else is no error.
    let is_error = if v6 { matches!(icmp_type, 1..=4) } else { matches!(icmp_type, 3 | 4 | 5 | 11 | 12) };
    if !is_error {
        return None;
    }
    let quoted = LaxSlicedPacket::from_ip(ip.payload.get(8..)?).ok()?;
    let about = Ip::new(quoted.net.as_ref()?)?;
    if about.protocol != ip_number::TCP {
        return None;
    }
    let [s0, s1, d0, d1] = *about.payload.first_chunk()?;
    let syn = about.payload.first_chunk().and_then(|[_, _, _, _, q0, q1, q2, q3, _, _, _, _, _, flags]: &[u8; 14]| {
        let flags = TcpFlags(*flags);
        (flags.syn() && !flags.ack()).then(|| u32::from_be_bytes([*q0, *q1, *q2, *q3]))
    });
    Some(IcmpPacket {
        from: ip.source,
        icmp_type,
        code,
        v6,
        about: (
            SocketAddr::new(about.source, u16::from_be_bytes([s0, s1])),
            SocketAddr::new(about.destination, u16::from_be_bytes([d0, d1])),
        ),
        syn,
    })
}
