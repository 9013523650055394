//! What the probe must say about a fault, and the one comparison.

use std::fmt::Write;
use std::net::SocketAddr;

use anyhow::{Result, bail};

use crate::client::Exchange;
use crate::generalisation;
use crate::line::{Confidence, Incident, Link, Outcome};

/// What must be reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// An incident.
    Incident,
    /// A near miss.
    NearMiss,
    /// Nothing at all.
    Nothing,
}

/// What must be said about one request.
#[derive(Debug, Clone)]
pub struct Expectation {
    /// Whether it must be reported, and as what.
    pub report: Report,
    /// The status the client saw; `None` when it saw none.
    pub status: Option<u16>,
    /// The causes that are right; more than one only where the machine leaves it open.
    pub cause: &'static [&'static str],
    /// The confidences that are right.
    pub confidence: &'static [Confidence],
    /// The links that are right.
    pub link: &'static [Link],
    /// What may be said instead, where less is seen: causes, each with the most that may be said of it. `None`: nothing else may be.
    pub permitted: Option<Vec<(&'static str, Confidence)>>,
    /// The attempts, in order.
    pub attempts: Vec<AttemptExpectation>,
    /// Causes that must not be said: the likeliest mistakes.
    pub never: &'static [&'static str],
    /// A piece of the line nginx writes to its error log for this request; `None`: it writes none.
    pub error_log: Option<&'static str>,
    /// Whether the client's port may stay unknown (null): nginx writes only the address to its error log.
    pub client_may_be_null: bool,
    /// Whether it may stay unknown (null) that a connection was kept: without nginx's own count its counters do not always tell.
    pub reused_may_be_null: bool,
    /// The earlier request of the same fault whose incident this one must name by its id.
    pub blames: Option<usize>,
    /// Pieces that must stand in the summary, the fixes or the evidence.
    pub says: Vec<String>,
    /// Likewise, where nginx itself tells when the attempt began: what happened meanwhile.
    pub says_meanwhile: Vec<String>,
    /// Pieces that must not stand there.
    pub silent: &'static [&'static str],
}

/// What must be said about one attempt.
#[derive(Debug, Clone)]
pub struct AttemptExpectation {
    /// The peer, as the contract writes addresses.
    pub upstream: String,
    /// The outcomes that are right.
    pub outcome: &'static [Outcome],
    /// The errno that is right.
    pub errno: &'static [Option<&'static str>],
    /// Whether the connection had served before.
    pub reused: Option<bool>,
}

impl AttemptExpectation {
    /// An attempt on a fresh connection with one right outcome and errno.
    #[must_use]
    pub fn fresh(upstream: SocketAddr, outcome: &'static [Outcome], errno: &'static [Option<&'static str>]) -> Self {
        Self { upstream: upstream.to_string(), outcome, errno, reused: Some(false) }
    }

    /// The same on a connection that served before.
    #[must_use]
    pub fn reused(upstream: SocketAddr, outcome: &'static [Outcome], errno: &'static [Option<&'static str>]) -> Self {
        Self { reused: Some(true), ..Self::fresh(upstream, outcome, errno) }
    }
}

impl Expectation {
    /// A confirmed, exactly linked incident.
    #[must_use]
    pub fn incident(status: u16, cause: &'static [&'static str], attempts: Vec<AttemptExpectation>) -> Self {
        Self {
            report: Report::Incident,
            status: Some(status),
            cause,
            confidence: &[Confidence::Confirmed],
            link: &[Link::Exact],
            permitted: None,
            attempts,
            never: &[],
            error_log: None,
            client_may_be_null: false,
            reused_may_be_null: false,
            blames: None,
            says: Vec::new(),
            says_meanwhile: Vec::new(),
            silent: &[],
        }
    }

    /// A confirmed, exactly linked near miss.
    #[must_use]
    pub fn near_miss(status: u16, cause: &'static [&'static str], attempts: Vec<AttemptExpectation>) -> Self {
        Self { report: Report::NearMiss, ..Self::incident(status, cause, attempts) }
    }

    /// Nothing may be reported.
    #[must_use]
    pub fn nothing(status: Option<u16>) -> Self {
        Self { report: Report::Nothing, status, ..Self::incident(0, &[], Vec::new()) }
    }

    /// The error log's line.
    #[must_use]
    pub fn logged(self, piece: &'static str) -> Self {
        Self { error_log: Some(piece), ..self }
    }

