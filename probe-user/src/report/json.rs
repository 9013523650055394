//! JSON lines, as the contract has them: every documented field is there, `null` where it is not known.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};

use super::{place::Place, redact, timeline};
use crate::model::{
    attempt::Attempt,
    case::{Case, CaseKind},
    coverage::Sight,
    evidence::{Fact, Weight},
    host::NginxInstance,
    time::{Moment, WallClock},
    verdict::{Confidence, Explanation, Need, Verdict},
};

/// The version of the incident's form.
pub const SCHEMA: u32 = 1;

/// One line, without its line end.
///
/// A value that cannot be written does not exist among the types of this module; should one appear, the line says so.
#[must_use]
pub fn line(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| {
        format!(
            "{{\"type\":\"notice\",\"what\":\"unwritable\",\"count\":1,\"text\":\"{}\"}}",
            redact::text(&error.to_string())
        )
    })
}

/// `ready`: every hook is attached and every capture is open.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename = "ready")]
pub struct Ready {
    /// The program's version.
    pub version: String,
    /// Every nginx that is watched.
    pub nginx: Vec<ReadyNginx>,
    /// What can be seen.
    pub sources: Vec<ReadySource>,
}

/// An nginx in [`Ready`].
#[derive(Clone, Debug, Serialize)]
pub struct ReadyNginx {
    /// Its master.
    pub master: u32,
    /// Its workers.
    pub workers: Vec<u32>,
    /// Its version.
    pub version: Option<String>,
    /// Its network namespace (inode number).
    pub netns: Option<u32>,
}

impl From<&NginxInstance> for ReadyNginx {
    fn from(instance: &NginxInstance) -> Self {
        Self {
            master: instance.master.0,
            workers: instance.workers.iter().map(|worker| worker.0).collect(),
            version: instance.version.clone(),
            netns: instance.netns,
        }
    }
}

/// A source in [`Ready`].
#[derive(Clone, Debug, Serialize)]
pub struct ReadySource {
    /// Its name.
    pub name: String,
    /// `on`, `off` or `degraded`.
    pub state: &'static str,
    /// Why not fully.
    pub why: Option<String>,
}

/// The contract's word for how well a source sees.
#[must_use]
pub const fn sight(sight: Sight) -> &'static str {
    match sight {
        Sight::On => "on",
        Sight::Degraded => "degraded",
        Sight::Off => "off",
    }
}

/// `notice`: something was lost, reloaded, rotated, detached.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename = "notice")]
pub struct Notice {
    /// What kind of thing.
    pub what: String,
    /// How many.
    pub count: u64,
    /// In words.
    pub text: String,
}

/// The `notice` of failures that were counted, and not explained one by one.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename = "notice")]
pub struct Folded {
    /// `folded`.
    pub what: &'static str,
    /// How many.
    pub count: u64,
    /// In words.
    pub text: String,
    /// The incident or near miss that they are like.
    pub like: String,
}

/// `summary`: once, at the end.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(tag = "type", rename = "summary")]
pub struct Summary {
    /// Gateway failures.
    pub incidents: u64,
    /// Near misses.
    pub near_misses: u64,
    /// Those of both that were counted only: in a storm, where they are like one of the same second that was explained.
    pub folded: u64,
    /// How many of each cause, near misses included, and without those that were counted only.
    pub by_cause: BTreeMap<&'static str, u64>,
    /// Kernel records lost.
    pub events_lost: u64,
    /// Packets dropped by the captures.
    pub packets_dropped: u64,
    /// How long it ran, seconds.
    pub duration_s: f64,
}

/// A word of the contract or of the catalogue. Owned where a line was read back.
pub type Word = Cow<'static, str>;

/// `incident` and `near_miss`. Also what is read back (`report`): a field that another version left out is as if it were not known.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Incident {
    /// Which of the two.
    #[serde(rename = "type")]
    pub kind: Word,
    /// The version of this form.
    pub schema: u32,
    /// The case's name.
    pub id: String,
    /// When nginx decided, RFC 3339 in UTC with nanoseconds.
    pub time: Option<String>,
    /// What the client saw.
    pub status: Option<u16>,
    /// What the client asked for.
    pub request: Request,
    /// Who served it.
    pub nginx: Nginx,
    /// The attempts in order.
    pub attempts: Vec<AttemptLine>,
    /// The judgement.
    pub verdict: VerdictLine,
    /// How the attempts are tied to the request.
    pub link: Word,
    /// What it rests on, in time order.
    pub evidence: Vec<EvidenceLine>,
    /// What was lost meanwhile.
    pub losses: Losses,
    /// The failure was in a subrequest.
    pub subrequest: bool,
    /// Where its packets lie, in words or as a path, where whoever read it back knows that. No part of the line.
    #[serde(skip)]
    pub packets_at: Option<String>,
}

