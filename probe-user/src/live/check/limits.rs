//! Limits and counters of the host, read from `/proc` and `/sys`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::SocketAddr,
    path::Path,
    sync::Arc,
};

use procfs::process::{FDTarget, LimitValue, Process};

use crate::{
    check::{
        host::{GroupSeen, Growth, HostSeen, ProcessSeen},
        seen::Seen,
    },
    live::{capture, nginx::plain},
    model::process::Pid,
};

/// Upstream processes looked at, at most.
const PROCESSES: usize = 64;

/// Reads all of it for an nginx; `netns` is its network namespace.
pub(super) fn look(seen: &Seen, master: u32, workers: &[u32], before: Option<u64>) -> HostSeen {
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
    let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pid in std::iter::once(&master).chain(&upstreams) {
        let name =
            Process::new(i32::try_from(*pid).unwrap_or(0)).and_then(|process| process.stat()).map(|stat| stat.comm);
        if let (Some(path), Ok(name)) = (group_path(*pid), name) {
            members.entry(path).or_default().push(format!("{name} {pid}"));
        }
    }
    HostSeen {
        processes,
        system_files: system_files(),
        port_range: range,
        ports_used: ports_used(seen, master),
        syn_retries: number("ipv4/tcp_syn_retries"),
        syn_linear_timeouts: number("ipv4/tcp_syn_linear_timeouts"),
        conntrack: number("netfilter/nf_conntrack_count").zip(number("netfilter/nf_conntrack_max")),
        listen_overflows: listen_overflows(master).map(|after| Growth { before: before.unwrap_or(after), after }),
        groups: members.into_iter().map(|(path, members)| group(&path, members)).collect(),
        pressure: pressure(),
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

/// `TcpExt: ListenOverflows` of a process's network namespace.
pub(super) fn listen_overflows(pid: u32) -> Option<u64> {
    counter(&fs::read_to_string(format!("/proc/{pid}/net/netstat")).ok()?, "TcpExt:", "ListenOverflows")
}

fn counter(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let at = lines.next()?.split_whitespace().position(|word| word == name)?;
    lines.next()?.split_whitespace().nth(at)?.parse().ok()
}

fn group_path(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(ToOwned::to_owned)
}

/// The unified hierarchy's files, where it is mounted at its usual place. The root group has none of them.
fn group(path: &str, members: Vec<String>) -> GroupSeen {
    let directory = Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'));
    let read = |name: &str| fs::read_to_string(directory.join(name)).ok();
    let number = |name: &str| read(name).and_then(|text| text.trim().parse().ok());
    let keyed = |name: &str, key: &str| {
        let text = read(name)?;
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
    };
    GroupSeen {
        path: path.to_owned(),
        members,
        memory: number("memory.current"),
        memory_limit: number("memory.max"),
        oom_kills: keyed("memory.events", "oom_kill"),
        throttled: keyed("cpu.stat", "nr_throttled"),
        periods: keyed("cpu.stat", "nr_periods"),
    }
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
        assert!(listen_overflows(std::process::id()).is_some());
    }

    #[test]
    fn this_host_is_read() {
        let own = std::process::id();
        let host = look(&Seen::default(), own, &[own], None);
        assert!(host.port_range.is_some_and(|(low, high)| low < high));
        assert!(host.processes.iter().any(|process| process.open_files > 2));
        assert!(host.syn_retries.is_some() && host.system_files.is_some());
    }
}
