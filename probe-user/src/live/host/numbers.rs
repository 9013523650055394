//! Numbers that the kernel keeps of a network namespace and of the whole system.

use std::{collections::BTreeSet, fs};

use super::known::Known;
use crate::model::host::HostFact;

/// How often full accept queues refused a handshake in the namespaces of these listeners.
pub(super) fn overflows(fact: &HostFact, known: &Known) -> Vec<HostFact> {
    let HostFact::Listeners { listeners, .. } = fact else { return Vec::new() };
    let homes: BTreeSet<u32> = listeners.iter().filter_map(|listener| listener.netns).collect();
    let one = |netns: u32| {
        let count = listen_overflows(known.someone_in(netns)?)?;
        Some(HostFact::ListenOverflows { netns, count })
    };
    homes.into_iter().filter_map(one).collect()
}

/// `TcpExtListenOverflows` of a process's network namespace: a line of names, then a line of numbers.
fn listen_overflows(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/netstat")).ok()?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let position = lines.next()?.split(' ').position(|name| name == "ListenOverflows")?;
    lines.next()?.split(' ').nth(position)?.parse().ok()
}

/// `net.ipv4.ip_local_port_range` of the network namespace this thread is in; it holds for IPv6 too.
pub(super) fn port_range() -> Option<(u16, u16)> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut words = text.split_whitespace().map(str::parse);
    Some((words.next()?.ok()?, words.next()?.ok()?))
}

/// `/proc/sys/fs/file-nr`: open, free, limit.
pub(super) fn system_files() -> Option<HostFact> {
    let text = fs::read_to_string("/proc/sys/fs/file-nr").ok()?;
    let mut words = text.split_whitespace().map(str::parse);
    let open = words.next()?.ok()?;
    Some(HostFact::SystemFiles { open, limit: words.nth(1)?.ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_this_host_are_read() {
        assert!(listen_overflows(std::process::id()).is_some());
        assert!(port_range().is_some_and(|(first, last)| first <= last));
        let Some(HostFact::SystemFiles { open, limit }) = system_files() else { panic!() };
        assert!(open > 0 && limit > 0);
    }
}
