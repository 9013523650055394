//! `keepalive-race`: the upstream closed an idle connection as nginx sent on it.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::{Locality, Reading, Survival, duration, need},
    },
    PROCESS_GONE, server_advice,
};
use crate::model::{
    complaint::Phase,
    coverage::Sensor,
    evidence::{Evidence, Weight},
};

/// nginx's own default for idle connections to upstreams (`keepalive_timeout` in an upstream block), milliseconds.
const NGINX_KEEPS_MS: u64 = 60_000;
/// Idle timeouts that servers and middleboxes have by default or are commonly given, seconds.
const USUAL_TIMEOUTS: [u64; 19] = [1, 2, 3, 4, 5, 6, 10, 15, 20, 30, 60, 65, 75, 90, 120, 180, 300, 350, 900];

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "keepalive-race",
    title: "the upstream closed a kept connection as nginx sent on it",
    family: Family::Connection,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "nginx keeps connections to upstreams open for later requests. The server closes such a connection after an idle \
                   time of its own. When nginx picks it in just that moment, the close and the request cross: the request arrives at \
                   a connection that no longer exists and is answered by a reset, or finds the connection half closed. The \
                   application never saw the request. nginx tries once more on another connection, but not for POST, LOCK and \
                   PATCH, and not when the tries are used up.",
        proof: "A reused connection; not a byte of an answer; and a close that the upstream made before it had a byte of the request: \
                a FIN that does not acknowledge it, a reset that does not acknowledge it or answers it from a socket already closed \
                (TIME_WAIT, no socket), or a close within one round trip with the whole request unread. Where the upstream is on \
                this host, its process lived on.",
        refuted: "A fresh connection; a FIN or reset that acknowledges the request after the application read it (premature-close, \
                  upstream-reset); the end of the process that held the connection (upstream-killed and the like).",
        remedies: &[
            (
                "nginx",
                "In the upstream block: keepalive_timeout (default 60s) shorter than the server's idle timeout, so that nginx \
                       closes first. proxy_next_upstream error timeout non_idempotent also repeats POST, where the application can \
                       take it twice. proxy_http_version 1.1 with an empty Connection header is what turns keepalive on; from \
                       nginx 1.29.7 it is on by default, and these races grow more frequent.",
            ),
            (
                "gunicorn",
                "--keep-alive 75 (default 2 s) for gthread and the asynchronous workers; the sync worker keeps no connection.",
            ),
            ("uvicorn", "--timeout-keep-alive 75 (default 5 s)."),
            (
                "Node.js",
                "server.keepAliveTimeout = 75000 (default 5000 ms; 65000 ms in the newest versions; 20.20 closes 1000 ms later than it is set, which 22.19 and 24.6 call keepAliveTimeoutBuffer); server.headersTimeout (default 60000 ms) longer than that.",
            ),
            ("Puma", "persistent_timeout 75 in config/puma.rb (default 65 s in current versions, 20 s in older ones)."),
            (
                "php-fpm",
                "Keeps FastCGI connections only with fastcgi_keep_conn on; idle children are ended by pm = ondemand after \
                         pm.process_idle_timeout (10 s) and by pm.max_requests.",
            ),
            (
                "uWSGI",
                "--http-keepalive with --http-timeout above nginx's keepalive_timeout; uwsgi_pass keeps no connection.",
            ),
            ("Go", "http.Server.IdleTimeout: 75 * time.Second; unset, ReadTimeout is taken; both unset, none."),
            (
                "Java",
                "Spring Boot with Tomcat: server.tomcat.keep-alive-timeout=75s (default: the connection timeout, 60 s, or the 20 s of Tomcat's own server.xml) and server.tomcat.max-keep-alive-requests (default 100). Jetty: idleTimeout (30000 ms).",
            ),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    if reading.phase() == Some(Phase::TlsHandshake) {
        return None;
    }
    reading.broken()?;
    if reading.reused() != Some(true) || reading.response_bytes().is_some_and(|bytes| bytes > 0) {
        return None;
    }
    let crossed = reading.crossed();
    let survival = reading.survival();
    if crossed == Some(false) || matches!(survival, Survival::Ended(_)) {
        return None;
    }
    let mut finding = Finding::default();
    let unix = reading.unix_path().is_some();
    finding.support(reading.complaint_evidence().map(|evidence| {
        // The write that failed is all there is to see over a unix socket, and it is the crossing itself.
        let seen = unix && crossed == Some(true) && evidence.weight == Weight::Symptom;
        Evidence { weight: if seen { Weight::Direct } else { evidence.weight }, ..evidence }
    }));
    finding.support(reading.accepted_over_unix());
    finding.support(reading.idle_connection());
    finding.require(reading.answer_evidence(), || {
        need(Sensor::NginxFunctions, "whether a byte of an answer to this request came")
    });
    let weight = if crossed == Some(true) { Weight::Direct } else { Weight::Symptom };
    let (close, reset) = (reading.close(), reading.reset());
    finding.support(close.as_ref().map(|close| close.evidence(weight)));
    finding.support(reset.as_ref().map(|reset| reading.reset_evidence(reset, weight)));
    finding.support(reset.as_ref().and_then(|reset| reading.sent_here_evidence(reset, weight)));
    if close.is_none() && reset.is_none() && !unix {
        finding.missing.push(need(Sensor::SocketStates, "the FIN or RST by which the connection ended"));
    }
    if crossed.is_none() {
        finding.missing.push(need(
            Sensor::SocketStates,
            "whether the upstream had closed before it saw the request: the acknowledgement number of its FIN or RST",
        ));
        finding.not_excluded(&["premature-close", "upstream-reset"]);
    }
    // A FIN is the upstream's; a reset alone can be the word of something between that had forgotten the connection.
    let upstreams_own = close.is_some()
        || reset.as_ref().is_some_and(|reset| reset.sent_here.is_some())
        || reading.aborted_here().is_some();
    if reset.is_some() && !upstreams_own {
        for mark in reading.foreign_reset() {
            finding.oppose(Some(mark));
        }
        finding.missing.push(need(Sensor::ResetsSent, "whether the upstream itself sent the reset"));
        finding.not_excluded(&["network-reset"]);
    }
    // Wherever the process runs, a close that crossed the request is one; here it can be known whether a process's end was behind it.
    if let Survival::NotKnown(needed) = survival
        && reading.locality() != Locality::Elsewhere
    {
        finding.missing.push(needed);
        finding.not_excluded(PROCESS_GONE);
    }
    describe(&mut finding, reading, crossed == Some(true));
    Some(finding)
}

