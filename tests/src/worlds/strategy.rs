//! Worlds and views by chance.

use probe502::model::coverage::Sensor;
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{
    truth::{
        Answer, Attempt, Course, Death, Dress, Fate, ForeignEnd, Lost, Noise, NoiseKind, Peer, Place, Race, Read,
        Request, Shortage, UnixFate, World,
    },
    view::View,
};

/// Any world.
pub fn worlds() -> impl Strategy<Value = World> {
    (
        (1usize..=2, 1usize..=2),
        vec(peers(), 1..=3),
        any::<bool>(),
        any::<bool>(),
        vec(requests(), 1..=4),
        vec(noises(), 0..=3),
        any::<u64>(),
    )
        .prop_map(|((masters, workers), peers, counts_failures, detailed_access_log, requests, noise, seed)| {
            World { masters, workers, peers, counts_failures, detailed_access_log, requests, noise, seed }
        })
}

fn peers() -> impl Strategy<Value = Peer> {
    let places = prop_oneof![4 => Just(Place::Loopback), 2 => Just(Place::Neighbour), 2 => Just(Place::Elsewhere)];
    (places, proptest::bool::weighted(0.3)).prop_map(|(place, v6)| Peer { place, v6 })
}

fn requests() -> impl Strategy<Value = Request> {
    let gaps = prop_oneof![3 => 0u32..3, 2 => 3u32..400, 1 => 400u32..20_000];
    let dress = prop_oneof![
        8 => Just(Dress::Plain),
        1 => Just(Dress::ErrorPage),
        1 => Just(Dress::HiddenPage),
        2 => Just(Dress::Subrequest),
    ];
    (gaps, 0usize..2, any::<bool>(), proptest::bool::weighted(0.3), courses(), dress).prop_map(
        |(gap_ms, worker, same_client, post, course, dress)| Request {
            gap_ms,
            worker,
            same_client,
            post,
            course,
            dress,
        },
    )
}

fn courses() -> impl Strategy<Value = Course> {
    let unix = prop_oneof![
        4 => select(vec![UnixFate::Missing, UnixFate::Refused, UnixFate::Denied, UnixFate::Full]),
        3 => select(vec![UnixFate::Closed, UnixFate::Reset, UnixFate::Silent]),
        3 => (deaths(), any::<bool>()).prop_map(|(death, read)| UnixFate::Died { death, read }),
    ];
    prop_oneof![
        24 => vec(attempts(), 1..=3).prop_map(Course::Passed),
        2 => select(vec![502u16, 503]).prop_map(Course::Returned),
        1 => Just(Course::Unresolved),
        1 => Just(Course::Cached),
        5 => unix.prop_map(Course::Unix),
        2 => (0usize..3).prop_map(|peer| Course::Abandoned { peer }),
    ]
}

fn attempts() -> impl Strategy<Value = Attempt> {
    let idle = prop_oneof![1u32..40, 40u32..1_000, select(vec![2_000u32, 5_000, 15_000, 60_000])];
    (0usize..3, option::weighted(0.4, idle), fates()).prop_map(|(peer, idle_ms, fate)| Attempt { peer, idle_ms, fate })
}

