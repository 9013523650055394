//! What was typed.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// Says why nginx answered 502 (500, 503, 504): the packet, system call or process exit behind each one.
#[derive(Debug, Parser)]
#[command(name = "probe502", version, about, max_term_width = 100)]
#[command(
    after_help = "Data goes to stdout, everything else to stderr. Exit status: 0 ran to its end, 1 check found a fault or analyze --fail-on-incident an incident, 2 bad usage or unreadable input, \
                        3 this host does not allow it."
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Find nginx, attach, and print every gateway failure with its cause as it happens
    #[cfg(feature = "live")]
    Watch(Watch),
    /// Watch, and keep what is needed to judge every failure again: a flight recorder
    #[cfg(feature = "live")]
    Record(Record),
    /// The same verdicts offline: from a recording, or from captures that were made earlier, with nginx's logs where they are at hand
    Analyze(Analyze),
    /// Do the manual checks of a 502 at once, without waiting for one: upstreams, configuration, limits, logs
    #[cfg(feature = "live")]
    Check(super::check::Typed),
    /// Make one page of what was caught, for the postmortem
    Report(Report),
    /// Say what this host lets the probe see, and what to do about what is missing
    #[cfg(feature = "live")]
    Doctor(Doctor),
    /// Print the catalogue of causes, or the page of one of them
    Explain(Explain),
}

/// Flags that mean the same wherever they stand.
#[derive(Clone, Debug, Args)]
pub struct Output {
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub format: Format,
    /// Short for --format json
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Say less on stderr
    #[arg(short, long)]
    pub quiet: bool,
    /// Say more on stderr (-vv: much more)
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
}

/// What is taken out of everything that is printed, recorded and logged.
#[derive(Clone, Debug, Args)]
pub struct Redaction {
    /// Take out query values, header values, cookies, authorization and bodies (default), or clients' addresses too (all)
    #[arg(long, value_enum, default_value_t = Redact::Default, value_name = "WHAT")]
    pub redact: Redact,
    /// Take out nothing: URIs are printed and packets and logs are kept with everything that is in them
    #[arg(long, conflicts_with = "redact")]
    pub no_redact: bool,
}

/// What is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Redact {
    /// Query values, header values, cookies, authorization, bodies
    Default,
    /// Clients' addresses too, each replaced by another of the same network
    All,
}

/// How data is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// How deep to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Depth {
    /// The failure path only: free while all is well
    Light,
    /// Also the system calls of each connection and the final status of each response
    Standard,
    /// Also every packet's header, both sides of nginx
    Deep,
    /// Light, and standard for a minute after a failure that light could not prove
    Auto,
}

/// `probe502 watch`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag on the command line")]
pub struct Watch {
    /// Capture on this interface (repeatable; default: chosen from the upstream addresses)
    #[arg(short, long = "interface", value_name = "IFACE")]
    pub interfaces: Vec<String>,
    /// Watch this nginx, master or worker (repeatable; default: every nginx on the host)
    #[arg(short, long = "pid", value_name = "PID")]
    pub pids: Vec<u32>,
    /// Statuses that make an incident
    #[arg(long = "status", value_name = "LIST", value_delimiter = ',', default_value = "500,502,503,504")]
    pub statuses: Vec<u16>,
    /// Stop after this long (30s, 5m, 2h)
    #[arg(long, value_name = "DUR")]
    pub duration: Option<String>,
    /// Stop after so many incidents
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// How deep to look, and so what it costs
    #[arg(long, value_enum, default_value_t = Depth::Standard, value_name = "DEPTH")]
    pub depth: Depth,
    /// Also leave DIR/<id>/incident.json and DIR/<id>/packets.pcapng for each incident
    #[arg(short, long = "out", value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Wait for an nginx if none runs yet
    #[arg(long)]
    pub wait: bool,
    /// Do not use nginx's own functions (uprobes): verdicts are tied to requests by their logs and packets
    #[arg(long)]
    pub no_uprobes: bool,
    /// Do not capture packets
    #[arg(long)]
    pub no_packets: bool,
    /// Only nginx's own namespace and processes, as if upstreams ran on another host
    #[arg(long)]
    pub only_nginx: bool,
    /// Watch only the nginx that run now, and give up every right after attaching (see SECURITY.md)
    #[arg(long, conflicts_with = "wait")]
    pub no_follow: bool,
    /// The user to become then (default: whoever called sudo, else nobody)
    #[arg(long, value_name = "USER", requires = "no_follow")]
    pub user: Option<String>,
    /// Do not load the kernel programs: logs and packets only
    #[arg(long, hide = true)]
    pub no_ebpf: bool,
    /// Pretend that the kernel has no type information
    #[arg(long, hide = true)]
    pub hide_btf: bool,
    /// Attach these hooks and no others: what the bench prices each by
    #[arg(long, hide = true, value_name = "LIST", value_delimiter = ',')]
    pub hooks: Option<Vec<String>>,
    /// Say at the end what watching has cost (SIGUSR1: at any time), and have the kernel time its programs for that
    #[arg(long)]
    pub self_stats: bool,
    /// What is taken out.
    #[command(flatten)]
    pub redaction: Redaction,
    /// How it is printed.
    #[command(flatten)]
    pub output: Output,
}

