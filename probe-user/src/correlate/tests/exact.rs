//! With nginx's own word.

use super::*;

#[test]
fn a_refused_connection_is_one_incident_with_its_flow() {
    let mut world = World::new();
    world.upstream("127.0.0.1:8000");
    world.refuse();
    world.answer(1, 41, 502, &[("127.0.0.1:8000", 502, None)]);
    let cases = world.cases();
    let [case] = cases.as_slice() else { panic!("{cases:#?}") };
    assert_eq!(
        (case.kind, case.status, case.origin, case.link),
        (CaseKind::Incident, Some(502), Origin::Nginx, Link::Exact)
    );
    assert_eq!(case.request.method.as_deref(), Some("GET"));
    assert_eq!(case.request.uri.as_deref(), Some("/cart?x=1"));
    assert_eq!(case.request.client, Some(address("10.0.0.7:51234")));
    assert_eq!(case.request.connection, Some(41));
    assert_eq!(case.nginx_version.as_deref(), Some("1.22.1"));
    let [attempt] = case.attempts.as_slice() else { panic!("{:#?}", case.attempts) };
    assert_eq!(
        (attempt.outcome, attempt.errno, attempt.reused),
        (Outcome::Refused, Some(Errno::ECONNREFUSED), Some(false))
    );
    let flow = attempt.flow.one().expect("its flow");
    assert_eq!(flow.local, Some(address("127.0.0.1:40000")));
    assert_eq!(flow.events.len(), 3);
    assert_eq!(flow.resets_received().count(), 1);
    assert_eq!(flow.resets_sent_by_upstream().filter_map(|(.., reason)| reason).collect::<Vec<_>>(), ["NO_SOCKET"]);
}

#[test]
fn the_host_is_asked_who_listens_there() {
    let mut world = World::new();
    world.upstream("127.0.0.1:8000");
    let closed = world.refused("127.0.0.1:40000", "127.0.0.1:8000", 1);
    for _ in 0..3 {
        world.log(
            (1, 41),
            ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING),
            "127.0.0.1:8000",
            Some(connection(1, closed.clone())),
        );
    }
    let asked: Vec<_> = std::iter::from_fn(|| world.correlator.poll_question()).collect();
    let (local, upstream, netns) = (address("127.0.0.1:40000"), address("127.0.0.1:8000"), Some(7));
    let expected = [Question::Listeners { upstream, netns }, Question::Translation { local, upstream, netns }];
    assert_eq!(asked, expected, "each asked once");
}

#[test]
fn a_reused_tuple_is_another_flow() {
    let mut world = World::new();
    world.upstream("127.0.0.1:8000");
    for (request, syn) in [(1, 11), (2, 22)] {
        let closed = world.refused("127.0.0.1:40000", "127.0.0.1:8000", syn);
        world.log(
            (request, request),
            ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING),
            "127.0.0.1:8000",
            Some(connection(1, closed)),
        );
        world.answer(request, request, 502, &[("127.0.0.1:8000", 502, None)]);
        let cases = world.cases();
        assert_eq!(cases.len(), 1);
        assert_eq!(
            cases[0].attempts[0].flow.one().expect("its flow").events.len(),
            3,
            "events of its own incarnation only"
        );
    }
}

/// Two workers decide at the same moment on two processors: the records of one stand between those of the other.
#[test]
fn each_worker_tells_its_own_attempts() {
    let mut world = World::new();
    let mine = |worker| RequestKey { worker: Pid(worker), pointer: 1 };
    let said = [(mine(812), 41, "127.0.0.1:8000"), (mine(813), 42, "127.0.0.1:8001")];
    for (request, number, _) in said {
        world.say_status(StatusPoint::SendHeader, request, number, 502, 1);
    }
    for (request, _, peer) in said {
        world.say_attempt(request, (0, 1), (peer, 502, Some(1)));
    }
    let cases = world.cases();
    let told: Vec<_> = cases.iter().map(|case| (case.origin, case.attempts[0].upstream.clone())).collect();
    let upstream = |text| Some(Address::Ip(address(text)));
    assert_eq!(told, [(Origin::Upstream, upstream("127.0.0.1:8000")), (Origin::Upstream, upstream("127.0.0.1:8001"))]);
}

