//! Arrivals through the pipeline, in any order in which sources could deliver them.

use std::collections::VecDeque;

use probe502::{
    correlate::{Settings, limits::Limits},
    merge::Arrival,
    model::{
        coverage::{Sensor, Sight},
        event::Source,
        time::{At, Moment, WallClock},
    },
    pipeline::{Judged, Pipeline},
};

use super::{
    dice::Dice,
    stage::{MS, US},
    story::Story,
    view::{JUMP, View},
};

/// How arrivals are delivered.
#[derive(Clone, Copy, Debug)]
pub struct Delivery {
    /// How they interleave.
    pub seed: u64,
    /// How often the sources say how far they are, nanoseconds; 0: never, everything is thought through at the end.
    pub step: u64,
    /// It breaks off with the last arrival; else the sources go on saying that nothing more happens.
    pub cut: bool,
}

impl Delivery {
    /// As a live run does it.
    pub const LIVE: Self = Self { seed: 1, step: 50 * MS, cut: false };
    /// As a recording is read: one source after the other, and all of it before anything is thought.
    pub const AT_ONCE: Self = Self { seed: 0, step: 0, cut: false };
}

/// Settings that every run shares.
#[must_use]
pub fn settings() -> Settings {
    Settings {
        limits: Limits::default(),
        clock: WallClock { offset_ns: 1_700_000_000_000_000_000 },
        statuses: vec![500, 502, 503, 504],
    }
}

const SOURCES: [Source; 5] = [Source::Probe, Source::Packet, Source::Kernel, Source::ErrorLog, Source::AccessLog];

/// Runs a world live: what the probe asks is looked up. Returns everything that arrived, answers included, and the judgements.
#[must_use]
pub fn live(story: &Story, view: &View) -> (Vec<Arrival>, Vec<Judged>) {
    let mut arrivals = view.see(story);
    let (answers, judged) = ask(story, view, &arrivals);
    arrivals.extend(answers);
    arrivals.sort_by_key(|arrival| arrival.at.latest);
    (arrivals, judged)
}

/// What the probe asks in this view, answered.
#[must_use]
pub fn answers(story: &Story, view: &View) -> Vec<Arrival> {
    ask(story, view, &view.see(story)).0
}

/// What is said in this view when these are the answers, whatever is asked. Two views can be compared when they learn the same at the same
/// time.
#[must_use]
pub fn said_with(story: &Story, view: &View, answers: &[Arrival]) -> Vec<Judged> {
    let mut arrivals = view.see(story);
    if view.sight(Sensor::Host) != Sight::Off {
        arrivals.extend(answers.iter().cloned());
    }
    arrivals.sort_by_key(|arrival| arrival.at.latest);
    replay(&arrivals, Delivery::LIVE)
}

fn ask(story: &Story, view: &View, arrivals: &[Arrival]) -> (Vec<Arrival>, Vec<Judged>) {
    let mut pipeline = Pipeline::new(settings());
    let mut answers: Vec<Arrival> = Vec::new();
    let judged = deliver(&mut pipeline, arrivals, Delivery::LIVE, |pipeline, watermark| {
        while let Some(question) = pipeline.poll_question() {
            // Looking takes its time, and the sources' delay lies between.
            let at = watermark + 20 * MS + 300 * US * (1 + u64::try_from(answers.len() % 7).unwrap_or(0));
            if let Some(answer) = view.answer(story, &question, at) {
                pipeline.push(answer.clone());
                answers.push(answer);
            }
        }
    });
    (answers, judged)
}

/// Runs what arrived once more, without asking anything.
#[must_use]
pub fn replay(arrivals: &[Arrival], delivery: Delivery) -> Vec<Judged> {
    replay_with(arrivals, delivery, settings())
}

/// Likewise, with these settings.
#[must_use]
pub fn replay_with(arrivals: &[Arrival], delivery: Delivery, settings: Settings) -> Vec<Judged> {
    deliver(&mut Pipeline::new(settings), arrivals, delivery, |_, _| {})
}

