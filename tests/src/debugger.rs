//! A debugger: it holds a process, and does nothing with it.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// A process that a thread of this one holds until this is dropped.
#[derive(Debug)]
pub struct Held {
    release: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Held {
    /// Attaches to it and waits until it stands.
    pub fn hold(pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid).context("a pid fits into 31 bits")?;
        let (release, released) = channel::<()>();
        let (report, reported) = channel::<Result<()>>();
        // Only the thread that attached may detach.
        let thread = std::thread::spawn(move || {
            let held = attach(pid);
            let failed = held.is_err();
            let _ = report.send(held);
            if !failed {
                let _ = released.recv();
                let _ = ask(libc::PTRACE_DETACH, pid);
            }
        });
        let held = Self { release: Some(release), thread: Some(thread) };
        reported.recv().context("the debugger's thread ended")??;
        Ok(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn attach(pid: i32) -> Result<()> {
    ask(libc::PTRACE_SEIZE, pid)?;
    ask(libc::PTRACE_INTERRUPT, pid)?;
    waitpid(Pid::from_raw(pid), Some(WaitPidFlag::__WALL)).context("wait until it stands")?;
    Ok(())
}

fn ask(request: libc::c_uint, pid: i32) -> Result<()> {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: these requests read no memory of ours.
    if unsafe { libc::ptrace(request, pid, nothing, nothing) } < 0 {
        bail!("ptrace request {request} to pid {pid}: {}", std::io::Error::last_os_error());
    }
    Ok(())
}
