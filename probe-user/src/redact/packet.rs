//! Captured packets: what a protocol needs stays, what its users wrote goes.

use std::net::{IpAddr, SocketAddr};

use super::{BLANK, End, Key, address, target};
use crate::model::packet::{Foreign, LinkType, METHODS};

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
/// The authentication header of `IPsec`: what it protects stands behind it as it is.
const AUTHENTICATION: u8 = 51;

/// The longest status line that is kept: `HTTP/1.1 502 Bad Gateway`, and room for another reason.
const STATUS_LINE: usize = 64;
/// Headers whose values are the protocol's, not the user's.
const PROTOCOL_HEADERS: &[&[u8]] =
    &[b"host", b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"upgrade", b"server", b"date"];

/// Where the parts of a packet begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    ip: usize,
    v6: bool,
    protocol: u8,
    transport: usize,
}

/// Takes out payload.
pub(super) fn blank(link: LinkType, bytes: &mut [u8], key: &Key) {
    let Some(place) = ip_begin(link, bytes).and_then(|begin| locate(bytes, begin)) else {
        return blank_all(link, bytes);
    };
    match place.protocol {
        TCP => {
            let at = tcp_payload(bytes, place.transport).unwrap_or(bytes.len());
            payload(bytes.get_mut(at..).unwrap_or_default(), key);
        }
        // An error quotes a packet after eight bytes: its IP header, and as much of TCP's as was sent along.
        ICMP | ICMP_V6 => {
            let quoted = locate(bytes, place.transport + 8);
            let end = quoted.map_or(place.transport + 8, |quoted| match tcp_payload(bytes, quoted.transport) {
                Some(at) if quoted.protocol == TCP => at,
                _ => quoted.transport + 8,
            });
            fill(bytes, end);
        }
        _ => fill(bytes, place.transport),
    }
}

/// Replaces the address of an end, here and where an ICMP error quotes it.
pub(super) fn map_client(
    link: LinkType,
    bytes: &mut [u8],
    which: impl Fn(SocketAddr, SocketAddr) -> Option<End>,
    key: &Key,
) {
    let Some(place) = ip_begin(link, bytes).and_then(|begin| locate(bytes, begin)) else { return };
    let mut inner = None;
    let about = if matches!(place.protocol, ICMP | ICMP_V6) {
        inner = locate(bytes, place.transport + 8);
        inner.unwrap_or(place)
    } else {
        place
    };
    let (Some(source), Some(destination)) = (end(bytes, about, End::Source), end(bytes, about, End::Destination))
    else {
        return;
    };
    let Some(client) = which(source, destination) else { return };
    let client_ip = match client {
        End::Source => source.ip(),
        End::Destination => destination.ip(),
    };
    for part in [Some(place), inner].into_iter().flatten() {
        for side in [End::Source, End::Destination] {
            if ip_of(bytes, part, side) == Some(client_ip) {
                put(bytes, part, side, address::map(client_ip, key));
            }
        }
    }
}

/// Neither IP nor anything that is decoded: nothing of it is needed.
fn blank_all(link: LinkType, bytes: &mut [u8]) {
    let header = match link {
        LinkType::ETHERNET => 14,
        LinkType::LINUX_SLL => 16,
        LinkType::LINUX_SLL2 => 20,
        LinkType::NULL | LinkType::LOOP => 4,
        _ => 0,
    };
    fill(bytes, header);
}

fn fill(bytes: &mut [u8], from: usize) {
    if let Some(rest) = bytes.get_mut(from..) {
        rest.fill(BLANK);
    }
}

/// Where the IP header begins, VLAN tags passed over.
fn ip_begin(link: LinkType, bytes: &[u8]) -> Option<usize> {
    let protocol = |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk).map(|two| u16::from_be_bytes(*two));
    let tagged = |mut at: usize, mut begin: usize| {
        // 802.1Q, 802.1ad, and the one before it.
        while matches!(protocol(at)?, 0x8100 | 0x88a8 | 0x9100) {
            at = begin + 2;
            begin += 4;
        }
        matches!(protocol(at)?, 0x0800 | 0x86dd).then_some(begin)
    };
    match link {
        LinkType::ETHERNET => tagged(12, 14),
        LinkType::LINUX_SLL => tagged(14, 16),
        LinkType::LINUX_SLL2 => tagged(0, 20),
        LinkType::NULL | LinkType::LOOP => Some(4),
        LinkType::RAW | LinkType::IPV4 | LinkType::IPV6 | LinkType(12 | 14) => Some(0),
        _ => None,
    }
}

/// RFC 4302 counts words of four bytes, less two.
fn authentication_length(length: u8) -> usize {
    (usize::from(length) + 2) * 4
}

