//! The kernel side: loading, attaching, and reading what it tells.
//!
//! Everything that names aya is here. A hook that cannot be attached is a fact ([`Attachment`]), not an error; only
//! when nothing at all can run is there a [`LoadError`]. Nothing is pinned: when [`Kernel`] is dropped, or the process
//! dies, the kernel takes everything down.

pub mod attach;
pub mod btf;
pub mod calibrate;
pub mod cost;
mod deepen;
mod functions;
#[cfg(test)]
#[path = "kernels_tests.rs"]
mod kernels;
pub mod layout;
pub mod load;
mod misses;
pub mod offsets;
mod records;
mod returns;
pub mod ring;
pub mod symbols;
pub mod tier;
mod tracefs;
mod watch;

pub use attach::{Attachment, Depth, State};
pub use functions::{Answers, NginxError};
pub use load::{Kernel, LoadError, LoadOptions};
pub use ring::{Ring, Wakes};
pub use tier::Tier;
pub use watch::Losses;
