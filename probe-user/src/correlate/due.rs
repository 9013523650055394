//! When a case is put together: its wait is over, nobody is about to end, and no answer is on its way.

use std::net::SocketAddr;

use super::{
    Correlator, Question, attempts, identity_of,
    limits::{ASKED_BEFORE_NS, END_DELAY_NS, MILLISECOND_NS},
    lines,
};
use crate::model::{
    case::Case,
    complaint::Message,
    coverage::{Sensor, Sight},
    net::Address,
    time::Moment,
};

impl Correlator {
    /// The next case whose wait is over. One at a time, so that its judgement can be told ([`Correlator::judged`]) before a later case
    /// that may be blamed on it is put together.
    pub fn poll_case(&mut self) -> Option<Case> {
        loop {
            let due = self.decided.front().is_some_and(|decided| self.finished || decided.close_at <= self.now);
            if !due || self.awaits_an_end() || self.look_awaited().is_some() {
                return None;
            }
            let mut decided = self.decided.pop_front()?;
            if decided.from_lines.is_none()
                && let Some(identity) = identity_of(decided.request.key, decided.request.identity)
            {
                match self.deciding.get_mut(&identity) {
                    Some(count) if *count > 1 => *count -= 1,
                    _ => drop(self.deciding.remove(&identity)),
                }
            }
            let case = self.close(&mut decided);
            for (event, log, _) in &decided.request.complaints {
                if let Some(socket) = log.upstream.as_ref().and_then(|connection| connection.socket.as_ref()) {
                    self.flows.settle(socket, event.at.latest);
                }
            }
            if case.is_some() {
                return case;
            }
        }
    }

    /// When the front case is due, or waits no longer for a look.
    pub(super) fn next_case(&self) -> Option<Moment> {
        let close_at = self.decided.front()?.close_at;
        Some(self.look_awaited().unwrap_or(close_at))
    }

    /// Until when the case that is due waits for who listens at its upstreams, which is still looked for, or, where nginx waited in vain, for
    /// who may accept there: on a large or busy host that takes longer than a case waits.
    fn look_awaited(&self) -> Option<Moment> {
        let decided = self.decided.front().filter(|decided| decided.close_at <= self.now)?;
        // What is left out on purpose does not come.
        let left_out = self.sensors.get(&Sensor::UpstreamSide).is_some_and(|(sight, _)| *sight == Sight::Off);
        if self.finished || left_out || self.sight(Sensor::Host) == Sight::Off {
            return None;
        }
        let complaints = &decided.request.complaints;
        let is_tried = |upstream: SocketAddr| {
            let mut peers = complaints.iter().filter_map(|(_, log, _)| log.peer.as_deref().and_then(Address::parse));
            peers.any(|peer| peer == Address::Ip(upstream))
        };
        let until = self.host.looks_until(decided.at.latest.plus_ns(MILLISECOND_NS), |question| match question {
            Question::Acceptors { .. } => {
                complaints.iter().any(|(.., complaint)| complaint.message == Message::TimedOut)
            }
            Question::Listeners { upstream, .. } => is_tried(*upstream),
            _ => false,
        });
        until.filter(|until| *until > self.now)
    }

    /// Puts off the case that is due, once, where a process that held a connection of it was sent a signal to end, and has not ended:
    /// handlers close what is open first, and an interpreter takes its time.
    fn awaits_an_end(&mut self) -> bool {
        let Some(decided) = self.decided.front().filter(|decided| self.put_off != Some(decided.by.id)) else {
            return false;
        };
        let asked = self.notable.asked_to_end(decided.at.earliest.minus_ns(ASKED_BEFORE_NS));
        if self.finished || asked.is_empty() || decided.from_wire.is_some() {
            return false;
        }
        let list = match &decided.from_lines {
            Some(group) => lines::attempts(group, &self.flows, &[]),
            None => attempts::attempts(&decided.request, &self.flows, &[], decided.at.latest),
        };
        let holders = list.iter().filter_map(|attempt| attempt.holder());
        if !holders.into_iter().any(|(pid, _)| asked.contains(&pid)) {
            return false;
        }
        self.put_off = Some(decided.by.id);
        if let Some(decided) = self.decided.front_mut() {
            decided.close_at = decided.close_at.plus_ns(END_DELAY_NS);
        }
        true
    }
}
