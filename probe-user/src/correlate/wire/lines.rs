//! Lines of nginx's error log, and what the packets show of the same attempts.

use super::{Answered, Held, Wires, made, one_of};
use crate::{
    correlate::{attempts::ends_attempt, lines},
    model::{
        attempt::{Attempt, Link, Outcome},
        case::CaseKind,
        complaint::{Complaint, Message, Phase},
        net::Address,
        nginx::ErrorLine,
        time::At,
        wire::WireId,
    },
};

/// nginx's time of a line, and that of the packets, differ by less than this.
const SLACK_NS: u64 = 5_000_000;

impl Wires {
    /// What the packets show of the attempts that these lines speak of is theirs now; also the answer, where only one fits.
    pub(in crate::correlate) fn claim(&mut self, group: &mut lines::LineGroup, statuses: &[u16]) {
        let mut answers: Vec<WireId> = Vec::new();
        for line in group.lines.iter().filter(|line| ends_attempt(line.complaint.message)) {
            let Some(upstream) = lines::peer_of(&line.line).as_deref().and_then(Address::parse).and_then(|a| a.ip())
            else {
                continue;
            };
            let at = line.event.at;
            let window = At::between(at.earliest.minus_ns(SLACK_NS), at.latest.plus_ns(SLACK_NS));
            let can_be = |held: &&Held| {
                !held.told
                    && held.attempt.upstream == upstream
                    && held.attempt.ended.overlaps(&window)
                    && fits(&line.complaint, held.attempt.outcome)
                    && same_request(&line.line, held)
                    && self.made_for_the_request_of(&line.line, held)
            };
            let mut fitting: Vec<&Held> = self.attempts.values().filter(can_be).collect();
            fitting.sort_by_key(|held| (held.attempt.ended, held.attempt.id));
            let Some(first) = fitting.first().map(|held| held.attempt.id) else { continue };
            // Attempts for one and the same request failed in the order of its lines.
            if let [one] = fitting[0].attempt.made_for.as_slice()
                && fitting.iter().all(|held| held.attempt.made_for.as_slice() == [*one])
            {
                fitting.truncate(1);
            }
            group.seen.extend(one_of(&fitting).map(|attempt| (line.event.id, attempt)));
            if let [only] = fitting.as_slice() {
                answers = match only.attempt.made_for.as_slice() {
                    [one] => vec![*one],
                    _ => self.answered_by_its_failure(only, statuses),
                };
            } else {
                answers.clear();
            }
            // As many lines as attempts: each line takes one, whichever it is.
            self.attempts.remove(&first);
        }
        if answers.is_empty() {
            answers = self.answers_of(group, statuses);
        }
        let certain = answers.len() == 1;
        let Some(answered) = answers.first().and_then(|id| self.answers.get_mut(id)).filter(|a| !a.told) else {
            return;
        };
        answered.told = true;
        group.status = group.status.or(answered.answer.status);
        if certain {
            // What went well leaves no line.
            let answer = answered.answer.id;
            let well = |held: &&Held| {
                held.attempt.made_for.as_slice() == [answer] && held.attempt.outcome == Outcome::Ok && !held.told
            };
            let mut well: Vec<&Held> = self.attempts.values().filter(well).collect();
            well.sort_by_key(|held| (held.attempt.started, held.attempt.id));
            group.well = well.iter().map(|held| made(held)).collect();
            let names: Vec<WireId> = well.iter().map(|held| held.attempt.id).collect();
            for name in names {
                self.attempts.remove(&name);
            }
            group.client = group.client.or(Some(answered.answer.client));
            group.at = answered.event.at;
            group.decided_by = answered.event.clone();
        }
        group.kind = match group.status {
            Some(status) if !statuses.contains(&status) => CaseKind::NearMiss,
            // The access log's word: what does not begin like HTTP has no status.
            None => group.kind,
            Some(_) => CaseKind::Incident,
        };
    }

    /// Whether the attempt can have been made for the request of this line, by what is known of those it can have been made for. One
    /// without a word of its own (a refused connection) is told by nothing else.
    fn made_for_the_request_of(&self, line: &ErrorLine, held: &Held) -> bool {
        let known = held.attempt.made_for.iter().filter_map(|id| self.answers.get(id));
        let can_be =
            |answered: &Answered| asked_alike(line, answered).is_none_or(|same| same && of_client(line, answered));
        let mut known = known.peekable();
        known.peek().is_none() || known.any(can_be)
    }

    /// The answers that can be this group's, by what was asked, by whom and when.
    fn answers_of(&self, group: &lines::LineGroup, statuses: &[u16]) -> Vec<WireId> {
        let Some(line) = group.lines.last() else { return Vec::new() };
        let window = At::between(line.event.at.earliest.minus_ns(SLACK_NS), line.event.at.latest.plus_ns(SLACK_NS));
        let fitting = self.answers.values().filter(|answered| {
            let answer = &answered.answer;
            let status = answer.status.is_some_and(|status| statuses.contains(&status));
            let client = of_client(&line.line, answered);
            let asked = asked_alike(&line.line, answered) != Some(false);
            !answered.told
                && status
                && group.status.is_none_or(|status| answer.status == Some(status))
                && client
                && asked
                && answered.event.at.overlaps(&window)
        });
        fitting.map(|answered| answered.answer.id).collect()
    }
}

