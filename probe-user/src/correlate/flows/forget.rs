//! Which connections need not be remembered any more.

use super::Flows;
use crate::{
    correlate::limits::{CLEAN_LINGER_NS, COMPLAINT_LINGER_NS, FLOW_LINGER_NS, QUIET_NS},
    model::{event::Event, flow::FlowId, time::Moment},
};

impl Flows {
    /// Forgets connections that ended long before `now`.
    pub fn forget(&mut self, now: Moment) {
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
        while let Some((ended, id)) = self.complained_of.front().copied() {
            if now.since_ns(ended) < COMPLAINT_LINGER_NS && self.complained_of.len() <= self.limits.requests {
                break;
            }
            self.complained_of.pop_front();
            self.remove(id);
        }
        while self.known.len() > self.limits.flows {
            let Some(id) = self.known.keys().next().copied() else { break };
            self.forgotten += 1;
            self.remove(id);
        }
    }

    /// Where beginnings and ends are not all heard, the addresses may meanwhile belong to another connection: what was quiet for long is not
    /// taken for the one that this event is about.
    pub(super) fn part_from_the_quiet(&mut self, event: &Event) {
        let Some((one, other)) = super::ends(event) else { return };
        for (local, upstream) in [(one, other), (other, one)] {
            let Some(id) = self.current(local, upstream, None) else { continue };
            let Some(state) = self.known.get_mut(&id) else { continue };
            let last = state.flow.events.last().map_or(state.begun, |last| last.at.latest);
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
        if self.known.get(&id).is_some_and(|state| state.complained_of) {
            self.complained_of.push_back((ended, id));
        } else {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: FlowId) {
        let Some(state) = self.known.remove(&id) else { return };
        if self.newest.get(&state.tuple) == Some(&id) {
            self.newest.remove(&state.tuple);
        }
    }
}
