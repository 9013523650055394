//! How soon the probe says what it says: `ready` on a busy host, and the line of an incident after the client has its answer.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use nix::sys::socket::{Backlog, listen};
use serde::Serialize;

use super::{memory, wrk};
use crate::client::Connection;
use crate::config::Config;
use crate::lab::Lab;
use crate::nginx::Nginx;
use crate::probe::Probe;
use crate::process::{Process, wait_until};

/// nginx's workers.
const WORKERS: u32 = 16;
/// The first of the ports where connections are held; a queue takes as many as `net.core.somaxconn` says, 4,096 by default.
const HELD: u16 = 9110;
const QUEUES: u16 = 3;
/// Where nobody listens.
const NOBODY: u16 = 9099;
/// Failures whose lines are waited for, and the pause between them.
const FAILURES: usize = 200;
const PAUSE: Duration = Duration::from_millis(10);
/// For everything that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Promptness {
    /// nginx's workers.
    pub workers: u32,
    /// Connections to the upstream that were open when the probe started.
    pub connections: usize,
    /// From the start of the program to its `ready` line, milliseconds.
    pub ready_ms: f64,
    /// Memory when it was ready, bytes.
    pub ready_bytes: u64,
    /// Failures.
    pub failures: usize,
    /// From the client's answer to the incident's line, milliseconds: the median, the 99th percentile, the longest.
    pub line_ms: [f64; 3],
}

impl Display for Promptness {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let Self { workers, connections, ready_ms, ready_bytes, failures, line_ms: [median, most, longest] } = self;
        let memory = ready_bytes / 1_000_000;
        writeln!(
            formatter,
            "ready after {ready_ms:.0} ms with {workers} workers and {connections} open connections, {memory} MB of memory"
        )?;
        write!(
            formatter,
            "incident line after the answer, of {failures}: median {median:.0} ms, 99 % within {most:.0} ms, longest {longest:.0} ms"
        )
    }
}

/// Measures it, with so many connections that stay open.
pub fn measure(connections: usize) -> Result<Promptness> {
    let lab = Lab::new()?;
    let app = lab.addresses().app;
    let _queues = (0..QUEUES)
        .map(|number| {
            lab.app().inside(|| {
                let queue = TcpListener::bind((app, HELD + number)).context("listen for connections that are held")?;
                listen(&queue, Backlog::MAXALLOWABLE).context("make the queue longer")?;
                Ok(queue)
            })
        })
        .collect::<Result<Vec<TcpListener>>>()?;
    let mut config = Config { workers: WORKERS, connections: 4096, open_files: Some(16_384), ..Config::default() };
    let servers: Vec<String> =
        (0..QUEUES).map(|number| format!("server {app}:{} max_fails=0;", HELD + number)).collect();
    config.upstream("held", &servers.iter().map(String::as_str).collect::<Vec<_>>());
    config.location("/held", &["proxy_pass http://held;"]);
    config.location("/refused", &[&format!("proxy_pass http://{app}:{NOBODY};")]);
    let nginx = Nginx::start(&lab, "promptness", &config)?;
    let mut holders = hold_all(&lab, &nginx, connections)?;
    let measured = watched(&lab, &nginx, connections);
    holders.signal(Signal::SIGKILL)?;
    holders.wait(PATIENCE)?;
    measured
}

/// Asks for so many answers that never come, and waits until nginx has passed all of that on.
fn hold_all(lab: &Lab, nginx: &Nginx, connections: usize) -> Result<Process> {
    let process = wrk::hold(lab, nginx.port(), connections)?;
    wait_until("every connection to the upstream is open", PATIENCE, || {
        let table = lab.app().inside(|| fs::read_to_string("/proc/thread-self/net/tcp").context("list connections"))?;
        // The fourth column is the state; 01 is established.
        let open = table.lines().filter(|line| line.split_whitespace().nth(3) == Some("01")).count();
        Ok(open >= connections)
    })?;
    Ok(process)
}

fn watched(lab: &Lab, nginx: &Nginx, connections: usize) -> Result<Promptness> {
    let master = nginx.master().to_string();
    let start = Instant::now();
    let probe = Probe::watch_without_waiting(["--pid", &master, "-q"])?;
    probe.wait_ready(PATIENCE)?;
    let ready = start.elapsed();
    let ready_bytes = memory::now(probe.pid())?;
    let target = (lab.addresses().proxy, nginx.port()).into();
    let mut answered = Vec::new();
    for _ in 0..FAILURES {
        let mut client = Connection::open(lab.client(), target)?;
        client.get("/refused")?;
        answered.push((client.local().to_string(), Instant::now()));
        std::thread::sleep(PAUSE);
    }
    let mut waited = Vec::new();
    for (client, at) in &answered {
        let mine = |incident: &crate::line::Incident| incident.request.client.as_ref() == Some(client);
        let (_, _, arrived) = probe.wait_incident(PATIENCE, |_, incident| mine(incident))?;
        waited.push(milliseconds(arrived.saturating_duration_since(*at)));
    }
    probe.signal(Signal::SIGINT)?;
    probe.wait_end(PATIENCE)?;
    waited.sort_by(f64::total_cmp);
    let at = |hundredths: usize| waited.get((waited.len() - 1) * hundredths / 100).copied().unwrap_or(f64::NAN);
    Ok(Promptness {
        workers: WORKERS,
        connections,
        ready_ms: milliseconds(ready),
        ready_bytes,
        failures: FAILURES,
        line_ms: [at(50), at(99), at(100)],
    })
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
