//! The classic format: <https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-04.html>.

use super::{Damage, Endian, LONGEST_RECORD, Record, Step};

/// What a file's first 24 bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    endian: Endian,
    /// Nanoseconds in a unit of the fraction.
    scale: u32,
    link: u16,
    /// Length of a record's header.
    record: usize,
}

const MICROSECONDS: u32 = 0xa1b2_c3d4;
const NANOSECONDS: u32 = 0xa1b2_3c4d;
/// Records with eight bytes more in their header, as some Linux distributions of the 1990s wrote them.
const MODIFIED: u32 = 0xa1b2_cd34;

impl Header {
    pub(super) const LENGTH: usize = 24;

    pub(super) const fn is_magic(magic: [u8; 4]) -> bool {
        matches!(u32::from_le_bytes(magic), MICROSECONDS | NANOSECONDS | MODIFIED)
            || matches!(u32::from_be_bytes(magic), MICROSECONDS | NANOSECONDS | MODIFIED)
    }

    /// Whether a file begins here: its number, and a version that exists.
    pub(super) fn begins(bytes: &[u8]) -> bool {
        bytes.first_chunk().is_some_and(|magic| Self::is_magic(*magic))
            && matches!(bytes.get(4..8), Some([2, 0, 4, 0] | [0, 2, 0, 4]))
    }

    /// Reads it; `None`: not all of it is there.
    pub(super) fn read(bytes: &[u8]) -> Result<Option<Self>, Damage> {
        let Some(header) = bytes.first_chunk::<{ Self::LENGTH }>() else { return Ok(None) };
        let magic = [header[0], header[1], header[2], header[3]];
        let little = u32::from_le_bytes(magic);
        let (endian, magic) = match little {
            MICROSECONDS | NANOSECONDS | MODIFIED => (Endian::Little, little),
            _ => (Endian::Big, u32::from_be_bytes(magic)),
        };
        let major = endian.u16([header[4], header[5]]);
        if major != 2 {
            return Err(Damage { what: "a version of pcap that does not exist" });
        }
        // The upper bits say whether frames end in a checksum.
        let network = endian.u32([header[20], header[21], header[22], header[23]]);
        let link = u16::try_from(network & 0xffff).unwrap_or(0);
        let scale = if magic == NANOSECONDS { 1 } else { 1_000 };
        let record = if magic == MODIFIED { 24 } else { 16 };
        Ok(Some(Self { endian, scale, link, record }))
    }

    /// Reads a record.
    pub(super) fn step<'a>(&self, bytes: &'a [u8]) -> Step<'a> {
        let Some([s0, s1, s2, s3, f0, f1, f2, f3, c0, c1, c2, c3, w0, w1, w2, w3]) = bytes.first_chunk::<16>().copied()
        else {
            return Step::Need(self.record);
        };
        let seconds = self.endian.u32([s0, s1, s2, s3]);
        let fraction = self.endian.u32([f0, f1, f2, f3]);
        let captured = usize::try_from(self.endian.u32([c0, c1, c2, c3])).unwrap_or(usize::MAX);
        let wire = self.endian.u32([w0, w1, w2, w3]);
        if captured > LONGEST_RECORD {
            return Step::Damaged(Damage { what: "a packet longer than any capture takes" });
        }
        let length = self.record + captured;
        let Some(data) = bytes.get(self.record..length) else { return Step::Need(length) };
        let unix_ns = u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * u64::from(self.scale);
        // A length on the wire that is less than what was captured is a writer's mistake.
        let wire_length = wire.max(u32::try_from(captured).unwrap_or(0));
        Step::Packet(
            Record { unix_ns: Some(unix_ns), link: self.link, interface: 0, wire_length, captured: data },
            length,
        )
    }
}
