//! Where the rows lie: one behind the other on pages of their own.
//!
//! A row in memory of its own would lie between what was needed for a moment only, and what that leaves behind is too small for the kernel
//! to get it back: of 27 MiB with 50,000 connections 10 were such holes.

use crate::model::flow::FlowId;

/// Bytes of a page. A row that is longer has a page to itself.
const PAGE: usize = 64 << 10;
/// Behind which rows on a page are given away: more than half of it is nobody's.
const SPARSE: usize = PAGE / 2;

/// Where a row lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Place {
    page: u32,
    at: u32,
}

/// Before each row: whose it is, and how long.
const HEAD: usize = size_of::<u64>() + size_of::<u32>();

/// Whose a row is that was taken away.
const NOBODY: FlowId = FlowId(u64::MAX);

#[derive(Debug, Default)]
struct Page {
    bytes: Vec<u8>,
    /// So many of them are of rows that were taken away.
    gone: usize,
}

impl Page {
    fn number<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.bytes.get(at..)?.first_chunk().copied()
    }

    /// The row here, and whose it is.
    fn row(&self, at: usize) -> Option<(FlowId, &[u8])> {
        let id = FlowId(u64::from_ne_bytes(self.number(at)?));
        let length = usize::try_from(u32::from_ne_bytes(self.number(at + HEAD - size_of::<u32>())?)).ok()?;
        Some((id, self.bytes.get(at + HEAD..)?.get(..length)?))
    }
}

/// All rows.
#[derive(Debug, Default)]
pub(in super::super) struct Shelf {
    pages: Vec<Page>,
    /// Pages on which nothing lies.
    free: Vec<u32>,
    /// Where the next row goes.
    current: Option<u32>,
}

impl Shelf {
    /// Lays a row down; `None`: there is no more room for places.
    pub(in super::super) fn lay(&mut self, id: FlowId, row: &[u8]) -> Option<Place> {
        let length = u32::try_from(row.len()).ok()?;
        let needed = HEAD + row.len();
        let fits = |page: &Page| page.bytes.len() + needed <= page.bytes.capacity();
        let page = match self.current.filter(|page| self.page(*page).is_some_and(fits)) {
            Some(page) => page,
            None => self.begin(needed)?,
        };
        let bytes = &mut self.page_mut(page)?.bytes;
        let at = u32::try_from(bytes.len()).ok()?;
        bytes.extend(id.0.to_ne_bytes());
        bytes.extend(length.to_ne_bytes());
        bytes.extend(row);
        Some(Place { page, at })
    }

    /// The row in this place.
    pub(in super::super) fn row(&self, place: Place) -> Option<&[u8]> {
        self.page(place.page)?.row(place.at as usize).map(|(_, row)| row)
    }

    /// Takes the row in this place away. The place means nothing any more.
    pub(in super::super) fn take_away(&mut self, place: Place) {
        let Some(length) = self.row(place).map(<[u8]>::len) else { return };
        let current = self.current == Some(place.page);
        let Some(page) = self.page_mut(place.page) else { return };
        if let Some(owner) = page.bytes.get_mut(place.at as usize..).and_then(<[u8]>::first_chunk_mut) {
            *owner = NOBODY.0.to_ne_bytes();
        }
        page.gone += HEAD + length;
        if page.gone < page.bytes.len() {
            return;
        }
        page.gone = 0;
        if current {
            page.bytes.clear();
        } else {
            page.bytes = Vec::new();
            self.free.push(place.page);
        }
    }

    /// Moves what lies on pages that are mostly nobody's by now, and tells where to.
    pub(in super::super) fn tidy(&mut self, mut moved: impl FnMut(FlowId, Place)) {
        let sparse = |page: &Page| page.gone > SPARSE;
        let indices = 0..u32::try_from(self.pages.len()).unwrap_or(u32::MAX);
        let those = indices.filter(|page| self.current != Some(*page) && self.page(*page).is_some_and(sparse));
        for index in those.collect::<Vec<_>>() {
            let Some(page) = self.page_mut(index).map(std::mem::take) else { continue };
            let mut at = 0;
            while let Some((id, row)) = page.row(at) {
                at += HEAD + row.len();
                if id != NOBODY
                    && let Some(now) = self.lay(id, row)
                {
                    moved(id, now);
                }
            }
            self.free.push(index);
        }
    }

    /// A page with room for so many bytes.
    fn begin(&mut self, needed: usize) -> Option<u32> {
        let page = if let Some(page) = self.free.pop() {
            page
        } else {
            self.pages.push(Page::default());
            u32::try_from(self.pages.len() - 1).ok()?
        };
        self.page_mut(page)?.bytes = Vec::with_capacity(needed.max(PAGE));
        self.current = Some(page);
        Some(page)
    }

    fn page(&self, index: u32) -> Option<&Page> {
        self.pages.get(index as usize)
    }

    fn page_mut(&mut self, index: u32) -> Option<&mut Page> {
        self.pages.get_mut(index as usize)
    }

    /// Bytes that are held.
    #[cfg(test)]
    fn held(&self) -> usize {
        self.pages.iter().map(|page| page.bytes.capacity()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn tidy(shelf: &mut Shelf, places: &mut BTreeMap<FlowId, Place>) {
        shelf.tidy(|id, place| {
            places.insert(id, place);
        });
    }

    proptest! {
        /// Whatever lies here is found as it was laid down, wherever it has moved since.
        #[test]
        fn rows_come_back_as_they_were(steps in prop::collection::vec((0_u64..40, 0_usize..9_000, 0_u8..8), 0..400)) {
            let mut shelf = Shelf::default();
            let mut places: BTreeMap<FlowId, Place> = BTreeMap::new();
            let mut rows: BTreeMap<FlowId, Vec<u8>> = BTreeMap::new();
            for (number, (id, length, what)) in steps.into_iter().enumerate() {
                let id = FlowId(id);
                if let Some(place) = places.remove(&id) {
                    shelf.take_away(place);
                    rows.remove(&id);
                } else {
                    let length = if what == 0 { length * 20 } else { length };
                    let row = vec![u8::try_from(number % 251).unwrap(); length];
                    places.insert(id, shelf.lay(id, &row).unwrap());
                    rows.insert(id, row);
                }
                if what == 1 {
                    tidy(&mut shelf, &mut places);
                }
                for (id, place) in &places {
                    prop_assert_eq!(shelf.row(*place), rows.get(id).map(Vec::as_slice));
                }
            }
        }
    }

    #[test]
    fn what_most_have_left_is_given_back() {
        let mut shelf = Shelf::default();
        let row = [7; 180];
        let mut places: BTreeMap<FlowId, Place> =
            (0..50_000).map(|id| (FlowId(id), shelf.lay(FlowId(id), &row).unwrap())).collect();
        let full = shelf.held();
        assert!(full < 50_000 * (row.len() + HEAD) * 101 / 100 + PAGE, "{full}");
        // Every tenth stays.
        for id in (0..50_000).filter(|id| id % 10 != 0) {
            shelf.take_away(places.remove(&FlowId(id)).unwrap());
        }
        assert_eq!(shelf.held(), full, "somebody is left on each page");
        tidy(&mut shelf, &mut places);
        assert!(shelf.held() <= full / 10 + 2 * PAGE, "{} of {full}", shelf.held());
        assert!(places.values().all(|place| shelf.row(*place) == Some(&row[..])));
        for place in places.into_values() {
            shelf.take_away(place);
        }
        assert!(shelf.held() <= PAGE, "only where the next one goes");
    }
}
