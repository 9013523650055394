//! The laws: what must hold in every world, whatever of it is seen.

use std::collections::BTreeMap;

use probe_tests::worlds::{
    run::{Delivery, live, replay},
    story,
    strategy::{views, views_with_uprobes, worlds},
    verdict::{Claim, check, subjects},
};
use probe502::model::case::CaseKind;
use proptest::prelude::*;

/// Worlds per law, unless `PROPTEST_CASES` says otherwise.
const WORLDS: u32 = 2_000;

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(WORLDS);
    ProptestConfig { cases, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    /// The same arrivals give the same judged cases.
    #[test]
    fn determinism(world in worlds(), view in views()) {
        let story = story::play(&world);
        let (arrivals, _) = live(&story, &view);
        prop_assert_eq!(replay(&arrivals, Delivery::LIVE), replay(&arrivals, Delivery::LIVE));
    }

    /// However the sources' deliveries interleave, and however often they say how far they are, the cases are the same; a replay of
    /// what was recorded says what was said live.
    #[test]
    fn confluence(world in worlds(), view in views(), seed in any::<u64>(), step in 1u64..400) {
        let story = story::play(&world);
        let (arrivals, said) = live(&story, &view);
        let other = replay(&arrivals, Delivery { seed, step: step * 1_000_000 });
        prop_assert_eq!(&said, &other);
        prop_assert_eq!(&said, &replay(&arrivals, Delivery::AT_ONCE));
    }

    /// What is confirmed is true.
    #[test]
    fn confirmed_is_true(world in worlds(), view in views()) {
        let story = story::play(&world);
        let (_, judged) = live(&story, &view);
        for judged in &judged {
            if let Err(why) = check(&story, judged) {
                prop_assert!(false, "{}", why);
            }
        }
    }

    /// With nginx's functions seen: one incident for each gateway failure, one near miss for each failure that a retry hid, and nothing
    /// else; each with its attempts.
    #[test]
    fn one_case_for_each_failure(world in worlds(), view in views_with_uprobes()) {
        let story = story::play(&world);
        let (_, judged) = live(&story, &view);
        let mut cases: BTreeMap<(u64, u64), Vec<(CaseKind, Option<u16>)>> = BTreeMap::new();
        for judged in &judged {
            let subjects = subjects(&story, &judged.case);
            prop_assert_eq!(subjects.len(), 1, "a case of nothing, or of several: {:#?}", judged.case);
            let truth = subjects[0];
            cases.entry((truth.number, truth.client_requests)).or_default().push((judged.case.kind, judged.case.status));
            let said: Vec<_> = judged.case.attempts.iter().map(|a| (a.peer_name.clone().unwrap_or_default(), a.outcome)).collect();
            let named: Vec<_> = truth.attempts.iter().map(|(peer, became)| (peer.clone(), *became)).collect();
            prop_assert_eq!(said, named);
        }
        let mut expected: BTreeMap<(u64, u64), Vec<(CaseKind, Option<u16>)>> = BTreeMap::new();
        for truth in &story.truths {
            if let Some(kind) = truth.kind {
                let status = if truth.causes == ["response-truncated"] { None } else { truth.status };
                expected.entry((truth.number, truth.client_requests)).or_default().push((kind, status));
            }
        }
        prop_assert_eq!(cases, expected);
    }
}

/// How often each cause comes out with each confidence: that the laws above speak of something.
#[test]
fn census() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut census: BTreeMap<(String, &str), BTreeMap<Claim, usize>> = BTreeMap::new();
    for _ in 0..300 {
        let world = worlds().new_tree(&mut runner).unwrap().current();
        let story = story::play(&world);
        let (_, judged) = live(&story, &probe_tests::worlds::view::View::whole());
        for judged in &judged {
            let truth = subjects(&story, &judged.case)[0];
            *census
                .entry((format!("{:?}", judged.case.kind), truth.causes[0]))
                .or_default()
                .entry(Claim::of(&judged.verdict))
                .or_default() += 1;
        }
    }
    for ((kind, truth), claims) in &census {
        eprintln!("{kind} {truth}: {claims:?}");
    }
}
