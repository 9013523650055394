use std::time::Duration;

use pcap_file::{
    DataLink,
    pcapng::blocks::{
        enhanced_packet::EnhancedPacketOption, interface_description::InterfaceDescriptionOption,
        interface_statistics::InterfaceStatisticsOption,
    },
};

use super::*;

fn interface(name: &str, link: LinkType) -> Interface {
    Interface {
        name: name.to_owned(),
        description: None,
        link,
        snap_length: 262_144,
        filter: Some("tcp port 8000".to_owned()),
        received: Some(7),
        dropped: Some(2),
    }
}

/// An IPv4 SYN without a link layer.
fn syn() -> Vec<u8> {
    let mut bytes = Vec::new();
    etherparse::PacketBuilder::ipv4([127, 0, 0, 1], [127, 0, 0, 1], 64)
        .tcp(41_822, 8000, 7, 512)
        .syn()
        .write(&mut bytes, &[])
        .unwrap();
    bytes
}

fn packet(bytes: &[u8]) -> Packet<'_> {
    Packet {
        interface: 0,
        unix_ns: 1_795_269_727_331_204_512,
        wire_length: 40,
        bytes,
        direction: Direction::Outbound,
        comment: Some("the SYN that nobody answered"),
    }
}

#[test]
fn what_is_written_is_read_again() {
    let syn = syn();
    let sll = [&[0; 14][..], &[8, 0], &syn[..39]].concat();
    let interfaces = [interface("lo", LinkType::RAW), interface("any", LinkType::LINUX_SLL)];
    let mut second = packet(&sll);
    second.interface = 1;
    second.direction = Direction::Unknown;
    second.comment = None;
    let bytes = write(&interfaces, &[packet(&syn), second]);

    let mut reader = pcap_file::pcapng::PcapNgReader::new(bytes.as_slice()).unwrap();
    let mut packets = Vec::new();
    let mut drops = Vec::new();
    while let Some(block) = reader.next_block() {
        match block.unwrap().into_owned() {
            pcap_file::pcapng::Block::EnhancedPacket(block) => packets.push(block),
            pcap_file::pcapng::Block::InterfaceStatistics(block) => drops.push((block.interface_id, block.options)),
            _ => {}
        }
    }
    assert_eq!(reader.interfaces().len(), 2);
    assert!(reader.interfaces()[0].options.contains(&InterfaceDescriptionOption::IfName("lo".into())));
    assert!(reader.interfaces()[0].options.contains(&InterfaceDescriptionOption::IfTsResol(9)));
    assert_eq!(reader.interfaces()[1].linktype, DataLink::LINUX_SLL);
    assert_eq!(packets[0].timestamp, Duration::from_nanos(1_795_269_727_331_204_512));
    assert_eq!(packets[0].options[0], EnhancedPacketOption::Comment("the SYN that nobody answered".into()));
    assert_eq!(packets[0].options[1], EnhancedPacketOption::Flags(2));
    assert_eq!((packets[1].data.len(), packets[1].original_len), (55, 40));
    assert_eq!(packets[1].options, []);
    let counts = vec![InterfaceStatisticsOption::IsbIfRecv(7), InterfaceStatisticsOption::IsbOsDrop(2)];
    assert_eq!(drops, [(0, counts.clone()), (1, counts)]);
}

#[test]
fn statistics_time_has_its_high_half_first() {
    let syn = syn();
    let bytes = write(&[interface("lo", LinkType::RAW)], &[packet(&syn)]);
    // The last block: type, length, interface, high, low.
    let length = usize::try_from(u32::from_le_bytes(*bytes.last_chunk().unwrap())).unwrap();
    let block = &bytes[bytes.len() - length..];
    let half = |at: usize| u64::from(u32::from_le_bytes(*block[at..].first_chunk().unwrap()));
    assert_eq!(half(0), 5);
    assert_eq!((half(12) << 32) | half(16), 1_795_269_727_331_204_512);
}

#[test]
fn what_was_written_is_read_back() {
    let syn = syn();
    let mut interfaces = [interface("lo", LinkType::RAW), interface("eth0", LinkType::ETHERNET)];
    interfaces[1].description = Some("network namespace 4026531840".to_owned());
    let mut other = packet(&syn[..33]);
    other.interface = 1;
    other.comment = None;
    other.direction = Direction::Inbound;
    let packets = [packet(&syn), other];
    let bytes = write(&interfaces, &packets);
    let contents = read(&bytes).unwrap();
    assert_eq!((contents.interfaces.as_slice(), contents.packets.as_slice()), (&interfaces[..], &packets[..]));
    // Whatever is missing at the end, nothing is made up.
    for cut in 0..bytes.len() {
        if let Ok(part) = read(&bytes[..cut]) {
            assert!(packets.starts_with(&part.packets), "{cut}");
        }
    }
}

#[test]
fn long_comments_are_clipped_between_characters() {
    assert_eq!(clip("aéb", 2), "a");
    assert_eq!(clip("aéb", 3), "aé");
    let syn = syn();
    let long = "é".repeat(70_000);
    let mut packet = packet(&syn);
    packet.comment = Some(&long);
    assert!(write(&[interface("lo", LinkType::RAW)], &[packet]).len() < 5_000);
}

/// libpcap is what tcpdump reads files with.
#[cfg(feature = "live")]
#[test]
fn libpcap_reads_it() {
    let syn = syn();
    let bytes = write(&[interface("lo", LinkType::RAW)], &[packet(&syn), packet(&syn[..30])]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();

    let mut capture = pcap::Capture::from_file_with_precision(file.path(), pcap::Precision::Nano).unwrap();
    // DLT_RAW, which is what Linux calls LINKTYPE_RAW inside.
    assert_eq!(capture.get_datalink(), pcap::Linktype(12));
    let first = capture.next_packet().unwrap();
    assert_eq!((first.data, first.header.len), (syn.as_slice(), 40));
    assert_eq!(first.header.ts.tv_usec, 331_204_512);
    assert_eq!(capture.next_packet().unwrap().data.len(), 30);
    assert!(matches!(capture.next_packet(), Err(pcap::Error::NoMorePackets)));
}
