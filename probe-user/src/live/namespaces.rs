//! Entering another process's namespaces, for one thread or one child only.

use std::{
    fs::File,
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
};

use nix::sched::{CloneFlags, setns};

/// Handles on the namespaces of a process. They stay valid when it ends.
#[derive(Debug)]
pub struct Namespaces {
    /// Only when it is not ours: entering one's own is refused.
    user: Option<File>,
    mount: Option<File>,
    net: Option<File>,
}

/// The inode number that names a namespace of a process: `net`, `mnt`, `user`, `pid`.
#[must_use]
pub fn inode(pid: u32, kind: &str) -> Option<u32> {
    std::fs::metadata(format!("/proc/{pid}/ns/{kind}")).ok().and_then(|metadata| u32::try_from(metadata.ino()).ok())
}

/// A handle on one namespace of a process; `None` when it is also ours.
pub fn open(pid: u32, kind: &str) -> io::Result<Option<File>> {
    let file = File::open(format!("/proc/{pid}/ns/{kind}"))?;
    let own = std::fs::metadata(format!("/proc/self/ns/{kind}"))?;
    let theirs = file.metadata()?;
    Ok((own.ino() != theirs.ino()).then_some(file))
}

/// Whether a process sees the files that we see, for who may not look at it: what is mounted where has numbers of its own in each namespace,
/// and is no secret.
#[must_use]
pub fn shares_files(pid: u32) -> bool {
    let mounts =
        |process: &str| std::fs::read(format!("/proc/{process}/mountinfo")).ok().filter(|text| !text.is_empty());
    // Something may be mounted between the two looks.
    (0..2).any(|_| mounts("self").is_some_and(|ours| mounts(&pid.to_string()) == Some(ours)))
}

/// Whether a process has the network that we have, for who may not look at it: each network namespace has files of its own in `/proc`.
#[must_use]
pub fn shares_network(pid: u32) -> bool {
    let number =
        |process: &str| std::fs::metadata(format!("/proc/{process}/net/dev")).ok().map(|metadata| metadata.ino());
    number("self").is_some_and(|ours| number(&pid.to_string()) == Some(ours))
}

impl Namespaces {
    /// Those of this process that differ from ours.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { user: open(pid, "user")?, mount: open(pid, "mnt")?, net: open(pid, "net")? })
    }

    /// Enters them, for the calling thread. For a thread of a process with others the caller must have unshared its file system
    /// attributes ([`enter_from_thread`]).
    ///
    /// Allocates nothing, so it may run between fork and exec.
    pub fn enter(&self) -> io::Result<()> {
        let all = [
            (&self.net, CloneFlags::CLONE_NEWNET),
            (&self.mount, CloneFlags::CLONE_NEWNS),
            (&self.user, CloneFlags::CLONE_NEWUSER),
        ];
        for (namespace, flag) in all {
            if let Some(file) = namespace {
                setns(file.as_fd(), flag)?;
            }
        }
        Ok(())
    }

    /// Enters the network and mount namespaces with this thread, which must end afterwards.
    pub fn enter_from_thread(&self) -> io::Result<()> {
        if self.mount.is_some() {
            // The kernel refuses setns(CLONE_NEWNS) while root and working directory are shared with other threads.
            nix::sched::unshare(CloneFlags::CLONE_FS)?;
        }
        for (namespace, flag) in [(&self.net, CloneFlags::CLONE_NEWNET), (&self.mount, CloneFlags::CLONE_NEWNS)] {
            if let Some(file) = namespace {
                setns(file.as_fd(), flag)?;
            }
        }
        Ok(())
    }
}
