//! Finds a connection by its two ends. A table of places, open addressing with linear probing: no order of it is ever looked at.

/// An empty place.
const EMPTY: u32 = u32::MAX;

/// From hashes to slots.
#[derive(Debug)]
pub(super) struct Index {
    /// Hash and slot.
    places: Vec<(u32, u32)>,
    used: usize,
}

impl Default for Index {
    fn default() -> Self {
        Self { places: vec![(0, EMPTY); 1_024], used: 0 }
    }
}

fn at(number: u32) -> usize {
    usize::try_from(number).unwrap_or(0)
}

impl Index {
    /// The first slot under this hash that `fits`.
    pub(super) fn find(&self, hash: u32, mut fits: impl FnMut(u32) -> bool) -> Option<u32> {
        let mask = self.places.len() - 1;
        let mut place = at(hash) & mask;
        loop {
            let (known, slot) = *self.places.get(place)?;
            if slot == EMPTY {
                return None;
            }
            if known == hash && fits(slot) {
                return Some(slot);
            }
            place = (place + 1) & mask;
        }
    }

    /// Adds a slot.
    pub(super) fn insert(&mut self, hash: u32, slot: u32) {
        if self.used * 2 >= self.places.len() {
            let doubled = vec![(0, EMPTY); self.places.len() * 2];
            let old = std::mem::replace(&mut self.places, doubled);
            self.used = 0;
            for (hash, slot) in old.into_iter().filter(|(_, slot)| *slot != EMPTY) {
                self.insert(hash, slot);
            }
        }
        let mask = self.places.len() - 1;
        let mut place = at(hash) & mask;
        while self.places.get(place).is_some_and(|(_, slot)| *slot != EMPTY) {
            place = (place + 1) & mask;
        }
        if let Some(free) = self.places.get_mut(place) {
            *free = (hash, slot);
            self.used += 1;
        }
    }

    /// Takes a slot out; those behind it move up, so that nothing is left that means "go on".
    pub(super) fn remove(&mut self, hash: u32, slot: u32) {
        let mask = self.places.len() - 1;
        let mut hole = at(hash) & mask;
        loop {
            match self.places.get(hole) {
                Some((_, EMPTY)) | None => return,
                Some((known, found)) if *known == hash && *found == slot => break,
                Some(_) => hole = (hole + 1) & mask,
            }
        }
        self.used -= 1;
        let mut next = (hole + 1) & mask;
        while let Some((hash, slot)) = self.places.get(next).copied().filter(|(_, slot)| *slot != EMPTY) {
            // It may move into the hole unless its own place lies behind it.
            let home = at(hash) & mask;
            let from_home = next.wrapping_sub(home) & mask;
            let from_hole = next.wrapping_sub(hole) & mask;
            if from_home >= from_hole {
                if let Some(place) = self.places.get_mut(hole) {
                    *place = (hash, slot);
                }
                hole = next;
            }
            next = (next + 1) & mask;
        }
        if let Some(place) = self.places.get_mut(hole) {
            *place = (0, EMPTY);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn hash_of(slot: u32) -> u32 {
        (slot % 7).wrapping_mul(0x4000_0001)
    }

    proptest! {
        /// As a map would, with hashes that collide often.
        #[test]
        fn it_finds_what_was_put_in(steps in prop::collection::vec((any::<bool>(), 0u32..64), 0..2_000)) {
            let (mut index, mut map) = (Index::default(), BTreeMap::new());
            for (add, slot) in steps {
                let hash = hash_of(slot);
                if add && !map.contains_key(&slot) {
                    index.insert(hash, slot);
                    map.insert(slot, hash);
                } else if !add && map.remove(&slot).is_some() {
                    index.remove(hash, slot);
                }
                for slot in 0..64 {
                    let hash = hash_of(slot);
                    let found = index.find(hash, |s| s == slot);
                    prop_assert_eq!(found.is_some(), map.contains_key(&slot));
                }
            }
        }
    }
}
