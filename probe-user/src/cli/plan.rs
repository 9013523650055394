//! What was meant: validated, with defaults filled in. The rest of the program cannot see a bad combination.

use std::{path::PathBuf, time::Duration};

use thiserror::Error;

use super::args;

/// Why a command line makes no sense.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// A duration that cannot be read.
    #[error("--duration {0}: not a duration; write it like 30s, 5m or 2h")]
    Duration(String),
    /// A status that nginx could not answer.
    #[error("--status {0}: not an error status; write them like 502,504")]
    Status(u16),
    /// Too many statuses.
    #[error("--status: at most eight statuses")]
    Statuses,
    /// A path that would not be one.
    #[error("--probe-path {0:?}: not a path; write it like /health")]
    ProbePath(String),
    /// A count of nothing.
    #[error("--count 0: would stop before it began; leave it out to go on until interrupted")]
    Count,
    /// Standard input can be read only once.
    #[error("-: standard input can be named only once")]
    StandardInput,
    /// A size that cannot be read.
    #[error("--{flag} {text}: not a size; write it like 64MiB, 500M or 2GiB")]
    Size {
        /// The flag.
        flag: &'static str,
        /// What was typed.
        text: String,
    },
    /// Too little room to record anything.
    #[error("--{0}: at least {1} is needed")]
    TooSmall(&'static str, &'static str),
    /// A duration of another flag.
    #[error("--{flag} {text}: not a duration; write it like 30s, 5m or 2h")]
    Span {
        /// The flag.
        flag: &'static str,
        /// What was typed.
        text: String,
    },
}

/// How deep to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// The failure path only.
    Light,
    /// Also per connection and per response.
    Standard,
    /// Also every packet's header.
    Deep,
}

/// How it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// JSON lines instead of text.
    pub json: bool,
    /// No progress and no remarks on stderr.
    pub quiet: bool,
    /// 0 warnings, 1 remarks, 2 everything.
    pub verbosity: u8,
}

/// `probe502 watch`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line, independent of the others")]
pub struct Watch {
    /// Interfaces to capture on; empty: chosen from the upstream addresses.
    pub interfaces: Vec<String>,
    /// nginx processes to watch; empty: every nginx.
    pub pids: Vec<u32>,
    /// Statuses that make an incident.
    pub statuses: Vec<u16>,
    /// When to stop.
    pub duration: Option<Duration>,
    /// After how many incidents to stop.
    pub count: Option<u64>,
    /// How deep to look.
    pub depth: Depth,
    /// The depth was left to the program.
    pub depth_auto: bool,
    /// Where to leave incidents.
    pub out: Option<PathBuf>,
    /// Wait for an nginx.
    pub wait: bool,
    /// Use nginx's own functions.
    pub uprobes: bool,
    /// Capture packets.
    pub packets: bool,
    /// Only nginx's own namespace and processes.
    pub only_nginx: bool,
    /// Load the kernel programs.
    pub ebpf: bool,
    /// Do as if the kernel had no type information.
    pub hide_btf: bool,
    /// How it is printed.
    pub output: Output,
}

/// `probe502 analyze`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line, independent of the others")]
pub struct Analyze {
    /// Recordings or captures.
    pub inputs: Vec<PathBuf>,
    /// Error logs.
    pub error_logs: Vec<PathBuf>,
    /// Access logs.
    pub access_logs: Vec<PathBuf>,
    /// The format of the access logs.
    pub log_format: Option<String>,
    /// nginx's configuration.
    pub configuration: Option<PathBuf>,
    /// Addresses that are upstreams.
    pub upstreams: Vec<std::net::SocketAddr>,
    /// Statuses that make an incident.
    pub statuses: Vec<u16>,
    /// Print every connection.
    pub connections: bool,
    /// Print every exchange.
    pub exchanges: bool,
    /// Where each incident of a recording is left too.
    pub out: Option<PathBuf>,
    /// An incident makes the exit status 1.
    pub fail_on_incident: bool,
    /// How it is printed.
    pub output: Output,
}

/// `probe502 check`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// nginx processes to check; empty: every nginx.
    pub pids: Vec<u32>,
    /// A configuration file instead of a running nginx.
    pub conf: Option<PathBuf>,
    /// What upstreams are asked for.
    pub probe_path: String,
    /// Ask with `HEAD`.
    pub head: bool,
    /// Send requests at all.
    pub request: bool,
    /// How it is printed.
    pub output: Output,
}

impl TryFrom<args::Analyze> for Analyze {
    type Error = PlanError;

    fn try_from(typed: args::Analyze) -> Result<Self, PlanError> {
        if typed.inputs.iter().filter(|path| path.as_os_str() == "-").count() > 1 {
            return Err(PlanError::StandardInput);
        }
        Ok(Self {
            inputs: typed.inputs,
            error_logs: typed.error_logs,
            access_logs: typed.access_logs,
            log_format: typed.log_format,
            configuration: typed.configuration,
            upstreams: typed.upstreams,
            statuses: statuses(typed.statuses)?,
            connections: typed.connections,
            exchanges: typed.exchanges,
            out: typed.out,
            fail_on_incident: typed.fail_on_incident,
            output: Output::from(&typed.output),
        })
    }
}

impl TryFrom<args::Check> for Check {
    type Error = PlanError;

