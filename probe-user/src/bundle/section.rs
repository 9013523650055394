//! The frame: header, sections, checksums, compression.
//!
//! ```text
//! header   magic 8 · format u16 · length u8 · that many bytes of text: the version needed · crc32 of all this
//! section  kind u8 · codec u8 · reserved u16 · stored u32 · length u32 · crc32 of these and the stored bytes · stored bytes
//! ```
//!
//! What is longer than [`LONGEST`] stands in several sections of the kind [`PIECE`], one right after another, each with
//! `kind u8 of the whole · last u8 · its bytes`. A program that does not know that kind skips them, and reads on behind them.
//!
//! Numbers are little-endian. The header's form is for ever: every program must be able to say which version reads a file.

use std::io::{self, Read};

use super::{BundleError, FORMAT, MAGIC, READABLE_SINCE};

/// The most a section holds that this program writes.
pub const LONGEST: usize = 16 << 20;
/// The most that is read as one: a longer one is damage, or somebody's bomb. What is split now was written as one section before, and is
/// read as that, too: the configuration of an nginx with thousands of places takes tens of MiB.
pub const WHOLE: usize = 256 << 20;
/// The number of the kind that holds a part of a longer one.
const PIECE: u8 = 6;
/// Bytes before a piece's own.
const PIECE_HEAD: usize = 2;
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

/// A whole section, or several if it is longer than [`LONGEST`]. Content longer than [`WHOLE`] is the caller's mistake, and is skipped when
/// it is read.
#[must_use]
pub fn section(kind: Kind, content: &[u8]) -> Vec<u8> {
    if content.len() <= LONGEST {
        return framed(kind.number(), content);
    }
    let mut bytes = Vec::new();
    let mut pieces = content.chunks(LONGEST - PIECE_HEAD).peekable();
    while let Some(piece) = pieces.next() {
        let is_last = u8::from(pieces.peek().is_none());
        bytes.extend(framed(PIECE, &[&[kind.number(), is_last], piece].concat()));
    }
    bytes
}

fn framed(kind: u8, content: &[u8]) -> Vec<u8> {
    // Compression of bytes in memory fails only for want of memory; then they are stored as they are.
    let packed = zstd::bulk::compress(content, LEVEL).ok().filter(|packed| packed.len() < content.len());
    let (codec, stored) = packed.as_deref().map_or((codec::PLAIN, content), |packed| (codec::ZSTD, packed));
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut bytes = Vec::with_capacity(FRAME + stored.len());
    bytes.extend([kind, codec, 0, 0]);
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
    /// A whole one of so many bytes, which are more than are read as one.
    TooLong(u64),
    /// The file ends, after so many bytes of an incomplete or damaged section (0: after a whole one).
    End {
        /// Bytes that could not be used.
        unusable: u64,
        /// Why.
        why: &'static str,
    },
}

/// What stands in the file next.
enum Frame {
    /// A section, and how many bytes it takes there.
    Section { kind: u8, content: Vec<u8>, stored: usize },
    /// A section that is stored in a way that this program does not know.
    Strange { kind: u8, stored: usize },
    /// As [`Found::End`].
    End { unusable: usize, why: &'static str },
}

/// A section that is being put together.
#[derive(Default)]
struct Whole {
    kind: u8,
    content: Vec<u8>,
    /// Bytes that it has; more than are in `content` if they are too many.
    length: usize,
    /// Bytes that its parts take in the file.
    stored: usize,
}

impl Whole {
    fn add(&mut self, piece: &[u8]) {
        self.length += piece.len();
        if self.length > WHOLE {
            self.content = Vec::new();
        } else {
            self.content.extend(piece);
        }
    }

    fn found(self) -> Found {
        if self.length > WHOLE {
            return Found::TooLong(u64::try_from(self.length).unwrap_or(u64::MAX));
        }
        Kind::from_number(self.kind).map_or(Found::Unknown(self.kind), |kind| Found::Whole(kind, self.content))
    }
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

    /// The next section, put together if it stands in pieces. After damage nothing is read any more: where the next one begins is not
    /// known.
    pub fn read(&mut self) -> io::Result<Found> {
        if self.ended {
            return Ok(Found::End { unusable: 0, why: "" });
        }
        let mut whole: Option<Whole> = None;
        loop {
            match (self.framed()?, &mut whole) {
                (Frame::Section { kind: PIECE, content, stored }, _) => {
                    let Some((&[kind, is_last], piece)) = content.split_first_chunk::<PIECE_HEAD>() else {
                        return Ok(self.end(stored, "a part of a section without a beginning"));
                    };
                    let whole = whole.get_or_insert_with(|| Whole { kind, ..Whole::default() });
                    whole.stored += stored;
                    if whole.kind != kind {
                        return Ok(self.end(whole.stored, "a section of which a part is missing"));
                    }
                    whole.add(piece);
                    if is_last != 0 {
                        return Ok(std::mem::take(whole).found());
                    }
                }
                (Frame::Section { kind, content, .. }, None) => {
                    return Ok(Whole { kind, length: 0, content, stored: 0 }.found());
                }
                (Frame::Strange { kind, .. }, None) => return Ok(Found::Unknown(kind)),
                (Frame::Section { stored, .. } | Frame::Strange { stored, .. }, Some(whole)) => {
                    return Ok(self.end(whole.stored + stored, "a section of which a part is missing"));
                }
                (Frame::End { unusable: 0, .. }, Some(whole)) => {
                    return Ok(self.end(whole.stored, "cut off within a section"));
                }
                (Frame::End { unusable, why }, whole) => {
                    return Ok(self.end(unusable + whole.as_ref().map_or(0, |whole| whole.stored), why));
                }
            }
        }
    }

