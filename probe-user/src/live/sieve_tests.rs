//! What the sieve lets go, and what not.

use probe_abi::{
    Endpoint,
    socket::{Socket, present, state},
};
use zerocopy::IntoBytes;

use super::{fates::endpoint, *};

const NGINX: u64 = 0x1000;
const SERVER: u64 = 0x2000;

fn ends() -> (Endpoint, Endpoint) {
    (endpoint("10.0.0.1:40000".parse().expect("an address")), endpoint("10.0.0.2:80".parse().expect("an address")))
}

fn socket(pointer: u64, old_state: u8, state: u8) -> Socket {
    let (nginx, server) = ends();
    let (local, remote) = if pointer == NGINX { (nginx, server) } else { (server, nginx) };
    let present = present::TCP | present::ERROR | present::TUPLE;
    Socket { pointer, old_state, state, local, remote, present, bytes_received: 9, bytes_sent: 9, ..Socket::default() }
}

fn change(time_ns: u64, socket: Socket) -> Vec<u8> {
    let header = Header { time_ns, kind: Kind::StateChange as u16, ..Header::default() };
    StateChange { header, socket, jiffies: 0, in_task: 0, reserved: 0 }.as_bytes().to_vec()
}

/// A whole life, a nanosecond a step.
fn life(from: u64) -> Vec<Vec<u8>> {
    let steps = [
        (NGINX, state::CLOSE, state::SYN_SENT),
        (NGINX, state::SYN_SENT, state::ESTABLISHED),
        (SERVER, state::SYN_RECV, state::ESTABLISHED),
        (SERVER, state::ESTABLISHED, state::FIN_WAIT1),
        (NGINX, state::ESTABLISHED, state::CLOSE_WAIT),
        (NGINX, state::CLOSE_WAIT, state::LAST_ACK),
        (SERVER, state::FIN_WAIT2, state::CLOSE),
        (NGINX, state::LAST_ACK, state::CLOSE),
    ];
    (from..).zip(steps).map(|(time, (pointer, old, new))| change(time, socket(pointer, old, new))).collect()
}

fn went_on(sieve: &mut Sieve, until: u64) -> usize {
    let mut count = 0;
    sieve.release(until, |_| count += 1);
    count
}

fn take(sieve: &mut Sieve, record: &[u8]) {
    sieve.records(record.to_vec(), &[record.len()]);
}

/// As the ring's reader delivers them: several together.
fn fed(records: &[Vec<u8>]) -> Sieve {
    let mut sieve = Sieve::default();
    for together in records.chunks(3) {
        sieve.records(together.concat(), &together.iter().map(Vec::len).collect::<Vec<_>>());
    }
    sieve
}

#[test]
fn a_whole_and_healthy_life_is_let_go() {
    let mut sieve = fed(&life(1));
    assert_eq!(went_on(&mut sieve, 100), 0);
    assert_eq!(sieve.let_go(), 8);
    assert_eq!(sieve.fates.count(), 0);
    assert!(sieve.held.is_empty() && sieve.records.is_empty() && sieve.bytes == 0);
}

#[test]
fn nothing_leaves_before_its_time() {
    let mut sieve = fed(&life(50));
    assert_eq!(went_on(&mut sieve, 49), 0);
    assert_eq!(sieve.held.len(), 8);
}

#[test]
fn a_connection_that_is_still_open_goes_on_with_all_that_comes_later() {
    let life = life(1);
    let mut sieve = fed(&life[..4]);
    assert_eq!(went_on(&mut sieve, 4), 4);
    for record in &life[4..] {
        take(&mut sieve, record);
    }
    assert_eq!(went_on(&mut sieve, 100), 4);
}

#[test]
fn a_word_of_nginx_keeps_all_of_it() {
    let (nginx, server) = ends();
    let mut log: Log = zerocopy::FromZeros::new_zeroed();
    log.header.kind = Kind::NginxLog as u16;
    log.header.time_ns = 5;
    log.socket = Socket { local: nginx, remote: server, ..Socket::default() };
    let mut sieve = fed(&life(1));
    take(&mut sieve, log.as_bytes());
    assert_eq!(went_on(&mut sieve, 100), 9);
}

