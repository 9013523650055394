//! Addresses that stand for another: where the host's address translation leads connections.

use std::net::SocketAddr;

use super::{
    Fast,
    fates::{Endpoint2, endpoint, words},
};

/// Addresses that are remembered.
const ROOM: usize = 4_096;

/// By the address where connections arrive, the one that nginx connects to; `None`: there are several.
#[derive(Debug, Default)]
pub(super) struct Led(Fast<Endpoint2, Option<Endpoint2>>);

impl Led {
    pub(super) fn learn(&mut self, upstream: SocketAddr, to: SocketAddr) {
        let (upstream, to) = (words(&endpoint(upstream)), words(&endpoint(to)));
        if self.0.len() >= ROOM && !self.0.contains_key(&to) {
            return;
        }
        let known = self.0.entry(to).or_insert(Some(upstream));
        if *known != Some(upstream) {
            *known = None;
        }
    }

    /// The address that nginx has for this one.
    pub(super) fn origin(&self, of: Endpoint2) -> Endpoint2 {
        self.0.get(&of).copied().flatten().unwrap_or(of)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
