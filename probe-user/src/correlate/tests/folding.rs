//! A storm: what is explained, and what is counted.

use super::*;
use crate::model::case::{CaseId, Folded};

/// `count` failures of one second, each refused; those whose number `is_other` gets a different errno.
fn storm(explained: u64, count: u64, is_other: impl Fn(u64) -> bool) -> (Vec<Case>, Vec<Folded>) {
    let mut world = World::limited(Limits { explained, ..Limits::default() });
    world.upstream("127.0.0.1:8000");
    (0..count).for_each(|number| refuse(&mut world, number, is_other(number)));
    let cases = world.cases();
    world.wait(1_000 * MS);
    (cases, std::iter::from_fn(|| world.correlator.poll_folded()).collect())
}

fn refuse(world: &mut World, number: u64, other: bool) {
    let local = format!("127.0.0.1:{}", 40_000 + number);
    let closed = world.refused(&local, "127.0.0.1:8000", 1);
    let errno = if other { Errno::EHOSTUNREACH } else { Errno::ECONNREFUSED };
    let said = ("connect() failed", Some(errno), CONNECTING);
    world.log((number, number), said, "127.0.0.1:8000", Some(connection(1, closed)));
    world.answer(number, number, 502, &[("127.0.0.1:8000", 502, None)]);
}

fn numbers(cases: &[Case]) -> Vec<u64> {
    cases.iter().filter_map(|case| case.request.connection).collect()
}

#[test]
fn what_is_like_a_case_of_the_same_second_is_counted() {
    let (cases, folded) = storm(3, 10, |_| false);
    assert_eq!(numbers(&cases), [0, 1, 2]);
    let [folded] = folded.as_slice() else { panic!("{folded:?}") };
    assert_eq!((folded.kind, &folded.like, folded.count), (CaseKind::Incident, &cases[0].id, 7));
    assert!(cases[2].decided.latest < folded.from && folded.from < folded.to);
}

#[test]
fn what_differs_is_explained_however_many_there_are() {
    let (cases, folded) = storm(3, 100, |number| number == 50 || number == 70);
    assert_eq!(numbers(&cases), [0, 1, 2, 50]);
    assert_eq!(
        folded.iter().map(|folded| (&folded.like, folded.count)).collect::<Vec<_>>(),
        [(&cases[0].id, 95), (&cases[3].id, 1)]
    );
}

#[test]
fn nothing_is_counted_only_while_there_are_few() {
    let (cases, folded) = storm(10, 10, |_| false);
    assert_eq!((cases.len(), folded.len()), (10, 0));
    let (cases, folded) = storm(u64::MAX, 100, |_| false);
    assert_eq!((cases.len(), folded.len()), (100, 0));
}

#[test]
fn every_second_is_explained_anew_and_the_cases_keep_their_numbers() {
    let mut world = World::limited(Limits { explained: 2, ..Limits::default() });
    world.upstream("127.0.0.1:8000");
    let mut cases = Vec::new();
    for second in 0..3 {
        (0..5).for_each(|number| refuse(&mut world, second * 5 + number, false));
        cases.extend(world.cases());
    }
    world.wait(1_000 * MS);
    let folded: Vec<Folded> = std::iter::from_fn(|| world.correlator.poll_folded()).collect();
    assert_eq!(numbers(&cases), [0, 1, 5, 6, 10, 11]);
    assert_eq!(folded.iter().map(|folded| folded.count).collect::<Vec<_>>(), [3, 3, 3]);
    let number = |id: &CaseId| id.0.rsplit_once('-').and_then(|(_, number)| number.parse::<u64>().ok());
    assert_eq!(cases.iter().filter_map(|case| number(&case.id)).collect::<Vec<_>>(), [1, 2, 6, 7, 11, 12]);
}

#[test]
fn a_loss_and_the_end_of_a_server_make_the_next_one_worth_explaining() {
    let mut world = World::limited(Limits { explained: 1, ..Limits::default() });
    world.upstream("127.0.0.1:8000");
    let mut cases = Vec::new();
    let mut step = |world: &mut World, numbers: std::ops::Range<u64>| {
        numbers.for_each(|number| refuse(world, number, false));
        world.nobody_listens("127.0.0.1:8000");
        world.wait(250 * MS);
        cases.extend(std::iter::from_fn(|| world.correlator.poll_case()));
    };
    step(&mut world, 0..3);
    let lost = Coverage::Lost { sensor: None, count: 1, why: "a test".to_owned() };
    world.tell(Source::Probe, Body::Coverage(lost));
    step(&mut world, 3..6);
    world.exited(Pid(7), Ending::Exit(1));
    step(&mut world, 6..9);
    assert_eq!(numbers(&cases), [0, 3, 6]);
}
