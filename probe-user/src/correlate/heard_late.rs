//! Failures that are known from the logs only, which are written after nginx has decided.

use super::{
    Correlator, Decided,
    limits::{LOG_CLOSE_DELAY_NS, Limits},
    requests::Requests,
};
use crate::model::{nginx::RequestKey, process::Pid};

impl Correlator {
    /// Decides what nginx's log lines tell by now.
    pub(super) fn decide_lines(&mut self) {
        while let Some(mut group) = self.lines.poll(self.now, LOG_CLOSE_DELAY_NS, &self.settings.statuses) {
            self.wires.claim(&mut group, &self.settings.statuses);
            let at = group.at;
            let key = RequestKey { worker: Pid(group.pid), pointer: 0 };
            let mut lone = Requests::new(Limits::default());
            lone.entry(key, (group.number, None), at.latest);
            let Some(request) = lone.take(key, (group.number, None)) else { continue };
            let decided = Decided {
                kind: group.kind,
                origin: group.origin,
                status: group.status,
                at,
                by: group.decided_by.clone(),
                close_at: group.due,
                request,
                statuses: Vec::new(),
                line: None,
                from_lines: Some(group),
                from_wire: None,
            };
            self.decided.push_back(decided);
        }
    }
}
