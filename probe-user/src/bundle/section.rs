//! The frame: header, sections, checksums, compression.
//!
//! ```text
//! header   magic 8 · format u16 · length u8 · that many bytes of text: the version needed · crc32 of all this
//! section  kind u8 · codec u8 · reserved u16 · stored u32 · length u32 · crc32 of these and the stored bytes · stored bytes
//! ```
//!
//! Numbers are little-endian. The header's form is for ever: every program must be able to say which version reads a file.

use std::io::{self, Read};

use super::{BundleError, FORMAT, MAGIC, READABLE_SINCE};

/// The most a section holds. A longer one is damage; a writer splits.
pub const LONGEST: usize = 16 << 20;
/// Bytes before a section's stored bytes.
const FRAME: usize = 16;
/// The compression level: fast, because it runs beside nginx. These records shrink to a tenth nevertheless.
const LEVEL: i32 = 1;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`super::manifest::Manifest`] as JSON.
    Manifest,
    /// [`super::manifest::Opening`] as JSON.
    Opening,
    /// A row of [`super::entry::Entry`].
    Events,
    /// A pcapng section.
    Packets,
    /// [`super::manifest::Evicted`] as JSON.
    Evicted,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Manifest, Self::Opening, Self::Events, Self::Packets, Self::Evicted];

    const fn number(self) -> u8 {
        match self {
            Self::Manifest => 1,
            Self::Opening => 2,
            Self::Events => 3,
            Self::Packets => 4,
            Self::Evicted => 5,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

mod codec {
    pub(super) const PLAIN: u8 = 0;
    pub(super) const ZSTD: u8 = 1;
}

/// The header of a new bundle.
#[must_use]
pub fn header() -> Vec<u8> {
    header_of(FORMAT, READABLE_SINCE)
}

fn header_of(format: u16, needs: &str) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(format.to_le_bytes());
    bytes.push(u8::try_from(needs.len()).unwrap_or(u8::MAX));
    bytes.extend(needs.bytes().take(usize::from(u8::MAX)));
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

/// A whole section. Content longer than [`LONGEST`] is the caller's mistake and would be refused when it is read.
#[must_use]
pub fn section(kind: Kind, content: &[u8]) -> Vec<u8> {
    // Compression of bytes in memory fails only for want of memory; then they are stored as they are.
    let packed = zstd::bulk::compress(content, LEVEL).ok().filter(|packed| packed.len() < content.len());
    let (codec, stored) = packed.as_deref().map_or((codec::PLAIN, content), |packed| (codec::ZSTD, packed));
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut bytes = Vec::with_capacity(FRAME + stored.len());
    bytes.extend([kind.number(), codec, 0, 0]);
    bytes.extend(length(stored));
    bytes.extend(length(content));
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes);
    hasher.update(stored);
    bytes.extend(hasher.finalize().to_le_bytes());
    bytes.extend(stored);
    bytes
}

/// What [`Sections::read`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A whole section.
    Whole(Kind, Vec<u8>),
    /// A whole section of a kind that this program does not know.
    Unknown(u8),
    /// The file ends, after so many bytes of an incomplete or damaged section (0: after a whole one).
    End {
        /// Bytes that could not be used.
        unusable: u64,
        /// Why.
        why: &'static str,
    },
}

/// The sections of a bundle, one after another.
#[derive(Debug)]
pub struct Sections<R> {
    input: R,
    ended: bool,
}

impl<R: Read> Sections<R> {
    /// Reads the header.
    pub fn open(mut input: R) -> Result<Self, BundleError> {
        let mut head = Vec::new();
        let mut more = |head: &mut Vec<u8>, count: usize| -> Result<bool, BundleError> {
            let before = head.len();
            input.by_ref().take(u64::try_from(count).unwrap_or(0)).read_to_end(head)?;
            Ok(head.len() - before == count)
        };
        let whole = more(&mut head, MAGIC.len())?;
        if !MAGIC.starts_with(&head) || head.is_empty() {
            return Err(BundleError::NotABundle);
        }
        if !whole || !more(&mut head, 3)? {
            return Err(BundleError::Cut);
        }
        let [.., f0, f1, length] = *head.as_slice() else { return Err(BundleError::Cut) };
        if !more(&mut head, usize::from(length) + 4)? {
            return Err(BundleError::Cut);
        }
        let Some((signed, sum)) = head.split_last_chunk::<4>() else { return Err(BundleError::Cut) };
        if crc32fast::hash(signed) != u32::from_le_bytes(*sum) {
            return Err(BundleError::Damaged("header"));
        }
        let format = u16::from_le_bytes([f0, f1]);
        if format > FORMAT {
            let needs = signed.get(MAGIC.len() + 3..).unwrap_or_default();
            let plain = |c: char| c.is_ascii_graphic();
            let needs = String::from_utf8_lossy(needs).chars().filter(|c| plain(*c)).collect();
            return Err(BundleError::Newer { format, needs });
        }
        Ok(Self { input, ended: false })
    }

    /// Sections without a header before them.
    pub(super) const fn bare(input: R) -> Self {
        Self { input, ended: false }
    }

