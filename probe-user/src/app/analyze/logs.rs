//! nginx's logs of the time of a capture, line by line in step with it.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use jiff::{civil::DateTime, tz::TimeZone};

use crate::{
    decode::{access_log, config, error_log},
    model::{
        event::{Body, Source},
        host::Configuration,
        time::{At, Moment},
    },
    pipeline::Arrival,
};

/// A line longer than this is no line of nginx's.
const LONGEST_LINE: u64 = 1 << 20;
/// Lines before the first packet matter for so long: nginx takes a server out for 10 s by default.
const BEFORE_NS: u64 = 10_000_000_000;
/// Lines after the last packet are about it for so long.
const AFTER_NS: u64 = 2_000_000_000;
/// What a line of the error log knows of its time.
const SECOND_NS: u64 = 1_000_000_000;

/// Which log.
enum Kind {
    Error,
    Access(access_log::Pattern),
}

/// A log that is read in step with a capture.
pub(super) struct Log {
    name: String,
    kind: Kind,
    lines: BufReader<File>,
    next: Option<Arrival>,
    /// Lines that could not be read.
    pub(super) unreadable: u64,
    /// Lines that were used.
    pub(super) used: u64,
    /// Why it could not be read to its end.
    pub(super) broken: Option<String>,
    over: bool,
}

impl Log {
    /// An error log.
    pub(super) fn error(path: &Path) -> Result<Self, anyhow::Error> {
        Self::open(path, Kind::Error, "error")
    }

    /// An access log with this format.
    pub(super) fn access(path: &Path, format: &str) -> Result<Self, anyhow::Error> {
        Self::open(path, Kind::Access(access_log::Pattern::compile(format)), "access")
    }

    fn open(path: &Path, kind: Kind, which: &str) -> Result<Self, anyhow::Error> {
        let name = path.display().to_string();
        let cannot = || format!("cannot read the {which} log {name}");
        let file = File::open(path).with_context(cannot)?;
        if file.metadata().with_context(cannot)?.is_dir() {
            return Err(anyhow!("cannot read the {which} log {name}: it is a directory; name the file in it"));
        }
        let lines = BufReader::with_capacity(64 << 10, file);
        Ok(Self { name, kind, lines, next: None, unreadable: 0, used: 0, broken: None, over: false })
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What there is to know of its times.
    pub(super) const fn zone(&self) -> &'static str {
        match self.kind {
            Kind::Error => "; an error log's times are read in this host's time zone (set TZ to nginx's)",
            Kind::Access(_) => "",
        }
    }

    /// The lines up to this moment, into `take`; those long before `first` are passed over.
    pub(super) fn up_to(&mut self, first: Moment, moment: Moment, take: &mut impl FnMut(Arrival)) {
        while !self.over {
            let Some(arrival) = self.next.take().or_else(|| self.read()) else { continue };
            if arrival.at.earliest > moment.plus_ns(SECOND_NS) {
                self.next = Some(arrival);
                return;
            }
            if arrival.at.latest.plus_ns(BEFORE_NS) >= first {
                self.used += 1;
                take(arrival);
            }
        }
    }

    /// The lines that are about the last packets.
    pub(super) fn rest(&mut self, first: Moment, last: Moment, take: &mut impl FnMut(Arrival)) {
        self.up_to(first, last.plus_ns(AFTER_NS), take);
    }

    /// The next line with a time; `None`: a line that says nothing, or the end.
    fn read(&mut self) -> Option<Arrival> {
        let mut line = Vec::new();
        match self.lines.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) => {
                self.over = true;
                None
            }
            Err(error) => {
                self.over = true;
                self.broken = Some(error.to_string());
                None
            }
            Ok(_) => {
                let arrival = self.decode(&line);
                self.unreadable += u64::from(arrival.is_none() && !line.trim_ascii().is_empty());
                arrival
            }
        }
    }

    fn decode(&self, line: &[u8]) -> Option<Arrival> {
        match &self.kind {
            Kind::Error => {
                let decoded = error_log::decode(line).ok()?;
                let at = interval(local_unix_ns(decoded.local)?, SECOND_NS);
                Some(Arrival { at, source: Source::ErrorLog, body: Body::from(decoded.line) })
            }
            Kind::Access(pattern) => {
                let decoded = access_log::decode(pattern, line).ok()?;
                let time = decoded.time?;
                let at = interval(time.unix_ns, time.resolution_ns);
                Some(Arrival { at, source: Source::AccessLog, body: Body::AccessLine(decoded.line) })
            }
        }
    }
}

/// nginx stamps a line with a time it has read a little before: at the beginning of the turn of its event loop.
fn interval(unix_ns: i128, resolution_ns: u64) -> At {
    let begin = Moment(u64::try_from(unix_ns).unwrap_or(0));
    At::between(begin, begin.plus_ns(resolution_ns.saturating_sub(1)))
}

/// A log's local time, without a zone, in this host's zone.
fn local_unix_ns(local: DateTime) -> Option<i128> {
    local.to_zoned(TimeZone::system()).ok().map(|zoned| zoned.timestamp().as_nanosecond())
}

/// Reads a configuration: what `nginx -T` printed, or the file itself.
pub(super) fn configuration(path: &PathBuf) -> Result<Configuration, anyhow::Error> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read the configuration {}", path.display()))?;
    let decoded =
        config::decode(&text).map_err(|error| anyhow!("cannot read the configuration {}: {error}", path.display()))?;
    Ok(decoded.configuration)
}

/// The format of an access log: the one that was typed, else what the configuration says of a log with this file's name, else nginx's
/// default.
pub(super) fn format(path: &Path, typed: Option<&str>, configuration: Option<&Configuration>) -> String {
    let of_name = |name: &str| -> Option<String> {
        let formats = &configuration?.log_formats;
        formats.iter().find(|(known, _)| known == name).map(|(_, format)| format.clone())
    };
    if let Some(typed) = typed {
        // The name of a format will do where the configuration is at hand.
        return of_name(typed).unwrap_or_else(|| typed.to_owned());
    }
    let configured = configuration.and_then(|configuration| {
        let same = |(log, _): &&(String, Option<String>)| Path::new(log).file_name() == path.file_name();
        let (_, name) = configuration.access_logs.iter().find(same).or_else(|| configuration.access_logs.first())?;
        of_name(name.as_deref()?)
    });
    configured.unwrap_or_else(|| access_log::COMBINED.to_owned())
}
