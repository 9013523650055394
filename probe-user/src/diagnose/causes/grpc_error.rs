//! `grpc-error`: the HTTP/2 peer sent GOAWAY, `RST_STREAM` or broken frames.

use super::super::{
    cause::{Cause, Depth, Family, Finding, Page},
    reading::Reading,
    said::nginx_said,
};
use crate::model::complaint::Message;

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "grpc-error",
    title: "the HTTP/2 peer refused or broke the stream",
    family: Family::Protocol,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "The upstream spoke HTTP/2, and refused the stream (RST_STREAM), went away (GOAWAY, also in an orderly shutdown that crosses a request), or sent frames that nginx cannot take; or it does not speak HTTP/2 at all (frame 4740180 is the text HTTP).",
        proof: "nginx's own message as it read the frame.",
        refuted: "A close or reset of the connection before any frame (premature-close, upstream-reset).",
        remedies: &[
            (
                "any server",
                "GOAWAY with error 0 is a graceful shutdown or an age limit (gRPC: MAX_CONNECTION_AGE with a grace period); let it finish open streams.",
            ),
            ("nginx", "grpc_pass only to HTTP/2 ports; grpc_next_upstream error invalid_header for idempotent calls."),
            ("Go", "grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAgeGrace: ...})."),
            ("Java", "NettyServerBuilder.maxConnectionAgeGrace()."),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let (mut finding, complaint) = nginx_said(reading, &[Message::Grpc])?;
    let upstream = reading.upstream_name();
    let what = match complaint.text.as_str() {
        text if text.contains("goaway") => "went away (GOAWAY) with this stream unserved",
        text if text.contains("rejected") => "refused the stream (RST_STREAM)",
        text if text.contains("too large http2 frame") => "sent a frame that is too large: does it speak HTTP/2?",
        _ => "sent HTTP/2 frames that nginx cannot take",
    };
    finding.summary = format!("{upstream} {what}.");
    finding.fix.push("Is the port HTTP/2 (grpc_pass)? Does the server end connections by age? Give it a grace period for open streams.".to_owned());
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
        world.complain(Message::Grpc, Phase::ReadingHeader, None, "upstream sent goaway with error 0");
        world
    }

    #[test]
    fn the_plain_case() {
        world().expect("grpc-error", Confidence::Confirmed);
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
        world.log(Message::Grpc, Phase::ReadingHeader, None, "upstream sent goaway with error 0");
        world.expect("grpc-error", Confidence::Possible);
    }
}
