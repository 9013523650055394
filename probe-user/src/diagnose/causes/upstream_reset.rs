//! `upstream-reset`: the upstream's side reset the connection before its answer's header was whole.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::{Broken, Locality, Reading, Survival, duration, need},
    },
    PROCESS_GONE, server_advice,
};
use crate::model::{
    complaint::{Message, Phase},
    coverage::Sensor,
    evidence::{Evidence, Fact, Weight},
    flow::Side,
    net::Errno,
    socket::TcpState,
};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "upstream-reset",
    title: "the upstream reset the connection before a whole header",
    family: Family::Connection,
    statuses: &[502],
    depth: Depth::Symptom,
    page: Page {
        happened: "The connection was up and the request on its way or taken, when the upstream's side sent a reset (RST) instead of \
                   an answer. A kernel sends one when a program closes a socket with bytes still unread, when it closes with linger \
                   time 0, or when data arrives for a socket that it has closed.",
        proof: "The RST, and that it came from the upstream: on this host the kernel's record of sending it with its reason, and that \
                the process lived on. For an upstream on another host its kernel is not ours: the verdict is likely, and a middlebox \
                (network-reset) or the end of the process are named.",
        refuted: "A RST that answered the SYN (upstream-refused); one that crossed the request on a reused connection \
                  (keepalive-race); the end of the process just before (upstream-crashed, upstream-killed, ...); a reset that the \
                  upstream's kernel never sent (network-reset).",
        remedies: &[
            (
                "nginx",
                "A reset is repeated on another server by proxy_next_upstream error (the default), except for POST, LOCK and \
                       PATCH. Large uploads that the server refuses without reading them end like this: see client_max_body_size.",
            ),
            (
                "any server",
                "Look in its log at this second: an exception handler that drops the connection, a request limit, a \
                            worker being recycled, a deadline that aborts. Close only after reading what was sent.",
            ),
            (
                "gunicorn",
                "--max-requests recycles workers; --graceful-timeout (30 s) gives them time; --timeout (30 s) aborts them. \
                          --limit-request-line and --limit-request-field_size refuse what is too long.",
            ),
            (
                "uvicorn",
                "--limit-concurrency answers 503, --limit-max-requests ends the process, --timeout-graceful-shutdown (from 0.22) bounds the wait.",
            ),
            (
                "Node.js",
                "req.destroy() and socket.destroy() before a response; server.requestTimeout (300000 ms) and \
                         server.headersTimeout (60000 ms); a handler for the 'clientError' event that destroys the socket.",
            ),
            ("Puma", "first_data_timeout (30 s) and worker_timeout (60 s)."),
            (
                "php-fpm",
                "request_terminate_timeout ends the child; listen.allowed_clients closes connections of others unread.",
            ),
            ("uWSGI", "--harakiri kills the worker; --buffer-size (4096) refuses longer request headers by closing."),
            (
                "Go",
                "panic(http.ErrAbortHandler) and http.MaxBytesReader close the connection; ReadTimeout and WriteTimeout cut it.",
            ),
            (
                "Java",
                "Tomcat: maxSwallowSize (2 MB): an upload refused beyond it is cut off; server.tomcat.max-http-form-post-size.",
            ),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    if reading.phase() == Some(Phase::TlsHandshake) {
        return None;
    }
    if reading.broken()? != Broken::Reset {
        return None;
    }
    let crossed = reading.crossed();
    let survival = reading.survival();
    let reused = reading.reused();
    if (crossed == Some(true) && reused == Some(true)) || matches!(survival, Survival::Ended(_)) {
        return None;
    }
    let mut finding = Finding::default();
    let accepted = reading.accepted_over_unix();
    finding.support(reading.complaint_evidence().map(|evidence| {
        // Over a unix socket only the end that was closed with bytes unread gives this errno (`unix_release_sock()`), and only the process
        // that had it could close it.
        let seen = accepted.is_some() && reading.complains_of(&[Message::ReceiveFailed]);
        let seen = seen && reading.errno() == Some(Errno::ECONNRESET) && evidence.weight == Weight::Symptom;
        Evidence { weight: if seen { Weight::Direct } else { evidence.weight }, ..evidence }
    }));
    let reset = reading.reset();
    finding.support(reset.as_ref().map(|reset| reading.reset_evidence(reset, Weight::Symptom)));
    if reset.is_none() && reading.unix_path().is_none() {
        finding.missing.push(need(Sensor::ResetsReceived, "the RST that ended the connection"));
    }
    finding.support(reading.request_acknowledged().map(|mut evidence| {
        evidence.weight = Weight::Symptom;
        evidence
    }));
    finding.support(reading.answer_evidence());
    finding.support(accepted);
    finding.support(reading.unaccepted_evidence());
    let by_listener = reset.as_ref().is_some_and(|reset| reset.sent_here.as_ref().is_some_and(|sent| sent.by_listener));
    if by_listener {
        finding.missing.push(need(Sensor::SocketStates, "what became of the end in whose place a listener answered"));
    }
    let sent_here = reset.as_ref().and_then(|reset| reading.sent_here_evidence(reset, Weight::Direct));
    let why = sent_here.as_ref().map(|evidence| evidence.fact.clone());
    let sent_here = sent_here.or_else(|| reading.aborted_here());
    let origin_seen = finding.support(sent_here);
    // Over a unix socket there is nobody between.
    if !origin_seen && reading.unix_path().is_none() {
        for mark in reading.foreign_reset() {
            finding.oppose(Some(mark));
        }
        finding.not_excluded(&["network-reset"]);
        finding.missing.push(match reading.locality() {
            Locality::Here => {
                need(Sensor::ResetsSent, "the kernel's record of sending that RST from the upstream's end")
            }
            Locality::Elsewhere | Locality::Unwatched | Locality::Unknown => {
                reading.unseen(Sensor::ResetsSent, "who sent the RST")
            }
        });
    }
    if reused != Some(false) && crossed.is_none() {
        finding.not_excluded(&["keepalive-race"]);
        finding.missing.push(need(Sensor::SocketStates, "whether the reset crossed the request or followed it"));
    }
    // recv() hands out what came before the reset; a failing write leaves it unread.
    if reading.complains_of(&[Message::SendFailed]) && reading.counters_at_failure().is_none() {
        finding.not_excluded(&["early-response-lost"]);
        finding.missing.push(need(Sensor::NginxFunctions, "whether an answer lay unread in nginx's socket"));
    }
    exclude_the_rest(&mut finding, reading, survival);
    describe(&mut finding, reading, why.as_ref(), by_listener);
    Some(finding)
}

/// What says more than a reset or a close, and must be excluded before one of them is the whole story.
pub(super) fn exclude_the_rest(finding: &mut Finding, reading: &Reading<'_>, survival: Survival<'_>) {
    if let Survival::NotKnown(needed) = survival {
        finding.missing.push(needed);
        finding.not_excluded(PROCESS_GONE);
    }
    if reading.reused() != Some(true) && reading.locality() != Locality::Elsewhere {
        if !reading.sees(Sensor::Syscalls) {
            finding.missing.push(need(Sensor::Syscalls, "whether the upstream's process could accept connections"));
            finding.not_excluded(&["fd-exhausted-upstream"]);
        } else if reading.taken_by_application().is_none()
            && (reading.closed_unaccepted().is_none() || reading.failed_accepts().next().is_some())
        {
            finding.missing.push(need(Sensor::Syscalls, "whether a process had accepted the connection"));
            finding.not_excluded(&["fd-exhausted-upstream", "accept-queue-overflow"]);
        }
    }
}

fn describe(finding: &mut Finding, reading: &Reading<'_>, why: Option<&Fact>, by_listener: bool) {
    let upstream = reading.upstream_name();
    let after = reading
        .reset()
        .and_then(|reset| reading.began().map(|started| reset.at.since_ns(started) / 1_000))
        .map(|us| format!(" {} after the attempt began", duration(us)))
        .unwrap_or_default();
    let answer = match reading.response_bytes() {
        Some(0) => ", before a byte of an answer".to_owned(),
        Some(bytes) => format!(", after {bytes} bytes of an unfinished header"),
        None => String::new(),
    };
    finding.summary = format!("{upstream} reset the connection{after}{answer}.");
    if let Some(Fact::UpstreamKernelReset { reason, unread }) = why {
        let destroyed = reading.flow().is_some_and(|flow| {
            flow.entered(Side::Upstream, TcpState::Closed).any(|(_, e)| e.socket.error == Some(Errno::ECONNABORTED))
        });
        let words = match (reason.as_deref(), unread) {
            // `tcp_abort()`: its process is not asked.
            _ if destroyed => {
                Some("somebody destroyed the socket from outside (`ss -K`, or a program that does the same)".to_owned())
            }
            (reason, _) if by_listener => {
                let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
                Some(format!("a listener answered, which does not know the connection{reason}"))
            }
            _ if reading.closed_unaccepted().is_some() => {
                Some("its listener was closed while this connection waited there, accepted by nobody".to_owned())
            }
            (Some("TCP_ABORT_ON_CLOSE"), Some(unread)) if *unread > 0 => {
                Some(format!("its process closed the socket with {unread} bytes unread"))
            }
            (Some("TCP_ABORT_ON_CLOSE"), _) => Some("its process closed the socket with bytes unread".to_owned()),
            (Some("TCP_ABORT_ON_DATA"), _) => Some("data came for a socket that its process had closed".to_owned()),
            (Some("TCP_ABORT_ON_LINGER" | "TCP_STATE"), _) => Some(
                "its process aborted the connection (closed it with linger time 0, or closed the listener)".to_owned(),
            ),
            (Some("TCP_ABORT_ON_MEMORY"), _) => Some("the kernel was out of memory for TCP".to_owned()),
            (Some("TCP_KEEPALIVE_TIMEOUT"), _) => Some("a keepalive or user timeout of that socket ran out".to_owned()),
            (Some(reason), _) => Some(format!("the kernel's reason there is {reason}")),
            (None, Some(unread)) if *unread > 0 => Some(format!("{unread} bytes of the request were unread there")),
            _ => None,
        };
        if let Some(words) = words {
            finding.say(format_args!(" On the upstream's end {words}."));
        }
    }
    let when = "the time above";
    let who = reading.accepted_by();
    finding.fix.push(match who {
        Some((pid, command)) => {
            format!("Look into the log of {command} (pid {pid}) at {when}: it dropped this request without an answer.")
        }
        None => format!(
            "Look into the log of the server at {upstream} at {when}: it dropped this request without an answer."
        ),
    });
    finding.fix.extend(server_advice(&CAUSE, reading));
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::{LENGTH, SERVER, START, World, moment, unaccepted, unread},
        model::{
            complaint::{Message, Phase},
            coverage::Sensor,
            flow::Side,
            net::Errno,
            process::{Ending, Pid},
            socket::TcpState,
            verdict::Confidence,
        },
    };

    pub(crate) fn reset() -> World {
        let mut world = World::new(502);
        world.listening();
        world.accepted();
        world.attempt().started = Some(moment(-50_000));
        world.connect(-49_900);
        world.state_with(-60, Side::Upstream, TcpState::Established, TcpState::Closed, unread(0));
        world.reset_received(-58, TcpState::Established);
        world.state(-57, Side::Nginx, TcpState::Established, TcpState::Closed, Some(Errno::ECONNRESET));
        world.reset_sent(-56, "TCP_STATE", None);
        world.sent(TcpState::Closed, START + LENGTH);
        world.complain(Message::ReceiveFailed, Phase::ReadingHeader, Some(Errno::ECONNRESET), "recv() failed");
        world
    }

    #[test]
    fn the_plain_case() {
        let explanation = reset().expect("upstream-reset", Confidence::Confirmed);
        assert!(explanation.summary.contains("linger time 0"), "{}", explanation.summary);
    }

    /// OpenSSL found no record in what it read: nobody has reset anything.
    #[test]
    fn an_error_of_tls_is_no_reset() {
        let mut world = reset();
        world.flow().events.clear();
        world.connect(-49_900);
        world.sent(TcpState::Established, START + LENGTH);
        let text = "SSL_read() failed (SSL: error:0A00010B:SSL routines::wrong version number)";
        world.complain(Message::ReceiveFailed, Phase::ReadingHeader, None, text);
        assert_eq!(crate::report::cause(&world.judge()), "unknown");
        world.attempt().reused = Some(true);
        assert_eq!(crate::report::cause(&world.judge()), "unknown");
    }

    #[test]
    fn a_socket_destroyed_from_outside_is_not_its_process_doing() {
        let mut world = reset();
        world.flow().events.retain(|event| event.at.latest < moment(-60));
        world.state(-60, Side::Upstream, TcpState::Established, TcpState::Closed, Some(Errno::ECONNABORTED));
        world.reset_received(-58, TcpState::Established);
        world.reset_sent(-56, "TCP_STATE", None);
        let explanation = world.explained();
        assert_eq!(explanation.cause, "upstream-reset");
        assert!(explanation.summary.contains("destroyed the socket from outside"), "{}", explanation.summary);
    }

    #[test]
    fn a_listener_that_was_closed_by_a_process_that_lives_on() {
        let world = unaccepted(SERVER);
        let explanation = world.expect("upstream-reset", Confidence::Confirmed);
        assert!(explanation.summary.contains("its listener was closed"), "{}", explanation.summary);
        // Whose end would not have been seen.
        let explanation = unaccepted(Pid(4711)).expect("upstream-reset", Confidence::Likely);
        assert!(explanation.rivals.contains(&"upstream-exited"), "{:?}", explanation.rivals);
    }

    #[test]
    fn unread_bytes_are_told() {
        let mut world = reset();
        world.flow().events.clear();
        world.connect(-49_900);
        world.state_with(-60, Side::Upstream, TcpState::Established, TcpState::Closed, unread(100));
        world.reset_received(-58, TcpState::Established);
        world.reset_sent(-56, "TCP_ABORT_ON_CLOSE", None);
        let explanation = world.expect("upstream-reset", Confidence::Confirmed);
        assert!(explanation.summary.contains("100 bytes unread"), "{}", explanation.summary);
    }

    #[test]
    fn well_into_the_work_on_a_reused_connection_it_is_still_this() {
        let mut world = reset();
        world.attempt().reused = Some(true);
        world.expect("upstream-reset", Confidence::Confirmed);
    }

    #[test]
    fn the_end_of_the_process_says_more() {
        let mut world = reset();
        world.signal(-300, 9, Some((1, "systemd")));
        world.exit(-100, Ending::Signal { signal: 9, core: false });
        world.expect("upstream-killed", Confidence::Confirmed);
    }

    #[test]
    fn on_another_host_it_is_likely() {
        let mut world = World::at("10.9.9.9:8000", 502);
        world.look_up(false, Vec::new(), Vec::new());
        world.connect(-90);
        world.reset_received(-58, TcpState::Established);
        world.sent(TcpState::Closed, START + LENGTH);
        world.complain(Message::ReceiveFailed, Phase::ReadingHeader, Some(Errno::ECONNRESET), "recv() failed");
        let explanation = world.expect("upstream-reset", Confidence::Likely);
        assert!(explanation.rivals.contains(&"network-reset") && explanation.rivals.contains(&"upstream-killed"));
    }

    #[test]
    fn each_need_removed_lowers_it_and_names_no_other() {
        for sensor in [Sensor::Processes, Sensor::Syscalls] {
            let mut world = reset();
            world.blind(sensor);
            world.expect("upstream-reset", Confidence::Likely);
        }
        let mut world = reset();
        world.blind(Sensor::ResetsSent).blind(Sensor::SocketStates);
        world.flow().events.retain(|event| format!("{event:?}").contains("ResetReceived"));
        world.flow().accepted_by = None;
        world.expect("upstream-reset", Confidence::Likely);
    }

    #[test]
    fn a_log_line_alone_makes_it_possible() {
        let mut world = World::new(502);
        for sensor in Sensor::ALL {
            world.blind(*sensor);
        }
        world.attempt().bytes_received = None;
        world.log(Message::ReceiveFailed, Phase::ReadingHeader, Some(Errno::ECONNRESET), "recv() failed");
        world.expect("upstream-reset", Confidence::Possible);
    }
}