#[test]
fn an_error_a_retransmission_unread_data_or_silence_keeps_all_of_it() {
    let spoil: [fn(&mut Socket); 6] = [
        |socket| socket.error = 104,
        |socket| socket.total_retransmits = 1,
        |socket| socket.rcv_nxt = 100,
        |socket| socket.bytes_received = 0,
        |socket| socket.bytes_sent = 0,
        |socket| socket.present = 0,
    ];
    for spoil in spoil {
        let mut records = life(1);
        let mut last = socket(NGINX, state::LAST_ACK, state::CLOSE);
        spoil(&mut last);
        records[7] = change(8, last);
        assert_eq!(went_on(&mut fed(&records), 100), 8);
    }
}

#[test]
fn a_side_that_has_not_closed_keeps_all_of_it() {
    let mut records = life(1);
    records.remove(6);
    assert_eq!(went_on(&mut fed(&records), 100), 7);
}

#[test]
fn the_same_addresses_twice_in_a_moment_are_thought_about() {
    let mut records = life(1);
    records.extend(life(20));
    assert_eq!(went_on(&mut fed(&records), 100), 16);
}

#[test]
fn a_failure_of_the_same_worker_keeps_its_connections() {
    let (nginx, server) = ends();
    let mut records = life(1);
    let mut connect: Connect = zerocopy::FromZeros::new_zeroed();
    connect.header = Header { time_ns: 1, kind: Kind::Connect as u16, tgid: 7, ..Header::default() };
    connect.result = IN_PROGRESS;
    connect.socket = Socket { local: nginx, remote: server, ..Socket::default() };
    records.insert(1, connect.as_bytes().to_vec());
    assert_eq!(went_on(&mut fed(&records), 100), 0);
    for (tgid, kept) in [(7, 10), (8, 1)] {
        let mut status: probe_abi::nginx::Status = zerocopy::FromZeros::new_zeroed();
        status.header = Header { time_ns: 6, kind: Kind::NginxSendHeader as u16, tgid, ..Header::default() };
        let mut sieve = fed(&records);
        take(&mut sieve, status.as_bytes());
        assert_eq!(went_on(&mut sieve, 100), kept);
    }
}

#[test]
fn what_nginx_said_before_it_connected_shares_the_fate() {
    let (nginx, server) = ends();
    let said = |fd| {
        let mut made: Connection = zerocopy::FromZeros::new_zeroed();
        made.header = Header { time_ns: 1, kind: Kind::NginxConnection as u16, tgid: 7, ..Header::default() };
        made.fd = fd;
        made.as_bytes().to_vec()
    };
    let mut connect: Connect = zerocopy::FromZeros::new_zeroed();
    connect.header = Header { time_ns: 1, kind: Kind::Connect as u16, tgid: 7, ..Header::default() };
    (connect.result, connect.fd) = (IN_PROGRESS, 9);
    let to_unix = connect.as_bytes().to_vec();
    connect.socket = Socket { local: nginx, remote: server, ..Socket::default() };
    let connect = connect.as_bytes().to_vec();
    let lived = |before: &[Vec<u8>]| [before, &life(1)[..1], std::slice::from_ref(&connect), &life(1)[1..]].concat();
    assert_eq!(went_on(&mut fed(&lived(&[said(9)])), 100), 0);
    // Another descriptor's, and one's over a unix socket.
    assert_eq!(went_on(&mut fed(&lived(&[said(8)])), 100), 1);
    assert_eq!(went_on(&mut fed(&lived(&[said(9), to_unix])), 100), 2);
    // What has gone on stays gone on.
    let mut sieve = fed(&[said(9)]);
    assert_eq!(went_on(&mut sieve, 2), 1);
    for record in &lived(&[]) {
        take(&mut sieve, record);
    }
    assert_eq!(went_on(&mut sieve, 100), 0);
    assert_eq!(sieve.fates.count(), 0);
    // A failure keeps it with the connection.
    let mut records = lived(&[said(9)]);
    records.pop();
    let count = records.len();
    assert_eq!(went_on(&mut fed(&records), 100), count);
}

