//! What the probe can do on a kernel that is not the development host's: run as the only program of a virtual machine
//! (`cargo xtask vm-test`), which tells what it found in lines that begin with [`MARK`].
//!
//! Everything is on the loopback: the kernels are booted without modules, so there is no veth.

use std::fs;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::fault::{Fault, Party};
use crate::lab::Lab;
use crate::probe::{Printed, output_within};
use crate::site::Site;
use crate::table;
use crate::view;

/// What a line for the reader outside begins with; the kernel writes to the same console.
pub const MARK: &str = "@@ ";

/// An emulated machine is slow, and loads forty programs one after another.
const PATIENCE: Duration = Duration::from_mins(1);

/// Refused, reset, closed early, masked by a retry; and what must not be reported at all.
const FAULTS: [&str; 7] = [
    "upstream-refused",
    "upstream-reset",
    "upstream-reset-unread",
    "premature-close",
    "keepalive-race-post",
    "masked-retry",
    "harmless-answers",
];

/// A way in which the same kernel shows less.
struct Setting {
    name: &'static str,
    arrange: fn() -> Result<()>,
    restore: fn() -> Result<()>,
}

const SETTINGS: [Setting; 3] = [
    Setting { name: "whole", arrange: || Ok(()), restore: || Ok(()) },
    Setting { name: "no tracefs", arrange: without_tracefs, restore: with_tracefs },
    Setting { name: "no BTF", arrange: without_types, restore: with_types },
];

/// Looks at everything and tells it. What goes wrong is told too; the caller only needs the lines.
pub fn run() {
    tell(&json!({ "is": "kernel", "release": release() }));
    for setting in &SETTINGS {
        let done = (setting.arrange)().and_then(|()| examine(setting.name));
        // A setting that stays arranged would spoil the next one.
        let restored = (setting.restore)();
        for error in [done, restored].into_iter().filter_map(Result::err) {
            tell(&json!({ "is": "failure", "setting": setting.name, "error": format!("{error:#}") }));
        }
    }
    tell(&json!({ "is": "end" }));
}

/// One line for the reader outside.
fn tell(what: &Value) {
    // Without a console there is nobody to tell that the console is gone.
    let _ = writeln!(std::io::stdout(), "{MARK}{what}");
}

fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// `doctor`, then every fault.
fn examine(setting: &str) -> Result<()> {
    let findings = doctor()?;
    tell(&json!({ "is": "doctor", "setting": setting, "findings": findings }));
    let faults = FAULTS.iter().map(|name| Fault::named(name)).collect::<Result<Vec<_>>>()?;
    let party = Party { faults, lab: Lab::on_host_loopback };
    for (fault, truth, cell) in table::look(&party, &view::EVERYTHING)? {
        tell(&json!({
            "is": "verdict", "setting": setting, "fault": fault.name, "truth": truth, "cell": cell.to_string(),
        }));
    }
    Ok(())
}

/// What `doctor` finds beside a running nginx.
fn doctor() -> Result<Value> {
    let lab = Lab::on_host_loopback()?;
    let _site = Site::start(&lab, &[])?;
    let Printed { status, stdout, stderr } = output_within(&["doctor", "--json"], PATIENCE)?;
    ensure!(status.success(), "doctor ended with {status}: {stderr}");
    let mut report: Value = serde_json::from_str(&stdout).with_context(|| format!("doctor's words: {stdout}"))?;
    Ok(report["findings"].take())
}

const TRACEFS: &str = "/sys/kernel/tracing";
const TYPES: &str = "/sys/kernel/btf";

fn without_tracefs() -> Result<()> {
    umount2(TRACEFS, MntFlags::empty()).context("unmount tracefs")
}

fn with_tracefs() -> Result<()> {
    mount(Some("tracefs"), TRACEFS, Some("tracefs"), MsFlags::empty(), None::<&str>).context("mount tracefs")
}

fn without_types() -> Result<()> {
    mount(Some("none"), TYPES, Some("tmpfs"), MsFlags::empty(), None::<&str>).context("hide the kernel's types")
}

fn with_types() -> Result<()> {
    umount2(TYPES, MntFlags::empty()).context("show the kernel's types")
}
