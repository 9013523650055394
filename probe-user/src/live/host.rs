//! Looking things up on this host: who listens, how many files are open, what a process is doing.

mod acceptors;
mod answers;
mod call;
mod conntrack;
mod diag;
mod halt;
mod known;
mod names;
mod netlink;
mod numbers;
mod process;
mod route;
mod unix;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use procfs::{
    net::TcpState,
    process::{FDTarget, Process, all_processes},
};

use self::{acceptors::Walk, diag::Listening, known::Known};
pub use self::{answers::Desks, route::way};
use super::{capture, clock, namespaces, nginx::plain};
use crate::{
    model::{
        host::{HostFact, Listener, UnixListener},
        process::Pid,
    },
    pipeline::Question,
};

/// Network namespaces that are searched for the owner of a unix socket.
const NAMESPACES: usize = 64;

/// Listeners nearby that are worth naming.
const NEARBY: usize = 8;

/// Answers questions. Remembers who was found where, so that a storm does not walk `/proc` again and again.
#[derive(Debug, Default)]
pub struct Lookup {
    known: Known,
    /// The last look at every descriptor of the host.
    walked: Option<Walk>,
    /// There is none before.
    rested: Option<Instant>,
}

impl Lookup {
    /// Another one, for another thread, that knows what this one knows.
    #[must_use]
    pub fn beside(&self) -> Self {
        Self { known: self.known.clone(), walked: None, rested: None }
    }

    /// Looks around where that is due, for whoever asks next.
    fn look_around(&self) {
        self.known.namespaces();
    }

    /// Looks it up now; nothing when the subject is gone.
    pub fn answer(&mut self, question: &Question) -> Vec<HostFact> {
        match question {
            Question::Listeners { upstream, netns } => {
                let fact = self.listeners(*upstream, *netns);
                let mut facts = numbers::overflows(&fact, &self.known);
                facts.push(fact);
                facts
            }
            Question::Acceptors { upstream, netns, worker } => {
                self.acceptors(upstream, *netns, *worker).into_iter().collect()
            }
            Question::OpenFiles(pid) => process::open_files(*pid).into_iter().collect(),
            Question::ProcessState(pid) => process::state(*pid).into_iter().collect(),
            Question::OtherListeners(pid) => other_listeners(*pid).into_iter().collect(),
            Question::Route { upstream, netns } => self.route(*upstream, *netns).into_iter().collect(),
            Question::LocalPorts { upstream, netns } => self.local_ports(*upstream, *netns).into_iter().collect(),
            Question::Translation { local, upstream, netns } => {
                self.translation(*local, *upstream, *netns).into_iter().collect()
            }
            Question::SystemFiles => numbers::system_files().into_iter().collect(),
            Question::Name { name, port, master } => names::resolve(name, *port, master.0).into_iter().collect(),
            Question::UnixSocket { path, worker } => self.unix_socket(path, *worker).into_iter().collect(),
        }
    }

    /// A process in this network namespace; without one, any process of the first that is known: where all is one.
    fn resident(&mut self, netns: Option<u32>) -> Option<u32> {
        let Some(netns) = netns else { return Some(std::process::id()) };
        self.known.someone_in(netns)
    }

    fn route(&mut self, upstream: SocketAddr, netns: Option<u32>) -> Option<HostFact> {
        let pid = self.resident(netns)?;
        let (kind, destination) = within(pid, || route::to(plain(upstream).ip()))?.ok()?;
        Some(HostFact::Route { upstream, netns, kind, destination })
    }

    fn local_ports(&mut self, upstream: SocketAddr, netns: Option<u32>) -> Option<HostFact> {
        let pid = self.resident(netns)?;
        let (range, towards) = within(pid, || Some((numbers::port_range()?, diag::towards(plain(upstream)).ok()?)))??;
        let mut ports: BTreeMap<u16, bool> = BTreeMap::new();
        for (port, waits) in towards.into_iter().filter(|(port, _)| (range.0..=range.1).contains(port)) {
            *ports.entry(port).or_insert(true) &= waits;
        }
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let waiting = count(ports.values().filter(|waits| **waits).count());
        Some(HostFact::LocalPorts { upstream, netns, range, in_use: count(ports.len()), waiting })
    }

