//! Names of upstreams, resolved where nginx resolves them.

use std::{
    net::{SocketAddr, ToSocketAddrs as _},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    live::namespaces::Namespaces,
    model::{
        host::{Configuration, UpstreamName},
        net::Address,
    },
};

/// A start must not hang on a name server that is part of the outage.
const PATIENCE: Duration = Duration::from_millis(700);

/// Resolves `names` with the files and name servers of process `pid`, fills the addresses into `configuration`, and gives back those that
/// could not be resolved in time.
pub(super) fn names(pid: u32, names: &[(String, u16)], configuration: &mut Configuration) -> Vec<String> {
    if names.is_empty() {
        return Vec::new();
    }
    let Ok(namespaces) = Namespaces::of(pid) else { return names.iter().map(|(name, _)| name.clone()).collect() };
    let (sender, receiver) = mpsc::channel();
    let wanted = names.to_vec();
    // Not joined: getaddrinfo cannot be interrupted, and the thread ends by itself.
    let started = thread::Builder::new().name("resolve".into()).spawn(move || {
        if namespaces.enter_from_thread().is_err() {
            return;
        }
        for (name, port) in wanted {
            let addresses: Vec<SocketAddr> =
                (name.as_str(), port).to_socket_addrs().map(Iterator::collect).unwrap_or_default();
            if sender.send((name, port, addresses)).is_err() {
                return;
            }
        }
    });
    let mut resolved = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while started.is_ok() && resolved.len() < names.len() {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(answer) => resolved.push(answer),
            Err(_) => break,
        }
    }
    configuration.names = names
        .iter()
        .map(|(name, port)| {
            let found = resolved.iter().find(|(n, p, _)| n == name && p == port);
            let addresses = found.map(|(.., addresses)| addresses.clone()).unwrap_or_default();
            UpstreamName { name: name.clone(), port: *port, addresses }
        })
        .collect();
    for (name, port, addresses) in &resolved {
        for address in addresses {
            let address = Address::Ip(*address);
            if !configuration.upstreams.contains(&address) {
                configuration.upstreams.push(address.clone());
            }
            let written = [name.clone(), format!("{name}:{port}")];
            for server in configuration.groups.iter_mut().flat_map(|group| &mut group.servers) {
                if written.contains(&server.name) && !server.addresses.contains(&address) {
                    server.addresses.push(address.clone());
                }
            }
        }
    }
    let is_known = |name: &String, port: u16| resolved.iter().any(|(n, p, a)| n == name && *p == port && !a.is_empty());
    names.iter().filter(|(name, port)| !is_known(name, *port)).map(|(name, _)| name.clone()).collect()
}
