//! What the host looks like: processes, listeners, limits. Read from `/proc` and by `sock_diag`.

mod diag;
mod namespaces;
pub mod process;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use self::{
    diag::Listening,
    namespaces::{Namespace, Namespaces},
    process::Identity,
};
use crate::model::{
    host::{HostFact, Listener},
    process::Pid,
};

/// Descriptors looked at to find whose a socket is. At two microseconds each this is a quarter of a second.
const DESCRIPTORS: usize = 120_000;
/// Listeners nearby that are worth mentioning.
const NEARBY: usize = 8;
/// Upstream addresses whose last listener is remembered.
const REMEMBERED: usize = 4_096;

/// Looks at the host, and remembers what it saw where that saves looking.
#[derive(Debug, Default)]
pub struct Host {
    namespaces: Namespaces,
    /// Socket inode → who has it, and where.
    owners: BTreeMap<u64, (Identity, i32)>,
    /// Upstream → name of the process that listened there last.
    listened: BTreeMap<SocketAddr, String>,
}

impl Host {
    /// Who listens on this address, as an nginx in network namespace `from` reaches it (`None`: the probe's own).
    pub fn listeners(&mut self, from: Option<u32>, upstream: SocketAddr) -> HostFact {
        let address = SocketAddr::new(upstream.ip().to_canonical(), upstream.port());
        self.namespaces.refresh();
        let homes = self.namespaces.with_address(from, address.ip());
        let (mut listeners, mut nearby) = (Vec::new(), Vec::new());
        for home in &homes {
            let all = home.listening();
            let reached = reached(&all, address);
            let former = self.listened.get(&upstream).cloned();
            let interesting = |one: &Listening| former.is_some() || one.address.port() == address.port();
            let wanted: BTreeSet<u64> = all.iter().filter(|one| interesting(one)).map(|one| one.inode).collect();
            let owners = self.owners(&home.processes, &wanted);
            let listener = |one: &Listening| {
                let owner = owners.get(&one.inode);
                Listener {
                    address: one.address,
                    netns: Some(home.inode),
                    pid: owner.map(|(identity, _)| Pid(identity.pid)),
                    command: owner.map(|(_, command)| command.clone()),
                    accept_queue: Some(one.queue),
                }
            };
            listeners.extend(reached.iter().map(|one| listener(one)));
            for one in all.iter().filter(|one| !reached.contains(one)) {
                let described = listener(one);
                let same_process = former.is_some() && described.command == former;
                if one.address.port() == address.port() || same_process {
                    nearby.push(described);
                }
            }
        }
        listeners.sort();
        nearby.sort();
        nearby.truncate(NEARBY);
        if let Some(command) = listeners.iter().find_map(|listener| listener.command.clone())
            && (self.listened.len() < REMEMBERED || self.listened.contains_key(&upstream))
        {
            self.listened.insert(upstream, command);
        }
        HostFact::Listeners { upstream, local: !homes.is_empty(), listeners, nearby }
    }

    /// Every process that has a listener open which connections to these upstreams reach: a server's master and its workers alike.
    pub fn holders(&mut self, from: Option<u32>, upstreams: &[SocketAddr]) -> Vec<(SocketAddr, Pid, String)> {
        self.namespaces.refresh();
        let mut homes: BTreeMap<u32, (Namespace, Vec<SocketAddr>)> = BTreeMap::new();
        for upstream in upstreams {
            for home in self.namespaces.with_address(from, upstream.ip().to_canonical()) {
                homes.entry(home.inode).or_insert_with(|| (home, Vec::new())).1.push(*upstream);
            }
        }
        let mut found = Vec::new();
        let mut budget = DESCRIPTORS;
        for (home, upstreams) in homes.into_values() {
            let all = home.listening();
            let mut inodes: BTreeMap<u64, Vec<SocketAddr>> = BTreeMap::new();
            for upstream in upstreams {
                let address = SocketAddr::new(upstream.ip().to_canonical(), upstream.port());
                for one in reached(&all, address) {
                    inodes.entry(one.inode).or_default().push(upstream);
                }
            }
            for pid in home.processes.iter().take_while(|_| !inodes.is_empty()) {
                for inode in process::sockets(*pid, &mut budget).into_keys() {
                    let Some(upstreams) = inodes.get(&inode) else { continue };
                    let Some(summary) = process::summary(*pid) else { continue };
                    found.extend(upstreams.iter().map(|upstream| (*upstream, Pid(*pid), summary.command.clone())));
                }
                if budget == 0 {
                    break;
                }
            }
        }
        found.sort();
        found.dedup();
        found
    }

