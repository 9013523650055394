//! From rounds to figures.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use super::contender::{Contender, Said};
use super::stage::Load;

/// One contender through one load, once.
#[derive(Debug, Clone)]
pub struct Round {
    /// CPU time of nginx's workers and the upstream's, nanoseconds.
    pub servers_ns: u64,
    /// CPU time of the watcher, nanoseconds.
    pub watcher_ns: u64,
    /// How long the load ran, seconds.
    pub seconds: f64,
    /// Answers.
    pub requests: u64,
    /// Answers whose status was no success.
    pub failed: u64,
    /// Median, 99th percentile, 99.9th, microseconds.
    pub latency_us: [u64; 3],
    /// The most memory the watcher held, bytes.
    pub peak_bytes: Option<u64>,
    /// What a probe counted.
    pub said: Option<Said>,
}

impl Round {
    /// CPU time a request, microseconds, the watcher's included.
    #[must_use]
    pub fn cpu_us(&self) -> f64 {
        ratio(self.servers_ns + self.watcher_ns, self.requests) / 1_000.0
    }

    /// The watcher's own CPU time a request, microseconds.
    #[must_use]
    pub fn watcher_us(&self) -> f64 {
        ratio(self.watcher_ns, self.requests) / 1_000.0
    }

    /// Requests a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        as_f64(self.requests) / self.seconds
    }

    /// The watcher's share of a processor, percent.
    #[must_use]
    pub fn watcher_percent(&self) -> f64 {
        as_f64(self.watcher_ns) / (self.seconds * 1e9) * 100.0
    }
}

impl Display for Round {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let (cpu, rate, share) = (self.cpu_us(), self.rate(), self.watcher_percent());
        write!(formatter, "{cpu:7.2} us a request, {rate:7.0} requests/s, watcher {share:5.1} % of a processor")?;
        match &self.said {
            Some(said) => {
                write!(formatter, ", {} of {} failures told, {} lost", said.incidents, self.failed, said.lost)
            }
            None => Ok(()),
        }
    }
}

/// Median and the quarter and three quarter points.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// A quarter of the rounds are below.
    pub low: f64,
    /// A quarter of the rounds are above.
    pub high: f64,
}

impl Spread {
    /// Of these values; `None` of none.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let at = |part: usize| values.get((values.len().checked_sub(1)?) * part / 4).copied();
        Some(Self { median: at(2)?, low: at(1)?, high: at(3)? })
    }
}

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The load.
    pub load: &'static str,
    /// Who watched.
    pub watcher: &'static str,
    /// Rounds that ended well.
    pub rounds: usize,
    /// CPU time a request, bare divided by watched, of the same round.
    pub cpu_ratio: Option<Spread>,
    /// Requests a second, watched divided by bare, of the same round.
    pub rate_ratio: Option<Spread>,
    /// CPU time a request, microseconds.
    pub cpu_us: Option<Spread>,
    /// The watcher's own part of it, microseconds.
    pub watcher_us: Option<Spread>,
    /// Requests a second.
    pub rate: Option<Spread>,
    /// The watcher's share of a processor, percent.
    pub watcher_percent: Option<Spread>,
    /// Medians of the latency's percentiles 50, 99 and 99.9, microseconds.
    pub latency_us: [Option<f64>; 3],
    /// The most memory the watcher ever held, bytes.
    pub peak_bytes: Option<u64>,
    /// Failures that the client saw, and that the probe told, over all rounds.
    pub failed: u64,
    /// See `failed`.
    pub told: Option<u64>,
    /// Records and packets the probe lost, over all rounds.
    pub lost: Option<u64>,
}

/// Everything that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Table {
    /// A line for each load and watcher.
    pub rows: Vec<Row>,
}

