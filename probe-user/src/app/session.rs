//! A running watch: what it says of itself, and what it counts.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write as _},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::{
    AppError,
    output::{self, Form, SharedTally},
};
use crate::{
    cli::plan::Watch,
    live::{
        clock,
        delivery::Delivery,
        ebpf::Losses,
        follow::{CaptureNews, Change, Followers},
        logs::CutOff,
        marks::Mark,
        privilege::{self, Account},
        scope::Depth,
        sources::{self, Counts},
        thinker::Intake,
    },
    model::{
        coverage::{Coverage, Sensor, Sight},
        event::{Body, Source},
        time::{At, Moment},
    },
    pipeline::{Arrival, CROWDED},
    redact::Level,
    report::json,
};

/// A loss is told in pieces no longer than this: well within the time that a case waits for its late evidence.
const PIECE_NS: u64 = 50_000_000;
/// And in so many at most.
const PIECES: u64 = 200;

/// With `--depth auto`, how long the depth stays standard after a failure that light could not prove.
const DEEPER: Duration = Duration::from_mins(1);

/// How long it is not asked what was lost while nothing is delivered.
const UNASKED_NS: u64 = 1_000_000_000;

/// A running watch.
pub(super) struct Session<'a> {
    pub(super) plan: &'a Watch,
    pub(super) form: Form,
    pub(super) followers: Followers,
    pub(super) intake: Intake,
    pub(super) counts: Arc<Counts>,
    pub(super) tally: SharedTally,
    pub(super) losses: Losses,
    /// With `--depth auto`: until when the depth is standard.
    pub(super) deeper_until: Option<tokio::time::Instant>,
    /// Events for which the kernel did not run our programs.
    pub(super) missed: BTreeMap<String, u64>,
    /// Up to when it was asked what was lost.
    pub(super) counted: Mark,
    pub(super) crowded_out: u64,
    pub(super) forgotten: u64,
    pub(super) strange_accesses: u64,
    /// Deliveries when it was asked last what was lost.
    pub(super) deliveries: usize,
    /// Losses that nobody was told of yet, by what they are.
    pub(super) unsaid: BTreeMap<&'static str, (u64, At)>,
    pub(super) packets_dropped: u64,
    pub(super) checked: Moment,
    pub(super) progress: bool,
    /// A recording is made.
    pub(super) records: bool,
}

/// A case waits for its late evidence (a fifth of a second and more): it need not be known sooner what was lost, nanoseconds.
const LOSSES_WANTED_NS: u64 = 150_000_000;

impl<'a> Session<'a> {
    /// Nothing is watched yet.
    pub(super) fn new(
        plan: &'a Watch,
        form: Form,
        followers: Followers,
        intake: Intake,
        counts: Arc<Counts>,
        tally: SharedTally,
        records: bool,
    ) -> Self {
        Self {
            plan,
            form,
            followers,
            counts,
            tally,
            losses: Losses::default(),
            deeper_until: None,
            missed: BTreeMap::new(),
            counted: intake.mark(LOSSES_WANTED_NS),
            intake,
            crowded_out: 0,
            forgotten: 0,
            strange_accesses: 0,
            deliveries: 0,
            unsaid: BTreeMap::new(),
            packets_dropped: 0,
            checked: clock::now(),
            records,
            progress: !plan.output.quiet && io::stderr().is_terminal(),
        }
    }
}

