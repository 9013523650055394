//! What the host allows and what is in use, as plain values.

use std::{collections::BTreeMap, net::SocketAddr};

use crate::model::process::Pid;

/// Limits and counters, as far as they could be read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostSeen {
    /// nginx's processes and the upstreams' on this host.
    pub processes: Vec<ProcessSeen>,
    /// Files open in the whole system, and how many may be.
    pub system_files: Option<(u64, u64)>,
    /// `net.ipv4.ip_local_port_range` where nginx runs.
    pub port_range: Option<(u16, u16)>,
    /// Sockets where nginx runs by the address they lead to, those that wait (`TIME_WAIT`) included.
    pub ports_used: BTreeMap<SocketAddr, u64>,
    /// `net.ipv4.tcp_syn_retries`
    pub syn_retries: Option<u64>,
    /// `net.ipv4.tcp_syn_linear_timeouts` (6.5)
    pub syn_linear_timeouts: Option<u64>,
    /// Tracked connections, and how many may be.
    pub conntrack: Option<(u64, u64)>,
    /// `ListenOverflows` of the network namespace.
    pub listen_overflows: Option<Growth>,
    /// SYNs that a listener of it could not keep: `TCPReqQFullDrop`.
    pub syn_drops: Option<Growth>,
    /// `net.core.somaxconn` where nginx runs: no backlog is longer.
    pub somaxconn: Option<u64>,
    /// Control groups of nginx and the upstreams.
    pub groups: Vec<GroupSeen>,
    /// Shares of the last 10 s in which something waited, in percent: `cpu`, `io`, `memory`.
    pub pressure: Vec<(String, f64)>,
    /// nginx's security label (`SELinux` context or `AppArmor` profile).
    pub nginx_label: Option<String>,
    /// `AppArmor` profiles are enforced by the kernel at all.
    pub apparmor: bool,
    /// `SELinux` enforces.
    pub selinux_enforcing: Option<bool>,
    /// The `SELinux` boolean.
    pub httpd_can_network_connect: Option<bool>,
}

/// A counter before and after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// When the check began.
    pub before: u64,
    /// When it ended.
    pub after: u64,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSeen {
    /// Its pid.
    pub pid: Pid,
    /// Its name.
    pub command: String,
    /// It belongs to nginx.
    pub is_nginx: bool,
    /// It is one of nginx's workers.
    pub is_worker: bool,
    /// Open descriptors.
    pub open_files: u64,
    /// How many it may have.
    pub open_limit: Option<u64>,
    /// Of these sockets.
    pub sockets: u64,
}

/// A control group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupSeen {
    /// Its path.
    pub path: String,
    /// It is one above the processes' own.
    pub is_above: bool,
    /// Who is in it, of those we look at.
    pub members: Vec<String>,
    /// Memory in use, bytes.
    pub memory: Option<u64>,
    /// Memory allowed, bytes.
    pub memory_limit: Option<u64>,
    /// Processes the kernel killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Periods in which it was held back.
    pub throttled: Option<u64>,
    /// Periods in all.
    pub periods: Option<u64>,
}
