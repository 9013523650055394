//! Failures of which nginx itself was not heard: known from its logs, or from packets only.

use super::{
    Correlator, Decided,
    limits::{LOG_CLOSE_DELAY_NS, Limits},
    requests::{OpenRequest, Requests},
};
use crate::model::{
    coverage::{Sensor, Sight},
    nginx::{AccessLine, RequestKey},
    process::Pid,
};

impl Correlator {
    /// Whether an access line tells of a failure without an error line: a 502, whoever made it; other statuses may be the upstream's own
    /// answer. And only of an nginx that is certainly not heard from inside, nor by its packets, or it would be told twice.
    pub(super) fn tells_alone(&self, line: &AccessLine) -> bool {
        let asked = line.status == Some(502) && self.settings.statuses.contains(&502);
        let mute = |worker: Pid| !self.speaking.contains(&worker) && self.host.instance_of(worker).is_some();
        asked
            && self.sight(Sensor::NginxFunctions) != Sight::On
            && !self.wires.is_on()
            && (self.speaking.is_empty() || line.pid.is_some_and(|pid| mute(Pid(pid))))
    }

    /// What the logs tell.
    pub(super) fn decide_lines(&mut self) {
        while let Some(mut group) = self.lines.poll(self.now, LOG_CLOSE_DELAY_NS, &self.settings.statuses) {
            self.wires.claim(&mut group, &self.settings.statuses);
            if group.failed_unasked(&self.settings.statuses) {
                continue;
            }
            let at = group.at;
            let key = RequestKey { worker: Pid(group.pid.unwrap_or(0)), pointer: 0 };
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

    /// What the packets tell.
    pub(super) fn decide_wires(&mut self) {
        while let Some(group) = self.wires.poll(self.now, &self.settings.statuses) {
            let decided = Decided {
                kind: group.kind,
                origin: group.origin,
                status: group.status,
                at: group.at,
                by: group.decided_by.clone(),
                close_at: self.now,
                request: OpenRequest::of_nobody(group.at.latest),
                statuses: Vec::new(),
                line: None,
                from_lines: None,
                from_wire: Some(group),
            };
            self.decided.push_back(decided);
        }
    }
}
