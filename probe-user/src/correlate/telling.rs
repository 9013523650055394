//! Whose attempts each worker of nginx is telling.

use super::{Correlator, limits::ATTEMPTS};
use crate::model::{
    event::EventId,
    nginx::{NginxAttempt, RequestKey},
    process::Pid,
};

/// nginx's list of attempts follows the status it belongs to, record by record; another worker's records can stand between them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Telling {
    /// The request as the records name it.
    pub(super) told: RequestKey,
    /// The main request they count for.
    pub(super) main: RequestKey,
    /// It has just been decided; else it is still open. (The same pointer may name a request decided a moment ago.)
    pub(super) decided: bool,
}

impl Correlator {
    /// The request whose attempts this worker tells has just been decided.
    pub(super) fn tells_of_decided(&mut self, worker: Pid) {
        if let Some(telling) = self.telling.get_mut(&worker) {
            telling.decided = true;
        }
    }

    /// Takes an entry of nginx's list.
    pub(super) fn attempt(&mut self, told_in: EventId, attempt: &NginxAttempt) {
        let Some(&Telling { told, main, decided }) = self.telling.get(&attempt.request.worker) else { return };
        if told != attempt.request {
            return;
        }
        let target = if decided {
            self.decided.iter_mut().rev().map(|decided| &mut decided.request).find(|request| request.key == main)
        } else {
            let passed = self.passed.get_mut(&main.worker).filter(|passed| passed.key == main);
            self.requests.get_mut(main).or(passed)
        };
        let Some(target) = target else { return };
        target.heard.push(told_in);
        if attempt.index == 0 {
            target.attempts.clear();
            target.told_by = Some(told);
            target.attempts_known = true;
            target.attempts_total = 0;
        }
        target.attempts_total = target.attempts_total.max(attempt.total.min(ATTEMPTS));
        if !target.attempts.iter().any(|known| known.index == attempt.index) {
            target.attempts.push(attempt.clone());
        }
    }
}
