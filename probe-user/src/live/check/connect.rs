//! Connecting as nginx connects, and hearing all that is said about it.

use std::{
    io::{self, Read, Write},
    mem::size_of,
    net::{IpAddr, SocketAddr, TcpStream},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno as OsErrno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, UnixAddr, bind, connect,
        getsockopt, recvmsg, setsockopt, socket, sockopt,
    },
};

use crate::{
    check::seen::{ConnectFailure, Icmp},
    model::net::{Address, Errno},
};

/// A connection over TCP or through a unix socket.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// How long a read or write may take from now on.
    pub(super) fn patience(&self, patience: Duration) -> io::Result<()> {
        let patience = Some(patience.max(Duration::from_millis(1)));
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(patience).and_then(|()| stream.set_write_timeout(patience)),
            Self::Unix(stream) => stream.set_read_timeout(patience).and_then(|()| stream.set_write_timeout(patience)),
        }
    }

    pub(super) fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Connects without blocking, as nginx does: a unix socket whose queue is full fails at once.
pub(super) fn open(
    address: &Address,
    source: Option<IpAddr>,
    patience: Duration,
) -> (Result<Stream, ConnectFailure>, Duration) {
    let began = Instant::now();
    let result = match address {
        Address::Unix(path) => unix(path).map(Stream::Unix).map_err(|errno| failure(errno, None)),
        Address::Ip(address) => tcp(*address, source, began + patience).map(Stream::Tcp),
    };
    (result, began.elapsed())
}

fn failure(errno: OsErrno, icmp: Option<Icmp>) -> ConnectFailure {
    let errno = u32::try_from(errno as i32).ok().map(Errno);
    ConnectFailure { errno, icmp, at_bind: false }
}

fn unix(path: &str) -> Result<UnixStream, OsErrno> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false).map_err(|_| OsErrno::EINVAL)?;
    Ok(stream)
}

fn tcp(address: SocketAddr, source: Option<IpAddr>, deadline: Instant) -> Result<TcpStream, ConnectFailure> {
    let plain = |errno| failure(errno, None);
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(family, SockType::Stream, flags, None).map_err(plain)?;
    // With this an ICMP error says who sent it and of what kind it was. Without it the errno alone has to do.
    let _ = match address {
        SocketAddr::V4(_) => setsockopt(&fd, sockopt::Ipv4RecvErr, &true),
        SocketAddr::V6(_) => setsockopt(&fd, sockopt::Ipv6RecvErr, &true),
    };
    if let Some(source) = source {
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0)))
            .map_err(|errno| ConnectFailure { at_bind: true, ..plain(errno) })?;
    }
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) => {}
        Err(OsErrno::EINPROGRESS) => wait(&fd, deadline)?,
        Err(errno) => return Err(failure(errno, heard(&fd))),
    }
    let stream = TcpStream::from(fd);
    stream.set_nonblocking(false).map_err(|_| plain(OsErrno::EINVAL))?;
    Ok(stream)
}

fn wait(fd: &OwnedFd, deadline: Instant) -> Result<(), ConnectFailure> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ConnectFailure { icmp: heard(fd), ..ConnectFailure::default() });
        }
        let nap = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut polled = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut polled, nap) {
            Ok(0) | Err(OsErrno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(failure(errno, None)),
        }
        return match getsockopt(fd, sockopt::SocketError) {
            Ok(0) => {
                let ready = polled[0].revents().unwrap_or(PollFlags::empty());
                // A message in the error queue wakes us too, while the connection goes on.
                if ready.contains(PollFlags::POLLOUT) {
                    Ok(())
                } else {
                    let icmp = heard(fd);
                    if icmp.is_some() {
                        continue;
                    }
                    Err(ConnectFailure { icmp, ..ConnectFailure::default() })
                }
            }
            Ok(errno) => Err(failure(OsErrno::from_raw(errno), heard(fd))),
            Err(errno) => Err(failure(errno, None)),
        };
    }
}

/// The ICMP error that waits in the socket's error queue.
fn heard(fd: &OwnedFd) -> Option<Icmp> {
    /// `SO_EE_ORIGIN_ICMP`, `SO_EE_ORIGIN_ICMP6` (`linux/errqueue.h`).
    const ICMP: u8 = 2;
    const ICMP6: u8 = 3;
    let mut control = vec![0_u8; 8 * size_of::<libc::sock_extended_err>() + 256];
    let mut data = [0_u8; 256];
    let mut parts = [io::IoSliceMut::new(&mut data)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(fd.as_raw_fd(), &mut parts, Some(&mut control), flags).ok()?;
    message.cmsgs().ok()?.find_map(|one| match one {
        ControlMessageOwned::Ipv4RecvErr(error, from) if error.ee_origin == ICMP => {
            let from = from.map(|from| IpAddr::from(u32::from_be(from.sin_addr.s_addr).to_be_bytes()));
            Some(Icmp { from, v6: false, kind: error.ee_type, code: error.ee_code })
        }
        ControlMessageOwned::Ipv6RecvErr(error, from) if error.ee_origin == ICMP6 => {
            let from = from.map(|from| IpAddr::from(from.sin6_addr.s6_addr));
            Some(Icmp { from, v6: true, kind: error.ee_type, code: error.ee_code })
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::unix::net::UnixListener};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(2);

    #[test]
    fn a_listener_is_reached_and_a_closed_port_refuses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stream, _) = open(&Address::Ip(address), None, PATIENCE);
        assert!(stream.unwrap().local().is_some());
        drop(listener);
        let (refused, took) = open(&Address::Ip(address), None, PATIENCE);
        assert_eq!(refused.unwrap_err(), failure(OsErrno::ECONNREFUSED, None));
        assert!(took < PATIENCE);
    }

    #[test]
    fn unix_sockets_fail_as_nginx_sees_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let address = Address::Unix(path.to_str().unwrap().to_owned());
        let errno = || open(&address, None, PATIENCE).0.err().and_then(|failure| failure.errno);
        assert_eq!(errno(), Some(Errno::ENOENT));
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(errno(), None);
        drop(listener);
        assert_eq!(errno(), Some(Errno::ECONNREFUSED));
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
        std::fs::remove_file(&path).unwrap();
        bind(fd.as_raw_fd(), &UnixAddr::new(path.as_path()).unwrap()).unwrap();
        nix::sys::socket::listen(&fd, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let first = open(&address, None, PATIENCE).0;
        assert!(first.is_ok());
        assert_eq!(errno(), Some(Errno::EAGAIN));
    }
}
