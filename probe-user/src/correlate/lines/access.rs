//! A failure that only the access log tells: no error line belongs to it.

use std::borrow::Cow;

use super::{
    ANSWER_WINDOW_NS, LineGroup, Lines, NOTICED_WITHIN_NS, attempts::unsaid, belongs, client_ip, logged_attempts,
};
use crate::{
    correlate::flows::Flows,
    model::{
        attempt::{Attempt, Joined, Outcome},
        case::{CaseKind, Origin},
        event::{Event, EventId},
        flow::Flow,
        net::Address,
        nginx::AccessLine,
        packet::Content,
        time::{At, Moment},
    },
};

impl Lines {
    /// Whether a request that was told without its access line waits for this one; then it waits no longer.
    pub(super) fn was_awaited(&mut self, event: &Event, line: &AccessLine) -> bool {
        let fits = |at: &At, error| belongs(line, error) && at.earliest <= event.at.latest;
        let found = self.awaited.iter().position(|(at, error)| fits(at, error));
        found.and_then(|index| self.awaited.remove(index)).is_some()
    }

    /// The failure that this access line tells, unless error lines do.
    pub(super) fn unexplained(&mut self, id: EventId, due: Moment) -> Option<LineGroup> {
        // What is not there any more was taken by the error lines of its request.
        let index = self.access.iter().rposition(|(event, _)| event.id == id)?;
        let (event, line) = self.access.get(index)?.clone();
        let claimed = |error: &super::Line| belongs(&line, &error.line) && error.event.at.earliest <= event.at.latest;
        if self.errors.iter().any(claimed) {
            return None;
        }
        self.access.remove(index);
        if self.was_awaited(&event, &line) {
            return None;
        }
        self.forget_copies(&event, &line);
        let window = At::between(event.at.earliest.minus_ns(ANSWER_WINDOW_NS), event.at.latest);
        let asked_by = line.client.as_deref();
        let answer = self.only_answer(window, line.status, asked_by, None).answer;
        let logged_client = asked_by.and_then(|text| text.parse().ok());
        Some(LineGroup {
            pid: line.pid,
            number: line.number,
            lines: Vec::new(),
            kind: CaseKind::Incident,
            origin: Origin::Unknown,
            status: line.status,
            client: logged_client.or(answer.as_ref().map(|(.., client)| *client)),
            logged: logged_attempts(&line),
            at: answer.as_ref().map_or(event.at, |(answer, ..)| answer.at),
            decided_by: event.clone(),
            well: Vec::new(),
            seen: Vec::new(),
            due,
            unexplained: Some((event, line)),
        })
    }

    /// nginx may write a request into several access logs. Their formats tell the copies from another request of the same client.
    fn forget_copies(&mut self, event: &Event, line: &AccessLine) {
        let copy = |(other, copied): &(Event, AccessLine)| {
            other.at.overlaps(&event.at)
                && copied.status == line.status
                && copied.request == line.request
                && copied.client.as_deref().map(client_ip) == line.client.as_deref().map(client_ip)
                && shape(copied) != shape(line)
        };
        if let Some(index) = self.access.iter().rposition(copy) {
            self.access.remove(index);
        }
    }
}

/// What the line's format has.
fn shape(line: &AccessLine) -> [bool; 7] {
    let port = line.client.as_deref().is_some_and(|text| text.parse::<std::net::SocketAddr>().is_ok());
    [
        port,
        line.number.is_some(),
        line.client_requests.is_some(),
        line.pid.is_some(),
        line.upstream_status.is_some(),
        line.upstream_address.is_some(),
        line.cache_status.is_some(),
    ]
}

/// The attempts that the access line lists; where its format lists none, the one whose answer was seen on the wire.
pub(super) fn attempts(group: &LineGroup, event: &Event, line: &AccessLine, flows: &Flows) -> Vec<Attempt> {
    let Some(status) = line.status else { return Vec::new() };
    let window = At::between(group.at.earliest.min(event.at.earliest).minus_ns(NOTICED_WITHIN_NS), group.at.latest);
    let sent = |flow: &Cow<'_, Flow>| status_line(flow, status, window).is_some();
    if line.upstream_address.is_none() {
        return answered(status, window, flows).into_iter().collect();
    }
    let last = group.logged.len().saturating_sub(1);
    let one = |(index, (peer, said)): (usize, &(String, Option<u16>))| {
        let upstream = Address::parse(peer);
        // nginx writes these two also for attempts that failed (ngx_http_upstream_next, 1.18 to 1.31); others are the upstream's own.
        let answered = said.is_some_and(|said| !matches!(said, 502 | 504));
        let outcome = if answered { Outcome::Ok } else { Outcome::Unknown };
        let address = upstream.as_ref().and_then(Address::ip);
        let attempt = unsaid(upstream, Some(peer), *said, outcome);
        match address {
            Some(address) if index == last && *said == Some(status) => {
                let candidates: Vec<_> = flows.towards(address, window).filter(sent).collect();
                on(attempt, &candidates, status, window)
            }
            _ => attempt,
        }
    };
    group.logged.iter().enumerate().map(one).collect()
}

/// The attempt at a server that is known by its answer on the wire only.
pub(super) fn answered(status: u16, window: At, flows: &Flows) -> Option<Attempt> {
    let sent = |flow: &Cow<'_, Flow>| status_line(flow, status, window).is_some();
    let candidates: Vec<_> = flows.seen_within(window).filter(sent).collect();
    let first = candidates.first()?;
    let upstream = Some(first.upstream).filter(|one| candidates.iter().all(|flow| flow.upstream == *one));
    let name = upstream.map(|upstream| upstream.to_string());
    let attempt = unsaid(upstream.map(Address::Ip), name.as_deref(), None, Outcome::Unknown);
    Some(on(attempt, &candidates, status, window))
}

/// The attempt on the connections on which the answer was seen.
fn on(attempt: Attempt, candidates: &[Cow<'_, Flow>], status: u16, window: At) -> Attempt {
    let flow = match candidates {
        [] => return attempt,
        [only] => Joined::One(Flow::clone(only)),
        several => Joined::Several(several.iter().map(|flow| Flow::clone(flow)).collect()),
    };
    let started = flow.one().and_then(|flow| {
        let answered = status_line(flow, status, window)?;
        let asked = flow.packets_to_upstream().filter(|(event, packet)| {
            matches!(packet.content, Content::HttpRequest { .. }) && event.at.latest <= answered.at.latest
        });
        Some(asked.last().map(|(event, _)| event)?.at.earliest)
    });
    Attempt { flow, started, outcome: Outcome::Ok, ..attempt }
}

/// The upstream's status line.
fn status_line(flow: &Flow, status: u16, window: At) -> Option<&Event> {
    flow.packets_from_upstream().find_map(|(event, packet)| match packet.content {
        Content::HttpStatus { code, .. } if code == status && event.at.overlaps(&window) => Some(event),
        _ => None,
    })
}