    /// Who has these sockets open. Of several (a forked server's workers) the oldest.
    fn owners(&mut self, processes: &[u32], wanted: &BTreeSet<u64>) -> BTreeMap<u64, (Identity, String)> {
        let still_there = |inode: u64, identity: Identity, fd: i32| {
            let target = std::fs::read_link(process::path(identity.pid, "fd").join(fd.to_string())).ok()?;
            let summary = process::summary(identity.pid).filter(|summary| summary.identity == identity)?;
            (target.to_str()? == format!("socket:[{inode}]")).then_some(summary.command)
        };
        let mut found = BTreeMap::new();
        for inode in wanted {
            if let Some((identity, fd)) = self.owners.get(inode)
                && let Some(command) = still_there(*inode, *identity, *fd)
            {
                found.insert(*inode, (*identity, command));
            }
        }
        self.owners.retain(|inode, _| found.contains_key(inode) || !wanted.contains(inode));
        if found.len() == wanted.len() {
            return found;
        }
        let mut budget = DESCRIPTORS;
        for pid in processes {
            let sockets = process::sockets(*pid, &mut budget);
            for (inode, fd) in sockets.into_iter().filter(|(inode, _)| wanted.contains(inode)) {
                let Some(summary) = process::summary(*pid) else { continue };
                let older = found.get(&inode).is_none_or(|(known, _)| summary.identity.started < known.started);
                if older {
                    self.owners.insert(inode, (summary.identity, fd));
                    found.insert(inode, (summary.identity, summary.command));
                }
            }
            if budget == 0 {
                break;
            }
        }
        found
    }
}

/// The listeners that a SYN to this address reaches: those on the address itself, else those on any address.
fn reached(all: &[Listening], address: SocketAddr) -> Vec<&Listening> {
    let port = || all.iter().filter(|one| one.address.port() == address.port());
    let exact: Vec<_> = port().filter(|one| one.address.ip().to_canonical() == address.ip()).collect();
    if !exact.is_empty() {
        return exact;
    }
    let any = |one: &&Listening| one.address.ip().is_unspecified() && one.address.is_ipv4() == address.is_ipv4();
    let family: Vec<_> = port().filter(any).collect();
    if !family.is_empty() || address.is_ipv6() {
        return family;
    }
    port().filter(|one| one.takes_v4).collect()
}

/// A process's open files against its limit; `None` when it is gone.
#[must_use]
pub fn open_files(pid: Pid) -> Option<HostFact> {
    let process = process::open(pid.0)?;
    let limit = match process.limits().ok()?.max_open_files.soft_limit {
        procfs::process::LimitValue::Value(value) => Some(value),
        procfs::process::LimitValue::Unlimited => None,
    };
    let open = u64::try_from(process.fd_count().ok()?).ok()?;
    Some(HostFact::OpenFiles { pid, command: process::summary(pid.0)?.command, open, limit })
}

/// What a process is doing; `None` when it is gone.
#[must_use]
pub fn process_state(pid: Pid) -> Option<HostFact> {
    let summary = process::summary(pid.0)?;
    // "0" while it runs, and where the kernel keeps it to itself.
    let wait_channel = process::open(pid.0)
        .and_then(|process| process.wchan().ok())
        .filter(|channel| !channel.is_empty() && channel != "0");
    Some(HostFact::ProcessState { pid, command: summary.command, state: summary.state, wait_channel })
}

/// Whether the address belongs to one of these, loopback networks included.
fn contains(own: &[IpAddr], address: IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified() || own.contains(&address)
}

impl Namespace {
    fn has(&self, address: IpAddr) -> bool {
        contains(&self.addresses, address)
    }
}
