//! Cases that wait for what is being looked up on a busy host.

use super::*;

const UPSTREAM: &str = "127.0.0.1:8000";

/// nginx is refused by this upstream, and answers 502.
fn refused(world: &mut World, number: u64, upstream: &str) {
    let closed = world.refused(&format!("127.0.0.1:{}", 40_000 + number), upstream, 1);
    let said = ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING);
    world.log((number, number), said, upstream, Some(connection(1, closed)));
    world.answer(number, number, 502, &[(upstream, 502, None)]);
}

fn looked_up(case: &Case) -> bool {
    case.host.iter().any(|(.., fact)| matches!(fact, HostFact::Listeners { .. }))
}

#[test]
fn a_late_answer_is_waited_for() {
    let mut world = World::new();
    world.upstream(UPSTREAM);
    refused(&mut world, 1, UPSTREAM);
    world.wait(300 * MS);
    assert_eq!(world.correlator.poll_case(), None);
    world.nobody_listens(UPSTREAM);
    world.wait(150 * MS);
    let case = world.correlator.poll_case().expect("a case");
    assert!(looked_up(&case), "{:#?}", case.host);
}

#[test]
fn but_not_for_ever() {
    let mut world = World::new();
    world.upstream(UPSTREAM);
    refused(&mut world, 1, UPSTREAM);
    world.wait(450 * MS);
    let case = world.correlator.poll_case().expect("a case");
    assert!(!looked_up(&case), "{:#?}", case.host);
}

/// What was waited for longer than every case waits is no gap when the run ends meanwhile.
#[test]
fn an_end_meanwhile_cuts_nothing_short() {
    let cut_short = |after_ms: u64| {
        let mut world = World::new();
        world.upstream(UPSTREAM);
        refused(&mut world, 1, UPSTREAM);
        world.wait(after_ms * MS);
        world.correlator.end();
        world.correlator.finish();
        world.correlator.poll_case().expect("a case").coverage.cut_short
    };
    assert!(cut_short(100) && !cut_short(250));
}

#[test]
fn nor_for_what_is_asked_for_elsewhere_or_later() {
    let mut world = World::new();
    world.upstream(UPSTREAM);
    refused(&mut world, 1, UPSTREAM);
    world.nobody_listens(UPSTREAM);
    let mut told = Vec::new();
    for number in 2..20 {
        world.wait(60 * MS);
        refused(&mut world, number, &format!("127.0.0.1:{}", 9_000 + number));
        told.extend(std::iter::from_fn(|| world.correlator.poll_case()).filter_map(|case| case.request.connection));
        if number == 6 {
            assert_eq!(told, [1], "it waited for the looks of others");
        }
    }
    assert!(told.len() > 8, "others were held up without end: {told:?}");
}

#[test]
fn where_nobody_looks_nobody_waits() {
    let mut world = World::new();
    world.upstream(UPSTREAM);
    let sensor = Coverage::Sensor { sensor: Sensor::Host, sight: Sight::Off, why: Some("a test".to_owned()) };
    world.tell(Source::Probe, Body::Coverage(sensor));
    refused(&mut world, 1, UPSTREAM);
    world.wait(250 * MS);
    assert!(world.correlator.poll_case().is_some());
}
