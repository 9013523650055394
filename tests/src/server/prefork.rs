//! Workers of the lab's upstream, as servers with a master and forked children have them, and the ways a process ends.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, raise, signal};
use nix::sys::wait::wait;
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};

use crate::nginx::children_of;
use crate::probe::is_emulated;

/// A worker that ends at once must not keep the master busy.
const PAUSE: Duration = Duration::from_millis(5);

/// The parent closes its descriptor at once.
const BESIDE_PARENT: Duration = Duration::from_millis(30);

/// Time enough for whoever sends a signal.
const DEAF: Duration = Duration::from_millis(500);

/// Ignores SIGTERM, and ends some time later.
pub(super) fn exit_deaf(status: i32) -> ! {
    // SAFETY: no handler of ours runs.
    let ignored = unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) };
    std::thread::sleep(DEAF);
    std::process::exit(if ignored.is_ok() { status } else { 70 })
}

/// Has SIGTERM blocked, and ends some time later.
pub(super) fn exit_blocked(status: i32) -> ! {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    let blocked = signals.thread_block();
    std::thread::sleep(DEAF);
    std::process::exit(if blocked.is_ok() { status } else { 70 })
}

/// Forks so many workers, replaces those that end, and returns in each of them. Without workers it returns at once.
pub(super) fn begin(workers: usize) -> Result<()> {
    if workers == 0 {
        return Ok(());
    }
    let master = getpid();
    for _ in 0..workers {
        if is_worker(master)? {
            return Ok(());
        }
    }
    loop {
        match wait() {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => bail!("wait for a worker: {error}"),
        }
        std::thread::sleep(PAUSE);
        if is_worker(master)? {
            return Ok(());
        }
    }
}

/// Forks; true in the child.
fn is_worker(master: Pid) -> Result<bool> {
    // SAFETY: the server has one thread, so the child has everything the parent has.
    match unsafe { fork() }.context("fork a worker")? {
        ForkResult::Parent { .. } => Ok(false),
        ForkResult::Child => {
            // No worker outlives its master, however that ends.
            prctl::set_pdeathsig(Signal::SIGKILL).context("follow the master")?;
            if getppid() != master {
                bail!("the master is gone");
            }
            Ok(true)
        }
    }
}

/// Ends this process by a fault of its own that the kernel answers with this signal.
pub(super) fn crash(number: i32) {
    match Signal::try_from(number) {
        Ok(Signal::SIGSEGV) => {
            // SAFETY: it is not: page 0 is not mapped, and the kernel's SIGSEGV is what is wanted.
            unsafe { std::ptr::read_volatile(std::ptr::without_provenance::<u8>(8)) };
        }
        Ok(Signal::SIGABRT) => std::process::abort(),
        // Faults that Rust and this machine do not let one make: the signal a process sends itself.
        Ok(signal) => {
            // Rust's own handler takes the first SIGBUS for a fault that will happen again, and lets it.
            let _ = raise(signal);
            let _ = raise(signal);
        }
        Err(_) => {}
    }
}

/// Forks a child that has every connection of this process, and crashes when the parent has closed its own.
pub(super) fn crash_in_child(number: i32) {
    // SAFETY: the server has one thread, so the child has everything the parent has.
    if matches!(unsafe { fork() }, Ok(ForkResult::Child)) {
        std::thread::sleep(BESIDE_PARENT);
        crash(number);
        std::process::exit(1);
    }
}

/// Takes memory until the host has none and the kernel ends this process. Only on a machine that nobody else uses.
pub(super) fn eat_memory() {
    if !is_emulated() {
        return;
    }
    // The first to go, whatever else is large there.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    loop {
        // What is not written takes no memory; one byte takes a page.
        let mut taken = vec![0_u8; 8 << 20];
        taken.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        std::mem::forget(std::hint::black_box(taken));
    }
}

/// Sends a signal to the other children of the same master.
pub(super) fn kill_siblings(signal: Signal) {
    let (me, master) = (getpid().as_raw(), getppid().as_raw());
    let Ok(master) = u32::try_from(master) else { return };
    for sibling in children_of(master).unwrap_or_default() {
        if let Ok(sibling) = i32::try_from(sibling)
            && sibling != me
        {
            let _ = kill(Pid::from_raw(sibling), signal);
        }
    }
}
