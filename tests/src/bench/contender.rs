//! Who watches while the load runs.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::memory;
use super::stage::{Stage, spent_by};
use crate::line::Line;
use crate::probe::binary;
use crate::process::{Process, Start, wait_until};

/// One way to watch an nginx.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    /// Nobody watches.
    Bare,
    /// `probe502 watch --depth light`.
    Light,
    /// `probe502 watch`.
    Standard,
    /// `probe502 watch --depth deep`.
    Deep,
    /// `probe502 record`, at the depth of `watch`.
    Record,
    /// `strace -f -e trace=network`.
    Strace,
    /// `tcpdump -w`, whole packets of the upstream's side.
    Tcpdump,
    /// `tcpdump` that takes RST only.
    TcpdumpReset,
    /// A bpftrace script with hooks that see about the same.
    Bpftrace,
    /// `probe502 watch` with one of its hooks only; see [`HOOKS`].
    Hook(&'static str),
    /// Another build's `watch --depth light`; see [`BEFORE`].
    LightBefore,
    /// Another build's `watch`; see [`BEFORE`].
    StandardBefore,
}

/// The environment variable that names another build of the probe, to be measured in turns with this one: what a change costs or saves.
pub const BEFORE: &str = "PROBE502_BEFORE";

/// What the probe attaches, each priced alone: `packets` is the capture without any hook, `nothing` the rest of the program.
/// Several that are one to the kernel are priced together.
pub const HOOKS: &[&str] = &[
    "nothing",
    "packets",
    "inet_sock_set_state",
    "tcp_send_reset,tcp_receive_reset,tcp_retransmit_skb,tcp_retransmit_synack,inet_sk_error_report",
    "kfree_skb",
    "sched_process_fork,sched_process_exec,sched_process_exit,signal_generate,mark_victim",
    "sys_exit_socket",
    "sys_exit_connect",
    "sys_exit_accept,sys_exit_accept4",
    "ngx_log_error_core",
    "ngx_http_special_response_handler",
    "ngx_http_send_header",
    "ngx_get_connection",
];

/// The hooks of a script that somebody would write for the purpose: connection states, resets, retransmissions, results of calls.
const SCRIPT: &str = r#"
tracepoint:sock:inet_sock_set_state /args->protocol == 6/ {
  @state[args->skaddr] = args->newstate;
  if (args->newstate == 7) { delete(@state[args->skaddr]); }
}
tracepoint:tcp:tcp_receive_reset { printf("reset received at port %d\n", args->sport); }
tracepoint:tcp:tcp_send_reset { @sent = count(); }
tracepoint:tcp:tcp_retransmit_skb { @again = count(); }
tracepoint:syscalls:sys_exit_connect { @connect[args->ret] = count(); }
tracepoint:syscalls:sys_exit_accept4 { @accept[args->ret] = count(); }
"#;

/// A watcher that runs.
#[derive(Debug)]
pub struct Watcher {
    running: Running,
}

#[derive(Debug)]
enum Running {
    Nobody,
    /// Its data goes to a file: whoever reads a pipe takes time from those who are measured.
    Probe(Process, PathBuf),
    Other(Process),
}

/// What a probe counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// Failures it reported.
    pub incidents: u64,
    /// Records it lost.
    pub lost: u64,
}

impl Contender {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Bare,
        Self::Light,
        Self::Standard,
        Self::Deep,
        Self::Record,
        Self::Strace,
        Self::Tcpdump,
        Self::TcpdumpReset,
        Self::Bpftrace,
    ];

    /// Another build beside this one; only where asked for.
    pub const BEFORE: [Self; 2] = [Self::LightBefore, Self::StandardBefore];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Light => "probe502-light",
            Self::Standard => "probe502-standard",
            Self::Deep => "probe502-deep",
            Self::Record => "probe502-record",
            Self::Strace => "strace",
            Self::Tcpdump => "tcpdump-full",
            Self::TcpdumpReset => "tcpdump-rst",
            Self::Bpftrace => "bpftrace",
            Self::Hook(name) => name,
            Self::LightBefore => "before-light",
            Self::StandardBefore => "before-standard",
        }
    }

    /// Starts watching; returns when it does.
    pub(super) fn start(self, stage: &Stage) -> Result<Watcher> {
        let before =
            || std::env::var_os(BEFORE).map(PathBuf::from).with_context(|| format!("{BEFORE} names no program"));
        let probe = |stage, arguments: &[&str]| start_probe(stage, binary()?, arguments);
        let running = match self {
            Self::Bare => Running::Nobody,
            Self::LightBefore => start_probe(stage, before()?, &["watch", "--depth", "light"])?,
            Self::StandardBefore => start_probe(stage, before()?, &["watch", "--depth", "standard"])?,
            Self::Light => probe(stage, &["watch", "--depth", "light"])?,
            Self::Standard => probe(stage, &["watch", "--depth", "standard"])?,
            Self::Deep => probe(stage, &["watch", "--depth", "deep"])?,
            Self::Record => {
                let recording = file(stage, "bench.p502").display().to_string();
                probe(stage, &["record", "--out", &recording])?
            }
            Self::Hook("packets") => probe(stage, &["watch", "--hooks", ""])?,
            Self::Hook("nothing") => probe(stage, &["watch", "--hooks", "", "--no-packets"])?,
            Self::Hook(names) => probe(stage, &["watch", "--hooks", names, "--no-packets"])?,
            Self::Strace => strace(stage)?,
            Self::Tcpdump => tcpdump(stage, "tcp")?,
            Self::TcpdumpReset => tcpdump(stage, "tcp[tcpflags] & tcp-rst != 0")?,
            Self::Bpftrace => bpftrace(stage)?,
        };
        Ok(Watcher { running })
    }
}

