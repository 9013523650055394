//! Listening sockets by `sock_diag`, which says what `/proc/net/tcp` does not: the accept queue's limit, and whether an IPv6
//! listener takes IPv4 too (<https://man7.org/linux/man-pages/man7/sock_diag.7.html>).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};

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

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x1 | 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const INET_DIAG_SKV6ONLY: u16 = 11;
/// `1 << TCP_LISTEN`
const STATE_LISTEN: u32 = 1 << 10;
/// `struct nlmsghdr`, then `struct inet_diag_req_v2`.
const REQUEST: usize = 16 + 56;
/// `struct inet_diag_msg`
const MESSAGE: usize = 72;

/// Every TCP listener of the network namespace this thread is in.
pub(super) fn listening() -> io::Result<Vec<Listening>> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    // The kernel answers at once; should it not, a second is enough.
    setsockopt(&socket, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(1, 0))?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        send(socket.as_raw_fd(), &request(family), MsgFlags::empty())?;
        let mut buffer = vec![0; 64 << 10];
        while {
            let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            read(buffer.get(..length).unwrap_or_default(), &mut found)?
        } {}
    }
    found.sort_unstable();
    Ok(found)
}

fn request(family: libc::c_int) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    let length = u32::try_from(REQUEST).unwrap_or(0);
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    bytes[16] = u8::try_from(family).unwrap_or(0);
    bytes[17] = 6;
    bytes[20..24].copy_from_slice(&STATE_LISTEN.to_ne_bytes());
    bytes
}

/// Reads one datagram of messages; whether more will follow.
fn read(mut bytes: &[u8], found: &mut Vec<Listening>) -> io::Result<bool> {
    while let Some((header, _)) = bytes.split_first_chunk::<16>() {
        let length = usize::try_from(u32_at(header, 0)).unwrap_or(0);
        let Some(message) = bytes.get(16..length) else { return Err(io::Error::other("a netlink message is cut")) };
        match u16::from_ne_bytes([header[4], header[5]]) {
            NLMSG_DONE => return Ok(false),
            NLMSG_ERROR => {
                let errno = i32::from_ne_bytes(*message.first_chunk().unwrap_or(&[0; 4]));
                return Err(io::Error::from_raw_os_error(errno.saturating_neg()));
            }
            _ => found.extend(listener(message)),
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

fn listener(message: &[u8]) -> Option<Listening> {
    let (fixed, mut attributes) = message.split_first_chunk::<MESSAGE>()?;
    let port = u16::from_be_bytes([fixed[4], fixed[5]]);
    let (ip, v6) = match i32::from(fixed[0]) {
        libc::AF_INET => (IpAddr::V4(Ipv4Addr::new(fixed[8], fixed[9], fixed[10], fixed[11])), false),
        libc::AF_INET6 => (IpAddr::V6(Ipv6Addr::from(*fixed[8..24].first_chunk::<16>()?)), true),
        _ => return None,
    };
    // A kernel that does not say (before 4.7) has the default: both.
    let mut takes_v4 = v6;
    while let Some((head, _)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        if u16::from_ne_bytes([head[2], head[3]]) == INET_DIAG_SKV6ONLY {
            takes_v4 = attributes.get(4) == Some(&0);
        }
        if length < 4 {
            break;
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Listening {
        address: SocketAddr::new(ip, port),
        inode: u64::from(u32_at(fixed, 68)),
        queue: Some((u32_at(fixed, 56), u32_at(fixed, 60))),
        takes_v4: takes_v4 && ip.is_unspecified(),
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use proptest::prelude::*;

    use super::*;

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

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes, &mut Vec::new());
        }
    }
}