fn describe(finding: &mut Finding, reading: &Reading<'_>, crossed: bool) {
    let upstream = reading.upstream_name();
    let idle = reading.attempt.and_then(|attempt| attempt.idle_us);
    let before = reading.attempt.and_then(|attempt| attempt.requests_before);
    let history = match (before, idle) {
        (Some(before), Some(idle)) => {
            format!(", which had served {} and been idle for {},", requests(before), duration(idle))
        }
        (Some(before), None) => format!(", which had served {},", requests(before)),
        (None, Some(idle)) => format!(", which had been idle for {},", duration(idle)),
        (None, None) => String::new(),
    };
    finding.summary = if crossed {
        format!(
            "{upstream} closed a kept connection{history} just as nginx sent the next request on it: the application never saw it."
        )
    } else {
        format!(
            "The kept connection to {upstream}{history} broke before an answer began: it looks like the upstream's idle close."
        )
    };
    let timeout = idle.and_then(implied_timeout_s);
    let keeps_ms = reading.group().and_then(|group| group.keepalive_timeout_ms).unwrap_or(NGINX_KEEPS_MS);
    let keeps = duration(keeps_ms.saturating_mul(1_000));
    let given =
        if reading.group().is_some_and(|group| group.keepalive_timeout_ms.is_some()) { "" } else { " by default" };
    match (timeout, idle) {
        (Some(seconds), _) => {
            finding.say(format_args!(" The idle time points to an idle timeout of {seconds} s there."));
            finding.fix.push(format!(
                "Upstream closes after {seconds}.0 s idle; nginx keeps {keeps}{given}: set `keepalive_timeout {}` in the upstream \
                 block, so that nginx closes first, or raise the server's idle timeout above nginx's.",
                shorter(seconds)
            ));
        }
        (None, Some(idle)) => finding.fix.push(format!(
            "Upstream closed after {} idle; nginx keeps {keeps}{given}: set keepalive_timeout in the upstream block below the \
             server's idle timeout, or raise that above nginx's.",
            duration(idle)
        )),
        (None, None) => finding.fix.push(format!(
            "nginx keeps idle connections for {keeps}{given}: set keepalive_timeout in the upstream block below the server's idle \
             timeout, or raise that above nginx's."
        )),
    }
    finding.fix.extend(server_advice(&CAUSE, reading));
    let method = reading.case.request.method.as_deref();
    if matches!(method, Some("POST" | "LOCK" | "PATCH")) {
        finding.fix.push(format!(
            "nginx does not repeat {} by itself; if the application can take it twice: proxy_next_upstream error timeout \
             non_idempotent.",
            method.unwrap_or_default()
        ));
    }
}

