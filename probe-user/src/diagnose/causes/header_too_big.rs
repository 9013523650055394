//! `header-too-big`: the answer's header does not fit nginx's buffer.

use super::super::{
    cause::{Cause, Depth, Family, Finding, Page},
    reading::Reading,
    said::{head_was_cut, nginx_said, support_not_taken},
};
use crate::model::{attempt::Outcome, complaint::Message, wire::WireHead};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "header-too-big",
    title: "the answer's header does not fit nginx's buffer",
    family: Family::Protocol,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "The upstream answered, but its response header (cookies, mostly, or a long redirect) is larger than proxy_buffer_size - 4k or 8k, one page, by default. nginx does not try another server. Often only some users are hit: those with many cookies.",
        proof: "nginx's own message at the moment its buffer was full without the end of the header.",
        refuted: "A header that ended within the buffer.",
        remedies: &[
            (
                "nginx",
                "proxy_buffer_size 16k; proxy_buffers 8 16k; proxy_busy_buffers_size 32k (fastcgi_, uwsgi_, scgi_, grpc_buffer_size for those). With proxy_cache the cache key takes part of it.",
            ),
            ("any server", "Send less: fewer and smaller cookies; server-side sessions."),
            (
                "gunicorn",
                "Flask keeps sessions in the cookie (Flask-Session keeps them in a store); Django: SESSION_ENGINE other than signed_cookies.",
            ),
            ("uvicorn", "Starlette's SessionMiddleware keeps the session in the cookie."),
            (
                "Node.js",
                "cookie-session keeps everything in the cookie; express-session with a store does not. Content-Security-Policy and Link headers grow too.",
            ),
            (
                "Puma",
                "Rails: config.session_store :cache_store instead of :cookie_store; config.action_view.preload_links_header = false.",
            ),
            (
                "php-fpm",
                "fastcgi_buffer_size 16k; fastcgi_buffers 16 16k. Debug headers (FirePHP, ChromePHP) grow with every message.",
            ),
            ("uWSGI", "uwsgi_buffer_size 16k; its own --buffer-size (4096) is about requests."),
            ("Go", "http.SetCookie adds a line each time, also for the same name."),
            (
                "Java",
                "Tokens in cookies and headers (OAuth, Keycloak); Spring Boot: server.tomcat.max-http-response-header-size (8KB).",
            ),
        ],
    },
    rule,
};

const LOOK: &str = "Look at what the upstream sends: `curl -sD- -o/dev/null` straight to it shows which header grows.";

/// The smallest buffer that nginx has by default: one page of the smallest kind.
const PAGE: u64 = 4_096;

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    if reading.complaint().is_none() && reading.outcome() == Outcome::BadResponse {
        return on_the_wire(reading);
    }
    let (mut finding, _) = nginx_said(reading, &[Message::TooBigHeader])?;
    let upstream = reading.upstream_name();
    let got = reading
        .response_bytes()
        .filter(|bytes| *bytes > 0)
        .map(|bytes| format!(" after {bytes} bytes"))
        .unwrap_or_default();
    let (size, busy) = (reading.directive_name("buffer_size"), reading.directive_name("busy_buffers_size"));
    let limit = reading.directive(&size).map(|value| format!(" ({size} {value})")).unwrap_or_default();
    finding.summary = match reading.attempt.and_then(|attempt| attempt.head) {
        Some(WireHead::Whole(bytes)) => {
            format!("{upstream} answered with a header of {bytes} bytes: it does not fit nginx's buffer{limit}.")
        }
        _ => format!(
            "{upstream} answered, but its response header did not end{got}: it does not fit nginx's buffer{limit}."
        ),
    };
    // On a connection that served nothing before, everything that came is this answer's.
    let came = reading.payload_received().map(|(came, _)| came).filter(|_| reading.reused() == Some(false));
    if let (Some(came), Some(read)) = (came, reading.response_bytes())
        && came > read
    {
        finding.say(format_args!(" {came} bytes of the answer had come by then."));
    }
    if reading.cache().is_some() {
        finding.say(format_args!(" With a cache, nginx's own entry takes part of that buffer."));
    }
    let now = reading.directive(&size).unwrap_or("one page, 4k or 8k, by default");
    let twin = if reading.protocol().is_some() { "" } else { "; for FastCGI and others its twin" };
    finding.fix.push(format!("{size} 16k; (now {now}) for this location, with {busy} at least as large{twin}."));
    finding.fix.push(LOOK.to_owned());
    Some(finding)
}

