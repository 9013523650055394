//! nginx's logs, followed: what a line says and when it was written. A log that several nginx write to (a binary upgrade, two masters with
//! one configuration) is read once, and reading goes on through a reload.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{
    clock,
    delivery::Delivery,
    marks::Mark,
    nginx::Found,
    rest::Bell,
    sources::Counts,
    tail::{self, Place, Tail},
    thinker::Intake,
};
use crate::{
    bundle::tape::Raw,
    decode::{
        access_log::{self, Pattern},
        error_log,
    },
    model::{
        coverage::Sensor,
        event::{Body, Source},
        time::{At, Moment},
    },
    pipeline::Arrival,
    redact::Level,
};

/// What is judged by the logs waits for its lines for longer than this, nanoseconds: a reader that is late holds the stream up only then.
const LINES_WANTED_NS: u64 = 250_000_000;

/// A log that is followed.
#[derive(Debug)]
pub struct Log {
    /// What it is a sensor of: the error log or the access log.
    sensor: Sensor,
    /// Of an access log.
    format: Option<Arc<str>>,
    tail: Tail,
    /// Of its truncations, those that were told.
    told: AtomicU64,
}

/// A log became shorter under our eyes.
#[derive(Clone, Debug)]
pub struct CutOff {
    /// Which sensor may have missed lines.
    pub sensor: Sensor,
    /// The log, as its nginx calls it.
    pub path: String,
    /// When.
    pub span: At,
}

impl Log {
    /// Whether it was cut off since this was asked last.
    #[must_use]
    pub fn cut_off(&self) -> Option<CutOff> {
        let statistics = self.tail.statistics();
        let told = self.told.swap(statistics.truncations, Ordering::Relaxed);
        let (from, to) = statistics.cut_off.filter(|_| statistics.truncations > told)?;
        Some(CutOff { sensor: self.sensor, path: self.tail.place.to_string(), span: At::between(from, to) })
    }

    /// Whether this is the log that the other place leads to: by name where the same nginx asks, by the file itself where another does.
    fn is(&self, sensor: Sensor, format: Option<&str>, place: &Place, same_nginx: bool) -> bool {
        let by_name = same_nginx && self.tail.place.to_string() == place.to_string();
        let by_file = || {
            let file = self.tail.statistics().file;
            file.is_some() && file == tail::identity(place)
        };
        self.sensor == sensor && self.format.as_deref() == format && (by_name || by_file())
    }
}

/// Logs that are followed. They end when nobody follows them any more.
#[derive(Debug, Default)]
pub struct Tails {
    logs: Vec<Arc<Log>>,
    /// Logs that cannot be followed, and why.
    pub problems: Vec<String>,
}

impl Tails {
    /// The logs followed.
    pub fn logs(&self) -> impl Iterator<Item = &Arc<Log>> {
        self.logs.iter()
    }
}

/// A log that is followed already, and whether for the same nginx.
pub(super) type Known = (bool, Arc<Log>);

/// Follows an nginx's logs. The access log only if `access`: it has a line for every request, and is needed only where nginx's functions
/// cannot tell the final status.
pub(super) fn follow(found: &Found, access: bool, known: &[Known], intake: &Intake, counts: &Arc<Counts>) -> Tails {
    let mut tails = Tails::default();
    let mark = || (intake.mark(LINES_WANTED_NS), intake.rest().bell());
    for (place, _) in &found.error_logs {
        tails.follow(Sensor::ErrorLog, None, place, known, || error_sink(intake.clone(), Arc::clone(counts)), mark);
    }
    for (place, format) in found.access_logs.iter().filter(|_| access) {
        let format: Arc<str> = Arc::from(format.as_deref().unwrap_or(access_log::COMBINED));
        let sink = || access_sink(Arc::clone(&format), intake.clone(), Arc::clone(counts));
        tails.follow(Sensor::AccessLog, Some(Arc::clone(&format)), place, known, sink, mark);
    }
    tails
}

impl Tails {
    fn follow(
        &mut self,
        sensor: Sensor,
        format: Option<Arc<str>>,
        place: &Place,
        known: &[Known],
        sink: impl FnOnce() -> tail::Sink,
        mark: impl FnOnce() -> (Mark, Bell),
    ) {
        let is_it = |log: &Log, same| log.is(sensor, format.as_deref(), place, same);
        if self.logs.iter().any(|log| is_it(log, true)) {
            return;
        }
        if let Some((_, log)) = known.iter().find(|(same, log)| is_it(log, *same)) {
            self.logs.push(Arc::clone(log));
            return;
        }
        let (mark, bell) = mark();
        match Tail::start_marked(place.clone(), sink(), Some(mark), bell) {
            Ok(tail) => self.logs.push(Arc::new(Log { sensor, format, tail, told: AtomicU64::new(0) })),
            Err(error) => self.problems.push(error.to_string()),
        }
    }
}

