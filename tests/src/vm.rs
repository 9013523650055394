//! What the probe can do on a kernel that is not the development host's: run as the only program of a virtual machine
//! (`cargo xtask vm-test`), which tells what it found in lines that begin with [`MARK`].
//!
//! Everything is on the loopback: the kernels are booted without modules, so there is no veth.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::fault::{Fault, Party};
use crate::lab::Lab;
use crate::probe::{Printed, binary, output_within};
use crate::site::Site;
use crate::table;
use crate::view;

/// What a line for the reader outside begins with; the kernel writes to the same console.
pub const MARK: &str = "@@ ";

/// An emulated machine is slow, and loads forty programs one after another.
const PATIENCE: Duration = Duration::from_mins(1);

/// Refused, reset, closed early, out of memory, masked by a retry; and what must not be reported at all.
const FAULTS: [&str; 8] = [
    "upstream-refused",
    "upstream-reset",
    "upstream-reset-unread",
    "premature-close",
    "keepalive-race-post",
    "upstream-oom-killed",
    "masked-retry",
    "harmless-answers",
];

/// What SECURITY.md lists, as setpriv(1) wants it.
const CAPABILITIES: &str = "+bpf,+perfmon,+sys_admin,+sys_resource,+ipc_lock,+syslog,+net_raw,+net_admin,+sys_ptrace,\
    +dac_read_search,+dac_override,+fowner,+chown,+setuid,+setgid,+setpcap,+sys_chroot,+net_bind_service,+kill";

/// Since 7.0 a task can be taken off its processor in the middle of a kernel program, and another's event is skipped then. On an emulated
/// processor, where that takes long, every third failure has such a gap beside it.
const TIMES: usize = 5;

/// A way in which the same kernel shows less.
struct Setting {
    name: &'static str,
    arrange: fn() -> Result<()>,
    restore: fn() -> Result<()>,
}

const WHOLE: Setting = Setting { name: "whole", arrange: || Ok(()), restore: || Ok(()) };

const LESS: [Setting; 2] = [
    Setting { name: "no tracefs", arrange: without_tracefs, restore: with_tracefs },
    Setting { name: "no BTF", arrange: without_types, restore: with_types },
];

/// The one that needs another program to be run, and so another process of this one.
const NOT_ROOT: &str = "not root";

/// Looks at everything and tells it. With an argument it looks in that setting at once. What goes wrong is told too; the caller only
/// needs the lines.
pub fn run(setting: Option<&str>) {
    if let Some(setting) = setting {
        return try_out(setting, &WHOLE);
    }
    tell(&json!({ "is": "kernel", "release": read("/proc/sys/kernel/osrelease") }));
    let parameters = read("/proc/cmdline");
    // With the kernel locked down, that alone is looked at.
    if let Some(lockdown) = parameters.split(' ').find(|parameter| parameter.starts_with("lockdown=")) {
        try_out(lockdown, &WHOLE);
    } else {
        try_out(WHOLE.name, &WHOLE);
        for setting in &LESS {
            try_out(setting.name, setting);
        }
        if let Err(error) = without_root() {
            fail(NOT_ROOT, &error);
        }
    }
    tell(&json!({ "is": "end" }));
}

fn try_out(name: &str, setting: &Setting) {
    let done = (setting.arrange)().and_then(|()| examine(name));
    // A setting that stays arranged would spoil the next one.
    let restored = (setting.restore)();
    for error in [done, restored].into_iter().filter_map(Result::err) {
        fail(name, &error);
    }
}

/// One line for the reader outside.
fn tell(what: &Value) {
    // Without a console there is nobody to tell that the console is gone.
    let _ = writeln!(std::io::stdout(), "{MARK}{what}");
}

fn fail(setting: &str, error: &anyhow::Error) {
    tell(&json!({ "is": "failure", "setting": setting, "error": format!("{error:#}") }));
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// `doctor`, then every fault.
fn examine(setting: &str) -> Result<()> {
    let findings = doctor()?;
    tell(&json!({ "is": "doctor", "setting": setting, "findings": findings }));
    let faults = FAULTS.iter().map(|name| Fault::named(name)).collect::<Result<Vec<_>>>()?;
    let party = Party { faults, lab: Lab::on_host_loopback };
    for (fault, truth, cell) in table::look_until_whole(&party, &view::EVERYTHING, TIMES)? {
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

/// The probe as nobody, with the capabilities that are documented.
fn without_root() -> Result<()> {
    let wrapper = Path::new("/tmp/probe502-as-nobody");
    let probe = binary()?;
    let text = format!(
        "#!/bin/sh\nexec /usr/bin/setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps {CAPABILITIES} \
         --ambient-caps {CAPABILITIES} {} \"$@\"\n",
        probe.display()
    );
    fs::write(wrapper, text).context("write the program that gives up root")?;
    fs::set_permissions(wrapper, PermissionsExt::from_mode(0o755)).context("make it a program")?;
    let mut again = Command::new(std::env::current_exe().context("find the running program")?);
    let status = again.arg(NOT_ROOT).env("PROBE502_BIN", wrapper).stdin(Stdio::null()).status()?;
    ensure!(status.success(), "{status}");
    Ok(())
}
