//! The route to an address, by rtnetlink (<https://man7.org/linux/man-pages/man7/rtnetlink.7.html>).

use std::{io, net::IpAddr};

use nix::sys::socket::SockProtocol;

use super::netlink::{NLM_F_REQUEST, NLM_F_REQUEST_DUMP, attribute, attributes, dump, ip, message, octets};
use crate::{check::seen::Route, model::host::RouteKind};

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
/// `struct rtmsg`
const MESSAGE: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
/// A gateway of the other family (5.2).
const RTA_VIA: u16 = 18;

/// What `ip route get` says: by which device, through whom, and from which address a packet to this address leaves the network namespace.
pub fn way(address: IpAddr) -> io::Result<Route> {
    let mut route = Route::default();
    dump(SockProtocol::NetlinkRoute, &question(address), |kind, message| {
        if kind == RTM_NEWROUTE {
            route = read(message);
        }
    })?;
    Ok(route)
}

fn read(message: &[u8]) -> Route {
    let mut route = Route::default();
    for (kind, value) in attributes(message.get(MESSAGE..).unwrap_or_default()) {
        match kind {
            RTA_OIF => route.device = value.first_chunk().and_then(|index| device(u32::from_ne_bytes(*index))),
            RTA_GATEWAY => route.gateway = ip(value),
            // `struct rtvia`: the family, then the address.
            RTA_VIA => route.gateway = value.get(2..).and_then(ip),
            RTA_PREFSRC => route.source = ip(value),
            _ => {}
        }
    }
    route
}

/// The name of a device of this network namespace.
fn device(index: u32) -> Option<String> {
    nix::net::if_::if_indextoname(index).ok()?.into_string().ok()
}

/// Asks for the route to one address.
fn question(address: IpAddr) -> Vec<u8> {
    let octets = octets(address);
    let mut body = header(address, u8::try_from(octets.len() * 8).unwrap_or(0)).to_vec();
    body.extend(attribute(RTA_DST, &octets));
    message(RTM_GETROUTE, NLM_F_REQUEST, &body)
}

/// What this network namespace's routes do with a packet to this address, and the destination of the route that does it, where it is
/// not an ordinary one.
pub(super) fn to(address: IpAddr) -> io::Result<(RouteKind, Option<String>)> {
    let octets = octets(address);
    let asked = dump(SockProtocol::NetlinkRoute, &question(address), |_, _| {});
    // The kernel answers for such a route with the very error that connect() gets (`fib_props`,
    // https://elixir.bootlin.com/linux/v6.12/source/net/ipv4/fib_semantics.c).
    let kind = match asked {
        Ok(()) => return Ok((RouteKind::Open, None)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINVAL) => RouteKind::Blackhole,
            Some(libc::EHOSTUNREACH) => RouteKind::Unreachable,
            Some(libc::EACCES) => RouteKind::Prohibit,
            Some(libc::ENETUNREACH) => RouteKind::None,
            _ => return Err(error),
        },
    };
    let mut best: Option<(u8, String)> = None;
    let all = message(RTM_GETROUTE, NLM_F_REQUEST_DUMP, &header(address, 0));
    // Without the list the kind is known all the same.
    let _ = dump(SockProtocol::NetlinkRoute, &all, |of, route| {
        let found = (of == RTM_NEWROUTE).then(|| matching(route, kind, &octets)).flatten();
        if let Some((length, destination)) = found
            && best.as_ref().is_none_or(|(longest, _)| length > *longest)
        {
            best = Some((length, destination));
        }
    });
    Ok((kind, best.map(|(_, destination)| destination)))
}

/// A `struct rtmsg` that asks.
fn header(address: IpAddr, length: u8) -> [u8; MESSAGE] {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut bytes = [0; MESSAGE];
    bytes[0] = u8::try_from(family).unwrap_or(0);
    bytes[1] = length;
    bytes
}

/// The length and the text of a route's destination, if the route is of this kind and the address lies in it.
fn matching(route: &[u8], kind: RouteKind, octets: &[u8]) -> Option<(u8, String)> {
    let (fixed, rest) = route.split_first_chunk::<MESSAGE>()?;
    let (length, of) = (fixed[1], fixed[7]);
    // RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT
    let same = matches!((of, kind), (6, RouteKind::Blackhole) | (7, RouteKind::Unreachable) | (8, RouteKind::Prohibit));
    if !same {
        return None;
    }
    if length == 0 {
        return Some((0, "default".to_owned()));
    }
    let (_, destination) = attributes(rest).find(|(kind, _)| *kind == RTA_DST)?;
    let bits = usize::from(length);
    let inside = destination.len() == octets.len()
        && (0..bits.min(octets.len() * 8)).all(|bit| {
            let mask = 0x80_u8 >> (bit % 8);
            (destination[bit / 8] ^ octets[bit / 8]) & mask == 0
        });
    let destination = ip(destination)?;
    inside.then(|| (length, format!("{destination}/{length}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_host_is_reached() {
        assert_eq!(to("127.0.0.1".parse().unwrap()).unwrap(), (RouteKind::Open, None));
    }

    #[test]
    fn the_way_to_the_own_host_is_the_loopback() {
        let source = "127.0.0.1".parse().ok();
        let expected = Route { device: Some("lo".to_owned()), gateway: None, source };
        assert_eq!(way("127.0.0.1".parse().unwrap()).unwrap(), expected);
    }

    #[test]
    fn a_route_is_read() {
        let mut message = vec![0; MESSAGE];
        message.extend([8, 0, 5, 0, 10, 0, 0, 254, 8, 0, 7, 0, 10, 0, 0, 1, 6, 0, 18, 0, 2, 0, 0, 0]);
        let route = read(&message);
        assert_eq!(
            (route.gateway, route.source),
            (None, "10.0.0.1".parse().ok()),
            "a gateway without an address is none"
        );
    }

    #[test]
    fn a_route_is_matched_by_its_prefix() {
        let mut route = vec![0; MESSAGE];
        (route[1], route[7]) = (23, 6);
        route.extend([8, 0, 1, 0, 10, 1, 2, 0]);
        let found = |address: [u8; 4]| matching(&route, RouteKind::Blackhole, &address);
        assert_eq!(found([10, 1, 3, 9]), Some((23, "10.1.2.0/23".to_owned())));
        assert_eq!(found([10, 1, 4, 9]), None);
        assert_eq!(matching(&route, RouteKind::Prohibit, &[10, 1, 3, 9]), None);
    }
}
