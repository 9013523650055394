//! One entry of an Events section: `kind u8 · length u32 · that many bytes`. Kinds that are not known are skipped.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::manifest::Mark;
use crate::{
    decode::{
        access_log::{self, Pattern},
        error_log,
        kernel::{self, Names},
        packet,
    },
    model::{
        coverage::Coverage,
        event::{Body, Source},
        host::HostFact,
        packet::{LinkType, PacketEvent, PacketRef},
        time::{At, Moment},
    },
};

/// What the probe itself found out, which has no rawer form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Finding {
    /// About the host.
    Host(Box<HostFact>),
    /// About what can be seen.
    Coverage(Coverage),
}

/// An entry.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry<'a> {
    /// A record as the kernel gave it.
    Kernel(Cow<'a, [u8]>),
    /// The next packet of the Packets section before.
    Packet {
        /// Its number in the run.
        number: u64,
        /// When, by the clock that the kernel's records have.
        at: Moment,
        /// The network namespace it was captured in.
        netns: Option<u32>,
    },
    /// A line of nginx's error log, without its end.
    ErrorLine {
        /// When it was written, as far as that is known.
        at: At,
        /// The line.
        line: Cow<'a, [u8]>,
    },
    /// A line of nginx's access log, without its end.
    AccessLine {
        /// When it was written, as far as that is known.
        at: At,
        /// The `log_format` it was written with.
        format: Cow<'a, str>,
        /// The line.
        line: Cow<'a, [u8]>,
    },
    /// What the probe found out.
    Finding {
        /// When.
        at: At,
        /// [`Finding`] as JSON.
        json: Cow<'a, [u8]>,
    },
    /// Time was told up to here.
    Tick(Moment),
    /// A case was printed: [`Mark`] as JSON.
    Case(Cow<'a, [u8]>),
    /// The run ended; time had been told up to here.
    End(Moment),
}

mod kind {
    pub(super) const KERNEL: u8 = 1;
    pub(super) const PACKET: u8 = 2;
    pub(super) const ERROR_LINE: u8 = 3;
    pub(super) const ACCESS_LINE: u8 = 4;
    pub(super) const FINDING: u8 = 5;
    pub(super) const TICK: u8 = 6;
    pub(super) const CASE: u8 = 7;
    pub(super) const END: u8 = 8;
}

/// What an entry said that could not be understood.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EntryError {
    /// A kernel record.
    #[error("{0}")]
    Record(#[from] kernel::RecordError),
    /// Something else.
    #[error("a recorded {0} cannot be read")]
    Unreadable(&'static str),
}

impl Entry<'_> {
    /// Whether it has a place in the stream of events; the others are remarks about it.
    #[must_use]
    pub const fn is_event(&self) -> bool {
        !matches!(self, Self::Tick(_) | Self::Case(_) | Self::End(_))
    }

    /// Appends it.
    pub fn write(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        out.extend([0; 5]);
        let kind = match self {
            Self::Kernel(record) => {
                out.extend(record.as_ref());
                kind::KERNEL
            }
            Self::Packet { number, at, netns } => {
                out.extend(number.to_le_bytes());
                out.extend(at.0.to_le_bytes());
                out.extend(netns.unwrap_or(0).to_le_bytes());
                kind::PACKET
            }
            Self::ErrorLine { at, line } => {
                interval(*at, out);
                out.extend(line.as_ref());
                kind::ERROR_LINE
            }
            Self::AccessLine { at, format, line } => {
                interval(*at, out);
                out.extend(u32::try_from(format.len()).unwrap_or(0).to_le_bytes());
                out.extend(format.as_bytes());
                out.extend(line.as_ref());
                kind::ACCESS_LINE
            }
            Self::Finding { at, json } => {
                interval(*at, out);
                out.extend(json.as_ref());
                kind::FINDING
            }
            Self::Tick(to) => {
                out.extend(to.0.to_le_bytes());
                kind::TICK
            }
            Self::Case(json) => {
                out.extend(json.as_ref());
                kind::CASE
            }
            Self::End(at) => {
                out.extend(at.0.to_le_bytes());
                kind::END
            }
        };
        let length = u32::try_from(out.len() - begin - 5).unwrap_or(u32::MAX).to_le_bytes();
        if let Some(head) = out.get_mut(begin..begin + 5) {
            head.copy_from_slice(&[kind, length[0], length[1], length[2], length[3]]);
        }
    }
}

impl<'a> Entry<'a> {
    /// The event it is, and when; `packet` is the packet it refers to. `None`: it is none.
    pub fn event(
        &self,
        names: &Names,
        packet: Option<(LinkType, &[u8], u32)>,
    ) -> Result<Option<(At, Source, Body)>, EntryError> {
        let unreadable = EntryError::Unreadable;
        let event = match self {
            Self::Kernel(record) => {
                let decoded = kernel::decode(record, names)?;
                (At::exactly(decoded.time), Source::Kernel, decoded.body)
            }
            Self::Packet { number, at, netns } => {
                let (link, bytes, wire_length) = packet.ok_or(unreadable("packet"))?;
                let body = packet::decode(link, bytes, wire_length).ok_or(unreadable("packet"))?;
                let event = PacketEvent { reference: PacketRef(*number), netns: *netns, body };
                (At::exactly(*at), Source::Packet, Body::Packet(event))
            }
            Self::ErrorLine { at, line } => {
                let decoded = error_log::decode(line).map_err(|_| unreadable("error-log line"))?;
                (*at, Source::ErrorLog, Body::from(decoded.line))
            }
            Self::AccessLine { at, format, line } => {
                let decoded = access_log::decode(&Pattern::compile(format), line);
                let decoded = decoded.map_err(|_| unreadable("access-log line"))?;
                (*at, Source::AccessLog, Body::AccessLine(decoded.line))
            }
            Self::Finding { at, json } => {
                let body = match serde_json::from_slice(json).map_err(|_| unreadable("finding about the host"))? {
                    Finding::Host(fact) => Body::Host(fact),
                    Finding::Coverage(coverage) => Body::Coverage(coverage),
                };
                (*at, Source::Probe, body)
            }
            Self::Tick(_) | Self::Case(_) | Self::End(_) => return Ok(None),
        };
        Ok(Some(event))
    }

    /// The mark of a case.
    #[must_use]
    pub fn mark(&self) -> Option<Mark> {
        match self {
            Self::Case(json) => serde_json::from_slice(json).ok(),
            _ => None,
        }
    }

    fn read(kind: u8, body: &'a [u8]) -> Option<Self> {
        let number = |at: usize| body.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let small = |at: usize| body.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let interval = || Some(At::between(Moment(number(0)?), Moment(number(8)?)));
        Some(match kind {
            kind::KERNEL => Self::Kernel(body.into()),
            kind::PACKET => Self::Packet {
                number: number(0)?,
                at: Moment(number(8)?),
                netns: small(16).filter(|netns| *netns != 0),
            },
            kind::ERROR_LINE => Self::ErrorLine { at: interval()?, line: body.get(16..)?.into() },
            kind::ACCESS_LINE => {
                let end = 20_usize.checked_add(usize::try_from(small(16)?).ok()?)?;
                let format = std::str::from_utf8(body.get(20..end)?).ok()?;
                Self::AccessLine { at: interval()?, format: format.into(), line: body.get(end..)?.into() }
            }
            kind::FINDING => Self::Finding { at: interval()?, json: body.get(16..)?.into() },
            kind::TICK => Self::Tick(Moment(number(0)?)),
            kind::CASE => Self::Case(body.into()),
            kind::END => Self::End(Moment(number(0)?)),
            _ => return None,
        })
    }
}

fn interval(at: At, out: &mut Vec<u8>) {
    out.extend(at.earliest.0.to_le_bytes());
    out.extend(at.latest.0.to_le_bytes());
}

/// The entries of an Events section. `None` stands for one that could not be read; the list ends where it is cut.
pub fn entries(mut rest: &[u8]) -> impl Iterator<Item = Option<Entry<'_>>> {
    std::iter::from_fn(move || {
        let [kind, l0, l1, l2, l3] = *rest.first_chunk()?;
        let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).ok()?;
        let body = rest.get(5..)?.get(..length)?;
        rest = rest.get(5 + length..)?;
        Some(Entry::read(kind, body))
    })
}

