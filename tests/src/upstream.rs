//! Upstream processes: the lab's own server and real ones.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::client::Connection;
use crate::lab::Lab;
use crate::process::{Process, Start, Stopped, open_files, wait_until};

/// Servers start well within this, Node.js on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which server.
#[derive(Debug, Clone)]
pub enum Kind {
    /// The lab's own (`crate::server`).
    Own {
        /// Where it takes commands; an address inside the app namespace.
        control: Option<SocketAddr>,
        /// After how long it closes idle connections.
        idle: Option<Duration>,
    },
    /// Node.js with `upstreams/server.js`.
    Node {
        /// Its `keepAliveTimeout`; Node's own default when `None`.
        keep_alive: Option<Duration>,
    },
}

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
        let mut command = match &plan.kind {
            Kind::Own { control, idle } => {
                let mut command = Command::new(own_binary(lab)?);
                command.args(plan.listen.iter().map(ToString::to_string));
                if let Some(control) = control {
                    command.arg("--control").arg(control.to_string());
                }
                if let Some(idle) = idle {
                    command.arg("--idle-ms").arg(idle.as_millis().to_string());
                }
                command
            }
            Kind::Node { keep_alive } => {
                let [address] = plan.listen[..] else { bail!("the Node.js server listens on one address") };
                // The script is part of the program: a demo binary may stand alone.
                let script = lab.directory().join("server.js");
                std::fs::write(&script, include_str!("../upstreams/server.js")).context("write server.js")?;
                let mut command = Command::new("node");
                command.arg(script).arg(address.ip().to_string()).arg(address.port().to_string());
                if let Some(keep_alive) = keep_alive {
                    command.arg(keep_alive.as_millis().to_string());
                }
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let start = Start { namespace: Some(lab.app()), open_files: plan.open_files, ..Start::default() };
        let process = Process::spawn(plan.name, command, start)?;
        let mut upstream = Self { plan, process };
        upstream.wait_listens(lab)?;
        Ok(upstream)
    }

    /// Waits until every address accepts.
    fn wait_listens(&mut self, lab: &Lab) -> Result<()> {
        let name = self.plan.name;
        for address in self.plan.listen.clone() {
            wait_until(&format!("{name} listens on {address}"), PATIENCE, || {
                if let Some(status) = self.process.ended()? {
                    bail!("{name} ended at once: {status}");
                }
                Ok(Connection::open(lab.app(), address).is_ok())
            })?;
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
