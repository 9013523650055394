//! A connection at rest: of tens of thousands that stay open, each has some five events of 500 bytes, and nobody asks for them unless it
//! fails. Until something happens on it, or somebody asks, it is kept as a row of less than two hundred bytes.

mod columns;
mod events;
mod row;
mod shelf;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, net::SocketAddr};

pub(super) use self::shelf::{Place, Shelf};
use self::{
    columns::{Column, InFull, Near, Netns, Next, read, record, width, write},
    row::{Reader, Writer, shared},
};
use super::State;
use crate::{
    correlate::tuple::Tuple,
    model::{
        event::{Event, EventId},
        flow::{Flow, FlowId, Led},
        process::Pid,
        socket::Socket,
        time::{At, Moment},
    },
};

/// The row of a connection: everything that is known of it, in few bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asleep<'a>(pub(super) &'a [u8]);

/// What can be told of a connection without waking it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Head {
    /// Its ends.
    pub(super) tuple: Tuple,
    /// [`State::begun`].
    pub(super) begun: Moment,
    /// [`State::older`].
    pub(super) older: Option<FlowId>,
    /// [`State::told_in`].
    pub(super) told_in: Option<EventId>,
}

impl State {
    pub(super) const fn head(&self) -> Head {
        Head { tuple: self.tuple, begun: self.begun, older: self.older, told_in: self.told_in }
    }
}

record!(
    struct Times {
        begun: Moment,
        older: Option<FlowId>,
        told_in: Option<EventId>,
        seen: At,
    }
);

record!(
    /// The rest of what is known, but for the events.
    struct Known {
        syn: Option<Near>,
        /// [`State::connected_by_syscall`] and [`State::beyond_syn`].
        met: (bool, bool),
        complained_of: bool,
        worker: Option<Pid>,
        accepted_by: Option<(Pid, String)>,
        seen_from_start: bool,
        forgotten: u64,
        led: Option<InFull>,
        events: u64,
    }
);

// Where they stand in a row.
const ENDS: usize = shared::ONCE;
const TIMES: usize = ENDS + width::<InFull>();
const KNOWN: usize = TIMES + width::<Times>();
/// Whether an event was seen where the connection was led ([`Led::there`]).
const THERE: usize = KNOWN + width::<Known>();
const EVENTS: usize = shared::SIDED + Socket::WIDTH;
const _: () = assert!(THERE + width::<bool>() <= shared::SIDED, "more columns than there is room for");
const _: () = assert!(Socket::WIDTH + width::<Event>() <= row::WIDTH, "more columns than there is room for");

impl State {
    /// Its row; `None`: it must stay awake, for it is over, or has something that only what is over has.
    pub(super) fn row(&self) -> Option<Vec<u8>> {
        let Self {
            flow,
            tuple,
            syn,
            connected_by_syscall,
            beyond_syn,
            ended: None,
            complained_of,
            kept_since: None,
            begun,
            older,
            told_in,
        } = self
        else {
            return None;
        };
        let Flow { id: _, local, upstream, worker, accepted_by, seen_from_start, events, forgotten, led } = flow;
        if (*local, *upstream) != (Some(tuple.local), tuple.upstream) {
            return None;
        }
        let mut row = Writer::new((tuple.local, tuple.upstream));
        write::<InFull>(&tuple.local, ENDS, &mut row)?;
        write::<InFull>(&tuple.upstream, ENDS, &mut row)?;
        write::<Netns>(&tuple.zone, ENDS, &mut row)?;
        let first = events.iter().map(|event| event.at.earliest).min().unwrap_or(*begun);
        let last = events.iter().map(|event| event.at.latest).max().unwrap_or(*begun);
        let seen = At { earliest: first, latest: last };
        let times = Times { begun: *begun, older: *older, told_in: *told_in, seen };
        write::<Times>(&times, TIMES, &mut row)?;
        let known = Known {
            syn: *syn,
            met: (*connected_by_syscall, *beyond_syn),
            complained_of: *complained_of,
            worker: *worker,
            accepted_by: accepted_by.clone(),
            seen_from_start: *seen_from_start,
            forgotten: *forgotten,
            led: led.as_ref().map(|led| led.to),
            events: u64::try_from(events.len()).ok()?,
        };
        write::<Known>(&known, KNOWN, &mut row)?;
        for event in events {
            if let Some(led) = led {
                write::<bool>(&led.there.contains(&event.id), THERE, &mut row)?;
            }
            write::<Event>(event, EVENTS, &mut row)?;
        }
        Some(row.finish())
    }
}

impl Asleep<'_> {
    /// What can be told without waking it.
    pub(super) fn head(&self) -> Option<Head> {
        self.begin().map(|(head, ..)| head)
    }

    /// The same, and from when to when something was seen of it.
    pub(super) fn seen(&self) -> Option<(Head, At)> {
        self.begin().map(|(head, seen, _)| (head, seen))
    }

    /// What it was.
    pub(super) fn wake(&self, id: FlowId) -> Option<State> {
        let (head, _, mut row) = self.begin()?;
        let known = read::<Known>(KNOWN, &mut row)?;
        let mut led = known.led.map(|to| Led { to, there: Vec::new() });
        let mut events = VecDeque::new();
        for _ in 0..known.events {
            let there = led.is_some() && read::<bool>(THERE, &mut row)?;
            let event = read::<Event>(EVENTS, &mut row)?;
            led.iter_mut().filter(|_| there).for_each(|led| led.there.push(event.id));
            events.push_back(event);
        }
        let Head { tuple, begun, older, told_in } = head;
        let flow = Flow {
            id,
            local: Some(tuple.local),
            upstream: tuple.upstream,
            worker: known.worker,
            accepted_by: known.accepted_by,
            seen_from_start: known.seen_from_start,
            events,
            forgotten: known.forgotten,
            led,
        };
        Some(State {
            flow,
            tuple,
            syn: known.syn,
            connected_by_syscall: known.met.0,
            beyond_syn: known.met.1,
            ended: None,
            complained_of: known.complained_of,
            kept_since: None,
            begun,
            older,
            told_in,
        })
    }

    fn begin(&self) -> Option<(Head, At, Reader<'_>)> {
        let nobody = SocketAddr::from(([0; 4], 0));
        let mut row = Reader::new(self.0, (nobody, nobody));
        let local = read::<InFull>(ENDS, &mut row)?;
        let upstream = read::<InFull>(ENDS, &mut row)?;
        let zone = read::<Netns>(ENDS, &mut row)?;
        row.last.ends = (local, upstream);
        let Times { begun, older, told_in, seen } = read::<Times>(TIMES, &mut row)?;
        Some((Head { tuple: Tuple { local, upstream, zone }, begun, older, told_in }, seen, row))
    }
}
