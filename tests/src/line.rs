//! The JSON lines of `probe502 watch --json`, read strictly: every field of the contract must be there (null where the contract allows
//! it), further fields may be.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// One line.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Line {
    /// Every hook is attached, every capture open.
    Ready(Ready),
    /// A gateway failure.
    Incident(Incident),
    /// A failure the client did not see.
    NearMiss(Incident),
    /// Something was lost, reloaded, rotated, detached.
    Notice(Notice),
    /// The end.
    Summary(Summary),
}

/// A field that must be there but may be null. (serde alone takes a missing `Option` for null.)
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(deserializer)
}

/// `ready`.
#[derive(Debug, Clone, Deserialize)]
pub struct Ready {
    /// The program's version.
    pub version: String,
    /// Every nginx found.
    pub nginx: Vec<ReadyNginx>,
    /// What can be seen.
    pub sources: Vec<Source>,
}

/// One nginx of `ready`.
#[derive(Debug, Clone, Deserialize)]
pub struct ReadyNginx {
    /// The master's pid.
    #[serde(deserialize_with = "present")]
    pub master: Option<u32>,
    /// The workers' pids.
    pub workers: Vec<u32>,
    /// Its version.
    #[serde(deserialize_with = "present")]
    pub version: Option<String>,
    /// Its network namespace, in whatever form.
    pub netns: serde_json::Value,
}

/// One source of `ready`.
#[derive(Debug, Clone, Deserialize)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// Whether it sees.
    pub state: SourceState,
    /// Why not.
    #[serde(deserialize_with = "present")]
    pub why: Option<String>,
}

/// Whether a source sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    /// It does.
    On,
    /// It does not.
    Off,
    /// In part.
    Degraded,
}

/// `incident` and `near_miss`.
#[derive(Debug, Clone, Deserialize)]
pub struct Incident {
    /// The schema's number.
    pub schema: u32,
    /// The incident's name.
    pub id: String,
    /// When nginx decided, RFC 3339.
    #[serde(deserialize_with = "present")]
    pub time: Option<String>,
    /// What the client saw.
    #[serde(deserialize_with = "present")]
    pub status: Option<u16>,
    /// The request.
    pub request: Request,
    /// The nginx.
    pub nginx: IncidentNginx,
    /// What nginx tried.
    pub attempts: Vec<Attempt>,
    /// The judgement.
    pub verdict: Verdict,
    /// How the attempt is tied to the request.
    pub link: Link,
    /// What the judgement rests on, in time order.
    pub evidence: Vec<Evidence>,
    /// What was not seen.
    pub losses: Losses,
}

/// `request`.
#[derive(Debug, Clone, Deserialize)]
pub struct Request {
    /// The method.
    #[serde(deserialize_with = "present")]
    pub method: Option<String>,
    /// The target as the client sent it.
    #[serde(deserialize_with = "present")]
    pub uri: Option<String>,
    /// The Host.
    #[serde(deserialize_with = "present")]
    pub host: Option<String>,
    /// The protocol.
    #[serde(deserialize_with = "present")]
    pub protocol: Option<String>,
    /// The client's address and port.
    #[serde(deserialize_with = "present")]
    pub client: Option<String>,
    /// nginx's number of the client's connection.
    #[serde(deserialize_with = "present")]
    pub connection: Option<u64>,
}

/// `nginx` of an incident.
#[derive(Debug, Clone, Deserialize)]
pub struct IncidentNginx {
    /// The worker's pid.
    #[serde(deserialize_with = "present")]
    pub pid: Option<u32>,
    /// Its version.
    #[serde(deserialize_with = "present")]
    pub version: Option<String>,
}

/// One try.
#[derive(Debug, Clone, Deserialize)]
pub struct Attempt {
    /// The peer.
    #[serde(deserialize_with = "present")]
    pub upstream: Option<String>,
    /// nginx's own end.
    #[serde(deserialize_with = "present")]
    pub local: Option<String>,
    /// Whether the connection had served before.
    #[serde(deserialize_with = "present")]
    pub reused: Option<bool>,
    /// How often.
    #[serde(deserialize_with = "present")]
    pub requests_before: Option<u64>,
    /// How long it had been idle.
    #[serde(deserialize_with = "present")]
    pub idle_ms: Option<f64>,
    /// When it began.
    #[serde(deserialize_with = "present")]
    pub started: Option<String>,
    /// How long it took.
    #[serde(deserialize_with = "present")]
    pub duration_us: Option<f64>,
    /// How it ended.
    pub outcome: Outcome,
    /// The error's name.
    #[serde(deserialize_with = "present")]
    pub errno: Option<String>,
    /// Bytes to the upstream.
    #[serde(deserialize_with = "present")]
    pub bytes_sent: Option<u64>,
    /// Bytes from it.
    #[serde(deserialize_with = "present")]
    pub bytes_received: Option<u64>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the contract's own words")]
pub enum Outcome {
    Refused,
    Unreachable,
    TimeoutConnect,
    LocalError,
    Reset,
    Closed,
    TimeoutRead,
    TimeoutSend,
    BadResponse,
    TlsFailed,
    Ok,
    Unknown,
}

/// The judgement.
#[derive(Debug, Clone, Deserialize)]
pub struct Verdict {
    /// A row of the catalogue.
    pub cause: String,
    /// How sure.
    pub confidence: Confidence,
    /// In words.
    pub summary: String,
    /// What to do.
    pub fix: Vec<String>,
}

/// How sure a verdict is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// Log or timing alone.
    Possible,
    /// The symptom is seen, the cause inferred.
    Likely,
    /// Direct evidence of the cause.
    Confirmed,
}

