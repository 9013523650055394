//! What `probe502 check` says: findings as text and as JSON lines, the heaviest first, and how each upstream was found.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{
    redact,
    text::{COLUMNS, Style, wrap},
};
use crate::{
    check::{
        Finding, Weight,
        plan::Endpoint,
        seen::{Answer, Seen, Try},
    },
    model::net::Address,
};

/// How many findings there are of each weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Faults.
    pub faults: usize,
    /// Risks.
    pub risks: usize,
    /// Notes.
    pub notes: usize,
}

impl Counts {
    /// Of these findings.
    #[must_use]
    pub fn of(findings: &[Finding]) -> Self {
        let count = |weight| findings.iter().filter(|finding| finding.weight == weight).count();
        Self { faults: count(Weight::Fault), risks: count(Weight::Risk), notes: count(Weight::Note) }
    }

    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { faults: self.faults + other.faults, risks: self.risks + other.risks, notes: self.notes + other.notes }
    }
}

/// A label's column, then the text.
const LABEL: usize = 7;

/// A finding for people.
#[must_use]
pub fn text(finding: &Finding, style: Style) -> String {
    let mut out = String::new();
    let word = finding.weight.name().to_uppercase();
    let cause = finding.cause.map(|cause| format!(" [{cause}]")).unwrap_or_default();
    let title = format!("{}: {}{cause}", redact::text(&finding.subject), redact::text(&finding.title));
    let mut first = true;
    for part in wrap(&title, COLUMNS - LABEL) {
        let label = if first { format!("{word:<LABEL$}") } else { " ".repeat(LABEL) };
        let label = if first { style.weight(finding.weight, &label) } else { label };
        line(&mut out, &label, &style.strong(&part));
        first = false;
    }
    for seen in &finding.seen {
        labelled(&mut out, "seen", seen);
    }
    if !finding.why.is_empty() {
        labelled(&mut out, "why", &finding.why);
    }
    for fix in &finding.fix {
        labelled(&mut out, "do", fix);
    }
    let places: Vec<String> = finding.places.iter().take(PLACES).map(ToString::to_string).collect();
    if !places.is_empty() {
        let more = finding.places.len().saturating_sub(PLACES);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        labelled(&mut out, "at", &format!("{}{more}", places.join(", ")));
    }
    out
}

/// Places named at most in the text; the JSON form has all of them.
const PLACES: usize = 4;

fn labelled(out: &mut String, label: &str, text: &str) {
    let mut first = true;
    for part in wrap(&redact::text(text), COLUMNS - 2 * LABEL) {
        let label = if first { format!("{:LABEL$}{label:<LABEL$}", "") } else { " ".repeat(2 * LABEL) };
        line(out, &label, &part);
        first = false;
    }
}

fn line(out: &mut String, label: &str, text: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{}", format!("{label}{text}").trim_end());
}

/// How each upstream was found, a line each.
#[must_use]
pub fn upstreams_text(seen: &Seen) -> String {
    let mut out = String::new();
    for one in &seen.tries {
        let Some(endpoint) = seen.endpoints.get(one.endpoint) else { continue };
        let mut words = vec![redact::text(&one.address.to_string())];
        if !matches!(endpoint.server, crate::check::plan::Server::Address(_)) {
            words.push(format!("({})", redact::text(&endpoint.name())));
        }
        words.push(spoken(endpoint));
        words.push(match &one.connect {
            Ok(()) => format!("connected in {}", milliseconds(one.connect_us)),
            Err(_) => "not connected".to_owned(),
        });
        if let Some(Ok(done)) = one.tls.as_ref().map(|tls| tls.result.as_ref()) {
            let took = one.tls.as_ref().map_or(0, |tls| tls.took_us);
            words.push(format!("{} in {}", done.version, milliseconds(took)));
        }
        if let Some(answer) = &one.answer {
            words.push(format!("{} after {}", answered(&answer.kind), milliseconds(answer.took_us)));
        }
        let owner = one.here.iter().flat_map(|here| &here.listeners).next();
        if let Some(owner) = owner {
            let command = owner.listener.command.as_deref().map(redact::text).unwrap_or_default();
            let pid = owner.listener.pid.map(|pid| format!(" {}", pid.0)).unwrap_or_default();
            words.push(format!("by {command}{pid}"));
        }
        if let Some(route) = &one.route {
            words.push(format!("[{}]", redact::text(&route.to_string())));
        }
        let mut first = true;
        for part in wrap(&words.join(" "), COLUMNS - 4) {
            line(&mut out, if first { "  " } else { "    " }, &part);
            first = false;
        }
    }
    out
}

fn spoken(endpoint: &Endpoint) -> String {
    let tls = if endpoint.speech.tls.is_some() { " over TLS" } else { "" };
    format!("{}{tls}", endpoint.speech.protocol.name())
}

