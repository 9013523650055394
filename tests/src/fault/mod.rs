//! Faults as values: how each is set up, how it is brought about, what must be said about it and what must not.

mod closing;
mod connecting;
mod exhaustion;
mod harmless;
mod keepalive;
mod list;
mod network;
mod origin;
mod process;
mod protocol;
pub mod servers;
mod stall;
mod tls;
mod truncated;

use anyhow::{Context, Result};
use probe502::diagnose::{
    self,
    cause::{Cause, Family},
};

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

    /// Those of real servers, which have a suite of their own.
    #[must_use]
    pub fn of_servers() -> Vec<Self> {
        servers::FAULTS.concat()
    }

    /// Those of the family `connection` that have a suite of their own.
    #[must_use]
    pub fn of_connection() -> Vec<Self> {
        [process::FAULTS, keepalive::FAULTS, stall::FAULTS, truncated::FAULTS].concat()
    }

    /// Those that need a router between nginx and the upstream ([`crate::lab::Lab::with_router`]).
    #[must_use]
    pub fn of_router() -> Vec<Self> {
        network::FAULTS.to_vec()
    }

    /// Those of the families `protocol` and `origin` that have a suite of their own.
    #[must_use]
    pub fn of_protocol() -> Vec<Self> {
        [protocol::FAULTS, tls::FAULTS, origin::FAULTS].concat()
    }

    /// Every fault of every suite.
    #[must_use]
    pub fn every() -> Vec<Self> {
        [Self::all(), Self::of_servers(), Self::of_connection(), Self::of_router(), Self::of_protocol()].concat()
    }

    /// Those that can share one site.
    #[must_use]
    pub fn sharing() -> Vec<Self> {
        Self::all().into_iter().filter(|fault| !fault.alone).collect()
    }

    /// The catalogue's family of its cause, by its name, which begins with the cause's id; `None`: its name says what the client sees.
    #[must_use]
    pub fn family(&self) -> Option<Family> {
        let begins = |cause: &&&Cause| {
            self.name.strip_prefix(cause.id).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        let cause = diagnose::catalogue().iter().filter(begins).max_by_key(|cause| cause.id.len());
        cause.map(|cause| cause.family)
    }

    /// A fault by its name.
    pub fn named(name: &str) -> Result<Self> {
        Self::every().into_iter().find(|fault| fault.name == name).with_context(|| format!("no fault {name}"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Fault;

    #[test]
    fn names_are_unique() {
        let every = Fault::every();
        let names: BTreeSet<_> = every.iter().map(|fault| fault.name).collect();
        assert_eq!(names.len(), every.len());
    }
}