/// The hook of the response header sees with gaps: what it does see is not another request.
#[test]
fn a_header_after_the_special_response_that_decided_is_the_same_answer() {
    let mut world = World::new();
    let coverage = Coverage::Sensor { sensor: Sensor::NginxStatuses, sight: Sight::Degraded, why: None };
    world.tell(Source::Probe, Body::Coverage(coverage));
    world.log((1, 41), ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING), "127.0.0.1:8000", None);
    world.answer(1, 41, 502, &[("127.0.0.1:8000", 502, None)]);
    let cases = world.cases();
    let [case] = cases.as_slice() else { panic!("{cases:#?}") };
    assert_eq!(case.attempts.iter().map(|a| a.outcome).collect::<Vec<_>>(), [Outcome::Refused]);
}

/// Packets are stamped by another clock: the SYN can seem to come after the reset that answered it.
#[test]
fn a_syn_stamped_late_belongs_to_the_connection_it_began() {
    let mut world = World::new();
    world.upstream("127.0.0.1:8000");
    let (local, upstream) = ("127.0.0.1:40000", "127.0.0.1:8000");
    let closed = world.refused(local, upstream, 7);
    let header = TcpHeader {
        source: address(local),
        destination: address(upstream),
        sequence: 7,
        acknowledgement: 0,
        flags: TcpFlags(2),
        ttl: 64,
    };
    let tcp =
        TcpPacket { header, payload_length: 0, window: 502, ip_id: None, content: Content::Empty, promised: None };
    let packet = PacketEvent { reference: PacketRef(1), netns: Some(7), body: PacketBody::Tcp(tcp) };
    world.tell(Source::Packet, Body::Packet(packet));
    let said = ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING);
    world.log((1, 41), said, upstream, Some(connection(1, closed)));
    world.answer(1, 41, 502, &[(upstream, 502, None)]);
    let cases = world.cases();
    let [case] = cases.as_slice() else { panic!("{cases:#?}") };
    let flow = case.attempts[0].flow.one().expect("its flow");
    assert_eq!(flow.events.len(), 4, "{:#?}", flow.events);
}

/// The port comes back while the case of the first connection still waits for late evidence.
#[test]
fn a_tuple_reused_while_the_case_waits_is_another_flow() {
    let mut world = World::new();
    world.upstream("127.0.0.1:8000");
    let tuple = ("127.0.0.1:40000", "127.0.0.1:8000");
    world.state(socket(tuple.0, tuple.1, TcpState::Established), TcpState::SynSent);
    let closed = Socket { error: Some(Errno::ECONNRESET), ..socket(tuple.0, tuple.1, TcpState::Closed) };
    world.reset_received(socket(tuple.0, tuple.1, TcpState::Established));
    world.state(closed.clone(), TcpState::Established);
    let said = ("recv() failed", Some(Errno::ECONNRESET), "reading response header from upstream");
    world.log((1, 41), said, tuple.1, Some(connection(1, closed)));
    world.answer(1, 41, 502, &[(tuple.1, 502, None)]);
    world.wait(100 * MS);
    world.refused(tuple.0, tuple.1, 7);
    let cases = world.cases();
    let [case] = cases.as_slice() else { panic!("{cases:#?}") };
    let flow = case.attempts[0].flow.one().expect("its flow");
    assert_eq!(flow.events.len(), 3, "events of its own incarnation only");
    assert_eq!(flow.resets_sent_by_upstream().count(), 0);
}

/// The ring was full: of three attempts only the first is told. Neither it nor the one nginx complained of last is the last one.
#[test]
fn an_attempt_whose_record_was_lost_keeps_its_place() {
    let mut world = World::new();
    world.log((1, 41), ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING), "127.0.0.1:8000", None);
    world.log((1, 41), ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING), "127.0.0.1:8001", None);
    let told = |attempts| NginxStatus {
        point: StatusPoint::SendHeader,
        worker: WORKER,
        request: key(1),
        parent: None,
        number: Some(41),
        client_requests: Some(1),
        status: 502,
        overriding: None,
        upstream_begun: None,
        request_line: None,
        host: None,
        client: None,
        attempts,
    };
    world.tell(Source::Kernel, Body::Nginx(NginxEvent::Status(Box::new(told(Some(3))))));
    let first = NginxAttempt {
        request: key(1),
        index: 0,
        total: 3,
        peer: Some("127.0.0.1:8000".into()),
        status: Some(502),
        connect_ms: None,
        header_ms: None,
        response_ms: Some(0),
        bytes_sent: 0,
        bytes_received: 0,
    };
    world.tell(Source::Kernel, Body::Nginx(NginxEvent::Attempt(first)));
    let cases = world.cases();
    let [case] = cases.as_slice() else { panic!("{cases:#?}") };
    let attempts: Vec<_> = case.attempts.iter().map(|a| (a.peer_name.as_deref(), a.outcome)).collect();
    assert_eq!(
        attempts,
        [
            (Some("127.0.0.1:8000"), Outcome::Refused),
            (Some("127.0.0.1:8001"), Outcome::Refused),
            (None, Outcome::Unknown)
        ]
    );
}

