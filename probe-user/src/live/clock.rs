//! The only place that reads clocks.

use nix::time::{ClockId, clock_gettime};

use crate::model::time::{Moment, WallClock};

fn ns(clock: ClockId) -> i64 {
    // Both clocks exist on every kernel that can run the probe; a refusal would be a broken host, and 0 keeps the order of events.
    clock_gettime(clock).map_or(0, |time| time.tv_sec().saturating_mul(1_000_000_000).saturating_add(time.tv_nsec()))
}

/// Now.
#[must_use]
pub fn now() -> Moment {
    Moment(u64::try_from(ns(ClockId::CLOCK_BOOTTIME)).unwrap_or(0))
}

/// The offset between wall time and boot time, now. The wall clock may be stepped later; the offset taken at the start of a run is the
/// one its output uses, a fresh one maps the capture's wall-clock stamps.
#[must_use]
pub fn wall() -> WallClock {
    // Read around the wall clock, so that a pause between the two readings is halved instead of added.
    let before = ns(ClockId::CLOCK_BOOTTIME);
    let wall = ns(ClockId::CLOCK_REALTIME);
    let after = ns(ClockId::CLOCK_BOOTTIME);
    WallClock { offset_ns: wall - (before + (after - before) / 2) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_wall_time_map_onto_each_other() {
        let (clock, moment) = (wall(), now());
        assert_eq!(clock.moment(clock.unix_ns(moment)), moment);
        let year_2020 = 1_577_836_800_000_000_000;
        assert!(clock.unix_ns(moment) > year_2020);
    }
}
