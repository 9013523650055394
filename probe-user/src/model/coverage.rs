//! What could be seen, from when to when, and what was lost. Part of the stream, because absence is evidence only where somebody was looking.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::time::At;

/// Something that sees one kind of thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Sensor {
    /// TCP state changes of watched flows.
    SocketStates,
    /// Resets this host sends, with the kernel's reason.
    ResetsSent,
    /// Resets this host's sockets accept.
    ResetsReceived,
    /// Retransmissions.
    Retransmits,
    /// Socket errors.
    SocketErrors,
    /// Packets the kernel drops, with the reason.
    Drops,
    /// connect, accept, socket of watched processes.
    Syscalls,
    /// fork, exec, exit.
    Processes,
    /// Signals with their sender.
    Signals,
    /// OOM kills.
    OomKills,
    /// nginx's own functions: the exact link.
    NginxFunctions,
    /// The response header hook: every final status.
    NginxStatuses,
    /// Packets.
    Packets,
    /// nginx's error log.
    ErrorLog,
    /// nginx's access log.
    AccessLog,
    /// nginx's configuration.
    Configuration,
    /// Listeners and processes of this host (`/proc`, sockets).
    Host,
    /// What the sensors above see beyond nginx's own namespace and processes: the upstream's end, where that is on this host. Off: nothing
    /// of it is in the stream, as if every upstream ran on another host.
    UpstreamSide,
}

impl Sensor {
    /// Every sensor, in the order they are shown.
    pub const ALL: &'static [Self] = &[
        Self::SocketStates,
        Self::ResetsSent,
        Self::ResetsReceived,
        Self::Retransmits,
        Self::SocketErrors,
        Self::Drops,
        Self::Syscalls,
        Self::Processes,
        Self::Signals,
        Self::OomKills,
        Self::NginxFunctions,
        Self::NginxStatuses,
        Self::Packets,
        Self::ErrorLog,
        Self::AccessLog,
        Self::Configuration,
        Self::Host,
        Self::UpstreamSide,
    ];

    /// The name used in `ready` and by `doctor`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SocketStates => "socket-states",
            Self::ResetsSent => "resets-sent",
            Self::ResetsReceived => "resets-received",
            Self::Retransmits => "retransmits",
            Self::SocketErrors => "socket-errors",
            Self::Drops => "drops",
            Self::Syscalls => "syscalls",
            Self::Processes => "processes",
            Self::Signals => "signals",
            Self::OomKills => "oom-kills",
            Self::NginxFunctions => "nginx-functions",
            Self::NginxStatuses => "nginx-statuses",
            Self::Packets => "packets",
            Self::ErrorLog => "error-log",
            Self::AccessLog => "access-log",
            Self::Configuration => "configuration",
            Self::Host => "host",
            Self::UpstreamSide => "upstream-side",
        }
    }
}

impl fmt::Display for Sensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How well a sensor sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Sight {
    /// Everything it is made for.
    On,
    /// With a named gap.
    Degraded,
    /// Nothing.
    Off,
}

/// A statement about coverage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Coverage {
    /// From this event's time on, the sensor sees like this.
    Sensor {
        /// Which.
        sensor: Sensor,
        /// How well.
        sight: Sight,
        /// Why not fully, in one plain sentence.
        why: Option<String>,
    },
    /// Records were lost; the event's time is the span in which.
    Lost {
        /// Of which sensor; `None`: any of the kernel's.
        sensor: Option<Sensor>,
        /// How many.
        count: u64,
        /// Why.
        why: String,
    },
}

/// The coverage that held for a case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaseCoverage {
    /// Sensors in [`Sensor::ALL`]'s order with how well they saw during the case.
    pub sensors: Vec<(Sensor, Sight, Option<String>)>,
    /// Losses whose span overlaps the case's.
    pub losses: Vec<(At, u64, String)>,
    /// Kernel records lost in the case's span.
    pub events_lost: u64,
    /// Of these, records that were one sensor's: of others nothing was lost by that.
    pub lost_of: Vec<(Sensor, u64)>,
    /// Packets dropped by the capture in the case's span.
    pub packets_dropped: u64,
    /// The stream ended before what comes late could come: the kernel's record of a reset, the exit of a process, the count of what was
    /// lost.
    pub cut_short: bool,
}

impl CaseCoverage {
    /// Whether the sensor saw everything it is made for, and nothing was lost meanwhile: only then is its silence evidence.
    #[must_use]
    pub fn silence_counts(&self, sensor: Sensor) -> bool {
        let on = self.sensors.iter().any(|(s, sight, _)| *s == sensor && *sight == Sight::On);
        let of_others = self.lost_of.iter().filter(|(other, _)| *other != sensor).map(|(_, count)| count).sum::<u64>();
        let lost =
            if sensor == Sensor::Packets { self.packets_dropped } else { self.events_lost.saturating_sub(of_others) };
        on && lost == 0 && !self.cut_short
    }

    /// Whether it was said that the sensor sees nothing; one never spoken of was not left out on purpose.
    #[must_use]
    pub fn left_out(&self, sensor: Sensor) -> bool {
        self.sensors.iter().any(|(s, sight, why)| *s == sensor && *sight == Sight::Off && why.is_some())
    }

    /// How well the sensor saw; a sensor never spoken of saw nothing.
    #[must_use]
    pub fn sight(&self, sensor: Sensor) -> Sight {
        self.sensors.iter().find(|(s, ..)| *s == sensor).map_or(Sight::Off, |(_, sight, _)| *sight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_sensor_lost_leaves_the_others_their_silence() {
        let on = |sensor: &Sensor| (*sensor, Sight::On, None);
        let mut coverage = CaseCoverage { sensors: Sensor::ALL.iter().map(on).collect(), ..CaseCoverage::default() };
        (coverage.events_lost, coverage.lost_of) = (3, vec![(Sensor::Signals, 3)]);
        assert!(!coverage.silence_counts(Sensor::Signals));
        assert!(coverage.silence_counts(Sensor::Drops) && coverage.silence_counts(Sensor::Packets));
        // One more, of nobody knows which.
        coverage.events_lost = 4;
        assert!(!coverage.silence_counts(Sensor::Drops));
        assert!(coverage.silence_counts(Sensor::Packets));
    }
}