    /// What must be told beside the verdict.
    #[must_use]
    pub fn says_meanwhile(self, pieces: &[&str]) -> Self {
        Self { says_meanwhile: pieces.iter().map(|piece| (*piece).to_owned()).collect(), ..self }
    }

    /// The same, if these words must be told.
    #[must_use]
    pub fn says(self, pieces: &[&str]) -> Self {
        Self { says: pieces.iter().map(|piece| (*piece).to_owned()).collect(), ..self }
    }

    /// What must not be told beside the verdict.
    #[must_use]
    pub fn silent(self, pieces: &'static [&'static str]) -> Self {
        Self { silent: pieces, ..self }
    }

    /// What must not be said.
    #[must_use]
    pub fn never(self, causes: &'static [&'static str]) -> Self {
        Self { never: causes, ..self }
    }

    /// The same as seen without uprobes: no exact link, no more confidence than the evidence gives, and the client's port only if
    /// packets or system calls tell it. Cause, status and attempts stay what they are.
    #[must_use]
    pub fn without_uprobes(mut self) -> Self {
        self.client_may_be_null = true;
        self.reused_may_be_null = true;
        self.link = &[Link::Strong, Link::Inferred];
        self.says_meanwhile.clear();
        self.confidence = &[Confidence::Confirmed, Confidence::Likely, Confidence::Possible];
        self
    }
}

impl Expectation {
    /// The same as seen from nginx's side alone: the verdict steps down as [`generalisation`] permits. The rest stays what it is.
    #[must_use]
    pub fn of_nginxs_side(mut self) -> Self {
        self.permitted = Some(generalisation::permitted(self.cause));
        // Of what the words tell, much is about the upstream's side.
        self.says.clear();
        self.says_meanwhile.clear();
        self
    }

    /// The same at depth light: connections that begin well are not followed, so a verdict may step down as it may from nginx's side alone.
    #[must_use]
    pub fn at_light(self) -> Self {
        let cause = self.cause;
        let mut less = self.of_nginxs_side();
        less.reused_may_be_null = true;
        // The upstream's side is looked at, so the truth may be proven as well as ever.
        let whole = cause.iter().map(|cause| (*cause, Confidence::Confirmed));
        less.permitted = less.permitted.map(|permitted| permitted.into_iter().chain(whole).collect());
        less
    }

    /// The same where so much is left out that only one thing is sure: nothing else may be `confirmed`.
    #[must_use]
    pub fn less_is_seen(mut self) -> Self {
        self.says.clear();
        self.without_uprobes()
    }

    /// What is wrong about this cause being said this surely, if anything is.
    #[must_use]
    pub fn objection(&self, cause: &str, confidence: Confidence) -> Option<String> {
        if let Some(permitted) = &self.permitted {
            let fits = permitted.iter().any(|(permitted, most)| *permitted == cause && confidence <= *most);
            return (!fits).then(|| format!("{cause} is {confidence:?}; from nginx's side: {permitted:?}"));
        }
        let right = self.cause.contains(&cause) && self.confidence.contains(&confidence);
        let forbidden = self.never.contains(&cause);
        (!right || forbidden).then(|| {
            format!(
                "{cause} is {confidence:?}, should be {:?} {:?}, never {:?}",
                self.cause, self.confidence, self.never
            )
        })
    }
}

/// One request of a fault: what the client saw and what must be said.
#[derive(Debug, Clone)]
pub struct Witness {
    /// What the client saw.
    pub exchange: Exchange,
    /// What must be said.
    pub expected: Expectation,
}

impl Witness {
    /// Puts both together; fails when the client already saw something else than it should have.
    pub fn new(exchange: Exchange, expected: Expectation) -> Result<Self> {
        if exchange.status != expected.status {
            bail!(
                "the fault did not come about: {} {} from {} was answered {:?}, not {:?}, after {:?}",
                exchange.method,
                exchange.uri,
                exchange.local,
                exchange.status,
                expected.status,
                exchange.took
            );
        }
        Ok(Self { exchange, expected })
    }

    /// Whether an incident is about this request: same client connection, as far as it must be known, and same target.
    #[must_use]
    pub fn is_meant_by(&self, incident: &Incident) -> bool {
        self.is_client(incident.request.client.as_deref())
            && incident.request.uri.as_deref() == Some(&self.exchange.uri)
    }

    /// Whether what is said of the client is right.
    fn is_client(&self, said: Option<&str>) -> bool {
        match said {
            Some(said) => said == self.exchange.local.to_string(),
            None => self.expected.client_may_be_null,
        }
    }
}