fn start_probe(stage: &Stage, program: PathBuf, arguments: &[&str]) -> Result<Running> {
    let data = file(stage, "probe502.jsonl");
    let out = fs::File::create(&data).with_context(|| format!("make {}", data.display()))?;
    let mut command = Command::new(program);
    command.args(arguments).args(["--json", "-q", "--pid", &stage.nginx().master().to_string()]);
    let mut command = quiet(command);
    command.stdout(out);
    let mut process = Process::spawn("probe502", command, Start::default())?;
    wait_until("probe502 is ready", Duration::from_secs(10), || {
        if let Some(status) = process.ended()? {
            bail!("probe502 ended at once: {status}");
        }
        Ok(fs::read_to_string(&data).is_ok_and(|text| text.contains("\"ready\"")))
    })?;
    Ok(Running::Probe(process, data))
}

fn strace(stage: &Stage) -> Result<Running> {
    let workers = stage.nginx().workers()?;
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", "trace=network", "-o"]).arg(file(stage, "strace.txt"));
    for worker in &workers {
        command.arg("-p").arg(worker.to_string());
    }
    let process = Process::spawn("strace", quiet(command), Start::default())?;
    wait_until("strace is attached", Duration::from_secs(5), || {
        let mut all = true;
        for worker in &workers {
            let path = format!("/proc/{worker}/status");
            let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            all &= status.lines().any(|line| line == format!("TracerPid:\t{}", process.pid()));
        }
        Ok(all)
    })?;
    Ok(Running::Other(process))
}

fn tcpdump(stage: &Stage, filter: &str) -> Result<Running> {
    let target = file(stage, "tcpdump.pcap");
    if target.exists() {
        fs::remove_file(&target).with_context(|| format!("remove {}", target.display()))?;
    }
    let mut command = Command::new("tcpdump");
    command.args(["-Z", "root", "-n", "-i", "proxy-a", "-s", "0", "-w"]).arg(&target).arg(filter);
    let start = Start { namespace: Some(stage.lab().proxy()), ..Start::default() };
    let process = Process::spawn("tcpdump", quiet(command), start)?;
    wait_until("tcpdump captures", Duration::from_secs(5), || Ok(target.exists()))?;
    Ok(Running::Other(process))
}

/// In a mount namespace of its own, where tracefs can be mounted without changing the host.
fn bpftrace(stage: &Stage) -> Result<Running> {
    let (script, output) = (file(stage, "script.bt"), file(stage, "bpftrace.txt"));
    fs::write(&script, SCRIPT).with_context(|| format!("write {}", script.display()))?;
    let shell = "mount -t tracefs none /sys/kernel/tracing 2>/dev/null; exec bpftrace \"$1\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", shell, "bpftrace"]).arg(&script);
    let out = fs::File::create(&output).with_context(|| format!("make {}", output.display()))?;
    let mut command = quiet(command);
    command.stdout(out);
    let mut process = Process::spawn("bpftrace", command, Start::default())?;
    wait_until("bpftrace has attached", Duration::from_secs(15), || {
        if let Some(status) = process.ended()? {
            bail!("bpftrace ended at once: {status}");
        }
        Ok(fs::read_to_string(&output).is_ok_and(|text| text.contains("Attaching")))
    })?;
    // It says so before it does it.
    std::thread::sleep(Duration::from_millis(700));
    Ok(Running::Other(process))
}

fn file(stage: &Stage, name: &str) -> PathBuf {
    stage.lab().directory().join(name)
}

fn quiet(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

impl Watcher {
    /// Its own CPU time, nanoseconds.
    pub(super) fn spent(&self) -> Result<u64> {
        self.pid().map_or(Ok(0), spent_by)
    }

    /// The most memory it ever held, bytes.
    pub(super) fn peak_bytes(&self) -> Option<u64> {
        memory::peak(self.pid()?).ok()
    }

    /// Its process.
    pub(super) fn pid(&self) -> Option<u32> {
        match &self.running {
            Running::Nobody => None,
            Running::Probe(process, _) | Running::Other(process) => Some(process.pid()),
        }
    }

    /// Ends it in order.
    pub(super) fn stop(self) -> Result<Option<Said>> {
        match self.running {
            Running::Nobody => Ok(None),
            Running::Other(mut process) => {
                process.signal(Signal::SIGINT)?;
                process.wait(Duration::from_secs(10))?;
                Ok(None)
            }
            Running::Probe(mut process, data) => {
                process.signal(Signal::SIGINT)?;
                process.wait(Duration::from_secs(30))?;
                let text = fs::read_to_string(&data).with_context(|| format!("read {}", data.display()))?;
                let last = text.lines().next_back().context("probe502 printed nothing")?;
                let Line::Summary(summary) = serde_json::from_str(last).context("the summary")? else {
                    bail!("the last line is no summary: {last}")
                };
                let incidents = summary.incidents + summary.near_misses;
                Ok(Some(Said { incidents, lost: summary.events_lost + summary.packets_dropped }))
            }
        }
    }
}
