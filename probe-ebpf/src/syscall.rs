//! Records about system calls of watched processes: the failures that leave no packet.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Header, socket::Socket};

/// Longest unix socket path kept, bytes (`sizeof(sun_path)`).
pub const PATH: usize = 108;

/// `connect()` returned.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Connect {
    /// Tgid and tid are the caller's.
    pub header: Header,
    /// 0 or a negative errno; `-EINPROGRESS` is the usual result for TCP in nginx.
    pub result: i32,
    /// The file descriptor.
    pub fd: i32,
    /// The address asked for. Family `AF_UNIX`: see `path`.
    pub address: crate::Endpoint,
    /// Length of `path`.
    pub path_length: u32,
    /// `sun_path` for unix sockets; begins with a NUL for abstract ones.
    pub path: [u8; PATH],
    /// Zero.
    pub reserved: u32,
    /// The socket afterwards, where it could be found and is TCP, or is connected over a unix socket.
    pub socket: Socket,
}

/// `accept()` or `accept4()` returned.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Accept {
    /// Tgid and tid are the caller's.
    pub header: Header,
    /// The new descriptor or a negative errno.
    pub result: i32,
    /// The listener's descriptor.
    pub fd: i32,
    /// On success the accepted socket, on failure the listener (with its accept queue).
    pub socket: Socket,
    /// The caller's name.
    pub command: [u8; 16],
}

/// `socket()` failed.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketCall {
    /// Tgid and tid are the caller's.
    pub header: Header,
    /// A negative errno.
    pub result: i32,
    /// The address family.
    pub family: i32,
}

/// `open()` or `openat()` failed for want of a descriptor.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OpenCall {
    /// Tgid and tid are the caller's.
    pub header: Header,
    /// A negative errno: `-EMFILE` or `-ENFILE`.
    pub result: i32,
    /// Zero.
    pub reserved: u32,
}
