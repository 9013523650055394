//! The laws: what must hold in every world, whatever of it is seen.

use std::collections::BTreeMap;

use probe_tests::worlds::{
    crowd::{CrowdEnd, crowd},
    run::{Delivery, answers, deliver, later, live, replay, replay_with, said_with, settings},
    story::{self, Story},
    strategy::{views, views_with_uprobes, worlds},
    tape::Record,
    verdict::{Claim, check, claims, subjects, surest},
    view::View,
};
use probe502::{
    correlate::{Settings, limits::Limits},
    model::{
        case::CaseKind,
        coverage::{Sensor, Sight},
        process::Pid,
        time::{At, WallClock},
        verdict::Confidence,
    },
    pipeline::{Judged, Pipeline},
};
use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    test_runner::{RngSeed, TestRunner},
};

/// Worlds per law, unless `PROPTEST_CASES` says otherwise.
const WORLDS: u32 = 2_000;

/// Worlds for the law that is never to be broken.
const MANY_WORLDS: u32 = 20_000;

fn cases(usual: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Which worlds: the same ones in every run, so that a change is judged by what it changes. `WORLDS_SEED=random` draws others, a
/// number draws those of that number.
fn seed() -> RngSeed {
    match std::env::var("WORLDS_SEED") {
        Ok(text) => text.parse().map_or(RngSeed::Random, RngSeed::Fixed),
        Err(_unset) => RngSeed::Fixed(502),
    }
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: cases(WORLDS),
        rng_seed: seed(),
        max_shrink_iters: 4_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn said(story: &Story, view: &View) -> Vec<Judged> {
    live(story, view).1
}

/// What is confirmed is true: the law of laws, in more worlds than the others, on every processor.
#[test]
fn confirmed_is_true() {
    let threads = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1)).min(16);
    let cases = cases(MANY_WORLDS).div_ceil(threads);
    let law = |thread: u32| {
        let rng_seed = match seed() {
            RngSeed::Fixed(number) => RngSeed::Fixed(number.wrapping_add(u64::from(thread))),
            random @ RngSeed::Random => random,
        };
        let mut runner = TestRunner::new(ProptestConfig { cases, rng_seed, ..config() });
        let held = runner.run(&(worlds(), views()), |(world, view)| {
            let story = story::play(&world);
            for judged in &said(&story, &view) {
                if let Err(why) = check(&story, judged) {
                    prop_assert!(false, "{}", why);
                }
            }
            Ok(())
        });
        held.map_err(|broken| broken.to_string())
    };
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..threads).map(|thread| scope.spawn(move || law(thread))).collect();
        for run in runs {
            if let Err(broken) = run.join().unwrap() {
                panic!("{broken}");
            }
        }
    });
}

/// Without the upstream's side the question is another one: what nginx's side proves is confirmed with a smaller word (`syn-timeout` where
/// it was, or may have been, `accept-queue-overflow`), and no record that is missing there is missed here.
fn sensors() -> Vec<Sensor> {
    Sensor::ALL.iter().copied().filter(|sensor| *sensor != Sensor::UpstreamSide).collect()
}

/// Cases by worker, client connection and request on it: what kind, and what the client saw.
type Cases = BTreeMap<(Pid, u64, u64), Vec<(CaseKind, Option<u16>)>>;