    fn try_from(typed: args::Check) -> Result<Self, PlanError> {
        let is_path = typed.probe_path.starts_with('/') && typed.probe_path.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_path {
            return Err(PlanError::ProbePath(typed.probe_path));
        }
        Ok(Self {
            pids: typed.pids,
            conf: typed.conf,
            probe_path: typed.probe_path,
            head: typed.head,
            request: !typed.no_request,
            output: Output::from(&typed.output),
        })
    }
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
    type Error = PlanError;

    fn try_from(typed: args::Record) -> Result<Self, PlanError> {
        let span = |flag, text: &str| duration(text).map_err(|_| PlanError::Span { flag, text: text.to_owned() });
        let bytes = |flag, text: &str| size(text).ok_or_else(|| PlanError::Size { flag, text: text.to_owned() });
        let (before, after) = (span("before", &typed.before)?, span("after", &typed.after)?);
        let memory = bytes("memory", &typed.memory)?;
        let memory = usize::try_from(memory).ok().filter(|memory| *memory >= 4 << 20);
        let max_size = typed.max_size.as_deref().map(|text| bytes("max-size", text)).transpose()?;
        if max_size.is_some_and(|max_size| max_size < 1 << 20) {
            return Err(PlanError::TooSmall("max-size", "1MiB"));
        }
        if typed.max_incidents == Some(0) {
            return Err(PlanError::TooSmall("max-incidents", "1"));
        }
        let mut watch = Watch::try_from(typed.watch)?;
        Ok(Self {
            file: watch.out.take().unwrap_or_default(),
            watch,
            before,
            after,
            memory: memory.ok_or(PlanError::TooSmall("memory", "4MiB"))?,
            max_size,
            max_incidents: typed.max_incidents,
            rotate: typed.rotate,
        })
    }
}

/// Statuses that make an incident, each once.
fn statuses(mut typed: Vec<u16>) -> Result<Vec<u16>, PlanError> {
    typed.sort_unstable();
    typed.dedup();
    if let Some(bad) = typed.iter().find(|status| !(400..600).contains(*status)) {
        return Err(PlanError::Status(*bad));
    }
    if typed.len() > 8 {
        return Err(PlanError::Statuses);
    }
    Ok(typed)
}

/// `64MiB`, `500M`, `1048576`.
fn size(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit: u64 = match unit {
        "" | "B" => 1,
        "k" | "kB" => 1_000,
        "KiB" | "K" => 1 << 10,
        "MB" => 1_000_000,
        "MiB" | "M" => 1 << 20,
        "GB" => 1_000_000_000,
        "GiB" | "G" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

impl From<&args::Output> for Output {
    fn from(typed: &args::Output) -> Self {
        Self { json: typed.json || typed.format == args::Format::Json, quiet: typed.quiet, verbosity: typed.verbose }
    }
}

impl TryFrom<args::Watch> for Watch {
    type Error = PlanError;

    fn try_from(typed: args::Watch) -> Result<Self, PlanError> {
        let statuses = statuses(typed.statuses)?;
        if typed.count == Some(0) {
            return Err(PlanError::Count);
        }
        Ok(Self {
            interfaces: typed.interfaces,
            pids: typed.pids,
            statuses,
            duration: typed.duration.as_deref().map(duration).transpose()?,
            count: typed.count,
            depth: match typed.depth {
                args::Depth::Light => Depth::Light,
                args::Depth::Standard | args::Depth::Auto => Depth::Standard,
                args::Depth::Deep => Depth::Deep,
            },
            depth_auto: typed.depth == args::Depth::Auto,
            out: typed.out,
            wait: typed.wait,
            uprobes: !typed.no_uprobes && !typed.no_ebpf,
            packets: !typed.no_packets,
            only_nginx: typed.only_nginx,
            ebpf: !typed.no_ebpf,
            hide_btf: typed.hide_btf,
            output: Output::from(&typed.output),
        })
    }
}

/// Reads `30s`, `5m`, `2h`, `500ms`, `1d`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, PlanError> {
    let bad = || PlanError::Duration(text.to_owned());
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let millis = match unit {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "d" => number.checked_mul(86_400_000),
        _ => None,
    };
    millis.map(Duration::from_millis).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn watch(line: &str) -> Result<Watch, PlanError> {
        let words = ["probe502", "watch"].into_iter().chain(line.split_whitespace());
        let args::Command::Watch(typed) = args::Arguments::try_parse_from(words).unwrap().command else {
            panic!("not watch")
        };
        Watch::try_from(typed)
    }

    #[test]
    fn defaults_are_the_contracts() {
        let plan = watch("").unwrap();
        assert_eq!(plan.statuses, [500, 502, 503, 504]);
        assert_eq!(plan.depth, Depth::Standard);
        assert!(
            plan.interfaces.is_empty() && plan.pids.is_empty() && !plan.output.json && plan.uprobes && plan.packets
        );
    }

    #[test]
    fn durations() {
        for (text, millis) in [("30s", 30_000), ("5m", 300_000), ("2h", 7_200_000), ("250ms", 250), ("7", 7_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "-1s", "5 m", "1.5h", "99999999999999999999s", "18446744073709551615h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        assert_eq!(watch("--status 502,42"), Err(PlanError::Status(42)));
        assert_eq!(watch("--count 0"), Err(PlanError::Count));
        assert!(matches!(watch("--duration soon"), Err(PlanError::Duration(_))));
    }

    #[test]
    fn json_is_short_for_format_json() {
        assert!(watch("--json").unwrap().output.json);
        assert!(watch("--format json").unwrap().output.json);
    }
}
