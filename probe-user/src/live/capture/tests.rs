//! These need root: they capture on the loopback interface.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
};

use super::{filter::Detail, *};
use crate::{decode, model::packet::PacketBody};

fn assert_root() {
    assert!(nix::unistd::geteuid().is_root(), "this test captures packets: run it as root");
}

fn options(interface: &str, filter: String) -> Options {
    Options {
        interface: interface.to_owned(),
        index: 3,
        netns: None,
        filter,
        snap_length: SNAP_LENGTH,
        inbound_only: false,
        buffer: FATES_BUFFER,
        numbers: Arc::default(),
        bell: Bell::default(),
    }
}

/// One connection with a request and this answer; everything that was captured of it.
fn exchange(interface: &str, detail: Detail, answer: &str) -> (Vec<CapturedPacket>, Statistics) {
    assert_root();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let filter = filter::build(&[address], &[], detail);
    let (sender, packets) = mpsc::sync_channel(1000);
    let sink: Sink = Box::new(move |batch: Batch, _| {
        (0..batch.len()).filter_map(|place| batch.packet(place)).all(|packet| sender.try_send(packet).is_ok())
    });
    let capture = Capture::start(options(interface, filter.text), sink).unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    server.read_exact(&mut [0; 27]).unwrap();
    server.write_all(answer.as_bytes()).unwrap();
    drop(server);
    client.read_to_end(&mut Vec::new()).unwrap();
    drop(client);
    std::thread::sleep(Duration::from_millis(100));
    let statistics = capture.stop();
    (packets.try_iter().collect(), statistics)
}

fn flags_and_status(packets: &[CapturedPacket]) -> (usize, usize, usize) {
    let tcp: Vec<_> = packets
        .iter()
        .map(|packet| match decode::packet::decode(packet.link, &packet.bytes, packet.wire_length) {
            Some(PacketBody::Tcp(tcp)) => tcp,
            other => panic!("{other:?}"),
        })
        .collect();
    let count =
        |wanted: &dyn Fn(&crate::model::packet::TcpPacket) -> bool| tcp.iter().filter(|tcp| wanted(tcp)).count();
    (
        count(&|tcp| tcp.header.flags.syn()),
        count(&|tcp| tcp.header.flags.fin()),
        count(&|tcp| matches!(tcp.content, crate::model::packet::Content::HttpStatus { code: 502, .. })),
    )
}

#[test]
fn as_root_each_fate_is_captured_once() {
    for interface in ["lo", "any"] {
        let (packets, statistics) = exchange(interface, Detail::Fates, "HTTP/1.1 502 Bad Gateway\r\n\r\n");
        assert_eq!(flags_and_status(&packets), (2, 2, 1), "{interface}: loopback packets are not seen twice");
        assert_eq!(packets.len(), 5, "{interface}: nothing else");
        assert_eq!(statistics.dropped(), 0);
        assert!(statistics.received >= 5);
        assert_eq!(packets.iter().map(|packet| packet.number).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert!(packets.iter().all(|packet| packet.interface == 3 && packet.direction == Direction::Unknown));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let age = now.abs_diff(Duration::from_nanos(packets[0].unix_ns));
        assert!(age < Duration::from_secs(5), "{age:?}");
        assert!(packets.windows(2).all(|pair| pair[0].unix_ns <= pair[1].unix_ns));
    }
}

#[test]
fn as_root_everything_has_headers_and_little_payload() {
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(2000));
    let (packets, _) = exchange("lo", Detail::Everything, &long);
    assert!(packets.len() >= 8, "acknowledgements too: {}", packets.len());
    let answer = packets.iter().find(|packet| packet.wire_length > 2000).unwrap();
    assert_eq!(answer.bytes.len(), usize::try_from(SNAP_LENGTH).unwrap());
}

#[test]
fn as_root_a_full_sink_is_counted() {
    assert_root();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let filter = filter::build(&[address], &[], Detail::Everything);
    let capture = Capture::start(options("lo", filter.text), Box::new(|_, _| false)).unwrap();
    drop(TcpStream::connect(address).unwrap());
    std::thread::sleep(Duration::from_millis(150));
    assert!(capture.ended().is_none());
    assert!(capture.stop().dropped_by_sink >= 3);
}

#[test]
fn as_root_a_wrong_interface_names_the_right_ones() {
    assert_root();
    let error = Capture::start(options("eth77", "tcp".into()), Box::new(|_, _| true)).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, CaptureError::NoSuchInterface { .. }), "{error:?}");
    assert!(
        text.contains("\"eth77\"") && text.contains("lo") && text.contains("any") && !text.contains('\n'),
        "{text}"
    );
    let error = Capture::start(options("lo", "tcp and and".into()), Box::new(|_, _| true)).unwrap_err();
    assert!(matches!(error, CaptureError::Filter { .. }), "{error:?}");
}

#[test]
fn as_root_packets_of_another_network_namespace_are_captured() {
    assert_root();
    let (opened, file) = mpsc::channel();
    let (traffic, wait) = mpsc::channel::<SocketAddr>();
    let (done, ended) = mpsc::channel::<()>();
    let there = std::thread::spawn(move || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        opened.send(Arc::new(File::open("/proc/thread-self/ns/net").unwrap())).unwrap();
        // Nobody listens there.
        TcpStream::connect(wait.recv().unwrap()).unwrap_err();
        done.send(()).unwrap();
    });
    let netns = Some(file.recv().unwrap());
    let upstream: SocketAddr = "127.0.0.1:8123".parse().unwrap();
    assert_eq!(interfaces::choose(netns.as_ref(), &[upstream]).unwrap(), ["lo"]);
    let filter = filter::build(&[upstream], &[], Detail::Fates);
    let (sender, packets) = mpsc::sync_channel(10);
    let sink: Sink = Box::new(move |batch: Batch, _| {
        (0..batch.len()).filter_map(|place| batch.packet(place)).all(|packet| sender.try_send(packet).is_ok())
    });
    let capture = Capture::start(Options { netns, ..options("lo", filter.text) }, sink).unwrap();
    traffic.send(upstream).unwrap();
    ended.recv().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(capture.stop().dropped(), 0);
    there.join().unwrap();
    let flags: Vec<u8> = packets
        .try_iter()
        .map(|packet| match decode::packet::decode(packet.link, &packet.bytes, packet.wire_length) {
            Some(PacketBody::Tcp(tcp)) => tcp.header.flags.0,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(flags, [2, 20], "SYN, then RST and ACK");
}

#[test]
fn as_root_another_network_namespace_has_its_own_interfaces() {
    assert_root();
    // A thread that leaves for a namespace of its own keeps it alive as long as its file is open.
    let file = std::thread::spawn(|| {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
        Arc::new(File::open("/proc/thread-self/ns/net").unwrap())
    })
    .join()
    .unwrap();
    let there = interfaces::list(Some(&file)).unwrap();
    assert_eq!(there.iter().map(|interface| interface.name.as_str()).collect::<Vec<_>>(), ["lo"]);
    assert!(!there[0].up, "a new namespace's loopback is down");
    let chosen = interfaces::choose(Some(&file), &["127.0.0.1:80".parse().unwrap()]).unwrap();
    assert_eq!(chosen, ["lo"]);
}
