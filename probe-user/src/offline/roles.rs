//! Which servers are nginx, and which are its upstreams: told by the user, or learnt from requests that lie inside others.

use std::collections::{BTreeMap, BTreeSet};

use super::segment::End;
use crate::model::wire::WireSide;

/// Pairs of servers that are counted.
const MOST_PAIRS: usize = 4_096;
/// How much more often one server's requests must lie inside another's than the other way round. Two upstreams of one nginx that are
/// asked the same at the same time lie in each other by chance, and as often this way as that.
const CLEARLY: u32 = 4;

/// `0.0.0.0`.
const ANY: [u64; 2] = [0, 0xffff_0000_0000];

/// What is known of servers.
#[derive(Debug, Default)]
pub(super) struct Roles {
    told_upstreams: BTreeSet<End>,
    told_nginx: BTreeSet<End>,
    /// How often a request to the second was made and answered within an equal one to the first.
    inside: BTreeMap<(End, End), u32>,
    changed: bool,
    upstreams: BTreeSet<End>,
    nginx: BTreeSet<End>,
}

impl Roles {
    /// With what the user says.
    pub(super) fn new(upstreams: &[End], nginx: &[End]) -> Self {
        Self {
            told_upstreams: upstreams.iter().copied().collect(),
            told_nginx: nginx.iter().copied().collect(),
            changed: true,
            ..Self::default()
        }
    }

    /// A request to `inner` was made and answered while an equal one to `outer` waited.
    pub(super) fn lies_inside(&mut self, outer: End, inner: End) {
        if self.inside.len() < MOST_PAIRS || self.inside.contains_key(&(outer, inner)) {
            let count = self.inside.entry((outer, inner)).or_default();
            // What is clear after a thousand stays clear.
            if *count < 1_000 {
                *count += 1;
                self.changed = true;
            }
        }
    }

    fn learn(&mut self) {
        if !self.changed {
            return;
        }
        self.changed = false;
        self.upstreams.clone_from(&self.told_upstreams);
        self.nginx.clone_from(&self.told_nginx);
        for ((outer, inner), count) in &self.inside {
            let opposite = self.inside.get(&(*inner, *outer)).copied().unwrap_or(0);
            if *count > opposite.saturating_mul(CLEARLY) {
                self.nginx.insert(*outer);
                self.upstreams.insert(*inner);
            }
        }
    }

    /// Whether requests to this server are nginx's, and none of them a client's.
    pub(super) fn is_only_upstream(&mut self, server: End) -> bool {
        self.side(server) == WireSide::Upstream
    }

    /// Where this server stands. One that is an upstream of one nginx and an nginx itself is the latter.
    pub(super) fn side(&mut self, server: End) -> WireSide {
        self.learn();
        // An address without a port in a configuration stands for all of them.
        let any = End { address: ANY, port: server.port };
        if self.nginx.contains(&server) || (self.nginx.contains(&any) && !self.upstreams.contains(&server)) {
            WireSide::Client
        } else if self.upstreams.contains(&server) {
            WireSide::Upstream
        } else {
            WireSide::Unknown
        }
    }

    /// It is an upstream, whatever else.
    pub(super) fn is_upstream(&mut self, server: End) -> bool {
        self.learn();
        self.upstreams.contains(&server)
    }

    /// An nginx is known on this host.
    pub(super) fn is_nginx_host(&mut self, host: End) -> bool {
        self.learn();
        self.nginx.iter().any(|end| end.address == host.address || end.address == ANY)
    }

    /// Some request to an nginx is known of.
    pub(super) fn knows_nginx(&mut self) -> bool {
        self.learn();
        !self.nginx.is_empty()
    }
}