    fn unix_socket(&mut self, path: &str, worker: Pid) -> Option<HostFact> {
        let walked = unix::walk(path, worker)?;
        let found = self.unix_listener(path, worker, &walked);
        let mut socket = walked.socket;
        socket.listener = found.map(|(netns, found)| {
            let owner = self.known.owner(netns, found.inode);
            let command =
                owner.and_then(|pid| Process::new(pid).ok()).and_then(|p| p.stat().ok()).map(|stat| stat.comm);
            UnixListener { pid: owner.and_then(|pid| u32::try_from(pid).ok()).map(Pid), command, queue: found.queue }
        });
        Some(HostFact::UnixSocket(socket))
    }

    /// The listening socket at the end of a path, and its network namespace.
    fn unix_listener(&mut self, path: &str, worker: Pid, walked: &unix::Walked) -> Option<(u32, unix::Listening)> {
        if walked.socket.missing.is_some() {
            return None;
        }
        let home = namespaces::inode(worker.0, "net")?;
        let look = |(netns, pid): (u32, u32)| {
            let listeners = within(pid, unix::listening)?.ok()?;
            let listener = listeners.into_iter().find(|one| one.is(path, walked.file))?;
            Some((netns, listener))
        };
        // A socket belongs to the namespace it was made in, whoever may reach its file.
        let others = || self.known.namespaces().into_iter().filter(|(netns, _)| *netns != home).take(NAMESPACES);
        look((home, worker.0)).or_else(|| others().find_map(look))
    }

    /// Who listens on this address. For a loopback address only the given namespace counts.
    pub fn listeners(&mut self, upstream: SocketAddr, netns: Option<u32>) -> HostFact {
        let loopback = upstream.ip().is_loopback();
        let homes = self.homes(upstream, netns);
        let mut listeners = Vec::new();
        let mut nearby = Vec::new();
        for (netns, pid) in &homes {
            let all = listening(*pid);
            let reached = reached(&all, plain(upstream));
            for one in all.iter().filter(|one| one.address.port() == upstream.port()) {
                let listener = self.listener(one, *netns);
                if reached.contains(&one) { listeners.push(listener) } else { nearby.push(listener) }
            }
        }
        listeners.sort();
        nearby.sort();
        nearby.truncate(NEARBY);
        HostFact::Listeners { upstream, netns: netns.filter(|_| loopback), local: !homes.is_empty(), listeners, nearby }
    }

    /// Where the address is this host's: network namespaces, each with a process in it.
    fn homes(&self, upstream: SocketAddr, netns: Option<u32>) -> Vec<(u32, u32)> {
        let loopback = upstream.ip().is_loopback();
        if let (true, Some(netns)) = (loopback, netns) {
            return self.known.someone_in(netns).map(|pid| (netns, pid)).into_iter().collect();
        }
        let of = |all: BTreeMap<u32, u32>| -> Vec<(u32, u32)> {
            all.into_iter().filter(|(_, pid)| loopback || is_local(*pid, upstream.ip())).collect()
        };
        // An address has one home, as a rule; a loopback address all.
        let known = if loopback { Vec::new() } else { of(self.known.living_namespaces()) };
        if known.is_empty() { of(self.known.namespaces()) } else { known }
    }

    /// The listening sockets that a SYN to this address reaches, by their inodes, and all that listen where they do.
    fn reached_sockets(&self, upstream: SocketAddr, netns: Option<u32>) -> (BTreeSet<u64>, BTreeSet<u64>) {
        let (mut sockets, mut beside) = (BTreeSet::new(), BTreeSet::new());
        for (_, pid) in self.homes(upstream, netns) {
            let all = listening(pid);
            sockets.extend(reached(&all, plain(upstream)).into_iter().map(|one| one.inode));
            beside.extend(all.iter().map(|one| one.inode));
        }
        (sockets, beside)
    }

    /// A process in this network namespace.
    #[must_use]
    pub fn someone_in(&self, netns: u32) -> Option<u32> {
        self.known.someone_in(netns)
    }

    /// Who listens on other ports, where a connection to this address would arrive.
    pub fn other_ports(&mut self, upstream: SocketAddr, netns: Option<u32>) -> Vec<Listener> {
        let mut found = Vec::new();
        for (netns, pid) in self.homes(upstream, netns) {
            for one in listening(pid).iter().filter(|one| one.address.port() != upstream.port()) {
                found.push(self.listener(one, netns));
            }
        }
        found.sort();
        found.dedup();
        found
    }

