//! The filter, so that a busy host's packets stay in its kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

/// How much of each flow is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// What breaks something: RST, responses with a status of 5xx or 4xx (but 404), TLS alerts, greetings of other protocols.
    Trouble,
    /// That, and the SYN-ACK: what an upstream's own packets look like (TTL), so that a RST of somebody else's stands out. The rest of a
    /// connection's fate is the kernel's to tell.
    Answers,
    /// What decides fates: trouble, and SYN and FIN.
    Fates,
    /// Every packet of the flows.
    Everything,
}

/// A filter in libpcap's language.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The text.
    pub text: String,
    /// How it is wider than asked, because it would have become too long.
    pub widened: Option<&'static str>,
}

/// Pairs of address and port at most. The kernel takes 4,096 instructions, a pair costs up to sixteen.
const PAIRS: usize = 96;
/// Ports at most.
const PORTS: usize = 256;

/// ICMP that quotes a TCP packet: unreachable, source quench, time exceeded, parameter problem. First, because the others look
/// at bytes that an ICMP packet may not have, and a filter that looks beyond the end says no to the packet.
const ICMP: &str = "(icmp and (icmp[0] = 3 or icmp[0] = 4 or icmp[0] = 11 or icmp[0] = 12) and icmp[17] = 6) or \
    (ip6[6] = 58 and ip6[40] >= 1 and ip6[40] <= 4 and ip6[54] = 6)";

/// Which flags of a TCP header's byte 13 decide: RST alone; that or SYN and ACK together; any of FIN, SYN and RST.
const RST: &[&str] = &["& 4 != 0"];
const RST_OR_SYN_ACK: &[&str] = &["& 4 != 0", "& 0x12 = 0x12"];
const FIN_SYN_RST: &[&str] = &["& 7 != 0"];

/// Beginnings of answers that no HTTP server gives: `SSH-`, `220 `, `-ERR`, `<htm`, `<!DO`.
const FOREIGN: [u32; 5] = [0x5353_482d, 0x3232_3020, 0x2d45_5252, 0x3c68_746d, 0x3c21_444f];

/// What decides fates, by one of these tests of the flags and the payload's beginning: `HTTP/1.x 5`; `HTTP/1.x 4`, which an upstream says when
/// it refuses a request early, except 404, of which a healthy site has many; a TLS alert; greetings of other protocols. A segment without
/// payload has no such bytes and is refused at once. `at` gives the text that loads so many bytes at that offset of the payload.
fn fates(flags: &str, tests: &[&str], at: impl Fn(u32, u32) -> String) -> String {
    let (four, status, rest, two) = (at(0, 4), at(9, 1), at(10, 2), at(0, 2));
    let foreign = FOREIGN.map(|beginning| format!("{four} = {beginning:#010x}")).join(" or ");
    let flagged = tests.iter().map(|test| format!("{flags} {test}")).collect::<Vec<_>>().join(" or ");
    format!(
        "({flagged} or ({four} = 0x48545450 and ({status} = 0x35 or ({status} = 0x34 and {rest} != 0x3034))) or \
         {two} = 0x1503 or {foreign})"
    )
}

/// Over IPv4, and over IPv6, of which libpcap's `tcp[…]` knows nothing. Packets with extension headers between IPv6 and TCP are not seen.
fn all_fates(tests: &[&str]) -> String {
    let v4 = fates("tcp[13]", tests, |offset, size| format!("tcp[((tcp[12] & 0xf0) >> 2) + {offset} : {size}]"));
    let v6 = fates("ip6[53]", tests, |offset, size| format!("ip6[((ip6[52] & 0xf0) >> 2) + {} : {size}]", 40 + offset));
    format!("(ip and {v4}) or (ip6 and ip6[6] = 6 and {v6})")
}

/// A filter for connections to the upstreams and to nginx's own ports. Without any, all TCP.
#[must_use]
pub fn build(upstreams: &[SocketAddr], listen: &[SocketAddr], detail: Detail) -> Filter {
    let ends: BTreeSet<(Option<IpAddr>, u16)> = upstreams.iter().chain(listen).filter_map(end).collect();
    let ports: BTreeSet<u16> = ends.iter().map(|(_, port)| *port).collect();
    let pairs = ends.iter().filter(|(ip, _)| ip.is_some()).count();
    let (flows, widened) = match (pairs, ports.len()) {
        (_, 0) => ("tcp".to_owned(), Some("no address is known, so all TCP is captured")),
        (..=PAIRS, ..=PORTS) => (by_address(&ends), None),
        (_, ..=PORTS) => (any_port(ports), Some("there are many upstreams, so only their ports select packets")),
        _ => ("tcp".to_owned(), Some("there are very many upstream ports, so all TCP is captured")),
    };
    let text = match detail {
        Detail::Trouble => format!("{ICMP} or (({flows}) and ({}))", all_fates(RST)),
        Detail::Answers => format!("{ICMP} or (({flows}) and ({}))", all_fates(RST_OR_SYN_ACK)),
        Detail::Fates => format!("{ICMP} or (({flows}) and ({}))", all_fates(FIN_SYN_RST)),
        Detail::Everything => format!("{ICMP} or ({flows})"),
    };
    Filter { text, widened }
}

