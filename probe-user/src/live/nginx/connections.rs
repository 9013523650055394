//! What the sockets of an nginx show.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use procfs::net::{TcpNetEntry, TcpState};

use crate::{
    live::host::process,
    model::{
        host::{Configuration, HostFact},
        net::Address,
        process::Pid,
    },
};

/// Descriptors looked at, of all workers together.
const DESCRIPTORS: usize = 1 << 20;

/// A connection that a worker has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpenConnection {
    /// The worker.
    pub worker: Pid,
    /// Its descriptor.
    pub fd: i32,
    /// nginx's side.
    pub local: SocketAddr,
    /// The other side.
    pub remote: SocketAddr,
}

impl OpenConnection {
    /// What the stream carries.
    #[must_use]
    pub const fn fact(&self) -> HostFact {
        HostFact::OpenConnection { worker: self.worker, local: self.local, upstream: self.remote }
    }
}

/// What the sockets of an nginx's processes show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sockets {
    /// Where it listens.
    pub listen: BTreeSet<SocketAddr>,
    /// Connections to others: their local address is none it listens on.
    pub outgoing: Vec<OpenConnection>,
}

impl Sockets {
    /// Looks at the sockets of these processes, which share a network namespace.
    #[must_use]
    pub fn of_processes(pids: &[Pid]) -> Self {
        let Some(first) = pids.first() else { return Self::default() };
        let mut budget = DESCRIPTORS;
        let owned: BTreeMap<u64, (Pid, i32)> = pids
            .iter()
            .flat_map(|pid| {
                process::sockets(pid.0, &mut budget).into_iter().map(move |(inode, fd)| (inode, (*pid, fd)))
            })
            .collect();
        let entries = process::open(first.0).map_or_else(Vec::new, |process| {
            let mut entries = process.tcp().unwrap_or_default();
            entries.extend(process.tcp6().unwrap_or_default());
            entries
        });
        let rows: Vec<Row> = entries.iter().map(Row::new).collect();
        Self::classify(&rows, &owned)
    }

    fn classify(entries: &[Row], owned: &BTreeMap<u64, (Pid, i32)>) -> Self {
        let ours = || entries.iter().filter_map(|entry| Some((entry, owned.get(&entry.inode)?)));
        let listen: BTreeSet<SocketAddr> =
            ours().filter(|(entry, _)| entry.state == TcpState::Listen).map(|(entry, _)| entry.local).collect();
        let accepted = |local: SocketAddr| {
            listen.iter().any(|listener| {
                listener.port() == local.port() && (listener.ip() == local.ip() || listener.ip().is_unspecified())
            })
        };
        let open = [TcpState::Established, TcpState::SynSent, TcpState::CloseWait];
        let mut outgoing: Vec<OpenConnection> = ours()
            .filter(|(entry, _)| open.contains(&entry.state) && !accepted(entry.local))
            .map(|(entry, (worker, fd))| OpenConnection {
                worker: *worker,
                fd: *fd,
                local: entry.local,
                remote: entry.remote,
            })
            .collect();
        outgoing.sort_unstable();
        Self { listen, outgoing }
    }

    /// As much of a configuration as the sockets show: where it listens, and whom it is connected to at this moment.
    #[must_use]
    pub fn configuration(&self) -> Configuration {
        let upstreams: BTreeSet<Address> =
            self.outgoing.iter().map(|connection| Address::Ip(connection.remote)).collect();
        Configuration {
            listen: self.listen.iter().copied().collect(),
            upstreams: upstreams.into_iter().collect(),
            ..Configuration::default()
        }
    }
}

/// What counts of a line of `/proc/net/tcp`.
struct Row {
    local: SocketAddr,
    remote: SocketAddr,
    state: TcpState,
    inode: u64,
}

impl Row {
    fn new(entry: &TcpNetEntry) -> Self {
        Self {
            local: canonical(entry.local_address),
            remote: canonical(entry.remote_address),
            state: entry.state.clone(),
            inode: entry.inode,
        }
    }
}

/// IPv4 on an IPv6 socket is IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_connections_are_not_outgoing() {
        let entry = |local: &str, remote: &str, state, inode| Row {
            local: canonical(local.parse().unwrap()),
            remote: canonical(remote.parse().unwrap()),
            state,
            inode,
        };
        let entries = [
            entry("0.0.0.0:80", "0.0.0.0:0", TcpState::Listen, 1),
            entry("10.0.0.1:80", "10.0.0.7:5000", TcpState::Established, 2),
            entry("10.0.0.1:41822", "10.0.0.2:8000", TcpState::Established, 3),
            entry("[::ffff:10.0.0.1]:41823", "[::ffff:10.0.0.3]:8000", TcpState::CloseWait, 4),
            entry("10.0.0.1:41824", "10.0.0.9:8000", TcpState::Established, 5),
            entry("10.0.0.1:41825", "10.0.0.9:8000", TcpState::TimeWait, 0),
        ];
        let owned = (1..=4).map(|inode| (inode, (Pid(7), i32::try_from(inode).unwrap()))).collect();
        let sockets = Sockets::classify(&entries, &owned);
        let outgoing: Vec<String> =
            sockets.outgoing.iter().map(|open| format!("{} {}", open.fd, open.remote)).collect();
        assert_eq!(outgoing, ["3 10.0.0.2:8000", "4 10.0.0.3:8000"]);
        let configuration = sockets.configuration();
        assert_eq!(configuration.listen, ["0.0.0.0:80".parse().unwrap()]);
        assert_eq!(configuration.upstreams.len(), 2);
    }
}
