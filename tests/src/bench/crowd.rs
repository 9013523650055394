//! How much memory the probe takes while very many connections to an upstream are open, and while they are opened.

use std::fmt::{self, Display, Formatter, Write as _};
use std::fs;
use std::ops::Range;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde::Serialize;

use super::memory::{now, peak};
use super::stage::serve;
use super::wrk::{A_PROCESS, hold};
use crate::config::Config;
use crate::lab::Lab;
use crate::nginx::Nginx;
use crate::probe::Probe;
use crate::process::{Process, wait_until};

/// Connections that the bench opens: what the goal speaks of.
pub const CONNECTIONS: usize = 50_000;

/// The first of nginx's ports, the first of the upstream's, and how many of each: from one address towards one port there are 28,232
/// connections at most.
const NGINX: u16 = 8101;
const UPSTREAM: u16 = 9001;
const PORTS: u16 = 4;
/// Connections that one client opens at once: what fits into an accept queue.
const A_CLIENT: usize = 2_500;
/// nginx's workers, with two connections for each that is held, and the upstream's, with one: their shares are not even.
const WORKERS: u32 = 9;
const UPSTREAM_WORKERS: u32 = 6;
/// For everything that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was measured, bytes.
#[derive(Debug, Clone, Serialize)]
pub struct Crowd {
    /// Connections.
    pub connections: usize,
    /// From the first to the last, seconds.
    pub opened_s: f64,
    /// Before the first.
    pub before: u64,
    /// At most while they were opened.
    pub opening: u64,
    /// Once they have been open for a while, and after as long again.
    pub open: [u64; 2],
    /// Records lost until they had all ended, at once.
    pub lost: u64,
}

impl Display for Crowd {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let Self { connections, opened_s, before, opening, open: [first, second], lost } = self;
        let [before, opening, first, second] = [before, opening, first, second].map(|bytes| Mebibytes(*bytes));
        write!(
            formatter,
            "{connections} connections opened in {opened_s:.0} s: {before} MiB before, {opening} at most while they were opened, \
             {first} and {second} while they were open; {lost} records lost when all had ended at once"
        )
    }
}

/// Bytes, shown as MiB.
struct Mebibytes(u64);

impl Display for Mebibytes {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let tenths = self.0 * 10 / (1 << 20);
        write!(formatter, "{}.{}", tenths / 10, tenths % 10)
    }
}

/// Measures it with so many connections, which stay open for twice as long as `rest`.
pub fn measure(connections: usize, rest: Duration) -> Result<Crowd> {
    let lab = Lab::new()?;
    let app = lab.addresses().app;
    let mut config = Config { workers: WORKERS, connections: 19_000, open_files: Some(A_PROCESS), ..Config::default() };
    for port in ports(NGINX) {
        writeln!(config.server, "        listen {port} backlog=4096;")?;
    }
    let servers: Vec<String> = ports(UPSTREAM).map(|port| format!("server {app}:{port};")).collect();
    config.upstream("held", &servers.iter().map(String::as_str).collect::<Vec<_>>());
    config.location("/held", &["proxy_pass http://held;", "proxy_read_timeout 1h;"]);
    let nginx = Nginx::start(&lab, "crowd", &config)?;
    let mut upstream = start_upstream(&lab, &nginx)?;
    let mut clients = Vec::new();
    let measured = watched(&lab, &nginx, connections, rest, &mut clients);
    for process in clients.iter_mut().chain([&mut upstream]) {
        process.signal(Signal::SIGTERM)?;
        process.wait(PATIENCE)?;
    }
    measured
}

fn watched(lab: &Lab, nginx: &Nginx, connections: usize, rest: Duration, clients: &mut Vec<Process>) -> Result<Crowd> {
    let master = nginx.master().to_string();
    let probe = Probe::watch_without_waiting(["--pid", &master, "-q"])?;
    probe.wait_ready(PATIENCE)?;
    sleep(rest.min(Duration::from_secs(2)));
    let before = now(probe.pid())?;
    let start = Instant::now();
    let nobody = sockets(lab)?;
    for (first, port) in (0..connections).step_by(A_CLIENT).zip(ports(NGINX).cycle()) {
        let wanted = connections.min(first + A_CLIENT);
        clients.push(hold(lab, port, wanted - first)?);
        wait_until("a client's connections to the upstream are open", PATIENCE, || {
            Ok(sockets(lab)? >= nobody + wanted)
        })?;
    }
    let opened = start.elapsed();
    let opening = peak(probe.pid())?;
    let mut held = [0; 2];
    for bytes in &mut held {
        sleep(rest);
        *bytes = now(probe.pid())?;
    }
    for client in clients.iter_mut() {
        client.signal(Signal::SIGKILL)?;
        client.wait(PATIENCE)?;
    }
    wait_until("every connection has ended", PATIENCE, || Ok(sockets(lab)? <= nobody))?;
    probe.signal(Signal::SIGINT)?;
    let lost = probe.wait_end(PATIENCE)?.summary()?.events_lost;
    clients.clear();
    Ok(Crowd { connections, opened_s: opened.as_secs_f64(), before, opening, open: held, lost })
}

fn ports(first: u16) -> Range<u16> {
    first..first + PORTS
}

/// How many TCP sockets there are at the upstream's.
fn sockets(lab: &Lab) -> Result<usize> {
    let text = lab.app().inside(|| fs::read_to_string("/proc/thread-self/net/sockstat").context("count sockets"))?;
    let in_use = text.lines().find_map(|line| line.strip_prefix("TCP: inuse ")?.split(' ').next()?.parse().ok());
    in_use.with_context(|| format!("the kernel's count of sockets says nothing of TCP: {text}"))
}

/// An nginx that plays the upstream: it takes every connection and reads the request, and lets its refusal wait.
fn start_upstream(lab: &Lab, nginx: &Nginx) -> Result<Process> {
    let directory = lab.subdirectory("crowd-upstream")?;
    let app = lab.addresses().app;
    let listens: Vec<String> = ports(UPSTREAM).map(|port| format!("listen {app}:{port} backlog=4096;")).collect();
    let text = format!(
        "daemon off;\nworker_processes {UPSTREAM_WORKERS};\nworker_rlimit_nofile {A_PROCESS};\n\
         error_log {log} error;\npid {pid};\nevents {{ worker_connections 19000; }}\n\
         http {{ access_log off; server {{ {}\n\
         auth_delay 1h; auth_basic crowd; auth_basic_user_file /dev/null;\n}} }}\n",
        listens.join(" "),
        log = directory.join("error.log").display(),
        pid = directory.join("nginx.pid").display(),
    );
    serve(lab, nginx, &directory, &text)
}
