//! Incidents counted and put together: by cause, by upstream, by what is alike, over time. What every form of the report begins with.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::json::{AttemptLine, Incident, Missing};

/// An incident with its time.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The incident.
    pub incident: &'a Incident,
    /// When nginx decided.
    pub time: Option<Timestamp>,
    /// Its position among all, from 0.
    pub number: usize,
}

impl Seen<'_> {
    /// The client was answered nevertheless.
    #[must_use]
    pub fn is_near_miss(&self) -> bool {
        self.incident.kind == "near_miss"
    }
}

/// From the first to the last of some incidents; `None` where no time is known.
pub type Span = Option<(Timestamp, Timestamp)>;

/// How many of one kind there are, and when.
#[derive(Clone, Debug, Default)]
pub struct Count {
    /// The cause, or the upstream.
    pub name: String,
    /// Gateway failures.
    pub incidents: usize,
    /// Near misses.
    pub near_misses: usize,
    /// How sure: confirmed, likely, possible.
    pub confidence: [usize; 3],
    /// The first and the last.
    pub span: Span,
    /// The causes and how often (of an upstream: also how attempts ended after which nginx tried again).
    pub causes: BTreeMap<String, usize>,
}

impl Count {
    /// Incidents and near misses.
    #[must_use]
    pub const fn all(&self) -> usize {
        self.incidents + self.near_misses
    }

    /// The causes, the most frequent first.
    #[must_use]
    pub fn ranked_causes(&self) -> Vec<(&str, usize)> {
        let mut causes: Vec<(&str, usize)> =
            self.causes.iter().map(|(cause, count)| (cause.as_str(), *count)).collect();
        causes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        causes
    }

    fn add(&mut self, seen: &Seen<'_>) {
        self.add_as(seen, seen.incident.verdict.cause.clone().into_owned());
    }

    fn add_as(&mut self, seen: &Seen<'_>, cause: String) {
        if seen.is_near_miss() {
            self.near_misses += 1;
        } else {
            self.incidents += 1;
        }
        if let Some(place) = CONFIDENCE.iter().position(|word| seen.incident.verdict.confidence == *word) {
            self.confidence[place] += 1;
        }
        self.span = widen(self.span, seen.time);
        *self.causes.entry(cause).or_default() += 1;
    }
}

/// The contract's words for how sure a verdict is, surest first.
pub const CONFIDENCE: [&str; 3] = ["confirmed", "likely", "possible"];

/// What incidents of a group have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Circumstances {
    /// The client was answered nevertheless.
    pub near_miss: bool,
    /// The cause.
    pub cause: String,
    /// Several causes are proved equally well.
    pub contested: bool,
    /// What the client saw.
    pub status: Option<u16>,
    /// The upstream whose failure it was: the last failing one's address, or the group's name.
    pub upstream: Option<String>,
    /// What became of that attempt.
    pub outcome: Option<String>,
    /// Its errno.
    pub errno: Option<String>,
}

/// Incidents of the same cause and circumstances.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// What they have in common.
    pub common: Circumstances,
    /// They, in the order of their time.
    pub members: Vec<Seen<'a>>,
    /// Their numbers.
    pub count: Count,
    /// How long their connections had been idle, milliseconds, in ascending order.
    pub idle_ms: Vec<f64>,
}

/// Everything counted.
#[derive(Clone, Debug)]
pub struct Digest<'a> {
    /// All of them, in the order of their time.
    pub all: Vec<Seen<'a>>,
    /// Their numbers.
    pub count: Count,
    /// By cause, the most frequent first.
    pub by_cause: Vec<Count>,
    /// By upstream, the most frequent first.
    pub by_upstream: Vec<Count>,
    /// Of the same cause and circumstances; failures before near misses, the most frequent first.
    pub groups: Vec<Group<'a>>,
    /// What could not be seen and would have been needed, and in how many cases; the most frequent first.
    pub missing: Vec<(Missing, usize)>,
    /// During how many incidents something was lost.
    pub lossy: usize,
    /// Where in `all` a case is, by its id.
    pub by_id: BTreeMap<&'a str, usize>,
}

/// What is told where nginx tried no upstream.
pub const NO_UPSTREAM: &str = "none was tried";

