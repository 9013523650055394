//! What stands beside a try: who listens there, what leads to a socket, which rules a connection meets, and which addresses nginx has
//! been using.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    net::SocketAddr,
    sync::Arc,
};

use procfs::process::Process;

use super::{Prepared, owners, rules};
use crate::{
    check::{
        plan::{Resolver, Server},
        seen::{Barrier, ConnectFailure, Try},
    },
    decode::rules::{Hook, Packet, Rules},
    live::{host::Lookup, nginx},
    model::net::{Address, Errno},
};

impl Prepared {
    /// Addresses that nginx was seen to use: its workers' connections, and the upstreams its error log names since they run.
    pub(super) fn find_held(&mut self) {
        let Some(found) = &self.found else { return };
        let workers: Vec<u32> = found.instance.workers.iter().map(|worker| worker.0).collect();
        let open = nginx::open_connections(&workers, &BTreeSet::new());
        let mut used: BTreeSet<SocketAddr> = open.into_iter().map(|(_, _, upstream)| upstream).collect();
        let runs_s = workers.iter().filter_map(|worker| age_s(*worker)).max();
        for said in self.seen.errors.iter().flat_map(|log| &log.lines) {
            // Both are whole seconds.
            let is_recent = runs_s.is_some_and(|runs_s| said.ago_s <= runs_s + 1);
            let named = said.line.upstream.as_deref().filter(|_| is_recent);
            used.extend(named.and_then(address_of));
        }
        // An address that another server of the configuration has says nothing about the name.
        let written: BTreeSet<SocketAddr> = self
            .seen
            .endpoints
            .iter()
            .filter_map(|endpoint| match &endpoint.server {
                Server::Address(address) => address.ip(),
                Server::Name(..) => None,
            })
            .collect();
        let names_with_port = |port: u16| {
            let names = self.seen.endpoints.iter().filter_map(move |endpoint| match &endpoint.server {
                Server::Name(name, number) if *number == port => Some(name.as_str()),
                _ => None,
            });
            names.collect::<BTreeSet<&str>>().len()
        };
        let mut held = Vec::new();
        for name in &self.seen.names {
            let endpoint = self.seen.endpoints.get(name.endpoint);
            let port = endpoint
                .filter(|endpoint| endpoint.resolver == Resolver::System)
                .and_then(|endpoint| if let Server::Name(_, port) = endpoint.server { Some(port) } else { None });
            // With two names for one port nobody can tell whose address it is.
            let port = port.filter(|port| names_with_port(*port) == 1);
            let addresses = used.iter().filter(|address| port == Some(address.port()) && !written.contains(address));
            held.push(addresses.copied().collect::<Vec<_>>());
        }
        for (name, held) in self.seen.names.iter_mut().zip(held) {
            name.held = held;
        }
    }

    /// A socket that is closed to us may be open to nginx's workers. It counts only where its mode bits close it to them too.
    pub(super) fn leave_out_what_only_we_may_not(&mut self) {
        if !self.place.is_another_user() {
            return;
        }
        let (kept, left): (Vec<Try>, Vec<Try>) =
            std::mem::take(&mut self.seen.tries).into_iter().partition(|one| !is_ours_alone(one));
        self.seen.tries = kept;
        let not_told = left.iter().map(|one| {
            format!(
                "{}: it is closed to the user who asked, which says nothing about nginx (run it as root)",
                one.address
            )
        });
        self.seen.left_out.extend(not_told.collect::<BTreeSet<_>>());
    }

    /// Who listens, what leads to a socket, and which rules are in the way of what failed.
    pub(super) fn look_beside(&mut self) {
        let mut lookup = Lookup::default();
        let mut tries = std::mem::take(&mut self.seen.tries);
        for one in &mut tries {
            match &one.address {
                Address::Ip(address) => one.here = Some(owners::here(&mut lookup, *address, self.netns)),
                Address::Unix(path) if one.connect.is_err() => one.path = Some(owners::path_parts(&self.place, path)),
                Address::Unix(_) => {}
            }
        }
        if tries.iter().any(|one| one.connect.is_err() && one.address.ip().is_some()) {
            self.find_rules(&mut tries, &lookup);
        }
        self.seen.tries = tries;
    }