    fn listener(&mut self, one: &Listening, netns: u32) -> Listener {
        let owner = self.known.owner(netns, one.inode);
        let command =
            owner.and_then(|pid| Process::new(pid).ok()).and_then(|process| process.stat().ok()).map(|stat| stat.comm);
        let pid = owner.and_then(|pid| u32::try_from(pid).ok()).map(Pid);
        Listener { address: one.address, netns: Some(netns), pid, command, accept_queue: one.queue }
    }

    /// Processes that serve these addresses on this host, with their children, which inherit the listener; and what later failures are
    /// compared with: who serves which address now, and how often full queues have refused a handshake in their namespaces.
    pub fn servers(&mut self, upstreams: &BTreeSet<SocketAddr>, netns: Option<u32>) -> (Vec<Pid>, Vec<HostFact>) {
        let now = clock::now();
        let mut found = BTreeSet::new();
        let mut facts: Vec<HostFact> = Vec::new();
        for upstream in upstreams {
            let home = if upstream.ip().is_loopback() { netns } else { None };
            let looked_up = self.listeners(*upstream, home);
            for fact in numbers::overflows(&looked_up, &self.known) {
                if !facts.contains(&fact) {
                    facts.push(fact);
                }
            }
            let HostFact::Listeners { listeners, .. } = looked_up else { continue };
            found.extend(listeners.iter().filter_map(|listener| listener.pid));
            facts.extend(listeners.into_iter().find_map(|listener| {
                let (upstream, netns, pid, command) = (*upstream, listener.netns, listener.pid?, listener.command);
                Some(HostFact::Served {
                    upstream,
                    netns,
                    pid,
                    command,
                    seen: now,
                    closed: None,
                    ended: None,
                    signal: None,
                })
            }));
        }
        let Ok(processes) = all_processes() else { return (found.into_iter().collect(), facts) };
        let mut parents: BTreeMap<u32, u32> = BTreeMap::new();
        for stat in processes.flatten().filter_map(|process| process.stat().ok()) {
            if let (Ok(pid), Ok(parent)) = (u32::try_from(stat.pid), u32::try_from(stat.ppid)) {
                parents.insert(pid, parent);
            }
        }
        let descends = |pid: u32| {
            let mut at = pid;
            // A process tree is not deeper than this; a loop cannot be, but /proc changes while it is read.
            for _ in 0..32 {
                match parents.get(&at) {
                    Some(parent) if found.contains(&Pid(*parent)) => return true,
                    Some(parent) => at = *parent,
                    None => return false,
                }
            }
            false
        };
        let children: Vec<Pid> = parents.keys().copied().filter(|pid| descends(*pid)).map(Pid).collect();
        found.extend(children);
        (found.into_iter().collect(), facts)
    }
}

/// Where a process listens.
fn other_listeners(pid: Pid) -> Option<HostFact> {
    let process = process::of(pid)?;
    let command = process.stat().ok()?.comm;
    let netns = namespaces::inode(pid.0, "net");
    let sockets: BTreeSet<u64> = process
        .fd()
        .ok()?
        .flatten()
        .filter_map(|descriptor| match descriptor.target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        })
        .collect();
    let listeners = listening(pid.0)
        .into_iter()
        .filter(|one| sockets.contains(&one.inode))
        .map(|one| Listener {
            address: one.address,
            netns,
            pid: Some(pid),
            command: Some(command.clone()),
            accept_queue: one.queue,
        })
        .take(NEARBY)
        .collect();
    Some(HostFact::OtherListeners { pid, listeners })
}

/// Does something in the network namespace of a process.
fn within<T: Send>(pid: u32, work: impl FnOnce() -> T + Send) -> Option<T> {
    let namespace = File::open(format!("/proc/{pid}/ns/net")).ok()?;
    capture::inside(Some(&Arc::new(namespace)), work).ok()
}

/// TCP listeners of a process's network namespace: as the kernel answers, else as `/proc` lists them.
fn listening(pid: u32) -> Vec<Listening> {
    let answered = File::open(format!("/proc/{pid}/ns/net"))
        .ok()
        .and_then(|namespace| capture::inside(Some(&Arc::new(namespace)), diag::listening).ok()?.ok());
    answered.unwrap_or_else(|| listed(pid))
}

