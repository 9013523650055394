//! Questions to the kernel over netlink (<https://man7.org/linux/man-pages/man7/netlink.7.html>).

use std::{io, net::IpAddr, os::fd::AsRawFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};

pub(super) const NLM_F_REQUEST: u16 = 0x1;
pub(super) const NLM_F_REQUEST_DUMP: u16 = NLM_F_REQUEST | 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

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

/// Reads one datagram of messages; whether more will follow.
pub(super) fn read(mut bytes: &[u8], each: &mut impl FnMut(u16, &[u8])) -> io::Result<bool> {
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

/// An attribute, with what fills it up to the next one.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend(u16::try_from(length).unwrap_or(0).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// An address as messages have it.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The address in a message.
pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}