#[test]
fn the_empty_entry_between_two_locations_is_no_attempt() {
    let mut world = World::new();
    world.upstream("127.0.0.1:8000");
    world.refuse();
    world.status(
        StatusPoint::SendHeader,
        1,
        41,
        200,
        &[("127.0.0.1:8000", 502, None), ("", 0, Some(0)), ("127.0.0.1:8001", 200, Some(3))],
    );
    let cases = world.cases();
    let [case] = cases.as_slice() else { panic!("{cases:#?}") };
    assert_eq!(case.attempts.iter().map(|a| a.outcome).collect::<Vec<_>>(), [Outcome::Refused, Outcome::Ok]);
}

#[test]
fn a_retry_that_hid_a_failure_is_a_near_miss() {
    let mut world = World::new();
    world.upstream("127.0.0.1:8000");
    world.refuse();
    world.status(
        StatusPoint::SendHeader,
        1,
        41,
        200,
        &[("127.0.0.1:8000", 502, None), ("127.0.0.1:8001", 200, Some(3))],
    );
    let cases = world.cases();
    let [case] = cases.as_slice() else { panic!("{cases:#?}") };
    assert_eq!((case.kind, case.status), (CaseKind::NearMiss, Some(200)));
    assert_eq!(case.attempts.iter().map(|a| a.outcome).collect::<Vec<_>>(), [Outcome::Refused, Outcome::Ok]);
}

#[test]
fn answers_of_the_application_are_not_gateway_failures() {
    for status in [404, 500, 503, 504] {
        let mut world = World::new();
        world.status(StatusPoint::SendHeader, 1, 41, status, &[("127.0.0.1:8000", status, Some(3))]);
        assert_eq!(world.cases(), [], "{status}");
    }
    // `return 503`, limit_req: nginx made it, and no upstream had to do with it.
    let mut world = World::new();
    world.answer(1, 41, 503, &[]);
    assert_eq!(world.cases(), []);
}

#[test]
fn the_applications_own_502_is_passed_on() {
    let mut world = World::new();
    world.status(StatusPoint::SendHeader, 1, 41, 502, &[("127.0.0.1:8000", 502, Some(3))]);
    let cases = world.cases();
    assert_eq!(cases.len(), 1);
    assert_eq!((cases[0].kind, cases[0].origin), (CaseKind::Incident, Origin::Upstream));
}

#[test]
fn a_failed_attempt_before_the_applications_own_error_is_a_near_miss() {
    let mut world = World::new();
    world.log((1, 41), ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING), "127.0.0.1:8000", None);
    world.status(
        StatusPoint::SendHeader,
        1,
        41,
        503,
        &[("127.0.0.1:8000", 502, None), ("127.0.0.1:8001", 503, Some(3))],
    );
    let cases = world.cases();
    assert_eq!(cases.len(), 1);
    assert_eq!((cases[0].kind, cases[0].origin), (CaseKind::NearMiss, Origin::Upstream));
}

#[test]
fn an_error_page_that_answers_200_is_a_near_miss() {
    let mut world = World::new();
    world.log((1, 41), ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING), "127.0.0.1:8000", None);
    world.status(StatusPoint::SpecialResponse, 1, 41, 502, &[("127.0.0.1:8000", 502, None)]);
    world.status(StatusPoint::Redirect, 1, 41, 502, &[("127.0.0.1:8000", 502, None)]);
    world.status(StatusPoint::SendHeader, 1, 41, 200, &[("127.0.0.1:8000", 502, None)]);
    let cases = world.cases();
    assert_eq!(cases.len(), 1);
    assert_eq!((cases[0].kind, cases[0].status), (CaseKind::NearMiss, Some(200)));
}