proptest! {
    #![proptest_config(config())]

    /// The same arrivals give the same judged cases.
    #[test]
    fn determinism(world in worlds(), view in views()) {
        let story = story::play(&world);
        let (arrivals, said) = live(&story, &view);
        prop_assert_eq!(&said, &replay(&arrivals, Delivery::LIVE));
    }

    /// However the sources' deliveries interleave, and however often they say how far they are, the cases are the same; a replay of
    /// what was recorded says what was said live.
    #[test]
    fn confluence(world in worlds(), view in views(), seed in any::<u64>(), step in 5u64..400) {
        let story = story::play(&world);
        let (arrivals, said) = live(&story, &view);
        let other = replay(&arrivals, Delivery { seed, step: step * 1_000_000, cut: false });
        prop_assert_eq!(&said, &other);
        prop_assert_eq!(&said, &replay(&arrivals, Delivery::AT_ONCE));
    }

    /// Sensors that come to see, and see less again, as a depth that changes lets them (`--depth auto`): nothing is claimed of the time in
    /// which less was seen.
    #[test]
    fn a_changing_depth_is_humble(world in worlds(), view in views(), auto in any::<bool>(), from in 0u16..900, long in 1u16..600) {
        let story = story::play(&world);
        let light = View {
            off: vec![Sensor::Syscalls, Sensor::NginxStatuses],
            degraded: vec![Sensor::SocketStates, Sensor::Packets],
            seed: view.seed,
            ..View::whole()
        };
        let view = View { deeper: Some((from, from + long)), ..if auto { light } else { view } };
        let (arrivals, said) = live(&story, &view);
        for judged in &said {
            if let Err(why) = check(&story, judged) {
                prop_assert!(false, "{}", why);
            }
        }
        prop_assert_eq!(&said, &replay(&arrivals, Delivery::AT_ONCE));
    }

    /// No claim from silence: taking a sensor away, and saying so, never makes a verdict surer. (What is lost is the next law's.)
    #[test]
    fn no_claim_from_silence(world in worlds(), view in views(), sensor in select(sensors())) {
        let story = story::play(&world);
        let view = View { lost_records: 0, lost_packets: 0, ..view };
        // `possible` says that a log line fits: it is no claim, and to know less leaves more possible. Where nginx's own word does not tie a
        // request to one connection, the verdict is what all that can be meant have in common, and to know less makes them more alike:
        // there only certainty is compared.
        let tied = view.sight(Sensor::NginxFunctions) == Sight::On && sensor != Sensor::NginxFunctions;
        let no_claim = Some(if tied { Confidence::Possible } else { Confidence::Likely });
        let answers = answers(&story, &view);
        let more = claims(&story, &said_with(&story, &view, &answers));
        for (request, claim) in claims(&story, &said_with(&story, &view.without(sensor), &answers)) {
            // A request of which nothing was said before has no verdict that could be compared; what is said of it is held to the truth.
            // What can be about it and about another is not compared with the other's.
            let each: Option<Vec<Claim>> = request.iter().map(|one| surest(&more, &[*one])).collect();
            let Some(before) = each.and_then(|claims| claims.into_iter().max()) else { continue };
            prop_assert!(
                claim.confidence().max(no_claim) <= before.confidence().max(no_claim),
                "without {}, {:?} is {:?}, with it {:?}", sensor, request, claim, before
            );
        }
    }

    /// Loss is humility: what is confirmed where records were lost, and the loss was told, is confirmed without the loss.
    #[test]
    fn loss_is_humility(world in worlds(), view in views(), records in 1u16..500, packets in 0u16..500) {
        let story = story::play(&world);
        let lossless = View { lost_records: 0, lost_packets: 0, ..view.clone() };
        let lossy = View { lost_records: records, lost_packets: packets, ..view };
        let answers = answers(&story, &lossless);
        let whole = claims(&story, &said_with(&story, &lossless, &answers));
        for (request, claim) in claims(&story, &said_with(&story, &lossy, &answers)) {
            if let Some(cause) = claim.confirmed() {
                let before = surest(&whole, &request).unwrap_or(Claim::Nothing);
                prop_assert_eq!(before.confirmed(), Some(cause), "with losses {:?} is {:?}", request, claim);
            }
        }
    }

    /// Somebody else's connections to the same servers change nothing where nginx's own word ties a request to its connection, and
    /// connections are seen to begin.
    #[test]
    fn foreign_traffic_changes_nothing(world in worlds(), view in views_with_uprobes()) {
        let story = story::play(&world);
        // Somebody else's packets can be what makes the capture lose some; and where no beginning of a connection is seen, an address and
        // port that come back cannot always be told from the ones before.
        let mut view = View { lost_packets: 0, ..view };
        view.off.retain(|sensor| *sensor != Sensor::SocketStates);
        view.degraded.retain(|sensor| *sensor != Sensor::SocketStates);
        let known = answers(&story, &view);
        let gist = |view: &View| -> Vec<_> {
            let gist = |judged: Judged| {
                let attempts: Vec<_> = judged.case.attempts.iter().map(|a| (a.peer_name.clone(), a.outcome)).collect();
                (judged.case.id, judged.case.kind, judged.case.status, Claim::of(&judged.verdict), attempts)
            };
            said_with(&story, view, &known).into_iter().map(gist).collect()
        };
        prop_assert_eq!(gist(&view), gist(&View { alone: true, ..view.clone() }));
    }

    /// And without nginx's own word they never make another cause certain.
    #[test]
    fn foreign_traffic_makes_nothing_certain(world in worlds(), view in views()) {
        let story = story::play(&world);
        let known = answers(&story, &view);
        let crowded = claims(&story, &said_with(&story, &view, &known));
        let alone = claims(&story, &said_with(&story, &View { alone: true, ..view }, &known));
        for (request, claim) in crowded {
            if let Some(cause) = claim.confirmed() {
                prop_assert_eq!(surest(&alone, &request).and_then(Claim::confirmed), Some(cause));
            }
        }
    }

    /// When everything happens later, the same is said, later.
    #[test]
    fn time_shifts(world in worlds(), view in views(), shift in 0u64..100_000_000_000_000) {
        let story = story::play(&world);
        let (arrivals, said) = live(&story, &view);
        // On the wall it is the same time, so the names are the same.
        let offset_ns = settings().clock.offset_ns - i64::try_from(shift).unwrap();
        let settings = Settings { clock: WallClock { offset_ns }, ..settings() };
        let shifted = replay_with(&later(&arrivals, shift), Delivery::LIVE, settings);
        prop_assert_eq!(said.len(), shifted.len());
        for (one, other) in said.iter().zip(&shifted) {
            prop_assert_eq!(&one.case.id, &other.case.id);
            prop_assert_eq!(&one.verdict, &other.verdict);
            let decided = At { earliest: one.case.decided.earliest.plus_ns(shift), latest: one.case.decided.latest.plus_ns(shift) };
            prop_assert_eq!(decided, other.case.decided);
            let times = |judged: &Judged, by: u64| -> Vec<_> {
                judged.case.attempts.iter().map(|a| (a.started.map(|at| at.plus_ns(by)), a.duration_us, a.outcome)).collect()
            };
            prop_assert_eq!(times(one, shift), times(other, 0));
        }
    }

    /// With nginx's functions seen: one incident for each gateway failure, one near miss for each failure that a retry hid, and nothing
    /// else; each with its attempts.
    #[test]
    fn one_case_for_each_failure(world in worlds(), view in views_with_uprobes()) {
        let story = story::play(&world);
        let mut cases: Cases = Cases::new();
        for judged in &said(&story, &view) {
            let subjects = subjects(&story, &judged.case);
            prop_assert_eq!(subjects.len(), 1, "a case of nothing, or of several: {:#?}", judged.case);
            let truth = subjects[0];
            cases.entry((truth.key.worker, truth.number, truth.client_requests)).or_default().push((judged.case.kind, judged.case.status));
            let said: Vec<_> =
                judged.case.attempts.iter().map(|a| (a.peer_name.clone().unwrap_or_default(), a.outcome)).collect();
            prop_assert_eq!(&said, &truth.attempts);
            prop_assert!(judged.case.attempts_complete);
        }
        let mut expected: Cases = Cases::new();
        for truth in &story.truths {
            if let Some(kind) = truth.kind {
                // The header had gone when the answer broke off: its status is known of another record.
                let status = if truth.causes == ["response-truncated"] { None } else { truth.status };
                expected.entry((truth.key.worker, truth.number, truth.client_requests)).or_default().push((kind, status));
            }
        }
        prop_assert_eq!(cases, expected);
    }

    /// However many connections come, no more than the limit are remembered.
    #[test]
    fn state_is_bounded(
        seed in any::<u64>(),
        ends in vec((0u16..300, select(vec![CrowdEnd::Closed, CrowdEnd::Reset, CrowdEnd::Refused, CrowdEnd::Open])), 40..120),
        flows in 1usize..32,
        step in 20u64..2_000,
    ) {
        let limits = Limits { flows, events_per_flow: 16, requests: 4, notable: 8, failures: 4, explained: 4 };
        let mut pipeline = Pipeline::new(Settings { limits, ..settings() });
        let mut most = 0;
        deliver(&mut pipeline, &crowd(seed, &ends), Delivery { seed, step: step * 1_000_000, cut: false }, |pipeline, _| {
            most = most.max(pipeline.flows_known());
        });
        prop_assert!(most <= flows, "{} of {}", most, flows);
    }

    /// A stream that ends anywhere: nothing breaks, and what is confirmed is true.
    #[test]
    fn cut_anywhere(world in worlds(), view in views(), cut in 0usize..1_000) {
        let story = story::play(&world);
        let (mut arrivals, _) = live(&story, &view);
        arrivals.truncate(arrivals.len() * cut / 1_000);
        for judged in &replay(&arrivals, Delivery { cut: true, ..Delivery::LIVE }) {
            if let Err(why) = check(&story, judged) {
                prop_assert!(false, "{}", why);
            }
        }
    }
}

