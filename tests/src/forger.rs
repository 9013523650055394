//! Somebody on the way who forges a RST: watches a flow in the router and sends, by a raw socket, a packet in the upstream's name.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt, socket,
};
use nix::sys::time::TimeVal;

use crate::namespace::Namespace;

/// What the forged RST is like.
#[derive(Debug, Clone, Copy)]
pub struct Forgery {
    /// Its TTL.
    pub ttl: u8,
    /// Its IP identification is so far from that of the upstream's latest packet.
    pub id_ahead: u16,
    /// Its sequence number is so far from the next one nginx expects; nginx's kernel takes it only at 0
    /// (RFC 5961, section 3.2).
    pub sequence_ahead: u32,
}

/// The forger at work; it stops when dropped, or after its one packet.
#[derive(Debug)]
pub struct Forger {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<bool>>>,
}

/// Bytes of an IPv4 header without options, and of a TCP header without any.
const HEADER: usize = 20;

/// What is read of a packet.
#[derive(Debug, Clone, Copy)]
struct Segment<'a> {
    id: u16,
    from: SocketAddrV4,
    to: SocketAddrV4,
    acknowledgement: u32,
    payload: &'a [u8],
}

impl Forger {
    /// Begins to watch in the router: as soon as a segment towards `upstream` carries these bytes, the upstream resets, as nginx sees it.
    pub fn start(router: &Namespace, upstream: SocketAddrV4, trigger: &'static str, forgery: Forgery) -> Result<Self> {
        let (watched, raw) = router.inside(|| {
            let flags = SockFlag::SOCK_CLOEXEC;
            let watched = socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthAll)
                .context("make a packet socket in the router")?;
            let raw = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw)
                .context("make a raw socket in the router")?;
            Ok((watched, raw))
        })?;
        setsockopt(&watched, ReceiveTimeout, &TimeVal::new(0, 100_000)).context("set the packet socket's timeout")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut packet = [0; 2_048];
            // By nginx's end: Linux counts for each connection.
            let mut latest_ids: BTreeMap<SocketAddrV4, u16> = BTreeMap::new();
            while !stopped.load(Ordering::Relaxed) {
                let length = match recv(watched.as_raw_fd(), &mut packet, MsgFlags::empty()) {
                    Ok(length) => length,
                    Err(Errno::EAGAIN | Errno::EINTR) => continue,
                    Err(error) => return Err(error).context("watch the flow"),
                };
                let Some(segment) = packet.get(..length).and_then(Segment::read) else { continue };
                // A RST or SYN-ACK of Linux has id 0: no part of the count.
                if segment.from == upstream && segment.id != 0 {
                    latest_ids.insert(segment.to, segment.id);
                }
                let sought = |bytes: &[u8]| bytes.windows(trigger.len()).any(|piece| piece == trigger.as_bytes());
                if segment.to == upstream && sought(segment.payload) {
                    let latest = latest_ids.get(&segment.from).copied().unwrap_or(0);
                    let id = latest.wrapping_add(forgery.id_ahead).max(1);
                    let sequence = segment.acknowledgement.wrapping_add(forgery.sequence_ahead);
                    let reset = reset(upstream, segment.from, id, forgery.ttl, sequence);
                    let to = SockaddrIn::from(SocketAddrV4::new(*segment.from.ip(), 0));
                    sendto(raw.as_raw_fd(), &reset, &to, MsgFlags::empty()).context("send the forged RST")?;
                    return Ok(true);
                }
            }
            Ok(false)
        });
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Waits for the end of its work; an error where it had nothing to forge.
    pub fn finish(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the forger has been waited for")?;
        let sent = thread.join().map_err(|_panic| anyhow!("the forger panicked"))??;
        sent.then_some(()).context("the forger never saw the segment it waited for")
    }
}

impl Drop for Forger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Whoever wants to know has called `finish`.
            let _ = thread.join();
        }
    }
}

impl<'a> Segment<'a> {
    /// Reads an IPv4 packet with a TCP segment in it.
    fn read(packet: &'a [u8]) -> Option<Self> {
        let half = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
        let address = |at: usize| {
            let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(bytes))
        };
        let first = *packet.first()?;
        if first >> 4 != 4 || *packet.get(9)? != 6 {
            return None;
        }
        let tcp = usize::from(first & 0x0f) * 4;
        let words: [u8; 4] = packet.get(tcp + 8..tcp + 12)?.try_into().ok()?;
        let data = tcp + usize::from(*packet.get(tcp + 12)? >> 4) * 4;
        let end = usize::from(half(2)?).min(packet.len());
        Some(Self {
            id: half(4)?,
            from: SocketAddrV4::new(address(12)?, half(tcp)?),
            to: SocketAddrV4::new(address(16)?, half(tcp + 2)?),
            acknowledgement: u32::from_be_bytes(words),
            payload: packet.get(data..end).unwrap_or_default(),
        })
    }
}

/// A RST as an IPv4 packet. The kernel fills in the IP checksum of a raw socket's packets, not TCP's (raw(7)).
fn reset(from: SocketAddrV4, to: SocketAddrV4, id: u16, ttl: u8, sequence: u32) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 40];
    packet.extend(id.to_be_bytes());
    // Don't fragment, as Linux sends TCP.
    packet.extend([0x40, 0, ttl, 6, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(sequence.to_be_bytes());
    // No acknowledgement; a header of five words; RST.
    packet.extend([0, 0, 0, 0, 0x50, 0x04, 0, 0, 0, 0, 0, 0]);
    let checksum = checksum(&packet);
    if let Some(place) = packet.get_mut(HEADER + 16..HEADER + 18) {
        place.copy_from_slice(&checksum.to_be_bytes());
    }
    packet
}

/// TCP's checksum over the pseudo-header and a segment whose own checksum is still 0 (RFC 9293, section 3.1).
pub(crate) fn checksum(packet: &[u8]) -> u16 {
    let words = packet.get(12..).unwrap_or_default().chunks(2);
    let sum: u32 = words
        .map(|word| u32::from(word.first().copied().unwrap_or(0)) << 8 | u32::from(word.get(1).copied().unwrap_or(0)))
        .sum();
    // The protocol and the segment's length are the rest of the pseudo-header.
    let length = u32::try_from(packet.len().saturating_sub(HEADER)).unwrap_or(0);
    let mut sum = sum + 6 + length;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{Segment, reset};

    #[test]
    fn what_is_forged_is_read_again() {
        let packet = reset("10.77.2.2:80".parse().unwrap(), "10.77.3.1:4000".parse().unwrap(), 7, 63, 0x0102_0304);
        let segment = Segment::read(&packet).unwrap();
        assert_eq!((segment.id, segment.from.port(), segment.to.port()), (7, 80, 4000));
        assert_eq!(segment.payload, b"");
        // A segment with its checksum, and the pseudo-header, add up to all ones.
        let words = packet[12..].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
        let sum = words.sum::<u32>() + 6 + 20;
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
