//! What touches the world.

pub mod capture;
pub mod check;
pub mod clock;
pub mod delivery;
pub mod ebpf;
pub mod follow;
pub mod host;
pub mod logs;
pub mod marks;
pub mod memory;
pub mod namespaces;
pub mod nginx;
pub mod privilege;
pub mod recorder;
mod recording;
pub mod rest;
pub mod scope;
mod sieve;
pub mod sources;
pub mod spent;
pub mod tail;
pub mod thinker;

use std::{fs::File, io, io::Read as _};

use crate::redact::Key;

/// A key that nobody else knows.
pub fn secret() -> io::Result<Key> {
    let mut random = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(Key::new(random))
}
