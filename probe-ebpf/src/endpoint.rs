//! One end of a connection.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `AF_INET`, the same number on every Linux architecture.
pub const FAMILY_INET: u16 = 2;
/// `AF_INET6`.
pub const FAMILY_INET6: u16 = 10;
/// `AF_UNIX`.
pub const FAMILY_UNIX: u16 = 1;

/// An address and a port. All zero when unknown. Also the key of the map of watched upstream addresses.
///
/// An end of a unix connection has the number of its socket's inode instead, in the first eight bytes of the address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Endpoint {
    /// `AF_INET`, `AF_INET6`, `AF_UNIX`, or 0 when unknown. IPv4-mapped IPv6 addresses are stored as `AF_INET`.
    pub family: u16,
    /// Port, network order.
    pub port: [u8; 2],
    /// Address, network order; IPv4 uses the first four bytes, the rest is zero.
    pub address: [u8; 16],
}

impl Endpoint {
    /// No address, no port.
    pub const UNKNOWN: Self = Self { family: 0, port: [0; 2], address: [0; 16] };

    /// The number of a unix socket's inode, where this is one's.
    #[must_use]
    pub const fn inode(&self) -> Option<u64> {
        match self.address.first_chunk() {
            Some(bytes) if self.family == FAMILY_UNIX => match u64::from_ne_bytes(*bytes) {
                0 => None,
                number => Some(number),
            },
            _ => None,
        }
    }

    /// The port in host order.
    #[must_use]
    pub const fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }
}