#[test]
fn who_serves_is_told_once_a_second() {
    let (nginx, server) = ends();
    let mut told = Vec::new();
    let mut sieve = Sieve::default();
    for start in [2_000_000_000, 2_000_000_100, 3_000_000_050] {
        let mut accept: Accept = zerocopy::FromZeros::new_zeroed();
        accept.header = Header { time_ns: start + 2, kind: Kind::Accept as u16, tgid: 9, ..Header::default() };
        accept.result = 5;
        accept.socket = Socket { local: server, remote: nginx, ..Socket::default() };
        for record in &life(start) {
            take(&mut sieve, record);
        }
        take(&mut sieve, accept.as_bytes());
        told.push(went_on(&mut sieve, start + 50));
    }
    assert_eq!(told, [9, 0, 9]);
}

#[test]
fn an_open_sieve_lets_nothing_go() {
    let mut sieve = Sieve::default();
    sieve.set_open(true);
    for record in &life(1) {
        take(&mut sieve, record);
    }
    assert_eq!(went_on(&mut sieve, 100), 8);
}

#[test]
fn what_is_no_record_goes_on() {
    let mut sieve = fed(&[vec![1, 2, 3]]);
    assert_eq!(went_on(&mut sieve, 0), 1);
}

/// The server's end of a connection to a translated address.
fn life_behind(translated: &str, real: &str) -> Vec<Vec<u8>> {
    let (nginx, _) = ends();
    let at = |text: &str| endpoint(text.parse().expect("an address"));
    let steps = [
        (NGINX, state::SYN_SENT, state::ESTABLISHED),
        (SERVER, state::SYN_RECV, state::ESTABLISHED),
        (SERVER, state::FIN_WAIT2, state::CLOSE),
        (NGINX, state::LAST_ACK, state::CLOSE),
    ];
    let one = |pointer, old, new| {
        let (local, remote) = if pointer == NGINX { (nginx, at(translated)) } else { (at(real), nginx) };
        Socket { local, remote, ..socket(pointer, old, new) }
    };
    (1..).zip(steps).map(|(time, (pointer, old, new))| change(time, one(pointer, old, new))).collect()
}

#[test]
fn both_ends_of_a_translated_connection_go_together() {
    let (service, other, server) = ("10.96.0.10:80", "10.96.0.11:80", "10.244.0.5:8080");
    let address = |text: &str| text.parse().expect("an address");
    let run = |services: &[&str]| {
        let mut sieve = Sieve::default();
        for service in services {
            sieve.learn_translation(address(service), address(server));
        }
        for record in life_behind(service, server) {
            take(&mut sieve, &record);
        }
        went_on(&mut sieve, 100)
    };
    assert_eq!(run(&[service]), 0);
    // The server's end cannot be told to belong to it.
    assert_eq!(run(&[]), 2);
    assert_eq!(run(&[service, other]), 2);
}

/// nginx connects, on loopback or over the wire.
fn connects(life: &[Vec<u8>], place: usize, result: i32) -> Vec<Vec<u8>> {
    let (nginx, server) = ends();
    let mut connect: Connect = zerocopy::FromZeros::new_zeroed();
    connect.header = Header { time_ns: 2, kind: Kind::Connect as u16, tgid: 7, ..Header::default() };
    connect.result = result;
    connect.socket = Socket { local: nginx, remote: server, ..Socket::default() };
    let (before, after) = life.split_at(place);
    [before, &[connect.as_bytes().to_vec()], after].concat()
}

#[test]
fn where_an_upstream_leads_is_asked_of_its_first_connection_that_comes_about() {
    let (local, upstream) = ("10.0.0.1:40000".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
    let asked = vec![Question::Translation { local, upstream, netns: None }];
    // The answer may come before connect() returns.
    for place in [1, 2] {
        let mut sieve = fed(&connects(&life(1), place, IN_PROGRESS));
        assert_eq!(sieve.take_questions(), asked);
        assert_eq!(went_on(&mut sieve, 100), 0, "who is healthy goes all the same");
        for record in connects(&life(200), place, IN_PROGRESS) {
            take(&mut sieve, &record);
        }
        assert_eq!(sieve.take_questions(), []);
    }
    // A connection of somebody else's, and one that was refused: the kernel's table has forgotten it.
    assert_eq!(fed(&life(1)).take_questions(), []);
    assert_eq!(fed(&connects(&[], 0, -111)).take_questions(), []);
}
