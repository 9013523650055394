//! A virtual machine: one kernel, one archive, a serial line.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// No guest needs so long; one that does hangs. (Two minutes where there is nothing else to do; a fault that has to be made again, and a
/// host with other work, take more.)
const LONGEST: Duration = Duration::from_mins(10);

/// Boots the kernel and gives what came over the serial line, which is also left in `log`. A machine that does not end by itself is
/// ended; what it said until then is what there is.
pub(crate) fn run(kernel: &Path, archive: &Path, parameters: &str, log: &Path) -> Result<String> {
    let console = File::create(log).with_context(|| format!("making {}", log.display()))?;
    let mut machine = Command::new("qemu-system-x86_64");
    // Emulated also where /dev/kvm exists: not every host's KVM boots every kernel. `-cx16`: QEMU 7.2 gets the flags wrong after that
    // instruction, which newer kernels' allocator uses; one boot in five died of it.
    machine.args(["-machine", "q35,accel=tcg", "-cpu", "max,-cx16", "-smp", "1", "-m", "1024"]);
    machine.args(["-display", "none", "-no-reboot", "-nodefaults", "-serial", "stdio"]);
    machine.arg("-kernel").arg(kernel).arg("-initrd").arg(archive);
    // A panic ends the machine; attaching and detaching do not wait for the kernel's grace periods.
    let always = "console=ttyS0 panic=-1 quiet loglevel=3 mitigations=off rcupdate.rcu_expedited=1";
    machine.args(["-append", &format!("{always} {parameters}")]);
    let errors = console.try_clone().context("the log for the emulator's own words")?;
    let mut machine = machine
        .stdin(Stdio::null())
        .stdout(console)
        .stderr(errors)
        .spawn()
        .context("starting qemu-system-x86_64 (Debian's package qemu-system-x86)")?;
    let deadline = Instant::now() + LONGEST;
    while machine.try_wait().context("waiting for the virtual machine")?.is_none() {
        if Instant::now() > deadline {
            machine.kill().context("ending a virtual machine that hangs")?;
            machine.wait().context("waiting for the virtual machine")?;
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let said = fs::read(log).with_context(|| format!("reading {}", log.display()))?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}
