//! Limits and counters of the host, read from `/proc` and `/sys`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::SocketAddr,
    sync::Arc,
};

use procfs::process::{FDTarget, LimitValue, Process};

use super::groups;
use crate::{
    check::{
        host::{Growth, HostSeen, ProcessSeen},
        seen::Seen,
    },
    live::{capture, nginx::plain},
    model::process::Pid,
};

/// Upstream processes looked at, at most.
const PROCESSES: usize = 64;

/// Reads all of it for an nginx; `netns` is its network namespace.
pub(super) fn look(seen: &Seen, master: u32, workers: &[u32], before: Counters) -> HostSeen {
    let netns = File::open(format!("/proc/{master}/ns/net")).ok().map(Arc::new);
    // /proc/sys/net is that of the network namespace of whoever reads.
    let sysctl = |name: &str| {
        let path = format!("/proc/sys/net/{name}");
        capture::inside(netns.as_ref(), || fs::read_to_string(path).ok()).ok().flatten()
    };
    let number = |name: &str| sysctl(name).and_then(|text| text.trim().parse::<u64>().ok());
    let range = sysctl("ipv4/ip_local_port_range").and_then(|text| {
        let mut words = text.split_whitespace();
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    });
    let upstreams: BTreeSet<u32> = seen
        .tries
        .iter()
        .flat_map(|one| &one.here)
        .flat_map(|here| &here.listeners)
        .filter_map(|owner| owner.listener.pid)
        .map(|pid| pid.0)
        .take(PROCESSES)
        .collect();
    let mut processes: Vec<ProcessSeen> = workers.iter().filter_map(|pid| process(*pid, true, true)).collect();
    processes
        .extend(upstreams.iter().filter(|pid| !workers.contains(pid)).filter_map(|pid| process(*pid, false, false)));
    let after = counters(master);
    let growth = |of: fn(&Counters) -> Option<u64>| {
        of(&after).map(|after| Growth { before: of(&before).unwrap_or(after), after })
    };
    HostSeen {
        processes,
        system_files: system_files(),
        port_range: range,
        ports_used: ports_used(seen, master),
        syn_retries: number("ipv4/tcp_syn_retries"),
        syn_linear_timeouts: number("ipv4/tcp_syn_linear_timeouts"),
        conntrack: number("netfilter/nf_conntrack_count").zip(number("netfilter/nf_conntrack_max")),
        listen_overflows: growth(|counters| counters.listen_overflows),
        syn_drops: growth(|counters| counters.syn_drops),
        somaxconn: number("core/somaxconn"),
        groups: groups::of(std::iter::once(master).chain(upstreams)),
        pressure: pressure(),
        apparmor: fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y')),
        nginx_label: label(workers.first().copied().unwrap_or(master)),
        selinux_enforcing: flag("/sys/fs/selinux/enforce"),
        httpd_can_network_connect: flag("/sys/fs/selinux/booleans/httpd_can_network_connect"),
    }
}

fn process(pid: u32, is_nginx: bool, is_worker: bool) -> Option<ProcessSeen> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    let descriptors: Vec<_> = process.fd().ok()?.flatten().collect();
    let sockets = descriptors.iter().filter(|descriptor| matches!(descriptor.target, FDTarget::Socket(_))).count();
    let limit = process.limits().ok().and_then(|limits| match limits.max_open_files.soft_limit {
        LimitValue::Value(value) => Some(value),
        LimitValue::Unlimited => None,
    });
    Some(ProcessSeen {
        pid: Pid(pid),
        command: process.stat().ok()?.comm,
        is_nginx,
        is_worker,
        open_files: u64::try_from(descriptors.len()).unwrap_or(u64::MAX),
        open_limit: limit,
        sockets: u64::try_from(sockets).unwrap_or(u64::MAX),
    })
}

/// `fs.file-nr`: allocated, unused, limit.
fn system_files() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/sys/fs/file-nr").ok()?;
    let numbers: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match numbers.as_slice() {
        [used, _, limit] => Some((*used, *limit)),
        _ => None,
    }
}

/// Sockets towards the upstreams that were tried, each of which has a local port.
fn ports_used(seen: &Seen, master: u32) -> BTreeMap<SocketAddr, u64> {
    let wanted: BTreeSet<SocketAddr> = seen.tries.iter().filter_map(|one| one.address.ip()).collect();
    let Some(process) = i32::try_from(master).ok().and_then(|pid| Process::new(pid).ok()) else {
        return BTreeMap::new();
    };
    let mut used = BTreeMap::new();
    for entry in [process.tcp(), process.tcp6()].into_iter().flatten().flatten() {
        let remote = plain(entry.remote_address);
        if wanted.contains(&remote) {
            *used.entry(remote).or_default() += 1;
        }
    }
    used
}

/// Counters of a network namespace that grow when listeners cannot keep up.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    listen_overflows: Option<u64>,
    syn_drops: Option<u64>,
}

/// Those of a process's network namespace.
pub(super) fn counters(pid: u32) -> Counters {
    let text = fs::read_to_string(format!("/proc/{pid}/net/netstat")).unwrap_or_default();
    Counters {
        listen_overflows: counter(&text, "TcpExt:", "ListenOverflows"),
        syn_drops: counter(&text, "TcpExt:", "TCPReqQFullDrop"),
    }
}

fn counter(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let at = lines.next()?.split_whitespace().position(|word| word == name)?;
    lines.next()?.split_whitespace().nth(at)?.parse().ok()
}

/// `some avg10` of each resource.
fn pressure() -> Vec<(String, f64)> {
    let read = |what: &str| -> Option<(String, f64)> {
        let text = fs::read_to_string(format!("/proc/pressure/{what}")).ok()?;
        let average = text.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?;
        Some((what.to_owned(), average.parse().ok()?))
    };
    ["cpu", "io", "memory"].into_iter().filter_map(read).collect()
}

fn label(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/attr/current")).ok()?;
    let text = text.trim_matches(['\0', '\n', ' ']);
    (!text.is_empty()).then(|| text.to_owned())
}

fn flag(path: &str) -> Option<bool> {
    fs::read_to_string(path).ok().map(|text| text.starts_with('1'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name() {
        let text = "TcpExt: A ListenOverflows B\nTcpExt: 1 22 3\nIpExt: X\nIpExt: 9\n";
        assert_eq!(counter(text, "TcpExt:", "ListenOverflows"), Some(22));
        assert_eq!(counter(text, "TcpExt:", "C"), None);
        assert!(counters(std::process::id()).listen_overflows.is_some());
    }

    #[test]
    fn this_host_is_read() {
        let own = std::process::id();
        let host = look(&Seen::default(), own, &[own], Counters::default());
        assert!(host.port_range.is_some_and(|(low, high)| low < high));
        assert!(host.processes.iter().any(|process| process.open_files > 2));
        assert!(host.syn_retries.is_some() && host.system_files.is_some());
    }
}
