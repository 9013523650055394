//! Which connections need not be remembered any more.

use super::{Flows, ends::ends};
use crate::{
    correlate::limits::{CLEAN_LINGER_NS, COMPLAINT_LINGER_NS, FLOW_LINGER_NS, QUIET_NS},
    model::{event::Event, flow::FlowId, socket::Socket, time::Moment},
};

/// So many more connections, or fewer, are worth it: it takes as long as to look at each of them.
const FILLED_EVERY: usize = 4_096;

impl Flows {
    /// Forgets connections that ended long before `now`.
    pub fn forget(&mut self, now: Moment) {
        self.known.rest(now);
        while let Some((ended, id)) = self.clean.front().copied() {
            if now.since_ns(ended) < CLEAN_LINGER_NS {
                break;
            }
            self.clean.pop_front();
            self.let_go(id, ended);
        }
        while let Some((ended, id)) = self.ended.front().copied() {
            if now.since_ns(ended) < FLOW_LINGER_NS && self.known.len() <= self.limits.flows {
                break;
            }
            self.ended.pop_front();
            self.let_go(id, ended);
        }
        while let Some((ended, id)) = self.complained_of.first().copied() {
            if now.since_ns(ended) < COMPLAINT_LINGER_NS && self.complained_of.len() <= self.limits.requests {
                break;
            }
            self.complained_of.pop_first();
            self.remove(id);
        }
        while self.known.len() > self.limits.flows {
            let Some(id) = self.known.oldest() else { break };
            self.remove(id);
        }
    }

    /// Whether some have to go before their time.
    #[must_use]
    pub fn are_too_many(&self) -> bool {
        self.known.len() > self.limits.flows
    }

    /// Makes what very many connections take as small as it goes.
    pub fn fill(&mut self) {
        self.known.tidy();
        if self.known.len().abs_diff(self.filled) > FILLED_EVERY {
            self.filled = self.known.len();
            self.known.fill();
            self.newest.fill();
        }
    }

    /// Where beginnings and ends are not all heard, the addresses may meanwhile belong to another connection: what was quiet for long is not
    /// taken for the one that this event is about.
    pub(super) fn part_from_the_quiet(&mut self, event: &Event) {
        let Some((one, other)) = ends(event) else { return };
        for (local, upstream) in [(one, other), (other, one)] {
            let Some(id) = self.current(local, upstream, None) else { continue };
            let Some(state) = self.known.wake(id) else { continue };
            let last = state.flow.events.back().map_or(state.begun, |last| last.at.latest);
            if event.at.latest.since_ns(last) < QUIET_NS {
                continue;
            }
            if state.ended.is_none() {
                state.ended = Some(last);
                self.ended.push_back((event.at.latest, id));
            }
            let tuple = state.tuple;
            self.newest.remove(&tuple);
        }
    }

    /// Its time is over, unless nginx has complained of it: then a longer one begins.
    fn let_go(&mut self, id: FlowId, ended: Moment) {
        match self.known.wake(id) {
            Some(state) if state.complained_of => {
                state.kept_since = Some(ended);
                self.complained_of.insert((ended, id));
            }
            _ => self.remove(id),
        }
    }

    /// What nginx complained of then is settled: the connection need not be remembered for it any more.
    pub fn settle(&mut self, socket: &Socket, at: Moment) {
        let (Some(local), Some(upstream)) = (socket.local, socket.remote) else { return };
        let Some(id) = self.at(local, upstream, socket.netns, at) else { return };
        let Some(state) = self.known.wake(id) else { return };
        state.complained_of = false;
        if let Some(since) = state.kept_since {
            self.complained_of.remove(&(since, id));
            self.remove(id);
        }
    }

    fn remove(&mut self, id: FlowId) {
        let Some(state) = self.known.remove(id) else { return };
        if let Some(since) = state.kept_since {
            self.complained_of.remove(&(since, id));
        }
        if self.newest.get(&state.tuple) == Some(id) {
            self.newest.remove(&state.tuple);
        }
    }
}