/// The IP header that begins here, and what it carries.
fn locate(bytes: &[u8], ip: usize) -> Option<Place> {
    let byte = |at: usize| bytes.get(ip + at).copied();
    match byte(0)? >> 4 {
        4 => {
            let (mut protocol, mut at) = (byte(9)?, usize::from(byte(0)? & 15) * 4);
            if protocol == AUTHENTICATION {
                (protocol, at) = (byte(at)?, at + authentication_length(byte(at + 1)?));
            }
            Some(Place { ip, v6: false, protocol, transport: ip + at })
        }
        6 => {
            let (mut protocol, mut at) = (byte(6)?, 40);
            // Hop-by-hop, routing, fragment, destination options (RFC 8200), authentication: as many as the packet has room for, as the
            // decoder has it.
            loop {
                let length = match protocol {
                    0 | 43 | 60 => (usize::from(byte(at + 1)?) + 1) * 8,
                    44 => 8,
                    AUTHENTICATION => authentication_length(byte(at + 1)?),
                    _ => break,
                };
                protocol = byte(at)?;
                at += length;
            }
            Some(Place { ip, v6: true, protocol, transport: ip + at })
        }
        _ => None,
    }
}

/// Where TCP's payload begins.
fn tcp_payload(bytes: &[u8], transport: usize) -> Option<usize> {
    let length = usize::from(bytes.get(transport + 12)? >> 4) * 4;
    (length >= 20).then_some(transport + length)
}

fn ip_range(place: Place, side: End) -> std::ops::Range<usize> {
    let (first, length) = if place.v6 { (8, 16) } else { (12, 4) };
    let begin = place.ip + first + if side == End::Source { 0 } else { length };
    begin..begin + length
}

fn ip_of(bytes: &[u8], place: Place, side: End) -> Option<IpAddr> {
    let octets = bytes.get(ip_range(place, side))?;
    <[u8; 4]>::try_from(octets).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

fn end(bytes: &[u8], place: Place, side: End) -> Option<SocketAddr> {
    let at = place.transport + if side == End::Source { 0 } else { 2 };
    let port = bytes.get(at..).and_then(<[u8]>::first_chunk).map(|two| u16::from_be_bytes(*two))?;
    Some(SocketAddr::new(ip_of(bytes, place, side)?, port))
}

fn put(bytes: &mut [u8], place: Place, side: End, address: IpAddr) {
    let Some(to) = bytes.get_mut(ip_range(place, side)) else { return };
    match address {
        IpAddr::V4(v4) if to.len() == 4 => to.copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) if to.len() == 16 => to.copy_from_slice(&v6.octets()),
        _ => {}
    }
}

/// Takes out what users wrote in the first bytes of a segment.
fn payload(bytes: &mut [u8], key: &Key) {
    match *bytes {
        [] => {}
        // A TLS record: its header, and an alert in the clear, which has two bytes.
        [kind @ 20..=24, 3, 0..=4, high, low, ..] => {
            fill(bytes, if (kind, high, low) == (21, 0, 2) { 7 } else { 5 });
        }
        _ => match Foreign::of(bytes) {
            // The greeting names the protocol; what follows it, a version or a host's name, is nobody's business.
            Some((_, length)) => fill(bytes, length),
            None => http(bytes, key),
        },
    }
}

fn http(bytes: &mut [u8], key: &Key) {
    let end = memchr::memchr(b'\n', bytes);
    let mut length = end.unwrap_or(bytes.len());
    let line = &bytes[..length];
    let status = line.starts_with(b"HTTP/") && line.get(5).is_some_and(u8::is_ascii_digit);
    if status && length <= STATUS_LINE {
        // It stays.
    } else if status {
        fill(bytes, STATUS_LINE);
        return;
    } else if is_request(line, end.is_some()) {
        length -= usize::from(line.ends_with(b"\r"));
        target::request_line(&mut bytes[..length], key);
    } else {
        fill(bytes, 0);
        return;
    }
    if let Some(end) = end {
        headers(bytes.get_mut(end + 1..).unwrap_or_default());
    }
}

