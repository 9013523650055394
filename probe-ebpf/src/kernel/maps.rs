//! The maps.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use probe_abi::{Endpoint, Header, losses, nginx::Layout, process::Watched};

/// The ring of records; its size is set by the loader.
#[btf_map]
pub(crate) static EVENTS: RingBuf<Header, 0x10_0000> = RingBuf::new();

/// Watched processes by tgid.
#[btf_map]
pub(crate) static PROCESSES: HashMap<u32, Watched, 16384> = HashMap::new();

/// Watched upstream addresses.
#[btf_map]
pub(crate) static UPSTREAMS: HashMap<Endpoint, u32, 16384> = HashMap::new();

/// Bitmap of the ports in `UPSTREAMS`.
#[btf_map]
pub(crate) static PORTS: Array<u64, 1024> = Array::new();

/// nginx layouts by index.
#[btf_map]
pub(crate) static LAYOUTS: Array<Layout, 64> = Array::new();

/// Losses by reason.
#[btf_map]
pub(crate) static LOSSES: PerCpuArray<u64, { losses::reason::COUNT as usize }> = PerCpuArray::new();

/// Things counted and not recorded.
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, { losses::counter::COUNT as usize }> = PerCpuArray::new();

/// This CPU's last sequence number.
#[btf_map]
pub(crate) static SEQUENCE: PerCpuArray<u64, 1> = PerCpuArray::new();

/// The last failed `accept()` that was told, and when.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct FailedAccept {
    /// By the clock of the records' headers.
    pub(crate) time_ns: u64,
    /// The listener, `struct sock *`.
    pub(crate) listener: u64,
    /// Who called.
    pub(crate) tgid: u32,
    /// What it returned.
    pub(crate) result: i32,
}

/// This CPU's.
#[btf_map]
pub(crate) static FAILED_ACCEPT: PerCpuArray<FailedAccept, 1> = PerCpuArray::new();

/// A request of a worker.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct RequestKey {
    /// `ngx_http_request_t *`.
    pub(crate) request: u64,
    /// The worker.
    pub(crate) tgid: u32,
    /// Zero.
    pub(crate) reserved: u32,
}

/// Which request it is: nginx uses the address again for the next one.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct RequestIdentity {
    /// `*N` of the client's connection.
    pub(crate) number: u64,
    /// Requests served on that connection.
    pub(crate) client_requests: u64,
}

/// Requests whose answer is worth a record whatever its status. Entries of requests that never answer
/// (the client left) stay until the map needs their place.
#[btf_map]
pub(crate) static ARMED: LruHashMap<RequestKey, RequestIdentity, UNDER_WAY> = LruHashMap::new();

/// Requests that failed somewhere and are still under way: a thousand a second that wait half a minute for the next server.
const UNDER_WAY: usize = 32_768;

/// Requests in `ARMED` whose answer is awaited where it is sent, by the client's socket (`struct sock *`).
#[btf_map]
pub(crate) static AWAITED: LruHashMap<u64, RequestKey, UNDER_WAY> = LruHashMap::new();

/// Until when something may be awaited, jiffies: one load tells every other sender of the host that nothing is.
#[btf_map]
pub(crate) static AWAITED_UNTIL: Array<u64, 1> = Array::new();

/// The switch of [`probe_abi::globals::only_trouble::SWITCHED`].
#[btf_map]
pub(crate) static ONLY_TROUBLE: Array<u32, 1> = Array::new();

/// Sockets (`struct sock *`) of which something was told at depth light: their end is told then, however they end.
#[btf_map]
pub(crate) static IN_TROUBLE: LruHashMap<u64, u8, 8192> = LruHashMap::new();
