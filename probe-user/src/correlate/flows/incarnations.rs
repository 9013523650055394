//! The newest connection of each pair of addresses.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, SocketAddrV4},
};

use super::Flows;
use crate::{
    correlate::tuple::Tuple,
    model::{flow::FlowId, time::Moment},
};

/// Those of IPv4 by themselves: tens of thousands of them may be open, and in full a pair takes five times the room.
#[derive(Debug, Default)]
pub(super) struct Incarnations {
    v4: BTreeMap<(SocketAddrV4, SocketAddrV4, u32), FlowId>,
    others: BTreeMap<(SocketAddr, SocketAddr, u32), FlowId>,
}

impl Incarnations {
    /// The newest of this tuple.
    pub(super) fn get(&self, tuple: &Tuple) -> Option<FlowId> {
        match *tuple {
            Tuple { local: SocketAddr::V4(local), upstream: SocketAddr::V4(upstream), zone } => {
                self.v4.get(&(local, upstream, zone)).copied()
            }
            Tuple { local, upstream, zone } => self.others.get(&(local, upstream, zone)).copied(),
        }
    }

    /// There is a newer one; gives the one before.
    pub(super) fn insert(&mut self, tuple: Tuple, id: FlowId) -> Option<FlowId> {
        match tuple {
            Tuple { local: SocketAddr::V4(local), upstream: SocketAddr::V4(upstream), zone } => {
                self.v4.insert((local, upstream, zone), id)
            }
            Tuple { local, upstream, zone } => self.others.insert((local, upstream, zone), id),
        }
    }

    /// There is none any more.
    pub(super) fn remove(&mut self, tuple: &Tuple) {
        match *tuple {
            Tuple { local: SocketAddr::V4(local), upstream: SocketAddr::V4(upstream), zone } => {
                self.v4.remove(&(local, upstream, zone));
            }
            Tuple { local, upstream, zone } => {
                self.others.remove(&(local, upstream, zone));
            }
        }
    }

    /// Fills the nodes of the larger tree.
    pub(super) fn fill(&mut self) {
        self.v4 = std::mem::take(&mut self.v4).into_iter().collect();
    }

    /// Those between these addresses, with the zone of each.
    pub(super) fn between(&self, local: SocketAddr, upstream: SocketAddr) -> impl Iterator<Item = (u32, FlowId)> {
        let v4 = match (local, upstream) {
            (SocketAddr::V4(local), SocketAddr::V4(upstream)) => Some(
                self.v4.range((local, upstream, 0)..=(local, upstream, u32::MAX)).map(|((.., zone), id)| (*zone, *id)),
            ),
            _ => None,
        };
        let others = self.others.range((local, upstream, 0)..=(local, upstream, u32::MAX));
        v4.into_iter().flatten().chain(others.map(|((.., zone), id)| (*zone, *id)))
    }
}

impl Flows {
    /// Whether a connection of this tuple is on that began before `moment`.
    #[must_use]
    pub fn is_older(&mut self, local: SocketAddr, upstream: SocketAddr, moment: Moment) -> bool {
        let state = self.current(local, upstream, None).and_then(|id| self.known.wake(id));
        state.is_some_and(|state| state.ended.is_none() && state.begun < moment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_zone_has_its_own_and_none_is_lost_to_the_other_family() {
        let mut newest = Incarnations::default();
        let pairs =
            [("127.0.0.1:40000", "127.0.0.1:8000"), ("[::1]:40000", "[::1]:8000"), ("[::1]:40000", "127.0.0.1:8000")];
        let pairs = pairs.map(|(local, upstream)| (local.parse().unwrap(), upstream.parse().unwrap()));
        for (place, (local, upstream)) in (0..).zip(pairs) {
            for zone in [0, 7] {
                let tuple = Tuple { local, upstream, zone };
                let id = FlowId(10 * place + u64::from(zone));
                assert_eq!((newest.get(&tuple), newest.insert(tuple, id)), (None, None));
                assert_eq!(newest.insert(tuple, id), Some(id));
            }
        }
        for (place, (local, upstream)) in (0..).zip(pairs) {
            let both = [(0, FlowId(10 * place)), (7, FlowId(10 * place + 7))];
            assert_eq!(newest.between(local, upstream).collect::<Vec<_>>(), both);
            newest.remove(&Tuple { local, upstream, zone: 0 });
            assert_eq!(newest.between(local, upstream).collect::<Vec<_>>(), both[1..]);
        }
    }
}
