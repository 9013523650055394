//! With nginx's own list of attempts, where it is long.

use super::*;

/// Nine servers refuse, and the tenth answers 502 itself: nginx complains of nine. Of a list so long the middle is not told.
#[test]
fn the_last_of_very_many_attempts_is_the_one_that_answered() {
    const SERVERS: u16 = 10;
    let peer = |index: u16| format!("127.0.0.1:{}", 8000 + index);
    for answered in [true, false] {
        let mut world = World::new();
        (0..SERVERS).for_each(|index| world.upstream(&peer(index)));
        for index in 0..SERVERS - u16::from(answered) {
            let closed = world.refused(&format!("127.0.0.1:{}", 40_000 + index), &peer(index), u32::from(index) + 1);
            let refused = ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING);
            world.log((1, 41), refused, &peer(index), Some(connection(1, closed)));
        }
        let total = u32::from(SERVERS);
        let points = [StatusPoint::SpecialResponse, StatusPoint::SendHeader];
        for point in points.into_iter().skip(usize::from(answered)) {
            world.say_status(point, key(1), 41, 502, total);
            for index in (0..4).chain(6..SERVERS) {
                let header = (answered && index + 1 == SERVERS).then_some(1);
                world.say_attempt(key(1), (u32::from(index), total), (&peer(index), 502, header));
            }
        }
        let cases = world.cases();
        let [case] = cases.as_slice() else { panic!("{cases:#?}") };
        let origin = if answered { Origin::Upstream } else { Origin::Nginx };
        assert_eq!((case.kind, case.origin, case.attempts_complete), (CaseKind::Incident, origin, true));
        let outcomes: Vec<Outcome> = case.attempts.iter().map(|attempt| attempt.outcome).collect();
        let last = if answered { Outcome::Ok } else { Outcome::Refused };
        assert_eq!(outcomes, [&[Outcome::Refused; 9][..], &[last]].concat());
        let names: Vec<_> = case.attempts.iter().filter_map(|attempt| attempt.peer_name.clone()).collect();
        assert_eq!(names, (0..SERVERS).map(peer).collect::<Vec<_>>());
    }
}