    fn find_rules(&mut self, tries: &mut [Try], lookup: &Lookup) {
        let nginx = self.seen.nginx.master.map_or_else(std::process::id, |master| master.0);
        let mut listed: BTreeMap<u32, Result<Rules, String>> = BTreeMap::new();
        let mut rules_of = |pid: u32| {
            let netns = crate::live::namespaces::inode(pid, "net").unwrap_or(0);
            let list = || {
                let file = File::open(format!("/proc/{pid}/ns/net")).map_err(|error| error.to_string())?;
                rules::list(Some(&Arc::new(file)))
            };
            listed.entry(netns).or_insert_with(list).clone()
        };
        let mut troubles = BTreeSet::new();
        for one in tries.iter_mut().filter(|one| one.connect.is_err()) {
            let Some(address) = one.address.ip() else { continue };
            let bound = self.seen.endpoints.get(one.endpoint).and_then(|endpoint| endpoint.speech.bind);
            let source = bound.or_else(|| one.route.as_ref().and_then(|route| route.source));
            let there = Packet::syn(source, address);
            let back = source.map(|source| Packet::answer(address, source));
            match rules_of(nginx) {
                Ok(rules) => one.rules.extend(barriers(&rules, [Hook::Output, Hook::Input], there, back, false)),
                Err(error) => {
                    troubles.insert(format!("packet filter rules where nginx runs: {error}"));
                }
            }
            let home = one.here.iter().flat_map(|here| &here.listeners).find_map(|owner| owner.listener.netns);
            // Whoever listens on another port of the same address is there too.
            let beside =
                one.here.iter().flat_map(|here| &here.nearby).find(|owner| owner.listener.address.ip() == address.ip());
            let home = home.or(beside.and_then(|owner| owner.listener.netns));
            let home = home.or(self.netns.filter(|_| address.ip().is_loopback()));
            if let Some(pid) = home.and_then(|netns| lookup.someone_in(netns)) {
                match rules_of(pid) {
                    Ok(rules) => one.rules.extend(barriers(&rules, [Hook::Input, Hook::Output], there, back, true)),
                    Err(error) => {
                        troubles.insert(format!("packet filter rules where the upstream runs: {error}"));
                    }
                }
            }
        }
        self.seen.left_out.extend(troubles);
    }
}

/// What the SYN meets, and what the answer meets the other way.
fn barriers(rules: &Rules, hooks: [Hook; 2], there: Packet, back: Option<Packet>, at_upstream: bool) -> Vec<Barrier> {
    let [of_syn, of_answer] = hooks;
    let syn = rules.hits(of_syn, &there).into_iter().map(|hit| Barrier { at_upstream, answer: false, hit });
    let answer = back.into_iter().flat_map(|back| rules.hits(of_answer, &back));
    syn.chain(answer.map(|hit| Barrier { at_upstream, answer: true, hit })).collect()
}

/// The address in an error log's `upstream: "http://127.0.0.1:8000/x"`.
fn address_of(upstream: &str) -> Option<SocketAddr> {
    let rest = upstream.split_once("://").map_or(upstream, |(_, rest)| rest);
    rest.split('/').next()?.parse().ok()
}

/// How long a process has been running.
fn age_s(pid: u32) -> Option<i64> {
    let stat = Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
    let uptime: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()?;
    let started = stat.starttime / procfs::ticks_per_second();
    #[expect(clippy::cast_possible_truncation, reason = "seconds since boot fit")]
    let up = uptime as i64;
    Some(up - i64::try_from(started).ok()?)
}

/// A unix socket that refused us, and whose path refuses nothing to nginx's workers as far as it can be seen.
fn is_ours_alone(one: &Try) -> bool {
    let refused = |failure: &ConnectFailure| matches!(failure.errno, Some(Errno::EACCES | Errno::EPERM));
    let closed_to_them = one.path.iter().flatten().any(|part| part.mode.is_some() && !part.allowed);
    matches!(one.address, Address::Unix(_)) && one.connect.as_ref().is_err_and(refused) && !closed_to_them
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_of_log_lines_are_addresses() {
        assert_eq!(address_of("http://127.0.0.1:8000/a?b"), "127.0.0.1:8000".parse().ok());
        assert_eq!(address_of("fastcgi://[::1]:9000"), "[::1]:9000".parse().ok());
        assert_eq!(address_of("http://unix:/run/x:/"), None);
        assert!(age_s(std::process::id()).is_some_and(|age| (0..3_600).contains(&age)));
    }
}
