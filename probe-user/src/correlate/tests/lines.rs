//! From logs and packets alone.

use super::*;

fn error_line(number: u64, message: &str, errno: Option<Errno>, action: &str, upstream: &str) -> Body {
    Body::from(ErrorLine {
        level: "error".into(),
        pid: WORKER.0,
        number: Some(number),
        message: message.into(),
        errno,
        action: Some(action.into()),
        client: Some("10.0.0.7".into()),
        server: Some("lab".into()),
        request: Some("GET /cart HTTP/1.1".into()),
        subrequest: None,
        upstream: Some(upstream.into()),
        host: Some("shop.example".into()),
    })
}

fn access_line(status: u16) -> Body {
    Body::AccessLine(AccessLine {
        client: Some("10.0.0.7".into()),
        request: Some("GET /cart HTTP/1.1".into()),
        status: Some(status),
        number: None,
        client_requests: None,
        pid: None,
        upstream_status: None,
        upstream_address: None,
        cache_status: None,
    })
}

fn answer_packet(client: &str, code: u16) -> Body {
    let header = TcpHeader {
        source: address("10.0.0.1:80"),
        destination: address(client),
        sequence: 1,
        acknowledgement: 1,
        flags: TcpFlags(24),
        ttl: 64,
    };
    let content = Content::HttpStatus { code, line: format!("HTTP/1.1 {code} Bad Gateway").into() };
    let packet = TcpPacket { header, payload_length: 300, window: 1, ip_id: Some(1), content, promised: None };
    Body::Packet(PacketEvent { reference: PacketRef(1), netns: Some(7), body: PacketBody::Tcp(packet) })
}

#[test]
fn from_logs_and_packets_alone_the_link_is_inferred() {
    let mut world = World::without_uprobes();
    world.upstream("127.0.0.1:8000");
    world.refused("127.0.0.1:40000", "127.0.0.1:8000", 1);
    world.tell(
        Source::ErrorLog,
        error_line(41, "connect() failed", Some(Errno::ECONNREFUSED), CONNECTING, "http://127.0.0.1:8000/cart"),
    );
    world.tell(Source::Packet, answer_packet("10.0.0.7:51234", 502));
    world.tell(Source::AccessLog, access_line(502));
    let cases = world.cases();
    let [case] = cases.as_slice() else { panic!("{cases:#?}") };
    assert_eq!((case.kind, case.status, case.link), (CaseKind::Incident, Some(502), Link::Inferred));
    assert_eq!(case.request.client, Some(address("10.0.0.7:51234")));
    assert_eq!(case.attempts[0].flow.one().expect("its flow").local, Some(address("127.0.0.1:40000")));
}

#[test]
fn two_answers_that_fit_are_ambiguous_and_none_is_chosen() {
    let mut world = World::without_uprobes();
    world.upstream("127.0.0.1:8000");
    for (number, port) in [(41, 40000), (42, 40001)] {
        world.refused(&format!("127.0.0.1:{port}"), "127.0.0.1:8000", 1);
        world.tell(
            Source::ErrorLog,
            error_line(number, "connect() failed", Some(Errno::ECONNREFUSED), CONNECTING, "http://127.0.0.1:8000/cart"),
        );
    }
    world.tell(Source::Packet, answer_packet("10.0.0.7:51234", 502));
    world.tell(Source::Packet, answer_packet("10.0.0.7:51235", 502));
    world.tell(Source::AccessLog, access_line(502));
    world.tell(Source::AccessLog, access_line(502));
    let cases = world.cases();
    assert_eq!(cases.len(), 2);
    assert_eq!(cases[0].request.client, None);
    assert_eq!(cases[0].request.client_address.as_deref(), Some("10.0.0.7"));
}

/// One of two answers was not captured: the other can be of either request.
#[test]
fn one_answer_that_fits_two_requests_is_neithers() {
    let mut world = World::without_uprobes();
    world.upstream("127.0.0.1:8000");
    for number in [41, 42] {
        world.tell(
            Source::ErrorLog,
            error_line(number, "connect() failed", Some(Errno::ECONNREFUSED), CONNECTING, "http://127.0.0.1:8000/cart"),
        );
    }
    world.tell(Source::Packet, answer_packet("10.0.0.7:51235", 502));
    world.tell(Source::AccessLog, access_line(502));
    world.tell(Source::AccessLog, access_line(502));
    let cases = world.cases();
    assert_eq!(cases.len(), 2);
    assert!(cases.iter().all(|case| case.request.client.is_none() && case.status == Some(502)), "{cases:#?}");
}

#[test]
fn a_masked_failure_is_a_near_miss_from_the_logs_too() {
    let mut world = World::without_uprobes();
    world.tell(
        Source::ErrorLog,
        error_line(41, "connect() failed", Some(Errno::ECONNREFUSED), CONNECTING, "http://127.0.0.1:8000/cart"),
    );
    world.tell(Source::AccessLog, access_line(200));
    let cases = world.cases();
    assert_eq!(cases.len(), 1);
    assert_eq!((cases[0].kind, cases[0].status), (CaseKind::NearMiss, Some(200)));
}

/// The client was not answered, whatever is asked about.
#[test]
fn a_failure_with_another_status_is_no_near_miss() {
    let mut world = World::without_uprobes();
    world.correlator.settings.statuses = vec![500, 502, 503];
    let peer = "http://127.0.0.1:8000/cart";
    let action = "reading response header from upstream";
    world.tell(Source::ErrorLog, error_line(41, "upstream timed out", Some(Errno::ETIMEDOUT), action, peer));
    world.tell(Source::AccessLog, access_line(504));
    assert_eq!(world.cases(), []);
    // Here a retry was answered 503 by the server itself, or by a page.
    let mut world = World::without_uprobes();
    world.correlator.settings.statuses = vec![502];
    world.tell(Source::ErrorLog, error_line(41, "connect() failed", Some(Errno::ECONNREFUSED), CONNECTING, peer));
    world.tell(Source::AccessLog, access_line(503));
    assert_eq!(world.cases().len(), 1);
}

/// One nginx of the host can be heard from inside, another cannot: the first one's lines tell nothing new.
#[test]
fn a_worker_heard_from_inside_is_not_told_twice() {
    let mut world = World::new();
    let mute = Coverage::Sensor { sensor: Sensor::NginxFunctions, sight: Sight::Degraded, why: None };
    world.tell(Source::Probe, Body::Coverage(mute));
    world.upstream("127.0.0.1:8000");
    let said = ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING);
    // The second time as in a container, whose pids are numbers of its own.
    for (request, pid) in [(1, WORKER.0), (2, 7)] {
        let closed =
            world.refused(&format!("127.0.0.1:4000{request}"), "127.0.0.1:8000", u32::try_from(request).unwrap());
        world.log((request, 40 + request), said, "127.0.0.1:8000", Some(connection(1, closed)));
        let mut line = error_line(40 + request, said.0, said.1, CONNECTING, "http://127.0.0.1:8000/cart");
        let Body::ErrorLine(written) = &mut line else { panic!() };
        written.pid = pid;
        world.tell(Source::ErrorLog, line.clone());
        world.answer(request, 40 + request, 502, &[("127.0.0.1:8000", 502, None)]);
        if pid == 7 {
            // The same of an nginx that is not heard.
            world.tell(Source::ErrorLog, line);
        }
    }
    let cases = world.cases();
    let links: Vec<Link> = cases.iter().map(|case| case.link).collect();
    assert_eq!(links, [Link::Exact, Link::Exact, Link::Inferred], "{cases:#?}");
}
