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
            ("Node.js", "@grpc/grpc-js: the options grpc.max_connection_age_ms and grpc.max_connection_age_grace_ms."),
            (
                "gunicorn",
                "Speaks HTTP/1: proxy_pass. grpcio is a server of its own: grpc.server(..., options=[('grpc.max_connection_age_grace_ms', 30000)]).",
            ),
            ("uvicorn", "Speaks HTTP/1: proxy_pass. Hypercorn speaks HTTP/2."),
            (
                "Puma",
                "Speaks HTTP/1: proxy_pass. GRPC::RpcServer of the grpc gem is a server of its own; pool_keep_alive.",
            ),
            (
                "php-fpm",
                "Speaks FastCGI: fastcgi_pass. A gRPC service in PHP needs another server (RoadRunner, Swoole).",
            ),
            ("uWSGI", "--http-socket speaks HTTP/1 (proxy_pass), --socket uwsgi (uwsgi_pass)."),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let (mut finding, complaint) = nginx_said(reading, &[Message::Grpc])?;
    let upstream = reading.upstream_name();
    let text = complaint.text.as_str();
    let code = text.rsplit_once("with error ").and_then(|(_, code)| code.trim().parse::<u32>().ok());
    let named = code.map(|code| format!(", error {code} ({})", error_name(code))).unwrap_or_default();
    let (what, fix) = match text {
        _ if text.contains("goaway") => (
            format!("went away (GOAWAY{named}) with this stream unserved"),
            match code {
                Some(0) => {
                    "An orderly end that crossed the request: give the server a grace period for open streams, and let \
                            nginx end idle connections first (keepalive_timeout, keepalive_requests in the upstream block)."
                }
                _ => {
                    "The server ended the connection for the reason of that error: its own log at this time says more."
                }
            },
        ),
        _ if text.contains("rejected") => (
            format!("refused the stream (RST_STREAM{named})"),
            match code {
                Some(7) => "The server takes no more streams now: its limit of concurrent streams or its shutdown.",
                Some(11) => "The server thinks nginx sends too much (pings, resets): its limits of such things.",
                _ => "The server's own log at this time says why it ended the stream.",
            },
        ),
        // 0x485454 is "HTT": the length of a frame that is the beginning of a status line.
        _ if text.contains("4740180") => (
            "answered in HTTP/1, not HTTP/2".to_owned(),
            "The port speaks HTTP/1: use proxy_pass, or the server's HTTP/2 port (h2c without TLS, grpcs:// with it).",
        ),
        _ if text.contains("too large http2 frame") => (
            "sent a frame that is too large: does it speak HTTP/2?".to_owned(),
            "Is it the server's HTTP/2 port (h2c without TLS, grpcs:// with it)?",
        ),
        _ => (
            format!("sent HTTP/2 frames that nginx cannot take (\"{text}\")"),
            "nginx and the server differ about the protocol: look for a newer version of either, and a capture of it.",
        ),
    };
    finding.summary = format!("{upstream} {what}.");
    finding.fix.push(fix.to_owned());
    if code != Some(0) || !text.contains("goaway") {
        return Some(finding);
    }
    finding
        .fix
        .push("For calls that can be repeated: grpc_next_upstream error invalid_header non_idempotent.".to_owned());
    Some(finding)
}

/// RFC 9113, section 7.
const fn error_name(code: u32) -> &'static str {
    match code {
        0 => "NO_ERROR",
        1 => "PROTOCOL_ERROR",
        2 => "INTERNAL_ERROR",
        3 => "FLOW_CONTROL_ERROR",
        4 => "SETTINGS_TIMEOUT",
        5 => "STREAM_CLOSED",
        6 => "FRAME_SIZE_ERROR",
        7 => "REFUSED_STREAM",
        8 => "CANCEL",
        9 => "COMPRESSION_ERROR",
        10 => "CONNECT_ERROR",
        11 => "ENHANCE_YOUR_CALM",
        12 => "INADEQUATE_SECURITY",
        13 => "HTTP_1_1_REQUIRED",
        _ => "not a known one",
    }
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
    fn codes_are_named_where_the_text_has_them() {
        let mut world = world();
        for (text, named) in [
            ("upstream rejected request with error 7", "REFUSED_STREAM"),
            ("upstream sent goaway with error 0", "NO_ERROR"),
            ("upstream sent too large http2 frame: 4740180", "HTTP/1, not HTTP/2"),
            ("upstream rejected request with error %ui", "(RST_STREAM)"),
        ] {
            world.complain(Message::Grpc, Phase::ReadingHeader, None, text);
            let explanation = world.expect("grpc-error", Confidence::Confirmed);
            assert!(explanation.summary.contains(named), "{}", explanation.summary);
        }
        assert_eq!(Message::classify("upstream sent frame for unknown stream %ui"), Some(Message::Grpc));
        assert_eq!(Message::classify("upstream sent invalid header: \"x frame\\x01\""), Some(Message::InvalidHeader));
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
