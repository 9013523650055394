//! The events of a case that matter, as rows in time order: what the text shows and the JSON carries.

use std::collections::BTreeMap;

use super::{place::Place, wording};
use crate::model::{
    case::Case,
    event::{Body, Event, EventId},
    evidence::{Evidence, Fact, Weight},
    packet::{Content, PacketBody},
    socket::{SocketChange, TcpState},
    time::{At, Moment},
    verdict::Verdict,
};

/// More rows than this nobody reads.
pub const MOST_ROWS: usize = 40;
/// Of a long-lived connection only what happened shortly before the attempt matters.
const BEFORE_ATTEMPT_NS: u64 = 1_000_000_000;

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Microseconds after nginx decided (negative: before).
    pub t_us: i64,
    /// How long the time of it is uncertain, microseconds: 0 for kernel records, a second for a log line.
    pub uncertain_us: u64,
    /// The contract's word for where it was seen.
    pub source: &'static str,
    /// What happened.
    pub text: String,
    /// Where the raw thing is kept.
    pub reference: Option<String>,
    /// How much it proves, if the verdict rests on it.
    pub weight: Option<Weight>,
    /// It speaks against the verdict.
    pub against: bool,
    /// Where it happened.
    pub place: Option<Place>,
}

/// The moment nginx decided: where offsets count from.
#[must_use]
pub fn origin(case: &Case) -> Moment {
    case.decided.earliest
}

/// The rows: every event that the verdict rests on, and as many others as fit, in time order.
#[must_use]
pub fn rows(case: &Case, verdict: &Verdict) -> Vec<Row> {
    let events = index(case);
    let claims = claims(verdict);
    let origin = origin(case);
    let mut rows: Vec<((Moment, EventId), Row)> = Vec::new();
    for (id, (at, event)) in &events {
        let of_event: Vec<&(&Evidence, bool)> = claims.iter().filter(|(e, _)| e.events.contains(id)).collect();
        if of_event.is_empty() && !event.is_some_and(|event| matters(event, case)) && *id != case.decided_by {
            continue;
        }
        let Some(Told { source, mut text, place }) = described(case, *id, *event) else { continue };
        for (claim, _) in of_event.iter().filter(|(claim, _)| claim.events.first() == Some(id)) {
            if let Some(note) = wording::note(&claim.fact) {
                text.push_str(" - ");
                text.push_str(&note);
            }
        }
        rows.push((
            (at.earliest, *id),
            Row {
                t_us: offset(*at, origin),
                uncertain_us: at.latest.since_ns(at.earliest) / 1_000,
                source,
                text,
                reference: event.and_then(reference),
                weight: of_event.iter().map(|(claim, _)| claim.weight).max(),
                against: !of_event.is_empty() && of_event.iter().all(|(_, against)| *against),
                place,
            },
        ));
    }
    for (claim, against) in &claims {
        if !claim.events.iter().any(|id| events.contains_key(id)) {
            rows.push(((case.decided.earliest, case.decided_by), homeless(claim, *against)));
        }
    }
    rows.sort_by(|(a, x), (b, y)| (x.t_us, a).cmp(&(y.t_us, b)));
    let rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
    bounded(rows)
}

/// Everything in the case by its name.
fn index(case: &Case) -> BTreeMap<EventId, (At, Option<&Event>)> {
    let of_attempts = case.attempts.iter().flat_map(|attempt| {
        let flow = attempt.flow.one().into_iter().flat_map(|flow| flow.events.iter());
        flow.chain(attempt.syscalls.iter()).chain(attempt.complaint.iter().map(|(event, _)| event))
    });
    let of_case = case.complaints.iter().map(|(event, _)| event).chain(case.processes.iter());
    let mut events: BTreeMap<EventId, (At, Option<&Event>)> =
        of_attempts.chain(of_case).map(|event| (event.id, (event.at, Some(event)))).collect();
    for (id, at, _) in &case.host {
        events.entry(*id).or_insert((*at, None));
    }
    events.entry(case.decided_by).or_insert((case.decided, None));
    events
}

/// What the verdict rests on, and whether it speaks against it.
fn claims(verdict: &Verdict) -> Vec<(&Evidence, bool)> {
    match verdict {
        Verdict::Explained(explanation) => explanation
            .because
            .iter()
            .map(|e| (e, false))
            .chain(explanation.against.iter().map(|e| (e, true)))
            .collect(),
        Verdict::Contested(explanations) => {
            explanations.iter().flat_map(|explanation| explanation.because.iter().map(|e| (e, false))).collect()
        }
        Verdict::Unexplained { seen, .. } => seen.iter().map(|e| (e, false)).collect(),
    }
}

/// An event in words.
struct Told {
    source: &'static str,
    text: String,
    place: Option<Place>,
}

