//! `premature-close`: the upstream closed in order, before its answer's header was whole.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::{Broken, Reading, Survival, duration, evidence, need},
    },
    server_advice,
    upstream_reset::exclude_the_rest,
};
use crate::model::{
    complaint::Phase,
    coverage::Sensor,
    evidence::{Evidence, Fact, Weight},
    process::Ending,
};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "premature-close",
    title: "the upstream closed the connection before a whole header",
    family: Family::Connection,
    statuses: &[502],
    depth: Depth::Symptom,
    page: Page {
        happened: "The upstream took the connection and closed it in order (FIN) without an answer, or in the middle of the answer's \
                   header. Its program did this on purpose or by an error path: it read what was sent, and then called close().",
        proof: "The FIN, with no or a partial header before it, acknowledging the request; and, where the upstream is on this host, \
                that its process lived on and could accept. For an upstream on another host what its process did cannot be seen: the \
                verdict is likely.",
        refuted: "A FIN that crossed the request on a reused connection (keepalive-race); the end of the process that held the \
                  connection just before (upstream-crashed, upstream-killed, upstream-exited); a process out of descriptors that \
                  sheds connections (fd-exhausted-upstream); a RST (upstream-reset).",
        remedies: &[
            (
                "nginx",
                "proxy_next_upstream error (the default) tries another server, except for POST, LOCK and PATCH. fastcgi_pass \
                       to a port that speaks HTTP, or proxy_pass to one that speaks FastCGI, ends like this.",
            ),
            (
                "any server",
                "Look in its log at this second: an unhandled exception, a shutdown, a limit of connections or requests.",
            ),
            (
                "gunicorn",
                "--max-requests with --max-requests-jitter; an exception in a sync worker before the response starts; \
                          --worker-connections (1000) and --threads as limits.",
            ),
            ("uvicorn", "An ASGI application that returns without sending http.response.start; --limit-max-requests."),
            (
                "Node.js",
                "server.maxConnections closes what is beyond; res.socket.end() or destroy() in an error path; \
                         server.requestTimeout (300000 ms).",
            ),
            ("Puma", "An application that hijacks the socket and closes it; low_level_error_handler shows the rest."),
            ("php-fpm", "listen.allowed_clients without nginx's address; a child that was ended: see the pool's log."),
            (
                "uWSGI",
                "HTTP spoken to a --socket that expects the uwsgi protocol (use uwsgi_pass or --http-socket); --buffer-size \
                       (4096) exceeded by the request's header.",
            ),
            ("Go", "A handler that panics: net/http closes the connection; http.Server.ReadHeaderTimeout."),
            ("Java", "Tomcat: connectionTimeout (20 s in server.xml); maxConnections (8192) with acceptCount (100)."),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    if reading.phase() == Some(Phase::TlsHandshake) {
        return None;
    }
    if reading.broken()? != Broken::Close {
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
        // Over a unix socket the end of file is the close itself: of the process that had the connection, after it had read everything.
        let seen = accepted.is_some() && crossed == Some(false) && evidence.weight == Weight::Symptom;
        Evidence { weight: if seen { Weight::Direct } else { evidence.weight }, ..evidence }
    }));
    finding.support(accepted);
    let close = reading.close();
    finding.support(close.as_ref().map(|close| close.evidence(Weight::Direct)));
    if close.is_none() && reading.unix_path().is_none() {
        finding.missing.push(need(Sensor::SocketStates, "the FIN by which the upstream closed"));
    }
    finding.require(reading.answer_evidence(), || need(Sensor::NginxFunctions, "how many bytes of an answer came"));
    if reused != Some(false) && crossed.is_none() {
        finding.not_excluded(&["keepalive-race"]);
        finding.missing.push(need(Sensor::SocketStates, "whether the close crossed the request or followed it"));
    }
    exclude_the_rest(&mut finding, reading, survival);
    describe(&mut finding, reading);
    Some(finding)
}

