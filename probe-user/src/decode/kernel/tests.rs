use std::sync::Arc;

use proptest::prelude::*;
use zerocopy::{FromZeros, IntoBytes};

use probe_abi::{Endpoint, Header, Kind, endpoint, nginx as abi_nginx, process as abi_process, socket as abi, syscall};

use super::*;
use crate::model::{
    net::{Address, Errno},
    nginx::{NginxEvent, RequestKey},
    process::{Ending, Pid, ProcessEvent, Role, Sender, Untaken},
    socket::{SocketChange, Syscall, TcpState},
};

fn header(kind: Kind) -> Header {
    Header { time_ns: 1_000, sequence: 7, kind: kind as u16, cpu: 1, tgid: 812, tid: 813, reserved: 0 }
}

fn v4(last: u8, port: u16) -> Endpoint {
    let mut address = [0; 16];
    address[..4].copy_from_slice(&[127, 0, 0, last]);
    Endpoint { family: endpoint::FAMILY_INET, port: port.to_be_bytes(), address }
}

fn names() -> Names {
    let map = |pairs: &[(u32, &str)]| pairs.iter().map(|(n, s)| (*n, (*s).to_owned())).collect();
    Names {
        drop_reasons: map(&[(3, "SKB_DROP_REASON_NO_SOCKET")]),
        reset_reasons: map(&[(2, "SK_RST_REASON_NO_SOCKET"), (5, "TCP_ABORT_ON_CLOSE")]),
        hz: 250,
    }
}

fn full_socket() -> abi::Socket {
    abi::Socket {
        pointer: 0xffff_8880_0000_1000,
        cookie: 9,
        present: abi::present::TUPLE | abi::present::ERROR | abi::present::TCP,
        netns: 4_026_531_840,
        error: 104,
        bytes_sent: 312,
        bytes_received: 5,
        srtt_us_8: 800,
        state: abi::state::CLOSE,
        old_state: abi::state::ESTABLISHED,
        last_sent_jiffies: u32::MAX - 4,
        last_received_jiffies: 0,
        local: v4(1, 41_822),
        remote: v4(2, 8000),
        ..abi::Socket::default()
    }
}

#[test]
fn state_change_carries_the_socket_and_its_owner() {
    let mut record = abi::StateChange {
        header: header(Kind::StateChange),
        socket: full_socket(),
        jiffies: (1 << 32) + 20,
        in_task: 1,
        reserved: 0,
    };
    let decoded = decode(record.as_bytes(), &names()).unwrap();
    assert_eq!((decoded.time, decoded.cpu, decoded.sequence), (Moment(1_000), 1, 7));
    let Body::Socket(event) = decoded.body else { panic!("{decoded:?}") };
    assert_eq!(event.change, SocketChange::State { from: TcpState::Established });
    assert_eq!(event.by, Some(Pid(812)));
    assert_eq!(event.socket.local, Some("127.0.0.1:41822".parse().unwrap()));
    assert_eq!(event.socket.error, Some(Errno::ECONNRESET));
    assert_eq!(event.socket.soft_error, None);
    let tcp = event.socket.tcp.unwrap();
    assert_eq!(tcp.rtt_us, 100);
    // Across the wrap of the low half: 25 ticks of 4 ms.
    assert_eq!(tcp.since_sent_us, Some(100_000));
    assert_eq!(tcp.since_received_us, None, "0 jiffies: never");

    for not_the_task in [0, 2] {
        record.in_task = not_the_task;
        let Body::Socket(event) = decode(record.as_bytes(), &names()).unwrap().body else { panic!() };
        assert_eq!(event.by, None);
    }
}

#[test]
fn what_was_not_read_is_not_claimed() {
    let socket = abi::Socket { present: 0, error: 5, netns: 6, accept_queue: 7, ..full_socket() };
    let record = abi::SocketEvent {
        header: header(Kind::ErrorReport),
        socket,
        jiffies: 1,
        value: 0,
        has_packet: 0,
        packet: abi::Packet::default(),
    };
    let Body::Socket(event) = decode(record.as_bytes(), &names()).unwrap().body else { panic!() };
    assert_eq!(event.change, SocketChange::ErrorReported);
    let socket = &event.socket;
    assert_eq!((socket.local, socket.remote, socket.netns, socket.error), (None, None, None, None));
    assert!(socket.tcp.is_none() && socket.accept_queue.is_none());
}

