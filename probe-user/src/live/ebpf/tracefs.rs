//! Tracepoint numbers are read from tracefs, which need not be mounted.

use std::{ffi::CStr, io, path::Path, ptr, thread};

use nix::sched::{CloneFlags, unshare};

/// Where the kernel wants it; the folder is there whenever the kernel has tracing.
const PLACE: &str = "/sys/kernel/tracing";
const PLACE_C: &CStr = c"/sys/kernel/tracing";

/// Where it may be, seen from the calling thread.
pub(super) fn folders() -> impl Iterator<Item = &'static Path> {
    [PLACE, "/sys/kernel/debug/tracing"].into_iter().map(Path::new)
}

/// Calls `work` where tracefs can be read: here if it is mounted, else on a thread with mounts of its own, so that the
/// host's stay as they are and nothing is left behind. `Err` says why there is none.
pub(super) fn with_tracefs<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    if folders().any(|folder| folder.join("events/syscalls").is_dir()) {
        return Ok(work());
    }
    thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS).map_err(|error| format!("unshare(CLONE_NEWNS): {error}"))?;
                mount(c"none", c"/", c"none", libc::MS_REC | libc::MS_PRIVATE)
                    .map_err(|error| format!("making mounts private: {error}"))?;
                mount(c"tracefs", PLACE_C, c"tracefs", libc::MS_NOSUID | libc::MS_NOEXEC)
                    .map_err(|error| format!("mounting tracefs on {PLACE}: {error}"))?;
                Ok(work())
            })
            .join()
            .unwrap_or_else(|_| Err("the thread that mounts tracefs ended".to_owned()))
    })
}

fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the strings end with NUL and outlive the call; no filesystem here takes data.
    let result = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, ptr::null()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