impl<'a> Digest<'a> {
    /// Counts incidents.
    #[must_use]
    pub fn of(incidents: &'a [Incident]) -> Self {
        let all: Vec<Seen<'a>> = incidents
            .iter()
            .enumerate()
            .map(|(number, incident)| Seen {
                incident,
                time: incident.time.as_deref().and_then(|time| time.parse().ok()),
                number,
            })
            .collect();
        let mut count = Count::default();
        let mut by_cause: BTreeMap<String, Count> = BTreeMap::new();
        let mut by_upstream: BTreeMap<String, Count> = BTreeMap::new();
        let mut groups: BTreeMap<Circumstances, Vec<Seen<'a>>> = BTreeMap::new();
        let mut missing: BTreeMap<(Option<String>, String), usize> = BTreeMap::new();
        let mut lossy = 0;
        for seen in &all {
            let incident = seen.incident;
            count.add(seen);
            by_cause.entry(incident.verdict.cause.clone().into_owned()).or_default().add(seen);
            for (upstream, what) in self::by_upstream(incident) {
                by_upstream.entry(upstream).or_default().add_as(seen, what);
            }
            groups.entry(circumstances(seen)).or_default().push(*seen);
            let needs: BTreeSet<_> = incident.verdict.missing.iter().map(|need| (&need.sensor, &need.what)).collect();
            for (sensor, what) in needs {
                *missing.entry((sensor.clone().map(Into::into), what.clone())).or_default() += 1;
            }
            lossy += usize::from(incident.losses.events_lost > 0 || incident.losses.packets_dropped > 0);
        }
        let mut groups: Vec<Group<'a>> = groups.into_iter().map(|(common, members)| group(common, members)).collect();
        groups.sort_by(|a, b| {
            let key = |group: &Group<'_>| (group.common.near_miss, std::cmp::Reverse(group.members.len()));
            key(a).cmp(&key(b)).then_with(|| a.count.span.map(|span| span.0).cmp(&b.count.span.map(|span| span.0)))
        });
        let mut missing: Vec<(Missing, usize)> = missing
            .into_iter()
            .map(|((sensor, what), times)| (Missing { sensor: sensor.map(Into::into), what }, times))
            .collect();
        missing.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
        let by_id = all.iter().map(|seen| (seen.incident.id.as_str(), seen.number)).collect();
        Self { by_id, by_cause: ranked(by_cause), by_upstream: ranked(by_upstream), all, count, groups, missing, lossy }
    }
}

/// The attempts that failed.
pub fn failing(incident: &Incident) -> impl Iterator<Item = &AttemptLine> {
    incident.attempts.iter().filter(|attempt| attempt.outcome != "ok")
}

/// The attempt that the verdict is about: the last; of a near miss the last that failed, or that the upstream itself answered with 502.
#[must_use]
pub fn judged(incident: &Incident) -> Option<&AttemptLine> {
    if incident.kind != "near_miss" {
        return incident.attempts.last();
    }
    let refused = |attempt: &&AttemptLine| attempt.status == Some(502);
    failing(incident).last().or_else(|| incident.attempts.iter().rfind(refused)).or(incident.attempts.last())
}

/// The upstreams of a case, each with what became of it there: the verdict's cause, or how an attempt ended after which nginx went on.
fn by_upstream(incident: &Incident) -> BTreeMap<String, String> {
    let name = |attempt: &AttemptLine| attempt.upstream.clone().or_else(|| attempt.peer.clone());
    let retried = |attempt: &AttemptLine| Some((name(attempt)?, format!("{} (tried again)", attempt.outcome)));
    let mut found: BTreeMap<String, String> = failing(incident).filter_map(retried).collect();
    let about = judged(incident).and_then(name).unwrap_or_else(|| NO_UPSTREAM.to_owned());
    found.insert(about, incident.verdict.cause.clone().into_owned());
    found
}

fn circumstances(seen: &Seen<'_>) -> Circumstances {
    let incident = seen.incident;
    let failed = judged(incident);
    Circumstances {
        near_miss: seen.is_near_miss(),
        cause: incident.verdict.cause.clone().into_owned(),
        contested: incident.verdict.contested,
        status: incident.status,
        upstream: failed.and_then(|attempt| attempt.upstream.clone().or_else(|| attempt.peer.clone())),
        outcome: failed.map(|attempt| attempt.outcome.clone().into_owned()),
        errno: failed.and_then(|attempt| attempt.errno.clone()),
    }
}

fn group(common: Circumstances, members: Vec<Seen<'_>>) -> Group<'_> {
    let mut count = Count { name: common.cause.clone(), ..Count::default() };
    let mut idle_ms = Vec::new();
    for seen in &members {
        count.add(seen);
        idle_ms.extend(judged(seen.incident).and_then(|attempt| attempt.idle_ms).filter(|idle| idle.is_finite()));
    }
    idle_ms.sort_by(f64::total_cmp);
    Group { common, members, count, idle_ms }
}

fn ranked(counts: BTreeMap<String, Count>) -> Vec<Count> {
    let mut rows: Vec<Count> = counts.into_iter().map(|(name, count)| Count { name, ..count }).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.all()));
    rows
}

fn widen(span: Span, time: Option<Timestamp>) -> Span {
    match (span, time) {
        (Some((first, last)), Some(time)) => Some((first.min(time), last.max(time))),
        (None, Some(time)) => Some((time, time)),
        (span, None) => span,
    }
}

