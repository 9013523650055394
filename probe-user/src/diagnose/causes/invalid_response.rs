//! `invalid-response`: what came back is not the expected protocol.

use super::super::{
    cause::{Cause, Depth, Family, Finding, Page},
    reading::{Reading, evidence, need},
    said::nginx_said,
};
use crate::model::{
    attempt::Outcome,
    complaint::Message,
    coverage::Sensor,
    evidence::{Fact, Weight},
};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "invalid-response",
    title: "what came back is not a valid answer",
    family: Family::Protocol,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "The upstream sent something that nginx cannot take for a response: a malformed header line, a duplicate or contradictory Content-Length (an error since nginx 1.23.0), an invalid status. What does not even begin like HTTP is relayed as it is, with no 502: the client sees garbage (a near miss).",
        proof: "nginx's own message as its parser gave up.",
        refuted: "A header too long for the buffer (header-too-big).",
        remedies: &[
            (
                "nginx",
                "Does the directive fit the port: proxy_pass for HTTP, fastcgi_pass for php-fpm, uwsgi_pass for uWSGI sockets, grpc_pass for HTTP/2, https:// for TLS?",
            ),
            (
                "any server",
                "`curl -v` straight to it; look for header lines with control characters, spaces in names, two Content-Length lines.",
            ),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    if reading.complaint().is_none() && reading.outcome() == Outcome::BadResponse {
        return on_the_wire(reading);
    }
    let (mut finding, complaint) = nginx_said(reading, &[Message::InvalidHeader])?;
    let upstream = reading.upstream_name();
    finding.summary = format!("What {upstream} sent is not a response that nginx can take (\"{}\").", complaint.text);
    finding.fix.push(format!("Ask {upstream} directly with `curl -v` and look at the first lines; check that the directive (proxy_pass, fastcgi_pass, ...) fits its protocol."));
    Some(finding)
}

/// An answer began, and whoever asked closed the connection at once: known from packets only.
fn on_the_wire(reading: &Reading<'_>) -> Option<Finding> {
    let bytes = reading.response_bytes()?;
    let mut finding = Finding::default();
    let began = reading.flow()?.packets_from_upstream().filter(|(_, packet)| packet.payload_length > 0).last();
    let events: Vec<_> = began.iter().map(|(event, _)| event.id).collect();
    finding.support(Some(evidence(Fact::PartialResponse { bytes }, &events, Weight::Symptom)));
    finding.missing.push(need(Sensor::ErrorLog, "nginx's own word about what it could not take"));
    finding.not_excluded(&["header-too-big"]);
    let upstream = reading.upstream_name();
    finding.summary = format!(
        "{upstream} began to answer ({bytes} bytes), and nginx closed the connection before the header was whole: it could not take it."
    );
    finding.fix.push(format!("Ask {upstream} directly with `curl -v` and look at the first lines."));
    Some(finding)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::World,
        model::{
            complaint::{Message, Phase},
            verdict::Confidence,
        },
    };

    pub(crate) fn world() -> World {
        let mut world = World::new(502);
        world.connect(-900);
        world.complain(Message::InvalidHeader, Phase::ReadingHeader, None, "upstream sent invalid header");
        world
    }

    #[test]
    fn the_plain_case() {
        world().expect("invalid-response", Confidence::Confirmed);
    }

    #[test]
    fn another_message_is_not_it() {
        let mut world = World::new(502);
        world.complain(Message::Other, Phase::ReadingHeader, None, "upstream did something else");
        assert_eq!(crate::report::cause(&world.judge()), "unknown");
    }

    #[test]
    fn a_log_line_alone_makes_it_possible() {
        let mut world = World::new(502);
        world.log(Message::InvalidHeader, Phase::ReadingHeader, None, "upstream sent invalid header");
        world.expect("invalid-response", Confidence::Possible);
    }
}