impl Session<'_> {
    /// The first look, whose findings are told by `ready`; after it every right is given up if it is to be given up.
    pub(super) fn begin(&mut self, account: Option<Account>) -> Result<(), AppError> {
        self.followers.look_first().map_err(AppError::host)?;
        account.map_or(Ok(()), |account| self.retire(account))?;
        self.ready();
        Ok(())
    }

    /// Whether another look is due by itself.
    pub(super) fn is_rested(&self) -> bool {
        self.followers.census.is_rested()
    }

    /// An nginx came, or its children changed.
    pub(super) fn look_closely(&mut self) -> Result<(), AppError> {
        self.followers.census.forget();
        self.look()
    }

    pub(super) fn look(&mut self) -> Result<(), AppError> {
        for change in self.followers.look().map_err(AppError::host)? {
            let (what, text) = match change {
                Change::Appeared(instance) => ("nginx-appeared", format!("nginx {} is watched too", instance.master)),
                Change::Changed(instance) => {
                    let workers: Vec<String> = instance.workers.iter().map(ToString::to_string).collect();
                    ("nginx-changed", format!("nginx {} has workers {}", instance.master, workers.join(", ")))
                }
                Change::Gone(pid) => ("nginx-gone", format!("nginx {pid} is gone")),
            };
            self.notice(what, 1, &text);
        }
        Ok(())
    }

    /// A failure was told of which a greater depth would have told more.
    pub(super) fn deepen(&mut self) {
        if !self.plan.depth_auto || self.deeper_until.is_some() {
            return;
        }
        self.followers.set_depth(Depth::Standard);
        self.deeper_until = Some(tokio::time::Instant::now() + DEEPER);
        let text = format!(
            "depth standard for {} s: light could not prove the cause of a failure, and the next may be like it",
            DEEPER.as_secs()
        );
        self.notice("depth", 1, &text);
    }

    /// That time is over.
    pub(super) fn end_deeper(&mut self) {
        self.deeper_until = None;
        self.followers.set_depth(Depth::Light);
        self.notice("depth", 1, "depth light again");
    }

    /// Gives up every right, for good.
    fn retire(&mut self, account: Account) -> Result<(), AppError> {
        let followers = &mut self.followers;
        let readable = || followers.kernel().is_none_or(|kernel| kernel.losses().is_ok());
        let all = privilege::retire(account, readable)
            .context("cannot give up the rights that are not needed any more")
            .map_err(AppError::host)?;
        let (user, _) = account.numbers();
        let kept = if all {
            "without any capability"
        } else {
            "with CAP_BPF alone (this kernel reads maps of kernel programs only for those who may load them)"
        };
        let text = format!(
            "goes on as user {user} {kept}: an nginx that starts later, upstreams and logs that a reload adds, and who listens on this \
             host are not looked at (--no-follow)"
        );
        self.notice("rights-given-up", 1, &text);
        Ok(())
    }

    pub(super) fn is_enough(&self) -> bool {
        self.report_trouble();
        let incidents = output::with(&self.tally, |tally| tally.incidents);
        self.plan.count.is_some_and(|count| incidents >= count)
    }

    fn ready(&self) {
        let nginx: Vec<json::ReadyNginx> = self.followers.instances().map(json::ReadyNginx::from).collect();
        if self.form.json {
            let sources = self
                .followers
                .sensors()
                .map(|(sensor, sight, why)| json::ReadySource {
                    name: sensor.name().to_owned(),
                    state: json::sight(sight),
                    why: why.map(str::to_owned),
                })
                .collect();
            let ready = json::Ready { version: env!("CARGO_PKG_VERSION").to_owned(), nginx, sources };
            // A reader that is gone is noticed with the first incident.
            let _ = output::print(&json::line(&ready));
        }
        if self.plan.redaction == Level::None {
            let kept = if self.records { ", and recorded," } else { "" };
            let files = if self.plan.out.is_some() { " Packets are written as they are." } else { "" };
            let text = format!(
                "NOT REDACTED (--no-redact): query values are printed{kept} as nginx and its clients sent them, with cookies, \
                 authorization and the first bytes of bodies in whatever packets and log lines are kept.{files}"
            );
            self.notice("not-redacted", 1, &text);
        }
        if self.plan.output.quiet {
            return;
        }
        let mut lines = Vec::new();
        if self.plan.depth_auto {
            lines.push("depth auto: light until a failure that light cannot prove".to_owned());
        }
        if !self.form.json {
            for instance in self.followers.instances() {
                let workers: Vec<String> = instance.workers.iter().map(ToString::to_string).collect();
                let version = instance.version.as_deref().unwrap_or("of unknown version");
                lines.push(format!(
                    "watching nginx {version}, master {}, workers {}",
                    instance.master,
                    workers.join(", ")
                ));
            }
            for (sensor, sight, why) in self.followers.sensors() {
                let expected = why.is_some_and(|why| why.starts_with("not "));
                if sight != Sight::On && !expected {
                    let how = if sight == Sight::Off { "off" } else { "degraded" };
                    lines.push(format!("{sensor} is {how}: {}", why.unwrap_or("no reason is known")));
                }
            }
            lines.extend(self.followers.gaps().map(|(pid, gap)| format!("nginx {pid}: not learnt: {gap}")));
        }
        for line in lines {
            let _ = writeln!(io::stderr(), "probe502: {line}");
        }
    }

    /// What was lost since the last look becomes coverage: often enough that nobody is judged before it is known what was lost meanwhile.
    pub(super) fn count_losses(&mut self) {
        let now = clock::now();
        let span = At::between(self.checked, now);
        self.checked = now;
        let losses = self.followers.kernel().and_then(|kernel| kernel.losses().ok()).unwrap_or(self.losses);
        // One that cannot be asked any more has not taken anything back.
        let missed = self.followers.kernel().map(|kernel| kernel.misses()).unwrap_or_default();
        let unreadable = self.counts.unreadable.load(Ordering::Relaxed);
        let crowded_out = self.counts.crowded_out.load(Ordering::Relaxed) + unreadable;
        let strange = self.counts.strange_accesses.load(Ordering::Relaxed);
        let dropped = self.followers.packet_statistics().dropped();
        let mut news = vec![
            (None, losses.ring_full - self.losses.ring_full, "kernel records found the ring full"),
            (
                None,
                losses.map_full - self.losses.map_full,
                "connections or processes could not be watched: a map is full",
            ),
            (
                None,
                crowded_out - self.crowded_out,
                "records came faster than they could be thought about, or could not be read",
            ),
            (
                Some(Sensor::NginxFunctions),
                losses.read_failed - self.losses.read_failed,
                "words of nginx could not be read whole from its memory",
            ),
            (
                Some(Sensor::AccessLog),
                strange - self.strange_accesses,
                "lines of an access log are not in the form of its log_format",
            ),
            (Some(Sensor::Packets), dropped - self.packets_dropped, "packets were dropped by the capture"),
        ];
        for (program, count) in missed {
            let sensor = sources::only_sensor_of(&program);
            let known = self.missed.entry(program).or_default();
            let why =
                "events were not told, because the kernel was at work on another of their kind when they happened";
            news.push((sensor, count.saturating_sub(*known), why));
            *known = count.max(*known);
        }
        (self.losses, self.crowded_out, self.packets_dropped) = (losses, crowded_out, dropped);
        self.strange_accesses = strange;
        for (sensor, count, why) in news.into_iter().filter(|(_, count, _)| *count > 0) {
            self.intake.deliver(Delivery::Arrivals(lost(span, sensor, count, why)));
            self.will_say(count, why, span);
        }
        // The thinking thread knows it before anybody, and the cases say it already.
        let forgotten = self.counts.forgotten.load(Ordering::Relaxed);
        self.will_say(forgotten - self.forgotten, CROWDED, span);
        self.forgotten = forgotten;
        self.counted.set(now);
    }

    fn will_say(&mut self, count: u64, why: &'static str, span: At) {
        if count > 0 {
            let (sum, when) = self.unsaid.entry(why).or_insert((0, span));
            *sum += count;
            when.latest = span.latest;
        }
    }

    /// The same where anything was delivered since, and at least once a second.
    ///
    /// Nobody is judged while nothing is delivered, and asking the kernel eight times a second would then be most of what the program
    /// does. What was lost meanwhile is told with the next delivery, for all of that time.
    pub(super) fn count_losses_if_due(&mut self) {
        self.look_after_sources();
        let (now, deliveries) = (clock::now(), self.intake.deliveries());
        if deliveries == self.deliveries && now.since_ns(self.checked) < UNASKED_NS {
            self.counted.set(now);
            return;
        }
        self.deliveries = deliveries;
        self.count_losses();
    }

    /// Captures whose interface went away, logs that were cut off.
    fn look_after_sources(&mut self) {
        for CutOff { sensor, path, span } in self.followers.cut_off_logs() {
            let lost = Coverage::Lost { sensor: Some(sensor), count: 1, why: "the log was cut off".to_owned() };
            let arrival = Arrival { at: span, source: Source::Probe, body: Body::Coverage(lost) };
            self.intake.deliver(Delivery::Arrivals(vec![arrival]));
            let text = format!("{path} was cut off: lines written to it {} may be lost", spoken(span));
            self.notice("log-truncated", 1, &text);
        }
        for news in self.followers.look_after_captures() {
            match news {
                CaptureNews::Ended { interface, why } => {
                    let text = format!("packets on {interface} are not captured any more: {why}");
                    self.notice("capture-ended", 1, &text);
                }
                CaptureNews::Resumed { interfaces, missed } => {
                    let missed = missed.map(|span| format!("; what passed {} was not seen", spoken(span)));
                    let text =
                        format!("packets are captured on {}{}", interfaces.join(", "), missed.unwrap_or_default());
                    self.notice("capture-resumed", 1, &text);
                }
            }
        }
    }

    /// Says what was lost since it was said last.
    pub(super) fn tell_losses(&mut self) {
        for (why, (count, span)) in std::mem::take(&mut self.unsaid) {
            self.notice("lost", count, &format!("{count} {why}, {}", spoken(span)));
        }
    }

    pub(super) fn events_lost(&self) -> u64 {
        self.losses.ring_full
            + self.losses.map_full
            + self.missed.values().sum::<u64>()
            + self.crowded_out
            + self.forgotten
    }

    pub(super) fn report_trouble(&self) {
        for text in output::with(&self.tally, |tally| std::mem::take(&mut tally.trouble)) {
            self.notice("not-written", 1, &text);
        }
    }

    fn notice(&self, what: &str, count: u64, text: &str) {
        if self.form.json {
            let notice = json::Notice { what: what.to_owned(), count, text: text.to_owned() };
            let _ = output::print(&json::line(&notice));
        }
        if !self.plan.output.quiet {
            self.hide_progress();
            let _ = writeln!(io::stderr(), "probe502: {text}");
        }
    }

    pub(super) fn show_progress(&mut self) {
        if !self.progress {
            return;
        }
        let (incidents, near_misses) = output::with(&self.tally, |tally| (tally.incidents, tally.near_misses));
        let lost = self.events_lost() + self.packets_dropped;
        let _ = write!(
            io::stderr(),
            "\r\x1b[K{incidents} failed, {near_misses} near misses, {lost} records or packets lost"
        );
        let _ = io::stderr().flush();
    }

    pub(super) fn hide_progress(&self) {
        if self.progress {
            let _ = write!(io::stderr(), "\r\x1b[K");
            let _ = io::stderr().flush();
        }
    }

    pub(super) fn summary(&self, started: Instant) {
        let tally = output::with(&self.tally, |tally| tally.clone());
        let seconds = started.elapsed().as_secs_f64();
        if self.form.json {
            let summary = json::Summary {
                incidents: tally.incidents,
                near_misses: tally.near_misses,
                folded: tally.folded,
                by_cause: tally.by_cause,
                events_lost: self.events_lost(),
                packets_dropped: self.packets_dropped,
                duration_s: (seconds * 1_000.0).round() / 1_000.0,
            };
            let _ = output::print(&json::line(&summary));
        } else if !self.plan.output.quiet {
            let causes: Vec<String> = tally.by_cause.iter().map(|(cause, count)| format!("{count} {cause}")).collect();
            let folded = match tally.folded {
                0 => String::new(),
                count => format!(" ({count} of them counted only: they are like others)"),
            };
            let _ = writeln!(
                io::stderr(),
                "probe502: {} incidents, {} near misses{folded} in {seconds:.1} s{}{}; {} records and {} packets lost",
                tally.incidents,
                tally.near_misses,
                if causes.is_empty() { "" } else { ": " },
                causes.join(", "),
                self.events_lost(),
                self.packets_dropped,
            );
        }
    }
}

