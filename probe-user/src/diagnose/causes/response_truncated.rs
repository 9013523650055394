//! `response-truncated`: the connection broke after the header had been passed on.

use super::super::{
    cause::{Cause, Depth, Family, Finding, Page},
    reading::{Reading, Survival, Timer, evidence, need},
};
use crate::model::{
    attempt::{Attempt, Outcome},
    complaint::{Message, Phase},
    coverage::Sensor,
    event::EventId,
    evidence::{Evidence, Fact, Weight},
    flow::Side,
    socket::TcpState,
};

/// A worker that has had this much time since the last byte came has read it.
const WAITED_NS: u64 = 50_000_000;

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "response-truncated",
    title: "the connection broke in the middle of the answer's body",
    family: Family::Connection,
    statuses: &[],
    depth: Depth::Mechanism,
    page: Page {
        happened: "The header had gone to the client with its status, 200 for instance, and then the upstream's connection broke or fell \
                   silent: no status can say so any more. nginx cuts the client's connection; the access log keeps the 200.",
        proof: "nginx's message while reading the body, and the FIN, RST or silence that it speaks of.",
        refuted: "A header that was not whole: then it is a 502.",
        remedies: &[
            (
                "nginx",
                "proxy_read_timeout counts between two reads of the body too; proxy_max_temp_file_size and a full disk slow it.",
            ),
            (
                "any server",
                "A worker killed or recycled while it streams, a deadline, an exception in the middle of a response.",
            ),
            (
                "gunicorn",
                "--timeout (30 s) ends a sync worker also while it streams: gthread, or a longer one; --graceful-timeout (30 s) bounds a reload.",
            ),
            (
                "uvicorn",
                "An exception after http.response.start cuts the response; --timeout-graceful-shutdown bounds a shutdown.",
            ),
            (
                "Node.js",
                "stream.pipeline() instead of pipe(), so that an error of the source is seen; a Content-Length that is not what is written (response.strictContentLength throws then).",
            ),
            (
                "Puma",
                "An exception while the body is enumerated; worker_timeout (60 s) and worker_shutdown_timeout (30 s).",
            ),
            (
                "php-fpm",
                "request_terminate_timeout, max_execution_time (30 s) and memory_limit (128M) cut a script in the middle.",
            ),
            ("uWSGI", "--harakiri counts the whole response; --socket-timeout (4 s) bounds each write to nginx."),
            (
                "Go",
                "http.Server.WriteTimeout bounds the whole response, body included: 0 for streams, or http.ResponseController.SetWriteDeadline.",
            ),
            (
                "Java",
                "An exception after the response was committed; Tomcat's asyncTimeout (30000 ms), spring.mvc.async.request-timeout.",
            ),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let messages = [Message::PrematurelyClosed, Message::ReceiveFailed, Message::TimedOut];
    let said = reading.phase().is_some_and(Phase::is_after_header) && reading.complains_of(&messages);
    let seen = reading.passed_header_on() && matches!(reading.outcome(), Outcome::Reset | Outcome::Closed);
    if !(said || seen) {
        return None;
    }
    let mut finding = Finding::default();
    // Over a unix socket the end of file is the close itself, and nginx had counted what was still to come.
    let over_unix = reading.unix_path().is_some() && reading.complains_of(&[Message::PrematurelyClosed]);
    finding.support(reading.complaint_evidence().map(|evidence| {
        let seen = over_unix && evidence.weight == Weight::Symptom;
        Evidence { weight: if seen { Weight::Direct } else { evidence.weight }, ..evidence }
    }));
    let slow = reading.complains_of(&[Message::TimedOut]);
    let (close, reset) = (reading.close(), reading.reset());
    finding.support(close.as_ref().map(|close| close.evidence(Weight::Direct)));
    finding.support(reset.as_ref().map(|reset| reading.reset_evidence(reset, Weight::Direct)));
    let how = if slow {
        let event = reading.complaint().map_or(reading.case.decided_by, |(event, _)| event.id);
        let us = reading.counters_at_failure().and_then(|(tcp, _)| tcp.since_received_us);
        let weight = if us.is_some() { Weight::Direct } else { Weight::Fits };
        finding.support(Some(evidence(Fact::Silence { us }, &[event], weight)));
        "fell silent"
    } else if reset.is_some() {
        "reset the connection"
    } else {
        "closed the connection"
    };
    if !slow && !over_unix && close.is_none() && reset.is_none() {
        finding.missing.push(need(Sensor::SocketStates, "the FIN or RST that ended it"));
    }
    let lost = if reset.is_some() { written_and_lost(reading) } else { None };
    let upstream = reading.upstream_name();
    let upgraded = reading.phase() == Some(Phase::Upgraded);
    finding.summary = if upgraded && slow {
        format!("{upstream} {how} on an upgraded connection (a WebSocket, for instance), and nginx's timer ended it.")
    } else if slow && may_be_whole(reading) {
        finding.missing.push(need(Sensor::Packets, "how long the answer was to be, and whether that had come"));
        finding.fix.push(
            "See that the server closes the connection when its answer is over: a child process that has inherited it keeps it open \
             (FD_CLOEXEC)."
                .to_owned(),
        );
        format!(
            "{upstream} sent no more and did not close the connection, until nginx's timer ended it: if anything of the answer was \
             missing, the client got a cut-off response; a whole one it got late, as nginx reads such an answer to the connection's end."
        )
    } else if upgraded {
        format!(
            "{upstream} {how}, which had been upgraded (to a WebSocket, for instance): the client's was cut off too."
        )
    } else if let Some((bytes, event)) = lost.filter(|(bytes, _)| *bytes > 0) {
        finding.support(Some(evidence(Fact::AnswerDestroyed { bytes }, &[event], Weight::Direct)));
        format!(
            "{upstream} {how} in the middle of the body, and {bytes} bytes that it had written were lost with it: the client got a \
             cut-off response."
        )
    } else if let Some((_, event)) = lost.filter(|_| said && !cut_for_certain(reading) && !ended(reading)) {
        finding.oppose(Some(evidence(Fact::AnswerArrived, &[event], Weight::Symptom)));
        let unread = reading.upstream_unread().map(|(unread, _)| unread).filter(|unread| *unread > 0);
        let why = unread.map(|unread| format!(" with {unread} bytes of the request unread,")).unwrap_or_default();
        format!(
            "{upstream} closed the connection{why} by a reset when all that it had written had arrived: a client that was told the \
             length of the answer has all of it; one that was not was not told where it ends."
        )
    } else if said && reset.is_some() && !cut_for_certain(reading) {
        finding.missing.push(need(
            Sensor::Packets,
            "the answer's header: a reset right behind the last byte of an answer takes nothing from it",
        ));
        format!(
            "{upstream} {how} while nginx read the body: if anything of it was missing, the client got a cut-off response."
        )
    } else {
        format!(
            "{upstream} {how} in the middle of the body: the client got a cut-off response, whatever its status says."
        )
    };
    if let Survival::Ended(death) = reading.survival() {
        let (pid, command) = death.process.clone();
        finding
            .say(format_args!(" {command} (pid {pid}), which sent it, had just ended: {}.", super::ending(death.how)));
        let fact = Fact::ProcessEnded { process: death.process, how: death.how };
        finding.support(Some(evidence(fact, &[death.event.id], Weight::Direct)));
    }
    finding.fix.push(if upgraded && slow {
        format!("Let the application send pings more often, or make {} longer there.", reading.timer(Timer::Read))
    } else {
        let what = if upgraded { "it dropped the connection" } else { "it did not finish its response" };
        format!("Look into the log of the server at {upstream} at the time above: {what}.")
    });
    if reading.upstream_unread().is_some_and(|(unread, _)| unread > 0) && reset.is_some() {
        let read_it = "Let the application read the whole body of a request, also where it answers without it (uWSGI: --post-buffering).";
        finding.fix.insert(0, read_it.to_owned());
    }
    Some(finding)
}

/// The timer ended what may have been all of the answer.
fn may_be_whole(reading: &Reading<'_>) -> bool {
    reading.may_read_to_the_end() && reading.attempt.and_then(Attempt::answer_was_whole) != Some(false)
}

fn ended(reading: &Reading<'_>) -> bool {
    matches!(reading.survival(), Survival::Ended(_))
}

/// How much of what the upstream's application, on this host, had written by its close nginx's socket never had. What has arrived before a
/// reset nginx reads (`tcp_recvmsg_locked()`, <https://elixir.bootlin.com/linux/v6.12/source/net/ipv4/tcp.c>).
fn written_and_lost(reading: &Reading<'_>) -> Option<(u32, EventId)> {
    let (nginx, _) = reading.counters_at_failure()?;
    let flow = reading.flow()?;
    let closed =
        [TcpState::Closed, TcpState::FinWait1].into_iter().flat_map(|state| flow.entered(Side::Upstream, state));
    let (event, tcp) = closed
        .filter(|(event, _)| event.at.earliest <= reading.failed_at())
        .find_map(|(event, e)| Some((event.id, e.socket.tcp?)))?;
    // nginx's FIN counts one, where it had come.
    Some((u32::try_from(tcp.write_seq.wrapping_sub(nginx.rcv_nxt).cast_signed()).unwrap_or(0), event))
}

/// nginx had read what there was, and waited for more, when the reset came: it reads an answer to its end in one turn, and finds a reset
/// that came meanwhile only behind it.
fn cut_for_certain(reading: &Reading<'_>) -> bool {
    if let Some(whole) = reading.attempt.and_then(Attempt::answer_was_whole) {
        return !whole;
    }
    let last = reading
        .counters_at_failure()
        .and_then(|(tcp, _)| tcp.since_received_us)
        .map(|ago| reading.failed_at().minus_ns(ago.saturating_mul(1_000)));
    match (last, reading.reset()) {
        (Some(last), Some(reset)) => reset.at.since_ns(last) >= WAITED_NS,
        _ => false,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::{LENGTH, START, World, counters, unread},
        model::{
            case::CaseKind,
            complaint::{Message, Phase},
            flow::Side,
            net::Errno,
            process::Ending,
            socket::{TcpCounters, TcpState},
            verdict::Confidence,
        },
    };

    pub(crate) fn cut_off() -> World {
        let mut world = World::new(200);
        world.case.kind = CaseKind::NearMiss;
        world.listening();
        world.accepted();
        world.connect(-99);
        let tcp = counters(START + LENGTH, START + LENGTH);
        world.state_with(-40, Side::Nginx, TcpState::Established, TcpState::CloseWait, tcp);
        world.sent(TcpState::CloseWait, START + LENGTH);
        world.attempt().bytes_received = Some(900);
        world.complain(Message::PrematurelyClosed, Phase::ReadingBody, None, "upstream prematurely closed connection");
        world
    }

    #[test]
    fn the_plain_case_and_who_died() {
        let mut world = cut_off();
        world.expect("response-truncated", Confidence::Confirmed);
        world.exit(-45, Ending::Exit(1));
        let explanation = world.expect("response-truncated", Confidence::Confirmed);
        assert!(explanation.summary.contains("gunicorn (pid 88)"), "{}", explanation.summary);
    }

    #[test]
    fn before_the_header_was_whole_it_is_a_close() {
        let mut world = cut_off();
        world.case.kind = CaseKind::Incident;
        world.closed_before_header();
        world.expect("premature-close", Confidence::Confirmed);
    }

    fn reset_after(us: u64) -> World {
        let mut world = cut_off();
        world.flow().events.clear();
        world.connect(-99);
        world.reset_received(-20, TcpState::Established);
        world.complain(Message::ReceiveFailed, Phase::ReadingBody, Some(Errno::ECONNRESET), "readv() failed");
        let tcp = TcpCounters { since_received_us: Some(us), ..counters(START + LENGTH, START + LENGTH) };
        if let Some(socket) = &mut world.attempt().socket_at_failure {
            socket.tcp = Some(tcp);
        }
        world
    }

    #[test]
    fn a_reset_right_behind_the_last_byte_can_have_come_after_a_whole_answer() {
        reset_after(100_000).expect("response-truncated", Confidence::Confirmed);
        let explanation = reset_after(1_000).expect("response-truncated", Confidence::Likely);
        assert!(explanation.summary.contains("if anything of it was missing"), "{}", explanation.summary);
    }

    /// uWSGI, where the application answers without reading the body of a POST.
    #[test]
    fn a_reset_behind_all_that_was_written_need_not_have_cut_anything() {
        let closed_with = |written: u32| {
            let mut world = reset_after(1_000);
            let tcp = TcpCounters { write_seq: written, ..unread(312) };
            world.state_with(-21, Side::Upstream, TcpState::Established, TcpState::Closed, tcp);
            world.attempt().socket_at_failure.as_mut().unwrap().tcp.as_mut().unwrap().rcv_nxt = 1_000;
            world
        };
        let explanation = closed_with(1_000).expect("response-truncated", Confidence::Possible);
        assert!(explanation.summary.contains("312 bytes of the request unread"), "{}", explanation.summary);
        assert!(explanation.fix[0].contains("--post-buffering"), "{:?}", explanation.fix);
        let explanation = closed_with(1_500).expect("response-truncated", Confidence::Confirmed);
        assert!(explanation.summary.contains("500 bytes that it had written were lost"), "{}", explanation.summary);
        // One that crashes has not written all that it would have.
        let mut crashed = closed_with(1_000);
        crashed.exit(-45, Ending::Signal { signal: 11, core: false });
        crashed.expect("response-truncated", Confidence::Likely);
    }

    #[test]
    fn an_upgraded_connection_has_no_body() {
        let mut world = cut_off();
        world.flow().events.clear();
        world.reset_received(-20, TcpState::Established);
        world.complain(Message::ReceiveFailed, Phase::Upgraded, Some(Errno::ECONNRESET), "recv() failed");
        let explanation = world.expect("response-truncated", Confidence::Confirmed);
        assert!(explanation.summary.contains("upgraded"), "{}", explanation.summary);
    }

    /// A child process of the application holds the connection.
    #[test]
    fn what_nginx_reads_to_the_end_may_have_been_whole_before_its_timer() {
        let fell_silent = |pass: &str| {
            let mut world = cut_off();
            world.flow().events.clear();
            world.connect(-99);
            world.configured(&format!("http {{ server {{ location / {{ {pass}_pass 127.0.0.1:8000; }} }} }}"));
            world.complain(Message::TimedOut, Phase::ReadingBody, Some(Errno::ETIMEDOUT), "upstream timed out");
            let tcp = TcpCounters { since_received_us: Some(1_000_000), ..counters(START + LENGTH, START + LENGTH) };
            world.attempt().socket_at_failure.as_mut().unwrap().tcp = Some(tcp);
            world
        };
        let explanation = fell_silent("uwsgi").expect("response-truncated", Confidence::Likely);
        assert!(explanation.summary.contains("if anything of the answer was missing"), "{}", explanation.summary);
        fell_silent("grpc").expect("response-truncated", Confidence::Confirmed);
    }

    #[test]
    fn without_the_fin_it_is_likely() {
        let mut world = cut_off();
        world.flow().events.clear();
        world.expect("response-truncated", Confidence::Likely);
    }
}
