//! Where bytes of others come in: one function for each such place, which must hold for whatever bytes. `cargo xtask fuzz` searches
//! for bytes for which it does not (`tests/fuzz`); `tests/tests/seeds.rs` runs those that were found and those it begins with.
//!
//! A function panics where something does not hold, because that is what a fuzzer looks for.

#![expect(clippy::missing_panics_doc, reason = "that they panic where something does not hold is what they are for")]

mod bundle;
mod capture;
mod nginx;
pub mod stream;
mod world;

pub use self::{
    bundle::bundle,
    capture::{capture, packet},
    nginx::{access_log, configuration, error_log},
    stream::{record, stream},
    world::world,
};

/// A place where bytes come in.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of the fuzz target and of the folder with its seeds.
    pub name: &'static str,
    /// Takes the bytes.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 9] = [
    Target { name: "packet", run: packet },
    Target { name: "capture", run: capture },
    Target { name: "bundle", run: bundle },
    Target { name: "error-log", run: error_log },
    Target { name: "access-log", run: access_log },
    Target { name: "configuration", run: configuration },
    Target { name: "record", run: record },
    Target { name: "stream", run: stream },
    Target { name: "world", run: world },
];
