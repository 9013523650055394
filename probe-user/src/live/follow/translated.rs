//! Upstreams whose address is translated on the way: what is behind it is watched as well, as soon as it is known.

use std::{collections::BTreeSet, net::SocketAddr};

use probe_abi::process::{Watched, role};

use super::{Followers, endpoint, watch_living};
use crate::{
    live::clock,
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
}

impl Followers {
    /// Answers where a connection of nginx was led.
    pub fn translate(&mut self, local: SocketAddr, upstream: SocketAddr, netns: Option<u32>) {
        if let Some(fact) = self.lookup.translation(local, upstream, netns) {
            // Told when it is watched: what is told has been so since then.
            let new = self.take_translation(&fact);
            self.watch_destinations(&new, netns);
            self.tell(vec![Body::Host(fact)]);
        }
    }

    /// Looks where the connections lead that are open by now, before one of them fails.
    pub(super) fn look_for_translations(&mut self) {
        let began = clock::now();
        if began < self.translated.due {
            return;
        }
        let towards: Vec<(BTreeSet<SocketAddr>, Option<u32>)> = self
            .followed
            .values()
            .map(|followed| (followed.captures.towards.clone(), followed.found.instance.netns))
            .collect();
        for (upstreams, netns) in towards {
            let mut found = self.lookup.translations(&upstreams, netns);
            let mut new = BTreeSet::new();
            found.retain(|fact| {
                let told = self.take_translation(fact);
                new.extend(&told);
                !told.is_empty()
            });
            self.watch_destinations(&new, netns);
            self.tell(found.into_iter().map(Body::Host).collect());
        }
        let took = clock::now().since_ns(began);
        self.translated.due = began.plus_ns(LOOK_EVERY_NS.max(took.saturating_mul(REST)));
    }

    /// Remembers it; gives where it leads if that was not known.
    fn take_translation(&mut self, fact: &HostFact) -> BTreeSet<SocketAddr> {
        let HostFact::Translated { upstream, to, .. } = fact else { return BTreeSet::new() };
        let led = &mut self.translated.led;
        let new = led.len() < DESTINATIONS && led.insert((*upstream, *to));
        new.then_some(*to).into_iter().collect()
    }

    /// Watches the other end of translated connections.
    fn watch_destinations(&mut self, addresses: &BTreeSet<SocketAddr>, netns: Option<u32>) {
        if addresses.is_empty() || self.scope.only_nginx {
            return;
        }
        tracing::info!("translated upstreams lead to {addresses:?}");
        self.watch_addresses(addresses, netns);
        self.intake.redactor().learn([], addresses.iter().copied());
        self.capture_also(addresses, netns);
    }

    /// Watches both ends of connections to these addresses, and who serves them.
    pub(super) fn watch_addresses(&mut self, upstreams: &BTreeSet<SocketAddr>, netns: Option<u32>) {
        let (servers, facts) =
            if self.scope.only_nginx { Default::default() } else { self.lookup.servers(upstreams, netns) };
        // Before anything fails: afterwards nobody could tell who served.
        self.tell(facts.into_iter().map(Body::Host).collect());
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
