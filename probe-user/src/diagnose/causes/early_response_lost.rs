//! `early-response-lost`: the upstream answered without reading the whole request, and its reset destroyed the answer.

use super::super::{
    cause::{Cause, Depth, Family, Finding, Page},
    reading::{Broken, Reading, evidence, need},
};
use crate::model::{
    complaint::Message,
    coverage::Sensor,
    evidence::{Fact, Weight},
    packet::Content,
};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "early-response-lost",
    title: "the upstream's early answer was destroyed by its own reset",
    family: Family::Connection,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "The upstream answered (413, 401, 400, ...) before it had read the whole request, and closed with bytes unread: its \
                   kernel sent a reset, nginx's next write failed, and the answer that already lay in nginx's socket was never read. \
                   The client got 502 instead of the real status.",
        proof: "The status line on the wire, before the reset.",
        refuted: "No byte from the upstream before the reset (upstream-reset).",
        remedies: &[
            (
                "nginx",
                "Refuse what the server would refuse: client_max_body_size as large as the server's own limit, and no larger. \
                       proxy_request_buffering on (the default) does not help here.",
            ),
            (
                "any server",
                "Read and discard the rest of the request before closing, or shut down the sending side first and drain \
                            for a while (a lingering close).",
            ),
            ("gunicorn", "An application that answers without reading wsgi.input."),
            (
                "Node.js",
                "On an early answer: req.resume() before res.end(); body limits of the framework (body-parser 100kb).",
            ),
            ("php-fpm", "post_max_size (8M) is checked by PHP after php-fpm has read it; other limits close early."),
            ("Go", "http.MaxBytesReader closes after the answer; net/http drains at most 256 KB."),
            ("Java", "Tomcat: maxSwallowSize (2 MB): raise it, or -1, so that refused uploads are drained."),
            ("uvicorn", "An application that answers without reading the body: await it to the end before closing."),
            (
                "Puma",
                "Reads the whole request before the application (queue_requests): look for another proxy between.",
            ),
            ("uWSGI", "--post-buffering 65536 reads the body before the application can answer."),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    if reading.broken()? != Broken::Reset || reading.response_bytes().is_some_and(|bytes| bytes > 0) {
        return None;
    }
    // An answer to this request needs something of it to have been sent.
    // recv() hands out what came before a reset, so nginx had that; only a failing write leaves it unread.
    if !reading.complains_of(&[Message::SendFailed]) || reading.request_sent() == Some(false) {
        return None;
    }
    let until = reading.failed_at();
    let line = reading.flow()?.packets_from_upstream().find_map(|(event, packet)| match &packet.content {
        Content::HttpStatus { code, line }
            if event.at.earliest <= until && reading.answers_this_request(packet.header.acknowledgement) =>
        {
            Some((event.id, *code, line.to_string()))
        }
        _ => None,
    });
    let fin = u32::from(reading.close().is_some());
    let unread = reading.counters_at_failure().map(|(tcp, event)| (tcp.unread().saturating_sub(fin), event));
    let unread = unread.filter(|(bytes, _)| *bytes > 0);
    if line.is_none() && unread.is_none() {
        return None;
    }
    let mut finding = Finding::default();
    finding.support(reading.complaint_evidence());
    if let Some((event, status, line)) = line.clone() {
        finding.support(Some(evidence(Fact::UpstreamStatus { status, line: Some(line) }, &[event], Weight::Direct)));
    } else {
        finding.missing.push(need(Sensor::Packets, "the status line of the answer that was lost"));
    }
    if let Some((bytes, event)) = unread {
        finding.support(Some(evidence(Fact::UnreadAnswer { bytes }, &[event], Weight::Symptom)));
    }
    if reading.response_bytes().is_none() && unread.is_none() {
        finding.missing.push(need(Sensor::NginxFunctions, "whether nginx had read that answer"));
        finding.not_excluded(&["upstream-reset"]);
    }
    let reset = reading.reset();
    finding.require(reset.as_ref().map(|reset| reading.reset_evidence(reset, Weight::Symptom)), || {
        need(Sensor::ResetsReceived, "the RST that destroyed it")
    });
    let upstream = reading.upstream_name();
    finding.summary = match line {
        Some((_, _, line)) => {
            format!(
                "{upstream} had answered \"{line}\" and closed without reading the whole request; its reset destroyed the answer."
            )
        }
        None => format!(
            "An answer of {upstream} lay unread in nginx's socket when its reset destroyed it: it had answered early."
        ),
    };
    finding
        .fix
        .push("If it was 413: let nginx refuse it first, client_max_body_size as the server's own limit.".to_owned());
    finding.fix.push("Let the server read the rest of the request before it closes.".to_owned());
    Some(finding)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::{START, World, unread},
        model::{
            complaint::{Message, Phase},
            coverage::Sensor,
            flow::Side,
            net::Errno,
            packet::Content,
            socket::TcpState,
            verdict::Confidence,
        },
    };

    pub(crate) fn refused_upload() -> World {
        let mut world = World::new(502);
        world.listening();
        world.accepted();
        world.connect(-99);
        let ends = ("127.0.0.1:8000".parse().unwrap(), "127.0.0.1:41822".parse().unwrap());
        let line = "HTTP/1.1 413 Payload Too Large".into();
        world.packet(-70, ends, 0x18, (0, START + 100), (120, Content::HttpStatus { code: 413, line }));
        world.state_with(-62, Side::Upstream, TcpState::Established, TcpState::Closed, unread(200));
        world.reset_received(-60, TcpState::Established);
        world.reset_sent(-59, "TCP_ABORT_ON_CLOSE", None);
        world.sent(TcpState::Closed, START + 100);
        let socket = world.attempt().socket_at_failure.as_mut().unwrap();
        socket.tcp.as_mut().unwrap().rcv_nxt = 120;
        world.complain(Message::SendFailed, Phase::Sending, Some(Errno::EPIPE), "writev() failed");
        world
    }

    #[test]
    fn the_lost_status_is_named() {
        let explanation = refused_upload().expect("early-response-lost", Confidence::Confirmed);
        assert!(explanation.summary.contains("413 Payload Too Large"), "{}", explanation.summary);
    }

    #[test]
    fn without_an_answer_it_is_a_reset() {
        let mut world = refused_upload();
        world.flow().events.retain(|event| !format!("{event:?}").contains("413"));
        let socket = world.attempt().socket_at_failure.as_mut().unwrap();
        socket.tcp.as_mut().unwrap().rcv_nxt = 0;
        world.expect("upstream-reset", Confidence::Confirmed);
    }

    #[test]
    fn a_failing_read_had_taken_what_was_there() {
        let mut world = refused_upload();
        world.complain(Message::ReceiveFailed, Phase::ReadingHeader, Some(Errno::ECONNRESET), "recv() failed");
        assert_ne!(crate::report::cause(&world.judge()), "early-response-lost");
    }

    #[test]
    fn without_the_packet_the_unread_bytes_make_it_likely() {
        let mut world = refused_upload();
        world.flow().events.retain(|event| !format!("{event:?}").contains("413"));
        world.blind(Sensor::Packets);
        world.expect("early-response-lost", Confidence::Likely);
    }
}