/// `probe502 record`: as `watch`, and a file.
#[derive(Debug, Args)]
#[command(mut_arg("out", |out| out.required(true).value_name("FILE").help("The recording (FILE.p502)")))]
pub struct Record {
    /// As for watch.
    #[command(flatten)]
    pub watch: Watch,
    /// Keep so much of what came before a failure
    #[arg(long, value_name = "DUR", default_value = "30s")]
    pub before: String,
    /// Keep so much of what comes after one
    #[arg(long, value_name = "DUR", default_value = "5s")]
    pub after: String,
    /// Memory for what may be needed; where that is less than --before takes, less is kept, and the recording says so
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub memory: String,
    /// The most a file may take; the oldest failures go first
    #[arg(long, value_name = "SIZE")]
    pub max_size: Option<String>,
    /// The most failures a file may hold; the oldest go first
    #[arg(long, value_name = "N")]
    pub max_incidents: Option<u64>,
    /// When a file is full, go on in a new one and keep N older ones (FILE.1, FILE.2 …)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub rotate: u32,
}

/// `probe502 analyze`.
#[derive(Debug, Args)]
pub struct Analyze {
    /// Recordings (.p502), or pcap and pcapng files, also compressed by gzip or zstd; several of the same time are read together; - is standard input
    #[arg(value_name = "INPUT", required = true)]
    pub inputs: Vec<PathBuf>,
    /// nginx's error log of that time
    #[arg(long = "error-log", value_name = "FILE")]
    pub error_logs: Vec<PathBuf>,
    /// nginx's access log of that time
    #[arg(long = "access-log", value_name = "FILE")]
    pub access_logs: Vec<PathBuf>,
    /// The format of the access logs, as nginx's directive has it (default: combined, or what --conf says)
    #[arg(long, value_name = "FORMAT", requires = "access_logs")]
    pub log_format: Option<String>,
    /// nginx's configuration of that time: what `nginx -T` prints, or the file
    #[arg(long = "conf", value_name = "FILE")]
    pub configuration: Option<PathBuf>,
    /// An address that is an upstream of nginx, where the capture alone does not tell
    #[arg(long = "upstream", value_name = "ADDR:PORT")]
    pub upstreams: Vec<std::net::SocketAddr>,
    /// Statuses that make an incident
    #[arg(long = "status", value_name = "LIST", value_delimiter = ',', default_value = "500,502,503,504")]
    pub statuses: Vec<u16>,
    /// Also print every TCP connection, with Zeek's state and history
    #[arg(long)]
    pub connections: bool,
    /// Also print every HTTP/1 request with its status
    #[arg(long)]
    pub exchanges: bool,
    /// Also leave DIR/<id>/incident.json for each incident, and of a recording DIR/<id>/packets.pcapng (evidence from a capture points into the capture)
    #[arg(short, long = "out", value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Exit with status 1 if there was an incident
    #[arg(long)]
    pub fail_on_incident: bool,
    /// What is taken out.
    #[command(flatten)]
    pub redaction: Redaction,
    /// How it is printed.
    #[command(flatten)]
    pub output: Output,
}

/// `probe502 doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Pretend that the kernel has no type information
    #[arg(long, hide = true)]
    pub hide_btf: bool,
    /// How it is printed.
    #[command(flatten)]
    pub output: Output,
}

/// `probe502 explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// The cause's id, as a verdict names it; without one, the list
    #[arg(value_name = "CAUSE")]
    pub cause: Option<String>,
    /// How it is printed.
    #[command(flatten)]
    pub output: Output,
}

/// `probe502 report`.
#[derive(Debug, Args)]
pub struct Report {
    /// A recording (.p502), a folder of `watch -o`, an incident.json, or the output of `watch --json`; - reads stdin
    #[arg(value_name = "INPUT", required = true)]
    pub inputs: Vec<PathBuf>,
    /// Write here; - is stdout (default for markdown)
    #[arg(short, long = "out", value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// What to make: a page that needs nothing else, or text for an issue (default: html, or markdown for FILE.md)
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub format: Option<ReportFormat>,
    /// Call it so
    #[arg(long, value_name = "TITLE")]
    pub title: Option<String>,
    /// What is taken out of a recording; what was printed is as it is.
    #[command(flatten)]
    pub redaction: Redaction,
    /// Say nothing on stderr
    #[arg(short, long)]
    pub quiet: bool,
}

/// What a report can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// One self-contained HTML file
    Html,
    /// Text for an issue
    Markdown,
}
