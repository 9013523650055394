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

pub(super) const SOCK_DIAG_BY_FAMILY: u16 = 20;
pub(super) const NLM_F_REQUEST_DUMP: u16 = 0x1 | 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
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
    dump(SockProtocol::NetlinkSockDiag, &request(family, !STATE_LISTEN), |_, message| {
        if let Some(fixed) = message.first_chunk::<MESSAGE>()
            && end(fixed, 6, 24) == Some(remote)
        {
            const TIME_WAIT: u8 = 6;
            found.push((u16::from_be_bytes([fixed[4], fixed[5]]), fixed[1] == TIME_WAIT));
        }
    })?;
    Ok(found)
}

/// Both ends of every connection of this network namespace, also of those that only wait (`TIME_WAIT`).
/// There may be very many, so they are handed over one by one.
pub(super) fn connections(mut each: impl FnMut(SocketAddr, SocketAddr)) -> io::Result<()> {
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(SockProtocol::NetlinkSockDiag, &request(family, !STATE_LISTEN), |_, message| {
            let fixed = message.first_chunk::<MESSAGE>();
            if let Some((local, remote)) = fixed.and_then(|fixed| end(fixed, 4, 8).zip(end(fixed, 6, 24))) {
                each(local, remote);
            }
        })?;
    }
    Ok(())
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

/// Sends a request to a netlink family and hands over the messages of its answer, with their types.
pub(super) fn dump(family: SockProtocol, request: &[u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let socket = socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, family)?;
    // The kernel answers at once; should it not, a second is enough.
    setsockopt(&socket, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(1, 0))?;
    send(socket.as_raw_fd(), request, MsgFlags::empty())?;
    let mut buffer = vec![0; 64 << 10];
    while {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        read(buffer.get(..length).unwrap_or_default(), &mut each)?
    } {}
    Ok(())
}

/// `struct nlmsghdr` and what follows it.
pub(super) fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    const HEADER: usize = 16;
    let length = u32::try_from(HEADER + body.len()).unwrap_or(0);
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

fn request(family: libc::c_int, states: u32) -> Vec<u8> {
    let mut body = [0; REQUEST];
    body[0] = u8::try_from(family).unwrap_or(0);
    body[1] = 6;
    body[4..8].copy_from_slice(&states.to_ne_bytes());
    message(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, &body)
}

/// Reads one datagram of messages; whether more will follow.
fn read(mut bytes: &[u8], each: &mut impl FnMut(u16, &[u8])) -> io::Result<bool> {
    const MULTIPART: u16 = 2;
    let mut more = true;
    while let Some((header, _)) = bytes.split_first_chunk::<16>() {
        let length = usize::try_from(u32_at(header, 0)).unwrap_or(0);
        let Some(message) = bytes.get(16..length) else { return Err(io::Error::other("a netlink message is cut")) };
        match u16::from_ne_bytes([header[4], header[5]]) {
            NLMSG_DONE => return Ok(false),
            NLMSG_ERROR => {
                let errno = i32::from_ne_bytes(*message.first_chunk().unwrap_or(&[0; 4]));
                if errno == 0 {
                    // An acknowledgement, behind the answer.
                    return Ok(false);
                }
                return Err(io::Error::from_raw_os_error(errno.saturating_neg()));
            }
            kind => each(kind, message),
        }
        // An answer of one message says so by not being one of several.
        more = u16::from_ne_bytes([header[6], header[7]]) & MULTIPART != 0;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(more)
}

/// The attributes of a message, by their type.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = bytes.get(4..length)?;
        // The two highest bits are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
        let kind = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
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

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
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
            let _ = read(&bytes, &mut |_, message: &[u8]| {
                let _ = listener(message);
            });
            attributes(&bytes).for_each(drop);
        }
    }
}