/// From when to when.
fn spoken(span: At) -> String {
    let clock = clock::wall();
    let time = |moment| json::rfc3339(clock, moment).unwrap_or_else(|| "a time unknown".to_owned());
    format!("from {} to {}", time(span.earliest), time(span.latest))
}

/// A loss as the stream is told it. It has its place where its time ends, and a case that closes before that does not hear of it: where
/// nobody could ask for long, it is told piece by piece. When in the span the records were lost is not known, so each piece has its share, and
/// one at least.
fn lost(span: At, sensor: Option<Sensor>, count: u64, why: &str) -> Vec<Arrival> {
    let (from, to) = (span.earliest, span.latest);
    let whole_ns = to.since_ns(from);
    let pieces = whole_ns.div_ceil(PIECE_NS).clamp(1, PIECES);
    let ends = |piece: u64| from.plus_ns(whole_ns / pieces * piece);
    (0..pieces)
        .map(|piece| {
            let count = (count / pieces + u64::from(piece < count % pieces)).max(1);
            let body = Body::Coverage(Coverage::Lost { sensor, count, why: why.to_owned() });
            let end = if piece + 1 == pieces { to } else { ends(piece + 1) };
            Arrival { at: At::between(ends(piece), end), source: Source::Probe, body }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn told(from: u64, to: u64, count: u64) -> Vec<(u64, u64, u64)> {
        let piece = |arrival: Arrival| match arrival.body {
            Body::Coverage(Coverage::Lost { count, .. }) => {
                (arrival.at.earliest.0 / MS, arrival.at.latest.0 / MS, count)
            }
            other => panic!("{other:?}"),
        };
        lost(At::between(Moment(from * MS), Moment(to * MS)), None, count, "a test").into_iter().map(piece).collect()
    }

    #[test]
    fn a_loss_is_told_before_the_cases_of_its_time_close() {
        assert_eq!(told(1_000, 1_050, 7), [(1_000, 1_050, 7)]);
        assert_eq!(told(1_000, 1_000, 7), [(1_000, 1_000, 7)]);
        assert_eq!(told(1_000, 1_150, 7), [(1_000, 1_050, 3), (1_050, 1_100, 2), (1_100, 1_150, 2)]);
        assert_eq!(told(1_000, 1_150, 1), [(1_000, 1_050, 1), (1_050, 1_100, 1), (1_100, 1_150, 1)]);
        let long = told(0, 3_600_000, 1_000);
        assert_eq!((long.len(), long.last().map(|last| last.1)), (200, Some(3_600_000)));
    }
}
