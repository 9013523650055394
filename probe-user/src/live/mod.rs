//! What touches the world.

pub mod clock;
pub mod ebpf;
pub mod host;
pub mod namespaces;
pub mod nginx;