/// An event or a host fact in words.
fn described(case: &Case, id: EventId, event: Option<&Event>) -> Option<Told> {
    let told = |event: &Event| {
        let (source, text) = wording::event(event, case)?;
        Some(Told { source, text, place: Place::of(event, case) })
    };
    if let Some(event) = event {
        return told(event);
    }
    if let Some((_, at, fact)) = case.host.iter().find(|(host, ..)| *host == id) {
        let event = Event { id, at: *at, source: crate::model::event::Source::Probe, body: Body::from(fact.clone()) };
        return told(&event);
    }
    let status = case.status.map_or_else(|| "the failure".to_owned(), |status| status.to_string());
    if case.by_wire {
        // nginx itself was not heard: what was seen is the answer's packet, or the end of the last attempt.
        let text = match case.status {
            Some(status) => format!("the request is answered {status}"),
            None => "the attempt has failed".to_owned(),
        };
        return Some(Told { source: "packet", text, place: Some(Place::decision(case, &status)) });
    }
    let text = format!("nginx decides {status}");
    Some(Told { source: "nginx", text, place: Some(Place::decision(case, &status)) })
}

/// Whether an event is worth a row although the verdict does not rest on it.
fn matters(event: &Event, case: &Case) -> bool {
    let began = case.attempts.iter().filter_map(|attempt| attempt.started).min();
    let recent = began.is_none_or(|began| event.at.latest.plus_ns(BEFORE_ATTEMPT_NS) >= began);
    recent
        && match &event.body {
            Body::Packet(packet) => match &packet.body {
                PacketBody::Tcp(tcp) => {
                    let flags = tcp.header.flags;
                    flags.syn()
                        || flags.fin()
                        || flags.rst()
                        || matches!(
                            tcp.content,
                            Content::HttpStatus { .. } | Content::HttpRequest { .. } | Content::Foreign(_)
                        )
                        || matches!(tcp.content, Content::Tls { alert: Some(_), .. })
                }
                PacketBody::Icmp(_) => true,
            },
            Body::Socket(socket) => !matches!(
                socket.change,
                SocketChange::SynAckRetransmitted | SocketChange::State { from: TcpState::Listen }
            ),
            Body::Drop(_) | Body::Syscall(_) | Body::Nginx(_) | Body::ErrorLine(_) => true,
            Body::Process(_) | Body::AccessLine(_) | Body::Host(_) | Body::Coverage(_) | Body::Wire(_) => false,
        }
}

/// The row of a fact that rests on no event of the case.
fn homeless(claim: &Evidence, against: bool) -> Row {
    let (source, t_us) = match &claim.fact {
        Fact::PeerDisabled { before_us, .. } | Fact::StoredBefore { before_us, .. } => {
            ("nginx", -i64::try_from(*before_us).unwrap_or(i64::MAX))
        }
        Fact::OpenFiles { .. } | Fact::ListensNearby { .. } | Fact::ListensThere { .. } | Fact::AcceptQueue { .. } => {
            ("host", 0)
        }
        Fact::FormerListener { ago_us, .. } => ("process", -i64::try_from(ago_us.unwrap_or(0)).unwrap_or(i64::MAX)),
        Fact::NginxTimer { .. } | Fact::NameMoved { .. } | Fact::Configured { .. } => ("config", 0),
        _ => ("nginx", 0),
    };
    Row {
        t_us,
        uncertain_us: 0,
        source,
        text: wording::fact(&claim.fact),
        reference: None,
        weight: Some(claim.weight),
        against,
        place: None,
    }
}

/// From the decision to the event; where the two can be the same moment, nothing is claimed.
fn offset(at: At, origin: Moment) -> i64 {
    if at.latest < origin {
        at.latest.micros_from(origin)
    } else if at.earliest > origin {
        at.earliest.micros_from(origin)
    } else {
        0
    }
}

fn reference(event: &Event) -> Option<String> {
    match &event.body {
        Body::Packet(packet) => Some(format!("packets.pcapng#{}", packet.reference.0)),
        _ => None,
    }
}

/// Leaves out the rows farthest from the decision that nothing rests on.
fn bounded(rows: Vec<Row>) -> Vec<Row> {
    let resting = rows.iter().filter(|row| row.weight.is_some()).count();
    let mut room = MOST_ROWS.saturating_sub(resting);
    let mut loose: Vec<usize> = (0..rows.len()).filter(|index| rows[*index].weight.is_none()).collect();
    loose.sort_by_key(|index| (rows[*index].t_us.unsigned_abs(), *index));
    let mut keep = vec![true; rows.len()];
    for index in loose {
        keep[index] = room > 0;
        room = room.saturating_sub(1);
    }
    rows.into_iter().zip(keep).filter_map(|(row, keep)| keep.then_some(row)).collect()
}
