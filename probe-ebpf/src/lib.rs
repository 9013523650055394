//! What the kernel side and the user side of probe502 agree on: records, globals, map values, names.
//!
//! Every type here is `repr(C)`, of fixed size, without implicit padding (the derives refuse to compile otherwise).
//! Addresses and ports are bytes in network order; everything else is in host order.
#![no_std]

pub mod endpoint;
pub mod globals;
pub mod losses;
pub mod names;
pub mod nginx;
pub mod process;
pub mod record;
pub mod socket;
pub mod syscall;

pub use endpoint::Endpoint;
pub use record::{Header, Kind};
