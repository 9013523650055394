//! Failures with a status that nobody asked about (`--status`).

use super::*;

fn asked_about(statuses: &[u16]) -> World {
    let mut world = World::new();
    world.correlator.settings.statuses = statuses.to_vec();
    world
}

fn timed_out(world: &mut World) {
    let action = "reading response header from upstream";
    world.log((1, 41), ("upstream timed out", Some(Errno::ETIMEDOUT), action), "127.0.0.1:8000", None);
}

#[test]
fn nginxs_own_504_is_no_near_miss_where_only_502_is_asked_about() {
    let mut world = asked_about(&[502]);
    timed_out(&mut world);
    world.answer(1, 41, 504, &[("127.0.0.1:8000", 504, None)]);
    assert_eq!(world.cases(), []);
}

#[test]
fn one_that_hides_what_is_asked_about_is_a_near_miss() {
    // `error_page 502 =503 /sorry`
    let mut world = asked_about(&[502]);
    world.log((1, 41), ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING), "127.0.0.1:8000", None);
    world.status(StatusPoint::SpecialResponse, 1, 41, 502, &[("127.0.0.1:8000", 502, None)]);
    world.status(StatusPoint::Redirect, 1, 41, 502, &[("127.0.0.1:8000", 502, None)]);
    world.status(StatusPoint::SendHeader, 1, 41, 503, &[("127.0.0.1:8000", 502, None)]);
    let cases = world.cases();
    assert_eq!(
        cases.iter().map(|case| (case.kind, case.status)).collect::<Vec<_>>(),
        [(CaseKind::NearMiss, Some(503))]
    );
}

#[test]
fn a_retry_that_the_server_itself_answered_504_is_a_near_miss() {
    let mut world = asked_about(&[502]);
    world.log((1, 41), ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING), "127.0.0.1:8000", None);
    let attempts = [("127.0.0.1:8000", 502, None), ("127.0.0.1:8001", 504, Some(3))];
    world.status(StatusPoint::SendHeader, 1, 41, 504, &attempts);
    let cases = world.cases();
    assert_eq!(
        cases.iter().map(|case| (case.kind, case.origin)).collect::<Vec<_>>(),
        [(CaseKind::NearMiss, Origin::Upstream)]
    );
}
