//! Listening sockets by `sock_diag`, which says what `/proc/net/tcp` does not: the accept queue's limit, and whether an IPv6
//! listener takes IPv4 too (<https://man7.org/linux/man-pages/man7/sock_diag.7.html>).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use nix::sys::socket::SockProtocol;

use super::netlink::{NLM_F_REQUEST_DUMP, attributes, dump, message, u32_at};

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listening {
    pub(super) address: SocketAddr,
    pub(super) inode: u64,
    /// Connections waiting to be accepted, and how many may.
    pub(super) queue: Option<(u32, u32)>,
    /// An IPv6 wildcard that IPv4 connections reach as well.
    pub(super) takes_v4: bool,
}

pub(super) const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_SKV6ONLY: u16 = 11;
/// `1 << TCP_LISTEN`
const STATE_LISTEN: u32 = 1 << 10;
/// `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// `struct inet_diag_msg`
const MESSAGE: usize = 72;

/// Every TCP listener of the network namespace this thread is in.
pub(super) fn listening() -> io::Result<Vec<Listening>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(SockProtocol::NetlinkSockDiag, &request(family, STATE_LISTEN), |_, message| {
            found.extend(listener(message));
        })?;
    }
    found.sort_unstable();
    Ok(found)
}

/// Local ports of the connections of this network namespace towards an address, and whether they only wait (`TIME_WAIT`).
pub(super) fn towards(remote: SocketAddr) -> io::Result<Vec<(u16, bool)>> {
    let mut found = Vec::new();
    let family = if remote.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    of_family(family, |local, to, waits| {
        if to == remote {
            found.push((local.port(), waits));
        }
    })?;
    Ok(found)
}

/// Both ends of every connection of this network namespace, also of those that only wait. There may be very many, so they are handed over
/// one by one.
pub(super) fn connections(mut each: impl FnMut(SocketAddr, SocketAddr)) -> io::Result<()> {
    [libc::AF_INET, libc::AF_INET6].into_iter().try_for_each(|family| of_family(family, |local, to, _| each(local, to)))
}

fn of_family(family: libc::c_int, mut each: impl FnMut(SocketAddr, SocketAddr, bool)) -> io::Result<()> {
    const TIME_WAIT: u8 = 6;
    dump(SockProtocol::NetlinkSockDiag, &request(family, !STATE_LISTEN), |_, message| {
        if let Some(fixed) = message.first_chunk::<MESSAGE>()
            && let Some((local, remote)) = end(fixed, 4, 8).zip(end(fixed, 6, 24))
        {
            each(local, remote, fixed[1] == TIME_WAIT);
        }
    })
}

/// One end of a connection in a `struct inet_diag_msg`.
fn end(fixed: &[u8; MESSAGE], port: usize, address: usize) -> Option<SocketAddr> {
    let port = u16::from_be_bytes([fixed[port], fixed[port + 1]]);
    let bytes = &fixed[address..address + 16];
    let ip = match i32::from(fixed[0]) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::from(*bytes.first_chunk::<16>()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn request(family: libc::c_int, states: u32) -> Vec<u8> {
    let mut body = [0; REQUEST];
    body[0] = u8::try_from(family).unwrap_or(0);
    body[1] = 6;
    body[4..8].copy_from_slice(&states.to_ne_bytes());
    message(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, &body)
}

fn listener(message: &[u8]) -> Option<Listening> {
    let (fixed, rest) = message.split_first_chunk::<MESSAGE>()?;
    let address = end(fixed, 4, 8)?;
    let told = attributes(rest).find(|(kind, _)| *kind == INET_DIAG_SKV6ONLY).map(|(_, value)| value == [0]);
    Some(Listening {
        address,
        inode: u64::from(u32_at(fixed, 68)),
        queue: Some((u32_at(fixed, 56), u32_at(fixed, 60))),
        // A kernel that does not say (before 4.7) has the default: both.
        takes_v4: address.is_ipv6() && address.ip().is_unspecified() && told.unwrap_or(true),
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use proptest::prelude::*;

    use super::{super::netlink, *};

    #[test]
    fn own_listeners() {
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let v6 = TcpListener::bind("[::]:0").unwrap();
        let found = listening().unwrap();
        let of = |listener: &TcpListener| {
            let address = listener.local_addr().unwrap();
            *found.iter().find(|one| one.address == address).unwrap()
        };
        assert!(!of(&v4).takes_v4 && of(&v4).inode != 0);
        assert!(of(&v4).queue.is_some_and(|(waiting, limit)| waiting == 0 && limit >= 128), "{:?}", of(&v4));
        assert!(of(&v6).takes_v4);
    }

    #[test]
    fn connections_towards_an_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let remote = listener.local_addr().unwrap();
        let one = std::net::TcpStream::connect(remote).unwrap();
        assert_eq!(towards(remote).unwrap(), [(one.local_addr().unwrap().port(), false)]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = netlink::read(&bytes, &mut |_, message: &[u8]| {
                let _ = listener(message);
            });
            attributes(&bytes).for_each(drop);
        }
    }
}
