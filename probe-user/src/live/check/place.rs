//! Doing something where nginx does it: in its namespaces, below its root directory, and as the user its workers are.

use std::{io, os::fd::OwnedFd};

use nix::{fcntl::OFlag, sys::stat::Mode};
use procfs::process::Process;

use crate::live::namespaces::Namespaces;

/// Whom nginx's workers are to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
}

impl User {
    /// Of a process, as the initial user namespace counts.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let status = Process::new(i32::try_from(pid).ok()?).ok()?.status().ok()?;
        Some(Self { uid: status.euid, gid: status.egid, groups: status.groups })
    }

    /// Whether the mode bits let this user do what `bit` says (1: pass, 2: write). Root may everything.
    pub(super) fn may(&self, bit: u32, mode: u32, uid: u32, gid: u32) -> bool {
        let shift = if self.uid == uid {
            6
        } else if self.gid == gid || self.groups.contains(&gid) {
            3
        } else {
            0
        };
        self.uid == 0 || mode >> shift & bit != 0
    }
}

/// Where and as whom nginx works.
#[derive(Debug)]
pub(super) struct Place {
    /// `None`: here.
    namespaces: Option<Namespaces>,
    /// Only for an nginx below another root directory in our own mount namespace.
    root: Option<OwnedFd>,
    /// Whom to become; `None`: stay who we are.
    pub(super) user: Option<User>,
    /// Whom nginx's workers are, where that is known.
    pub(super) worker: Option<User>,
    /// Its files are ours.
    pub(super) same_files: bool,
}

impl Place {
    /// Here, as we are.
    pub(super) const fn here() -> Self {
        Self { namespaces: None, root: None, user: None, worker: None, same_files: true }
    }

    /// Here, as we are, for an nginx that runs here too and may not be looked at.
    pub(super) fn beside(master: u32, worker: Option<u32>) -> Self {
        Self { worker: User::of(worker.unwrap_or(master)), ..Self::here() }
    }

    /// Whether what is refused to us says nothing of what is refused to nginx: we have other rights than its workers, and may not take theirs.
    pub(super) fn is_another_user(&self) -> bool {
        self.user.is_none() && !nix::unistd::geteuid().is_root()
    }

    /// Where this master works, as its worker.
    pub(super) fn of(master: u32, worker: Option<u32>) -> io::Result<Self> {
        let link = std::fs::read_link(format!("/proc/{master}/root"))?;
        let same_mount = crate::live::namespaces::open(master, "mnt")?.is_none();
        let root = (same_mount && link.as_os_str() != "/")
            .then(|| {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                nix::fcntl::open(format!("/proc/{master}/root").as_str(), flags, Mode::empty())
            })
            .transpose()?;
        let worker = User::of(worker.unwrap_or(master));
        let user = worker.clone().filter(|_| nix::unistd::geteuid().is_root());
        let same_files = same_mount && root.is_none();
        Ok(Self { namespaces: Some(Namespaces::of(master)?), root, user, worker, same_files })
    }

    /// Does it there, on a thread that ends afterwards. `as_worker`: with the worker's rights instead of ours.
    pub(super) fn inside<T: Send>(&self, as_worker: bool, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter(as_worker)?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|_| Err(io::Error::other("its thread ended early")))
        })
    }

    fn enter(&self, as_worker: bool) -> io::Result<()> {
        if let Some(namespaces) = &self.namespaces {
            namespaces.enter_from_thread()?;
        }
        if let Some(root) = &self.root {
            // Without this the change would be the whole program's.
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
            nix::unistd::fchdir(root)?;
            nix::unistd::chroot(".")?;
        }
        match &self.user {
            Some(user) if as_worker => become_user(user),
            _ => Ok(()),
        }
    }
}

/// For this thread only: libc's own functions would change all of them.
fn become_user(user: &User) -> io::Result<()> {
    let check = |result: libc::c_long| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: the list outlives the call, and its length is given; the other calls take numbers only.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr()))?;
        check(libc::syscall(libc::SYS_setresgid, user.gid, user.gid, user.gid))?;
        check(libc::syscall(libc::SYS_setresuid, user.uid, user.uid, user.uid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_bits_are_read_for_the_right_one() {
        let user = User { uid: 33, gid: 33, groups: vec![7] };
        assert!(user.may(2, 0o600, 33, 0) && !user.may(2, 0o600, 0, 33));
        assert!(user.may(2, 0o660, 0, 7) && user.may(1, 0o711, 0, 0));
        assert!(!user.may(2, 0o066, 33, 0), "the owner's own bits count even where others may more");
    }

    #[test]
    #[ignore = "needs root"]
    fn a_worker_may_less_than_we() {
        let user = User { uid: 65_534, gid: 65_534, groups: Vec::new() };
        let place = Place { user: Some(user), ..Place::here() };
        let read = || std::fs::read("/etc/shadow").is_ok();
        assert!(!place.inside(true, read).unwrap());
        assert!(place.inside(false, read).unwrap());
        assert!(read(), "this thread is who it was");
    }
}
