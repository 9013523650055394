//! Replacing values so that equal ones stay equal, different ones different, and beginnings beginnings.

/// A secret of the run, 128 bits. Kept nowhere.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key([u64; 2]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(secret)")
    }
}

impl Key {
    /// From random bytes.
    #[must_use]
    pub fn new(random: [u8; 16]) -> Self {
        let [a, b] = [0, 8]
            .map(|at| random.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_le_bytes(*bytes)));
        Self([a, b])
    }

    /// `SipHash`-2-4 of two words: <https://www.aumasson.jp/siphash/siphash.pdf>. A pseudo-random function for who knows the key, noise
    /// for who does not.
    pub(super) fn hash(&self, one: u64, other: u64) -> u64 {
        let [k0, k1] = self.0;
        let mut v = [
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ];
        // The last word holds the message's length.
        for word in [one, other, 16 << 56] {
            v[3] ^= word;
            round(&mut v);
            round(&mut v);
            v[0] ^= word;
        }
        v[2] ^= 0xff;
        for _ in 0..4 {
            round(&mut v);
        }
        v[0] ^ v[1] ^ v[2] ^ v[3]
    }

    /// Replaces a value in place. Bytes that a URI's value usually has become others of these; others become `x`.
    pub(super) fn replace(&self, value: &mut [u8]) {
        let mut state = self.hash(0, u64::MAX);
        for byte in value {
            let was = u64::from(*byte);
            *byte = match ALPHABET.iter().position(|known| known == byte) {
                Some(at) => {
                    let shift = usize::try_from(state % ALPHABET.len() as u64).unwrap_or(0);
                    ALPHABET.get((at + shift) % ALPHABET.len()).copied().unwrap_or(super::BLANK)
                }
                None => super::BLANK,
            };
            state = self.hash(state, was);
        }
    }
}

/// No separator of a query, a log line or a packet is among them.
const ALPHABET: &[u8; 66] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~";

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> Key {
        Key::new(*b"0123456789abcdef")
    }

    fn replaced(value: &str) -> String {
        let mut bytes = value.as_bytes().to_vec();
        key().replace(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn siphash_as_published() {
        // The test vector of the paper's appendix for 16 bytes 00 01 … 0f is that of the reference implementation's vectors[16].
        let bytes: Vec<u8> = (0..16).collect();
        let key = Key::new(bytes.clone().try_into().unwrap());
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(key.hash(word(0), word(8)).to_le_bytes(), [0xdb, 0x9b, 0xc2, 0x57, 0x7f, 0xcc, 0x2a, 0x3f]);
    }

    #[test]
    fn the_key_is_not_printed() {
        assert_eq!(format!("{:?}", key()), "Key(secret)");
    }

    proptest! {
        #[test]
        fn a_beginning_stays_a_beginning(value in "[A-Za-z0-9_.~-]{1,30}", cut in 0_usize..30) {
            let cut = cut.min(value.len());
            let (whole, begin) = (replaced(&value), replaced(&value[..cut]));
            prop_assert_eq!(&whole[..cut], begin.as_str());
        }

        #[test]
        fn different_values_stay_different(one in "[A-Za-z0-9]{1,8}", other in "[A-Za-z0-9]{1,8}") {
            prop_assert_eq!(one == other, replaced(&one) == replaced(&other));
        }
    }
}
