//! What a bundle says about itself, as JSON: fields may be added in any version, and are then missing in older bundles.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{
    decode::kernel::Names,
    model::{
        case::{CaseKind, EarlierFailure},
        time::{At, Moment, WallClock},
    },
};

/// Who recorded what, on which host, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Manifest {
    /// The program's version.
    pub tool: String,
    /// The kernel's release.
    pub kernel: String,
    /// When the run began, RFC 3339.
    pub started: String,
    /// `unix = boot + this`, nanoseconds: the offset that the run's output uses.
    pub clock_offset_ns: i64,
    /// Every nginx at the beginning: master, version.
    pub nginx: Vec<(u32, Option<String>)>,
    /// Statuses that make an incident.
    pub statuses: Vec<u16>,
    /// How deep was looked.
    pub depth: String,
    /// Sensors at the beginning: name, `on`, `off` or `degraded`, and why.
    pub sensors: Vec<(String, String, Option<String>)>,
    /// Failures of one second that were explained whatever they were like; none: all of them.
    pub explained: Option<u64>,
    /// What was blanked before it was kept: `default`, `all` or `none`.
    pub redaction: String,
    /// What the kernel calls its reasons for dropping a packet.
    pub drop_reasons: BTreeMap<u32, String>,
    /// What the kernel calls its reasons for sending a reset.
    pub reset_reasons: BTreeMap<u32, String>,
    /// Jiffies in a second.
    pub hz: u32,
    /// Nanoseconds kept before a case.
    pub before_ns: u64,
    /// Nanoseconds kept after one.
    pub after_ns: u64,
    /// Bytes of memory for what may be needed.
    pub memory: u64,
}

impl Manifest {
    /// The kernel's names, for its records.
    #[must_use]
    pub fn names(&self) -> Names {
        Names { drop_reasons: self.drop_reasons.clone(), reset_reasons: self.reset_reasons.clone(), hz: self.hz }
    }

    /// The clock that the run's output uses.
    #[must_use]
    pub const fn clock(&self) -> WallClock {
        WallClock { offset_ns: self.clock_offset_ns }
    }
}

/// An earlier failure that later ones may be blamed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earlier {
    /// Its case.
    pub case: String,
    /// When.
    pub at: Moment,
    /// The peer.
    pub peer: String,
    /// The cause found, by id.
    pub cause: Option<String>,
    /// The worker.
    pub worker: Option<u32>,
    /// The client.
    #[serde(default)]
    pub client: Option<SocketAddr>,
}

/// A request that failed: the same may be answered from nginx's cache later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The Host header.
    pub host: Option<String>,
    /// The URI.
    pub uri: String,
    /// The status the client saw.
    pub status: Option<u16>,
    /// Its case.
    pub case: String,
    /// When.
    pub at: Moment,
}

impl From<&EarlierFailure> for Earlier {
    fn from(failure: &EarlierFailure) -> Self {
        Self {
            case: failure.case.0.clone(),
            at: failure.at,
            peer: failure.peer.clone(),
            cause: failure.cause.map(str::to_owned),
            worker: failure.worker.map(|worker| worker.0),
            client: failure.client,
        }
    }
}

/// Part of the stream that a limit made the recorder let go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// From.
    pub from: Moment,
    /// To.
    pub to: Moment,
    /// Events.
    pub events: u64,
    /// Why.
    pub why: String,
}

impl Gap {
    /// The span.
    #[must_use]
    pub fn at(&self) -> At {
        At::between(self.from, self.to)
    }
}

/// Events of one second that the run could not remember although they might have explained a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// From.
    pub from: Moment,
    /// Until when they might have mattered.
    pub to: Moment,
    /// The name of what had seen them.
    pub sensor: String,
    /// How many.
    pub events: u64,
}

/// A window begins: where the run stood.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Opening {
    /// Cases before the window.
    pub cases: u64,
    /// What was decided before this is one of those.
    pub from: Moment,
    /// Addresses known to be upstreams.
    pub upstreams: Vec<SocketAddr>,
    /// Workers that were heard from inside.
    pub speaking: Vec<u32>,
    /// Failures that blackouts may be blamed on.
    pub earlier: Vec<Earlier>,
    /// Requests that failed before.
    pub asked: Vec<Asked>,
    /// What should be in the window and was let go for want of memory.
    pub evicted: Vec<Gap>,
    /// What the run itself had forgotten by then.
    pub forgotten: Vec<Forgotten>,
}

/// Windows that the limits of the file made the recorder take out again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Evicted {
    /// Windows.
    pub windows: u64,
    /// Incidents and near misses in them.
    pub cases: u64,
    /// Why.
    pub why: String,
}

/// A case that was printed, in its place in the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Its name.
    pub id: String,
    /// What it was.
    pub kind: CaseKind,
    /// The cause found, by id, or `unknown`.
    pub cause: String,
}
