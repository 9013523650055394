//! What only the access log tells.

use super::*;
use crate::{
    diagnose::judge,
    model::{
        attempt::Joined,
        verdict::{Confidence, Verdict},
    },
    report::cause,
};

const UPSTREAM: &str = "127.0.0.1:8000";

fn access(status: u16, upstream: Option<(&str, &str)>) -> AccessLine {
    AccessLine {
        client: Some("10.0.0.7".into()),
        request: Some("GET /cart HTTP/1.1".into()),
        status: Some(status),
        number: None,
        client_requests: None,
        pid: upstream.is_some().then_some(WORKER.0),
        upstream_status: upstream.map(|(status, _)| status.into()),
        upstream_address: upstream.map(|(_, address)| address.into()),
        cache_status: None,
    }
}

fn said(world: &mut World, status: u16, upstream: Option<(&str, &str)>) {
    world.tell(Source::AccessLog, Body::AccessLine(access(status, upstream)));
}

fn packet(world: &mut World, from: &str, to: &str, content: Content) {
    let header = TcpHeader {
        source: address(from),
        destination: address(to),
        sequence: 1,
        acknowledgement: 1,
        flags: TcpFlags(24),
        ttl: 64,
    };
    let tcp = TcpPacket { header, payload_length: 300, window: 1, ip_id: Some(1), content, promised: None };
    let body = PacketEvent { reference: PacketRef(1), netns: Some(7), body: PacketBody::Tcp(tcp) };
    world.tell(Source::Packet, Body::Packet(body));
}

/// The upstream answers on the wire.
fn answers(world: &mut World, upstream: &str, local: &str, code: u16) {
    packet(world, upstream, local, Content::HttpStatus { code, line: format!("HTTP/1.1 {code} X").into() });
}

fn refused_line(number: u64) -> Body {
    Body::from(ErrorLine {
        level: "error".into(),
        pid: WORKER.0,
        number: Some(number),
        message: "connect() failed".into(),
        errno: Some(Errno::ECONNREFUSED),
        action: Some(CONNECTING.into()),
        client: Some("10.0.0.7".into()),
        server: Some("lab".into()),
        request: Some("GET /cart HTTP/1.1".into()),
        subrequest: None,
        upstream: Some("http://127.0.0.1:8000/cart".into()),
        host: Some("shop.example".into()),
    })
}

fn only(world: &mut World) -> Case {
    let cases = world.cases();
    let [case] = cases.as_slice() else { panic!("{cases:#?}") };
    assert_eq!((case.kind, case.status, case.link), (CaseKind::Incident, Some(502), Link::Inferred));
    assert_eq!(case.request.uri.as_deref(), Some("/cart"));
    case.clone()
}

fn verdict(case: &Case) -> (&'static str, Option<Confidence>) {
    let verdict = judge(case);
    let confidence = match &verdict {
        Verdict::Explained(explanation) => Some(explanation.confidence),
        Verdict::Contested(_) | Verdict::Unexplained { .. } => None,
    };
    (cause(&verdict), confidence)
}

fn world() -> World {
    let mut world = World::without_uprobes();
    world.upstream(UPSTREAM);
    world
}

#[test]
fn a_502_that_was_passed_on_is_tied_by_the_status_line() {
    let mut world = world();
    answers(&mut world, UPSTREAM, "127.0.0.1:40000", 502);
    answers(&mut world, "10.0.0.1:80", "10.0.0.7:51234", 502);
    said(&mut world, 502, Some(("502", UPSTREAM)));
    let case = only(&mut world);
    assert_eq!(case.worker, Some(WORKER));
    assert_eq!(case.request.client, Some(address("10.0.0.7:51234")));
    assert_eq!(case.attempts[0].outcome, Outcome::Ok);
    assert_eq!(case.attempts[0].flow.one().unwrap().local, Some(address("127.0.0.1:40000")));
    assert!(case.attempts_complete);
    assert_eq!(verdict(&case), ("upstream-sent-502", Some(Confidence::Likely)));
}

#[test]
fn without_the_wire_it_is_only_possible() {
    let mut world = world();
    said(&mut world, 502, Some(("502", UPSTREAM)));
    let case = only(&mut world);
    assert_eq!(case.attempts[0].outcome, Outcome::Unknown);
    assert_eq!(verdict(&case), ("upstream-sent-502", Some(Confidence::Possible)));
}

#[test]
fn without_the_error_log_nothing_is_claimed() {
    let mut world = world();
    let off = Coverage::Sensor { sensor: Sensor::ErrorLog, sight: Sight::Off, why: None };
    world.tell(Source::Probe, Body::Coverage(off));
    said(&mut world, 502, Some(("502", UPSTREAM)));
    assert_eq!(verdict(&only(&mut world)), ("unknown", None));
}

#[test]
fn several_connections_that_fit_are_all_kept() {
    let mut world = world();
    for local in ["127.0.0.1:40000", "127.0.0.1:40001"] {
        answers(&mut world, UPSTREAM, local, 502);
    }
    said(&mut world, 502, Some(("502", UPSTREAM)));
    let case = only(&mut world);
    assert!(matches!(&case.attempts[0].flow, Joined::Several(several) if several.len() == 2));
    assert_eq!(case.attempts[0].started, None);
    assert_eq!(verdict(&case), ("upstream-sent-502", Some(Confidence::Likely)));
}

