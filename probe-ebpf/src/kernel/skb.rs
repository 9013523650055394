//! The headers of a packet the kernel holds.

use probe_abi::{Endpoint, globals::ABSENT, socket::Packet};

use super::{
    globals::offset,
    read,
    socket::{version_4, version_6},
    target,
};

const TCP: u8 = 6;

/// An IPv4 header without options.
#[repr(C)]
#[derive(Clone, Copy)]
struct Version4 {
    version_and_length: u8,
    service: u8,
    length: [u8; 2],
    identification: [u8; 2],
    fragment: [u8; 2],
    ttl: u8,
    protocol: u8,
    checksum: [u8; 2],
    source: u32,
    destination: u32,
}

/// An IPv6 header.
#[repr(C)]
#[derive(Clone, Copy)]
struct Version6 {
    version: [u8; 4],
    length: [u8; 2],
    next: u8,
    hops: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

/// A TCP header without options.
#[repr(C)]
#[derive(Clone, Copy)]
struct Segment {
    source: [u8; 2],
    destination: [u8; 2],
    sequence: [u8; 4],
    acknowledgement: [u8; 4],
    offset: u8,
    flags: u8,
    window: [u8; 2],
}

/// The packet, if it is IP with TCP (whatever of it can be read).
///
/// `outgoing` packets may not have their headers yet; then there is nothing to read and `None` is returned.
#[inline(always)]
pub(crate) fn packet(skb: u64) -> Option<Packet> {
    if skb == 0 || offset!(skb_head) == ABSENT {
        return None;
    }
    let head: u64 = read::member(skb, offset!(skb_head))?;
    let network: u16 = read::member(skb, offset!(skb_network_header))?;
    if network == 0 || network == u16::MAX {
        return None;
    }
    at(head.wrapping_add(u64::from(network)))
}

/// The packet whose IP header is at this address.
#[inline(always)]
fn at(ip: u64) -> Option<Packet> {
    let mut packet = EMPTY;
    let first: u8 = read::kernel(ip)?;
    let transport = match first >> 4 {
        4 => {
            let header: Version4 = read::kernel(ip)?;
            version_4(&mut packet.source, header.source);
            version_4(&mut packet.destination, header.destination);
            packet.protocol = header.protocol;
            packet.ttl = header.ttl;
            packet.length = u32::from(u16::from_be_bytes(header.length));
            // A later fragment has no TCP header.
            if u16::from_be_bytes(header.fragment) & 0x1fff != 0 {
                return None;
            }
            u64::from(header.version_and_length & 15) * 4
        }
        6 => {
            let header: Version6 = read::kernel(ip)?;
            version_6(&mut packet.source, header.source);
            version_6(&mut packet.destination, header.destination);
            packet.protocol = header.next;
            packet.ttl = header.hops;
            packet.length = u32::from(u16::from_be_bytes(header.length)) + 40;
            40
        }
        _ => return None,
    };
    if packet.protocol == TCP {
        let segment: Segment = read::kernel(ip.wrapping_add(transport))?;
        packet.source.port = segment.source;
        packet.destination.port = segment.destination;
        packet.sequence = u32::from_be_bytes(segment.sequence);
        packet.acknowledgement = u32::from_be_bytes(segment.acknowledgement);
        packet.flags = segment.flags;
        return Some(packet);
    }
    None
}

/// Whether either end of the packet is watched.
#[inline(always)]
pub(crate) fn is_watched(packet: &Packet) -> bool {
    target::upstream(&packet.destination) || target::upstream(&packet.source)
}

/// The namespace of the device the packet is on, 0 if it cannot be told.
#[inline(always)]
pub(crate) fn netns(skb: u64) -> u32 {
    let device: Option<u64> = read::member(skb, offset!(skb_dev));
    device
        .filter(|&device| device != 0)
        .and_then(|device| read::member(device, offset!(device_net)))
        .and_then(|net| read::member(net, offset!(net_inum)))
        .unwrap_or(0)
}

/// No packet.
pub(crate) const EMPTY: Packet = Packet {
    source: Endpoint::UNKNOWN,
    destination: Endpoint::UNKNOWN,
    sequence: 0,
    acknowledgement: 0,
    flags: 0,
    protocol: 0,
    ttl: 0,
    reserved: 0,
    length: 0,
};
