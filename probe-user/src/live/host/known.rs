//! What whoever looked found before: a failure is answered by it where it still holds, for to look at every process of a large host takes
//! longer than the failure's case waits.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirEntry},
    io,
    os::unix::ffi::OsStrExt as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use procfs::process::{Process, all_processes};

use crate::live::namespaces;

/// The list of network namespaces is looked up again after this; a new container is rarer.
const NAMESPACES_REST: Duration = Duration::from_secs(2);
/// So many sockets are remembered with their processes.
const OWNERS: usize = 4_096;
/// A listener has one of a process's first descriptors; one with 50,000 connections is looked through only where nobody else has it.
pub(super) const FIRST: usize = 1_024;

/// Shared by all who look.
#[derive(Clone, Debug, Default)]
pub(super) struct Known(Arc<Mutex<Found>>);

#[derive(Debug, Default)]
struct Found {
    /// Network namespace → a process in it.
    namespaces: BTreeMap<u32, u32>,
    looked: Option<Instant>,
    /// Socket inode → its network namespace and its process, verified before use.
    owners: BTreeMap<u64, (u32, i32)>,
}

impl Known {
    fn found(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process in this network namespace, as was known or as a look finds it.
    pub(super) fn someone_in(&self, netns: u32) -> Option<u32> {
        if let Some(pid) = self.found().namespaces.get(&netns).copied().filter(|pid| is_in(*pid, netns)) {
            return Some(pid);
        }
        self.namespaces().get(&netns).copied()
    }

    /// The network namespaces that are known and still have the process that was seen there.
    pub(super) fn living_namespaces(&self) -> BTreeMap<u32, u32> {
        let mut known = self.found().namespaces.clone();
        known.retain(|netns, pid| is_in(*pid, *netns));
        known
    }

    /// All network namespaces of this host, each with a process in it.
    pub(super) fn namespaces(&self) -> BTreeMap<u32, u32> {
        let mut found = self.found();
        if found.looked.is_some_and(|at| at.elapsed() < NAMESPACES_REST) {
            return found.namespaces.clone();
        }
        found.looked = Some(Instant::now());
        found.namespaces.clear();
        for process in all_processes().into_iter().flatten().flatten() {
            let Ok(pid) = u32::try_from(process.pid) else { continue };
            if let Some(netns) = namespaces::inode(pid, "net") {
                found.namespaces.entry(netns).or_insert(pid);
            }
        }
        found.namespaces.clone()
    }

    /// The process that holds the socket, of those that share it the one with the lowest number (a prefork server's master).
    pub(super) fn owner(&self, netns: u32, inode: u64) -> Option<i32> {
        let known = self.found().owners.get(&inode).copied();
        if let Some((known_netns, pid)) = known
            && known_netns == netns
            && has(pid, inode, usize::MAX)
        {
            return Some(pid);
        }
        let home = |process: &Process| u32::try_from(process.pid).is_ok_and(|pid| is_in(pid, netns));
        let mut all: Vec<i32> = all_processes().ok()?.flatten().filter(home).map(|process| process.pid).collect();
        all.sort_unstable();
        let owner =
            [FIRST, usize::MAX].into_iter().find_map(|most| all.iter().copied().find(|pid| has(*pid, inode, most)))?;
        let mut found = self.found();
        if found.owners.len() >= OWNERS {
            found.owners.clear();
        }
        found.owners.insert(inode, (netns, owner));
        Some(owner)
    }

    /// Sockets whose owners were asked for.
    pub(super) fn owned(&self) -> BTreeSet<u64> {
        self.found().owners.keys().copied().collect()
    }
}

fn is_in(pid: u32, netns: u32) -> bool {
    namespaces::inode(pid, "net") == Some(netns)
}

/// Whether a process has a socket open.
fn has(pid: i32, inode: u64, at_most: usize) -> bool {
    sockets(pid, at_most).is_ok_and(|mut open| open.any(|found| found == Some(inode)))
}

/// The sockets among so many of a process's first descriptors; what is none is `None`.
pub(super) fn sockets(pid: i32, at_most: usize) -> io::Result<impl Iterator<Item = Option<u64>>> {
    let inode = |descriptor: io::Result<DirEntry>| {
        // It may be closed meanwhile.
        let target = fs::read_link(descriptor.ok()?.path()).ok()?;
        let number = target.as_os_str().as_bytes().strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
        std::str::from_utf8(number).ok()?.parse().ok()
    };
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.take(at_most).map(inode))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::{fd::AsRawFd as _, unix::fs::MetadataExt as _};

    use super::*;

    fn inode_of(listener: &TcpListener) -> u64 {
        fs::metadata(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap().ino()
    }

    #[test]
    fn a_listener_behind_many_descriptors_is_found() {
        let many: Vec<UdpSocket> = (0..8).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let inode = inode_of(&listener);
        assert!(has(own, inode, usize::MAX) && !has(own, inode, 4));
        drop(listener);
        assert!(!has(own, inode, usize::MAX));
        drop(many);
    }

    #[test]
    fn what_one_found_the_others_know() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let netns = namespaces::inode(std::process::id(), "net").unwrap();
        let (known, inode) = (Known::default(), inode_of(&listener));
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(known.owner(netns, inode), Some(own));
        assert_eq!(known.clone().found().owners.get(&inode), Some(&(netns, own)));
        drop(listener);
        assert_eq!(known.owner(netns, inode), None, "what is known is looked at again");
    }
}