/// Delivers; `after` is called after every step with the moment that is complete.
pub fn deliver(
    pipeline: &mut Pipeline,
    arrivals: &[Arrival],
    delivery: Delivery,
    mut after: impl FnMut(&mut Pipeline, u64),
) -> Vec<Judged> {
    let mut dice = Dice::new(delivery.seed);
    let mut queues: Vec<VecDeque<&Arrival>> =
        SOURCES.iter().map(|source| arrivals.iter().filter(|arrival| arrival.source == *source).collect()).collect();
    let mut judged = Vec::new();
    let last = arrivals.iter().map(|arrival| arrival.at.latest.0).max().unwrap_or(0);
    let known_until = |watermark: u64| Moment(if delivery.cut { watermark.min(last) } else { watermark });
    if delivery.step > 0 {
        let mut watermark = next_of(&queues).unwrap_or(0);
        let mut quiet = 0;
        while let Some(next) = next_of(&queues) {
            if next > watermark + JUMP && quiet > JUMP {
                watermark = next - MS;
            } else {
                watermark += delivery.step;
                quiet = if next > watermark { quiet + delivery.step } else { 0 };
            }
            hand_over(pipeline, &mut queues, watermark, delivery.step, &mut dice);
            pipeline.advance(known_until(watermark));
            judged.extend(std::iter::from_fn(|| pipeline.poll_case()));
            after(pipeline, watermark);
        }
        for _ in 0..2 * JUMP / delivery.step {
            watermark += delivery.step;
            pipeline.advance(known_until(watermark));
            judged.extend(std::iter::from_fn(|| pipeline.poll_case()));
            after(pipeline, watermark);
        }
    }
    hand_over(pipeline, &mut queues, u64::MAX, 0, &mut dice);
    if !delivery.cut {
        pipeline.advance(Moment(last + 2 * JUMP));
    }
    pipeline.finish();
    judged.extend(std::iter::from_fn(|| pipeline.poll_case()));
    judged
}

fn next_of(queues: &[VecDeque<&Arrival>]) -> Option<u64> {
    queues.iter().filter_map(|queue| queue.front()).map(|arrival| arrival.at.latest.0).min()
}

/// Every source delivers what is due, and perhaps a little more; whose turn it is, is chance.
fn hand_over(pipeline: &mut Pipeline, queues: &mut [VecDeque<&Arrival>], watermark: u64, ahead: u64, dice: &mut Dice) {
    let limits: Vec<u64> = queues.iter().map(|_| watermark.saturating_add(dice.between(0, ahead))).collect();
    loop {
        let due = |index: usize| {
            let front = queues.get(index).and_then(|queue| queue.front());
            front.is_some_and(|arrival| limits.get(index).is_some_and(|limit| arrival.at.latest.0 <= *limit))
        };
        let open: Vec<usize> = (0..queues.len()).filter(|index| due(*index)).collect();
        let last = u64::try_from(open.len().saturating_sub(1)).unwrap_or(0);
        let chosen = usize::try_from(dice.between(0, last)).unwrap_or(0);
        let Some(queue) = open.get(chosen).and_then(|index| queues.get_mut(*index)) else { break };
        for _ in 0..dice.between(1, 8) {
            if let Some(arrival) =
                queue.front().filter(|arrival| arrival.at.latest.0 <= watermark.saturating_add(ahead))
            {
                pipeline.push((*arrival).clone());
                queue.pop_front();
            }
        }
    }
}

/// The same arrivals, all later by so many nanoseconds.
#[must_use]
pub fn later(arrivals: &[Arrival], ns: u64) -> Vec<Arrival> {
    let shift = |arrival: &Arrival| Arrival {
        at: At { earliest: arrival.at.earliest.plus_ns(ns), latest: arrival.at.latest.plus_ns(ns) },
        ..arrival.clone()
    };
    arrivals.iter().map(shift).collect()
}
