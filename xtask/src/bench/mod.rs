//! `cargo xtask bench offline`: how fast old captures are read, side by side with the tools people use for it.
//! `cargo xtask bench hooks`: what each hook costs alone.
//! `cargo xtask bench live`: what watching costs an nginx under load, in turns with bare runs and with other watchers.

mod capture;
mod run;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Subcommand;

use self::{
    capture::Shape,
    run::{Measured, Tool},
};
use crate::{program, setup::Suricata, workspace::Workspace};

/// What is measured.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Bench {
    /// `probe502 analyze` on two made-up captures, beside tshark, Suricata, tcptrace, tcpdump and cat
    Offline {
        /// How often each tool runs; the best run counts
        #[arg(long, default_value_t = 3)]
        runs: u32,
        /// Measure this program, not one built now
        #[arg(long)]
        program: Option<PathBuf>,
    },
    /// CPU time a request, bare and watched by turns: probe502 at each depth and recording, strace, tcpdump, bpftrace (root)
    Live {
        /// Passed on: --rounds N, --seconds S, --loads A,B, --watchers A,B, --json FILE
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The same with one hook of the probe at a time: what each of them costs alone (root)
    Hooks {
        /// Passed on: --rounds N, --seconds S, --loads A,B, --json FILE; --hooks A+B chooses some by parts of their names
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// Kept connections, large answers: 500 MB and more.
const KEEPALIVE: Shape = Shape { kept: 200, requests: 60_000, body: 4_000, clients: 64 };
/// A connection for every request: 50,000 and more.
const SHORT: Shape = Shape { kept: 1, requests: 40_000, body: 2_000, clients: 64 };

/// Runs it; whether everything that was compared held.
pub(crate) fn run(workspace: &Workspace, bench: &Bench) -> Result<bool> {
    let (runs, program) = match bench {
        Bench::Offline { runs, program } => (runs, program),
        Bench::Live { arguments } => return program::bench(workspace, arguments),
        Bench::Hooks { arguments } => {
            let all = ["--hooks", "all"].map(str::to_owned);
            return program::bench(workspace, &[&all, arguments.as_slice()].concat());
        }
    };
    let program = match program {
        Some(program) => program.clone(),
        None => program::build(workspace)?,
    };
    let folder = std::env::temp_dir().join(format!("probe502-bench-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let done = measure(workspace, &program, &folder, *runs);
    // What was made is large.
    let _ = fs::remove_dir_all(&folder);
    done
}

fn measure(workspace: &Workspace, program: &std::path::Path, folder: &std::path::Path, runs: u32) -> Result<bool> {
    let mut rows = Vec::new();
    for (name, shape) in [("keepalive", KEEPALIVE), ("short", SHORT)] {
        let path = folder.join(format!("{name}.pcap"));
        let written = capture::write(&path, shape).with_context(|| format!("cannot write {}", path.display()))?;
        let bytes = fs::metadata(&path)?.len();
        println!(
            "\n{name}: {} MB, {} packets, {} requests, {} of them fail at the upstream",
            bytes / 1_000_000,
            written.packets,
            shape.requests,
            written.failures
        );
        let mut ours: Option<Measured> = None;
        for tool in Tool::all(program, Suricata::find(workspace)?) {
            let Some(measured) = tool.measure(&path, folder, runs)? else {
                println!(
                    "  {:<10} is not installed here, and so not compared (`cargo xtask setup --bench` installs it)",
                    tool.name
                );
                rows.push(serde_json::json!({ "capture": name, "tool": tool.name, "installed": false }));
                continue;
            };
            let ratio = ours.as_ref().map(|ours| measured.seconds / ours.seconds);
            println!(
                "  {:<10} {:>8.3} s {:>9.1} MB/s {:>8.1} MB of memory{}",
                tool.name,
                measured.seconds,
                run::megabytes(bytes) / measured.seconds,
                run::megabytes(measured.peak_bytes),
                ratio.map(|ratio| format!("   probe502 is {ratio:.1} times as fast")).unwrap_or_default(),
            );
            rows.push(serde_json::json!({
                "capture": name, "bytes": bytes, "packets": written.packets, "tool": tool.name, "installed": true,
                "seconds": measured.seconds, "peak_bytes": measured.peak_bytes, "times_probe502": ratio,
            }));
            ours = ours.or(Some(measured));
        }
        let told = run::incidents(program, &path)?;
        println!("  probe502 told {told} incidents of {}", written.failures);
        rows.push(serde_json::json!({ "capture": name, "failures": written.failures, "incidents": told }));
    }
    println!("\n{}", serde_json::Value::from(rows));
    Ok(true)
}