/// A wildcard address says nothing; port 0 is none.
fn end(address: &SocketAddr) -> Option<(Option<IpAddr>, u16)> {
    let ip = address.ip().to_canonical();
    (address.port() != 0).then(|| ((!ip.is_unspecified()).then_some(ip), address.port()))
}

fn by_address(ends: &BTreeSet<(Option<IpAddr>, u16)>) -> String {
    let mut by_host: BTreeMap<Option<IpAddr>, BTreeSet<u16>> = BTreeMap::new();
    for (ip, port) in ends {
        by_host.entry(*ip).or_default().insert(*port);
    }
    let anywhere = by_host.get(&None).cloned().unwrap_or_default();
    let mut alternatives = Vec::new();
    for (ip, ports) in by_host {
        match ip {
            None => alternatives.push(any_port(ports)),
            Some(ip) => {
                let ports: BTreeSet<u16> = ports.difference(&anywhere).copied().collect();
                if !ports.is_empty() {
                    alternatives.push(format!("(host {ip} and ({}))", any_port(ports)));
                }
            }
        }
    }
    alternatives.join(" or ")
}

/// Neighbouring ports make a range.
fn any_port(ports: BTreeSet<u16>) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(port) => *last = port,
            _ => ranges.push((port, port)),
        }
    }
    let mut text = String::new();
    for (first, last) in ranges {
        let or = if text.is_empty() { "" } else { " or " };
        // Writing into a String cannot fail.
        let _ = if first == last {
            write!(text, "{or}tcp port {first}")
        } else {
            write!(text, "{or}tcp portrange {first}-{last}")
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use pcap::{BpfProgram, Capture, Linktype};

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn compile(filter: &Filter, link: Linktype) -> BpfProgram {
        Capture::dead(link).unwrap().compile(&filter.text, true).unwrap()
    }

    fn segment(v6: bool, port: u16, flags: u8, options: bool, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6]);
        let builder = if v6 {
            let mut last = [0; 16];
            last[15] = 2;
            builder.ipv6([3; 16], last, 64)
        } else {
            builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        };
        let mut tcp = builder.tcp(40_000, port, 1, 100).ack(1);
        if options {
            tcp = tcp.options(&[etherparse::TcpOptionElement::Timestamp(1, 2)]).unwrap();
        }
        let mut bytes = Vec::new();
        tcp.write(&mut bytes, payload).unwrap();
        // All but a first SYN acknowledge something.
        bytes[if v6 { 14 + 53 } else { 14 + 33 }] = if flags == 2 { flags } else { flags | 0x10 };
        bytes
    }

    #[test]
    fn compiles_for_every_link_layer() {
        let many: Vec<SocketAddr> =
            (0..90_u8).map(|n| format!("10.0.{n}.1:{}", 8000 + 2 * u16::from(n)).parse().unwrap()).collect();
        let upstreams = addresses(&["10.0.0.2:8000", "[fd00::1]:8001", "127.0.0.1:9000"]);
        for detail in [Detail::Trouble, Detail::Answers, Detail::Fates, Detail::Everything] {
            for upstreams in [&upstreams, &many] {
                let filter = build(upstreams, &addresses(&["0.0.0.0:80", "[::]:443"]), detail);
                assert_eq!(filter.widened, None);
                // Ethernet, raw, SLL, SLL2 (DLT numbers).
                for link in [1, 12, 113, 276] {
                    let program = compile(&filter, Linktype(link));
                    assert!(program.get_instructions().len() < 4096, "{}", program.get_instructions().len());
                }
            }
        }
    }

    #[test]
    fn passes_what_decides_fates_and_nothing_else() {
        let filter = build(&addresses(&["10.0.0.2:8000", "[::2]:8000"]), &[], Detail::Fates);
        let trouble = build(&addresses(&["10.0.0.2:8000", "[::2]:8000"]), &[], Detail::Trouble);
        let trouble = compile(&trouble, Linktype(1));
        let answers = build(&addresses(&["10.0.0.2:8000", "[::2]:8000"]), &[], Detail::Answers);
        let answers = compile(&answers, Linktype(1));
        let everything = build(&addresses(&["10.0.0.2:8000", "[::2]:8000"]), &[], Detail::Everything);
        let (program, all) = (compile(&filter, Linktype(1)), compile(&everything, Linktype(1)));
        for v6 in [false, true] {
            for options in [false, true] {
                for (flags, payload, passes) in [
                    (2, b"".as_slice(), true),
                    (0x12, b"", true),
                    (1, b"", true),
                    (4, b"", true),
                    (1, b"data", true),
                    (0, b"", false),
                    (8, b"x", false),
                    (8, b"GET / HTTP/1.1\r\n", false),
                    (8, b"HTTP/1.1 200 OK\r\n", false),
                    (8, b"HTTP/1.1 502 Bad Gateway\r\n", true),
                    (8, b"HTTP/1.0 504 X\r\n", true),
                    (8, b"HTTP/1.1 413 Payload Too Large\r\n", true),
                    (8, b"HTTP/1.1 404 Not Found\r\n", false),
                    (8, b"SSH-2.0-OpenSSH_9.2\r\n", true),
                    (8, b"<!DOCTYPE html>", true),
                    (8, b"\x15\x03\x03\x00\x02\x02\x28", true),
                    (8, b"\x16\x03\x03\x00\x02\x02\x28", false),
                ] {
                    let bytes = segment(v6, 8000, flags, options, payload);
                    assert_eq!(program.filter(&bytes), passes, "{v6} {options} {flags} {payload:?}");
                    assert!(all.filter(&bytes));
                    let opens_or_closes = flags & 3 != 0;
                    let is_trouble = passes && !opens_or_closes;
                    assert_eq!(trouble.filter(&bytes), is_trouble, "{v6} {options} {flags} {payload:?}");
                    assert_eq!(answers.filter(&bytes), is_trouble || flags == 0x12, "{v6} {options} {flags}");
                    let other = segment(v6, 8001, flags, options, payload);
                    assert!(!program.filter(&other) && !all.filter(&other), "another port");
                }
            }
        }
    }

    #[test]
    fn passes_icmp_about_tcp() {
        let filter = build(&addresses(&["10.0.0.2:8000"]), &[], Detail::Fates);
        let program = compile(&filter, Linktype(1));
        let icmp = |kind: u8, quoted: &[u8]| {
            let mut bytes = Vec::new();
            let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4([9; 4], [10, 0, 0, 1], 64);
            builder.icmpv4_raw(kind, 1, [0; 4]).write(&mut bytes, quoted).unwrap();
            bytes
        };
        let quoted = &segment(false, 8000, 2, false, b"")[14..42];
        assert!(program.filter(&icmp(3, quoted)));
        assert!(program.filter(&icmp(11, quoted)));
        assert!(!program.filter(&icmp(8, quoted)));
        let mut udp = quoted.to_vec();
        udp[9] = 17;
        assert!(!program.filter(&icmp(3, &udp)));
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv6([9; 16], [1; 16], 64);
        builder.icmpv6_raw(1, 0, [0; 4]).write(&mut bytes, &segment(true, 8000, 2, false, b"")[14..]).unwrap();
        assert!(program.filter(&bytes));
    }

    #[test]
    fn becomes_wider_before_it_becomes_too_long() {
        let many: Vec<SocketAddr> = (0..200_u8).map(|n| format!("10.0.{n}.1:8000").parse().unwrap()).collect();
        let filter = build(&many, &[], Detail::Everything);
        assert!(filter.text.ends_with("or (tcp port 8000)") && filter.widened.is_some());
        let ports: Vec<SocketAddr> = (0..300).map(|n| format!("10.0.0.1:{}", 1000 + 2 * n).parse().unwrap()).collect();
        assert!(build(&ports, &[], Detail::Everything).text.ends_with("or (tcp)"));
        assert!(build(&[], &[], Detail::Fates).widened.is_some());
        let wildcard =
            build(&addresses(&["10.0.0.1:80", "10.0.0.1:81"]), &addresses(&["0.0.0.0:80"]), Detail::Everything);
        assert!(wildcard.text.ends_with("(tcp port 80 or (host 10.0.0.1 and (tcp port 81)))"), "{}", wildcard.text);
    }
}
