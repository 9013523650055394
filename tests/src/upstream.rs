//! Upstream processes: the lab's own server and real ones.

mod kind;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub use self::kind::{Gunicorn, Kind, Php};
use crate::client::Connection;
use crate::lab::Lab;
use crate::nginx::children_of;
use crate::process::{Process, Start, Stopped, open_files, send, wait_until};

/// Servers start well within this, Node.js on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server to be started.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How the lab calls it.
    pub name: &'static str,
    /// Which server.
    pub kind: Kind,
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// Its limit of open files.
    pub open_files: Option<u64>,
}

/// A running upstream.
#[derive(Debug)]
pub struct Upstream {
    plan: Plan,
    process: Process,
}

impl Upstream {
    /// Starts the server in the app namespace and waits until it accepts.
    pub fn start(lab: &Lab, plan: Plan) -> Result<Self> {
        let mut command = kind::command(lab, &plan)?;
        let log = log_of(lab, plan.name);
        let said = std::fs::File::create(&log).with_context(|| format!("make {}", log.display()))?;
        // Some programs end with their standard input.
        let input = if matches!(plan.kind, Kind::Program { .. }) { Stdio::piped() } else { Stdio::null() };
        command.stdin(input).stdout(Stdio::null()).stderr(said);
        let start = Start { namespace: Some(lab.app()), open_files: plan.open_files, ..Start::default() };
        let process = Process::spawn(plan.name, command, start)?;
        let mut upstream = Self { plan, process };
        upstream.wait_listens(lab)?;
        Ok(upstream)
    }

    /// Waits until every address accepts, and answers where it can be asked in HTTP.
    fn wait_listens(&mut self, lab: &Lab) -> Result<()> {
        let (name, http) = (self.plan.name, self.plan.kind.speaks_http());
        for address in self.plan.listen.clone() {
            wait_until(&format!("{name} listens on {address}"), PATIENCE, || {
                self.check_runs(lab)?;
                let Ok(mut connection) = Connection::open(lab.app(), address) else { return Ok(false) };
                Ok(!http || connection.get("/ok")?.status == Some(200))
            })?;
        }
        if let Kind::Php(Php { socket: Some(path), .. }) = self.plan.kind.clone() {
            wait_until(&format!("{name} listens on {}", path.display()), PATIENCE, || {
                self.check_runs(lab)?;
                Ok(UnixStream::connect(&path).is_ok())
            })?;
        }
        Ok(())
    }

    /// Fails when it has ended.
    fn check_runs(&mut self, lab: &Lab) -> Result<()> {
        if let Some(status) = self.process.ended()? {
            let said = std::fs::read_to_string(log_of(lab, self.plan.name)).unwrap_or_default();
            bail!("{} ended at once: {status}\n{said}", self.plan.name);
        }
        Ok(())
    }

    /// How the lab calls it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.plan.name
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The processes that its master has started, in order.
    pub fn workers(&self) -> Result<Vec<u32>> {
        children_of(self.pid())
    }

    /// How many files each of its workers has open.
    pub fn worker_files(&self) -> Result<BTreeMap<u32, u64>> {
        self.workers()?.into_iter().map(|pid| Ok((pid, open_files(pid)?))).collect()
    }

    /// Waits for the worker that has taken one more connection than it had.
    pub fn wait_taken(&self, before: &BTreeMap<u32, u64>) -> Result<u32> {
        let mut taker = None;
        wait_until(&format!("a worker of {} takes the connection", self.name()), PATIENCE, || {
            let now = self.worker_files()?;
            taker = now.into_iter().find(|(pid, files)| before.get(pid).is_some_and(|before| files > before));
            Ok(taker.is_some())
        })?;
        Ok(taker.context("the taker")?.0)
    }

