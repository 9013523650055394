//! Records about processes, and the map that says which are watched.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Header;

/// What a watched process is.
pub mod role {
    /// An nginx master.
    pub const NGINX_MASTER: u32 = 1;
    /// An nginx worker (or another child of a master).
    pub const NGINX_WORKER: u32 = 2;
    /// Serves an upstream address on this host.
    pub const UPSTREAM: u32 = 3;
}

/// Value of the map of watched processes; the key is the tgid. A child inherits it at fork, inside the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Watched {
    /// `role::*`.
    pub role: u32,
    /// Index into the map of nginx layouts.
    pub layout: u32,
    /// The nginx master; for upstream processes the first one seen of its family.
    pub master: u32,
    /// Zero.
    pub reserved: u32,
}

/// A watched process forked; the child is watched already.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Fork {
    /// Tgid is the parent's.
    pub header: Header,
    /// The child's tgid.
    pub child: u32,
    /// The child's role.
    pub role: u32,
    /// The parent's name.
    pub command: [u8; 16],
}

/// A watched process, or one called nginx, executed a new program.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Exec {
    /// Tgid is the process's.
    pub header: Header,
    /// Its role before, 0 if it was not watched.
    pub role: u32,
    /// Zero.
    pub reserved: u32,
    /// Its new name.
    pub command: [u8; 16],
}

/// A watched process ended (its last thread).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Exit {
    /// Tgid is the process's.
    pub header: Header,
    /// As for `wait()`: low 7 bits the signal, 0x80 core dumped, else the exit status in bits 8 to 15. In bits 17 to 31 (16 + number) the
    /// signals 1 to 15 that still waited to be taken: it had them blocked.
    pub code: u32,
    /// Its role.
    pub role: u32,
    /// Its name.
    pub command: [u8; 16],
}

/// A signal was sent to a watched process.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Signal {
    /// Tgid is the sender's (meaningful unless `from_kernel`).
    pub header: Header,
    /// The signal.
    pub signal: u32,
    /// The receiving process.
    pub target: u32,
    /// `si_code`.
    pub code: i32,
    /// 1 when the kernel sent it (a fault, the OOM killer), 0 when a process did.
    pub from_kernel: u32,
    /// The sender's name.
    pub command: [u8; 16],
    /// The receiver's role.
    pub role: u32,
    /// Zero.
    pub reserved: u32,
}

/// The OOM killer chose this process.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OomVictim {
    /// Tgid is whoever ran out of memory.
    pub header: Header,
    /// The victim.
    pub victim: u32,
    /// Its role, 0 if not watched.
    pub role: u32,
}

/// Connections that a [`Held`] can name.
pub const HELD: usize = 64;
/// Descriptors that are looked at for a [`Held`], from 0: the verifier walks through each of them.
pub const LOOKED_AT: u32 = 128;

/// A watched server is ending, and its descriptors are not closed yet: the unix connections from nginx that it still holds.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Held {
    /// Tgid is the process's.
    pub header: Header,
    /// Its role.
    pub role: u32,
    /// How many there were.
    pub count: u32,
    /// 1 when every descriptor was looked at.
    pub all: u32,
    /// Zero.
    pub reserved: u32,
    /// The inodes of nginx's ends, the first [`HELD`].
    pub peers: [u64; HELD],
}