/// Depth light: a page is seen to take the error's place, the header is not seen.
#[test]
fn a_page_that_hides_an_error_hides_it_also_where_headers_are_not_seen() {
    let refused = |world: &mut World, upstream: &str| {
        world.log((1, 41), ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING), upstream, None);
    };
    let first = [("127.0.0.1:8000", 502, None)];
    for (page, status) in [(200, Some(200)), (0, None)] {
        let mut world = World::without_headers();
        refused(&mut world, "127.0.0.1:8000");
        world.status(StatusPoint::SpecialResponse, 1, 41, 502, &first);
        world.status(StatusPoint::Redirect, 1, 41, page, &first);
        let cases = world.cases();
        let [case] = cases.as_slice() else { panic!("{cases:#?}") };
        assert_eq!((case.kind, case.status, case.attempts.len()), (CaseKind::NearMiss, status, 1));
        // What nginx answers by its configuration, and nobody sees, is nobody's business.
        let mut world = World::without_headers();
        world.status(StatusPoint::SpecialResponse, 1, 41, 502, &[]);
        world.status(StatusPoint::Redirect, 1, 41, page, &[]);
        assert_eq!(world.cases().len(), 0);
    }
    let mut world = World::without_headers();
    refused(&mut world, "127.0.0.1:8000");
    world.status(StatusPoint::SpecialResponse, 1, 41, 502, &first);
    world.status(StatusPoint::Redirect, 1, 41, 0, &first);
    refused(&mut world, "127.0.0.1:8001");
    let both = [first[0], ("127.0.0.1:8001", 502, None)];
    world.status(StatusPoint::SpecialResponse, 1, 41, 502, &both);
    let cases = world.cases();
    let [case] = cases.as_slice() else { panic!("{cases:#?}") };
    assert_eq!((case.kind, case.status, case.attempts.len()), (CaseKind::Incident, Some(502), 2));
}

#[test]
fn a_blackout_knows_the_failures_that_made_it() {
    let mut world = World::new();
    let server = |name: &str| UpstreamServer {
        name: name.into(),
        addresses: vec![Address::parse(name).unwrap()],
        max_fails: 1,
        fail_timeout_ms: 10_000,
        max_conns: 0,
        down: false,
        backup: false,
    };
    let group = UpstreamGroup {
        name: "app".into(),
        servers: vec![server("127.0.0.1:8000"), server("127.0.0.1:8001")],
        ..UpstreamGroup::default()
    };
    let upstreams = group.servers.iter().flat_map(|s| s.addresses.clone()).collect();
    world.instance(Configuration { groups: vec![group], upstreams, ..Configuration::default() });
    for (port, peer) in [("40000", "127.0.0.1:8000"), ("40001", "127.0.0.1:8001")] {
        let closed = world.refused(&format!("127.0.0.1:{port}"), peer, 1);
        world.log(
            (1, 41),
            ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING),
            peer,
            Some(connection(1, closed)),
        );
    }
    world.answer(1, 41, 502, &[("127.0.0.1:8000", 502, None), ("127.0.0.1:8001", 502, None)]);
    let first = world.cases();
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].attempts.len(), 2);
    world.correlator.judged(&first[0].id, "127.0.0.1:8001", "upstream-refused");
    world.log((2, 43), ("no live upstreams", None, CONNECTING), "app", None);
    world.answer(2, 43, 502, &[("app", 502, None)]);
    let second = world.cases();
    assert_eq!(second.len(), 1);
    assert_eq!(second[0].attempts, [], "nothing was tried");
    let blamed: Vec<_> = second[0].earlier.iter().map(|f| (f.case.clone(), f.peer.as_str(), f.cause)).collect();
    let id = first[0].id.clone();
    assert_eq!(blamed, [(id.clone(), "127.0.0.1:8000", None), (id, "127.0.0.1:8001", Some("upstream-refused"))]);
}

#[test]
fn idle_time_is_read_from_the_socket() {
    let mut world = World::new();
    world.upstream("127.0.0.1:8000");
    let mut reset =
        Socket { error: Some(Errno::ECONNRESET), ..socket("127.0.0.1:40000", "127.0.0.1:8000", TcpState::Closed) };
    if let Some(tcp) = &mut reset.tcp {
        (tcp.since_sent_us, tcp.since_received_us, tcp.bytes_received) = (Some(0), Some(5_000_000), 900);
    }
    world.reset_received(reset.clone());
    world.log(
        (1, 41),
        ("recv() failed", Some(Errno::ECONNRESET), "reading response header from upstream"),
        "127.0.0.1:8000",
        Some(connection(15, reset)),
    );
    world.answer(1, 41, 502, &[("127.0.0.1:8000", 502, None)]);
    let cases = world.cases();
    let attempt = &cases[0].attempts[0];
    assert_eq!((attempt.reused, attempt.requests_before, attempt.idle_us), (Some(true), Some(14), Some(5_000_000)));
    assert_eq!(attempt.outcome, Outcome::Reset);
}

