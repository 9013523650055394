//! Who and what is watched.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_get_current_pid_tgid};
use probe_abi::{
    Endpoint,
    losses::reason,
    process::{Watched, role},
};

use super::{
    emit::lost,
    globals::setting,
    maps::{PORTS, PROCESSES, UPSTREAMS},
};

/// The current process.
#[inline(always)]
pub(crate) fn current() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// How a process is watched.
#[inline(always)]
pub(crate) fn watched(tgid: u32) -> Option<Watched> {
    // SAFETY: copied at once; a value changed meanwhile (by user space) is at worst half old in one field.
    unsafe { PROCESSES.get(tgid) }.copied()
}

/// How the current process is watched, if it is an nginx worker.
#[inline(always)]
pub(crate) fn worker() -> Option<Watched> {
    watched(current()).filter(|process| process.role == role::NGINX_WORKER)
}

/// Watches a process. The probe itself never is.
#[inline(always)]
pub(crate) fn watch(tgid: u32, process: &Watched) {
    if tgid != setting!(own_tgid) && PROCESSES.insert(tgid, process, 0).is_err() {
        lost(reason::MAP_FULL);
    }
}

/// Forgets a process.
#[inline(always)]
pub(crate) fn forget(tgid: u32) {
    // Not being there is fine.
    let _gone = PROCESSES.remove(tgid);
}

/// Whether some watched address has this port (network order): one load from a bitmap.
#[inline(always)]
pub(crate) fn port(port: [u8; 2]) -> bool {
    let port = u16::from_be_bytes(port);
    PORTS.get(u32::from(port >> 6)).is_some_and(|word| word >> (port & 63) & 1 != 0)
}

/// Whether this address is watched.
#[inline(always)]
pub(crate) fn upstream(endpoint: &Endpoint) -> bool {
    // SAFETY: only asked whether it is there.
    port(endpoint.port) && unsafe { UPSTREAMS.get(endpoint) }.is_some()
}

/// Watches the address an nginx worker connects to.
#[inline(always)]
pub(crate) fn learn(endpoint: &Endpoint) {
    let number = u16::from_be_bytes(endpoint.port);
    if let Some(word) = PORTS.get_ptr_mut(u32::from(number >> 6)) {
        // Two CPUs setting two bits of one word at the same moment can lose one; the next connection sets it again.
        // SAFETY: a slot of an array map.
        unsafe { *word |= 1 << (number & 63) };
    }
    if UPSTREAMS.insert(endpoint, 1, u64::from(BPF_NOEXIST)).is_err_and(|error| error != -EEXIST) {
        lost(reason::MAP_FULL);
    }
}

/// `EEXIST`, the same on every architecture.
const EEXIST: i32 = 17;
