//! No more power than the moment needs: capabilities that nothing here ever uses are given up before anything is read, and cannot come
//! back.
//!
//! Capabilities belong to a thread, so this is done while there is one only. What stays is what following an nginx that starts later
//! needs: kernel programs, captures, other processes' files and namespaces.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

/// What is kept, and for what.
const KEPT: [Capability; 19] = [
    // Kernel programs, uprobes, the ring; before 5.8 and for entering namespaces SYS_ADMIN; before 5.11 locked memory.
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_RESOURCE,
    Capability::CAP_IPC_LOCK,
    // Names of kernel functions.
    Capability::CAP_SYSLOG,
    // Captures, listings of sockets, routes and packet filters.
    Capability::CAP_NET_RAW,
    Capability::CAP_NET_ADMIN,
    // Other users' processes, their files, logs after a rotation; output in a folder of somebody else.
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_CHOWN,
    // `nginx -T` as nginx's own user, in its namespaces and below its root directory, with fewer rights still.
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_KILL,
];

/// Of those, what somebody else than root must have been given, or there is nothing to watch with.
const NEEDED: [Capability; 7] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    // uprobes, and tracepoints where `perf_event_paranoid` is above 2 (Debian's is 3).
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_READ_SEARCH,
];

/// What is lacking for watching, by name; nothing for root, whatever root has been left: what it then cannot do is told as a gap.
#[must_use]
pub fn lacking() -> Vec<String> {
    if nix::unistd::geteuid().is_root() {
        return Vec::new();
    }
    let has = caps::read(None, CapSet::Effective).unwrap_or_default();
    NEEDED.iter().filter(|needed| !has.contains(needed)).map(ToString::to_string).collect()
}

/// Gives up what is never used, the way back to it, and core dumps, which would hold what strangers sent.
pub fn reduce() -> io::Result<()> {
    let other = |error: caps::errors::CapsError| io::Error::other(error.to_string());
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let has = caps::read(None, CapSet::Permitted).map_err(other)?;
    let kept: CapsHashSet = KEPT.into_iter().filter(|capability| has.contains(capability)).collect();
    // Without SETPCAP the bounding set stays as it is; no_new_privs closes that way too.
    if has.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding).map_err(other)?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(other)?;
        }
    }
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new()).map_err(other)?;
    caps::set(None, CapSet::Effective, &kept).map_err(other)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(other)?;
    prctl::set_no_new_privs()?;
    Ok(())
}
