//! Who may accept what comes to an upstream's address, and what each of them is doing.

use std::{
    collections::BTreeSet,
    io, thread,
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};
use procfs::process::{Process, all_processes};

use super::{
    Lookup, halt,
    known::{FIRST, sockets},
    process::limit_of_files,
    unix,
};
use crate::model::{
    host::HostFact,
    net::Address,
    process::{Acceptor, Pid},
};

/// So many processes of one server are told.
const ACCEPTORS: usize = 64;
/// The failure that asked does not wait longer for its answer.
const PATIENCE: Duration = Duration::from_millis(200);
/// The next walk waits so many times as long as the last one took of a processor: every descriptor of the host is looked at.
const REST: u32 = 4;
/// A failure that asks meanwhile waits so long at most.
const WAIT: Duration = Duration::from_millis(200);
/// Whoever was found to have a socket is asked again whether he has, and processes that have come since are looked at; after this time all
/// are. A socket that is handed to another process meanwhile is missed.
const LASTS: Duration = Duration::from_secs(2);

impl Lookup {
    /// Who has a listening socket that is reached by this address.
    pub(super) fn acceptors(&mut self, upstream: &Address, netns: Option<u32>, worker: Pid) -> Option<HostFact> {
        let (sockets, beside) = match upstream {
            Address::Ip(address) => self.reached_sockets(*address, netns),
            Address::Unix(path) => {
                let walked = unix::walk(path, worker)?;
                let found = self.unix_listener(path, worker, &walked);
                (found.into_iter().map(|(_, found)| found.inode).collect(), BTreeSet::new())
            }
        };
        if sockets.is_empty() {
            return Some(HostFact::Acceptors { upstream: upstream.clone(), netns, processes: Vec::new(), all: true });
        }
        let known = self.walked.take().filter(|walk| walk.began.elapsed() < LASTS && sockets.is_subset(&walk.searched));
        let walk = match known {
            Some(walk) => walk,
            None => self.walk(sockets.union(&beside).copied().collect())?,
        };
        let (processes, all) = self.walked.insert(walk).acceptors(&sockets)?;
        Some(HostFact::Acceptors { upstream: upstream.clone(), netns, processes, all })
    }

    /// Looks at every descriptor of the host, unless that was done a moment ago.
    fn walk(&mut self, mut searched: BTreeSet<u64>) -> Option<Walk> {
        let rest = self.rested.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
        if rest > WAIT {
            return None;
        }
        thread::sleep(rest);
        // The other servers' sockets are looked for in the same walk: they fail together.
        searched.extend(self.known.owned());
        let (began, used) = (Instant::now(), processor_time());
        let mut walk = Walk { began, searched, seen: BTreeSet::new(), holders: BTreeSet::new(), all: true };
        walk.go_on()?;
        let took = processor_time().saturating_sub(used);
        self.rested = Some(Instant::now() + took.saturating_mul(REST));
        Some(walk)
    }
}

/// Who had which sockets open when every descriptor of the host was looked at.
#[derive(Debug)]
pub(super) struct Walk {
    began: Instant,
    searched: BTreeSet<u64>,
    seen: BTreeSet<i32>,
    holders: BTreeSet<(u64, i32)>,
    /// Nothing was left out.
    all: bool,
}

impl Walk {
    /// Looks at the processes that were not seen yet.
    fn go_on(&mut self) -> Option<()> {
        let began = Instant::now();
        let running: BTreeSet<i32> = all_processes().ok()?.flatten().map(|process| process.pid).collect();
        let mut left: Vec<i32> = running.difference(&self.seen).copied().collect();
        // A number may come back for another process.
        self.seen.retain(|pid| running.contains(pid));
        for most in [FIRST, usize::MAX] {
            let mut large = Vec::new();
            for pid in left {
                if began.elapsed() > PATIENCE {
                    self.all = false;
                    return Some(());
                }
                self.seen.insert(pid);
                match sockets(pid, most) {
                    Ok(open) => {
                        let mut count = 0;
                        for inode in open {
                            count += 1;
                            self.holders
                                .extend(inode.filter(|inode| self.searched.contains(inode)).map(|inode| (inode, pid)));
                        }
                        if count == most {
                            large.push(pid);
                        }
                    }
                    // One that has just ended accepts nothing.
                    Err(error) => self.all &= error.kind() == io::ErrorKind::NotFound,
                }
            }
            left = large;
        }
        Some(())
    }

    /// Who has these sockets open now, and whether those are all.
    fn acceptors(&mut self, wanted: &BTreeSet<u64>) -> Option<(Vec<Acceptor>, bool)> {
        self.go_on()?;
        let holders = self.holders.iter().filter(|(inode, _)| wanted.contains(inode)).map(|(_, pid)| *pid);
        let holders: BTreeSet<i32> = holders.filter(|pid| self.seen.contains(pid)).collect();
        let still = |pid: &i32| {
            let mut open = sockets(*pid, usize::MAX).ok()?;
            open.any(|inode| inode.is_some_and(|inode| wanted.contains(&inode))).then(|| Process::new(*pid).ok())?
        };
        let all = self.all && holders.len() <= ACCEPTORS;
        let found = holders.iter().take(ACCEPTORS).filter_map(still).filter_map(|process| acceptor(&process));
        Some((found.collect(), all))
    }
}

/// What this thread has used.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

fn acceptor(process: &Process) -> Option<Acceptor> {
    let stat = process.stat().ok()?;
    let halt = halt::of(process, &stat);
    let open = process.fd_count().ok().and_then(|count| u64::try_from(count).ok());
    let files = open.and_then(|open| Some((open, limit_of_files(process).ok()?)));
    let pid = |number: i32| u32::try_from(number).map(Pid).ok();
    Some(Acceptor { pid: pid(stat.pid)?, parent: pid(stat.ppid)?, command: stat.comm, halt, files })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::live::namespaces;

    #[test]
    fn our_own_listener_is_ours_to_accept_from() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let netns = namespaces::inode(std::process::id(), "net");
        let asked = Lookup::default().acceptors(&Address::Ip(address), netns, Pid(0));
        let Some(HostFact::Acceptors { processes, .. }) = asked else { panic!() };
        let own = processes.iter().find(|one| one.pid == Pid(std::process::id())).unwrap();
        assert_eq!((own.halt.clone(), own.has_room()), (None, Some(true)));
    }

    #[test]
    fn where_nobody_listens_nobody_accepts() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let netns = namespaces::inode(std::process::id(), "net");
        let asked = Lookup::default().acceptors(&Address::Ip(address), netns, Pid(0));
        assert!(matches!(asked, Some(HostFact::Acceptors { processes, all: true, .. }) if processes.is_empty()));
    }
}