/// What a test's output says where the probe said what is not true: `cargo xtask test` gives such a test no second try.
pub const WRONG: &str = "WRONG VERDICT";

/// Compares an incident (or near miss) with what must be said; on a mismatch both are shown whole.
pub fn check(witness: &Witness, kind: Report, incident: &Incident) -> Result<()> {
    let mut wrong = String::new();
    let mut differ = |what: &str, same: bool, is: &dyn std::fmt::Debug, should: &dyn std::fmt::Debug| {
        if !same {
            let _ = writeln!(wrong, "  {what}: is {is:?}, should be {should:?}");
        }
    };
    let Witness { exchange, expected } = witness;
    let verdict = &incident.verdict;
    differ("reported as", kind == expected.report, &kind, &expected.report);
    differ("schema", incident.schema == 1, &incident.schema, &1);
    differ("status", incident.status == expected.status, &incident.status, &expected.status);
    let dated = incident.time.as_deref().is_some_and(|time| time.contains('T') && time.ends_with('Z'));
    differ("time", dated, &incident.time, &"a time in UTC");
    let client = exchange.local.to_string();
    let request = &incident.request;
    differ("client", witness.is_client(request.client.as_deref()), &request.client, &client);
    differ("method", request.method.as_ref() == Some(&exchange.method), &request.method, &exchange.method);
    differ("uri", request.uri.as_ref() == Some(&exchange.uri), &request.uri, &exchange.uri);
    let objection = expected.objection(&verdict.cause, verdict.confidence);
    differ("verdict", objection.is_none(), &verdict.cause, &objection);
    differ("link", expected.link.contains(&incident.link), &incident.link, &expected.link);
    differ("summary", !verdict.summary.trim().is_empty(), &verdict.summary, &"words");
    let fixed = verdict.cause == "unknown" || !verdict.fix.is_empty();
    differ("fix", fixed, &verdict.fix, &"something to do");
    differ("evidence", !incident.evidence.is_empty(), &incident.evidence.len(), &"some");
    let ordered = incident.evidence.is_sorted_by(|one, other| one.t_us <= other.t_us);
    differ("evidence's order", ordered, &"unordered", &"in time order");
    let told: Vec<&str> = [verdict.summary.as_str()]
        .into_iter()
        .chain(verdict.fix.iter().map(String::as_str))
        .chain(incident.evidence.iter().map(|evidence| evidence.text.as_str()))
        .collect();
    let missing: Vec<_> = expected
        .says
        .iter()
        .chain(&expected.says_meanwhile)
        .filter(|piece| !told.iter().any(|text| text.contains(*piece)))
        .collect();
    differ("what must be told", missing.is_empty(), &told, &missing);
    let said: Vec<_> = expected.silent.iter().filter(|piece| told.iter().any(|text| text.contains(*piece))).collect();
    differ("what must not be told", said.is_empty(), &told, &said);
    let (is, should) = (incident.attempts.len(), expected.attempts.len());
    differ("number of attempts", is == should, &is, &should);
    for (number, (attempt, expected)) in incident.attempts.iter().zip(&expected.attempts).enumerate() {
        let what = |field: &str| format!("attempt {number}: {field}");
        let upstream = attempt.upstream.as_ref() == Some(&expected.upstream);
        differ(&what("upstream"), upstream, &attempt.upstream, &expected.upstream);
        let outcome = expected.outcome.contains(&attempt.outcome);
        differ(&what("outcome"), outcome, &attempt.outcome, &expected.outcome);
        let errno = expected.errno.contains(&attempt.errno.as_deref());
        differ(&what("errno"), errno, &attempt.errno, &expected.errno);
        let unknown = witness.expected.reused_may_be_null && attempt.reused.is_none();
        let reused = expected.reused.is_none() || attempt.reused == expected.reused || unknown;
        differ(&what("reused"), reused, &attempt.reused, &expected.reused);
    }
    if wrong.is_empty() {
        return Ok(());
    }
    // To say less than could be said is one thing.
    let cause = verdict.cause.as_str();
    let permitted = || expected.permitted.iter().flatten().any(|(permitted, _)| *permitted == cause);
    let untrue = cause != "unknown" && !expected.cause.contains(&cause) && !permitted();
    let how = if untrue { WRONG } else { "the incident is not what it should be" };
    bail!("{how}:\n{wrong}\n--- incident\n{incident:#?}\n--- expected\n{witness:#?}");
}
