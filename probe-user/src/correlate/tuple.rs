//! The addresses that name a connection.

use std::net::SocketAddr;

/// A 4-tuple as nginx sees it. Loopback addresses repeat in every network namespace, others do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tuple {
    /// nginx's side.
    pub(super) local: SocketAddr,
    /// The upstream.
    pub(super) upstream: SocketAddr,
    /// The network namespace of a loopback address, where it is known; else 0.
    pub(super) zone: u32,
}

impl Tuple {
    /// With the zone that matters for these addresses.
    pub(super) fn of(local: SocketAddr, upstream: SocketAddr, netns: Option<u32>) -> Self {
        let zone = if upstream.ip().is_loopback() { netns.unwrap_or(0) } else { 0 };
        Self { local, upstream, zone }
    }
}