/// The bytes of a header that came, where that is more than nginx takes by default.
pub(super) fn oversized(reading: &Reading<'_>) -> Option<u64> {
    let bytes = match reading.attempt?.head {
        Some(WireHead::Whole(bytes)) => bytes,
        Some(WireHead::Foreign) => return None,
        None => reading.response_bytes()?,
    };
    (bytes >= PAGE).then_some(bytes)
}

/// A header larger than nginx takes by default came, and nginx answered 502 itself: known from packets only.
fn on_the_wire(reading: &Reading<'_>) -> Option<Finding> {
    let attempt = reading.attempt?;
    let bytes = oversized(reading)?;
    let mut finding = Finding::default();
    support_not_taken(&mut finding, reading, bytes)?;
    finding.not_excluded(&["invalid-response"]);
    let upstream = reading.upstream_name();
    let (size, busy) = (reading.directive_name("buffer_size"), reading.directive_name("busy_buffers_size"));
    let now =
        reading.directive(&size).map_or_else(|| "4k or 8k by default".to_owned(), |value| format!("here {value}"));
    let answered = match attempt.status {
        Some(status) if head_was_cut(reading) => format!(
            "answered {status} ({bytes} bytes; the capture cut the header, and does not show how many are its), and nginx answered 502 \
             itself"
        ),
        Some(status) => format!("answered {status} with a header of {bytes} bytes, and nginx answered 502 itself"),
        None => format!("had sent {bytes} bytes of a header, and nginx closed the connection before it was whole"),
    };
    let fits = if head_was_cut(reading) { "a header of that size would" } else { "it does" };
    finding.summary = format!("{upstream} {answered}: {fits} not fit nginx's buffer ({size}, {now}).");
    finding.fix.push(format!("{size} 16k; with {busy} at least as large; nginx's error log says whether that was it."));
    finding.fix.push(LOOK.to_owned());
    Some(finding)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::{LENGTH, START, World},
        model::{
            complaint::{Message, Phase},
            socket::TcpState,
            verdict::Confidence,
        },
    };

    pub(crate) fn world() -> World {
        let mut world = World::new(502);
        world.connect(-900);
        world.complain(Message::TooBigHeader, Phase::ReadingHeader, None, "upstream sent too big header");
        world
    }

    #[test]
    fn the_plain_case() {
        world().expect("header-too-big", Confidence::Confirmed);
    }

    #[test]
    fn it_says_the_size_seen_and_the_limit() {
        let mut world = world();
        world.attempt().bytes_received = Some(4_096);
        world.sent(TcpState::Established, START + LENGTH);
        world.attempt().socket_at_failure.as_mut().unwrap().tcp.as_mut().unwrap().bytes_received = 65_631;
        world.configuration().directives.push(("proxy_buffer_size".to_owned(), "4k".to_owned()));
        let explanation = world.expect("header-too-big", Confidence::Confirmed);
        for piece in ["after 4096 bytes", "(proxy_buffer_size 4k)", "65631 bytes of the answer"] {
            assert!(explanation.summary.contains(piece), "{}", explanation.summary);
        }
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
        world.log(Message::TooBigHeader, Phase::ReadingHeader, None, "upstream sent too big header");
        world.expect("header-too-big", Confidence::Possible);
    }
}
