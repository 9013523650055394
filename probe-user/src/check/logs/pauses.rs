//! Pauses before failures: the shape of a keepalive race in an access log.
//!
//! nginx's log does not say how long a connection had been idle. But as long as nobody asked an upstream anything, every connection to it
//! was idle: a request that fails at once after such a pause, where those after shorter pauses do not, met a connection that the upstream
//! was closing.

use std::collections::BTreeMap;

use super::ago;
use crate::check::{
    finding::{Area, Finding, Weight},
    seen::AccessSeen,
};

/// An attempt that fails later than this was not refused at once.
const AT_ONCE_MS: u64 = 50;
/// A pause is at least this long: shorter ones are ordinary, and the log may have no more than whole seconds.
const PAUSE_MS: i64 = 1_000;
/// Fewer failures are no pattern.
const ENOUGH: usize = 3;

/// One attempt at an upstream, as the log tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The upstream's address.
    pub upstream: String,
    /// When the request ended, milliseconds on any clock.
    pub ended_ms: i64,
    /// How long the whole request took.
    pub request_ms: u64,
    /// How long this attempt took.
    pub attempt_ms: u64,
    /// Its status was 502.
    pub failed: bool,
}

/// What became of requests after pauses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pauses {
    /// Requests that failed at once, each after a pause.
    pub failures: usize,
    /// The shortest and the longest pause before one, milliseconds.
    pub span_ms: (i64, i64),
    /// Requests after shorter pauses; none of them failed.
    pub shorter: usize,
    /// Requests after pauses as long that did not fail.
    pub longer: usize,
    /// The last failure, milliseconds on the clock of [`Taken::ended_ms`].
    pub last_ms: i64,
}

/// Finds upstreams that fail at once after pauses, and not otherwise.
#[must_use]
pub fn pauses(taken: Vec<Taken>) -> BTreeMap<String, Pauses> {
    let mut by_upstream: BTreeMap<String, Vec<(i64, i64, bool)>> = BTreeMap::new();
    for one in taken {
        let began = one.ended_ms.saturating_sub(i64::try_from(one.request_ms).unwrap_or(i64::MAX));
        let at_once = one.failed && one.attempt_ms <= AT_ONCE_MS;
        // Other failures say nothing about idle connections, in either direction; the upstream was busy with them all the same.
        by_upstream.entry(one.upstream).or_default().push((began, one.ended_ms, at_once));
    }
    let found = by_upstream.into_iter().filter_map(|(upstream, mut all)| {
        all.sort_unstable();
        Some((upstream, of_one(&all)?))
    });
    found.collect()
}

fn of_one(all: &[(i64, i64, bool)]) -> Option<Pauses> {
    let mut busy_until: Option<i64> = None;
    let (mut failures, mut healthy) = (Vec::new(), Vec::new());
    let mut last_ms = i64::MIN;
    for (began, ended, failed) in all {
        // Before the first request of the log nobody knows how long nobody asked.
        if let Some(until) = busy_until {
            let pause = began.saturating_sub(until);
            if *failed {
                failures.push(pause);
                last_ms = last_ms.max(*ended);
            } else {
                healthy.push(pause);
            }
        }
        busy_until = Some(busy_until.map_or(*ended, |until| until.max(*ended)));
    }
    let (shortest, longest) = (*failures.iter().min()?, *failures.iter().max()?);
    let shorter = healthy.iter().filter(|pause| **pause < shortest).count();
    // Without requests after shorter pauses that did well, an upstream that always fails would look the same.
    let is_pattern = failures.len() >= ENOUGH && shortest >= PAUSE_MS && shorter >= failures.len();
    is_pattern.then(|| Pauses {
        failures: failures.len(),
        span_ms: (shortest, longest),
        shorter,
        longer: healthy.len() - shorter,
        last_ms,
    })
}

/// Tells of each.
pub(super) fn judge(log: &AccessSeen) -> Vec<Finding> {
    let seconds = |ms: i64| format!("{}.{} s", ms / 1_000, ms % 1_000 / 100);
    let each = log.pauses.iter().map(|(upstream, pauses)| {
        let (shortest, longest) = pauses.span_ms;
        let title = format!("{upstream} fails at once after a pause of {} or more, and not otherwise", seconds(shortest));
        Finding::new(Weight::Risk, Area::Logs, Some("keepalive-race"), upstream, title)
            .seen(format!(
                "{}: {} requests failed at once, after {} to {} in which nobody asked it; the last {}",
                log.path,
                pauses.failures,
                seconds(shortest),
                seconds(longest),
                ago(pauses.last_ms / -1_000)
            ))
            .seen(format!(
                "after shorter pauses {} requests, of which none failed so; after longer ones {} did not fail",
                pauses.shorter, pauses.longer
            ))
            .why("It looks as if the upstream closes idle connections about then, and nginx sends on one that is just being closed. The log alone does not prove it.")
            .fix("let nginx drop idle connections sooner than the upstream: `keepalive_timeout` in the upstream block below that pause; or raise the upstream's own")
            .fix("`probe502 check --measure-idle` measures it; `probe502 watch` proves it with the next one")
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests as pairs of the pause before them and whether they fail at once.
    fn log(requests: &[(i64, bool)]) -> Vec<Taken> {
        let mut now = 0;
        let each = requests.iter().map(|(pause, failed)| {
            now += pause + 10;
            Taken { upstream: "10.0.0.1:80".to_owned(), ended_ms: now, request_ms: 10, attempt_ms: 1, failed: *failed }
        });
        each.collect()
    }

    fn found(requests: &[(i64, bool)]) -> Option<Pauses> {
        pauses(log(requests)).remove("10.0.0.1:80")
    }

    #[test]
    fn failures_after_pauses_are_a_pattern() {
        let race = [
            (0, false),
            (100, false),
            (5_100, true),
            (200, false),
            (7_000, true),
            (30, false),
            (5_900, false),
            (6_000, true),
        ];
        let expected = Pauses { failures: 3, span_ms: (5_100, 7_000), shorter: 3, longer: 1, last_ms: 24_410 };
        assert_eq!(found(&race), Some(expected));
    }

    #[test]
    fn what_is_none() {
        assert_eq!(found(&[(0, true), (5_000, true), (6_000, true), (7_000, true)]), None, "it always fails");
        assert_eq!(
            found(&[(0, false), (10, false), (10, false), (10, false), (5_000, true), (6_000, true)]),
            None,
            "too few"
        );
        let also_at_once =
            [(0, false), (9, false), (9, false), (9, false), (5_000, true), (6_000, true), (7_000, true), (3, true)];
        assert_eq!(found(&also_at_once), None, "one failed without a pause");
        let slow: Vec<Taken> =
            log(&[(0, false), (9, false), (9, false), (9, false), (5_000, true), (6_000, true), (7_000, true)])
                .into_iter()
                .map(|one| Taken { attempt_ms: 2_000, ..one })
                .collect();
        assert_eq!(pauses(slow), BTreeMap::new(), "they took their time");
    }

    #[test]
    fn a_request_that_is_still_being_answered_is_no_pause() {
        let mut taken =
            log(&[(0, false), (9, false), (9, false), (9, false), (5_000, true), (6_000, true), (7_000, true)]);
        // One long answer over all of them.
        let long = Taken {
            upstream: "10.0.0.1:80".into(),
            ended_ms: 60_000,
            request_ms: 60_000,
            attempt_ms: 60_000,
            failed: false,
        };
        taken.push(long);
        assert_eq!(pauses(taken), BTreeMap::new());
    }
}
