//! The pipeline by events of a world of which the truth is known: what is confirmed is true, whatever of it is seen.

use probe502::{merge::Arrival, model::coverage::Sensor};

use crate::worlds::{
    run::{Delivery, live, replay},
    story,
    truth::{
        Answer, Attempt, Course, Death, Dress, Fate, ForeignEnd, Lost, Noise, NoiseKind, Peer, Place, Race, Read,
        Request, Shortage, UnixFate, World,
    },
    verdict,
    view::View,
};

/// The bytes choose the world and the view; the first says what happens to the stream on its way beside.
pub fn world(bytes: &[u8]) {
    let [damage, choices @ ..] = bytes else { return };
    let mut choices = Choices(choices);
    let (world, view) = (choices.world(), choices.view());
    let story = story::play(&world);
    let (arrivals, judged) = live(&story, &view);
    for judged in &judged {
        let truth = verdict::check(&story, judged);
        assert!(truth.is_ok(), "{truth:?}");
    }
    if *damage != 0 {
        // What nobody promised can still happen: events that are lost uncounted, come twice, or at another time. No truth is known of
        // these; they must do no harm.
        let _ = replay(&damaged(&arrivals, *damage), Delivery::LIVE);
    }
}

fn damaged(arrivals: &[Arrival], damage: u8) -> Vec<Arrival> {
    let step = usize::from(damage >> 2) + 2;
    let mut all = Vec::with_capacity(arrivals.len() * 2);
    for (index, arrival) in arrivals.iter().enumerate() {
        let hit = index % step == step - 1;
        match damage & 3 {
            0 if hit => {}
            1 if hit => all.extend([arrival.clone(), arrival.clone()]),
            2 if hit => {
                let at = arrivals.get(index / 2).map_or(arrival.at, |other| other.at);
                all.push(Arrival { at, ..arrival.clone() });
            }
            3 if hit => {
                let source = arrivals.get(index / 2).map_or(arrival.source, |other| other.source);
                all.push(Arrival { source, ..arrival.clone() });
            }
            _ => all.push(arrival.clone()),
        }
    }
    all
}