/// `/proc` tells neither the accept queue's limit nor whether `::` takes IPv4. It counts as taking it, because claiming that nobody listens
/// needs the stronger proof.
fn listed(pid: u32) -> Vec<Listening> {
    let Ok(process) = i32::try_from(pid).map_err(drop).and_then(|pid| Process::new(pid).map_err(drop)) else {
        return Vec::new();
    };
    [process.tcp(), process.tcp6()]
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.state == TcpState::Listen)
        .map(|entry| Listening {
            address: entry.local_address,
            inode: entry.inode,
            queue: None,
            takes_v4: entry.local_address.is_ipv6() && entry.local_address.ip().is_unspecified(),
        })
        .collect()
}

/// The listeners that a SYN to this address reaches: those on the address itself, else those on any address.
fn reached(all: &[Listening], address: SocketAddr) -> Vec<&Listening> {
    let port = || all.iter().filter(|one| one.address.port() == address.port());
    let exact: Vec<_> = port().filter(|one| plain(one.address).ip() == address.ip()).collect();
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

/// Whether the address belongs to the network namespace of this process.
fn is_local(pid: u32, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let Ok(table) = fs::read_to_string(format!("/proc/{pid}/net/fib_trie")) else { return false };
            let entry = format!("|-- {v4}");
            let mut lines = table.lines();
            while let Some(line) = lines.next() {
                if line.trim() == entry && lines.clone().next().is_some_and(|next| next.contains("/32 host LOCAL")) {
                    return true;
                }
            }
            false
        }
        IpAddr::V6(v6) => {
            let Ok(table) = fs::read_to_string(format!("/proc/{pid}/net/if_inet6")) else { return false };
            let wanted: String = v6.octets().iter().fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            });
            table.lines().any(|line| line.starts_with(&wanted))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_of_ours_is_found_with_its_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let netns = namespaces::inode(std::process::id(), "net");
        let HostFact::Listeners { local, listeners, .. } = Lookup::default().listeners(address, netns) else {
            panic!()
        };
        assert!(local);
        assert_eq!(listeners.len(), 1);
        assert_eq!(listeners[0].pid, Some(Pid(std::process::id())));
    }

    #[test]
    fn an_ipv6_wildcard_takes_ipv4_unless_it_was_told_not_to() {
        let netns = namespaces::inode(std::process::id(), "net");
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = SocketAddr::new("127.0.0.9".parse().unwrap(), port);
        let HostFact::Listeners { listeners, nearby, .. } = Lookup::default().listeners(asked, netns) else { panic!() };
        assert_eq!((listeners.len(), nearby.len()), (1, 0));
        assert!(listeners[0].accept_queue.is_some_and(|(waiting, limit)| waiting == 0 && limit >= 128));

        let one =
            |address: &str, takes_v4| Listening { address: address.parse().unwrap(), inode: 1, queue: None, takes_v4 };
        let v4: SocketAddr = "10.0.0.1:80".parse().unwrap();
        assert!(reached(&[one("[::]:80", false)], v4).is_empty(), "ipv6only=on, as nginx has it");
        let all =
            [one("0.0.0.0:80", false), one("10.0.0.1:80", false), one("[::]:80", true), one("10.0.0.2:80", false)];
        assert_eq!(reached(&all, v4), [&all[1]]);
        assert_eq!(reached(&all, "10.0.0.3:80".parse().unwrap()), [&all[0]]);
        assert_eq!(reached(&all, "[fd00::1]:80".parse().unwrap()), [&all[2]]);
    }

    #[test]
    fn nobody_listens_on_a_port_just_left() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let netns = namespaces::inode(std::process::id(), "net");
        let HostFact::Listeners { local, listeners, .. } = Lookup::default().listeners(address, netns) else {
            panic!()
        };
        assert!(local && listeners.is_empty());
    }

    #[test]
    fn a_foreign_address_is_not_local() {
        // TEST-NET-3: nobody has it.
        let HostFact::Listeners { local, .. } = Lookup::default().listeners("203.0.113.9:80".parse().unwrap(), None)
        else {
            panic!()
        };
        assert!(!local);
    }
}