/// The laws above would hold of a program that says nothing. With everything seen, each cause that the worlds contain is confirmed at
/// least once, and most incidents are.
#[test]
fn the_laws_are_not_empty() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut census: BTreeMap<&str, BTreeMap<Claim, usize>> = BTreeMap::new();
    for _ in 0..600 {
        let story = story::play(&worlds().new_tree(&mut runner).unwrap().current());
        for judged in &said(&story, &View::whole()) {
            let truth = subjects(&story, &judged.case)[0];
            *census.entry(truth.causes[0]).or_default().entry(Claim::of(&judged.verdict)).or_default() += 1;
        }
    }
    for (truth, claims) in &census {
        println!("{truth}: {claims:?}");
    }
    let cases: usize = census.values().flat_map(BTreeMap::values).sum();
    let confirmed = |claims: &BTreeMap<Claim, usize>| -> usize {
        claims.iter().filter(|(claim, _)| claim.confirmed().is_some()).map(|(_, count)| count).sum()
    };
    assert!(cases > 500, "{cases}");
    let certain: usize = census.values().map(confirmed).sum();
    assert!(certain * 2 > cases, "{certain} of {cases} are confirmed");
    let never: Vec<_> = census.iter().filter(|(_, claims)| confirmed(claims) == 0).map(|(truth, _)| *truth).collect();
    assert_eq!(never, [""; 0], "each can be proved in some world");
}

/// Worlds have records of every kind that a sensor makes.
#[test]
fn every_sensor_has_something_to_see() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut seen: Vec<Sensor> = Vec::new();
    for _ in 0..200 {
        let story = story::play(&worlds().new_tree(&mut runner).unwrap().current());
        seen.extend(story.records.iter().filter_map(|Record { sensor, .. }| *sensor));
    }
    // What is asked has no records of its own, nor has a bound on what the others see.
    let no_records = [Sensor::Host, Sensor::UpstreamSide];
    let unseen: Vec<_> = Sensor::ALL.iter().filter(|s| !no_records.contains(s) && !seen.contains(s)).collect();
    assert!(unseen.is_empty(), "{unseen:?}");
}
