//! What a status that nginx decided means for its request: an answer's header, an error page, a subrequest that is over.

use super::{Correlator, Decided, identity_of, limits::ATTEMPTS, requests::OpenRequest, telling::Telling};
use crate::model::{
    case::{CaseKind, Origin},
    complaint::Complaint,
    coverage::{Sensor, Sight},
    event::Event,
    nginx::{NginxLog, NginxStatus, RequestKey, StatusPoint},
};

impl Correlator {
    /// Takes a status.
    pub(super) fn status(&mut self, event: &Event, status: &NginxStatus) {
        let identity = (status.number, status.client_requests);
        let main = status.parent.unwrap_or(status.request);
        self.telling.insert(status.worker, Telling { told: status.request, main, decided: false });
        match status.point {
            StatusPoint::SpecialResponse => {
                let open = self.requests.entry(main, identity, event.at.latest);
                open.heard.push(event.id);
                open.subrequest |= status.parent.is_some();
                if status.parent.is_none() {
                    open.special = Some((event.clone(), status.clone()));
                    open.redirected = false;
                }
                if self.sight(Sensor::NginxStatuses) != Sight::On {
                    if status.parent.is_none() {
                        self.final_status(event, status, main, identity);
                    } else {
                        self.piece_missing(event, main, identity);
                    }
                }
            }
            StatusPoint::Redirect if self.hides_decided(event, status, main, identity) => {}
            StatusPoint::Redirect => {
                let open = self.requests.entry(main, identity, event.at.latest);
                open.heard.push(event.id);
                open.redirected = true;
            }
            StatusPoint::SendHeader if status.parent.is_none() => self.final_status(event, status, main, identity),
            StatusPoint::SendHeader => {
                self.piece_missing(event, main, identity);
                // What `auth_request` takes for neither yes nor no.
                let neither = !matches!(status.status, 200..=299 | 401 | 403);
                if neither && self.requests.get_mut(main).is_none() {
                    let mut passed = OpenRequest::new(main, event.at.latest, identity);
                    passed.heard.push(event.id);
                    passed.subrequest = true;
                    self.passed.insert(main.worker, passed);
                }
            }
        }
    }

    /// A page takes the place of an error that has been taken for the answer, because headers are not seen: whether it was that one.
    ///
    /// `error_page 502 =200 /sorry` tells the status that follows; `error_page 502 = @other` tells none, and unless that fails too it is not
    /// known what reached the client.
    fn hides_decided(
        &mut self,
        event: &Event,
        status: &NginxStatus,
        main: RequestKey,
        identity: (Option<u64>, Option<u64>),
    ) -> bool {
        if self.sight(Sensor::NginxStatuses) == Sight::On || status.parent.is_some() {
            return false;
        }
        let Some(decided) = self.decided_of(main, identity) else { return false };
        decided.status = Some(status.status);
        decided.request.redirected = true;
        decided.request.heard.push(event.id);
        self.tells_of_decided(main.worker);
        true
    }

    /// The request's failure that is decided and not told yet, the last one.
    fn decided_of(&mut self, main: RequestKey, identity: (Option<u64>, Option<u64>)) -> Option<&mut Decided> {
        let this = |decided: &&mut Decided| decided.request.key == main && decided.request.identity == identity;
        self.decided.iter_mut().rev().find(this)
    }

    /// What took the place of an error failed as well: that made the status.
    fn page_failed(
        &mut self,
        event: &Event,
        status: &NginxStatus,
        main: RequestKey,
        identity: (Option<u64>, Option<u64>),
    ) {
        if self.decided_of(main, identity).is_none_or(|decided| !decided.request.redirected) {
            return;
        }
        let open = self.requests.take(main, identity);
        let Some(decided) = self.decided_of(main, identity) else { return };
        if let Some(open) = open {
            decided.request.complaints.extend(open.complaints);
            decided.request.accepts.extend(open.accepts);
            decided.request.heard.extend(open.heard);
            decided.request.special = open.special;
        }
        decided.request.redirected = false;
        (decided.status, decided.at, decided.by) = (Some(status.status), event.at, event.clone());
        decided.statuses.insert(0, status.clone());
    }

    /// A subrequest is over that had trouble. If the client's answer had begun by then, no status will follow that could decide it.
    fn piece_missing(&mut self, event: &Event, main: RequestKey, identity: (Option<u64>, Option<u64>)) {
        let Some(open) = self.requests.get_mut(main) else { return };
        let begun = |(_, log, _): &(Event, NginxLog, Complaint)| log.parent.and(log.status);
        let Some(status) = open.complaints.iter().rev().find_map(begun) else { return };
        let Some(request) = self.requests.take(main, identity) else { return };
        self.tells_of_decided(main.worker);
        self.decide(event.clone(), request, CaseKind::NearMiss, Origin::Nginx, Some(status), None);
    }

    /// What fails after the client has its answer (`post_action`) fails for nobody: nginx makes a status of it all the same, and
    /// `ngx_http_send_header()` sends none (`r->post_action`, `ngx_http_core_module.c` in 1.22.1).
    fn answered_before(&mut self, event: &Event, main: RequestKey, identity: (Option<u64>, Option<u64>)) -> bool {
        let Some(open) = self.requests.get_mut(main).filter(|open| open.identity == identity) else { return false };
        let answered = |(_, log, _): &(Event, NginxLog, Complaint)| log.status.filter(|_| log.parent.is_none());
        let Some(status) = open.complaints.last().and_then(answered) else { return false };
        let Some(request) = self.requests.take(main, identity) else { return false };
        self.tells_of_decided(main.worker);
        self.decide(event.clone(), request, CaseKind::NearMiss, Origin::Nginx, Some(status), None);
        true
    }

    fn final_status(
        &mut self,
        event: &Event,
        status: &NginxStatus,
        main: RequestKey,
        identity: (Option<u64>, Option<u64>),
    ) {
        // Where the header is seen with gaps only, the special response has decided already, and this is the header of the same answer;
        // or the page that took its place failed too.
        if identity_of(main, identity).is_some_and(|identity| self.deciding.contains_key(&identity)) {
            self.tells_of_decided(main.worker);
            self.page_failed(event, status, main, identity);
            return;
        }
        if self.answered_before(event, main, identity) {
            return;
        }
        let mut request = if let Some(request) = self.requests.take(main, identity) {
            request
        } else {
            // Nothing was heard of it before: the upstream's own status, or one nginx made with its log level hiding why.
            self.requests.entry(main, identity, event.at.latest);
            match self.requests.take(main, identity) {
                Some(request) => request,
                None => return,
            }
        };
        // A request that tried nothing itself failed by what its subrequest tried: that list was told with the subrequest's status.
        let by_subrequest = request.subrequest && status.attempts == Some(0);
        if status.attempts.is_some() && !by_subrequest {
            request.attempts.clear();
            request.attempts_known = true;
            request.attempts_total = status.attempts.unwrap_or(0).min(ATTEMPTS);
        }
        request.heard.push(event.id);
        self.tells_of_decided(main.worker);
        // The attempts follow in the next records; whether this is a case at all is decided when it closes.
        self.decide(
            event.clone(),
            request,
            CaseKind::Incident,
            Origin::Unknown,
            Some(status.status),
            Some(status.clone()),
        );
    }
}
