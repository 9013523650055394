//! `wrk`, and what it says.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::process::{Process, Start};

/// Prints one line of JSON at the end; the percentiles are in microseconds.
const SCRIPT: &str = r#"
local fails = tonumber(os.getenv("BENCH_FAILS") or "0")
local base = os.getenv("BENCH_BASE")
local kinds = { "/refused", "/closed", "/big-header" }
local sent = 0
request = function()
  sent = sent + 1
  if fails > 0 and sent % fails == 0 then
    return wrk.format("GET", kinds[(sent / fails) % 3 + 1])
  end
  return wrk.format("GET", base)
end
done = function(summary, latency, requests)
  io.write(string.format(
    '{"requests":%d,"duration_us":%d,"failed":%d,"broken":%d,"p50":%d,"p99":%d,"p999":%d}\n',
    summary.requests, summary.duration, summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
"#;

/// Connections that `wrk` holds. When its time is over, so many requests can be under way that nginx answers and `wrk` does not count.
pub const CONNECTIONS: u64 = 16;

/// Descriptors that one process may have: a host's hard limit may be 20,000.
pub(super) const A_PROCESS: u64 = 20_000;

/// A client that asks nginx at this port for so many answers at `/held`, which never come.
pub(super) fn hold(lab: &Lab, port: u16, connections: usize) -> Result<Process> {
    let url = format!("http://{}:{port}/held", lab.addresses().proxy);
    let mut command = Command::new("sh");
    let shell =
        format!("ulimit -n {A_PROCESS}; exec ip netns exec \"$0\" wrk -t1 -c\"$1\" -d600s --timeout 600s \"$2\"");
    command.args(["-c", &shell, lab.client().name(), &connections.to_string(), &url]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Process::spawn("wrk", command, Start::default())
}

/// What `wrk` counted.
#[derive(Debug, Clone, Copy)]
pub struct Tally {
    /// Answers.
    pub requests: u64,
    /// Answers whose status was no success.
    pub failed: u64,
    /// How long it ran, seconds.
    pub seconds: f64,
    /// The median, the 99th percentile and the 99.9th, microseconds.
    pub latency_us: [u64; 3],
}

/// The line of the script.
#[derive(Debug, Deserialize)]
struct Line {
    requests: u64,
    duration_us: u64,
    failed: u64,
    broken: u64,
    p50: u64,
    p99: u64,
    p999: u64,
}

/// Runs it in a namespace. Every `fails`th request is one that must fail; 0: none.
pub fn run(namespace: &Namespace, directory: &Path, url: &str, path: &str, fails: u32, seconds: u32) -> Result<Tally> {
    let script = directory.join("bench.lua");
    std::fs::write(&script, SCRIPT).with_context(|| format!("write {}", script.display()))?;
    let mut command = Command::new("ip");
    command.args([
        "netns",
        "exec",
        namespace.name(),
        "wrk",
        "-t1",
        &format!("-c{CONNECTIONS}"),
        &format!("-d{seconds}s"),
        "-s",
    ]);
    command.arg(&script).arg(url).env("BENCH_BASE", path).env("BENCH_FAILS", fails.to_string());
    let output = command.stdin(Stdio::null()).output().context("run wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(line) = text.lines().rev().find(|line| line.starts_with('{')) else {
        bail!("wrk printed no figures: {text}{}", String::from_utf8_lossy(&output.stderr));
    };
    let line: Line = serde_json::from_str(line).with_context(|| format!("the figures of wrk: {line}"))?;
    if line.broken > 0 {
        bail!("{} of wrk's requests had no answer", line.broken);
    }
    // Seconds with fractions; a load lasts far less than 2^52 microseconds.
    #[expect(clippy::cast_precision_loss, reason = "a duration of seconds, in microseconds")]
    let seconds = line.duration_us as f64 / 1e6;
    Ok(Tally { requests: line.requests, failed: line.failed, seconds, latency_us: [line.p50, line.p99, line.p999] })
}
