//! Faults as values: how each is set up, how it is brought about, what must be said about it and what must not.
//!
//! A host that is out of memory is made in virtual machines only ([`crate::vm`]).
//!
//! What the lab does not make, because it would reach beyond its own namespaces on a machine that others use:
//!
//! - A full table of connection tracking: `nf_conntrack_max` is the host's, and read-only in a network namespace. The packets that a full
//!   table throws away are dropped like those of a rule (`firewall-dropped-…`).
//! - A security module that says no (`SELinux`, `AppArmor`): it needs a policy of the whole host. Its EACCES from `connect()` is that of
//!   `connect-denied-route`, its EPERM that of `connect-denied-cgroup`.

mod closing;
mod connecting;
mod exhaustion;
mod firewall;
mod forged;
mod gone;
mod harmless;
mod keepalive;
mod list;
mod names;
mod network;
mod origin;
mod ports;
mod process;
mod protocol;
mod queue;
mod redirected;
mod routing;
pub mod servers;
mod stall;
mod still;
mod tls;
mod translated;
mod truncated;
mod unix;
mod unix_process;

use anyhow::{Context, Result};

use crate::expect::Witness;
use crate::lab::Lab;
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
    /// What it uses up is shared with healthy traffic, which may suffer: nginx closes idle clients when it is short of connections.
    pub starves: bool,
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

/// Faults that share one nginx, and the lab they need.
#[derive(Clone)]
pub struct Party {
    /// The faults, in an order in which none spoils the next.
    pub faults: Vec<Fault>,
    /// Makes the lab.
    pub lab: fn() -> Result<Lab>,
}

impl Fault {
    /// What most faults are like.
    const fn new(
        name: &'static str,
        story: &'static str,
        configure: fn(&mut Plan),
        provoke: fn(&Site<'_>) -> Result<Vec<Witness>>,
    ) -> Self {
        Self { name, story, alone: false, apart: false, healthy: "/ok", starves: false, configure, provoke }
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

    /// Those of real servers, which have a suite of their own.
    #[must_use]
    pub fn of_servers() -> Vec<Self> {
        servers::FAULTS.concat()
    }

    /// Those of the family `connection` that have a suite of their own.
    #[must_use]
    pub fn of_connection() -> Vec<Self> {
        [
            process::FAULTS,
            unix_process::FAULTS,
            keepalive::FAULTS,
            stall::FAULTS,
            still::FAULTS,
            truncated::FAULTS,
            translated::FAULTS,
        ]
        .concat()
    }

    /// Those that need a router between nginx and the upstream ([`crate::lab::Lab::with_router`]).
    #[must_use]
    pub fn of_router() -> Vec<Self> {
        [network::FAULTS, forged::FAULTS].concat()
    }

    /// Those of the families `protocol` and `origin` that have a suite of their own.
    #[must_use]
    pub fn of_protocol() -> Vec<Self> {
        [protocol::FAULTS, tls::FAULTS, origin::FAULTS, redirected::FAULTS].concat()
    }

    /// Those of the family `origin`.
    #[must_use]
    pub fn of_origin() -> Vec<Self> {
        origin::FAULTS.to_vec()
    }

    /// What takes a whole machine: for virtual machines only.
    #[must_use]
    pub fn of_machines() -> Vec<Self> {
        process::OF_A_WHOLE_MACHINE.to_vec()
    }

    /// Every fault of every suite.
    #[must_use]
    pub fn every() -> Vec<Self> {
        [
            Self::all(),
            Self::of_servers(),
            Self::of_connection(),
            Self::of_router(),
            Self::of_protocol(),
            Self::of_connect(),
        ]
        .concat()
    }

    /// Every fault of every suite, in parties that can share an nginx.
    #[must_use]
    pub fn parties() -> Vec<Party> {
        let plain = |faults| Party { faults, lab: Lab::new };
        let mut parties = vec![plain(Self::sharing()), plain(Self::of_connection()), plain(Self::of_protocol())];
        parties.push(Party { faults: Self::of_router(), lab: Lab::with_router });
        // What one server's fault leaves behind must not be blamed for another's.
        let server = |fault: &Self| fault.name.split('-').next();
        let servers = Self::of_servers();
        parties.extend(servers.chunk_by(|one, other| server(one) == server(other)).map(<[_]>::to_vec).map(plain));
        let [rejects, others] = firewall::FAULTS;
        for file in [
            rejects,
            others,
            routing::FAULTS,
            queue::FAULTS,
            ports::FAULTS,
            unix::FAULTS,
            gone::FAULTS,
            names::RESOLVED,
        ] {
            parties.push(plain(file.iter().copied().filter(|fault| !fault.alone).collect()));
        }
        let here = names::LOCALHOST.iter().map(|fault| fault.name).collect::<Vec<_>>();
        let alone = Self::every().into_iter().filter(|fault| fault.alone);
        parties.extend(alone.map(|fault| Party {
            faults: vec![fault],
            lab: if here.contains(&fault.name) { Lab::on_host_loopback } else { Lab::new },
        }));
        parties
    }

    /// Those that can share one site.
    #[must_use]
    pub fn sharing() -> Vec<Self> {
        Self::all().into_iter().filter(|fault| !fault.alone).collect()
    }

    /// The catalogue's families, as far as their faults can share an nginx, and servers that no other fault takes away.
    #[must_use]
    pub fn families() -> [(&'static str, Vec<Self>); 8] {
        let [rejects, others] = firewall::FAULTS;
        let (apart, origin): (Vec<Self>, Vec<Self>) = [origin::FAULTS, redirected::FAULTS, harmless::FAULTS]
            .concat()
            .into_iter()
            .partition(|fault| origin::UNANNOUNCED.contains(&fault.name));
        let families = [
            ("connect", [connecting::FAULTS, exhaustion::FAULTS].concat()),
            ("filters", [rejects, others].concat()),
            ("routes", [routing::FAULTS, queue::FAULTS, ports::FAULTS].concat()),
            ("names", [unix::FAULTS, gone::FAULTS, names::RESOLVED].concat()),
            ("connection", [closing::FAULTS.to_vec(), Self::of_connection()].concat()),
            ("protocol", [protocol::FAULTS, tls::FAULTS].concat()),
            ("origin", origin),
            ("unannounced", apart),
        ];
        families.map(|(name, faults)| (name, faults.into_iter().filter(|fault| !fault.alone).collect()))
    }

    /// A fault by its name.
    pub fn named(name: &str) -> Result<Self> {
        let mut all = Self::every().into_iter().chain(Self::of_machines());
        all.find(|fault| fault.name == name).with_context(|| format!("no fault {name}"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Fault, Party};

    #[test]
    fn every_fault_is_in_one_party() {
        let mut parties: Vec<&str> =
            Fault::parties().iter().flat_map(|Party { faults, .. }| faults).map(|fault| fault.name).collect();
        let mut every: Vec<&str> = Fault::every().iter().map(|fault| fault.name).collect();
        parties.sort_unstable();
        every.sort_unstable();
        assert_eq!(parties, every);
    }

    #[test]
    fn names_are_unique() {
        let every = Fault::every();
        let names: BTreeSet<_> = every.iter().map(|fault| fault.name).collect();
        assert_eq!(names.len(), every.len());
    }
}
