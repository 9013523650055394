//! Connections to upstreams that were open before anybody watched.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use procfs::{
    net::TcpState,
    process::{FDTarget, Process},
};

/// A worker's open connection: worker, its side, the upstream.
pub(super) type OpenConnection = (u32, SocketAddr, SocketAddr);

/// Connections of these workers to `upstreams`. With no upstream known: every connection that a worker opened itself, told by its local
/// port, on which nobody in the namespace listens.
#[must_use]
pub fn open_connections(workers: &[u32], upstreams: &BTreeSet<SocketAddr>) -> Vec<OpenConnection> {
    let Some(first) = workers.first() else { return Vec::new() };
    let Ok(process) = i32::try_from(*first).map_err(drop).and_then(|pid| Process::new(pid).map_err(drop)) else {
        return Vec::new();
    };
    let entries: Vec<_> = [process.tcp(), process.tcp6()].into_iter().flatten().flatten().collect();
    let listening: BTreeSet<u16> = entries
        .iter()
        .filter(|entry| entry.state == TcpState::Listen)
        .map(|entry| entry.local_address.port())
        .collect();
    let mut wanted: BTreeMap<u64, (SocketAddr, SocketAddr)> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| matches!(entry.state, TcpState::Established | TcpState::CloseWait)) {
        let (local, remote) = (plain(entry.local_address), plain(entry.remote_address));
        let to_upstream =
            if upstreams.is_empty() { !listening.contains(&local.port()) } else { upstreams.contains(&remote) };
        if to_upstream {
            wanted.insert(entry.inode, (local, remote));
        }
    }
    if wanted.is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for worker in workers {
        let Ok(process) = i32::try_from(*worker).map_err(drop).and_then(|pid| Process::new(pid).map_err(drop)) else {
            continue;
        };
        let Ok(descriptors) = process.fd() else { continue };
        for descriptor in descriptors.flatten() {
            if let FDTarget::Socket(inode) = descriptor.target {
                found.extend(wanted.get(&inode).map(|(local, remote)| (*worker, *local, *remote)));
            }
        }
    }
    found
}

/// IPv4 in IPv6 clothes is IPv4, as everywhere in this program.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), address.port()),
            None => address,
        },
        IpAddr::V4(_) => address,
    }
}
