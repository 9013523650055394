//! What `/proc` says about a process.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use procfs::process::Process;

/// Names a process beyond the reuse of its number: the number and when it started, in clock ticks since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Its number in the pid namespace the probe is in.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`.
    pub started: u64,
}

/// A few words about a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Which one.
    pub identity: Identity,
    /// Its parent.
    pub parent: u32,
    /// Its name (`comm`, at most 15 bytes).
    pub command: String,
    /// `R`, `S`, `D`, `T`, `Z` …
    pub state: char,
}

/// Every process's number, in order.
#[must_use]
pub fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<u32> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// `None` when it is gone.
#[must_use]
pub fn summary(pid: u32) -> Option<Summary> {
    let stat = open(pid)?.stat().ok()?;
    Some(Summary {
        identity: Identity { pid, started: stat.starttime },
        parent: u32::try_from(stat.ppid).unwrap_or(0),
        command: stat.comm,
        state: stat.state,
    })
}

/// The process for the `procfs` crate.
pub(crate) fn open(pid: u32) -> Option<Process> {
    Process::new(i32::try_from(pid).ok()?).ok()
}

/// A file of the process below `/proc`.
#[must_use]
pub fn path(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// Inode number of one of its namespaces (`net`, `mnt` …).
#[must_use]
pub fn namespace(pid: u32, kind: &str) -> Option<u64> {
    fs::metadata(path(pid, "ns").join(kind)).ok().map(|metadata| metadata.ino())
}

/// Its network namespace's inode number, as the model has it.
#[must_use]
pub fn netns(pid: u32) -> Option<u32> {
    u32::try_from(namespace(pid, "net")?).ok()
}

/// Socket inode → a descriptor, of all the sockets the process has open. What it costs is taken off `budget`, the descriptors that
/// may be looked at; at its end the rest is missing.
pub(crate) fn sockets(pid: u32, budget: &mut usize) -> BTreeMap<u64, i32> {
    let mut found = BTreeMap::new();
    // Opening a directory costs about as much as a few links.
    *budget = budget.saturating_sub(8);
    let Ok(entries) = fs::read_dir(path(pid, "fd")) else { return found };
    for entry in entries.flatten() {
        if *budget == 0 {
            break;
        }
        *budget -= 1;
        let inode = fs::read_link(entry.path()).ok().and_then(|target| socket_inode(&target));
        let fd = entry.file_name().to_str().and_then(|name| name.parse().ok());
        found.extend(inode.zip(fd));
    }
    found
}

/// `socket:[12345]`
fn socket_inode(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process() {
        let pid = std::process::id();
        let summary = summary(pid).unwrap();
        assert_eq!(summary.identity.pid, pid);
        assert!(summary.identity.started > 0 && summary.parent > 0);
        assert!(pids().contains(&pid));
        assert!(netns(pid).is_some());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&listener);
        assert!(sockets(pid, &mut 10_000).values().any(|found| *found == fd));
        assert_eq!(socket_inode(Path::new("socket:[7]")), Some(7));
        assert_eq!(socket_inode(Path::new("pipe:[7]")), None);
        assert!(super::summary(u32::MAX).is_none());
    }
}