/// A length of time as people say it: `350 µs`, `6.2 ms`, `42 ms`, `3.5 s`, `4 min 2 s`, `2 h 5 min`, `3 d 4 h`.
#[must_use]
pub fn length(ns: i128) -> String {
    let (us, s) = (ns / 1_000, ns / 1_000_000_000);
    match us.unsigned_abs() {
        0..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        10_000..1_000_000 => format!("{} ms", us / 1_000),
        1_000_000..60_000_000 => format!("{}.{} s", s, (us % 1_000_000) / 100_000),
        60_000_000..3_600_000_000 => format!("{} min {} s", s / 60, s % 60),
        3_600_000_000..172_800_000_000 => format!("{} h {} min", s / 3_600, s % 3_600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::collection::Collection;

    fn incidents() -> Collection {
        let mut all = Collection::default();
        for (number, (cause, upstream, kind)) in [
            ("keepalive-race", "10.0.0.1:80", "incident"),
            ("upstream-refused", "10.0.0.1:80", "incident"),
            ("keepalive-race", "10.0.0.1:80", "incident"),
            ("keepalive-race", "10.0.0.2:80", "incident"),
            ("keepalive-race", "10.0.0.1:80", "near_miss"),
        ]
        .into_iter()
        .enumerate()
        {
            let line = format!(
                r#"{{"type":"{kind}","schema":1,"id":"{number}","time":"2026-11-21T10:00:0{number}Z","status":502,
                "attempts":[{{"upstream":"{upstream}","outcome":"closed","idle_ms":{}}}],
                "verdict":{{"cause":"{cause}","confidence":"confirmed","missing":[{{"sensor":"packets","what":"w"}}]}}}}"#,
                5000 - number
            );
            assert!(all.read("x", &line), "{:?}", all.troubles);
        }
        all
    }

    #[test]
    fn alike_incidents_are_together_and_the_most_frequent_first() {
        let all = incidents();
        let digest = Digest::of(all.incidents());
        assert_eq!((digest.count.incidents, digest.count.near_misses), (4, 1));
        let causes: Vec<(&str, usize)> = digest.by_cause.iter().map(|row| (row.name.as_str(), row.all())).collect();
        assert_eq!(causes, [("keepalive-race", 4), ("upstream-refused", 1)]);
        let upstreams: Vec<(&str, usize)> =
            digest.by_upstream.iter().map(|row| (row.name.as_str(), row.all())).collect();
        assert_eq!(upstreams, [("10.0.0.1:80", 4), ("10.0.0.2:80", 1)]);
        let sizes: Vec<(bool, usize)> =
            digest.groups.iter().map(|group| (group.common.near_miss, group.members.len())).collect();
        assert_eq!(sizes, [(false, 2), (false, 1), (false, 1), (true, 1)]);
        assert_eq!(digest.groups[0].idle_ms, [4998.0, 5000.0]);
        assert_eq!(digest.missing.len(), 1);
        assert_eq!(digest.missing[0].1, 5);
        let (first, last) = digest.count.span.unwrap();
        assert_eq!(length(last.as_nanosecond() - first.as_nanosecond()), "4.0 s");
    }

    #[test]
    fn a_case_counts_for_each_upstream_with_what_became_of_it_there() {
        let mut all = Collection::default();
        for (kind, cause, attempts) in [
            ("incident", "read-timeout", [("10.0.0.1:80", "refused", 502), ("10.0.0.2:80", "timeout-read", 504)]),
            ("near_miss", "upstream-sent-502", [("10.0.0.1:80", "ok", 502), ("10.0.0.2:80", "ok", 200)]),
        ] {
            let [one, other] = attempts.map(|(upstream, outcome, status)| {
                format!(r#"{{"upstream":"{upstream}","outcome":"{outcome}","status":{status}}}"#)
            });
            let line = format!(
                r#"{{"type":"{kind}","schema":1,"id":"{kind}","attempts":[{one},{other}],"verdict":{{"cause":"{cause}"}}}}"#
            );
            assert!(all.read("x", &line), "{:?}", all.troubles);
        }
        let digest = Digest::of(all.incidents());
        let rows: Vec<(&str, Vec<(&str, usize)>)> =
            digest.by_upstream.iter().map(|row| (row.name.as_str(), row.ranked_causes())).collect();
        let first = vec![("refused (tried again)", 1), ("upstream-sent-502", 1)];
        assert_eq!(rows, [("10.0.0.1:80", first), ("10.0.0.2:80", vec![("read-timeout", 1)])]);
    }

    #[test]
    fn lengths_are_as_people_say_them() {
        let said: Vec<String> =
            [350_000, 42_000_000, 3_500_000_000, 242_000_000_000, 7_500_000_000_000, 273_600_000_000_000]
                .into_iter()
                .map(length)
                .collect();
        assert_eq!(said, ["350 µs", "42 ms", "3.5 s", "4 min 2 s", "2 h 5 min", "3 d 4 h"]);
    }
}