/// Whether what was asked is the request of the line; `None`: one of them is not known.
fn asked_alike(line: &ErrorLine, answered: &Answered) -> Option<bool> {
    let (logged, asked) = (line.request.as_ref()?, &answered.answer.request.as_ref()?.line);
    Some(if is_cut(asked) { logged.starts_with(before_query(asked)) } else { logged == asked })
}

/// The capture has not the whole of this request line (`tcpdump -s 96`).
fn is_cut(asked: &str) -> bool {
    let version = asked.rsplit(' ').next().unwrap_or_default();
    !(version.starts_with("HTTP/") && version.len() == "HTTP/1.1".len())
}

/// What is redacted in a query depends on where it was cut.
fn before_query(text: &str) -> &str {
    text.split('?').next().unwrap_or(text)
}

/// Whether this answer went to the client of the line.
fn of_client(line: &ErrorLine, answered: &Answered) -> bool {
    line.client.as_deref().is_none_or(|text| text == answered.answer.client.ip().to_string())
}

/// Whether an attempt that ended like this is what the line complains of.
fn fits(complaint: &Complaint, outcome: Outcome) -> bool {
    match complaint.message {
        Message::ConnectFailed | Message::ConnectFailedAtOnce => {
            matches!(outcome, Outcome::Refused | Outcome::Unreachable | Outcome::TimeoutConnect)
        }
        Message::TimedOut if complaint.phase == Phase::Connecting => outcome == Outcome::TimeoutConnect,
        Message::TimedOut => matches!(outcome, Outcome::TimeoutRead | Outcome::TimeoutSend | Outcome::Unknown),
        Message::PrematurelyClosed | Message::ReceiveFailed | Message::SendFailed => {
            matches!(outcome, Outcome::Closed | Outcome::Reset)
        }
        Message::TooBigHeader | Message::InvalidHeader => {
            // A header that is whole on the wire may be none to nginx.
            !matches!(outcome, Outcome::Refused | Outcome::Unreachable | Outcome::TimeoutConnect)
        }
        _ => outcome != Outcome::Ok,
    }
}

/// Whether the attempt can have been made for the request of this line: what nginx says it asked, or else the method, and the end of the
/// path, which a prefix of nginx's leaves alone.
fn same_request(line: &ErrorLine, held: &Held) -> bool {
    let (Some(logged), Some(asked)) = (line.request.as_deref(), &held.attempt.request) else { return true };
    let parts = |line: &str| {
        let (method, rest) = line.split_once(' ').unwrap_or((line, ""));
        let uri = rest.rsplit_once(' ').map_or(rest, |(uri, _)| uri);
        (method.to_owned(), uri.to_owned())
    };
    let end = |uri: &str| {
        let path = uri.split('?').next().unwrap_or(uri);
        let last = path.rfind('/').map_or(0, |slash| slash + 1);
        path.get(last..).unwrap_or_default().to_owned()
    };
    let (method, uri) = parts(&asked.line);
    // `upstream: "http://10.0.0.1:8000/cart"`: the address, and then what was asked of it.
    let upstream = line.upstream.as_deref().and_then(|url| url.split_once("://")).map(|(_, rest)| rest);
    let told = upstream.and_then(|rest| rest.find('/').and_then(|slash| rest.get(slash..)));
    let (logged_method, logged_uri) = parts(logged);
    if is_cut(&asked.line) {
        return told.map_or(logged_method == method, |told| told.starts_with(before_query(&uri)));
    }
    if told.is_some_and(|told| told == uri) {
        return true;
    }
    let inner = line.subrequest.as_deref().filter(|uri| !uri.is_empty());
    (inner.is_some() || logged_method == method) && end(inner.unwrap_or(&logged_uri)) == end(&uri)
}

/// The attempts as the log tells them, completed by what the packets show.
pub(in crate::correlate) fn with_lines(mut attempts: Vec<Attempt>, group: &lines::LineGroup) -> Vec<Attempt> {
    for attempt in &mut attempts {
        let Some((line, _)) = &attempt.complaint else { continue };
        let Some((_, shown)) = group.seen.iter().find(|(id, _)| *id == line.id) else { continue };
        let (complaint, errno, peer) = (attempt.complaint.take(), attempt.errno, attempt.peer_name.take());
        let outcome = match attempt.outcome {
            Outcome::Unknown => shown.outcome,
            told => told,
        };
        *attempt = Attempt { complaint, errno, outcome, peer_name: peer, link: Link::Inferred, ..shown.clone() };
    }
    // Where the access log lists the attempts, those are among them.
    if group.logged.is_empty() {
        for well in &group.well {
            // One that was passed over (`proxy_next_upstream http_503`) came before those that failed after it.
            let later = |other: &Attempt| other.started.zip(well.started).is_some_and(|(other, well)| other > well);
            let place = attempts.iter().position(later).unwrap_or(attempts.len());
            attempts.insert(place, well.clone());
        }
    }
    attempts
}
