//! Attempts that are told beside others: of subrequests, and of connections that come after.

use super::*;

const CLOSED: &str = "upstream prematurely closed connection";

/// `mirror`: the copy fails after the request itself; it is not what made the status, and no attempt is told twice.
#[test]
fn what_a_subrequest_tried_comes_before_what_made_the_status() {
    for mirror_first in [true, false] {
        let mut world = World::new();
        let mirrored = |world: &mut World| {
            let log = NginxLog { request: Some(key(9)), parent: Some(key(1)), ..refused_log() };
            world.tell(Source::Kernel, Body::Nginx(NginxEvent::Log(Box::new(log))));
        };
        if mirror_first {
            mirrored(&mut world);
        }
        world.log((1, 41), (CLOSED, None, "reading response header from upstream"), "127.0.0.1:8000", None);
        if !mirror_first {
            mirrored(&mut world);
        }
        world.answer(1, 41, 502, &[("127.0.0.1:8000", 502, None)]);
        let cases = world.cases();
        let [case] = cases.as_slice() else { panic!("{cases:#?}") };
        let outcomes: Vec<_> = case.attempts.iter().map(|attempt| attempt.outcome).collect();
        assert_eq!(outcomes, [Outcome::Refused, Outcome::Closed], "mirror first: {mirror_first}");
    }
}

fn auth_complains(world: &mut World) {
    let format = "auth request unexpected status: %ui".to_owned();
    let log = NginxLog { request: Some(key(1)), peer: None, errno: None, format, ..refused_log() };
    world.tell(Source::Kernel, Body::Nginx(NginxEvent::Log(Box::new(log))));
}

/// `auth_request`: its server answers 502 itself, and nginx makes 500 of it. Only nginx's word ties the two together.
#[test]
fn a_502_that_auth_request_got_is_the_clients_500() {
    for complained in [true, false] {
        let mut world = World::new();
        world.say_status_of(Some(key(1)), (StatusPoint::SendHeader, 502), key(9), 41, 1);
        world.say_attempt(key(9), (0, 1), ("127.0.0.1:8000", 502, Some(1)));
        if complained {
            auth_complains(&mut world);
        }
        world.answer(1, 41, 500, &[]);
        let cases = world.cases();
        assert_eq!(cases.len(), usize::from(complained), "{cases:#?}");
        for case in cases {
            assert_eq!((case.kind, case.origin, case.status), (CaseKind::Incident, Origin::Upstream, Some(500)));
            assert_eq!(case.attempts[0].status, Some(502));
        }
    }
}

/// Its 404 is its own, and the 500 that the client sees is nginx's. Where no server was asked it is nobody's upstream.
#[test]
fn another_status_that_auth_request_got_is_nginxs_500() {
    for asked in [true, false] {
        let mut world = World::new();
        if asked {
            world.say_status_of(Some(key(1)), (StatusPoint::SendHeader, 404), key(9), 41, 1);
            world.say_attempt(key(9), (0, 1), ("127.0.0.1:8000", 404, Some(1)));
        }
        auth_complains(&mut world);
        world.answer(1, 41, 500, &[]);
        let cases = world.cases();
        assert_eq!(cases.len(), usize::from(asked), "{cases:#?}");
        for case in cases {
            assert_eq!((case.kind, case.origin, case.status), (CaseKind::Incident, Origin::Nginx, Some(500)));
            let crate::model::verdict::Verdict::Unexplained { summary, .. } = crate::diagnose::judge(&case) else {
                panic!("a cause")
            };
            assert!(summary.contains("127.0.0.1:8000 answered 404"), "{summary}");
        }
    }
}

/// `proxy_pass $backend` with an empty variable.
#[test]
fn a_target_that_variables_made_and_is_none_is_told_in_nginxs_words() {
    let mut world = World::new();
    let format = "invalid URL prefix in \"%V\"".to_owned();
    let log = NginxLog { request: Some(key(1)), peer: None, errno: None, format, ..refused_log() };
    world.tell(Source::Kernel, Body::Nginx(NginxEvent::Log(Box::new(log))));
    world.answer(1, 41, 500, &[]);
    let cases = world.cases();
    let [case] = cases.as_slice() else { panic!("{cases:#?}") };
    assert_eq!((case.kind, case.status, case.attempts.len()), (CaseKind::Incident, Some(500), 0));
    let crate::model::verdict::Verdict::Unexplained { summary, .. } = crate::diagnose::judge(case) else {
        panic!("a cause")
    };
    assert!(summary.contains("invalid URL prefix"), "{summary}");
}

/// A mirror's 502 is not what the client got.
#[test]
fn a_502_of_another_subrequest_is_not_the_main_requests() {
    let mut world = World::new();
    world.say_status_of(Some(key(1)), (StatusPoint::SendHeader, 502), key(9), 41, 1);
    world.say_attempt(key(9), (0, 1), ("127.0.0.1:8000", 502, Some(1)));
    world.answer(1, 41, 502, &[]);
    let cases = world.cases();
    let [case] = cases.as_slice() else { panic!("{cases:#?}") };
    assert_eq!((case.origin, case.attempts.len()), (Origin::Nginx, 0));
}

fn refused_log() -> NginxLog {
    NginxLog {
        worker: WORKER,
        request: None,
        parent: None,
        number: Some(41),
        client_requests: Some(1),
        level: 4,
        errno: Some(Errno::ECONNREFUSED),
        format: "connect() failed".to_owned(),
        status: None,
        action: Some(CONNECTING.to_owned()),
        peer: Some("127.0.0.1:8001".to_owned()),
        upstream: None,
        client: Some(address("10.0.0.7:51234")),
        request_line: None,
        host: None,
    }
}

/// nginx passes an answer on before it has counted what it sent.
#[test]
fn what_nginx_has_not_counted_yet_is_not_zero() {
    let mut world = World::new();
    world.sent = 0;
    world.answer(1, 41, 502, &[("127.0.0.1:8000", 502, Some(1))]);
    let cases = world.cases();
    assert_eq!(cases[0].attempts[0].bytes_sent, None);
}