fn error_sink(intake: Intake, counts: Arc<Counts>) -> tail::Sink {
    Box::new(move |mut line| {
        intake.redactor().error_line(&mut line.bytes);
        let Ok(decoded) = error_log::decode(&line.bytes) else { return true };
        let at = line_time(local_unix_ns(decoded.local), 1_000_000_000, line.arrived);
        let arrival = Arrival { at, source: Source::ErrorLog, body: Body::from(decoded.line) };
        deliver(&intake, &counts, arrival, Raw::ErrorLine(line.bytes))
    })
}

fn access_sink(format: Arc<str>, intake: Intake, counts: Arc<Counts>) -> tail::Sink {
    let pattern = Pattern::compile(&format);
    Box::new(move |mut line| {
        if intake.redactor().level() > Level::None {
            let text = plain(&mut line.bytes);
            let places = pattern.places(&text);
            intake.redactor().access_line(&mut line.bytes, &places);
        }
        let Ok(decoded) = access_log::decode(&pattern, &line.bytes) else {
            counts.strange_accesses.fetch_add(1, Ordering::Relaxed);
            return true;
        };
        let (unix, resolution) = decoded.time.map_or((None, 0), |time| (Some(time.unix_ns), time.resolution_ns));
        let at = line_time(unix, resolution, line.arrived);
        let arrival = Arrival { at, source: Source::AccessLog, body: Body::AccessLine(decoded.line) };
        deliver(&intake, &counts, arrival, Raw::AccessLine(Arc::clone(&format), line.bytes))
    })
}

/// Hands a line on; one that finds no room is counted, as a record is.
fn deliver(intake: &Intake, counts: &Counts, arrival: Arrival, raw: Raw) -> bool {
    let delivered = intake.try_deliver(Delivery::Line(Box::new((arrival, raw))));
    if !delivered {
        counts.crowded_out.fetch_add(1, Ordering::Relaxed);
    }
    delivered
}

/// The line as text, byte by byte: what is no UTF-8 becomes a question mark, which is as long.
fn plain(line: &mut [u8]) -> String {
    while let Err(error) = std::str::from_utf8(line) {
        let from = error.valid_up_to();
        let length = error.error_len().unwrap_or(line.len() - from);
        if let Some(bytes) = line.get_mut(from..from + length) {
            bytes.fill(b'?');
        }
    }
    String::from_utf8_lossy(line).into_owned()
}

/// A log's local time, without a zone, in this host's zone.
fn local_unix_ns(local: jiff::civil::DateTime) -> Option<i128> {
    local.to_zoned(jiff::tz::TimeZone::system()).ok().map(|zoned| zoned.timestamp().as_nanosecond())
}

/// When a line was written: within what it says, and before it was read. A clock that disagrees (another zone in a container) leaves only
/// the reading: lines are read within a tenth of a second, or the log grows faster than it can be read.
fn line_time(unix_ns: Option<i128>, resolution_ns: u64, arrived: Moment) -> At {
    const READ_WITHIN_NS: u64 = 100_000_000;
    let by_reading = At::between(arrived.minus_ns(READ_WITHIN_NS), arrived);
    let Some(unix_ns) = unix_ns else { return by_reading };
    // nginx keeps its own clock, which may lag its event loop; a second back is room enough.
    let start = clock::wall().moment(unix_ns);
    let stated = At::between(start, start.plus_ns(resolution_ns.max(1) - 1));
    if stated.overlaps(&by_reading) {
        At::between(stated.earliest.max(by_reading.earliest), arrived)
    } else if stated.before(&by_reading) && by_reading.earliest.since_ns(stated.latest) < 2_000_000_000 {
        At::between(stated.earliest, arrived)
    } else {
        by_reading
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// The wall clock's time of a moment that lies so many seconds before the reading.
    fn stated(arrived: Moment, before: i128) -> i128 {
        clock::wall().unix_ns(arrived) - before * i128::from(SECOND)
    }

    #[test]
    fn a_line_was_written_within_what_it_says_and_before_it_was_read() {
        let arrived = clock::now();
        let at = line_time(Some(stated(arrived, 0)), SECOND, arrived);
        assert!(at.latest <= arrived && at.earliest >= arrived.minus_ns(SECOND), "{at:?}");
    }

    #[test]
    fn a_clock_that_was_stepped_leaves_only_the_reading() {
        let arrived = clock::now();
        let by_reading = At::between(arrived.minus_ns(100_000_000), arrived);
        // Back by NTP, forwards by NTP, another zone in a container, no time at all.
        let steps = [30, -30, 3_600, -7_200].map(|before| Some(stated(arrived, before)));
        for unix in steps.into_iter().chain([None]) {
            assert_eq!(line_time(unix, SECOND, arrived), by_reading, "{unix:?}");
        }
    }
}
