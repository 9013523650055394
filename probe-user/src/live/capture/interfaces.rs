//! Which interface a connection goes over.

use std::{
    collections::BTreeMap,
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};

use super::{CaptureError, inside};

/// More captures than this cost more than one on all interfaces.
const SEVERAL: usize = 4;

/// An interface of a network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its IP addresses.
    pub addresses: Vec<IpAddr>,
    /// It is the loopback interface.
    pub loopback: bool,
    /// It is up.
    pub up: bool,
    /// Its MAC address.
    pub hardware_address: Option<[u8; 6]>,
}

/// The interfaces of the namespace this thread is in, by name.
pub(super) fn here() -> Result<Vec<Interface>, String> {
    let mut interfaces: BTreeMap<String, Interface> = BTreeMap::new();
    for entry in getifaddrs().map_err(|errno| errno.desc().to_owned())? {
        let interface = interfaces
            .entry(entry.interface_name.clone())
            .or_insert_with(|| Interface { name: entry.interface_name.clone(), ..Interface::default() });
        interface.loopback |= entry.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        interface.up |= entry.flags.contains(InterfaceFlags::IFF_UP);
        let Some(address) = entry.address else { continue };
        if let Some(v4) = address.as_sockaddr_in() {
            interface.addresses.push(v4.ip().into());
        } else if let Some(v6) = address.as_sockaddr_in6() {
            interface.addresses.push(v6.ip().into());
        } else if let Some(link) = address.as_link_addr() {
            interface.hardware_address = link.addr();
        }
    }
    Ok(interfaces.into_values().collect())
}

/// The interfaces of a network namespace, by name.
pub fn list(netns: Option<&Arc<File>>) -> Result<Vec<Interface>, CaptureError> {
    inside(netns, here).and_then(|listed| listed).map_err(CaptureError::Namespace)
}

/// The interfaces over which connections to these upstreams go: `lo` for addresses of the namespace itself, else what the routes
/// say. `any` when there are many, or none could be told.
pub fn choose(netns: Option<&Arc<File>>, upstreams: &[SocketAddr]) -> Result<Vec<String>, CaptureError> {
    inside(netns, || here().map(|interfaces| pick(&interfaces, upstreams, source_towards)))
        .and_then(|chosen| chosen)
        .map_err(CaptureError::Namespace)
}

fn pick(
    interfaces: &[Interface],
    upstreams: &[SocketAddr],
    source: impl Fn(SocketAddr) -> Option<IpAddr>,
) -> Vec<String> {
    let owner = |address: IpAddr| interfaces.iter().find(|interface| interface.addresses.contains(&address));
    let loopback = interfaces.iter().find(|interface| interface.loopback);
    let mut chosen: Vec<String> = Vec::new();
    for upstream in upstreams {
        let ip = upstream.ip().to_canonical();
        let interface = if ip.is_loopback() || ip.is_unspecified() || owner(ip).is_some() {
            loopback
        } else {
            source(SocketAddr::new(ip, upstream.port())).and_then(owner)
        };
        match interface {
            Some(interface) if chosen.contains(&interface.name) => {}
            Some(interface) => chosen.push(interface.name.clone()),
            // No route now; there may be one when nginx connects.
            None => return vec!["any".to_owned()],
        }
    }
    if chosen.is_empty() || chosen.len() > SEVERAL {
        return vec!["any".to_owned()];
    }
    chosen.sort();
    chosen
}

/// Asks the kernel which source address it would take. Connecting a UDP socket sends nothing.
fn source_towards(destination: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if destination.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(destination).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, addresses: &[&str]) -> Interface {
        Interface {
            name: name.to_owned(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            loopback: name == "lo",
            up: true,
            hardware_address: None,
        }
    }

    #[test]
    fn upstreams_choose_interfaces() {
        let interfaces = [
            interface("eth0", &["10.0.0.1", "fd00::1"]),
            interface("lo", &["127.0.0.1"]),
            interface("wg0", &["10.9.0.1"]),
        ];
        let routes = |to: SocketAddr| match to.ip().to_string().as_str() {
            "10.0.0.2" => Some("10.0.0.1".parse().unwrap()),
            "10.9.0.2" => Some("10.9.0.1".parse().unwrap()),
            _ => None,
        };
        let choose = |upstreams: &[&str]| {
            let parsed: Vec<SocketAddr> = upstreams.iter().map(|text| text.parse().unwrap()).collect();
            pick(&interfaces, &parsed, routes)
        };
        assert_eq!(choose(&["127.0.0.5:80"]), ["lo"]);
        assert_eq!(choose(&["10.0.0.1:80"]), ["lo"], "an address of this host");
        assert_eq!(choose(&["[::ffff:10.0.0.2]:80", "10.0.0.2:81"]), ["eth0"]);
        assert_eq!(choose(&["10.9.0.2:80", "127.0.0.1:1", "10.0.0.2:81"]), ["eth0", "lo", "wg0"]);
        assert_eq!(choose(&["192.0.2.1:80"]), ["any"], "no route");
        assert_eq!(choose(&[]), ["any"]);
    }
}
