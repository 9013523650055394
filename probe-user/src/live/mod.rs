//! What touches the world.

pub mod ebpf;
