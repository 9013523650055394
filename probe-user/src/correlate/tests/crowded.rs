//! What could not be remembered.

use super::*;
use crate::correlate::{crowded, limits::NOTABLE_REACH_NS, memory::Resume};

const ROOM: usize = 8;

/// The next request of the same client is refused.
fn fail(world: &mut World, number: u64) -> Case {
    let closed = world.refused(&format!("127.0.0.1:{}", 40_000 + number), "127.0.0.1:8000", 1);
    let said = ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING);
    world.log((number, number), said, "127.0.0.1:8000", Some(connection(1, closed)));
    world.answer(number, number, 502, &[("127.0.0.1:8000", 502, None)]);
    let [case] = world.cases().try_into().expect("one case");
    case
}

fn crowd() -> World {
    let mut world = World::limited(Limits { notable: ROOM, ..Limits::default() });
    world.upstream("127.0.0.1:8000");
    // One more than there is room for: the first exit, which may be the reason, is forgotten.
    (1..=u32::try_from(ROOM).unwrap() + 1).for_each(|pid| world.exited(Pid(100 + pid), Ending::Exit(1)));
    world
}

#[test]
fn a_case_says_that_its_reason_may_have_been_forgotten() {
    let mut world = crowd();
    let case = fail(&mut world, 1);
    let coverage = &case.coverage;
    assert_eq!((coverage.events_lost, coverage.lost_of.as_slice()), (1, [(Sensor::Processes, 1)].as_slice()));
    let [(_, 1, why)] = coverage.losses.as_slice() else { panic!("{:?}", coverage.losses) };
    assert_eq!(why, crowded::WHY);
    // No exit was seen of process 101, and that says nothing now; what others saw is whole.
    assert!(!coverage.silence_counts(Sensor::Processes) && coverage.silence_counts(Sensor::Syscalls));
    assert_eq!(world.correlator.crowded_out(), 1);
}

#[test]
fn a_case_long_after_lost_nothing_by_it() {
    let mut world = crowd();
    world.wait(NOTABLE_REACH_NS);
    let case = fail(&mut world, 1);
    assert!(case.coverage.losses.is_empty() && case.coverage.silence_counts(Sensor::Processes));
    // What is old enough goes by itself.
    world.wait(130_000 * MS);
    world.exited(Pid(300), Ending::Exit(1));
    assert_eq!((world.correlator.crowded_out(), world.correlator.memory().forgotten.len()), (1, 0));
}

#[test]
fn a_run_that_is_taken_up_knows_what_the_first_had_forgotten() {
    let first = crowd();
    let forgotten = first.correlator.memory().forgotten;
    assert_eq!(forgotten.iter().map(|lost| lost.count).sum::<u64>(), 1);
    // The events of its beginning are heard once more, and one of them is forgotten once more.
    for again in [false, true] {
        let mut world = if again { crowd() } else { World::new() };
        world.upstream("127.0.0.1:8000");
        world.now = first.now;
        world.correlator.resume(Resume { forgotten: forgotten.clone(), ..Resume::default() });
        let case = fail(&mut world, 1);
        assert_eq!(case.coverage.lost_of, [(Sensor::Processes, 1)]);
    }
}