    /// Waits for the end of one of these workers, and for another in its place. Gives the one that is gone.
    pub fn wait_replaced(&self, before: &[u32]) -> Result<u32> {
        let mut gone = None;
        wait_until(&format!("a worker of {} is replaced", self.name()), PATIENCE, || {
            let now = self.workers()?;
            gone = before.iter().copied().find(|pid| !now.contains(pid));
            Ok(gone.is_some() && now.len() >= before.len())
        })?;
        gone.context("the one that is gone")
    }

    /// The first address it listens on.
    pub fn address(&self) -> Result<SocketAddr> {
        self.plan.listen.first().copied().with_context(|| format!("{} listens nowhere", self.name()))
    }

    /// Sends a command to the control address (`/close-idle`, `/reset-idle`, `/count`) and gives to how many idle connections
    /// it applied. When this returns, they are closed.
    pub fn command(&self, lab: &Lab, command: &str) -> Result<usize> {
        let Kind::Own { control: Some(control), .. } = self.plan.kind else {
            bail!("{} takes no commands", self.name())
        };
        let answer = Connection::open(lab.app(), control)?.get(command)?;
        String::from_utf8_lossy(&answer.body).trim().parse().with_context(|| format!("the answer to {command}"))
    }

    /// Stops the server (SIGSTOP) while `work` runs.
    pub fn while_stopped<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _stopped = Stopped::new(vec![self.pid()])?;
        work()
    }

    /// Bytes that wait unread in the receive queues of its connections.
    pub fn unread_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/net/tcp", self.pid());
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let port = format!(":{:04X}", self.address()?.port());
        let mut sum = 0;
        for line in text.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(1);
            let (local, state) = (fields.next(), fields.nth(1));
            if state == Some("01") && local.is_some_and(|local| local.ends_with(&port)) {
                let queue = fields.next().and_then(|queues| queues.split_once(':')).context("the queues")?.1;
                sum += u64::from_str_radix(queue, 16).with_context(|| format!("the receive queue {queue}"))?;
            }
        }
        Ok(sum)
    }

    /// Opens connections to the server, from beside it, until it has no descriptor left for another one. The connections are
    /// held as long as they are kept.
    pub fn exhaust(&self, lab: &Lab) -> Result<Vec<Connection>> {
        let limit = self.plan.open_files.with_context(|| format!("{} has no limit of open files", self.name()))?;
        let mut held = Vec::new();
        for _ in 0..limit {
            held.push(Connection::open(lab.app(), self.address()?)?);
        }
        wait_until("the upstream has no descriptor left", PATIENCE, || Ok(open_files(self.pid())? >= limit))?;
        Ok(held)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        // The master first: it would start others. Killing it alone would leave its workers behind.
        let workers = self.workers().unwrap_or_default();
        let _ = self.process.signal(nix::sys::signal::Signal::SIGKILL);
        for worker in workers {
            let _ = send(worker, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Where a server's stderr goes.
fn log_of(lab: &Lab, name: &str) -> PathBuf {
    lab.directory().join(format!("{name}.stderr.log"))
}

/// The program that runs `crate::server`: the `upstream` binary beside this one, or this one under that name.
pub(crate) fn own_binary(lab: &Lab) -> Result<PathBuf> {
    let me = std::env::current_exe().context("find the running program")?;
    if me.file_name().is_some_and(|name| name == "demo") {
        // `cargo run --bin demo` builds no other program; the demo is a server too when it is called `upstream`.
        let link = lab.directory().join("upstream");
        if !link.exists() {
            std::os::unix::fs::symlink(&me, &link).with_context(|| format!("make {}", link.display()))?;
        }
        return Ok(link);
    }
    // Tests lie one directory deeper (deps) than programs.
    let beside = me.ancestors().skip(1).take(2).map(|directory: &Path| directory.join("upstream"));
    let found = beside.into_iter().find(|path| path.is_file());
    found.with_context(|| format!("no `upstream` beside {}: build it with `cargo build -p probe-tests`", me.display()))
}
