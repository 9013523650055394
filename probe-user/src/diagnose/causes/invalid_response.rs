//! `invalid-response`: what came back is not the expected protocol.

use super::super::{
    cause::{Cause, Depth, Family, Finding, Page},
    reading::{Reading, evidence},
    said::{nginx_said, support_not_taken},
};
use crate::model::{
    attempt::Outcome,
    case::CaseKind,
    complaint::Message,
    event::EventId,
    evidence::{Fact, Weight},
    packet::Content,
    wire::WireHead,
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
            (
                "gunicorn",
                "An application that sets Transfer-Encoding, or Content-Length twice, by itself: leave both to the server.",
            ),
            ("uvicorn", "Likewise: header lists of ASGI are sent as they are."),
            ("Node.js", "Headers are checked (ERR_INVALID_CHAR) unless one writes to the socket itself."),
            ("Puma", "A Rack application with a line break in a header's value, or Transfer-Encoding of its own."),
            ("php-fpm", "Speaks FastCGI only: fastcgi_pass. header('Status: ...') needs a number."),
            (
                "uWSGI",
                "--http-socket for proxy_pass, --socket for uwsgi_pass: one does not speak the other's protocol.",
            ),
            ("Go", "net/http checks headers; what is written after Hijack() is unchecked."),
            (
                "Java",
                "A filter that sets Content-Length beside Transfer-Encoding, or copies both from a response of its own client.",
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
    let looks = looks_like(reading);
    if let Some((event, what)) = looks {
        finding.support(Some(evidence(Fact::LooksLike { what }, &[event], Weight::Direct)));
    }
    let looks = looks.map(|(_, what)| format!(": it looks like {what}")).unwrap_or_default();
    finding.summary = if complaint.text.contains("no valid HTTP") {
        format!(
            "What {upstream} sent does not begin like HTTP{looks}. nginx passes such a thing on as it is, without status or \
             header."
        )
    } else {
        format!("What {upstream} sent is not a response that nginx can take{looks} (\"{}\").", complaint.text)
    };
    if looks.contains("TLS") {
        finding.fix.push("The port speaks TLS: https:// in proxy_pass (grpcs:// in grpc_pass).".to_owned());
    }
    finding.fix.push(format!("Ask {upstream} directly with `curl -v` and look at the first lines; check that the directive (proxy_pass, fastcgi_pass, ...) fits its protocol."));
    Some(finding)
}

/// What the answer's first packet looks like.
fn looks_like(reading: &Reading<'_>) -> Option<(EventId, &'static str)> {
    let until = reading.failed_at();
    let mut packets = reading.flow()?.packets_from_upstream().filter(|(event, _)| event.at.earliest <= until);
    packets.find_map(|(event, packet)| match packet.content {
        Content::Foreign(foreign) => Some((event.id, foreign.name())),
        Content::Tls { .. } => Some((event.id, "TLS")),
        _ => None,
    })
}

/// An answer came that is none, or was not passed on: known from packets only.
fn on_the_wire(reading: &Reading<'_>) -> Option<Finding> {
    let bytes = reading.response_bytes()?;
    if super::header_too_big::oversized(reading).is_some() {
        return None;
    }
    let mut finding = Finding::default();
    let looks = looks_like(reading);
    if let Some((event, what)) = looks {
        finding.support(Some(evidence(Fact::LooksLike { what }, &[event], Weight::Direct)));
    }
    let looks = looks.map(|(_, what)| format!(": it looks like {what}")).unwrap_or_default();
    support_not_taken(&mut finding, reading, bytes)?;
    let upstream = reading.upstream_name();
    let (head, status) = reading.attempt.map_or((None, None), |attempt| (attempt.head, attempt.status));
    if head != Some(WireHead::Foreign) {
        finding.not_excluded(&["header-too-big"]);
    }
    finding.summary = match (head, status) {
        (None, Some(status)) => format!(
            "{upstream} began to answer {status} ({bytes} bytes), and nginx answered 502 itself: the capture cut the header, and does \
             not show whether it was ever whole."
        ),
        (_, Some(status)) => {
            format!(
                "{upstream} answered {status} ({bytes} bytes), and nginx answered 502 itself: it could not take that."
            )
        }
        (Some(WireHead::Foreign), None) if reading.case.kind == CaseKind::NearMiss => format!(
            "What {upstream} sent ({bytes} bytes) does not begin like HTTP{looks}. nginx passed it on as it was: the client got it \
             without status or header."
        ),
        (Some(WireHead::Foreign), None) => {
            format!("What {upstream} sent ({bytes} bytes) does not begin like HTTP{looks}.")
        }
        _ => format!(
            "{upstream} began to answer ({bytes} bytes), and nginx closed the connection before the header was whole: it could not \
             take it."
        ),
    };
    finding.fix.push(format!("Ask {upstream} directly with `curl -v` and look at the first lines."));
    Some(finding)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::World,
        model::{
            complaint::{Message, Phase},
            packet::{Content, Foreign},
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
    fn what_it_looks_like_is_named() {
        let mut world = world();
        let ends = ("127.0.0.1:8000".parse().unwrap(), "127.0.0.1:41822".parse().unwrap());
        world.packet(-100, ends, 0x18, (0, 0), (21, Content::Foreign(Foreign::Ssh)));
        let text = "upstream sent no valid HTTP/1.0 header";
        world.complain(Message::InvalidHeader, Phase::ReadingHeader, None, text);
        let explanation = world.expect("invalid-response", Confidence::Confirmed);
        assert!(explanation.summary.contains("looks like SSH"), "{}", explanation.summary);
        assert!(explanation.summary.contains("passes such a thing on"), "{}", explanation.summary);
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
