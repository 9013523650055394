//! Why a record could not be made. Slots of the per-CPU array `LOSSES`.

/// Slots.
pub mod reason {
    /// The ring was full.
    pub const RING_FULL: u32 = 0;
    /// A map of watched things was full, so something is not watched.
    pub const MAP_FULL: u32 = 1;
    /// Memory that should be readable was not.
    pub const READ_FAILED: u32 = 2;
    /// How many slots there are.
    pub const COUNT: u32 = 3;
}

/// Slots of the per-CPU array `COUNTERS`: things counted and not recorded.
pub mod counter {
    /// Packets dropped with a reason that is only noise.
    pub const DROPS_NOISE: u32 = 0;
    /// Failed `accept()` calls that only repeat the one before.
    pub const ACCEPTS_REPEATED: u32 = 1;
    /// How many slots there are.
    pub const COUNT: u32 = 8;
}
