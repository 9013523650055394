//! The probe as a user runs it: started on the host, its lines collected, ended in order.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::expect::{Report, Witness, check};
use crate::line::{Incident, Line, Notice, Ready, Summary};
use crate::process::{Process, Start};

/// From start to `ready`.
const READY: Duration = Duration::from_secs(10);
/// Both in an emulated machine, whose first process sets this variable ([`crate::vm`]).
const EMULATED_PATIENCE: Duration = Duration::from_mins(1);
const EMULATED: &str = "PROBE502_EMULATED";
/// From SIGINT to the end; what is pending is judged and written meanwhile.
const END: Duration = Duration::from_secs(10);

/// The program under test, from `PROBE502_BIN`.
pub fn binary() -> Result<PathBuf> {
    let path = std::env::var_os("PROBE502_BIN").context(
        "PROBE502_BIN does not name the program under test: run `cargo xtask test`, or set it to target/…/probe502",
    )?;
    let path = PathBuf::from(path);
    path.canonicalize().with_context(|| format!("PROBE502_BIN={}", path.display()))
}

/// Whether this is an emulated machine, which nobody else uses.
#[must_use]
pub fn is_emulated() -> bool {
    std::env::var_os(EMULATED).is_some()
}

/// How long something may take here that usually takes so long.
pub(crate) fn patience(usually: Duration) -> Duration {
    if is_emulated() { EMULATED_PATIENCE } else { usually }
}

/// What a command that ends by itself has printed.
#[derive(Debug)]
pub struct Printed {
    /// The exit status.
    pub status: ExitStatus,
    /// The data.
    pub stdout: String,
    /// What was said beside.
    pub stderr: String,
}

/// Runs a command of the probe that ends by itself; one that does not is killed, which is an error.
pub fn output(arguments: &[&str]) -> Result<Printed> {
    output_within(arguments, patience(END))
}

/// The same for one that may take its time.
pub fn output_within(arguments: &[&str], patience: Duration) -> Result<Printed> {
    let mut command = Command::new(binary()?);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process::spawn("probe502", command, Start::default())?;
    let stdout = process.child().stdout.take().context("the probe's stdout")?;
    let stderr = process.child().stderr.take().context("the probe's stderr")?;
    let readers = [std::thread::spawn(move || slurp(stdout)), std::thread::spawn(move || slurp(stderr))];
    let status = process.wait(patience).with_context(|| format!("probe502 {}", arguments.join(" ")));
    drop(process);
    let [stdout, stderr] = readers.map(|reader| reader.join().unwrap_or_default());
    Ok(Printed { status: status?, stdout, stderr })
}

/// Everything there is to read.
fn slurp(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // What was read before an error is what there is to show.
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A line and when it came.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// When it came.
    pub at: Instant,
    /// The line as it came.
    pub text: String,
    /// The line as it was read; the error when it breaks the contract.
    pub line: Result<Line, String>,
}

/// What has come so far.
#[derive(Debug, Default)]
struct Received {
    lines: Vec<Arrived>,
    stderr: String,
    ended: bool,
}

/// The received lines and the bell that rings for each.
#[derive(Debug, Default)]
struct Inbox {
    received: Mutex<Received>,
    bell: Condvar,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit status.
    pub status: ExitStatus,
    /// Everything it printed as data.
    pub lines: Vec<Arrived>,
    /// Everything it said beside.
    pub stderr: String,
}

impl Ended {
    /// The summary, which must be there once and last.
    pub fn summary(&self) -> Result<&Summary> {
        match self.lines.last() {
            Some(Arrived { line: Ok(Line::Summary(summary)), .. }) => Ok(summary),
            other => bail!("the last line is no summary: {other:?}\nstderr:\n{}", self.stderr),
        }
    }
}

/// A running `probe502 watch --json`; killed when dropped.
#[derive(Debug)]
pub struct Probe {
    process: Process,
    inbox: Arc<Inbox>,
    readers: Vec<JoinHandle<()>>,
}

