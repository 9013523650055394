//! Where it is measured: an nginx with two workers before an upstream, which is a copy of it that nobody watches.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::wrk::{self, Tally};
use crate::client::Connection;
use crate::config::Config;
use crate::lab::Lab;
use crate::nginx::{Nginx, children_of};
use crate::process::{Process, Start, wait_until};

/// The upstream's port, and one where nobody listens.
const UPSTREAM: u16 = 9001;
const NOBODY: u16 = 9099;

/// One request in so many fails under the load `failing`.
const FAILS: u32 = 100;

/// A kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Load {
    /// Connections to the upstream are kept.
    Keepalive,
    /// Every request has a fresh connection to the upstream.
    Fresh,
    /// Kept connections, and one request in a hundred fails in one of three ways.
    Failing,
    /// Every request fails: nobody listens.
    Storm,
}

impl Load {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Keepalive, Self::Fresh, Self::Failing, Self::Storm];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keepalive => "keepalive",
            Self::Fresh => "fresh",
            Self::Failing => "failing",
            Self::Storm => "storm",
        }
    }

    /// The path that is asked for, and which request in how many fails.
    const fn traffic(self) -> (&'static str, u32) {
        match self {
            Self::Keepalive => ("/kept", 0),
            Self::Fresh => ("/fresh", 0),
            Self::Failing => ("/kept", FAILS),
            Self::Storm => ("/refused", 0),
        }
    }
}

/// The running set-up.
#[derive(Debug)]
pub struct Stage {
    // Dropped in this order: nginx before its upstream, both before the lab.
    nginx: Nginx,
    upstream: Process,
    lab: Lab,
}

impl Stage {
    /// Starts it. `logs`: nginx writes a line for each request, as it does unless it is told not to.
    pub fn set_up(logs: bool) -> Result<Self> {
        let lab = Lab::new()?;
        let app = lab.addresses().app;
        let mut config = Config { workers: 2, ..Config::default() };
        config
            .upstream("kept", &[&format!("server {app}:{UPSTREAM};"), "keepalive 64;", "keepalive_requests 1000000;"]);
        let kept = ["proxy_pass http://kept;", "proxy_http_version 1.1;", "proxy_set_header Connection \"\";"];
        config.location("/kept", &kept);
        config.location("/fresh", &[&format!("proxy_pass http://{app}:{UPSTREAM};")]);
        config.location("/refused", &[&format!("proxy_pass http://{app}:{NOBODY};")]);
        config.location("/closed", &[&format!("proxy_pass http://{app}:{UPSTREAM}/closed;")]);
        config.location("/big-header", &[&format!("proxy_pass http://{app}:{UPSTREAM}/big-header;")]);
        if !logs {
            // The log of a thousand requests a second is not what is measured.
            config.server.push_str("        access_log off;\n");
        }
        let nginx = Nginx::start(&lab, "bench", &config)?;
        let upstream = start_upstream(&lab, &nginx)?;
        Ok(Self { nginx, upstream, lab })
    }

    /// The lab.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The nginx that is watched.
    #[must_use]
    pub fn nginx(&self) -> &Nginx {
        &self.nginx
    }

    /// Lets `wrk` ask.
    pub fn load(&self, load: Load, seconds: u32) -> Result<Tally> {
        let (path, fails) = load.traffic();
        let url = format!("http://{}:{}", self.lab.addresses().proxy, self.nginx.port());
        wrk::run(self.lab.client(), self.lab.directory(), &url, path, fails, seconds)
    }

    /// CPU time of all workers, nginx's and the upstream's, nanoseconds.
    pub fn spent(&self) -> Result<u64> {
        self.workers()?.into_iter().map(spent_by).sum()
    }

    /// All workers, nginx's and the upstream's.
    pub fn workers(&self) -> Result<BTreeSet<u32>> {
        let mut pids: BTreeSet<u32> = self.nginx.workers()?.into_iter().collect();
        pids.extend(children_of(self.upstream.pid())?);
        Ok(pids)
    }
}

/// CPU time of a process with all its threads, nanoseconds, by the scheduler.
pub fn spent_by(pid: u32) -> Result<u64> {
    let tasks = PathBuf::from(format!("/proc/{pid}/task"));
    let mut sum = 0;
    for task in fs::read_dir(&tasks).with_context(|| format!("list {}", tasks.display()))? {
        let path = task.with_context(|| format!("list {}", tasks.display()))?.path().join("schedstat");
        // A thread may end between the listing and the reading; what it spent is then lost, as it is to everybody.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let spent: u64 =
            text.split(' ').next().unwrap_or_default().parse().with_context(|| path.display().to_string())?;
        sum += spent;
    }
    Ok(sum)
}

/// An nginx that plays the upstream: the fastest that is at hand, so that it hides least of what is added.
fn start_upstream(lab: &Lab, nginx: &Nginx) -> Result<Process> {
    let directory = lab.subdirectory("bench-upstream")?;
    let app = lab.addresses().app;
    let long = "x".repeat(3000);
    let text = format!(
        "daemon off;\nworker_processes 2;\nerror_log {log} error;\npid {pid};\nevents {{ worker_connections 4096; }}\n\
         http {{ access_log off; keepalive_requests 1000000; server {{ listen {app}:{UPSTREAM} backlog=4096;\n\
         location / {{ return 200 \"{body}\"; }}\n\
         location /closed {{ return 444; }}\n\
         location /big-header {{ add_header A {long}; add_header B {long}; return 200 \"ok\"; }}\n}} }}\n",
        log = directory.join("error.log").display(),
        pid = directory.join("nginx.pid").display(),
        body = "o".repeat(300),
    );
    let process = serve(lab, nginx, &directory, &text)?;
    let address = (app, UPSTREAM).into();
    wait_until("the upstream of the bench answers", Duration::from_secs(10), || {
        Ok(Connection::open(lab.app(), address).is_ok())
    })?;
    Ok(process)
}

/// Runs a copy of nginx's program in the upstream's namespace. A program of its own: breakpoints in the nginx that is watched are in every
/// process that runs the same file.
pub(super) fn serve(lab: &Lab, nginx: &Nginx, directory: &Path, configuration: &str) -> Result<Process> {
    let path = directory.join("nginx.conf");
    fs::write(&path, configuration).with_context(|| format!("write {}", path.display()))?;
    let (watched, program) = (format!("/proc/{}/exe", nginx.master()), directory.join("upstream"));
    fs::copy(&watched, &program).with_context(|| format!("copy {watched} to {}", program.display()))?;
    let mut command = Command::new(&program);
    command.arg("-c").arg(&path).arg("-p").arg(directory).arg("-e").arg(directory.join("error.log"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Process::spawn("bench upstream", command, Start { namespace: Some(lab.app()), ..Start::default() })
}

impl Drop for Stage {
    fn drop(&mut self) {
        // In order, so that its workers end with it.
        let _ = self.upstream.signal(Signal::SIGTERM);
        let _ = self.upstream.wait(Duration::from_secs(3));
    }
}
