//! The newest of many things, found by what they belong to.

use std::collections::{BTreeMap, VecDeque};

/// So many at most; the oldest of all goes first, whatever it belongs to.
#[derive(Debug)]
pub(super) struct Newest<K, V> {
    most: usize,
    /// What each belongs to, oldest first.
    order: VecDeque<K>,
    /// How many there have been.
    count: u64,
    /// Each by what it belongs to and which of all it was. Most things belong to one only: a list for each would be most of the memory.
    of: BTreeMap<(K, u64), V>,
}

impl<K: Copy + Ord, V> Newest<K, V> {
    pub(super) const fn new(most: usize) -> Self {
        Self { most, order: VecDeque::new(), count: 0, of: BTreeMap::new() }
    }

    /// Keeps one.
    pub(super) fn keep(&mut self, key: K, value: V) {
        if self.order.len() >= self.most {
            let first = self.count.saturating_sub(u64::try_from(self.order.len()).unwrap_or(u64::MAX));
            if let Some(oldest) = self.order.pop_front() {
                self.of.remove(&(oldest, first));
            }
        }
        self.order.push_back(key);
        self.of.insert((key, self.count), value);
        self.count += 1;
    }

    /// What belongs to this, oldest first.
    pub(super) fn of(&self, key: K) -> impl DoubleEndedIterator<Item = &V> {
        self.of.range((key, 0)..=(key, u64::MAX)).map(|(_, value)| value)
    }

    /// Takes the oldest of those that belong to this and are meant.
    pub(super) fn take(&mut self, key: K, meant: impl Fn(&V) -> bool) -> Option<V> {
        let (found, _) = self.of.range((key, 0)..=(key, u64::MAX)).find(|(_, value)| meant(value))?;
        let found = *found;
        self.of.remove(&found)
    }

    /// All of it, by what it belongs to.
    pub(super) fn all(&self) -> impl Iterator<Item = (K, &V)> {
        self.of.iter().map(|((key, _), value)| (*key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first_whatever_it_belongs_to() {
        let mut newest = Newest::new(3);
        for (key, value) in [('a', 1), ('b', 2), ('a', 3), ('b', 4), ('b', 5)] {
            newest.keep(key, value);
        }
        assert_eq!(newest.of('a').collect::<Vec<_>>(), [&3]);
        assert_eq!(newest.of('b').rev().collect::<Vec<_>>(), [&5, &4]);
        assert_eq!((newest.take('b', |value| *value == 4), newest.take('b', |value| *value == 4)), (Some(4), None));
        newest.keep('b', 4);
        newest.keep('c', 6);
        assert_eq!(newest.all().collect::<Vec<_>>(), [('b', &5), ('b', &4), ('c', &6)]);
    }
}