fn fates() -> impl Strategy<Value = Fate> {
    let after = || prop_oneof![0u32..200, 200u32..4_000, 4_000u32..800_000];
    let read = || select(vec![Read::Nothing, Read::Part, Read::All]);
    let header = || prop_oneof![3 => Just(0u16), 1 => 1u16..60];
    let answer = select(vec![Answer::Reset, Answer::PortUnreachable, Answer::Prohibited, Answer::HostUnreachable]);
    let lost = select(vec![Lost::Beyond, Lost::SynHere, Lost::AnswerHere]);
    let race = select(vec![Race::FinBefore, Race::FinCrossed, Race::ResetBefore, Race::Unread, Race::Forgotten]);
    prop_oneof![
        4 => select(vec![200u16, 200, 200, 404, 500, 503, 502]).prop_map(Fate::Answered),
        3 => option::of(1u32..2_000).prop_map(|back_ms| Fate::Refused { back_ms }),
        3 => answer.prop_map(Fate::Rejected),
        3 => (lost, any::<bool>()).prop_map(|(lost, by_kernel)| Fate::Unanswered { lost, by_kernel }),
        2 => any::<bool>().prop_map(|established| Fate::QueueFull { established }),
        4 => (read(), header(), after()).prop_map(|(read, header, after_us)| Fate::Reset { read, header, after_us }),
        3 => (header(), after()).prop_map(|(header, after_us)| Fate::Closed { header, after_us }),
        5 => race.prop_map(Fate::Race),
        2 => Just(Fate::Silent),
        1 => Just(Fate::NginxFiles),
        2 => any::<bool>().prop_map(|stuck| Fate::UpstreamFiles { stuck }),
        5 => (deaths(), read(), after()).prop_map(|(death, read, after_us)| Fate::Died { death, read, after_us }),
        1 => any::<bool>().prop_map(|reset| Fate::Truncated { reset }),
        2 => select(vec![Shortage::Ports, Shortage::Route, Shortage::Permission]).prop_map(Fate::Local),
        1 => Just(Fate::NginxConnections),
        2 => select(vec![Fate::TooBig, Fate::Malformed, Fate::TlsClosed, Fate::TlsCertificate]),
        2 => Just(Fate::EarlyLost),
        2 => (any::<bool>(), after()).prop_map(|(other_ttl, after_us)| Fate::Injected { other_ttl, after_us }),
        1 => Just(Fate::Stalled),
    ]
}

fn deaths() -> impl Strategy<Value = Death> {
    prop_oneof![
        Just(Death::Fault),
        Just(Death::Abort),
        select(vec![9u8, 15, 11, 6]).prop_map(Death::Killed),
        select(vec![(15u8, 0u8), (6, 1), (2, 0)]).prop_map(|(signal, code)| Death::Asked(signal, code)),
        Just(Death::Oom),
        select(vec![0u8, 1, 3]).prop_map(Death::Exit),
    ]
}

fn noises() -> impl Strategy<Value = Noise> {
    let kinds = prop_oneof![
        2 => select(vec![ForeignEnd::Served, ForeignEnd::Reset, ForeignEnd::Closed]).prop_map(NoiseKind::Foreign),
        1 => deaths().prop_map(NoiseKind::OtherDeath),
    ];
    let moments = prop_oneof![3 => 0u32..10, 1 => 10u32..6_000];
    (moments, 0usize..3, kinds).prop_map(|(at_ms, peer, kind)| Noise { at_ms, peer, kind })
}

/// Any view: from everything to the logs alone.
pub fn views() -> impl Strategy<Value = View> {
    prop_oneof![
        2 => Just(View::whole()),
        2 => Just(View::whole().without(Sensor::UpstreamSide)),
        1 => any::<u64>().prop_map(|seed| View { off: all_but(&[Sensor::ErrorLog, Sensor::AccessLog]), seed, ..View::default() }),
        2 => partial(true),
        3 => partial(false),
    ]
}

/// A view in which nginx's own functions are seen whole.
pub fn views_with_uprobes() -> impl Strategy<Value = View> {
    prop_oneof![1 => Just(View::whole()), 3 => partial(true)].prop_map(|mut view| {
        view.lost_records = 0;
        view.late = None;
        view
    })
}

fn partial(uprobes: bool) -> impl Strategy<Value = View> {
    let sensors = move || {
        let list: Vec<Sensor> = Sensor::ALL
            .iter()
            .copied()
            .filter(|sensor| !uprobes || !matches!(sensor, Sensor::NginxFunctions | Sensor::NginxStatuses))
            .collect();
        select(list)
    };
    let losses = || prop_oneof![3 => Just(0u16), 1 => 1u16..400];
    (vec(sensors(), 0..6), vec(sensors(), 0..3), losses(), losses(), option::weighted(0.15, 0u16..1_000), any::<u64>())
        .prop_map(|(off, mut degraded, lost_records, lost_packets, late, seed)| {
            // The upstreams' side is looked at or left out; it has no gaps of its own.
            degraded.retain(|sensor| !off.contains(sensor) && *sensor != Sensor::UpstreamSide);
            View { off, degraded, lost_records, lost_packets, late, deeper: None, alone: false, seed }
        })
}

fn all_but(kept: &[Sensor]) -> Vec<Sensor> {
    Sensor::ALL.iter().copied().filter(|sensor| !kept.contains(sensor)).collect()
}