#[test]
fn reset_without_a_socket_goes_back_the_way_the_packet_came() {
    let packet = abi::Packet {
        source: v4(1, 41_822),
        destination: v4(2, 8000),
        sequence: 10,
        flags: 2,
        protocol: 6,
        ttl: 64,
        ..abi::Packet::default()
    };
    let mut record = abi::SocketEvent {
        header: header(Kind::ResetSent),
        socket: abi::Socket::default(),
        jiffies: 1,
        value: 2,
        has_packet: 1,
        packet,
    };
    let reset = |record: &abi::SocketEvent| {
        let Body::Socket(event) = decode(record.as_bytes(), &names()).unwrap().body else { panic!() };
        let event = Arc::unwrap_or_clone(event);
        let SocketChange::ResetSent { reason, answered } = event.change else { panic!() };
        (reason, answered, event.socket)
    };
    let (reason, answered, socket) = reset(&record);
    assert_eq!(reason.as_deref(), Some("NO_SOCKET"));
    assert!(answered.unwrap().flags.syn());
    assert_eq!(socket.pointer, None);
    assert_eq!(socket.local, Some("127.0.0.2:8000".parse().unwrap()));
    assert_eq!(socket.remote, Some("127.0.0.1:41822".parse().unwrap()));

    record.value = abi::NO_REASON;
    assert_eq!(reset(&record).0, None);
    record.value = 99;
    assert_eq!(reset(&record).0.as_deref(), Some("99"), "a number without a name stays a number");
    record.socket = abi::Socket {
        present: abi::present::TUPLE,
        local: Endpoint { address: [0; 16], ..v4(2, 8000) },
        remote: Endpoint { address: [0; 16], ..v4(1, 0) },
        state: abi::state::LISTEN,
        ..abi::Socket::default()
    };
    let socket = reset(&record).2;
    assert_eq!(socket.state, TcpState::Listen);
    assert_eq!(socket.local, Some("127.0.0.2:8000".parse().unwrap()), "a listener on every address");
    assert_eq!(socket.remote, Some("127.0.0.1:41822".parse().unwrap()));

    (record.has_packet, record.socket) = (0, abi::Socket::default());
    assert!(reset(&record).2.local.is_none());
}

#[test]
fn a_syn_ack_is_of_the_connection_and_not_of_the_listener() {
    let packet = abi::Packet { source: v4(2, 8000), destination: v4(1, 41_822), protocol: 6, ..abi::Packet::default() };
    let listener = abi::Socket { state: abi::state::LISTEN, remote: Endpoint::default(), ..full_socket() };
    let record = abi::SocketEvent {
        header: header(Kind::SynAckRetransmit),
        socket: listener,
        jiffies: 1,
        value: 0,
        has_packet: 1,
        packet,
    };
    let Body::Socket(event) = decode(record.as_bytes(), &names()).unwrap().body else { panic!() };
    assert_eq!(event.change, SocketChange::SynAckRetransmitted);
    assert_eq!(event.socket.local, Some("127.0.0.2:8000".parse().unwrap()));
    assert_eq!(event.socket.remote, Some("127.0.0.1:41822".parse().unwrap()));
}

#[test]
fn drops_need_a_tcp_packet() {
    let packet = abi::Packet { source: v4(1, 1), destination: v4(2, 2), protocol: 6, ..abi::Packet::default() };
    let mut record = abi::Drop { header: header(Kind::Drop), reason: 3, netns: 0, location: 0, packet };
    let Body::Drop(drop) = decode(record.as_bytes(), &names()).unwrap().body else { panic!() };
    assert_eq!(drop.reason.as_deref(), Some("NO_SOCKET"));
    assert_eq!(drop.netns, None);
    record.packet.protocol = 17;
    assert_eq!(
        decode(record.as_bytes(), &names()),
        Err(RecordError::Unusable { kind: Kind::Drop, what: "TCP packet" })
    );
}

