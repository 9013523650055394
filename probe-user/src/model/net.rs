//! Addresses as people write them.

use std::{fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

/// Where a peer is: `IP:port`, `[IPv6]:port` or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Address {
    /// Over TCP.
    Ip(SocketAddr),
    /// A unix socket's path.
    Unix(String),
}

impl Address {
    /// Reads the form nginx prints and the contract uses; `None` for a group's name or anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return (!path.is_empty()).then(|| Self::Unix(path.to_owned()));
        }
        text.parse().ok().map(Self::Ip)
    }

    /// The TCP address.
    #[must_use]
    pub const fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

/// An errno as Linux numbers it (positive).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Errno(pub u32);

macro_rules! errnos {
    ($($name:ident = $number:literal: $text:literal,)*) => {
        impl Errno {
            $(#[doc = concat!("`", stringify!($name), "`: ", $text, ".")] pub const $name: Self = Self($number);)*

            /// `ECONNRESET` and so on; `None` for a number not in the table.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 { $($number => Some(stringify!($name)),)* _ => None }
            }

            /// The kernel's words for it.
            #[must_use]
            pub const fn text(self) -> Option<&'static str> {
                match self.0 { $($number => Some($text),)* _ => None }
            }
        }
    };
}

// The generic numbers; x86-64, aarch64 and most others agree (include/uapi/asm-generic/errno.h).
errnos! {
    EPERM = 1: "operation not permitted",
    ENOENT = 2: "no such file or directory",
    EINTR = 4: "interrupted system call",
    EBADF = 9: "bad file descriptor",
    EAGAIN = 11: "resource temporarily unavailable",
    ENOMEM = 12: "out of memory",
    EACCES = 13: "permission denied",
    EINVAL = 22: "invalid argument",
    ENFILE = 23: "too many open files in system",
    EMFILE = 24: "too many open files",
    ENOSPC = 28: "no space left on device",
    EPIPE = 32: "broken pipe",
    ENAMETOOLONG = 36: "file name too long",
    ELOOP = 40: "too many levels of symbolic links",
    ENOTDIR = 20: "not a directory",
    EPROTOTYPE = 91: "protocol wrong type for socket",
    ENOPROTOOPT = 92: "protocol not available",
    EAFNOSUPPORT = 97: "address family not supported by protocol",
    EADDRINUSE = 98: "address already in use",
    EADDRNOTAVAIL = 99: "cannot assign requested address",
    ENETDOWN = 100: "network is down",
    ENETUNREACH = 101: "network is unreachable",
    ECONNABORTED = 103: "connection aborted",
    ECONNRESET = 104: "connection reset by peer",
    ENOBUFS = 105: "no buffer space available",
    ENOTCONN = 107: "transport endpoint is not connected",
    ETIMEDOUT = 110: "connection timed out",
    ECONNREFUSED = 111: "connection refused",
    EHOSTDOWN = 112: "host is down",
    EHOSTUNREACH = 113: "no route to host",
    EINPROGRESS = 115: "operation now in progress",
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}
