//! The network namespaces of the host.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{diag, diag::Listening, process};
use crate::live::capture::{inside, interfaces};

/// Who is in which namespace is looked up again after so long; processes rarely move.
const FRESH: Duration = Duration::from_secs(1);
/// Namespaces looked into.
const NAMESPACES: usize = 1_024;

/// A network namespace.
#[derive(Clone, Debug)]
pub(super) struct Namespace {
    pub(super) inode: u32,
    /// A way in.
    path: PathBuf,
    /// Who is in it, the first 100,000.
    pub(super) processes: Vec<u32>,
    /// Its addresses.
    pub(super) addresses: Vec<IpAddr>,
}

impl Namespace {
    fn file(&self) -> Option<Arc<File>> {
        let file = File::open(&self.path).ok()?;
        // The process that led here may be gone, and its number somebody else's.
        (file.metadata().ok()?.ino() == u64::from(self.inode)).then(|| Arc::new(file))
    }

    fn look(&mut self) {
        let listed = self.file().and_then(|file| interfaces::list(Some(&file)).ok()).unwrap_or_default();
        self.addresses = listed.into_iter().flat_map(|interface| interface.addresses).collect();
    }

    /// Its TCP listeners; those in `/proc` if the kernel does not answer.
    pub(super) fn listening(&self) -> Vec<Listening> {
        let answered = self.file().and_then(|file| inside(Some(&file), diag::listening).ok()?.ok());
        answered.unwrap_or_else(|| self.processes.iter().find_map(|pid| listed(*pid)).unwrap_or_default())
    }
}

/// From `/proc/PID/net/tcp` and `tcp6`, which tell neither the queue's limit nor whether IPv4 is taken: the default is yes.
fn listed(pid: u32) -> Option<Vec<Listening>> {
    let process = process::open(pid)?;
    let mut entries = process.tcp().ok()?;
    entries.extend(process.tcp6().unwrap_or_default());
    let listeners = entries.into_iter().filter(|entry| entry.state == procfs::net::TcpState::Listen);
    let listening = listeners.map(|entry| Listening {
        address: entry.local_address,
        inode: entry.inode,
        queue: (entry.rx_queue, 0),
        takes_v4: entry.local_address.is_ipv6() && entry.local_address.ip().is_unspecified(),
    });
    Some(listening.collect())
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    all: BTreeMap<u32, Namespace>,
    looked: Option<Instant>,
}

impl Namespaces {
    /// Looks again, unless it just did.
    pub(super) fn refresh(&mut self) {
        if self.looked.is_some_and(|looked| looked.elapsed() < FRESH) {
            return;
        }
        self.looked = Some(Instant::now());
        let mut all: BTreeMap<u32, Namespace> = BTreeMap::new();
        let mut add = |inode: u32, path: PathBuf, pid: Option<u32>| {
            let room = all.len() < NAMESPACES;
            if room || all.contains_key(&inode) {
                let new = Namespace { inode, path, processes: Vec::new(), addresses: Vec::new() };
                all.entry(inode).or_insert(new).processes.extend(pid);
            }
        };
        for pid in process::pids().into_iter().take(100_000) {
            if let Some(inode) = process::netns(pid) {
                add(inode, process::path(pid, "ns/net"), Some(pid));
            }
        }
        // Those that ip-netns(8) keeps without a process.
        for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
            let inode = fs::metadata(entry.path()).ok().and_then(|metadata| u32::try_from(metadata.ino()).ok());
            if let Some(inode) = inode {
                add(inode, entry.path(), None);
            }
        }
        for namespace in all.values_mut() {
            namespace.look();
        }
        self.all = all;
    }

    /// The namespaces in which a connection from `from` to this address ends: its own if the address is there, else any that has it.
    pub(super) fn with_address(&self, from: Option<u32>, address: IpAddr) -> Vec<Namespace> {
        let own = from.or_else(|| process::netns(std::process::id())).and_then(|inode| self.all.get(&inode));
        if let Some(own) = own.filter(|own| own.has(address)) {
            return vec![own.clone()];
        }
        if address.is_loopback() || address.is_unspecified() {
            return Vec::new();
        }
        self.all.values().filter(|namespace| namespace.addresses.contains(&address)).cloned().collect()
    }
}