fn describe(finding: &mut Finding, reading: &Reading<'_>) {
    let upstream = reading.upstream_name();
    let after = reading
        .close()
        .and_then(|close| reading.began().map(|started| close.at.since_ns(started) / 1_000))
        .map(|us| format!(" {} after the attempt began", duration(us)))
        .unwrap_or_default();
    let fin = if reading.unix_path().is_some() { "" } else { " (FIN)" };
    let answer = match reading.response_bytes() {
        Some(0) => "without a byte of an answer".to_owned(),
        Some(bytes) => format!("after {bytes} bytes of an unfinished header"),
        None => "before the answer's header was whole".to_owned(),
    };
    finding.summary = format!("{upstream} closed the connection in order{fin}{after}, {answer}.");
    let who = reading.accepted_by();
    let look = match who {
        Some((pid, command)) => {
            match reading.handed_to() {
                Some(closer) => finding.say(format_args!(
                    " {command} (pid {pid}) had accepted it, and the process with pid {closer} closed it."
                )),
                None => finding.say(format_args!(" {command} (pid {pid}) held it, and closed it.")),
            }
            if let Some((event, after)) = reading.left_afterwards() {
                let process = (pid, command.to_owned());
                let ended = Fact::ProcessEnded { process, how: Ending::Exit(0) };
                finding.support(Some(evidence(ended, &[event], Weight::Fits)));
                finding.say(format_args!(" It ended in order (exit status 0) {} later.", duration(after)));
            }
            format!(
                "Look into the log of {command} (pid {pid}) at the time above: this request's connection was closed unanswered."
            )
        }
        None => format!(
            "Look into the log of the server at {upstream} at the time above: it closed this request's connection unanswered."
        ),
    };
    finding.fix.push(look);
    finding.fix.extend(server_advice(&CAUSE, reading));
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::{LENGTH, START, World, closed_by, closed_by_handler, counters},
        model::{
            complaint::{Message, Phase},
            coverage::Sensor,
            flow::Side,
            process::{Ending, Pid, ProcessEvent, Role, Untaken},
            socket::TcpState,
            verdict::Confidence,
        },
    };

    const TEXT: &str = "upstream prematurely closed connection";

    pub(crate) fn closed(upstream: &str) -> World {
        let mut world = World::at(upstream, 502);
        world.connect(-90);
        let tcp = counters(START + LENGTH, START + LENGTH);
        world.state_with(-40, Side::Nginx, TcpState::Established, TcpState::CloseWait, tcp);
        world.sent(TcpState::CloseWait, START + LENGTH);
        world.complain(Message::PrematurelyClosed, Phase::ReadingHeader, None, TEXT);
        world
    }

    pub(crate) fn closed_here() -> World {
        let mut world = closed("127.0.0.1:8000");
        world.listening();
        world.accepted();
        world
    }

    #[test]
    fn a_process_for_each_connection_ends_in_order_after_it() {
        let explanation = closed_by_handler(Ending::Exit(0)).expect("premature-close", Confidence::Confirmed);
        assert!(explanation.summary.contains("ended in order (exit status 0) 20."), "{}", explanation.summary);
    }

    #[test]
    fn the_plain_case_and_half_a_header() {
        closed_here().expect("premature-close", Confidence::Confirmed);
        let mut world = closed_here();
        world.attempt().bytes_received = Some(30);
        let explanation = world.expect("premature-close", Confidence::Confirmed);
        assert!(explanation.summary.contains("30 bytes of an unfinished header"), "{}", explanation.summary);
    }

    #[test]
    fn what_another_hosts_process_did_is_not_known() {
        let mut world = closed("10.9.9.9:8000");
        world.look_up(false, Vec::new(), Vec::new());
        let explanation = world.expect("premature-close", Confidence::Likely);
        assert!(explanation.rivals.contains(&"upstream-crashed"));
    }

    #[test]
    fn the_end_of_the_process_says_more() {
        let mut world = closed_here();
        world.exit(-45, Ending::Signal { signal: 11, core: true });
        world.signal(-50, 11, None);
        world.expect("upstream-crashed", Confidence::Confirmed);
    }

    /// gunicorn's worker closes what is open and needs longer than a case to end, after its arbiter's SIGABRT.
    #[test]
    fn a_process_that_was_asked_to_end_has_perhaps_not_done_it_by_itself() {
        let mut world = closed_here();
        world.signal(-50, 6, Some((80, "gunicorn")));
        let explanation = world.expect("premature-close", Confidence::Likely);
        assert!(explanation.rivals.contains(&"upstream-killed"));
    }

    fn with_an_end_of_another(how: Ending) -> World {
        let mut world = closed_here();
        let (pid, role, command) = (Pid(4711), Role::Upstream, "gunicorn".to_owned());
        world.process(-45, ProcessEvent::Exited { pid, role, command, how, untaken: Untaken::default() });
        world
    }

    #[test]
    fn an_earlier_end_of_another_process_changes_nothing() {
        let mut world = with_an_end_of_another(Ending::Exit(0));
        closed_by(&mut world, -41, Pid(88));
        let explanation = world.expect("premature-close", Confidence::Confirmed);
        assert!(explanation.summary.contains("held it, and closed it"), "{}", explanation.summary);
    }

    /// A server that forks for each connection: its child holds what it accepted.
    #[test]
    fn a_process_that_was_handed_the_connection_and_crashed_is_the_cause() {
        let mut world = with_an_end_of_another(Ending::Signal { signal: 11, core: false });
        closed_by(&mut world, -41, Pid(4711));
        let explanation = world.expect("upstream-crashed", Confidence::Confirmed);
        assert!(explanation.summary.contains("(pid 4711)"), "{}", explanation.summary);
    }

    #[test]
    fn who_closed_what_another_accepted_is_named() {
        let mut world = closed_here();
        closed_by(&mut world, -41, Pid(4711));
        let explanation = world.expect("premature-close", Confidence::Confirmed);
        assert!(explanation.summary.contains("had accepted it, and the process with pid 4711 closed it"));
    }

    #[test]
    fn the_end_of_another_process_counts_where_nobody_saw_who_closed() {
        let world = with_an_end_of_another(Ending::Signal { signal: 11, core: false });
        let explanation = world.expect("premature-close", Confidence::Likely);
        assert!(explanation.rivals.contains(&"upstream-crashed"));
    }

    #[test]
    fn each_need_removed_lowers_it_and_names_no_other() {
        for sensor in [Sensor::Processes, Sensor::Syscalls] {
            let mut world = closed_here();
            world.blind(sensor);
            world.expect("premature-close", Confidence::Likely);
        }
        let mut world = closed_here();
        world.case.coverage.events_lost = 3;
        world.expect("premature-close", Confidence::Likely);
        let mut world = closed_here();
        world.flow().events.clear();
        world.expect("premature-close", Confidence::Likely);
    }

    #[test]
    fn reused_and_the_order_unknown_names_the_race() {
        let mut world = closed_here();
        world.attempt().reused = None;
        world.attempt().requests_before = None;
        world.attempt().started = None;
        world.attempt().socket_at_failure = None;
        let explanation = world.expect("premature-close", Confidence::Likely);
        assert!(explanation.rivals.contains(&"keepalive-race"), "{:?}", explanation.rivals);
    }

    #[test]
    fn a_log_line_alone_makes_it_possible() {
        let mut world = World::new(502);
        for sensor in Sensor::ALL {
            world.blind(*sensor);
        }
        world.attempt().bytes_received = None;
        world.log(Message::PrematurelyClosed, Phase::ReadingHeader, None, TEXT);
        world.expect("premature-close", Confidence::Possible);
    }
}
