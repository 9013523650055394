//! How much a kernel can tell, in one letter. Found by asking it for what is needed, never from its version: distributions carry
//! newer features back.

use super::offsets::Facts;

/// A kernel's tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Types, reasons for resets and drops, and the socket a dropped packet was for (6.11).
    A,
    /// Types, reasons for drops, socket errors as they are told (5.17, and backports).
    B,
    /// Types (5.10).
    C,
    /// No types: records of tracepoints, and results of system calls (5.8).
    D,
}

impl Tier {
    /// What the kernel of these facts offers.
    #[must_use]
    pub fn of(facts: &Facts) -> Self {
        let settings = &facts.settings;
        if !facts.types {
            Self::D
        } else if settings.has_reset_reason != 0 && settings.has_drop_socket != 0 {
            Self::A
        } else if settings.has_drop_reason != 0 && facts.error_reports {
            Self::B
        } else {
            Self::C
        }
    }

    /// Its letter, and what the kernel offers.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::A => "A: types, drop reasons with their sockets, reset reasons",
            Self::B => "B: types, drop reasons, socket errors",
            Self::C => "C: types",
            Self::D => "D: tracepoint records and system calls",
        }
    }

    /// What cannot be seen that the best kernels show; empty for the best.
    #[must_use]
    pub const fn lost(self) -> &'static str {
        match self {
            Self::A => "",
            Self::B => "why this host sent a RST; a RST for which there is no socket is seen only where it arrives",
            Self::C => {
                "why this host sent a RST or dropped a packet; a socket's error is known from its last state change only"
            }
            Self::D => {
                "why this host sent a RST or dropped a packet, byte counters, soft errors, exits and signals of processes"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_letter_has_its_condition() {
        let mut facts = Facts::without_types();
        assert_eq!(Tier::of(&facts), Tier::D);
        facts.types = true;
        assert_eq!(Tier::of(&facts), Tier::C);
        facts.settings.has_drop_reason = 1;
        assert_eq!(Tier::of(&facts), Tier::C, "no socket errors");
        facts.error_reports = true;
        assert_eq!(Tier::of(&facts), Tier::B);
        facts.settings.has_reset_reason = 1;
        assert_eq!(Tier::of(&facts), Tier::B, "dropped packets without their socket");
        facts.settings.has_drop_socket = 1;
        assert_eq!(Tier::of(&facts), Tier::A);
    }

    #[test]
    fn each_but_the_best_says_what_is_lost() {
        for tier in [Tier::A, Tier::B, Tier::C, Tier::D] {
            assert_eq!(tier.lost().is_empty(), tier == Tier::A);
            assert_eq!(tier.text().as_bytes()[1], b':');
        }
    }
}
