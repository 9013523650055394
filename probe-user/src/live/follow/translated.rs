//! Upstreams whose address is translated on the way: what is behind it is watched as well, as soon as it is known.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use probe_abi::process::{Watched, role};

use super::{Followed, Followers, endpoint, watch_living};
use crate::{
    live::{clock, scope::Depth},
    model::{event::Body, host::HostFact, time::Moment},
};

/// Addresses behind translated ones that are watched at most.
const DESTINATIONS: usize = 4_096;
/// How often open connections are looked at for addresses that are not known yet: servers come and go behind a Service.
const LOOK_EVERY_NS: u64 = 10_000_000_000;
/// The next look waits so many times as long as the last one took.
const REST: u64 = 200;

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Translated {
    /// Upstreams and where they lead.
    led: BTreeSet<(SocketAddr, SocketAddr)>,
    /// When connections are looked at next.
    due: Moment,
}

impl Translated {
    /// Where upstreams lead.
    pub(super) fn destinations(&self) -> impl Iterator<Item = SocketAddr> {
        self.led.iter().map(|(_, to)| *to)
    }

    /// Upstreams that lead elsewhere.
    fn upstreams(&self) -> impl Iterator<Item = SocketAddr> {
        self.led.iter().map(|(upstream, _)| *upstream)
    }
}

impl Followers {
    /// Takes where connections of nginx were led.
    pub fn take_translations(&mut self, found: Vec<HostFact>) {
        let new: Vec<_> = found.iter().filter_map(|fact| self.take_translation(fact)).collect();
        self.watch_and_tell(&new, found);
    }

    /// Looks where the connections lead that are open by now, before one of them fails.
    pub(super) fn look_for_translations(&mut self) {
        let began = clock::now();
        // While all rest there is no new connection, unless healthy ones are not told of.
        let is_first = self.translated.due == Moment(0);
        let hears = self.kernel.is_some() && self.scope.depth != Depth::Light;
        if began < self.translated.due || (!is_first && hears && self.intake.rest().is_on()) {
            return;
        }
        // Several nginx of a network namespace have one table; a Service gets new servers.
        let mut towards: BTreeMap<Option<u32>, BTreeSet<SocketAddr>> = BTreeMap::new();
        for Followed { captures, found, .. } in self.followed.values() {
            let upstreams = captures.towards.iter().copied().chain(self.translated.upstreams());
            towards.entry(found.instance.netns).or_default().extend(upstreams);
        }
        for (netns, upstreams) in towards {
            let mut found = self.lookup.translations(&upstreams, netns);
            let mut new = Vec::new();
            found.retain(|fact| self.take_translation(fact).inspect(|led| new.push(*led)).is_some());
            self.watch_and_tell(&new, found);
        }
        let took = clock::now().since_ns(began);
        self.translated.due = began.plus_ns(LOOK_EVERY_NS.max(took.saturating_mul(REST)));
    }

    /// Remembers it; gives where it leads, and from which namespace, if that was not known.
    fn take_translation(&mut self, fact: &HostFact) -> Option<(SocketAddr, Option<u32>)> {
        let HostFact::Translated { upstream, to, netns, .. } = fact else { return None };
        let led = &mut self.translated.led;
        (led.len() < DESTINATIONS && led.insert((*upstream, *to))).then_some((*to, *netns))
    }

    /// Watches the other end of these connections, and tells of them then: what is told has been watched since.
    fn watch_and_tell(&mut self, new: &[(SocketAddr, Option<u32>)], found: Vec<HostFact>) {
        if let (Some((_, netns)), false) = (new.first(), self.scope.only_nginx) {
            let addresses: BTreeSet<SocketAddr> = new.iter().map(|(to, _)| *to).collect();
            tracing::info!("translated upstreams lead to {addresses:?}");
            self.watch_addresses(&addresses, *netns);
            // Where each of them is must be known as soon as it is told that connections lead there.
            let there: Vec<Body> = addresses.iter().map(|to| Body::from(self.lookup.listeners(*to, *netns))).collect();
            self.tell(there);
            self.intake.redactor().learn([], addresses.iter().copied());
            self.capture_also(&addresses, *netns);
        }
        self.tell(found.into_iter().map(Body::from).collect());
    }

    /// Watches both ends of connections to these addresses, and who serves them.
    pub(super) fn watch_addresses(&mut self, upstreams: &BTreeSet<SocketAddr>, netns: Option<u32>) {
        let (servers, facts) =
            if self.scope.only_nginx { Default::default() } else { self.lookup.servers(upstreams, netns) };
        // Before anything fails: afterwards nobody could tell who served.
        self.tell(facts.into_iter().map(Body::from).collect());
        if let Some(kernel) = &mut self.kernel {
            for address in upstreams {
                if let Err(error) = kernel.watch_upstream(endpoint(*address)) {
                    tracing::warn!("upstream {address} is not watched: {error}");
                }
            }
            let nginx: BTreeSet<u32> =
                self.census.masters().iter().flat_map(|m| m.workers.iter().copied().chain([m.pid])).collect();
            for pid in servers.iter().filter(|pid| !nginx.contains(&pid.0)) {
                let watched = Watched { role: role::UPSTREAM, layout: 0, master: pid.0, reserved: 0 };
                if let Err(error) = watch_living(kernel, pid.0, watched) {
                    tracing::warn!("upstream process {pid} is not watched: {error}");
                }
            }
        }
    }
}