/// The client's request.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Request {
    /// `GET`.
    pub method: Option<String>,
    /// The URI, the values of its query hidden.
    pub uri: Option<String>,
    /// The Host header.
    pub host: Option<String>,
    /// `HTTP/1.1`.
    pub protocol: Option<String>,
    /// `IP:port`.
    pub client: Option<String>,
    /// The client's address where its port is not known.
    pub client_address: Option<String>,
    /// nginx's number of the client's connection.
    pub connection: Option<u64>,
}

/// The nginx.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Nginx {
    /// The worker.
    pub pid: Option<u32>,
    /// Its version.
    pub version: Option<String>,
}

/// An attempt.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AttemptLine {
    /// `IP:port`, `[IPv6]:port`, `unix:/path`.
    pub upstream: Option<String>,
    /// nginx's side.
    pub local: Option<String>,
    /// The connection had served requests before.
    pub reused: Option<bool>,
    /// How many.
    pub requests_before: Option<u64>,
    /// How long it had been idle.
    pub idle_ms: Option<f64>,
    /// When it began.
    pub started: Option<String>,
    /// How long it took.
    pub duration_us: Option<u64>,
    /// What became of it.
    pub outcome: Word,
    /// `ECONNRESET`.
    pub errno: Option<String>,
    /// Bytes sent for this request.
    pub bytes_sent: Option<u64>,
    /// Bytes received for this request.
    pub bytes_received: Option<u64>,
    /// nginx's status for it.
    pub status: Option<u16>,
    /// The name nginx has for the peer: a group's when no peer was taken.
    pub peer: Option<String>,
}

/// The judgement.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct VerdictLine {
    /// The cause's id; `unknown` when none is proved or two are proved equally well.
    pub cause: Word,
    /// How sure. Of `unknown` it is `possible`: nothing is claimed.
    pub confidence: Word,
    /// What happened, in a sentence or two.
    pub summary: String,
    /// What to do, most effective first.
    pub fix: Vec<String>,
    /// Causes that are not excluded; for a contested verdict the ones that stand.
    pub rivals: Vec<Word>,
    /// What could not be seen and would have been needed.
    pub missing: Vec<Missing>,
    /// Cases whose failures caused this one, by id.
    pub blamed: Vec<String>,
    /// Several causes are proved equally well.
    pub contested: bool,
}

/// Something that would have been needed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Missing {
    /// Who would have seen it; `null`: nothing of ours could.
    pub sensor: Option<Word>,
    /// What.
    pub what: String,
}

/// A piece of evidence.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EvidenceLine {
    /// Microseconds after the decision (negative: before).
    pub t_us: i64,
    /// Where it was seen.
    pub source: Word,
    /// What happened.
    pub text: String,
    /// Where the raw thing is kept.
    #[serde(rename = "ref")]
    pub reference: Option<String>,
    /// How uncertain its time is, microseconds.
    pub uncertain_us: u64,
    /// How much it proves: `direct`, `symptom`, `fits`; `null`: context.
    pub weight: Option<Word>,
    /// It speaks against the verdict.
    pub against: bool,
    /// Where it happened; `null`: nowhere in particular.
    pub place: Option<Place>,
}

/// What was lost.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Losses {
    /// Kernel records.
    pub events_lost: u64,
    /// Packets.
    pub packets_dropped: u64,
}

/// A case and its verdict as the contract's `incident` or `near_miss`.
#[must_use]
pub fn incident(case: &Case, verdict: &Verdict, clock: WallClock) -> Incident {
    let request = &case.request;
    let clean = |text: &Option<String>| text.as_deref().map(redact::text);
    Incident {
        kind: match case.kind {
            CaseKind::Incident => "incident".into(),
            CaseKind::NearMiss => "near_miss".into(),
        },
        schema: SCHEMA,
        id: case.id.0.clone(),
        time: rfc3339(clock, timeline::origin(case)),
        status: case.status,
        request: Request {
            method: clean(&request.method),
            uri: request.uri.as_deref().map(redact::uri),
            host: clean(&request.host),
            protocol: clean(&request.protocol),
            client: request.client.map(|client| client.to_string()),
            client_address: clean(&request.client_address),
            connection: request.connection,
        },
        nginx: Nginx { pid: case.worker.map(|worker| worker.0), version: clean(&case.nginx_version) },
        attempts: case.attempts.iter().map(|attempt| attempt_line(attempt, clock)).collect(),
        verdict: verdict_line(verdict),
        link: case.link.name().into(),
        evidence: timeline::rows(case, verdict)
            .into_iter()
            .map(|row| EvidenceLine {
                t_us: row.t_us,
                source: row.source.into(),
                text: row.text,
                reference: row.reference,
                uncertain_us: row.uncertain_us,
                weight: row.weight.map(|of| weight(of).into()),
                against: row.against,
                place: row.place,
            })
            .collect(),
        losses: Losses { events_lost: case.coverage.events_lost, packets_dropped: case.coverage.packets_dropped },
        subrequest: case.subrequest,
        packets_at: None,
    }
}