/// A finding as an entry; `None` for events that have a rawer form.
#[must_use]
pub fn finding(at: At, body: &Body) -> Option<Entry<'static>> {
    let finding = match body {
        Body::Host(fact) => Finding::Host(fact.clone()),
        Body::Coverage(coverage) => Finding::Coverage(coverage.clone()),
        _ => return None,
    };
    let json = serde_json::to_vec(&finding).ok()?;
    Some(Entry::Finding { at, json: json.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        coverage::{Sensor, Sight},
        process::Pid,
    };

    fn samples() -> Vec<Entry<'static>> {
        let at = At::between(Moment(7), Moment(9));
        let told = Body::Coverage(Coverage::Sensor { sensor: Sensor::Drops, sight: Sight::Off, why: None });
        let open = Body::from(HostFact::OpenFiles { pid: Pid(7), command: "x".to_owned(), open: 1, limit: None });
        vec![
            Entry::Kernel(vec![1, 2, 3].into()),
            Entry::Packet { number: 12, at: Moment(8), netns: Some(4) },
            Entry::ErrorLine { at, line: b"2026/11/21 14:02:07 [error] 1#1: *2 x".to_vec().into() },
            Entry::AccessLine { at, format: "$status".into(), line: b"502".to_vec().into() },
            finding(at, &told).unwrap(),
            finding(at, &open).unwrap(),
            Entry::Tick(Moment(77)),
            Entry::Case(br#"{"id":"a","kind":"Incident","cause":"unknown"}"#.to_vec().into()),
            Entry::End(Moment(78)),
        ]
    }

    #[test]
    fn entries_are_read_back() {
        let mut bytes = Vec::new();
        for entry in samples() {
            entry.write(&mut bytes);
        }
        // A kind from the future is skipped.
        bytes.splice(0..0, [99, 2, 0, 0, 0, 1, 2]);
        let read: Vec<Option<Entry<'_>>> = entries(&bytes).collect();
        assert_eq!(read[0], None);
        assert_eq!(read[1..], samples().into_iter().map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn entries_become_events() {
        let names = Names::default();
        let bodies: Vec<_> = samples().iter().map(|entry| entry.event(&names, None)).collect();
        assert!(matches!(bodies[0], Err(EntryError::Record(_))) && bodies[1].is_err());
        assert!(matches!(&bodies[2], Ok(Some((_, Source::ErrorLog, Body::ErrorLine(line)))) if line.number == Some(2)));
        assert!(
            matches!(&bodies[3], Ok(Some((_, Source::AccessLog, Body::AccessLine(line)))) if line.status == Some(502))
        );
        assert!(matches!(bodies[4], Ok(Some((_, Source::Probe, Body::Coverage(_))))));
        assert!(matches!(bodies[6], Ok(None)) && samples()[7].mark().is_some_and(|mark| mark.id == "a"));
    }

    #[test]
    fn a_cut_row_ends() {
        let mut bytes = Vec::new();
        for entry in samples() {
            entry.write(&mut bytes);
        }
        for cut in 0..bytes.len() {
            assert!(entries(&bytes[..cut]).count() < samples().len());
        }
    }
}
