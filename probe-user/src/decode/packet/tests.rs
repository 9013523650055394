use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;

const REQUEST: &[u8] = b"GET /cart?a=1 HTTP/1.1\r\nX: y\r\nhOst: shop.example \r\n\r\n";

/// An IPv4 packet with a TCP segment, without a link layer.
fn ipv4(payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 63).tcp(41_822, 8000, 7, 512).ack(9).psh();
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

fn ipv6(payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv6([1; 16], [2; 16], 5).tcp(41_822, 8000, 7, 512).rst();
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

fn with_link(prefix: &[u8], packet: &[u8]) -> Vec<u8> {
    [prefix, packet].concat()
}

fn tcp_of(link: LinkType, bytes: &[u8]) -> TcpPacket {
    match decode(link, bytes, u32::try_from(bytes.len()).unwrap()) {
        Some(PacketBody::Tcp(tcp)) => tcp,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_link_layer_leads_to_the_same_packet() {
    let packet = ipv4(REQUEST);
    let mac = [0_u8; 12];
    let mut sll = [0; 16];
    sll[14..].copy_from_slice(&[8, 0]);
    let mut sll2 = [0; 20];
    sll2[..2].copy_from_slice(&[8, 0]);
    let ethernet = |tags: &[u8]| with_link(&mac, &with_link(tags, &packet));
    let cases = [
        (LinkType::RAW, packet.clone()),
        (LinkType(12), packet.clone()),
        (LinkType::IPV4, packet.clone()),
        (LinkType::NULL, with_link(&[2, 0, 0, 0], &packet)),
        (LinkType::LOOP, with_link(&[0, 0, 0, 2], &packet)),
        (LinkType::LINUX_SLL, with_link(&sll, &packet)),
        (LinkType::LINUX_SLL2, with_link(&sll2, &packet)),
        (LinkType::ETHERNET, ethernet(&[8, 0])),
        (LinkType::ETHERNET, ethernet(&[0x81, 0, 0, 5, 8, 0])),
        (LinkType::ETHERNET, ethernet(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0])),
    ];
    for (link, bytes) in cases {
        let tcp = tcp_of(link, &bytes);
        assert_eq!(tcp.header.source, "10.0.0.1:41822".parse().unwrap(), "{link:?}");
        assert_eq!(tcp.header.destination, "10.0.0.2:8000".parse().unwrap());
        assert_eq!((tcp.header.sequence, tcp.header.acknowledgement, tcp.header.ttl), (7, 9, 63));
        assert!(tcp.header.flags.ack() && tcp.header.flags.psh() && !tcp.header.flags.syn());
        assert_eq!((tcp.window, tcp.ip_id), (512, Some(0)));
        assert_eq!(usize::try_from(tcp.payload_length).unwrap(), REQUEST.len());
        let expected =
            Content::HttpRequest { line: "GET /cart?a=1 HTTP/1.1".into(), host: Some("shop.example".into()) };
        assert_eq!(tcp.content, expected);
    }
    assert_eq!(decode(LinkType(147), &packet, 60), None, "an unknown link layer");
}

#[test]
fn lengths_come_from_the_ip_header() {
    // Ethernet pads short frames: padding is no payload.
    let mut frame = with_link(&[0; 12], &with_link(&[8, 0], &ipv4(b"")));
    frame.resize(60, 0xaa);
    let tcp = tcp_of(LinkType::ETHERNET, &frame);
    assert_eq!((tcp.payload_length, tcp.content), (0, Content::Empty));

    // Cut captures know how much was on the wire.
    let packet = ipv4(&[b'x'; 900]);
    let whole = u32::try_from(packet.len()).unwrap();
    for (captured, content) in [(40, Content::NotCaptured), (36, Content::NotCaptured), (41, Content::Other)] {
        let Some(PacketBody::Tcp(tcp)) = decode(LinkType::RAW, &packet[..captured], whole) else { panic!() };
        assert_eq!((tcp.payload_length, tcp.content), (900, content), "{captured}");
    }
    assert_eq!(decode(LinkType::RAW, &packet[..35], whole), None, "no flags, no packet");

    // A total length of 0 (larger than 64 KiB): what was on the wire counts.
    let mut big = packet;
    big[2..4].fill(0);
    let Some(PacketBody::Tcp(tcp)) = decode(LinkType::RAW, &big, 70_040) else { panic!() };
    assert_eq!(tcp.payload_length, 70_000);
}

#[test]
fn options_cut_off_leave_the_header() {
    let builder = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1, 2, 3, 4)
        .options(&[etherparse::TcpOptionElement::Timestamp(1, 2)])
        .unwrap()
        .syn();
    let mut bytes = Vec::new();
    builder.write(&mut bytes, &[]).unwrap();
    let Some(PacketBody::Tcp(tcp)) = decode(LinkType::RAW, &bytes[..40], 52) else { panic!() };
    assert!(tcp.header.flags.syn());
    assert_eq!((tcp.payload_length, tcp.content), (0, Content::Empty));
}

#[test]
fn ipv6_with_extension_headers() {
    let packet = ipv6(b"HTTP/1.1 502 Bad Gateway\r\nServer: x\r\n\r\n");
    let status = Content::HttpStatus { code: 502, line: "HTTP/1.1 502 Bad Gateway".into() };
    let plain = tcp_of(LinkType::RAW, &packet);
    assert!(plain.header.flags.rst());
    assert_eq!((plain.content, plain.ip_id), (status.clone(), None));

    // Hop-by-hop options and a first fragment between the header and TCP.
    let mut extended = packet[..40].to_vec();
    extended[6] = 0;
    let length = u16::try_from(packet.len() - 40 + 16).unwrap();
    extended[4..6].copy_from_slice(&length.to_be_bytes());
    extended.extend([44, 0, 1, 4, 0, 0, 0, 0]);
    extended.extend([6, 0, 0, 1, 0, 0, 0, 9]);
    extended.extend(&packet[40..]);
    let tcp = tcp_of(LinkType::RAW, &extended);
    assert_eq!((tcp.content, tcp.payload_length), (status, plain.payload_length));

    // Cut among the extension headers there is nothing of TCP, and nothing behind the capture is read.
    for length in 40..56 {
        let cut: Box<[u8]> = extended[..length].into();
        assert_eq!(decode(LinkType::RAW, &cut, u32::try_from(extended.len()).unwrap()), None, "{length}");
    }

    // A later fragment has no TCP header.
    extended[40 + 8 + 3] = 8;
    assert_eq!(decode(LinkType::RAW, &extended, 200), None);
}

#[test]
fn later_ipv4_fragments_and_other_protocols_are_not_tcp() {
    let mut packet = ipv4(REQUEST);
    packet[7] = 3;
    assert_eq!(decode(LinkType::RAW, &packet, 100), None);
    let mut udp = Vec::new();
    PacketBuilder::ipv4([1; 4], [2; 4], 1).udp(1, 2).write(&mut udp, &[1]).unwrap();
    assert_eq!(decode(LinkType::RAW, &udp, 100), None);
    let arp = with_link(&[0xff; 12], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    assert_eq!(decode(LinkType::ETHERNET, &arp, 60), None);
}

#[test]
fn icmp_says_which_packet_it_is_about() {
    let quoted = ipv4(REQUEST);
    let mut bytes = Vec::new();
    PacketBuilder::ipv4([192, 0, 2, 1], [10, 0, 0, 1], 64)
        .icmpv4_raw(3, 13, [0; 4])
        .write(&mut bytes, &quoted[..28])
        .unwrap();
    let expected = IcmpPacket {
        from: "192.0.2.1".parse().unwrap(),
        icmp_type: 3,
        code: 13,
        v6: false,
        about: ("10.0.0.1:41822".parse().unwrap(), "10.0.0.2:8000".parse().unwrap()),
        syn: None,
    };
    assert_eq!(decode(LinkType::RAW, &bytes, 100), Some(PacketBody::Icmp(expected)));
    bytes[20] = 8;
    assert_eq!(decode(LinkType::RAW, &bytes, 100), None, "an echo request is about nothing");

    let mut bytes = Vec::new();
    PacketBuilder::ipv6([9; 16], [1; 16], 64).icmpv6_raw(1, 4, [0; 4]).write(&mut bytes, &ipv6(b"")).unwrap();
    let Some(PacketBody::Icmp(icmp)) = decode(LinkType::RAW, &bytes, 200) else { panic!() };
    assert!(icmp.v6 && icmp.icmp_type == 1 && icmp.code == 4);
    assert_eq!((icmp.about.1.port(), icmp.syn), (8000, None));

    let mut syn = Vec::new();
    PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(41822, 8000, 77, 1).syn().write(&mut syn, &[]).unwrap();
    for (whole, expected) in [(true, Some(77)), (false, None)] {
        let mut bytes = Vec::new();
        let quoted = if whole { &syn[..] } else { &syn[..28] };
        PacketBuilder::ipv4([192, 0, 2, 1], [10, 0, 0, 1], 64)
            .icmpv4_raw(3, 13, [0; 4])
            .write(&mut bytes, quoted)
            .unwrap();
        let Some(PacketBody::Icmp(icmp)) = decode(LinkType::RAW, &bytes, 100) else { panic!() };
        assert_eq!(icmp.syn, expected);
    }
}

fn content(payload: &[u8]) -> Content {
    tcp_of(LinkType::RAW, &ipv4(payload)).content
}

#[test]
fn contents() {
    let request =
        |line: &str, host: Option<&str>| Content::HttpRequest { line: line.into(), host: host.map(Into::into) };
    let tls = |content_type, alert| Content::Tls { content_type, alert };
    assert_eq!(content(b"HTTP/1.0 504\n"), Content::HttpStatus { code: 504, line: "HTTP/1.0 504".into() });
    assert_eq!(content(b"HTTP/2 200"), Content::HttpStatus { code: 200, line: "HTTP/2 200".into() });
    assert_eq!(content(b"HTTP/1.1 5020"), Content::Other);
    assert_eq!(content(b"HTTP/1.1 50"), Content::Other);
    assert_eq!(content(b"\x15\x03\x03\x00\x02\x02\x28"), tls(21, Some((2, 40))));
    assert_eq!(content(b"\x15\x03\x03\x00\x1a\x00\x00\x00\x00\x00\x00\x00\x01"), tls(21, None), "encrypted");
    assert_eq!(content(b"\x16\x03\x01\x02\x00\x01"), tls(22, None));
    assert_eq!(content(b"\x16\x03\x01\xff\xff\x01"), Content::Other);
    assert_eq!(content(b"\x16\x03"), Content::Other);
    assert_eq!(content(b"GET /long"), request("GET /long", None));
    assert_eq!(content(b"FOO /x HTTP/1.1\r\nHost: a\r\n"), request("FOO /x HTTP/1.1", Some("a")));
    assert_eq!(content(b"GET / HTTP/1.1\r\nHost: cut.exam"), request("GET / HTTP/1.1", None));
    assert_eq!(content(b"GET / HTTP/1.1\r\n\r\nHost: body\r\n"), request("GET / HTTP/1.1", None));
    assert_eq!(content(b"PRI * HTTP/2.0\r\n\r\nSM"), request("PRI * HTTP/2.0", None));
    assert_eq!(content(b"FOO /cut"), Content::Other);
    assert_eq!(content(b"hello world and more\r\n"), Content::Other);
    assert_eq!(content(b"get / HTTP/1.1\r\n"), Content::Other);
}

#[test]
fn lines_are_bounded() {
    let long = [b"GET /".as_slice(), &[b'a'; 5000], b" HTTP/1.1\r\n"].concat();
    let Content::HttpRequest { line, .. } = content(&long) else { panic!() };
    assert_eq!(line.len(), 1024);
}

fn links() -> impl Strategy<Value = LinkType> {
    prop_oneof![
        Just(LinkType::ETHERNET),
        Just(LinkType::RAW),
        Just(LinkType::NULL),
        Just(LinkType::LINUX_SLL),
        Just(LinkType::LINUX_SLL2),
        any::<u16>().prop_map(LinkType),
    ]
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        link in links(), bytes in proptest::collection::vec(any::<u8>(), 0..200), wire in any::<u32>(),
    ) {
        let _ = decode(link, &bytes, wire);
    }

    #[test]
    fn no_mutation_makes_it_panic(
        v6 in any::<bool>(), payload in proptest::collection::vec(any::<u8>(), 0..64),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), cut in any::<prop::sample::Index>(),
    ) {
        let mut packet = if v6 { ipv6(&payload) } else { ipv4(&payload) };
        let wire = u32::try_from(packet.len()).unwrap();
        for (index, value) in changes {
            let at = index.index(packet.len());
            packet[at] = value;
        }
        packet.truncate(cut.index(packet.len() + 1));
        if let Some(PacketBody::Tcp(tcp)) = decode(LinkType::RAW, &packet, wire) {
            prop_assert_eq!(tcp.payload_length == 0, tcp.content == Content::Empty);
        }
    }
}

#[test]
fn a_response_says_how_long_it_is() {
    let promised = |text: &str| content::promised(text.as_bytes()).map(|promised| (promised.header, promised.body));
    assert_eq!(promised("HTTP/1.1 413 X\r\nContent-Length: 0\r\n\r\n"), Some((37, 0)));
    assert_eq!(promised("HTTP/1.0 200 OK\r\nA: b\r\ncontent-length:12 \r\n\r\nbody"), Some((45, 12)));
    assert_eq!(promised("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n"), None, "its end was not captured");
    assert_eq!(promised("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), None);
    assert_eq!(promised("GET / HTTP/1.1\r\nContent-Length: 12\r\n\r\n"), None);
}
