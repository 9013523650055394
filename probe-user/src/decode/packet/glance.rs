//! The little of a captured packet that says which connection it belongs to, without decoding it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::model::packet::{LinkType, TcpFlags};

const TCP: u8 = 6;

/// Ends and flags of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glance {
    /// Sender.
    pub source: SocketAddr,
    /// Receiver.
    pub destination: SocketAddr,
    /// Flags.
    pub flags: TcpFlags,
    /// Bytes follow the header, as far as IP's length says.
    pub has_payload: bool,
}

/// Looks at plain packets only: Ethernet without tags or a cooked capture, IPv4 that is no fragment or IPv6 without extensions, and TCP.
/// `None` of everything else, which is for [`super::decode`] to say.
#[must_use]
pub fn glance(link: LinkType, captured: &[u8]) -> Option<Glance> {
    let (protocol_at, ip_at) = match link {
        LinkType::ETHERNET => (12, 14),
        LinkType::LINUX_SLL => (14, 16),
        LinkType::LINUX_SLL2 => (0, 20),
        _ => return None,
    };
    let ip = captured.get(ip_at..)?;
    match two(captured, protocol_at)? {
        0x0800 => {
            let first = *ip.first()?;
            // The lower 13 bits are the fragment's offset; a packet that was merged by the kernel has a length of 0.
            if *ip.get(9)? != TCP || two(ip, 6)? & 0x1fff != 0 {
                return None;
            }
            let header = usize::from(first & 15) * 4;
            let total = usize::from(two(ip, 2)?);
            let address = |at: usize| Some(IpAddr::V4(Ipv4Addr::from(*ip.get(at..)?.first_chunk::<4>()?)));
            segment(ip.get(header..)?, total.checked_sub(header), address(12)?, address(16)?)
        }
        0x86dd => {
            if *ip.get(6)? != TCP {
                return None;
            }
            let length = usize::from(two(ip, 4)?);
            let address = |at: usize| Some(IpAddr::V6(Ipv6Addr::from(*ip.get(at..)?.first_chunk::<16>()?)));
            segment(ip.get(40..)?, Some(length), address(8)?, address(24)?)
        }
        _ => None,
    }
}

fn segment(tcp: &[u8], length: Option<usize>, source: IpAddr, destination: IpAddr) -> Option<Glance> {
    let header = usize::from(*tcp.get(12)? >> 4) * 4;
    Some(Glance {
        source: SocketAddr::new(source.to_canonical(), two(tcp, 0)?),
        destination: SocketAddr::new(destination.to_canonical(), two(tcp, 2)?),
        flags: TcpFlags(*tcp.get(13)?),
        has_payload: length.is_none_or(|length| length > header),
    })
}

fn two(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk::<2>()?))
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;
    use crate::{decode::packet::decode, model::packet::PacketBody};

    proptest! {
        /// It sees what the decoder sees, or nothing.
        #[test]
        fn agrees_with_the_decoder(
            v6: bool,
            ports: (u16, u16),
            flags in 0_u8..64,
            options: bool,
            payload in prop::collection::vec(any::<u8>(), 0..20),
            cut in 0_usize..120,
        ) {
            let builder = PacketBuilder::ethernet2([1; 6], [2; 6]);
            let builder = if v6 { builder.ipv6([3; 16], [4; 16], 9) } else { builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9) };
            let mut tcp = builder.tcp(ports.0, ports.1, 1, 1);
            if options {
                tcp = tcp.options(&[etherparse::TcpOptionElement::Timestamp(1, 2)]).unwrap();
            }
            let mut bytes = Vec::new();
            tcp.write(&mut bytes, &payload).unwrap();
            bytes[14 + 13 + if v6 { 40 } else { 20 }] = flags;
            let whole = u32::try_from(bytes.len()).unwrap();
            bytes.truncate(cut.max(20));
            let seen = glance(LinkType::ETHERNET, &bytes);
            if let (Some(seen), Some(PacketBody::Tcp(tcp))) = (seen, decode(LinkType::ETHERNET, &bytes, whole)) {
                prop_assert_eq!((seen.source, seen.destination, seen.flags), (tcp.header.source, tcp.header.destination, tcp.header.flags));
                prop_assert_eq!(seen.has_payload, !payload.is_empty());
            }
            prop_assert_eq!(seen.is_some(), bytes.len() >= 14 + 14 + if v6 { 40 } else { 20 });
        }
    }

    #[test]
    fn what_is_not_plain_is_left_to_the_decoder() {
        for bytes in [[].as_slice(), &[0; 13], &[0; 60]] {
            for link in [LinkType::ETHERNET, LinkType::RAW, LinkType::LINUX_SLL, LinkType::LINUX_SLL2] {
                assert_eq!(glance(link, bytes), None);
            }
        }
    }
}
