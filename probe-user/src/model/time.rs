//! Time. All inner times are nanoseconds since boot, suspend included (`CLOCK_BOOTTIME`); wall time exists only at the edges.

use serde::{Deserialize, Serialize};

/// A moment: nanoseconds since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Moment(pub u64);

impl Moment {
    /// Nanoseconds since boot.
    #[must_use]
    pub const fn ns(self) -> u64 {
        self.0
    }

    /// Later by so many nanoseconds, at most the end of time.
    #[must_use]
    pub const fn plus_ns(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }

    /// Earlier by so many nanoseconds, at least boot.
    #[must_use]
    pub const fn minus_ns(self, ns: u64) -> Self {
        Self(self.0.saturating_sub(ns))
    }

    /// From `earlier` to here in nanoseconds, 0 if `earlier` is later.
    #[must_use]
    pub const fn since_ns(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Signed distance from `origin` to here, microseconds.
    #[must_use]
    pub fn micros_from(self, origin: Self) -> i64 {
        let ns = i128::from(self.0) - i128::from(origin.0);
        i64::try_from(ns / 1_000).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX })
    }
}

/// When something happened: an interval, because a log line knows its second and a kernel record its nanosecond.
/// Both ends belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    /// Not before this.
    pub earliest: Moment,
    /// Not after this.
    pub latest: Moment,
}

impl At {
    /// Known exactly.
    #[must_use]
    pub const fn exactly(moment: Moment) -> Self {
        Self { earliest: moment, latest: moment }
    }

    /// Somewhere between the two.
    #[must_use]
    pub fn between(earliest: Moment, latest: Moment) -> Self {
        Self { earliest: earliest.min(latest), latest: earliest.max(latest) }
    }

    /// Whether the two can have happened at the same moment.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.earliest <= other.latest && other.earliest <= self.latest
    }

    /// Certainly before `other`.
    #[must_use]
    pub fn before(&self, other: &Self) -> bool {
        self.latest < other.earliest
    }

    /// Whether the moment is known exactly.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.earliest == self.latest
    }
}

/// Maps moments to wall time: `unix = boot + offset`. Taken when the run starts and stored with what it produced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WallClock {
    /// Nanoseconds to add to a moment to get nanoseconds since 1970.
    pub offset_ns: i64,
}

impl WallClock {
    /// Nanoseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn unix_ns(&self, moment: Moment) -> i128 {
        i128::from(moment.0) + i128::from(self.offset_ns)
    }

    /// The moment of a wall-clock time, clamped to since-boot.
    #[must_use]
    pub fn moment(&self, unix_ns: i128) -> Moment {
        Moment(u64::try_from(unix_ns - i128::from(self.offset_ns)).unwrap_or(0))
    }
}
