//! Runs an nginx's own program where and as the nginx runs.
//!
//! The program belongs to whoever made the container, so it gets no more than the nginx it was started as: the namespaces, root
//! directory and user of the master, no capability that the master has not, and none that could reach the host from there.

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{OFlag, open},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{Signal, killpg},
        stat::Mode,
    },
    unistd::Pid,
};
use procfs::process::Process;
use thiserror::Error;

use crate::live::namespaces;

/// nginx answers in milliseconds, unless it resolves names of upstreams and the resolver is not there.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take to end after its last word.
const ENDING: Duration = Duration::from_secs(1);
/// The largest configuration read.
const LARGEST: usize = 32 << 20;
/// Messages kept.
const MESSAGES: usize = 64 << 10;

/// In this order a process may leave its own: the user namespace first, it decides what is allowed in the others.
const NAMESPACES: &[(&str, libc::c_int)] = &[
    ("user", libc::CLONE_NEWUSER),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("net", libc::CLONE_NEWNET),
    ("pid", libc::CLONE_NEWPID),
    ("mnt", libc::CLONE_NEWNS),
];

/// `CAP_CHOWN`, `CAP_DAC_OVERRIDE`, `CAP_DAC_READ_SEARCH`, `CAP_FOWNER`, `CAP_NET_BIND_SERVICE`: reading its files and testing its
/// directories and ports is all that `-T` does (`linux/capability.h`).
const USEFUL_CAPABILITIES: u64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 10;
/// More than any kernel has.
const CAPABILITIES: u32 = 63;

/// Why it said nothing.
#[derive(Debug, Error)]
pub(super) enum Failure {
    /// It could not be run.
    #[error(transparent)]
    Start(#[from] io::Error),
    /// It did not end.
    #[error("it did not end within {} s", PATIENCE.as_secs())]
    Slow,
    /// It said too much.
    #[error("it said more than {} MiB", LARGEST >> 20)]
    Large,
}

/// Everything the child needs, prepared before the fork: after it nothing may be allocated.
struct Place {
    program: OwnedFd,
    namespaces: Vec<(OwnedFd, libc::c_int)>,
    /// Only where it is another than ours.
    root: Option<OwnedFd>,
    directory: Option<OwnedFd>,
    joins_pid_namespace: bool,
    joins_user_namespace: bool,
    user: libc::uid_t,
    group: libc::gid_t,
    capabilities: u64,
    arguments: Vec<CString>,
}

/// What a program said.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) stdout: String,
    pub(super) stderr: String,
    /// It ended well.
    pub(super) success: bool,
}

/// Runs a program where and as the master runs. `words` begins with its name.
pub(super) fn run(master: u32, program: &Path, words: &[&OsStr]) -> Result<Said, Failure> {
    let place = prepare(master, program, words)?;
    let mut command = Command::new("/proc/self/exe");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    // SAFETY: between fork and exec `become_program` makes system calls only: it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(move || Err(become_program(&place)));
    }
    let mut child = command.spawn()?;
    let outcome = collect(&mut child);
    // It has closed its streams and is about to end; only one that hangs is ended.
    let began = Instant::now();
    while outcome.is_ok() && began.elapsed() < ENDING && child.try_wait()?.is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    // The whole group: in a pid namespace of its own the program is a grandchild. While the child is not reaped its number is its own.
    if child.try_wait()?.is_none()
        && let Ok(group) = i32::try_from(child.id())
    {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let success = child.wait()?.success();
    let (stdout, stderr) = outcome?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Said { stdout: text(stdout), stderr: text(stderr), success })
}

fn prepare(master: u32, program: &Path, words: &[&OsStr]) -> io::Result<Place> {
    let reference =
        |name: &str| open(format!("/proc/{master}/{name}").as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let mut namespaces = Vec::new();
    for (kind, flag) in NAMESPACES {
        if namespaces::inode(master, kind) != namespaces::inode(std::process::id(), kind) {
            namespaces.push((OwnedFd::from(File::open(format!("/proc/{master}/ns/{kind}"))?), *flag));
        }
    }
    let joins = |flag: libc::c_int| namespaces.iter().any(|(_, joined)| *joined == flag);
    let number = i32::try_from(master).map_err(io::Error::other)?;
    let status = Process::new(number).and_then(|process| process.status()).map_err(io::Error::other)?;
    let same_root = std::fs::read_link(format!("/proc/{master}/root")).is_ok_and(|root| root.as_os_str() == "/");
    let arguments: Result<Vec<CString>, _> = words.iter().map(|word| CString::new(word.as_bytes())).collect();
    Ok(Place {
        program: OwnedFd::from(File::open(program)?),
        root: if same_root { None } else { Some(reference("root")?) },
        directory: reference("cwd").ok(),
        joins_pid_namespace: joins(libc::CLONE_NEWPID),
        joins_user_namespace: joins(libc::CLONE_NEWUSER),
        namespaces,
        user: status.euid,
        group: status.egid,
        capabilities: status.capbnd.unwrap_or(0) & USEFUL_CAPABILITIES,
        arguments: arguments?,
    })
}

/// Turns the forked child into that program; returns only when it cannot.
fn become_program(place: &Place) -> io::Error {
    match confine(place) {
        Ok(()) => execute(place),
        Err(error) => error,
    }
}

fn confine(place: &Place) -> io::Result<()> {
    for (namespace, kind) in &place.namespaces {
        // SAFETY: the descriptor is open, and the call takes nothing else.
        check(unsafe { libc::setns(namespace.as_raw_fd(), *kind) })?;
    }
    if place.joins_pid_namespace {
        fork_into_pid_namespace()?;
    }
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    if let Some(root) = &place.root {
        // SAFETY: the descriptor is open, the path is a constant.
        check(unsafe { libc::fchdir(root.as_raw_fd()) })?;
        // SAFETY: as above.
        check(unsafe { libc::chroot(c".".as_ptr()) })?;
    }
    if let Some(directory) = &place.directory {
        // SAFETY: the descriptor is open. A directory that is out of reach matters only for relative paths, which nginx then reports.
        unsafe { libc::fchdir(directory.as_raw_fd()) };
    }
    let limit = libc::rlimit { rlim_cur: PATIENCE.as_secs(), rlim_max: PATIENCE.as_secs() };
    // SAFETY: the structure lives through the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CPU, &raw const limit) })?;
    for capability in (0..=CAPABILITIES).filter(|capability| place.capabilities & (1 << capability) == 0) {
        // SAFETY: the call takes numbers only. One that the kernel does not know, or that is gone already, is no loss.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
    }
    drop_inheritable()?;
    // SAFETY: the calls take numbers only, and an empty list.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        if place.joins_user_namespace {
            // The master's numbers mean something else in there. Who enters becomes its root; where it has none, nobody, and
            // nginx says what it may not read.
            libc::setgroups(0, std::ptr::null());
            libc::setgid(0);
            libc::setuid(0);
            return Ok(());
        }
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setgid(place.group))?;
        check(libc::setuid(place.user))
    }
}