fn is_request(line: &[u8], whole: bool) -> bool {
    let Some(space) = line.iter().take(32).position(|byte| *byte == b' ') else { return false };
    let method = &line[..space];
    let token = !method.is_empty() && method.iter().all(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_'));
    let version = line.rsplit(|byte| *byte == b' ').next().is_some_and(|word| word.starts_with(b"HTTP/"));
    token && if whole { version } else { METHODS.contains(&method) }
}

/// Header names stay; values go unless they are the protocol's; what follows the headers goes.
fn headers(mut rest: &mut [u8]) {
    while !rest.is_empty() {
        let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
        let (line, after) = rest.split_at_mut(end);
        rest = after;
        let text = line.len() - line.iter().rev().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        if text == 0 {
            // The end of the headers.
            rest.fill(BLANK);
            return;
        }
        let colon = memchr::memchr(b':', &line[..text]);
        let token =
            |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'(' | b')' | b',' | b'/' | b'=' | b'@');
        let name = colon.filter(|colon| *colon > 0 && line[..*colon].iter().all(token));
        match name {
            Some(colon) if PROTOCOL_HEADERS.iter().any(|known| line[..colon].eq_ignore_ascii_case(known)) => {}
            Some(colon) => line[colon + 1..text].fill(BLANK),
            // A continued value, or a name that the capture cut: who knows.
            None => line[..text].fill(BLANK),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::new(*b"0123456789abcdef")
    }

    fn packet(payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        etherparse::PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4([10, 0, 0, 7], [10, 0, 0, 1], 64)
            .tcp(50_000, 80, 7, 512)
            .write(&mut bytes, payload)
            .unwrap();
        bytes
    }

    fn blanked(payload: &str) -> String {
        let before = packet(payload.as_bytes());
        let mut after = before.clone();
        blank(LinkType::ETHERNET, &mut after, &key());
        assert_eq!((after.len(), &after[..54]), (before.len(), &before[..54]));
        String::from_utf8(after[54..].to_vec()).unwrap()
    }

    #[test]
    fn a_request_keeps_its_shape() {
        let out = blanked(
            "POST /pay?card=4111 HTTP/1.1\r\nHost: shop\r\nCookie: sid=s3cret\r\nAuthorization: Basic c2VjcmV0\r\n\
             Content-Length: 9\r\n folded secret\r\n\r\nbody=here",
        );
        assert!(
            out.starts_with("POST /pay?card=") && out.contains(" HTTP/1.1\r\nHost: shop\r\nCookie:xxxxxxxxxxx\r\n"),
            "{out}"
        );
        assert!(out.contains("Content-Length: 9\r\n") && out.ends_with("\r\n\r\nxxxxxxxxx"), "{out}");
        for secret in ["4111", "s3cret", "c2VjcmV0", "folded", "body"] {
            assert!(!out.contains(secret), "{secret}: {out}");
        }
    }

    #[test]
    fn a_status_line_stays_and_the_answer_goes() {
        let out = blanked("HTTP/1.1 502 Bad Gateway\r\nSet-Cookie: a=b\r\nServer: nginx\r\n\r\nsecret");
        assert_eq!(out, "HTTP/1.1 502 Bad Gateway\r\nSet-Cookie:xxxx\r\nServer: nginx\r\n\r\nxxxxxx");
    }

    #[test]
    fn what_is_not_understood_goes() {
        for payload in ["ame=secret&b=c", "SECRET words here", "session: abc\r\n", "\u{1}\u{1}\0\u{1}FCGI"] {
            assert!(blanked(payload).bytes().all(|byte| byte == b'x'), "{payload}");
        }
        assert!(!blanked("GET /a?token=sec").contains("sec"), "cut by the capture");
    }

    #[test]
    fn tls_keeps_its_record_and_its_alert() {
        let mut alert = packet(&[21, 3, 3, 0, 2, 2, 40]);
        let before = alert.clone();
        blank(LinkType::ETHERNET, &mut alert, &key());
        assert_eq!(alert, before);
        let mut hello = packet(&[22, 3, 1, 0, 9, 1, 2, 3, 4]);
        blank(LinkType::ETHERNET, &mut hello, &key());
        assert_eq!(hello[54..], [22, 3, 1, 0, 9, b'x', b'x', b'x', b'x']);
    }

    #[test]
    fn an_icmp_error_quotes_a_header_only() {
        let quoted = &packet(b"secret payload")[14..];
        let mut bytes = Vec::new();
        etherparse::PacketBuilder::ipv4([10, 0, 0, 9], [10, 0, 0, 7], 64)
            .icmpv4_raw(3, 1, [0; 4])
            .write(&mut bytes, quoted)
            .unwrap();
        let mut after = bytes.clone();
        blank(LinkType::RAW, &mut after, &key());
        assert_eq!(after[..28 + 40], bytes[..28 + 40]);
        assert!(after[28 + 40..].iter().all(|byte| *byte == b'x') && after.len() == bytes.len());
    }

    #[test]
    fn a_clients_address_is_replaced_wherever_it_stands() {
        let mut bytes = packet(b"");
        map_client(LinkType::ETHERNET, &mut bytes, |_, _| Some(End::Source), &key());
        assert_ne!(bytes[26..30], [10, 0, 0, 7]);
        assert_eq!(bytes[30..34], [10, 0, 0, 1]);
        let mut untouched = packet(b"");
        map_client(LinkType::ETHERNET, &mut untouched, |_, _| None, &key());
        assert_eq!(untouched, packet(b""));
    }

    #[test]
    fn whatever_comes_nothing_breaks() {
        let whole = packet(b"GET /a?b=c HTTP/1.1\r\nCookie: x\r\n\r\nbody");
        for link in [0, 1, 12, 101, 108, 113, 228, 276, 999].map(LinkType) {
            for cut in 0..whole.len() {
                let mut bytes = whole[..cut].to_vec();
                blank(link, &mut bytes, &key());
                map_client(link, &mut bytes, |_, _| Some(End::Destination), &key());
                assert_eq!(bytes.len(), cut);
            }
        }
    }
}