#[test]
fn system_calls() {
    let mut connect = syscall::Connect::new_zeroed();
    connect.header = header(Kind::Connect);
    connect.result = -2;
    connect.fd = 13;
    connect.address.family = endpoint::FAMILY_UNIX;
    connect.path[..9].copy_from_slice(b"/run/a.s\0");
    connect.path_length = 9;
    let call = |bytes: &[u8]| {
        let Body::Syscall(event) = decode(bytes, &names()).unwrap().body else { panic!() };
        assert_eq!((event.pid, event.tid), (Pid(812), Pid(813)));
        event.call.clone()
    };
    let unix = |path: &str| Some(Address::Unix(path.to_owned()));
    let connected = |address| Syscall::Connect { fd: 13, address, result: Err(Errno::ENOENT), socket: None };
    assert_eq!(call(connect.as_bytes()), connected(unix("/run/a.s")));
    connect.path[..4].copy_from_slice(b"\0abc");
    connect.path_length = 4;
    assert_eq!(call(connect.as_bytes()), connected(unix("@abc")));
    connect.path_length = 0;
    assert_eq!(call(connect.as_bytes()), connected(None));
    connect.path_length = u32::MAX;
    assert!(matches!(call(connect.as_bytes()), Syscall::Connect { address: Some(_), .. }));

    let mut made = syscall::SocketCall::new_zeroed();
    made.header = header(Kind::SocketCall);
    made.result = -24;
    made.family = 2;
    assert_eq!(call(made.as_bytes()), Syscall::Socket { family: 2, error: Errno::EMFILE });
    made.result = 3;
    assert!(decode(made.as_bytes(), &names()).is_err());

    let mut open = syscall::OpenCall::new_zeroed();
    open.header = header(Kind::OpenCall);
    open.result = -24;
    assert_eq!(call(open.as_bytes()), Syscall::Open { error: Errno::EMFILE });

    let mut accept = syscall::Accept::new_zeroed();
    accept.header = header(Kind::Accept);
    accept.result = -24;
    accept.command[..5].copy_from_slice(b"nginx");
    let accepted = Syscall::Accept {
        listener: 0,
        result: Err(Errno::EMFILE),
        socket: None,
        peer: None,
        command: "nginx".to_owned(),
    };
    assert_eq!(call(accept.as_bytes()), accepted);
}

#[test]
fn processes() {
    let process = |bytes: &[u8]| {
        let Body::Process(event) = decode(bytes, &names()).unwrap().body else { panic!() };
        event
    };
    let mut exit = abi_process::Exit::new_zeroed();
    exit.header = header(Kind::Exit);
    exit.role = abi_process::role::UPSTREAM;
    for (code, how) in [
        (0, Ending::Exit(0)),
        (3 << 8, Ending::Exit(3)),
        (9, Ending::Signal { signal: 9, core: false }),
        (0x8b, Ending::Signal { signal: 11, core: true }),
    ] {
        exit.code = code;
        let expected = ProcessEvent::Exited {
            pid: Pid(812),
            role: Role::Upstream,
            command: String::new(),
            how,
            untaken: Untaken::default(),
        };
        assert_eq!(process(exit.as_bytes()), expected);
    }
    exit.code = 3 << 8 | 1 << (16 + 15);
    let ProcessEvent::Exited { how, untaken, .. } = process(exit.as_bytes()) else { panic!() };
    assert_eq!((how, untaken.has(15), untaken.has(9)), (Ending::Exit(3), true, false));
    let mut signal = abi_process::Signal::new_zeroed();
    signal.header = header(Kind::Signal);
    signal.signal = 9;
    signal.target = 55;
    signal.command[..4].copy_from_slice(b"kill");
    let ProcessEvent::Signalled { target, sender, .. } = process(signal.as_bytes()) else { panic!() };
    assert_eq!((target, sender), (Pid(55), Some(Sender { pid: Pid(812), command: "kill".to_owned() })));
    signal.from_kernel = 1;
    assert!(matches!(process(signal.as_bytes()), ProcessEvent::Signalled { sender: None, .. }));
}

fn log_record() -> abi_nginx::Log {
    let mut log = abi_nginx::Log::new_zeroed();
    log.header = header(Kind::NginxLog);
    log.request = 0x1000;
    log.main_request = 0x1000;
    log.level = 4;
    log.upstream_fd = 13;
    log.client_fd = 12;
    log.format[..16].copy_from_slice(b"connect() failed");
    log
}

fn log(record: &abi_nginx::Log) -> crate::model::nginx::NginxLog {
    let Body::Nginx(NginxEvent::Log(log)) = decode(record.as_bytes(), &names()).unwrap().body else { panic!() };
    *log
}

