//! What touches the world.

pub mod capture;
pub mod check;
pub mod clock;
pub mod ebpf;
pub mod follow;
pub mod host;
pub mod memory;
pub mod namespaces;
pub mod nginx;
pub mod recorder;
mod recording;
pub mod scope;
mod sieve;
pub mod sources;
pub mod tail;
pub mod thinker;