#[test]
fn a_format_without_upstreams_is_judged_by_what_was_seen() {
    let mut seen = world();
    answers(&mut seen, UPSTREAM, "127.0.0.1:40000", 502);
    said(&mut seen, 502, None);
    let case = only(&mut seen);
    assert!(!case.attempts_complete);
    let Verdict::Explained(explanation) = judge(&case) else { panic!() };
    assert_eq!((explanation.cause, explanation.confidence), ("upstream-sent-502", Confidence::Likely));
    assert_eq!(explanation.rivals, ["configured-502", "cached-502"]);

    let mut nothing = world();
    answers(&mut nothing, UPSTREAM, "127.0.0.1:40000", 200);
    said(&mut nothing, 502, None);
    let case = only(&mut nothing);
    assert_eq!((case.attempts.len(), case.worker), (0, None));
    let Verdict::Unexplained { summary, .. } = judge(&case) else { panic!() };
    assert!(summary.contains("not seen whether an upstream was tried"), "{summary}");
}

#[test]
fn two_upstreams_that_answered_are_not_chosen_between() {
    let mut world = world();
    world.correlator.add_upstream(address("127.0.0.1:8001"));
    answers(&mut world, UPSTREAM, "127.0.0.1:40000", 502);
    answers(&mut world, "127.0.0.1:8001", "127.0.0.1:40001", 502);
    said(&mut world, 502, None);
    let case = only(&mut world);
    assert_eq!(case.attempts[0].upstream, None);
    assert_eq!(verdict(&case), ("unknown", None));
}

#[test]
fn an_upstream_of_another_time_is_none() {
    let mut world = world();
    answers(&mut world, UPSTREAM, "127.0.0.1:40000", 502);
    world.wait(3_000 * MS);
    said(&mut world, 502, None);
    assert!(only(&mut world).attempts.is_empty());
}

#[test]
fn nothing_tried_is_the_configuration_where_it_says_so() {
    let mut world = World::without_uprobes();
    let text = "http { server { location / { return 502; } } }";
    world.instance(crate::decode::config::decode(text).unwrap().configuration);
    said(&mut world, 502, Some(("", "")));
    let case = only(&mut world);
    assert!(case.attempts.is_empty() && case.attempts_complete);
    assert_eq!(verdict(&case), ("configured-502", Some(Confidence::Likely)));
}

#[test]
fn nothing_tried_under_a_cache_may_be_the_cache() {
    let mut world = World::without_uprobes();
    let text = "http { server { location / { proxy_pass http://127.0.0.1:8000; proxy_cache pages; proxy_cache_valid any 1m; } } }";
    world.instance(crate::decode::config::decode(text).unwrap().configuration);
    said(&mut world, 502, Some(("502", UPSTREAM)));
    let first = only(&mut world);
    said(&mut world, 502, Some(("", "")));
    let second = only(&mut world);
    assert_eq!(second.stored.as_ref().map(|stored| &stored.case), Some(&first.id));
    assert_eq!(verdict(&second), ("cached-502", Some(Confidence::Possible)));
}

/// An upstream's own 500, 503 and 504 are answers, and nothing tells them from nginx's.
#[test]
fn other_statuses_make_no_case() {
    let mut world = world();
    for status in [200, 404, 499, 500, 503, 504] {
        said(&mut world, status, Some((&status.to_string(), UPSTREAM)));
        said(&mut world, status, None);
    }
    assert_eq!(world.cases(), []);
}

#[test]
fn a_502_that_is_not_asked_about_makes_no_case() {
    let mut world = world();
    world.correlator.settings.statuses = vec![504];
    said(&mut world, 502, Some(("502", UPSTREAM)));
    assert_eq!(world.cases(), []);
}

#[test]
fn with_its_error_line_it_is_one_case() {
    let mut world = world();
    world.tell(Source::ErrorLog, refused_line(41));
    said(&mut world, 502, Some(("502", UPSTREAM)));
    assert_eq!(world.cases().len(), 1);
}

/// The answer may come long after the line of the first attempt: the retry takes its time.
#[test]
fn an_access_line_that_comes_late_tells_nothing_twice() {
    let mut world = world();
    world.tell(Source::ErrorLog, refused_line(41));
    assert_eq!(world.cases().len(), 1);
    said(&mut world, 502, Some(("502, 502", "127.0.0.1:8000, 127.0.0.1:8001")));
    assert_eq!(world.cases(), []);
    said(&mut world, 502, Some(("502", UPSTREAM)));
    assert_eq!(world.cases().len(), 1, "another request");
}

#[test]
fn two_that_fit_one_error_line_are_not_told_as_a_third() {
    let mut world = world();
    world.tell(Source::ErrorLog, refused_line(41));
    said(&mut world, 502, None);
    said(&mut world, 200, None);
    assert_eq!(world.cases().len(), 1);
}

#[test]
fn two_logs_of_one_request_are_one_case() {
    let mut world = World::without_uprobes();
    world.upstream(UPSTREAM);
    for line in [access(502, Some(("502", UPSTREAM))), access(502, None)] {
        world.events += 1;
        let at = At::between(Moment(world.now), Moment(world.now + MS));
        let event = Event { id: EventId(world.events), at, source: Source::AccessLog, body: Body::AccessLine(line) };
        world.correlator.handle(&event);
    }
    assert_eq!(world.cases().len(), 1);
}

/// Where one nginx is heard from inside, only what certainly is another's is told by the access log.
#[test]
fn a_worker_heard_from_inside_is_not_told_by_its_access_log() {
    let mut world = World::new();
    let mute = Coverage::Sensor { sensor: Sensor::NginxFunctions, sight: Sight::Degraded, why: None };
    world.tell(Source::Probe, Body::Coverage(mute));
    world.upstream(UPSTREAM);
    world.answer(1, 41, 502, &[(UPSTREAM, 502, Some(1))]);
    said(&mut world, 502, Some(("502", UPSTREAM)));
    said(&mut world, 502, None);
    let cases = world.cases();
    assert_eq!(cases.len(), 1, "{cases:#?}");
    assert_eq!(cases[0].link, Link::Exact);
}