impl Probe {
    /// Starts `watch --json` with further arguments and waits for its `ready` line.
    pub fn watch<S: Into<OsString>>(arguments: impl IntoIterator<Item = S>) -> Result<Self> {
        let probe = Self::watch_without_waiting(arguments)?;
        probe.wait_ready(patience(READY))?;
        Ok(probe)
    }

    /// The same for one nginx, given by its master's pid: others on this host are none of our business.
    pub fn watch_nginx(master: u32, arguments: &[&str]) -> Result<Self> {
        let pid = master.to_string();
        Self::watch(["--pid", &pid].into_iter().chain(arguments.iter().copied()))
    }

    /// The same with a recorder, for one nginx: what it prints must be what the recording replays to ([`crate::recording`]).
    pub fn record_nginx(master: u32, file: &Path, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(binary()?);
        command.args(["record", "--json", "--pid", &master.to_string(), "--out"]).arg(file).args(arguments);
        let probe = Self::run(command, Start::default())?;
        probe.wait_ready(patience(READY))?;
        Ok(probe)
    }

    /// Starts `watch --json` with further arguments.
    pub fn watch_without_waiting<S: Into<OsString>>(arguments: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut command = Command::new(binary()?);
        command.args(["watch", "--json"]).args(arguments.into_iter().map(Into::into));
        Self::run(command, Start::default())
    }

    /// Starts any command of the probe and collects what it prints.
    pub fn run(mut command: Command, start: Start<'_>) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process::spawn("probe502", command, start)?;
        let stdout = process.child().stdout.take().context("the probe's stdout")?;
        let stderr = process.child().stderr.take().context("the probe's stderr")?;
        let inbox = Arc::new(Inbox::default());
        let readers = vec![
            std::thread::spawn({
                let inbox = Arc::clone(&inbox);
                move || collect(stdout, &inbox)
            }),
            std::thread::spawn({
                let inbox = Arc::clone(&inbox);
                move || listen(stderr, &inbox)
            }),
        ];
        Ok(Self { process, inbox, readers })
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has said beside the data.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.inbox.lock().stderr.clone()
    }

