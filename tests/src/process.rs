//! A child process that cannot outlive its owner.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::namespace::Namespace;

/// How a process starts, beyond its command line.
#[derive(Debug, Clone, Copy, Default)]
pub struct Start<'a> {
    /// The network namespace to run in; the caller's when `None`.
    pub namespace: Option<&'a Namespace>,
    /// `RLIMIT_NOFILE`, soft and hard.
    pub open_files: Option<u64>,
    /// User and group id to become, with no other groups.
    pub user: Option<u32>,
}

/// A running child; killed by pid and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts `command` in a process group of its own (a Ctrl-C in the terminal is for us, not for the lab).
    pub fn spawn(name: &str, mut command: Command, start: Start<'_>) -> Result<Self> {
        let namespace: Option<RawFd> = start.namespace.map(|namespace| namespace.file().as_raw_fd());
        let (open_files, user) = (start.open_files, start.user);
        command.process_group(0);
        // SAFETY: the closure runs between fork and exec; it makes system calls only, allocates nothing and takes no lock.
        // The namespace's descriptor stays open until `spawn` returns, because `start` borrows its owner.
        unsafe { command.pre_exec(move || prepare(namespace, open_files, user)) };
        let child = command.spawn().with_context(|| format!("start {name} ({})", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(self.pid(), signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// The exit status when it has ended by itself.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("wait for {}", self.name))
    }

    /// Waits for the end, at most so long.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} (pid {}) did not end within {timeout:?}", self.name, self.pid());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process by its id.
pub fn send(pid: u32, signal: Signal) -> Result<()> {
    let raw = i32::try_from(pid).context("a pid fits into 31 bits")?;
    kill(Pid::from_raw(raw), signal).with_context(|| format!("send {signal} to pid {pid}"))
}

/// Waits until `done` says so; `what` is for the message.
pub fn wait_until(what: &str, timeout: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + timeout;
    while !done()? {
        if Instant::now() >= deadline {
            bail!("waited {timeout:?} in vain until {what}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Processes that stand still (SIGSTOP) until this is dropped.
#[derive(Debug)]
pub struct Stopped {
    pids: Vec<u32>,
}

impl Stopped {
    /// Stops them and waits until they stand.
    pub fn new(pids: Vec<u32>) -> Result<Self> {
        let stopped = Self { pids };
        for pid in &stopped.pids {
            send(*pid, Signal::SIGSTOP)?;
        }
        for pid in &stopped.pids {
            wait_until("the process stands still", Duration::from_secs(5), || Ok(stat(*pid)?.0 == 'T'))?;
        }
        Ok(stopped)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in &self.pids {
            let _ = send(*pid, Signal::SIGCONT);
        }
    }
}

/// The number of files a process has open.
pub fn open_files(pid: u32) -> Result<u64> {
    let path = Path::new("/proc").join(pid.to_string()).join("fd");
    let entries = std::fs::read_dir(&path).with_context(|| format!("list {}", path.display()))?;
    Ok(entries.count() as u64)
}

/// State and parent of a process.
pub(crate) fn stat(pid: u32) -> Result<(char, u32)> {
    let text =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("read the state of {pid}"))?;
    // The name stands in parentheses and may contain anything, also parentheses.
    let rest = text.rsplit_once(") ").context("a name in parentheses")?.1;
    let mut fields = rest.split(' ');
    let state = fields.next().and_then(|field| field.chars().next()).context("a state")?;
    let parent = fields.next().context("a parent")?.parse().context("the parent's pid")?;
    Ok((state, parent))
}

/// Runs in the child before exec.
fn prepare(namespace: Option<RawFd>, open_files: Option<u64>, user: Option<u32>) -> io::Result<()> {
    if let Some(descriptor) = namespace {
        // SAFETY: setns takes two integers; a bad descriptor is an error, not undefined.
        check(unsafe { libc::setns(descriptor, libc::CLONE_NEWNET) })?;
    }
    // Whatever the test runner left open must not reach a process whose descriptors are counted.
    // SAFETY: close_range with CLOEXEC closes nothing before exec, so std's own pipe keeps working.
    let closed = check(unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) });
    if closed.is_err_and(|error| matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS))) {
        // Before Linux 5.11, where an emulated machine's lab has a handful of descriptors.
        for descriptor in 3..1024 {
            // SAFETY: fcntl with F_SETFD takes integers; a descriptor that is not open is an error, not undefined.
            unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    if let Some(limit) = open_files {
        let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
        // SAFETY: the pointer is to a live rlimit, which the kernel only reads.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    }
    if let Some(id) = user {
        // SAFETY: no groups are given, so the null pointer is not read.
        check(unsafe { libc::setgroups(0, std::ptr::null()) })?;
        // SAFETY: setgid and setuid take an integer each.
        check(unsafe { libc::setgid(id) })?;
        // SAFETY: as above.
        check(unsafe { libc::setuid(id) })?;
    }
    Ok(())
}

/// Turns a system call's -1 into its errno.
fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
