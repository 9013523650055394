//! Every connection that is remembered, the quiet ones in few bytes.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
};

use super::{
    State,
    asleep::{Asleep, Head, Place, Shelf},
};
use crate::model::{
    event::Event,
    flow::{Flow, FlowId},
    time::{At, Moment},
};

/// A connection falls asleep when for this long nothing has happened on it, for each of its events: making it small and large again takes
/// the longer the more there are.
const RESTLESS_NS: u64 = 20_000_000;

/// Boxed: the nodes of a tree that grows at its end stay half empty.
#[derive(Debug)]
enum Kept {
    Awake(Box<State>),
    Asleep(Place),
}

/// The connections. Which of them sleep makes no difference to what is found.
#[derive(Debug, Default)]
pub(super) struct Known {
    kept: BTreeMap<FlowId, Kept>,
    /// Those that may fall asleep, each with when it was last looked at.
    awake: VecDeque<(Moment, FlowId)>,
    /// The rows of those that sleep.
    shelf: Shelf,
    now: Moment,
}

impl Known {
    /// A new one.
    pub(super) fn insert(&mut self, id: FlowId, state: State) {
        self.kept.insert(id, Kept::Awake(Box::new(state)));
        self.awake.push_back((self.now, id));
    }

    /// Forgets one.
    pub(super) fn remove(&mut self, id: FlowId) -> Option<State> {
        match self.kept.remove(&id)? {
            Kept::Awake(state) => Some(*state),
            Kept::Asleep(place) => {
                let state = Asleep(self.shelf.row(place)?).wake(id);
                self.shelf.take_away(place);
                state
            }
        }
    }

    /// One, awake.
    pub(super) fn wake(&mut self, id: FlowId) -> Option<&mut State> {
        let kept = self.kept.get_mut(&id)?;
        if let Kept::Asleep(place) = *kept {
            *kept = Kept::Awake(Box::new(Asleep(self.shelf.row(place)?).wake(id)?));
            self.shelf.take_away(place);
            self.awake.push_back((self.now, id));
        }
        match kept {
            Kept::Awake(state) => Some(state),
            Kept::Asleep(_) => None,
        }
    }

    /// What there is to know of one at first sight.
    pub(super) fn head(&self, id: FlowId) -> Option<Head> {
        self.kept.get(&id)?.head(&self.shelf)
    }

    /// The history of one.
    pub(super) fn flow(&self, id: FlowId) -> Option<Cow<'_, Flow>> {
        self.kept.get(&id)?.flow(id, &self.shelf)
    }

    /// The histories of those towards this upstream, or all, oldest first; without some of those of which nothing was seen in this time.
    pub(super) fn flows(&self, upstream: Option<SocketAddr>, window: At) -> impl Iterator<Item = Cow<'_, Flow>> {
        let asked_for = move |flow: SocketAddr| upstream.is_none_or(|upstream| upstream == flow);
        self.kept.iter().filter_map(move |(id, kept)| match kept {
            Kept::Awake(state) => asked_for(state.flow.upstream).then_some(Cow::Borrowed(&state.flow)),
            Kept::Asleep(place) => {
                let asleep = Asleep(self.shelf.row(*place)?);
                let (head, seen) = asleep.seen()?;
                let meant = asked_for(head.tuple.upstream) && seen.overlaps(&window);
                if meant { asleep.wake(*id).map(|state| Cow::Owned(state.flow)) } else { None }
            }
        })
    }

    /// Every event of every connection.
    pub(super) fn for_each_event(&self, mut each: impl FnMut(&Event)) {
        for (id, kept) in &self.kept {
            kept.flow(*id, &self.shelf).iter().flat_map(|flow| &flow.events).for_each(&mut each);
        }
    }

    /// All of them at first sight, oldest first.
    pub(super) fn heads(&self) -> impl Iterator<Item = Head> {
        self.kept.values().filter_map(|kept| kept.head(&self.shelf))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// The oldest.
    pub(super) fn oldest(&self) -> Option<FlowId> {
        self.kept.keys().next().copied()
    }

    /// Fills the tree's nodes, which stay half empty where it grows at its end.
    pub(super) fn fill(&mut self) {
        self.kept = std::mem::take(&mut self.kept).into_iter().collect();
    }

    /// Gives back what is left of rows that are gone.
    pub(super) fn tidy(&mut self) {
        let Self { kept, shelf, .. } = self;
        shelf.tidy(|id, place| {
            if let Some(Kept::Asleep(known)) = kept.get_mut(&id) {
                *known = place;
            }
        });
    }

    /// Lets those fall asleep on which nothing has happened for a while.
    pub(super) fn rest(&mut self, now: Moment) {
        self.now = self.now.max(now);
        while let Some((looked_at, id)) = self.awake.front().copied() {
            if self.now.since_ns(looked_at) < RESTLESS_NS {
                break;
            }
            self.awake.pop_front();
            let Some(kept) = self.kept.get_mut(&id) else { continue };
            let Kept::Awake(state) = kept else { continue };
            if state.ended.is_some() {
                // It will soon be forgotten.
                continue;
            }
            let events = &state.flow.events;
            let rest = RESTLESS_NS.saturating_mul(u64::try_from(events.len()).unwrap_or(u64::MAX));
            if events.back().is_some_and(|last| self.now.since_ns(last.at.latest) < rest) {
                self.awake.push_back((self.now, id));
            } else if let Some(place) = state.row().and_then(|row| self.shelf.lay(id, &row)) {
                *kept = Kept::Asleep(place);
            }
        }
    }
}

impl Kept {
    fn head(&self, shelf: &Shelf) -> Option<Head> {
        match self {
            Self::Awake(state) => Some(state.head()),
            Self::Asleep(place) => Asleep(shelf.row(*place)?).head(),
        }
    }

    fn flow(&self, id: FlowId, shelf: &Shelf) -> Option<Cow<'_, Flow>> {
        match self {
            Self::Awake(state) => Some(Cow::Borrowed(&state.flow)),
            Self::Asleep(place) => Asleep(shelf.row(*place)?).wake(id).map(|state| Cow::Owned(state.flow)),
        }
    }
}
