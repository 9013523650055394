//! Faults as values: how each is set up, how it is brought about, what must be said about it and what must not.

mod closing;
mod connecting;
mod exhaustion;
mod firewall;
mod gone;
mod harmless;
mod names;
mod ports;
mod queue;
mod routing;
mod unix;

use anyhow::{Context, Result};

use crate::expect::Witness;
use crate::site::{Plan, Site};

/// A named way to break a site.
#[derive(Clone, Copy)]
pub struct Fault {
    /// Its name; its requests go to `/NAME/…`.
    pub name: &'static str,
    /// What happens, in one line for the reader of the demo.
    pub story: &'static str,
    /// Changes settings of the whole nginx: needs a site of its own.
    pub alone: bool,
    /// Needs addresses that swallow packets: not on the loopback.
    pub apart: bool,
    /// Healthy traffic that this fault leaves alone.
    pub healthy: &'static str,
    /// Adds to a site what it needs.
    pub configure: fn(&mut Plan),
    /// Sends the requests; fails when the client does not see what it should.
    pub provoke: fn(&Site<'_>) -> Result<Vec<Witness>>,
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name)
    }
}

impl Fault {
    /// What most faults are like.
    const fn new(
        name: &'static str,
        story: &'static str,
        configure: fn(&mut Plan),
        provoke: fn(&Site<'_>) -> Result<Vec<Witness>>,
    ) -> Self {
        Self { name, story, alone: false, apart: false, healthy: "/ok", configure, provoke }
    }

    /// Every fault.
    #[must_use]
    pub fn all() -> Vec<Self> {
        [connecting::FAULTS, closing::FAULTS, exhaustion::FAULTS, harmless::FAULTS].concat()
    }

    /// Those of the family `connect` that have a suite of their own.
    #[must_use]
    pub fn of_connect() -> Vec<Self> {
        let [rejects, others] = firewall::FAULTS;
        [
            rejects,
            others,
            routing::FAULTS,
            queue::FAULTS,
            ports::FAULTS,
            unix::FAULTS,
            unix::UNPRIVILEGED,
            gone::FAULTS,
            names::RESOLVED,
            names::HELD,
            names::LOCALHOST,
        ]
        .concat()
    }

    /// Those that can share one site.
    #[must_use]
    pub fn sharing() -> Vec<Self> {
        Self::all().into_iter().filter(|fault| !fault.alone).collect()
    }

    /// A fault by its name.
    pub fn named(name: &str) -> Result<Self> {
        let mut every = Self::all().into_iter().chain(Self::of_connect());
        every.find(|fault| fault.name == name).with_context(|| format!("no fault {name}"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Fault;

    #[test]
    fn names_are_unique() {
        let every = [Fault::all(), Fault::of_connect()].concat();
        let names: BTreeSet<_> = every.iter().map(|fault| fault.name).collect();
        assert_eq!(names.len(), every.len());
    }
}
