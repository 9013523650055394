//! What was meant: validated, with defaults filled in. The rest of the program cannot see a bad combination.

use std::{path::PathBuf, time::Duration};

use thiserror::Error;

use super::args;
use crate::redact::Level;

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
    /// A page of HTML for the terminal.
    #[error("report: an HTML page needs a file: give --out FILE.html (or --out - for stdout), or --format markdown")]
    ReportWithoutFile,
    /// A count of nothing.
    #[error("--count 0: would stop before it began; leave it out to go on until interrupted")]
    Count,
    /// The depth cannot change without rights.
    #[error(
        "--depth auto: attaches more when it is needed, and with --no-follow the rights for that are given up; give --depth light or standard"
    )]
    AutoWithoutRights,
    /// Standard input can be read only once.
    #[error("-: standard input can be named only once")]
    StandardInput,
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
    /// Go on looking at the host after attaching.
    pub follows: bool,
    /// Whom to become where it does not.
    pub user: Option<String>,
    /// Load the kernel programs.
    pub ebpf: bool,
    /// Do as if the kernel had no type information.
    pub hide_btf: bool,
    /// Attach only these hooks.
    pub hooks: Option<Vec<String>>,
    /// Say what watching has cost.
    pub self_stats: bool,
    /// What is taken out of everything.
    pub redaction: Level,
    /// How it is printed.
    pub output: Output,
}

/// `probe502 analyze`.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// What is taken out of everything.
    pub redaction: Level,
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
            redaction: level(&typed.redaction),
            output: Output::from(&typed.output),
        })
    }
}

/// `probe502 report`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What to read; `-` is stdin.
    pub inputs: Vec<PathBuf>,
    /// Where to write; `None` is stdout.
    pub out: Option<PathBuf>,
    /// What to make.
    pub format: ReportFormat,
    /// The page's title.
    pub title: Option<String>,
    /// What is taken out of a recording that still has it.
    pub redaction: Level,
    /// Nothing on stderr.
    pub quiet: bool,
}

/// What a report can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportFormat {
    /// One self-contained HTML file.
    Html,
    /// Text for an issue.
    Markdown,
}

impl TryFrom<args::Report> for Report {
    type Error = PlanError;

    fn try_from(typed: args::Report) -> Result<Self, PlanError> {
        let by_name = || typed.out.as_ref().is_some_and(|out| out.extension().is_some_and(|ending| ending == "md"));
        let format = match typed.format {
            Some(args::ReportFormat::Markdown) => ReportFormat::Markdown,
            None if by_name() => ReportFormat::Markdown,
            Some(args::ReportFormat::Html) | None => ReportFormat::Html,
        };
        if format == ReportFormat::Html && typed.out.is_none() {
            return Err(PlanError::ReportWithoutFile);
        }
        Ok(Self {
            inputs: typed.inputs,
            out: typed.out.filter(|out| out.as_os_str() != "-"),
            format,
            title: typed.title,
            redaction: level(&typed.redaction),
            quiet: typed.quiet,
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

const fn level(typed: &args::Redaction) -> Level {
    match (typed.no_redact, typed.redact) {
        (true, _) => Level::None,
        (false, args::Redact::Default) => Level::Default,
        (false, args::Redact::All) => Level::All,
    }
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
        if typed.depth == args::Depth::Auto && typed.no_follow {
            return Err(PlanError::AutoWithoutRights);
        }
        Ok(Self {
            interfaces: typed.interfaces,
            pids: typed.pids,
            statuses,
            duration: typed.duration.as_deref().map(duration).transpose()?,
            count: typed.count,
            depth: match typed.depth {
                args::Depth::Light | args::Depth::Auto => Depth::Light,
                args::Depth::Standard => Depth::Standard,
                args::Depth::Deep => Depth::Deep,
            },
            depth_auto: typed.depth == args::Depth::Auto,
            out: typed.out,
            wait: typed.wait,
            uprobes: !typed.no_uprobes && !typed.no_ebpf,
            packets: !typed.no_packets,
            only_nginx: typed.only_nginx,
            follows: !typed.no_follow,
            user: typed.user,
            ebpf: !typed.no_ebpf,
            hide_btf: typed.hide_btf,
            hooks: typed.hooks,
            self_stats: typed.self_stats,
            redaction: level(&typed.redaction),
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
#[cfg(feature = "live")]
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
        assert_eq!(watch("--depth auto --no-follow"), Err(PlanError::AutoWithoutRights));
        assert!(matches!(watch("--duration soon"), Err(PlanError::Duration(_))));
    }

    fn report(line: &str) -> Result<Report, PlanError> {
        let words = ["probe502", "report"].into_iter().chain(line.split_whitespace());
        let args::Command::Report(typed) = args::Arguments::try_parse_from(words).unwrap().command else {
            panic!("not report")
        };
        Report::try_from(typed)
    }

    #[test]
    fn a_report_is_html_in_a_file_or_markdown_anywhere() {
        assert_eq!(report("in"), Err(PlanError::ReportWithoutFile));
        assert_eq!(report("in -o x.html").unwrap().format, ReportFormat::Html);
        assert_eq!(report("in -o -").unwrap().out, None);
        assert_eq!(report("in -o x.md").unwrap().format, ReportFormat::Markdown);
        assert_eq!(report("in --format markdown").unwrap().out, None);
        assert_eq!(report("in -o x.md --format html").unwrap().format, ReportFormat::Html);
    }

    #[test]
    fn json_is_short_for_format_json() {
        assert!(watch("--json").unwrap().output.json);
        assert!(watch("--format json").unwrap().output.json);
    }
}
