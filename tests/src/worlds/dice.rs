//! Chance with a seed: the small things of a world (latencies, ports, sequence numbers) that no law depends on.

/// A stream of numbers that only depends on its seed (`SplitMix64`, <https://prng.di.unimi.it/splitmix64.c>).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// With this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub const fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`, both included.
    pub const fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.roll() % (high - low + 1)
    }

    /// Yes with this probability, in thousandths.
    pub const fn chance(&mut self, per_mille: u64) -> bool {
        self.roll() % 1_000 < per_mille
    }

    /// A number of two bytes.
    pub fn half(&mut self) -> u16 {
        let [low, high, ..] = self.roll().to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// So many bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.roll().to_le_bytes()[0]).collect()
    }

    /// A sequence number.
    pub fn sequence(&mut self) -> u32 {
        // The high half, so that the circle's seam is met as often as any other place.
        u32::try_from(self.roll() >> 32).unwrap_or(u32::MAX)
    }
}
