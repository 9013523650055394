//! Names of maps, globals and programs: these are ABI too.

/// Maps.
pub mod map {
    /// The ring of records.
    pub const EVENTS: &str = "EVENTS";
    /// tgid → [`crate::process::Watched`].
    pub const PROCESSES: &str = "PROCESSES";
    /// [`crate::Endpoint`] of an upstream → `u32` (1).
    pub const UPSTREAMS: &str = "UPSTREAMS";
    /// Bitmap of the ports in `UPSTREAMS`: 1,024 words of 64 bits, host order; asked before the hash.
    pub const PORTS: &str = "PORTS";
    /// index → [`crate::nginx::Layout`].
    pub const LAYOUTS: &str = "LAYOUTS";
    /// Per CPU, by [`crate::losses::reason`].
    pub const LOSSES: &str = "LOSSES";
    /// Per CPU, by [`crate::losses::counter`].
    pub const COUNTERS: &str = "COUNTERS";
}

/// Globals.
pub mod global {
    /// [`crate::globals::Offsets`].
    pub const OFFSETS: &str = "OFFSETS";
    /// [`crate::globals::Settings`].
    pub const SETTINGS: &str = "SETTINGS";
}