    /// Waits for the first line that `pick` takes.
    pub fn wait_for<T>(&self, what: &str, timeout: Duration, mut pick: impl FnMut(&Arrived) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + timeout;
        let mut received = self.inbox.lock();
        let mut seen = 0;
        loop {
            for arrived in &received.lines[seen..] {
                if let Err(error) = &arrived.line {
                    bail!("a line breaks the contract: {error}\n{}", arrived.text);
                }
                if let Some(found) = pick(arrived) {
                    return Ok(found);
                }
            }
            seen = received.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if received.ended || left.is_zero() {
                let why = if received.ended { "the probe ended" } else { "the time is over" };
                let texts: Vec<&str> = received.lines.iter().map(|arrived| arrived.text.as_str()).collect();
                let (texts, stderr) = (texts.join("\n"), &received.stderr);
                bail!("waited for {what}: {why}\n--- lines\n{texts}\n--- stderr\n{stderr}");
            }
            received = self.inbox.bell.wait_timeout(received, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for `ready`.
    pub fn wait_ready(&self, timeout: Duration) -> Result<Ready> {
        self.wait_for("`ready`", timeout, |arrived| match &arrived.line {
            Ok(Line::Ready(ready)) => Some(ready.clone()),
            _ => None,
        })
    }

    /// Waits for a notice.
    pub fn wait_notice(&self, timeout: Duration, mut wanted: impl FnMut(&Notice) -> bool) -> Result<Notice> {
        self.wait_for("a notice", timeout, |arrived| match &arrived.line {
            Ok(Line::Notice(notice)) if wanted(notice) => Some(notice.clone()),
            _ => None,
        })
    }

    /// Waits for an incident or a near miss.
    pub fn wait_incident(
        &self,
        timeout: Duration,
        mut wanted: impl FnMut(Report, &Incident) -> bool,
    ) -> Result<(Report, Incident, Instant)> {
        self.wait_for("an incident", timeout, |arrived| {
            let (report, incident) = reported(arrived)?;
            wanted(report, incident).then(|| (report, incident.clone(), arrived.at))
        })
    }

    /// The incidents and near misses so far.
    #[must_use]
    pub fn incidents(&self) -> Vec<(Report, Incident)> {
        let received = self.inbox.lock();
        received.lines.iter().filter_map(reported).map(|(report, incident)| (report, incident.clone())).collect()
    }

    /// Waits for the incident of every witness that must be reported and checks it; gives the incidents in the witnesses' order.
    /// `within` is the time from the client's answer to the line.
    pub fn check_all(&self, witnesses: &[Witness], within: Duration) -> Result<Vec<Incident>> {
        let mut incidents: Vec<Incident> = Vec::new();
        for witness in witnesses {
            if witness.expected.report == Report::Nothing {
                continue;
            }
            let wanted = |_: Report, incident: &Incident| witness.is_meant_by(incident);
            // Waited for longer than allowed, to tell a late line from a missing one.
            let (report, incident, at) = self
                .wait_incident(within + Duration::from_secs(4), wanted)
                .with_context(|| format!("for {witness:#?}"))?;
            check(witness, report, &incident)?;
            let late = at.saturating_duration_since(witness.exchange.answered);
            if late > within {
                bail!("the line came {late:?} after the client's answer, not within {within:?}: {incident:#?}");
            }
            if let Some(earlier) = witness.expected.blames.and_then(|index| incidents.get(index)) {
                let texts = incident.evidence.iter().map(|evidence| evidence.text.as_str());
                if !texts.chain([incident.verdict.summary.as_str()]).any(|text| text.contains(&earlier.id)) {
                    bail!("the incident does not name {} to blame: {incident:#?}", earlier.id);
                }
            }
            incidents.push(incident);
        }
        Ok(incidents)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Waits for the end.
    pub fn wait_end(mut self, timeout: Duration) -> Result<Ended> {
        let status = self.process.wait(timeout).with_context(|| format!("stderr:\n{}", self.stderr()))?;
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        let mut received = self.inbox.lock();
        let lines = std::mem::take(&mut received.lines);
        let stderr = std::mem::take(&mut received.stderr);
        Ok(Ended { status, lines, stderr })
    }

    /// Ends it with SIGINT: it must exit 0 with a summary, and every line must have kept the contract.
    pub fn stop(self) -> Result<Ended> {
        self.signal(Signal::SIGINT)?;
        let ended = self.wait_end(patience(END))?;
        if !ended.status.success() {
            bail!("the probe ended with {}\nstderr:\n{}", ended.status, ended.stderr);
        }
        for arrived in &ended.lines {
            if let Err(error) = &arrived.line {
                bail!("a line breaks the contract: {error}\n{}", arrived.text);
            }
        }
        ended.summary()?;
        Ok(ended)
    }
}

/// The incident or near miss of a line.
fn reported(arrived: &Arrived) -> Option<(Report, &Incident)> {
    match &arrived.line {
        Ok(Line::Incident(incident)) => Some((Report::Incident, incident)),
        Ok(Line::NearMiss(incident)) => Some((Report::NearMiss, incident)),
        _ => None,
    }
}

/// Reads the data, line by line.
fn collect(stdout: impl Read, inbox: &Inbox) {
    for text in BufReader::new(stdout).lines() {
        let Ok(text) = text else { break };
        let line = serde_json::from_str(&text).map_err(|error| error.to_string());
        inbox.lock().lines.push(Arrived { at: Instant::now(), text, line });
        inbox.bell.notify_all();
    }
    inbox.lock().ended = true;
    inbox.bell.notify_all();
}

/// Reads what is said beside, as it comes.
fn listen(mut stderr: impl Read, inbox: &Inbox) {
    let mut chunk = [0; 4096];
    while let Ok(count) = stderr.read(&mut chunk) {
        if count == 0 {
            break;
        }
        inbox.lock().stderr.push_str(&String::from_utf8_lossy(&chunk[..count]));
    }
}