/// The timeout an idle time points to: the close comes at its end, or a little later.
fn implied_timeout_s(idle_us: u64) -> Option<u64> {
    USUAL_TIMEOUTS.into_iter().find(|seconds| {
        let exact = seconds * 1_000_000;
        let late = exact / 50 + 100_000;
        (exact.saturating_sub(100_000)..=exact + late).contains(&idle_us)
    })
}

/// A time safely below a timeout.
fn shorter(seconds: u64) -> String {
    match seconds {
        0 | 1 => "500ms".to_owned(),
        2..=10 => format!("{}s", seconds - 1),
        _ => format!("{}s", seconds - seconds / 10),
    }
}

fn requests(number: u64) -> String {
    if number == 1 { "one request".to_owned() } else { format!("{number} requests") }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        diagnose::testing::{FIN_ACK, LENGTH, RST_ACK, START, World, unread},
        model::{
            complaint::{Message, Phase},
            flow::Side,
            net::Errno,
            process::Ending,
            socket::TcpState,
            verdict::Confidence,
        },
    };

    fn reused(world: &mut World) {
        world.listening();
        world.accepted();
        let attempt = world.attempt();
        attempt.reused = Some(true);
        attempt.requests_before = Some(14);
        attempt.idle_us = Some(5_002_100);
    }

    /// nginx's socket got the FIN, acknowledging this much; then the request was answered by a RST.
    pub(crate) fn crossing_fin(upstream: &str, acknowledged: u32) -> World {
        let mut world = World::at(upstream, 502);
        reused(&mut world);
        let tcp = crate::diagnose::testing::counters(START, acknowledged);
        world.state_with(-95, Side::Nginx, TcpState::Established, TcpState::CloseWait, tcp);
        world.reset_sent(-60, "TCP_TIMEWAIT_SOCKET", Some(START));
        world.reset_received(-55, TcpState::CloseWait);
        world.state(-54, Side::Nginx, TcpState::CloseWait, TcpState::Closed, Some(Errno::EPIPE));
        world.sent(TcpState::Closed, START);
        world.closed_before_header();
        world
    }

    #[test]
    fn a_fin_that_does_not_acknowledge_the_request() {
        let explanation = crossing_fin("127.0.0.1:8000", START).expect("keepalive-race", Confidence::Confirmed);
        assert!(explanation.summary.contains("idle timeout of 5 s"), "{}", explanation.summary);
        assert!(explanation.fix[0].contains("closes after 5.0 s idle; nginx keeps 60.0 s"), "{}", explanation.fix[0]);
    }

    #[test]
    fn seen_from_nginxs_side_alone() {
        let mut world = World::at("10.9.9.9:8000", 502);
        reused(&mut world);
        world.flow().accepted_by = None;
        world.case.host.clear();
        world.look_up(false, Vec::new(), Vec::new());
        world.packet_from_upstream(-95, FIN_ACK, START);
        world.sent(TcpState::CloseWait, START);
        world.closed_before_header();
        world.expect("keepalive-race", Confidence::Confirmed);
    }

    #[test]
    fn a_close_with_the_whole_request_unread_within_a_round_trip() {
        let mut world = World::new(502);
        reused(&mut world);
        world.state_with(-60, Side::Upstream, TcpState::Established, TcpState::Closed, unread(LENGTH));
        world.reset_received(-58, TcpState::Established);
        world.reset_sent(-57, "TCP_ABORT_ON_CLOSE", None);
        world.sent(TcpState::Closed, START + LENGTH);
        world.complain(Message::ReceiveFailed, Phase::ReadingHeader, Some(Errno::ECONNRESET), "recv() failed");
        world.expect("keepalive-race", Confidence::Confirmed);
        world.attempt().started = Some(crate::diagnose::testing::moment(-900_000));
        world.expect("upstream-reset", Confidence::Confirmed);
    }

    #[test]
    fn a_reset_found_before_anything_was_written() {
        let mut world = World::new(502);
        reused(&mut world);
        world.reset_sent(-51, "TCP_STATE", None);
        world.reset_received(-50, TcpState::Established);
        world.attempt().bytes_sent = Some(0);
        world.complain(Message::ConnectFailed, Phase::Connecting, Some(Errno::ECONNRESET), "connect() failed");
        world.expect("keepalive-race", Confidence::Confirmed);
    }

    #[test]
    fn a_reset_alone_from_another_host_can_be_a_middleboxs() {
        let mut world = World::at("10.9.9.9:8000", 502);
        reused(&mut world);
        world.flow().accepted_by = None;
        world.case.host.clear();
        world.look_up(false, Vec::new(), Vec::new());
        world.packet_from_upstream(-58, RST_ACK, START);
        world.sent(TcpState::Closed, START);
        world.complain(Message::ReceiveFailed, Phase::ReadingHeader, Some(Errno::ECONNRESET), "recv() failed");
        let explanation = world.expect("keepalive-race", Confidence::Likely);
        assert_eq!(explanation.rivals, ["network-reset"]);
    }

    #[test]
    fn a_reset_that_acknowledges_the_request_is_not_it() {
        let mut world = World::new(502);
        reused(&mut world);
        world.state_with(-60, Side::Upstream, TcpState::Established, TcpState::Closed, unread(0));
        world.packet_from_upstream(-58, RST_ACK, START + LENGTH);
        world.reset_sent(-57, "TCP_STATE", None);
        world.sent(TcpState::Closed, START + LENGTH);
        world.complain(Message::ReceiveFailed, Phase::ReadingHeader, Some(Errno::ECONNRESET), "recv() failed");
        world.expect("upstream-reset", Confidence::Confirmed);
    }

    #[test]
    fn a_fin_after_the_request_was_taken_is_not_it() {
        let mut world = World::new(502);
        reused(&mut world);
        world.packet_from_upstream(-58, FIN_ACK, START + LENGTH);
        world.sent(TcpState::CloseWait, START + LENGTH);
        world.closed_before_header();
        world.expect("premature-close", Confidence::Confirmed);
    }

    #[test]
    fn the_end_of_the_process_says_more() {
        let mut world = crossing_fin("127.0.0.1:8000", START);
        world.exit(-120, Ending::Exit(0));
        world.expect("upstream-exited", Confidence::Confirmed);
    }

    #[test]
    fn without_the_order_it_is_likely_and_names_its_rivals() {
        let mut world = crossing_fin("127.0.0.1:8000", START);
        world.attempt().socket_at_failure = None;
        let explanation = world.expect("keepalive-race", Confidence::Likely);
        assert!(explanation.rivals.contains(&"premature-close"), "{:?}", explanation.rivals);
    }

    #[test]
    fn without_the_process_view_it_is_likely() {
        let mut world = crossing_fin("127.0.0.1:8000", START);
        world.blind(Sensor::Processes);
        world.expect("keepalive-race", Confidence::Likely);
    }

    #[test]
    fn log_alone_is_possible() {
        let mut world = World::new(502);
        reused(&mut world);
        world.flow().accepted_by = None;
        world.case.host.clear();
        for sensor in Sensor::ALL {
            world.blind(*sensor);
        }
        world.attempt().bytes_received = None;
        world.log(Message::PrematurelyClosed, Phase::ReadingHeader, None, "upstream prematurely closed connection");
        let explanation = world.explained();
        assert_eq!(explanation.cause, "keepalive-race");
        assert!(explanation.confidence < Confidence::Confirmed);
    }

    #[test]
    fn round_idle_times_point_to_timeouts() {
        assert_eq!(implied_timeout_s(5_002_100), Some(5));
        assert_eq!(implied_timeout_s(4_950_000), Some(5));
        assert_eq!(implied_timeout_s(7_400_000), None);
        assert_eq!(implied_timeout_s(60_900_000), Some(60));
        assert_eq!((shorter(1), shorter(5), shorter(60)), ("500ms".to_owned(), "4s".to_owned(), "54s".to_owned()));
    }
}
