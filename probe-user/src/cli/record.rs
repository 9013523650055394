//! What was meant by `probe502 record`.

use std::{path::PathBuf, time::Duration};

use thiserror::Error;

use super::{
    args,
    plan::{self, PlanError, Watch},
};

/// The least memory that makes sense.
const LEAST_MEMORY: u64 = 4 << 20;
/// The least size of a file that makes sense.
const LEAST_SIZE: u64 = 1 << 20;

/// Why a command line makes no sense.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RecordError {
    /// What it has in common with `watch`.
    #[error(transparent)]
    Watch(#[from] PlanError),
    /// A size that cannot be read.
    #[error("--{flag} {text}: not a size; write it like 64MiB, 500M or 2GiB")]
    Size {
        /// The flag.
        flag: &'static str,
        /// What was typed.
        text: String,
    },
    /// A duration that cannot be read.
    #[error("--{flag} {text}: not a duration; write it like 30s, 5m or 2h")]
    Span {
        /// The flag.
        flag: &'static str,
        /// What was typed.
        text: String,
    },
    /// Too little room to record anything.
    #[error("--{flag}: at least {least} is needed")]
    TooSmall {
        /// The flag.
        flag: &'static str,
        /// What would do.
        least: &'static str,
    },
    /// Full files are to be kept, and none will ever be.
    #[error("--rotate: without --max-size or --max-incidents a file is never full; give one of them too")]
    NeverFull,
}

/// `probe502 record`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What to watch; without a folder of its own.
    pub watch: Watch,
    /// The file.
    pub file: PathBuf,
    /// How long before a failure.
    pub before: Duration,
    /// How long after one.
    pub after: Duration,
    /// Bytes of memory.
    pub memory: usize,
    /// Bytes of a file.
    pub max_size: Option<u64>,
    /// Incidents and near misses in a file.
    pub max_incidents: Option<u64>,
    /// Older files kept.
    pub rotate: u32,
}

impl TryFrom<args::Record> for Record {
    type Error = RecordError;

    fn try_from(typed: args::Record) -> Result<Self, RecordError> {
        let span =
            |flag, text: &str| plan::duration(text).map_err(|_| RecordError::Span { flag, text: text.to_owned() });
        let bytes = |flag, text: &str| size(text).ok_or_else(|| RecordError::Size { flag, text: text.to_owned() });
        let memory = bytes("memory", &typed.memory)?;
        if memory < LEAST_MEMORY {
            return Err(RecordError::TooSmall { flag: "memory", least: "4MiB" });
        }
        let max_size = typed.max_size.as_deref().map(|text| bytes("max-size", text)).transpose()?;
        if max_size.is_some_and(|max_size| max_size < LEAST_SIZE) {
            return Err(RecordError::TooSmall { flag: "max-size", least: "1MiB" });
        }
        if typed.max_incidents == Some(0) {
            return Err(RecordError::TooSmall { flag: "max-incidents", least: "1" });
        }
        if typed.rotate > 0 && max_size.is_none() && typed.max_incidents.is_none() {
            return Err(RecordError::NeverFull);
        }
        let mut watch = Watch::try_from(typed.watch)?;
        Ok(Self {
            before: span("before", &typed.before)?,
            after: span("after", &typed.after)?,
            file: watch.out.take().unwrap_or_default(),
            watch,
            memory: usize::try_from(memory).unwrap_or(usize::MAX),
            max_size,
            max_incidents: typed.max_incidents,
            rotate: typed.rotate,
        })
    }
}

/// `64MiB`, `500M`, `1048576`.
fn size(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit: u64 = match unit {
        "" | "B" => 1,
        "kB" => 1_000,
        "K" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn record(line: &str) -> Result<Record, RecordError> {
        let words = ["probe502", "record"].into_iter().chain(line.split_whitespace());
        match args::Arguments::try_parse_from(words).unwrap().command {
            args::Command::Record(typed) => Record::try_from(typed),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_the_issues() {
        let plan = record("-o x.p502").unwrap();
        assert_eq!((plan.before, plan.after, plan.memory), (Duration::from_secs(30), Duration::from_secs(5), 64 << 20));
        assert_eq!((plan.file, plan.watch.out), (PathBuf::from("x.p502"), None));
        assert!(args::Arguments::try_parse_from(["probe502", "record"]).is_err(), "a file is needed");
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("64MiB", 64 << 20), ("500M", 500 << 20), ("2GB", 2_000_000_000), ("7", 7)] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in ["", "MiB", "-1M", "1.5G", "1T", "99999999999G"] {
            assert_eq!(size(text), None, "{text}");
        }
        assert!(matches!(record("-o x --memory 1M"), Err(RecordError::TooSmall { .. })));
        assert!(matches!(record("-o x --before soon"), Err(RecordError::Span { .. })));
        assert!(matches!(record("-o x --rotate 2"), Err(RecordError::NeverFull)));
        assert!(record("-o x --rotate 2 --max-incidents 5").is_ok());
    }
}