impl Table {
    /// Pairs every round with the bare run of the same round.
    #[must_use]
    pub fn of(measured: &BTreeMap<(Load, Contender), Vec<Option<Round>>>) -> Self {
        let rows = measured.iter().map(|((load, contender), rounds)| {
            let bare = measured.get(&(*load, Contender::Bare));
            let pairs: Vec<(&Round, &Round)> = rounds
                .iter()
                .enumerate()
                .filter_map(|(place, round)| Some((bare?.get(place)?.as_ref()?, round.as_ref()?)))
                .collect();
            let good: Vec<&Round> = rounds.iter().flatten().collect();
            let spread = |figure: fn(&Round) -> f64| Spread::of(good.iter().map(|round| figure(round)).collect());
            let latency = |place: usize| {
                Some(Spread::of(good.iter().map(|round| as_f64(round.latency_us[place])).collect())?.median)
            };
            let sum = |figure: fn(&Said) -> u64| {
                let said: Vec<&Said> = good.iter().filter_map(|round| round.said.as_ref()).collect();
                (!said.is_empty()).then(|| said.into_iter().map(figure).sum())
            };
            Row {
                load: load.name(),
                watcher: contender.name(),
                rounds: good.len(),
                cpu_ratio: Spread::of(pairs.iter().map(|(bare, round)| bare.cpu_us() / round.cpu_us()).collect()),
                rate_ratio: Spread::of(pairs.iter().map(|(bare, round)| round.rate() / bare.rate()).collect()),
                cpu_us: spread(Round::cpu_us),
                watcher_us: spread(Round::watcher_us),
                rate: spread(Round::rate),
                watcher_percent: spread(Round::watcher_percent),
                latency_us: [latency(0), latency(1), latency(2)],
                peak_bytes: good.iter().filter_map(|round| round.peak_bytes).max(),
                failed: good.iter().map(|round| round.failed).sum(),
                told: sum(|said| said.incidents),
                lost: sum(|said| said.lost),
            }
        });
        Self { rows: rows.collect() }
    }
}

impl Display for Table {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "{:9} {:18} {:>22} {:>22} {:>9} {:>9} {:>9} {:>8} {:>22} {:>8} {:>15} {:>6}",
            "load",
            "watcher",
            "bare/watched CPU",
            "watched/bare rate",
            "us/req",
            "its own",
            "req/s",
            "watcher",
            "p50/p99/p99.9 us",
            "peak MB",
            "told/failed",
            "lost"
        )?;
        for row in &self.rows {
            let spread = |spread: Option<Spread>| {
                spread.map_or("-".to_owned(), |s| format!("{:.3} ({:.3}-{:.3})", s.median, s.low, s.high))
            };
            let median = |spread: Option<Spread>, digits: usize| {
                spread.map_or("-".to_owned(), |spread| format!("{:.*}", digits, spread.median))
            };
            let latency: Vec<String> = row
                .latency_us
                .iter()
                .map(|value| value.map_or("-".to_owned(), |value| format!("{value:.0}")))
                .collect();
            let peak = row.peak_bytes.map_or("-".to_owned(), |bytes| format!("{:.0}", as_f64(bytes) / 1e6));
            let told = row.told.map_or("-".to_owned(), |told| format!("{told}/{}", row.failed));
            let lost = row.lost.map_or("-".to_owned(), |lost| lost.to_string());
            writeln!(
                formatter,
                "{:9} {:18} {:>22} {:>22} {:>9} {:>9} {:>9} {:>7}% {:>22} {:>8} {:>15} {:>6}",
                row.load,
                row.watcher,
                spread(row.cpu_ratio),
                spread(row.rate_ratio),
                median(row.cpu_us, 2),
                median(row.watcher_us, 2),
                median(row.rate, 0),
                median(row.watcher_percent, 1),
                latency.join("/"),
                peak,
                told,
                lost
            )?;
        }
        Ok(())
    }
}

fn ratio(part: u64, of: u64) -> f64 {
    as_f64(part) / as_f64(of)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people; 52 bits are enough of nanoseconds for a month")]
fn as_f64(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(servers_ns: u64, requests: u64) -> Round {
        Round {
            servers_ns,
            watcher_ns: 0,
            seconds: 1.0,
            requests,
            failed: 0,
            latency_us: [1, 2, 3],
            peak_bytes: None,
            said: None,
        }
    }

    #[test]
    fn rounds_are_paired_with_the_bare_run_of_the_same_round() {
        let mut measured = BTreeMap::new();
        measured.insert((Load::Fresh, Contender::Bare), vec![Some(round(100_000, 1)), Some(round(200_000, 1)), None]);
        measured.insert((Load::Fresh, Contender::Light), vec![Some(round(125_000, 1)), None, Some(round(999_000, 1))]);
        let table = Table::of(&measured);
        let light = table.rows.iter().find(|row| row.watcher == "probe502-light").expect("a row");
        let ratio = light.cpu_ratio.expect("one pair");
        assert!((ratio.median - 0.8).abs() < 1e-9, "{ratio:?}");
        assert_eq!(light.rounds, 2);
    }

    #[test]
    fn the_watchers_own_time_counts() {
        let watched = Round { watcher_ns: 50_000, ..round(100_000, 1) };
        assert!((watched.cpu_us() - 150.0).abs() < 1e-9);
    }

    #[test]
    fn of_nothing_there_is_no_spread() {
        assert_eq!(Spread::of(Vec::new()), None);
        let spread = Spread::of(vec![3.0, 1.0, 2.0]).expect("values");
        assert!((spread.median - 2.0).abs() < 1e-9);
    }
}
