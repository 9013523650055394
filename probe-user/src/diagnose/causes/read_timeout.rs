//! `read-timeout`: the upstream took the request and stayed silent.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::{Reading, Timer, duration, evidence, need},
        said::unseen_beyond_the_kernel,
        standstill::remark_standstill,
    },
    firewall_rejected::is_filter_drop,
    server_advice,
};
use crate::model::{
    attempt::Outcome,
    complaint::{Message, Phase},
    coverage::Sensor,
    event::{Body, EventId},
    evidence::{Fact, Weight},
};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "read-timeout",
    title: "the upstream took the request and stayed silent",
    family: Family::Connection,
    statuses: &[504],
    depth: Depth::Symptom,
    page: Page {
        happened: "The connection was up, the upstream's kernel acknowledged the whole request, and then nothing came back until \
                   nginx's timer for the time between two reads (proxy_read_timeout, 60 s by default) ran out. The application is \
                   slow, stuck, or waiting for something else; or it stands still: stopped by a signal, held by a debugger, frozen \
                   with its container. The connection may not even have been accepted: then it lay in the accept queue.",
        proof: "nginx's own timer while reading the response header; every byte of the request acknowledged; not a byte back since; \
                an application that has the connection, or that nobody accepted it although everybody who may had descriptors left; \
                and, when nginx's close comes, nothing in the upstream's own socket that was written and had not arrived. Of an \
                upstream on another host that cannot be seen: likely.",
        refuted: "Bytes of the request that were never acknowledged (path-stall, send-timeout). accept() failing in the server \
                  (fd-exhausted-upstream). A handshake that found the accept queue full (accept-queue-overflow).",
        remedies: &[
            (
                "nginx",
                "proxy_read_timeout (fastcgi_read_timeout, uwsgi_read_timeout, grpc_read_timeout, ...; default 60s) longer for \
                       this location if the work may take that long; proxy_next_upstream timeout repeats the request elsewhere - and \
                       the work with it.",
            ),
            (
                "any server",
                "What was it doing? A stack of the process (py-spy, jstack, rbspy, gdb -p) while a request hangs tells \
                            most: a database lock, a call to another service without a timeout, a full pool.",
            ),
            (
                "a process that stands still",
                "`ps -o pid,stat,wchan,comm -p PID`: T is stopped (`kill -CONT PID`), t is held by a debugger (TracerPid in \
                 /proc/PID/status); cgroup.freeze or freezer.state of its control group says whether that is frozen (docker \
                 unpause, systemctl thaw).",
            ),
            (
                "gunicorn",
                "--timeout (30 s) aborts a sync worker before nginx's 60 s: then it is a 502. --workers and --threads bound \
                          how many requests run; the others wait.",
            ),
            ("uvicorn", "A blocking call in an async handler stops every request of the process; --workers."),
            (
                "Node.js",
                "A busy event loop answers nobody: perf_hooks.monitorEventLoopDelay(); server.requestTimeout (300000 ms) does \
                         not bound the handler.",
            ),
            ("Puma", "threads 5, 5 and workers; rack-timeout interrupts."),
            (
                "php-fpm",
                "pm.max_children reached: requests wait in the listen queue (pm.status_path shows it); request_slowlog_timeout \
                         writes stacks; max_execution_time does not count waiting.",
            ),
            ("uWSGI", "--harakiri 30 ends such requests; --processes and --threads; --listen (100) is the queue."),
            ("Go", "http.TimeoutHandler answers 503 in time; pass r.Context() on to everything that can wait."),
            (
                "Java",
                "Tomcat: maxThreads (200) reached leaves connections unserved; a pool of database connections used up waits \
                      (HikariCP connectionTimeout: 30 s).",
            ),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let by_timer = reading.complains_of(&[Message::TimedOut]) && reading.phase() == Some(Phase::ReadingHeader);
    let unsaid = reading.complaint().is_none() && reading.outcome() == Outcome::TimeoutRead;
    if !(by_timer || unsaid) || reading.connected() == Some(false) {
        return None;
    }
    // Something of the request was never acknowledged: then the upstream did not take it.
    if reading.unacknowledged().is_some_and(|(bytes, _)| bytes > 0) {
        return None;
    }
    // It did answer, and its answer was lost on the way: path-stall.
    if reading.answer_lost().is_some() {
        return None;
    }
    let mut finding = Finding::default();
    finding.support(reading.complaint_evidence());
    finding.require(reading.request_acknowledged(), || {
        need(
            Sensor::NginxFunctions,
            "whether the upstream acknowledged the whole request: the socket's counters when nginx gave up",
        )
    });
    finding.require(reading.answer_evidence(), || need(Sensor::NginxFunctions, "whether a byte of an answer came"));
    let event = reading.complaint().map_or(reading.case.decided_by, |(event, _)| event.id);
    let silent_us = silence_us(reading);
    finding.support(Some(evidence(Fact::Silence { us: silent_us }, &[event], Weight::Fits)));
    if by_timer {
        let directive = reading.timer(Timer::Read);
        let timer = Fact::NginxTimer { directive, configured: reading.directive(directive).map(str::to_owned) };
        finding.support(Some(evidence(timer, &[event], Weight::Fits)));
    }
    unseen_beyond_the_kernel(&mut finding, reading);
    finding.support(reading.holder().and_then(|pid| reading.process_state(pid)));
    describe(&mut finding, reading, silent_us);
    remark_standstill(&mut finding, reading);
    if let Some((reason, event)) = answer_filtered(reading) {
        finding.oppose(Some(evidence(Fact::Dropped { reason }, &[event], Weight::Symptom)));
        finding.not_excluded(&["path-stall", "network-reset"]);
        finding
            .summary
            .push_str(" A packet filter of this host took away what the upstream sent meanwhile: perhaps its answer.");
        finding.fix.insert(
            0,
            "Look at the rules of the packet filter (`nft list ruleset`) on the way back from the upstream.".to_owned(),
        );
    }
    Some(finding)
}

/// A packet filter of this host dropped something that the upstream sent while nginx waited.
fn answer_filtered(reading: &Reading<'_>) -> Option<(Option<String>, EventId)> {
    let upstream = reading.upstream()?;
    let (since, until) = (reading.started(), reading.failed_at());
    reading.flow_events().find_map(|event| match &event.body {
        Body::Drop(drop)
            if drop.packet.source == upstream
                && event.at.earliest <= until
                && since.is_none_or(|since| event.at.latest >= since) =>
        {
            is_filter_drop(drop.reason.as_deref()).then(|| (drop.reason.clone(), event.id))
        }
        _ => None,
    })
}

/// How long nothing came, as far as it is known: since the last byte of the request, or of what there is of an answer. Connecting and sending
/// take time of their own.
fn silence_us(reading: &Reading<'_>) -> Option<u64> {
    let (tcp, _) = reading.counters_at_failure()?;
    match reading.response_bytes() {
        Some(0) => tcp.since_sent_us,
        _ => tcp.since_received_us,
    }
}

fn describe(finding: &mut Finding, reading: &Reading<'_>, silent_us: Option<u64>) {
    let upstream = reading.upstream_name();
    let unaccepted = reading.never_accepted().is_some();
    let took = match reading.request_acknowledged() {
        Some(_) if unaccepted => "was sent the whole request (its kernel took it)",
        Some(_) => "took the whole request",
        None => "was sent the request",
    };
    let silence = silent_us.map(|us| format!(" for {}", duration(us))).unwrap_or_default();
    let lasted_us = reading.started().map(|started| reading.failed_at().since_ns(started) / 1_000);
    let after = match (reading.response_bytes(), lasted_us, silent_us) {
        // nginx sets this timer once for a whole header: a byte of it now and then does not renew it
        // (`ngx_http_upstream_process_header()`, 1.22.1).
        (Some(bytes), Some(lasted), Some(silent)) if bytes > 0 && silent < lasted / 2 => {
            format!(
                "sent {bytes} bytes of a header, the last of them {} before, and did not finish it in {}",
                duration(silent),
                duration(lasted)
            )
        }
        (Some(bytes), _, Some(_)) if bytes > 0 => {
            format!("after {bytes} bytes of an unfinished header stayed silent{silence}")
        }
        (Some(bytes), ..) if bytes > 0 => format!("sent {bytes} bytes of a header that it did not finish"),
        _ => format!("stayed silent{silence}"),
    };
    finding.summary = format!("{upstream} {took} and then {after}, until nginx's timer ended it");
    // Without the socket's own word there is only the whole attempt.
    if let (None, Some(lasted)) = (silent_us, lasted_us) {
        finding.say(format_args!(" {} after the attempt began", duration(lasted)));
    }
    finding.summary.push('.');
    let holder = reading.accepted_by();
    let halted = reading
        .standstill()
        .is_some_and(|still| still.is_whole() && still.processes.iter().all(|one| one.halt.is_some()));
    if let Some((pid, command)) = holder {
        let state = finding.because.iter().find_map(|evidence| match &evidence.fact {
            Fact::ProcessState { state, wait_channel, call, .. } => {
                Some((*state, sleeps(wait_channel.as_ref(), call.as_ref())))
            }
            _ => None,
        });
        let doing = match state {
            // Said by itself.
            _ if halted => String::new(),
            // `/proc/PID/stat` is the first thread's; another one may do the work.
            Some(('R', _)) => ", and its main thread is busy on a processor".to_owned(),
            Some(('D', channel)) => {
                let channel = channel.map(|c| format!(" in {c}")).unwrap_or_default();
                format!(", and its main thread waits for the kernel{channel}")
            }
            Some((_, Some(channel))) => format!(", and its main thread sleeps in {channel}"),
            _ => String::new(),
        };
        if let Some((ended, how)) = reading.ended_before_failure(pid) {
            finding.say(format_args!(
                " {command} (pid {pid}) had accepted it, and ended ({}) {} before: another process keeps the connection open, \
                 and nobody answers.",
                super::ending(how),
                duration(reading.failed_at().since_ns(ended.at.latest) / 1_000)
            ));
            finding.support(Some(evidence(
                Fact::ProcessEnded { process: (pid, command.to_owned()), how },
                &[ended.id],
                Weight::Fits,
            )));
            finding.fix.push(format!("Find out why {command} ended under a running request: look into its log."));
        } else {
            finding.say(format_args!(" {command} (pid {pid}) accepted it{doing}."));
            let advice = format!(
                "Find out what {command} (pid {pid}) waits for, or whoever it handed the connection to: take its stack while a \
                 request hangs."
            );
            finding.fix.extend((!halted).then_some(advice));
        }
    } else if unaccepted {
        let queue = reading.accept_queue().map(|(waiting, limit, _)| format!(" ({waiting} waiting, limit {limit})"));
        finding.say(format_args!(
            " Nobody accepted the connection: it lay in the accept queue{}.",
            queue.unwrap_or_default()
        ));
        let who = reading.server_command().unwrap_or("the server");
        let advice = format!(
            "Find out what keeps {who} from accepting: are all its workers busy? Take their stacks while a request hangs; more \
             workers."
        );
        finding.fix.extend((!halted).then_some(advice));
    } else {
        let advice = format!("Find out what the server at {upstream} waits for: take its stack while a request hangs.");
        finding.fix.extend((!halted).then_some(advice));
    }
    let directive = reading.timer(Timer::Read);
    let now = reading.timeout_in_force(directive);
    let twin = if reading.protocol().is_some() { "" } else { "; for FastCGI and others its twin" };
    finding.fix.push(format!("If the work may take that long: {directive} ({now}{twin}) longer for this location."));
    finding.fix.extend(server_advice(&CAUSE, reading));
}

/// Where a process sleeps: `recvfrom()`, with the kernel's function in brackets.
fn sleeps(channel: Option<&String>, call: Option<&String>) -> Option<String> {
    match (call, channel) {
        (Some(call), Some(channel)) => Some(format!("{call}() ({channel})")),
        (Some(call), None) => Some(format!("{call}()")),
        (None, channel) => channel.cloned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use crate::{
        diagnose::testing::{LENGTH, SERVER, START, World, moment},
        model::{
            complaint::{Message, Phase},
            coverage::Sensor,
            event::{Body, Source},
            host::HostFact,
            net::Errno,
            packet::{TcpFlags, TcpHeader},
            socket::{DropEvent, TcpState},
            verdict::Confidence,
        },
    };

    fn silent(upstream: &str) -> World {
        let mut world = World::at(upstream, 504);
        world.attempt().started = Some(moment(-2_000_000));
        world.connect(-1_999_000);
        world.sent(TcpState::Established, START + LENGTH);
        // A body of some size: sending it took half a second.
        let socket = world.attempt().socket_at_failure.as_mut();
        socket.unwrap().tcp.as_mut().unwrap().since_sent_us = Some(1_500_000);
        world.complain(Message::TimedOut, Phase::ReadingHeader, Some(Errno::ETIMEDOUT), "upstream timed out");
        world
    }

    pub(crate) fn silent_here() -> World {
        let mut world = silent("127.0.0.1:8000");
        world.listening();
        world.accepted();
        world.nginx_leaves(0);
        world
    }

    #[test]
    fn the_plain_case_says_what_the_process_does() {
        let mut world = silent_here();
        let fact = HostFact::ProcessState {
            pid: SERVER,
            command: "gunicorn".to_owned(),
            state: 'S',
            wait_channel: Some("hrtimer_nanosleep".to_owned()),
            call: Some("clock_nanosleep".to_owned()),
            halt: None,
        };
        world.host(100, fact);
        let explanation = world.expect("read-timeout", Confidence::Confirmed);
        assert!(explanation.summary.contains("silent for 1.5 s"), "{}", explanation.summary);
        assert!(
            explanation.summary.contains("sleeps in clock_nanosleep() (hrtimer_nanosleep)"),
            "{}",
            explanation.summary
        );
    }

    #[test]
    fn without_the_sockets_word_the_silence_has_no_length() {
        let mut world = silent_here();
        let socket = world.attempt().socket_at_failure.as_mut();
        socket.unwrap().tcp.as_mut().unwrap().since_sent_us = None;
        let summary = world.explained().summary;
        assert!(
            summary.contains("stayed silent, until nginx's timer ended it 1.9 s after the attempt began"),
            "{summary}"
        );
    }

    /// A router of this host rejects the answer: the upstream's end is reset, and nginx hears nothing.
    #[test]
    fn an_answer_that_a_filter_took_away_is_no_silence() {
        let mut world = silent_here();
        let packet = TcpHeader {
            source: "127.0.0.1:8000".parse().unwrap(),
            destination: "127.0.0.1:41822".parse().unwrap(),
            sequence: 1,
            acknowledgement: 1,
            flags: TcpFlags(0x18),
            ttl: 64,
        };
        let drop = DropEvent { reason: Some("NETFILTER_DROP".to_owned()), netns: None, packet };
        let event = world.event(-100, Source::Kernel, Body::Drop(drop));
        world.flow().events.push_back(event);
        let explanation = world.expect("read-timeout", Confidence::Possible);
        assert!(explanation.rivals.contains(&"path-stall"), "{:?}", explanation.rivals);
    }

    /// The upstream's interface went down, or its way back is gone: nothing is even sent again.
    #[test]
    fn an_answer_that_found_no_way_back_is_no_silence() {
        let mut world = silent_here();
        world.flow().events.pop_back();
        let explanation = world.expect("read-timeout", Confidence::Likely);
        assert_eq!(explanation.rivals, ["path-stall"], "nothing shows that it had not answered");
        world.nginx_leaves(40);
        let explanation = world.expect("path-stall", Confidence::Confirmed);
        assert!(
            explanation.summary.contains("40 bytes of its answer were lost, or found no way back"),
            "{explanation:?}"
        );
        // What was sent as nginx gave up may still have been on its way.
        let Some(Body::Socket(e)) = world.flow().events.back_mut().map(|event| &mut event.body) else { panic!() };
        Arc::make_mut(e).socket.tcp.as_mut().unwrap().since_sent_us = Some(2_000);
        world.expect("read-timeout", Confidence::Likely);
    }

    #[test]
    fn a_header_that_came_in_drops_was_not_silence() {
        let mut world = silent_here();
        world.attempt().bytes_received = Some(40);
        let counters = world.attempt().socket_at_failure.as_mut().unwrap().tcp.as_mut().unwrap();
        counters.bytes_received = 40;
        counters.since_received_us = Some(96_000);
        let explanation = world.expect("read-timeout", Confidence::Confirmed);
        assert!(explanation.summary.contains("did not finish it in 1.9 s"), "{}", explanation.summary);
    }

    #[test]
    fn on_another_host_nobody_may_have_accepted_it_or_its_answer_was_lost() {
        let mut world = silent("10.9.9.9:8000");
        world.look_up(false, Vec::new(), Vec::new());
        let explanation = world.expect("read-timeout", Confidence::Likely);
        assert!(explanation.rivals.contains(&"accept-queue-overflow"), "{:?}", explanation.rivals);
        world.attempt().reused = Some(true);
        let explanation = world.expect("read-timeout", Confidence::Likely);
        assert_eq!(explanation.rivals, ["path-stall"]);
    }

    #[test]
    fn a_request_that_was_not_acknowledged_is_not_it() {
        let mut world = silent_here();
        world.sent(TcpState::Established, START);
        assert_ne!(crate::report::cause(&world.judge()), "read-timeout");
    }

    #[test]
    fn each_need_removed_lowers_it_and_names_no_other() {
        let mut world = silent_here();
        world.attempt().socket_at_failure = None;
        world.expect("read-timeout", Confidence::Likely);
        let mut world = silent_here();
        world.attempt().bytes_received = None;
        world.expect("read-timeout", Confidence::Confirmed);
        let socket = world.attempt().socket_at_failure.as_mut().unwrap();
        socket.tcp.as_mut().unwrap().bytes_received = 500;
        world.attempt().reused = Some(true);
        world.expect("read-timeout", Confidence::Likely);
        let mut world = silent_here();
        world.flow().accepted_by = None;
        world.expect("read-timeout", Confidence::Likely);
    }

    #[test]
    fn a_log_line_alone_makes_it_possible() {
        let mut world = World::new(504);
        for sensor in Sensor::ALL {
            world.blind(*sensor);
        }
        world.log(Message::TimedOut, Phase::ReadingHeader, Some(Errno::ETIMEDOUT), "upstream timed out");
        world.expect("read-timeout", Confidence::Possible);
    }
}