/// How the attempt is tied to the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Link {
    /// By nginx's own numbers or pointers.
    Exact,
    /// By worker and turn of its event loop.
    Strong,
    /// By time and content.
    Inferred,
}

/// One piece of evidence.
#[derive(Debug, Clone, Deserialize)]
pub struct Evidence {
    /// Microseconds from nginx's decision.
    pub t_us: f64,
    /// Who saw it.
    pub source: EvidenceSource,
    /// What was seen.
    pub text: String,
    /// Where it lies.
    #[serde(rename = "ref", deserialize_with = "present")]
    pub reference: Option<String>,
}

/// Who saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the contract's own words")]
pub enum EvidenceSource {
    Packet,
    Syscall,
    Kernel,
    Process,
    Nginx,
    Log,
    Config,
    Host,
}

/// What was not seen.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Losses {
    /// Kernel records lost.
    pub events_lost: u64,
    /// Packets lost.
    pub packets_dropped: u64,
}

/// `notice`.
#[derive(Debug, Clone, Deserialize)]
pub struct Notice {
    /// Of what kind.
    pub what: String,
    /// How many.
    #[serde(deserialize_with = "present")]
    pub count: Option<u64>,
    /// In words.
    pub text: String,
}

/// `summary`.
#[derive(Debug, Clone, Deserialize)]
pub struct Summary {
    /// Incidents, printed or counted only.
    pub incidents: u64,
    /// Near misses, likewise.
    pub near_misses: u64,
    /// Those of both that were counted only.
    #[serde(default)]
    pub folded: u64,
    /// Both, by cause.
    pub by_cause: BTreeMap<String, u64>,
    /// Kernel records lost.
    pub events_lost: u64,
    /// Packets lost.
    pub packets_dropped: u64,
    /// How long it ran.
    pub duration_s: f64,
}

#[cfg(test)]
mod tests {
    use super::Line;

    #[test]
    fn the_contracts_own_example_is_read() {
        let text = r#"{"type":"incident","schema":1,"id":"20261121T140207.331204-000017","time":"2026-11-21T14:02:07.331204512Z",
            "status":502,
            "request":{"method":"GET","uri":"/cart","host":"shop.example","protocol":"HTTP/1.1","client":"10.0.0.7:51234","connection":41},
            "nginx":{"pid":812,"version":"1.22.1"},
            "attempts":[{"upstream":"127.0.0.1:8000","local":"127.0.0.1:41822","reused":true,"requests_before":14,"idle_ms":5002.1,
                "started":"2026-11-21T14:02:07.330998101Z","duration_us":103,"outcome":"reset","errno":"ECONNRESET",
                "bytes_sent":312,"bytes_received":0}],
            "verdict":{"cause":"keepalive-race","confidence":"confirmed","summary":"...","fix":["..."]},
            "link":"exact",
            "evidence":[{"t_us":-83,"source":"packet","text":"FIN","ref":"packets.pcapng#12"}],
            "losses":{"events_lost":0,"packets_dropped":0}}"#;
        let Line::Incident(incident) = serde_json::from_str(text).unwrap() else { panic!("an incident") };
        assert_eq!(incident.verdict.cause, "keepalive-race");
        let without = text.replace(r#""errno":"ECONNRESET","#, "");
        let error = serde_json::from_str::<Line>(&without).unwrap_err().to_string();
        assert!(error.contains("errno"), "a missing field is an error: {error}");
        let null = text.replace(r#""errno":"ECONNRESET","#, r#""errno":null,"#);
        assert!(serde_json::from_str::<Line>(&null).is_ok());
        assert!(serde_json::from_str::<Line>(&text.replace("\"reset\"", "\"broken\"")).is_err());
    }
}
