//! Upstreams that nginx has connected to for the first time: where they lead is asked at once, before a connection fails.
//!
//! Whoever is asked knows it only of a connection, and forgets one that was refused. So one that comes about, as most do, is the one to ask of.

use std::{collections::HashSet, hash::BuildHasherDefault};

use rustc_hash::FxHasher;

use super::fates::Endpoint2;

/// Upstreams that are remembered. nginx connects to more than these only where names of its clients lead it.
const ROOM: usize = 4_096;
/// So many are asked about in a second: each is a question or two to the kernel, half a millisecond.
const ASKED: u32 = 64;
const SECOND_NS: u64 = 1_000_000_000;

/// By the network namespace and the address.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    known: HashSet<(u32, Endpoint2), BuildHasherDefault<FxHasher>>,
    /// The second in which was asked last, and how often.
    asked: (u64, u32),
}

impl Strangers {
    /// Whether this upstream is to be asked about; from then on it is none any more.
    pub(super) fn meet(&mut self, netns: u32, upstream: Endpoint2, now_ns: u64) -> bool {
        if self.known.contains(&(netns, upstream)) || self.known.len() >= ROOM {
            return false;
        }
        let second = now_ns / SECOND_NS;
        if self.asked.0 != second {
            self.asked = (second, 0);
        }
        // The next connection will do.
        if self.asked.1 >= ASKED {
            return false;
        }
        self.asked.1 += 1;
        self.known.insert((netns, upstream));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn upstream(number: u32) -> Endpoint2 {
        (0, 0, number)
    }

    #[test]
    fn each_is_asked_about_once_in_each_namespace() {
        let mut strangers = Strangers::default();
        let met = [(7, 1), (7, 1), (8, 1), (7, 2), (7, 1)].map(|(netns, of)| strangers.meet(netns, upstream(of), 0));
        assert_eq!(met, [true, false, true, true, false]);
    }

    #[test]
    fn many_at_once_wait_for_their_next_connection() {
        let mut strangers = Strangers::default();
        let mut met = |at| (0..150).filter(|number| strangers.meet(7, upstream(*number), at)).count();
        assert_eq!([met(0), met(1), met(SECOND_NS), met(2 * SECOND_NS), met(3 * SECOND_NS)], [64, 0, 64, 22, 0]);
    }

    #[test]
    fn they_are_bounded() {
        let mut strangers = Strangers::default();
        for number in 0..10_000 {
            strangers.meet(7, upstream(number), u64::from(number) * SECOND_NS);
        }
        assert_eq!(strangers.known.len(), ROOM);
    }
}
