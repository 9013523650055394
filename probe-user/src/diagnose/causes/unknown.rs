//! `unknown`: none is proved.

use super::{
    super::{
        cause::{Cause, Depth, Family, Page},
        reading::Reading,
    },
    servers::{REQUEST_LOGS, and_servers},
};
use crate::model::{
    attempt::Link,
    complaint::Message,
    evidence::Evidence,
    verdict::{Need, Verdict},
};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "unknown",
    title: "none is proved",
    family: Family::Origin,
    statuses: &[],
    depth: Depth::Symptom,
    page: Page {
        happened: "nginx answered a gateway failure, and what was seen does not prove why; or two causes are proved equally well. \
                   Everything that was seen is printed, and what would have been needed to tell.",
        proof: "Nothing is claimed, so nothing needs proof.",
        refuted: "Any cause of the catalogue whose evidence is complete.",
        remedies: &const {
            and_servers::<3, 11>(
                [
                    (
                        "probe502",
                        "Look at `probe502 doctor`: it names what this host does not let the probe see. `--depth deep` sees every \
                          system call of the workers; running as root on nginx's own host sees most.",
                    ),
                    (
                        "nginx",
                        "Keep error_log at level error or finer: without the message only packets and system calls tell.",
                    ),
                    (
                        "any server",
                        "Did the request reach it, and what did it answer? Its own log of requests at this second tells.",
                    ),
                ],
                REQUEST_LOGS,
            )
        },
    },
    rule: |_| None,
};

/// The verdict when no rule fits.
pub(crate) fn verdict(reading: &Reading<'_>, seen: Vec<Evidence>, needed: Vec<Need>) -> Verdict {
    let status = reading.case.status.map_or_else(|| "a failure".to_owned(), |status| status.to_string());
    let about = match reading.attempt {
        Some(_) => format!("the attempt at {}", reading.upstream_name()),
        None if reading.case.attempts_complete || reading.case.link > Link::Inferred => {
            "a request for which no upstream was tried".to_owned()
        }
        None => "a request of which it was not seen whether an upstream was tried".to_owned(),
    };
    let said = reading
        .complaint()
        .or_else(|| reading.case.complaints.last().map(|(event, complaint)| (event, complaint)))
        .map_or_else(|| "nginx logged nothing about it".to_owned(), |(_, c)| format!("nginx says: {}", c.text));
    let lead = if needed.is_empty() {
        "everything the probe can see was on, so this is a kind of failure it does not know"
    } else {
        "what could not be seen is listed below"
    };
    if let Some(known) = known_words(reading, &status, &seen, &needed) {
        return known;
    }
    if reading.case.by_wire {
        return by_wire(reading, &status, &about, seen, needed);
    }
    Verdict::Unexplained {
        seen,
        needed,
        summary: format!("nginx answered {status} after {about}; {said}. No cause is proved; {lead}."),
        fix: vec![
            "Run `probe502 doctor` to see what this host hides from the probe.".to_owned(),
            "Watch with --depth deep for the next one.".to_owned(),
        ],
    }
}

/// No cause of the catalogue, and yet nginx's own words say what happened.
fn known_words(reading: &Reading<'_>, status: &str, seen: &[Evidence], needed: &[Need]) -> Option<Verdict> {
    let said = |message: Message| reading.complained(message).map(|(_, complaint)| complaint.text.clone());
    let (summary, fix) = if said(Message::AuthRequest).is_some() {
        let answered = reading.attempt?.status?;
        let upstream = reading.upstream_name();
        (
            format!(
                "nginx made {status} of what auth_request was told: {upstream} answered {answered}, which is neither yes (2xx) nor no (401, 403). \
                 Why it did only its own log tells."
            ),
            format!("Look into the log of {upstream}, and at the path that auth_request asks it for."),
        )
    } else {
        let text = said(Message::NoTarget)?;
        (
            format!("nginx answered {status} and tried no upstream, since what the configuration's variables made is none: {text}."),
            "Look at the variables in proxy_pass (or its twin) for this request: their value must be a whole URL, or a host.".to_owned(),
        )
    };
    Some(Verdict::Unexplained { seen: seen.to_vec(), needed: needed.to_vec(), summary, fix: vec![fix] })
}

/// Of packets alone: what else would help.
fn by_wire(reading: &Reading<'_>, status: &str, about: &str, seen: Vec<Evidence>, needed: Vec<Need>) -> Verdict {
    let mut fix = vec!["Give nginx's error log of that time too: --error-log FILE.".to_owned()];
    if reading.attempt.is_none() {
        fix.push(
            "Capture both sides of nginx, its clients' and its upstreams', and say --upstream ADDR:PORT where they cannot be told apart."
                .to_owned(),
        );
    }
    Verdict::Unexplained {
        seen,
        needed,
        summary: format!("The packets show {status} after {about}, and do not show why."),
        fix,
    }
}
