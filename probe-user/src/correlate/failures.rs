//! Failures that later ones can be blamed on: a server out of rotation, a failure in nginx's cache.

use super::Correlator;
use crate::model::{
    attempt::Outcome,
    case::{Case, CaseId, EarlierFailure},
    net::Address,
};

impl Correlator {
    /// The cause found for an attempt of a case: blackouts are blamed on it.
    pub fn judged(&mut self, case: &CaseId, peer: &str, cause: &'static str) {
        // It is the case that was put together last: what is remembered of it is the newest.
        let of_it = self.failures.iter_mut().rev().take_while(|failure| failure.case == *case);
        for failure in of_it.filter(|failure| failure.peer == peer) {
            failure.cause = Some(cause);
        }
    }

    /// Remembers a case and its failed attempts.
    pub(super) fn remember(&mut self, case: &Case) {
        self.answered.keep(case, &self.settings.limits);
        let failed = |outcome| outcome != Outcome::Ok;
        for attempt in case.attempts.iter().filter(|attempt| failed(attempt.outcome)) {
            // A group's name is nginx's entry for "no live upstreams" and no peer that could have failed.
            let Some(peer) = attempt.peer_name.as_ref().filter(|peer| Address::parse(peer).is_some()) else { continue };
            if self.failures.len() >= self.settings.limits.failures {
                self.failures.pop_front();
            }
            let at = attempt.complaint.as_ref().map_or(case.decided.latest, |(event, _)| event.at.latest);
            self.failures.push_back(EarlierFailure {
                case: case.id.clone(),
                at,
                peer: peer.clone(),
                cause: None,
                worker: case.worker,
                client: case.request.client,
            });
        }
    }
}