    /// The next section as it stands there.
    fn framed(&mut self) -> io::Result<Frame> {
        let end = |unusable, why| Ok(Frame::End { unusable, why });
        let mut frame = Vec::new();
        self.input.by_ref().take(16).read_to_end(&mut frame)?;
        let Ok(frame) = <[u8; FRAME]>::try_from(frame.as_slice()) else {
            return end(frame.len(), "cut off within a section");
        };
        let number = |at: usize| frame.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_le_bytes(*b));
        let (stored, length) = (number(4), number(8));
        let fits = |length: u32| usize::try_from(length).is_ok_and(|length| length <= WHOLE);
        if !fits(stored) || !fits(length) {
            return end(FRAME, "a section of an impossible length");
        }
        let mut bytes = Vec::new();
        // Grows with what is really there, whatever the frame says.
        self.input.by_ref().take(u64::from(stored)).read_to_end(&mut bytes)?;
        let unusable = FRAME + bytes.len();
        if u32::try_from(bytes.len()) != Ok(stored) {
            return end(unusable, "cut off within a section");
        }
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&frame[..12]);
        hasher.update(&bytes);
        if hasher.finalize() != number(12) {
            return end(unusable, "a section whose checksum is wrong");
        }
        let length = usize::try_from(length).unwrap_or(WHOLE);
        let content = match frame[1] {
            codec::PLAIN => bytes,
            codec::ZSTD => match unpacked(&bytes, length) {
                Ok(content) => content,
                Err(_) => return end(unusable, "a section that cannot be decompressed"),
            },
            _ => return Ok(Frame::Strange { kind: frame[0], stored: unusable }),
        };
        if content.len() != length {
            return end(unusable, "a section that is not as long as it says");
        }
        Ok(Frame::Section { kind: frame[0], content, stored: unusable })
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

/// Decompressed, as far as one byte more than it should be: grows with what really comes out, whatever the frame says.
fn unpacked(packed: &[u8], length: usize) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let most = u64::try_from(length).unwrap_or(u64::MAX).saturating_add(1);
    zstd::stream::read::Decoder::with_buffer(packed)?.take(most).read_to_end(&mut content)?;
    Ok(content)
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

    /// Bytes that compression does not make much of.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn what_is_longer_than_a_section_is_written_in_pieces_and_read_as_one() {
        let long = noise(2 * LONGEST + 100);
        let written = section(Kind::Events, &long);
        let file = [header(), written.clone(), section(Kind::Evicted, b"{}")].concat();
        let end = |unusable, why| Found::End { unusable, why };
        let wanted =
            [Found::Whole(Kind::Events, long.clone()), Found::Whole(Kind::Evicted, b"{}".to_vec()), end(0, "")];
        assert!(read(&file).unwrap() == wanted);
        // Cut in the second piece, and right behind the first.
        let first = framed(PIECE, &[&[3, 0], &long[..LONGEST - PIECE_HEAD]].concat()).len();
        for cut in [first + 1_000, first] {
            let found = read(&[header(), written[..cut].to_vec()].concat()).unwrap();
            assert_eq!(found, [end(u64::try_from(cut).unwrap(), "cut off within a section")]);
        }
        let missing = [header(), written[..first].to_vec(), section(Kind::Evicted, b"{}")].concat();
        assert!(matches!(
            read(&missing).unwrap().as_slice(),
            [Found::End { unusable: 1.., why: "a section of which a part is missing" }]
        ));
    }

    #[test]
    fn what_was_written_as_one_before_is_read() {
        let long = noise(LONGEST + 100);
        let file = [header(), framed(Kind::Events.number(), &long), section(Kind::Evicted, b"{}")].concat();
        assert!(read(&file).unwrap().first() == Some(&Found::Whole(Kind::Events, long)));
    }

    #[test]
    fn what_is_longer_than_anything_is_told_and_skipped() {
        let file = [header(), section(Kind::Events, &vec![0; WHOLE + 1]), section(Kind::Evicted, b"{}")].concat();
        let found = read(&file).unwrap();
        let length = u64::try_from(WHOLE + 1).unwrap();
        assert_eq!(found[..2], [Found::TooLong(length), Found::Whole(Kind::Evicted, b"{}".to_vec())]);
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
