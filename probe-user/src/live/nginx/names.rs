//! Names of upstreams into addresses, as nginx found them when it started: `/etc/hosts`, then DNS.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

use super::files::Root;
use crate::{
    decode::config::Decoded,
    model::{host::UpstreamServer, net::Address},
};

/// How long all names together may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// `/etc/hosts` at most.
const HOSTS: usize = 1 << 20;

/// Fills in the addresses of names; gives back the names that could not be resolved. `here`: the nginx uses the same resolver as
/// the probe, so DNS may be asked; in a container the answers would be those for the host.
pub(super) fn resolve(decoded: &mut Decoded, root: Option<&Root>, here: bool) -> Vec<String> {
    let hosts = root.and_then(|root| root.read(Path::new("/etc/hosts"), HOSTS).ok()).unwrap_or_default();
    let deadline = Instant::now() + PATIENCE;
    let mut known: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for (host, _) in &decoded.names {
        if !known.contains_key(host) {
            let mut found = from_hosts(&hosts, host);
            if found.is_empty() && host == "localhost" {
                found = vec![IpAddr::from([127, 0, 0, 1])];
            }
            if found.is_empty() && here {
                found = ask(host, deadline.saturating_duration_since(Instant::now()));
            }
            known.insert(host.clone(), found);
        }
    }
    let addresses = |host: &str, port: u16| {
        let found = known.get(host).map(Vec::as_slice).unwrap_or_default();
        found.iter().map(|ip| Address::Ip(SocketAddr::new(*ip, port))).collect::<Vec<_>>()
    };
    let configuration = &mut decoded.configuration;
    let unnamed = |server: &&mut UpstreamServer| server.addresses.is_empty();
    for server in configuration.groups.iter_mut().flat_map(|group| &mut group.servers).filter(unnamed) {
        let (host, port) = match server.name.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok()),
            None => (server.name.as_str(), Some(80)),
        };
        server.addresses = port.map(|port| addresses(host, port)).unwrap_or_default();
    }
    configuration.upstreams.extend(decoded.names.iter().flat_map(|(host, port)| addresses(host, *port)));
    configuration.upstreams.sort();
    configuration.upstreams.dedup();
    known.into_iter().filter(|(_, found)| found.is_empty()).map(|(host, _)| host).collect()
}

fn from_hosts(hosts: &str, name: &str) -> Vec<IpAddr> {
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap_or_default());
    let matching = lines.filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let ip: IpAddr = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(ip)
    });
    matching.collect()
}

/// `getaddrinfo` cannot be interrupted: it gets a thread, which is left to itself when time is up.
fn ask(host: &str, patience: Duration) -> Vec<IpAddr> {
    let (sender, answer) = mpsc::channel();
    let name = host.to_owned();
    let asked = std::thread::Builder::new().name("resolver".to_owned()).spawn(move || {
        let found =
            (name.as_str(), 0).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect::<Vec<_>>());
        let _ = sender.send(found.unwrap_or_default());
    });
    let mut found = asked.ok().and_then(|_| answer.recv_timeout(patience).ok()).unwrap_or_default();
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_files() {
        let hosts = "127.0.0.1 localhost\n10.0.0.2\tApp.example app # 10.0.0.3 other\n::5 app\nbad app\n";
        assert_eq!(from_hosts(hosts, "app"), ["10.0.0.2".parse::<IpAddr>().unwrap(), "::5".parse().unwrap()]);
        assert_eq!(from_hosts(hosts, "app.EXAMPLE").len(), 1);
        assert!(from_hosts(hosts, "other").is_empty());
    }
}