#[test]
fn log_messages() {
    use abi_nginx::found;
    let mut record = log_record();
    let decoded = log(&record);
    assert_eq!(decoded.request, Some(RequestKey { worker: Pid(812), pointer: 0x1000 }));
    assert_eq!(decoded.parent, None, "the main request is no parent of itself");
    assert_eq!((decoded.number, decoded.errno, decoded.action), (None, None, None));
    assert_eq!((decoded.upstream, decoded.client, decoded.peer), (None, None, None));
    assert_eq!(decoded.format, "connect() failed");

    record.main_request = 0x2000;
    record.number = 41;
    record.errno = 111;
    record.client = v4(9, 9);
    record.client_socket = v4(1, 51_234);
    record.peer_length = 14;
    record.peer[..14].copy_from_slice(b"127.0.0.1:8000");
    record.request_line_length = 18;
    record.request_line[..18].copy_from_slice(b"GET /cart HTTP/1.1");
    record.host_length = 4;
    record.host[..4].copy_from_slice(b"shop");
    record.upstream_requests = 1;
    record.socket = full_socket();
    record.found = found::CLIENT | found::PEER | found::UPSTREAM_CONNECTION | found::SOCKET | found::REQUEST_LINE;
    let decoded = log(&record);
    assert_eq!((decoded.request_line.as_deref(), decoded.host.as_deref()), (Some("GET /cart HTTP/1.1"), Some("shop")));
    assert_eq!(decoded.parent, Some(RequestKey { worker: Pid(812), pointer: 0x2000 }));
    assert_eq!((decoded.number, decoded.errno), (Some(41), Some(Errno::ECONNREFUSED)));
    assert_eq!(decoded.client, Some("127.0.0.1:51234".parse().unwrap()), "the kernel's address wins");
    assert_eq!(decoded.peer.as_deref(), Some("127.0.0.1:8000"));
    let upstream = decoded.upstream.unwrap();
    assert_eq!((upstream.fd, upstream.requests, upstream.unix), (13, Some(1), false));
    assert!(upstream.socket.unwrap().remote.is_some());

    record.client_socket = Endpoint::UNKNOWN;
    assert_eq!(log(&record).client, Some("127.0.0.9:9".parse().unwrap()));
    record.found |= found::UNIX;
    assert!(log(&record).upstream.is_some_and(|upstream| upstream.unix && upstream.socket.is_none()));
}

#[test]
fn statuses_and_attempts() {
    use abi_nginx::found;
    let mut status = abi_nginx::Status::new_zeroed();
    status.header = header(Kind::NginxSendHeader);
    assert!(decode(status.as_bytes(), &names()).is_err(), "no request");
    status.request = 0x1000;
    status.status = 502;
    status.attempts = 40;
    status.found = found::ATTEMPTS | found::REQUEST_LINE;
    status.request_line_length = 9_000;
    status.request_line.fill(b'a');
    let Body::Nginx(NginxEvent::Status(decoded)) = decode(status.as_bytes(), &names()).unwrap().body else { panic!() };
    assert_eq!((decoded.status, decoded.overriding), (502, None));
    assert_eq!(decoded.attempts, Some(40), "also those that are not told");
    assert_eq!(decoded.request_line.unwrap().len(), abi_nginx::REQUEST_LINE);
    assert_eq!(decoded.host, None);
    status.status = 70_000;
    assert!(decode(status.as_bytes(), &names()).is_err());

    let mut attempt = abi_nginx::Attempt::new_zeroed();
    attempt.header = header(Kind::NginxAttempt);
    attempt.request = 0x1000;
    attempt.connect_time_ms = u64::MAX;
    attempt.response_time_ms = 3;
    let Body::Nginx(NginxEvent::Attempt(decoded)) = decode(attempt.as_bytes(), &names()).unwrap().body else {
        panic!()
    };
    assert_eq!((decoded.connect_ms, decoded.response_ms), (None, Some(3)));
    assert_eq!((decoded.status, decoded.peer), (None, None));
}

#[test]
fn short_and_foreign_records_are_errors() {
    assert!(matches!(decode(&[], &names()), Err(RecordError::TooShort { what: "a header", .. })));
    for kind in Kind::ALL {
        let short = header(*kind);
        assert!(matches!(decode(short.as_bytes(), &names()), Err(RecordError::TooShort { .. })), "{kind:?}");
    }
    let mut foreign = header(Kind::Fork);
    foreign.kind = 4_000;
    assert_eq!(decode(foreign.as_bytes(), &names()), Err(RecordError::UnknownKind(4_000)));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(index in 0..Kind::ALL.len(), mut bytes in proptest::collection::vec(any::<u8>(), 32..900)) {
        bytes[16..18].copy_from_slice(&(Kind::ALL[index] as u16).to_ne_bytes());
        if let Ok(decoded) = decode(&bytes, &names()) {
            prop_assert_eq!(decoded.time.ns(), u64::from_ne_bytes(bytes[..8].try_into().unwrap()));
        }
    }
}
