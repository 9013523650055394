//! What must not be kept or shown, taken out of the raw inputs before anybody else sees them: before they are decoded, recorded, printed
//! or logged. So what is printed live and what a recording replays to cannot differ, and nothing has to be remembered elsewhere.
//!
//! Lengths stay as they are, so that sequence numbers and byte counts still add up. Checksums of packets do not: they are those of what
//! was on the wire.
//!
//! The values of a query are replaced by other values of the same length, by a key that lives as long as the run: two requests that were
//! different stay different, and one that was cut stays the beginning of the other, because verdicts rest on that. Everything else
//! (cookies, authorization, bodies) becomes `x`.

mod address;
mod cipher;
mod line;
mod packet;
mod record;
mod target;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{PoisonError, RwLock},
};

pub use self::cipher::Key;
use crate::model::packet::LinkType;

/// What stands for what was taken out.
const BLANK: u8 = b'x';

/// How much is taken out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    None,
    /// Query values, header values, cookies, authorization, bodies.
    #[default]
    Default,
    /// Clients' addresses too.
    All,
}

impl Level {
    /// As a bundle's manifest has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Default => "default",
            Self::All => "all",
        }
    }

    /// Reads [`Level::name`]; what is not known is taken for the least.
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        [Self::All, Self::Default].into_iter().find(|level| level.name() == name).unwrap_or(Self::None)
    }
}

/// Whose address is whose: needed only where clients' addresses are replaced.
#[derive(Debug, Default)]
struct Sides {
    upstreams: BTreeSet<SocketAddr>,
    listen: BTreeSet<SocketAddr>,
}

/// Takes out what must not be kept.
#[derive(Debug)]
pub struct Redactor {
    level: Level,
    key: Key,
    sides: RwLock<Sides>,
}

impl Redactor {
    /// With a key that nobody else knows.
    #[must_use]
    pub fn new(level: Level, key: Key) -> Self {
        Self { level, key, sides: RwLock::default() }
    }

    /// How much is taken out.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }

    /// Addresses that nginx listens on, and those of its upstreams: the others that talk to it are clients.
    pub fn learn(&self, listen: impl IntoIterator<Item = SocketAddr>, upstreams: impl IntoIterator<Item = SocketAddr>) {
        if self.level < Level::All {
            return;
        }
        let mut sides = self.sides.write().unwrap_or_else(PoisonError::into_inner);
        sides.listen.extend(listen);
        sides.upstreams.extend(upstreams);
    }

    /// A kernel record.
    pub fn record(&self, bytes: &mut [u8]) {
        if self.level > Level::None {
            record::blank(bytes, &self.key, self.level == Level::All);
        }
    }

    /// Whether [`Redactor::record`] would change anything about records of this kind; most hold nothing of a client's.
    #[must_use]
    pub fn concerns_record(&self, bytes: &[u8]) -> bool {
        self.level > Level::None && record::is_of_request(bytes)
    }

    /// A captured packet.
    pub fn packet(&self, link: LinkType, bytes: &mut [u8]) {
        if self.level > Level::None {
            packet::blank(link, bytes, &self.key);
        }
        if self.level == Level::All {
            let sides = self.sides.read().unwrap_or_else(PoisonError::into_inner);
            packet::map_client(link, bytes, |source, destination| client_end(&sides, source, destination), &self.key);
        }
    }

    /// A line of the error log.
    pub fn error_line(&self, line: &mut Vec<u8>) {
        if self.level > Level::None {
            line::blank_error(line, &self.key);
        }
        if self.level == Level::All {
            line::map_clients(line, &self.key);
        }
    }

    /// A line of the access log, whose variables are at these places; `None`: its format does not tell, and only what must be known of it
    /// stays.
    pub fn access_line(&self, line: &mut Vec<u8>, variables: &[(&str, std::ops::Range<usize>)]) {
        if self.level > Level::None {
            line::blank_access(line, variables, &self.key);
        }
        if self.level == Level::All {
            line::map_client_variables(line, variables, &self.key);
        }
    }

    /// A client's address as it is shown: itself, or another one of the same network.
    #[must_use]
    pub fn client(&self, address: IpAddr) -> IpAddr {
        if self.level == Level::All { address::map(address, &self.key) } else { address }
    }
}

/// Which end of a packet is a client of nginx: whoever talks to an address that nginx listens on, and is no upstream.
fn client_end(sides: &Sides, source: SocketAddr, destination: SocketAddr) -> Option<End> {
    if sides.upstreams.contains(&source) || sides.upstreams.contains(&destination) {
        return None;
    }
    let listens = |address: SocketAddr| {
        let any = |listen: &SocketAddr| listen.port() == address.port() && listen.ip().is_unspecified();
        sides.listen.contains(&address) || sides.listen.iter().any(any)
    };
    if listens(destination) {
        Some(End::Source)
    } else if listens(source) {
        Some(End::Destination)
    } else {
        None
    }
}

/// An end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}