/// What could be inherited would come back at `execve` in spite of the bounding set.
fn drop_inheritable() -> io::Result<()> {
    /// `struct __user_cap_header_struct`
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3`: 64 capabilities, in two halves of effective, permitted, inheritable.
    const VERSION: u32 = 0x2008_0522;
    let mut header = Header { version: VERSION, pid: 0 };
    let mut halves = [[0_u32; 3]; 2];
    // SAFETY: the kernel reads the header and fills the two halves, which live through the calls.
    unsafe {
        check(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))?;
        if libc::syscall(libc::SYS_capget, &raw mut header, halves.as_mut_ptr()) < 0 {
            return Err(io::Error::last_os_error());
        }
        for half in &mut halves {
            half[2] = 0;
        }
        if libc::syscall(libc::SYS_capset, &raw mut header, halves.as_ptr()) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Only children are born into a pid namespace: this process waits for its child and ends as it did.
fn fork_into_pid_namespace() -> io::Result<()> {
    // SAFETY: this process was forked itself and has one thread; the child goes on with system calls only.
    let child = check_number(unsafe { libc::fork() })?;
    if child == 0 {
        return Ok(());
    }
    // Whoever started this waits for the end of its streams, and of the pipe that says that the program runs: the child's copies count.
    // SAFETY: the calls take numbers only, and nothing here uses a descriptor any more.
    unsafe {
        if libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) < 0 {
            // Before 5.9: as many as a process has at this point, and more.
            for descriptor in 0..4096 {
                libc::close(descriptor);
            }
        }
    }
    let mut status = 0;
    loop {
        // SAFETY: the status lives through the call.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        if waited == child || io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            break;
        }
    }
    let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 1 };
    // SAFETY: ends this process without running anything of it.
    unsafe { libc::_exit(code) }
}

fn execute(place: &Place) -> io::Error {
    // Two words and four options with their values, and the list's end.
    let mut words: [*const libc::c_char; 12] = [std::ptr::null(); 12];
    for (slot, word) in words.iter_mut().take(11).zip(&place.arguments) {
        *slot = word.as_ptr();
    }
    let environment: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: both lists end with a null pointer and outlive the call, as do the words; the descriptor is open.
    unsafe {
        libc::execveat(
            place.program.as_raw_fd(),
            c"".as_ptr(),
            words.as_ptr().cast(),
            environment.as_ptr().cast(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

fn check(result: libc::c_int) -> io::Result<()> {
    check_number(result).map(drop)
}

fn check_number(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Reads both streams to their ends, as far as patience and room go.
fn collect(child: &mut Child) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let deadline = Instant::now() + PATIENCE;
    let (mut output, mut messages) = (child.stdout.take(), child.stderr.take());
    let (mut text, mut said) = (Vec::new(), Vec::new());
    let mut buffer = [0; 16 << 10];
    while output.is_some() || messages.is_some() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::Slow);
        }
        let mut waiting = Vec::new();
        waiting.extend(output.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        waiting.extend(messages.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        let nap = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
        poll(&mut waiting, PollTimeout::from(nap.max(1))).map_err(io::Error::from)?;
        let ready: Vec<RawFd> =
            waiting.iter().filter(|pipe| pipe.any().unwrap_or(false)).map(|pipe| pipe.as_fd().as_raw_fd()).collect();
        if output.as_ref().is_some_and(|pipe| ready.contains(&pipe.as_raw_fd()))
            && take(&mut output, &mut buffer, &mut text)?
        {
            output = None;
        }
        if messages.as_ref().is_some_and(|pipe| ready.contains(&pipe.as_raw_fd()))
            && take(&mut messages, &mut buffer, &mut said)?
        {
            messages = None;
        }
        said.truncate(MESSAGES);
        if text.len() > LARGEST {
            return Err(Failure::Large);
        }
    }
    Ok((text, said))
}

/// Reads once; whether that was the end.
fn take(pipe: &mut Option<impl Read>, buffer: &mut [u8], into: &mut Vec<u8>) -> io::Result<bool> {
    let Some(pipe) = pipe else { return Ok(true) };
    let length = pipe.read(buffer)?;
    into.extend_from_slice(&buffer[..length]);
    Ok(length == 0)
}