    /// The next section. After damage nothing is read any more: where the next one begins is not known.
    pub fn read(&mut self) -> io::Result<Found> {
        if self.ended {
            return Ok(Found::End { unusable: 0, why: "" });
        }
        let mut frame = Vec::new();
        self.input.by_ref().take(16).read_to_end(&mut frame)?;
        let Ok(frame) = <[u8; FRAME]>::try_from(frame.as_slice()) else {
            return Ok(self.end(frame.len(), "cut off within a section"));
        };
        let number = |at: usize| frame.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_le_bytes(*b));
        let (stored, length) = (number(4), number(8));
        let fits = |length: u32| usize::try_from(length).is_ok_and(|length| length <= LONGEST);
        if !fits(stored) || !fits(length) {
            return Ok(self.end(FRAME, "a section of an impossible length"));
        }
        let mut bytes = Vec::new();
        // Grows with what is really there, whatever the frame says.
        self.input.by_ref().take(u64::from(stored)).read_to_end(&mut bytes)?;
        let unusable = FRAME + bytes.len();
        if u32::try_from(bytes.len()) != Ok(stored) {
            return Ok(self.end(unusable, "cut off within a section"));
        }
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&frame[..12]);
        hasher.update(&bytes);
        if hasher.finalize() != number(12) {
            return Ok(self.end(unusable, "a section whose checksum is wrong"));
        }
        let length = usize::try_from(length).unwrap_or(LONGEST);
        let content = match frame[1] {
            codec::PLAIN => bytes,
            codec::ZSTD => match zstd::bulk::decompress(&bytes, length) {
                Ok(content) => content,
                Err(_) => return Ok(self.end(unusable, "a section that cannot be decompressed")),
            },
            _ => return Ok(Found::Unknown(frame[0])),
        };
        if content.len() != length {
            return Ok(self.end(unusable, "a section that is not as long as it says"));
        }
        Ok(Kind::from_number(frame[0]).map_or(Found::Unknown(frame[0]), |kind| Found::Whole(kind, content)))
    }

    /// Whether there is nothing more to read.
    #[must_use]
    pub const fn ended(&self) -> bool {
        self.ended
    }

    fn end(&mut self, unusable: usize, why: &'static str) -> Found {
        self.ended = true;
        Found::End { unusable: u64::try_from(unusable).unwrap_or(u64::MAX), why: if unusable == 0 { "" } else { why } }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<Found>, BundleError> {
        let mut sections = Sections::open(bytes)?;
        let mut all = Vec::new();
        while !sections.ended() {
            all.push(sections.read()?);
        }
        Ok(all)
    }

    fn two() -> Vec<u8> {
        [header(), section(Kind::Manifest, b"{}"), section(Kind::Events, &[7; 10_000])].concat()
    }

    #[test]
    fn what_is_written_is_read() {
        let end = Found::End { unusable: 0, why: "" };
        let wanted = [Found::Whole(Kind::Manifest, b"{}".to_vec()), Found::Whole(Kind::Events, vec![7; 10_000]), end];
        assert_eq!(read(&two()).unwrap(), wanted);
        assert!(two().len() < 200, "compressed");
    }

    #[test]
    fn cut_anywhere_it_gives_the_whole_sections_before() {
        let bytes = two();
        let first = header().len() + section(Kind::Manifest, b"{}").len();
        for cut in 0..bytes.len() {
            match read(&bytes[..cut]) {
                Err(BundleError::NotABundle) => assert_eq!(cut, 0),
                Err(BundleError::Cut) => assert!(cut < header().len()),
                Ok(found) => {
                    let whole = found.iter().filter(|found| matches!(found, Found::Whole(..))).count();
                    assert_eq!(whole, usize::from(cut >= first), "{cut}");
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[test]
    fn a_newer_format_is_refused_with_the_version_it_needs() {
        let error = read(&header_of(FORMAT + 1, "3.2.1")).unwrap_err().to_string();
        assert!(error.contains("needs probe502 3.2.1 or newer"), "{error}");
        assert!(error.contains(&format!("format {}", FORMAT + 1)), "{error}");
    }

    #[test]
    fn something_else_is_no_bundle() {
        assert!(matches!(read(b"\x0a\x0d\x0d\x0a...."), Err(BundleError::NotABundle)));
        assert!(matches!(read(b""), Err(BundleError::NotABundle)));
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut bomb = section(Kind::Events, &vec![0; LONGEST]);
        // It says that it is short; its checksum is made right.
        bomb[8..12].copy_from_slice(&100_u32.to_le_bytes());
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&bomb[..12]);
        hasher.update(&bomb[16..]);
        bomb[12..16].copy_from_slice(&hasher.finalize().to_le_bytes());
        let found = read(&[header(), bomb].concat()).unwrap();
        assert!(matches!(found.as_slice(), [Found::End { unusable: 1.., .. }]), "{found:?}");
    }

    proptest! {
        #[test]
        fn damage_is_found(at in 0_usize..150, bit in 0_u8..8) {
            let mut bytes = two();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let wanted = read(&two()).unwrap();
            if let Ok(found) = read(&bytes) {
                for (one, other) in found.iter().zip(&wanted) {
                    let told = matches!(one, Found::End { unusable: 1.., .. } | Found::Unknown(_));
                    prop_assert!(one == other || told);
                }
            }
        }
    }
}