/// A moment as RFC 3339 in UTC with nanoseconds; `None` outside the years that form can say.
#[must_use]
pub fn rfc3339(clock: WallClock, moment: Moment) -> Option<String> {
    jiff::Timestamp::from_nanosecond(clock.unix_ns(moment)).ok().map(|time| format!("{time:.9}"))
}

fn attempt_line(attempt: &Attempt, clock: WallClock) -> AttemptLine {
    AttemptLine {
        upstream: attempt.upstream.as_ref().map(|upstream| redact::text(&upstream.to_string())),
        local: attempt.flow.one().and_then(|flow| flow.local).map(|local| local.to_string()),
        reused: attempt.reused,
        requests_before: attempt.requests_before,
        idle_ms: attempt.idle_us.map(milliseconds),
        started: attempt.started.and_then(|started| rfc3339(clock, started)),
        duration_us: attempt.duration_us,
        outcome: attempt.outcome.name().into(),
        errno: attempt.errno.map(|errno| errno.to_string()),
        bytes_sent: attempt.bytes_sent,
        bytes_received: attempt.bytes_received,
        status: attempt.status,
        peer: attempt.peer_name.as_deref().map(redact::text),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a double holds microseconds exactly for 285 years")]
fn milliseconds(us: u64) -> f64 {
    us as f64 / 1_000.0
}

const fn weight(weight: Weight) -> &'static str {
    match weight {
        Weight::Fits => "fits",
        Weight::Symptom => "symptom",
        Weight::Direct => "direct",
    }
}

fn verdict_line(verdict: &Verdict) -> VerdictLine {
    match verdict {
        Verdict::Explained(explanation) => VerdictLine {
            cause: explanation.cause.into(),
            confidence: explanation.confidence.name().into(),
            summary: redact::text(&explanation.summary),
            fix: clean(&explanation.fix),
            rivals: explanation.rivals.iter().copied().map(Word::from).collect(),
            missing: missing(&explanation.blind),
            blamed: blamed(explanation),
            contested: false,
        },
        Verdict::Contested(explanations) => VerdictLine {
            cause: super::UNKNOWN.into(),
            confidence: Confidence::Possible.name().into(),
            summary: redact::text(&super::contested_summary(explanations)),
            fix: explanations.iter().flat_map(|explanation| clean(&explanation.fix)).collect(),
            rivals: explanations.iter().map(|explanation| explanation.cause.into()).collect(),
            missing: explanations.iter().flat_map(|explanation| missing(&explanation.blind)).collect(),
            blamed: explanations.iter().flat_map(blamed).collect(),
            contested: true,
        },
        Verdict::Unexplained { needed, summary, fix, .. } => VerdictLine {
            cause: super::UNKNOWN.into(),
            confidence: Confidence::Possible.name().into(),
            summary: redact::text(summary),
            fix: clean(fix),
            rivals: Vec::new(),
            missing: missing(needed),
            blamed: Vec::new(),
            contested: false,
        },
    }
}

fn clean(texts: &[String]) -> Vec<String> {
    texts.iter().map(|text| redact::text(text)).collect()
}

fn missing(needs: &[Need]) -> Vec<Missing> {
    needs
        .iter()
        .map(|need| Missing { sensor: need.sensor.map(|sensor| sensor.name().into()), what: redact::text(&need.what) })
        .collect()
}

fn blamed(explanation: &Explanation) -> Vec<String> {
    let mut cases: Vec<Cow<'_, str>> = Vec::new();
    for evidence in &explanation.because {
        if let Fact::PeerDisabled { case, .. } = &evidence.fact
            && !cases.iter().any(|known| known == case)
        {
            cases.push(Cow::Borrowed(case));
        }
    }
    cases.into_iter().map(Cow::into_owned).collect()
}

#[cfg(test)]
mod tests;