/// Choices that bytes make, two bytes each; behind the last one everything is the first of its kind. Of the same worlds as
/// `worlds::strategy` draws, without its weights: a fuzzer finds its own.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn number(&mut self) -> u16 {
        let Some((two, rest)) = self.0.split_first_chunk() else {
            self.0 = &[];
            return 0;
        };
        self.0 = rest;
        u16::from_le_bytes(*two)
    }

    fn below(&mut self, limit: u32) -> u32 {
        // As wide as two draws: some delays are hundreds of thousands of microseconds.
        let wide = if limit > u32::from(u16::MAX) { u32::from(self.number()) << 16 } else { 0 };
        (wide | u32::from(self.number())) % limit.max(1)
    }

    fn index(&mut self, limit: usize) -> usize {
        usize::from(self.number()) % limit.max(1)
    }

    fn yes(&mut self) -> bool {
        self.number() & 1 == 1
    }

    fn one<T: Copy, const N: usize>(&mut self, of: [T; N]) -> T {
        of[self.index(N)]
    }

    fn some<T>(&mut self, least: usize, most: usize, mut draw: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = least + self.index(most - least + 1);
        (0..count).map(|_| draw(self)).collect()
    }

    fn world(&mut self) -> World {
        World {
            masters: 1 + self.index(2),
            workers: 1 + self.index(2),
            peers: self.some(1, 3, |choices| Peer {
                place: choices.one([Place::Loopback, Place::Neighbour, Place::Elsewhere]),
                v6: choices.yes(),
            }),
            counts_failures: self.yes(),
            detailed_access_log: self.yes(),
            requests: self.some(1, 4, Self::request),
            noise: self.some(0, 3, Self::noise),
            seed: self.number().into(),
        }
    }

    fn request(&mut self) -> Request {
        Request {
            gap_ms: self.below(20_000),
            worker: self.index(2),
            same_client: self.yes(),
            post: self.yes(),
            course: self.course(),
            dress: self.one([Dress::Plain, Dress::ErrorPage, Dress::HiddenPage, Dress::Subrequest]),
        }
    }

    fn course(&mut self) -> Course {
        match self.index(8) {
            0 => Course::Returned(self.one([502, 503])),
            1 => Course::Unresolved,
            2 => Course::Cached,
            3 => Course::Unix(self.one([
                UnixFate::Missing,
                UnixFate::Refused,
                UnixFate::Denied,
                UnixFate::Full,
                UnixFate::Closed,
                UnixFate::Reset,
                UnixFate::Silent,
                UnixFate::Died { death: Death::Fault, read: true },
            ])),
            4 => Course::Abandoned { peer: self.index(3) },
            _ => Course::Passed(self.some(1, 3, Self::attempt)),
        }
    }

    fn attempt(&mut self) -> Attempt {
        Attempt {
            peer: self.index(3),
            idle_ms: if self.yes() { Some(1 + self.below(60_000)) } else { None },
            fate: self.fate(),
        }
    }

    fn fate(&mut self) -> Fate {
        let after = |choices: &mut Self| choices.below(800_000);
        let read = |choices: &mut Self| choices.one([Read::Nothing, Read::Part, Read::All]);
        let header = |choices: &mut Self| choices.number() % 60;
        match self.index(20) {
            0 => Fate::Answered(self.one([200, 404, 500, 503, 502])),
            1 => Fate::Refused { back_ms: if self.yes() { Some(1 + self.below(2_000)) } else { None } },
            2 => Fate::Rejected(self.one([
                Answer::Reset,
                Answer::PortUnreachable,
                Answer::Prohibited,
                Answer::HostUnreachable,
            ])),
            3 => Fate::Unanswered {
                lost: self.one([Lost::Beyond, Lost::SynHere, Lost::AnswerHere]),
                by_kernel: self.yes(),
            },
            4 => Fate::QueueFull { established: self.yes() },
            5 => Fate::Reset { read: read(self), header: header(self), after_us: after(self) },
            6 => Fate::Closed { header: header(self), after_us: after(self) },
            7 => Fate::Race(self.one([
                Race::FinBefore,
                Race::FinCrossed,
                Race::ResetBefore,
                Race::Unread,
                Race::Forgotten,
            ])),
            8 => Fate::Silent,
            9 => Fate::NginxFiles,
            10 => Fate::UpstreamFiles { stuck: self.yes() },
            11 => Fate::Died { death: self.death(), read: read(self), after_us: after(self) },
            12 => Fate::Truncated { reset: self.yes() },
            13 => Fate::Local(self.one([Shortage::Ports, Shortage::Route, Shortage::Permission])),
            14 => Fate::NginxConnections,
            15 => self.one([Fate::TooBig, Fate::Malformed, Fate::TlsClosed, Fate::TlsCertificate]),
            16 => Fate::EarlyLost,
            17 => Fate::Injected { other_ttl: self.yes(), after_us: after(self) },
            18 => Fate::Stalled,
            _ => Fate::Answered(200),
        }
    }

    fn death(&mut self) -> Death {
        match self.index(6) {
            0 => Death::Fault,
            1 => Death::Abort,
            2 => Death::Killed(self.one([9, 15, 11, 6])),
            3 => {
                let (signal, code) = self.one([(15, 0), (6, 1), (2, 0)]);
                Death::Asked(signal, code)
            }
            4 => Death::Oom,
            _ => Death::Exit(self.one([0, 1, 3])),
        }
    }

    fn noise(&mut self) -> Noise {
        let kind = if self.yes() {
            NoiseKind::OtherDeath(self.death())
        } else {
            NoiseKind::Foreign(self.one([ForeignEnd::Served, ForeignEnd::Reset, ForeignEnd::Closed]))
        };
        Noise { at_ms: self.below(6_000), peer: self.index(3), kind }
    }

    fn view(&mut self) -> View {
        let sensor = |choices: &mut Self| Sensor::ALL.get(choices.index(Sensor::ALL.len())).copied();
        let off: Vec<Sensor> = self.some(0, 5, sensor).into_iter().flatten().collect();
        let degraded: Vec<Sensor> = self.some(0, 2, sensor).into_iter().flatten().collect();
        // The upstreams' side is looked at or left out; it has no gaps of its own.
        let gaps = |sensor: &Sensor| !off.contains(sensor) && *sensor != Sensor::UpstreamSide;
        View {
            degraded: degraded.into_iter().filter(gaps).collect(),
            off,
            lost_records: self.one([0, 0, 40, 400]),
            lost_packets: self.one([0, 0, 40, 400]),
            late: if self.number() % 7 == 6 { Some(self.number() % 1_000) } else { None },
            alone: false,
            seed: self.number().into(),
            deeper: if self.number() % 7 == 6 {
                let from = self.number() % 1_000;
                Some((from, from + self.number() % 1_000))
            } else {
                None
            },
        }
    }
}