fn answered(answer: &Answer) -> String {
    match answer {
        Answer::Http { status, server, .. } => {
            let server = server.as_deref().map(|server| format!(" ({})", redact::text(server))).unwrap_or_default();
            format!("answer {status}{server}")
        }
        Answer::Right => "understood".to_owned(),
        Answer::Wrong(_) => "another protocol".to_owned(),
        Answer::Endless(_) => "a header without end".to_owned(),
        Answer::Closed(_) => "closed".to_owned(),
        Answer::Reset => "reset".to_owned(),
        Answer::Alert(alert) => format!("TLS alert {}", redact::text(alert)),
        Answer::Silent => "no answer".to_owned(),
        Answer::Unfinished(bytes) => format!("{bytes} bytes of a header"),
        Answer::Failed(errno) => errno.to_string(),
    }
}

fn milliseconds(us: u64) -> String {
    format!("{}.{} ms", us / 1_000, us % 1_000 / 100)
}

/// `1 fault, 2 risks, 0 notes`
#[must_use]
pub fn counted(counts: Counts) -> String {
    let some = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    format!("{}, {}, {}", some(counts.faults, "fault"), some(counts.risks, "risk"), some(counts.notes, "note"))
}

/// A finding as a JSON line.
#[must_use]
pub fn json(finding: &Finding) -> Value {
    json!({
        "type": "finding",
        "weight": finding.weight.name(),
        "area": finding.area.name(),
        "cause": finding.cause,
        "subject": redact::text(&finding.subject),
        "title": redact::text(&finding.title),
        "seen": finding.seen.iter().map(|text| redact::text(text)).collect::<Vec<_>>(),
        "why": redact::text(&finding.why),
        "fix": finding.fix.iter().map(|text| redact::text(text)).collect::<Vec<_>>(),
        "places": finding.places.iter().map(|place| redact::text(&place.to_string())).collect::<Vec<_>>(),
        "nginx": finding.nginx.map(|pid| pid.0),
    })
}

/// How one upstream was found, as a JSON line.
#[must_use]
pub fn upstream_json(seen: &Seen, one: &Try) -> Value {
    let endpoint = seen.endpoints.get(one.endpoint);
    let (status, server) = match one.answer.as_ref().map(|answer| &answer.kind) {
        Some(Answer::Http { status, server, .. }) => (Some(*status), server.as_deref().map(redact::text)),
        _ => (None, None),
    };
    let tls = one.tls.as_ref().and_then(|tls| tls.result.as_ref().ok());
    let listeners: Vec<Value> = one
        .here
        .iter()
        .flat_map(|here| &here.listeners)
        .map(|owner| {
            json!({
                "address": owner.listener.address.to_string(),
                "pid": owner.listener.pid.map(|pid| pid.0),
                "command": owner.listener.command.as_deref().map(redact::text),
                "unit": owner.unit.as_deref().map(redact::text),
                "waiting": owner.listener.accept_queue.map(|(waiting, _)| waiting),
                "backlog": owner.listener.accept_queue.map(|(_, limit)| limit),
            })
        })
        .collect();
    json!({
        "type": "upstream",
        "upstream": redact::text(&one.address.to_string()),
        "name": endpoint.map(|endpoint| redact::text(&endpoint.name())),
        "protocol": endpoint.map(|endpoint| endpoint.speech.protocol.prefix()),
        "tls": tls.map(|tls| tls.version.clone()),
        "connected": one.connect.is_ok(),
        "errno": one.connect.as_ref().err().and_then(|failure| failure.errno).map(|errno| errno.to_string()),
        "connect_us": one.connect_us,
        "handshake_us": one.tls.as_ref().map(|tls| tls.took_us),
        "answer_us": one.answer.as_ref().map(|answer| answer.took_us),
        "status": status,
        "server": server,
        "listeners": listeners,
        "route": one.route.as_ref().map(|route| json!({
            "device": route.device.as_deref().map(redact::text),
            "gateway": route.gateway.map(|gateway| gateway.to_string()),
            "source": route.source.map(|source| source.to_string()),
        })),
        "unix": matches!(one.address, Address::Unix(_)),
        "nginx": seen.nginx.master.map(|pid| pid.0),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::check::Area;

    fn finding(text: &str) -> Finding {
        Finding {
            weight: Weight::Fault,
            area: Area::Upstream,
            cause: Some("upstream-refused"),
            subject: text.to_owned(),
            title: text.to_owned(),
            seen: vec![text.to_owned()],
            why: text.to_owned(),
            fix: vec![text.to_owned()],
            places: Vec::new(),
            nginx: None,
        }
    }

    #[test]
    fn a_finding_is_readable() {
        let text = text(&finding("nobody listens"), Style::default());
        assert!(
            text.starts_with("FAULT  nobody listens: nobody listens [upstream-refused]\n       seen   nobody"),
            "{text}"
        );
        assert_eq!(counted(Counts { faults: 1, risks: 2, notes: 0 }), "1 fault, 2 risks, 0 notes");
    }

    proptest! {
        #[test]
        fn nothing_a_terminal_obeys_comes_out(raw in ".*") {
            let found = finding(&raw);
            let text = text(&found, Style::default());
            prop_assert!(!text.chars().any(|c| c.is_control() && c != '\n'));
            let deceiving = ['\u{202e}', '\u{200b}'];
            prop_assert!(!text.contains(deceiving));
            let line = json(&found).to_string();
            prop_assert!(!line.chars().any(char::is_control));
            prop_assert!(!line.contains(deceiving));
        }
    }
}
