//! The formats of capture files. A [`Reader`] is given the bytes as they come and says what stands at their beginning.

mod pcap;
mod pcapng;

use std::fmt;

use thiserror::Error;

/// The longest record that is believed. The capture library itself takes at most 256 KiB
/// (`MAXIMUM_SNAPLEN`, <https://github.com/the-tcpdump-group/libpcap/blob/libpcap-1.10.4/pcap-int.h#L113>).
pub const LONGEST_RECORD: usize = 1 << 20;

/// A packet as a file holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Nanoseconds since 1970-01-01T00:00:00Z; `None`: the format has no time for it (pcapng's simple packets).
    pub unix_ns: Option<u64>,
    /// What it begins with: a number of <https://www.tcpdump.org/linktypes.html>.
    pub link: u16,
    /// Which interface of the file.
    pub interface: u16,
    /// Its length on the wire.
    pub wire_length: u32,
    /// What was captured of it.
    pub captured: &'a [u8],
}

/// What stands at the beginning of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A packet, in so many bytes.
    Packet(Record<'a>, usize),
    /// The capture says that it lost packets; in so many bytes.
    Lost(u64, usize),
    /// Nothing of interest in so many bytes, which may be more than are at hand.
    Skip(usize),
    /// So many bytes are needed to tell.
    Need(usize),
    /// What stands there cannot be; what comes after it neither.
    Damaged(Damage),
}

/// Why the rest of a file cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{what}")]
pub struct Damage {
    /// In words.
    pub what: &'static str,
}

/// A format that begins like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The classic format of libpcap.
    Pcap,
    /// pcapng.
    Pcapng,
    /// Compressed by gzip.
    Gzip,
    /// Compressed by zstd.
    Zstd,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pcap => "pcap",
            Self::Pcapng => "pcapng",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// What a file's first bytes say it is. Four are enough.
#[must_use]
pub fn kind(bytes: &[u8]) -> Option<Kind> {
    let magic: &[u8; 4] = bytes.first_chunk()?;
    match magic {
        [0x1f, 0x8b, ..] => Some(Kind::Gzip),
        // A frame, or a skippable frame before it (RFC 8878 §3.1).
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Some(Kind::Zstd),
        [0x0a, 0x0d, 0x0d, 0x0a] => Some(Kind::Pcapng),
        _ => pcap::Header::is_magic(*magic).then_some(Kind::Pcap),
    }
}

/// Reads one file, whichever of the formats it has. Files put one after the other are read as one.
#[derive(Debug, Default)]
pub struct Reader {
    format: Format,
}

#[derive(Debug, Default)]
enum Format {
    #[default]
    Unknown,
    Pcap(pcap::Header),
    Pcapng(pcapng::Section),
}

impl Reader {
    /// Reads what stands at the beginning of `bytes`.
    pub fn step<'a>(&mut self, bytes: &'a [u8]) -> Step<'a> {
        match &mut self.format {
            Format::Unknown => self.begin(bytes),
            // A classic file that begins where a record should: two files, one after the other. Its numbers cannot be a record's: as
            // seconds since 1970 they would do, but not with the version behind them.
            Format::Pcap(header) => match header.step(bytes) {
                Step::Packet(record, _) if record.captured.is_empty() && pcap::Header::begins(bytes) => {
                    self.begin(bytes)
                }
                Step::Damaged(_) if pcap::Header::begins(bytes) || pcapng::begins(bytes) => self.begin(bytes),
                step => step,
            },
            Format::Pcapng(section) => match section.step(bytes) {
                Step::Damaged(_) if pcap::Header::begins(bytes) => self.begin(bytes),
                step => step,
            },
        }
    }

    fn begin<'a>(&mut self, bytes: &[u8]) -> Step<'a> {
        const UNKNOWN: Damage = Damage { what: "neither pcap nor pcapng" };
        if bytes.len() < 4 {
            return Step::Need(4);
        }
        match kind(bytes) {
            Some(Kind::Pcap) => match pcap::Header::read(bytes) {
                Ok(Some(header)) => {
                    self.format = Format::Pcap(header);
                    Step::Skip(pcap::Header::LENGTH)
                }
                Ok(None) => Step::Need(pcap::Header::LENGTH),
                Err(damage) => Step::Damaged(damage),
            },
            Some(Kind::Pcapng) => {
                self.format = Format::Pcapng(pcapng::Section::default());
                Step::Skip(0)
            }
            Some(Kind::Gzip | Kind::Zstd) | None => Step::Damaged(UNKNOWN),
        }
    }
}

/// Numbers in a file's byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endian {
    Little,
    Big,
}

impl Endian {
    const fn u16(self, bytes: [u8; 2]) -> u16 {
        match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        }
    }

    const fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        }
    }

    /// The number at this place.
    fn u32_at(self, bytes: &[u8], at: usize) -> Option<u32> {
        bytes.get(at..)?.first_chunk().map(|chunk| self.u32(*chunk))
    }

    /// The number at this place.
    fn u16_at(self, bytes: &[u8], at: usize) -> Option<u16> {
        bytes.get(at..)?.first_chunk().map(|chunk| self.u16(*chunk))
    }
}
