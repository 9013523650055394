//! Who may accept what comes to an upstream's address, and what each of them is doing.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    thread,
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};
use procfs::process::{Process, all_processes};

use super::{Lookup, halt, process::limit_of_files, unix};
use crate::model::{
    host::HostFact,
    net::Address,
    process::{Acceptor, Pid},
};

/// So many processes of one server are told.
const ACCEPTORS: usize = 64;
/// The failure that asked does not wait longer for its answer.
const PATIENCE: Duration = Duration::from_millis(200);
/// The next look waits so many times as long as the last one took of a processor: every descriptor of the host is looked at.
const REST: u32 = 10;
/// A failure that asks meanwhile waits so long at most.
const WAIT: Duration = Duration::from_millis(200);

impl Lookup {
    /// Who has a listening socket that is reached by this address.
    pub(super) fn acceptors(&mut self, upstream: &Address, netns: Option<u32>, worker: Pid) -> Option<HostFact> {
        let sockets: BTreeSet<u64> = match upstream {
            Address::Ip(address) => self.reached_sockets(*address, netns),
            Address::Unix(path) => {
                let walked = unix::walk(path, worker)?;
                self.unix_listener(path, worker, &walked).into_iter().map(|(_, found)| found.inode).collect()
            }
        };
        if sockets.is_empty() {
            return Some(HostFact::Acceptors { upstream: upstream.clone(), netns, processes: Vec::new(), all: true });
        }
        let rest =
            self.walked.map_or(Duration::ZERO, |(at, took)| took.saturating_mul(REST).saturating_sub(at.elapsed()));
        if rest > WAIT {
            return None;
        }
        thread::sleep(rest);
        let (began, used) = (Instant::now(), processor_time());
        let links: BTreeSet<Vec<u8>> = sockets.iter().map(|inode| format!("socket:[{inode}]").into_bytes()).collect();
        let (mut found, mut all) = (Vec::new(), true);
        for process in all_processes().ok()?.flatten() {
            if found.len() >= ACCEPTORS || began.elapsed() > PATIENCE {
                all = false;
                break;
            }
            match holds(process.pid, &links) {
                Ok(true) => found.extend(acceptor(&process)),
                Ok(false) => {}
                // One that has just ended accepts nothing.
                Err(error) => all &= error.kind() == io::ErrorKind::NotFound,
            }
        }
        self.walked = Some((began, processor_time().saturating_sub(used)));
        found.sort_by_key(|one| one.pid);
        Some(HostFact::Acceptors { upstream: upstream.clone(), netns, processes: found, all })
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

/// Whether a process has one of these open.
fn holds(pid: i32, links: &BTreeSet<Vec<u8>>) -> io::Result<bool> {
    for descriptor in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // It may be closed meanwhile.
        if let Ok(target) = fs::read_link(descriptor?.path())
            && links.contains(target.as_os_str().as_bytes())
        {
            return Ok(true);
        }
    }
    Ok(false)
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
