//! Records of the kernel programs into events.

mod nginx;
mod process;
mod socket;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use probe_abi::{Header, Kind};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, KnownLayout};

pub use self::socket::address;
use crate::model::{event::Body, time::Moment};

/// What the running kernel calls its numbers. Read from its BTF and configuration by the live side, stored with a recording.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// `enum skb_drop_reason`: number → name, with or without the prefix.
    pub drop_reasons: BTreeMap<u32, String>,
    /// `enum sk_rst_reason`: number → name, with or without the prefix.
    pub reset_reasons: BTreeMap<u32, String>,
    /// Jiffies in a second (`CONFIG_HZ`); 0 when not known: then nothing is said about how long ago something was.
    pub hz: u32,
}

impl Names {
    fn drop_reason(&self, number: u32) -> Option<String> {
        reason(&self.drop_reasons, number, &["SKB_DROP_REASON_", "SKB_"])
    }

    fn reset_reason(&self, number: u32) -> Option<String> {
        reason(&self.reset_reasons, number, &["SK_RST_REASON_"])
    }
}

/// A number without a name stays a number: the kernel did give a reason.
fn reason(names: &BTreeMap<u32, String>, number: u32, prefixes: &[&str]) -> Option<String> {
    if number == probe_abi::socket::NO_REASON {
        return None;
    }
    let Some(name) = names.get(&number) else { return Some(number.to_string()) };
    let bare = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    Some(bare.to_owned())
}

/// A record taken apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// When.
    pub time: Moment,
    /// The CPU it was written on.
    pub cpu: u16,
    /// Its number among those of that CPU, from 1; a gap is a loss.
    pub sequence: u64,
    /// What.
    pub body: Body,
}

/// Why a record could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// Too few bytes.
    #[error("a record of {length} bytes is too short for {what}, which has {needed}")]
    TooShort {
        /// What was expected.
        what: &'static str,
        /// Bytes there.
        length: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// The kernel side is newer or the bytes are not a record.
    #[error("records of kind {0} are not known")]
    UnknownKind(u16),
    /// The record is whole and does not say what it must.
    #[error("a record of kind {kind:?} has no usable {what}")]
    Unusable {
        /// Its kind.
        kind: Kind,
        /// What is missing.
        what: &'static str,
    },
}

/// Reads one record of the ring.
pub fn decode(record: &[u8], names: &Names) -> Result<Decoded, RecordError> {
    let header: Header = read(record, "a header")?;
    let kind = Kind::from_number(header.kind).ok_or(RecordError::UnknownKind(header.kind))?;
    let body = match kind {
        Kind::StateChange
        | Kind::ResetSent
        | Kind::ResetReceived
        | Kind::Retransmit
        | Kind::ErrorReport
        | Kind::Drop
        | Kind::SynAckRetransmit
        | Kind::Connect
        | Kind::Accept
        | Kind::SocketCall
        | Kind::OpenCall => socket::decode(kind, record, names)?,
        Kind::Fork | Kind::Exec | Kind::Exit | Kind::Signal | Kind::OomVictim | Kind::Held => {
            process::decode(kind, record)?
        }
        Kind::NginxLog
        | Kind::NginxSpecialResponse
        | Kind::NginxSendHeader
        | Kind::NginxAttempt
        | Kind::NginxConnection
        | Kind::NginxRedirect => nginx::decode(kind, record, names)?,
    };
    Ok(Decoded { time: Moment(header.time_ns), cpu: header.cpu, sequence: header.sequence, body })
}

/// Copies the structure out: a record read back from a file is not aligned. Trailing bytes are a newer kernel side's.
fn read<T: FromBytes + KnownLayout + Immutable>(record: &[u8], what: &'static str) -> Result<T, RecordError> {
    T::read_from_prefix(record).map(|(value, _)| value).map_err(|_| RecordError::TooShort {
        what,
        length: record.len(),
        needed: size_of::<T>(),
    })
}

/// Text up to its NUL.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Text of a known length that the field may have cut; `None` when empty.
fn sized_text(bytes: &[u8], length: u32) -> Option<String> {
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len());
    let text = text(&bytes[..length]);
    (!text.is_empty()).then_some(text)
}

/// 0 says "not known" or "none" in these fields.
fn nonzero(value: u64) -> Option<u64> {
    (value != 0).then_some(value)
}