#[test]
fn foreign_traffic_changes_nothing() {
    let run = |foreign: bool| {
        let mut world = World::new();
        world.upstream("127.0.0.1:8000");
        if foreign {
            // Another program's refused connection to the same upstream, and one to somewhere else.
            world.refused("127.0.0.1:41111", "127.0.0.1:8000", 99);
            world.refused("127.0.0.1:41112", "127.0.0.1:9999", 98);
        } else {
            world.now += 60_000;
            world.events += 6;
        }
        world.refuse();
        world.answer(1, 41, 502, &[("127.0.0.1:8000", 502, None)]);
        world
            .cases()
            .into_iter()
            .map(|mut case| {
                for attempt in &mut case.attempts {
                    if let crate::model::attempt::Joined::One(flow) = &mut attempt.flow {
                        flow.id = crate::model::flow::FlowId(0);
                    }
                }
                case
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(run(true), run(false));
}

/// nginx is told not to log errors; its connection is known from `ngx_get_connection` and `connect()`.
fn silent(received: u64, sent_by_nginx: u64) -> Outcome {
    use crate::model::socket::{Syscall, SyscallEvent};
    let mut world = World::new();
    world.upstream("127.0.0.1:8000");
    let tuple = ("127.0.0.1:40000", "127.0.0.1:8000");
    let made = NginxEvent::Connection { worker: WORKER, number: 41, request: Some(key(1)), fd: 13 };
    world.tell(Source::Kernel, Body::Nginx(made));
    let open = socket(tuple.0, tuple.1, TcpState::Established);
    world.state(open.clone(), TcpState::SynSent);
    let call = Syscall::Connect { fd: 13, address: None, result: Err(Errno::EINPROGRESS), socket: Some(open) };
    world.tell(Source::Kernel, Body::from(SyscallEvent { pid: WORKER, tid: WORKER, call }));
    let mut closing = socket(tuple.0, tuple.1, TcpState::CloseWait);
    if let Some(tcp) = &mut closing.tcp {
        // The kernel counts the FIN's sequence number too.
        (tcp.bytes_sent, tcp.bytes_received) = (88, received + 1);
    }
    world.state(closing.clone(), TcpState::Established);
    world.state(Socket { state: TcpState::LastAck, ..closing }, TcpState::CloseWait);
    world.sent = sent_by_nginx;
    world.answer(1, 41, 502, &[("127.0.0.1:8000", 502, None)]);
    let cases = world.cases();
    assert_eq!(cases.len(), 1);
    assert!(cases[0].attempts[0].flow.one().is_some(), "the connection is known without a word of nginx");
    cases[0].attempts[0].outcome
}

#[test]
fn without_a_word_of_nginx_the_connection_tells_how_it_ended() {
    assert_eq!(silent(0, 88), Outcome::Closed);
}

#[test]
fn a_close_after_an_answer_may_be_innocent() {
    // nginx may have given up on what it read.
    assert_eq!(silent(120, 88), Outcome::Unknown);
    // More was sent than the request: a TLS handshake, which has ways of its own to fail.
    assert_eq!(silent(0, 0), Outcome::Unknown);
}

/// A worker's `connect()` to 10.9.9.9:8000 fails at once, and a millisecond later nginx complains of a request's attempt at `peer`.
fn failed_calls_of_an_attempt(format: &str, peer: &str) -> usize {
    use crate::model::socket::{Syscall, SyscallEvent};
    let mut world = World::new();
    world.upstream("127.0.0.1:8000");
    let address = Some(Address::Ip(address("10.9.9.9:8000")));
    let call = Syscall::Connect { fd: 13, address, result: Err(Errno::EHOSTUNREACH), socket: None };
    world.tell(Source::Kernel, Body::from(SyscallEvent { pid: WORKER, tid: WORKER, call }));
    world.wait(MS);
    world.log((1, 41), (format, Some(Errno::EHOSTUNREACH), CONNECTING), peer, None);
    world.answer(1, 41, 502, &[(peer, 502, None)]);
    let cases = world.cases();
    let [case] = cases.as_slice() else { panic!("{cases:#?}") };
    case.attempts[0].syscalls.len()
}

#[test]
fn a_failed_call_is_of_the_attempt_that_made_it() {
    assert_eq!(failed_calls_of_an_attempt("connect() to %V failed", "10.9.9.9:8000"), 1);
    // The worker's other request, which failed to connect to another place in the same millisecond.
    assert_eq!(failed_calls_of_an_attempt("connect() to %V failed", "127.0.0.1:8000"), 0);
    // connect() itself went well: an ICMP message said it afterwards.
    assert_eq!(failed_calls_of_an_attempt("connect() failed", "127.0.0.1:8000"), 0);
    assert_eq!(failed_calls_of_an_attempt("connect() failed", "10.9.9.9:8000"), 0);
}
