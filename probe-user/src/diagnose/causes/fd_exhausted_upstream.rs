//! `fd-exhausted-upstream`: the upstream's process cannot accept: it is out of descriptors.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::{FailedAccept, Locality, Reading, Survival, duration, evidence, need},
    },
    firewall_rejected::is_filter_drop,
    server_advice,
};
use crate::model::{
    coverage::Sensor,
    evidence::{Evidence, Fact, Weight},
    net::Errno,
    socket::is_full,
    verdict::Need,
};

/// The shortage lasts until somebody closes something; servers that hit it try again at least this often.
const LASTS_NS: u64 = 5_000_000_000;
/// Records of two processors can be swapped by this much.
const SKEW_NS: u64 = 1_000_000;
/// So many failed calls are enough to show it.
const SHOWN: usize = 3;

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "fd-exhausted-upstream",
    title: "the upstream's process is out of file descriptors",
    family: Family::Connect,
    statuses: &[502, 504],
    depth: Depth::Mechanism,
    page: Page {
        happened: "The upstream's process reached its limit of open files (EMFILE): accept() fails. Its kernel still completes \
                   connections, so nginx is connected and sends; then, as the server has it, the connection waits in the accept queue \
                   until nginx gives up (504), or is taken only to be closed at once (Node.js, libuv: 502).",
        proof: "accept() returning EMFILE (ENFILE) in the process that listens there, while this attempt waited; and that this \
                connection was never accepted, or was closed without a byte of it being read. A process that had read the request, \
                and then could open no file or make no socket, is the likely reason of a close: its own log must say so.",
        refuted: "An application that had accepted the connection before and read from it (read-timeout, premature-close).",
        remedies: &[
            (
                "any server",
                "Raise the limit of open files: systemd LimitNOFILE=65535, containers --ulimit nofile, ulimit -n in the \
                            start script. Then look for what is not closed: `ls -l /proc/PID/fd | sort -k11` shows what is open.",
            ),
            (
                "nginx",
                "keepalive in the upstream block bounds idle connections per worker; max_conns on the server line bounds all of \
                       them (with a zone, over all workers).",
            ),
            (
                "gunicorn",
                "--worker-connections (1000) below the limit for asynchronous workers; one descriptor per connection and more \
                          for each database connection.",
            ),
            ("uvicorn", "--limit-concurrency below the limit answers 503 instead."),
            (
                "Node.js",
                "server.maxConnections below the limit; libuv keeps one spare descriptor, takes the connection with it and \
                         closes it at once: hence the 502. Agents without keepAlive leak sockets slowly.",
            ),
            (
                "Puma",
                "Each thread, each database connection and each keep-alive connection takes one; max_fast_inline, threads.",
            ),
            ("php-fpm", "rlimit_files in the pool."),
            ("uWSGI", "--max-fd 65535."),
            (
                "Go",
                "net/http retries accept with a growing pause (5 ms to 1 s) and logs it; leaked response bodies are the usual cause.",
            ),
            (
                "Java",
                "-XX:-MaxFDLimit keeps the soft limit; Tomcat's acceptor pauses and logs; maxConnections (8192) below the limit.",
            ),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    accepting(reading).or_else(|| serving(reading))
}

/// It had taken the connection and read the request, and meanwhile it could make no socket or open no file. Whether that is why it
/// let go of the request, only its own log says.
fn serving(reading: &Reading<'_>) -> Option<Finding> {
    reading.broken()?;
    let gone = matches!(reading.survival(), Survival::Ended(_));
    let unread = reading.application_read() == Some(0) || reading.crossed() == Some(true);
    if gone || unread || reading.locality() == Locality::Elsewhere {
        return None;
    }
    let (pid, command) = reading.attempt?.holder()?;
    let calls = reading.starved_holder(Weight::Symptom);
    let mut finding = Finding::default();
    // That the connection broke is no sign of what the process lacked: only the failing call is.
    let complaint = reading.complaint_evidence();
    finding.support(complaint.map(|evidence| Evidence { weight: Weight::Fits, ..evidence }));
    let Some(Fact::SyscallFailed { call, errno, .. }) = calls.last().map(|call| &call.fact) else { return None };
    let what = format!("{call}() = {errno} while it served this request");
    for call in calls.into_iter().rev().take(SHOWN) {
        finding.support(Some(call));
    }
    finding.support(reading.open_files(pid));
    let (close, reset) = (reading.close(), reading.reset());
    let symptom = if reset.is_some() { "upstream-reset" } else { "premature-close" };
    finding.support(close.map(|close| close.evidence(Weight::Fits)));
    finding.support(reset.map(|reset| reading.reset_evidence(&reset, Weight::Fits)));
    finding.missing.push(Need { sensor: None, what: "why it ended the connection: its own log says".to_owned() });
    finding.not_excluded(&[symptom]);
    let upstream = reading.upstream_name();
    finding.summary = format!(
        "{command} (pid {pid}), which serves {upstream}, is out of file descriptors ({what}), and ended this connection."
    );
    finding.fix.push(format!("Look into the log of {command} (pid {pid}) for \"too many open files\"; raise its limit: LimitNOFILE= in its systemd unit, or its container's ulimit."));
    finding.fix.push(format!("See what it holds open: `ls -l /proc/{pid}/fd`; thousands of the same kind are a leak."));
    finding.fix.extend(server_advice(&CAUSE, reading));
    Some(finding)
}

/// It cannot accept.
fn accepting(reading: &Reading<'_>) -> Option<Finding> {
    if reading.reused() == Some(true) || reading.response_bytes().is_some_and(|bytes| bytes > 0) {
        return None;
    }
    let broken = reading.broken().is_some();
    let timed_out = reading.timed_out_unanswered();
    if !(broken || timed_out) || reading.locality() == Locality::Elsewhere {
        return None;
    }
    let ended = if broken { reading.ended_at() } else { reading.failed_at() };
    let since = reading.started().unwrap_or(ended).minus_ns(LASTS_NS);
    let mut failures: Vec<FailedAccept<'_>> = reading
        .failed_accepts()
        .filter(|failure| matches!(failure.errno, Errno::EMFILE | Errno::ENFILE))
        .filter(|f| f.event.at.latest >= since && f.event.at.earliest <= ended.plus_ns(SKEW_NS))
        .collect();
    if failures.iter().any(|failure| failure.certain) {
        failures.retain(|failure| failure.certain);
    }
    let last = failures.last()?;
    let began = reading.started().unwrap_or(ended);
    let while_waiting = failures.iter().any(|failure| failure.event.at.latest.plus_ns(SKEW_NS) >= began);
    // An application that had the connection and read from it was not kept from it.
    let holder = reading.accepted_by().map(|(pid, _)| pid);
    let read = if broken { reading.application_read() } else { reading.read_when_nginx_left() };
    if read.is_some_and(|bytes| bytes > 0) || (timed_out && holder.is_some()) {
        return None;
    }

    // Before the handshake is over only a full queue can be the server's doing; a packet filter's drop is another story.
    let connecting = !broken && reading.connected() != Some(true);
    let full = last.queue.is_some_and(is_full);
    if reading.drops().any(|(_, reason)| is_filter_drop(reason)) || (connecting && !full) {
        return None;
    }
    let mut finding = Finding::default();
    finding.support(reading.complaint_evidence());
    let untouched = if broken {
        // Who hands what it accepted to another process has descriptors enough for it.
        read == Some(0) && (holder.is_none() || holder == Some(last.process.0)) && reading.handed_to().is_none()
    } else if connecting {
        reading.sees(Sensor::Drops)
    } else {
        // When nginx gave up, the upstream's socket was told; what was unread then is what nobody took.
        holder.is_none() && reading.sees(Sensor::Syscalls) && read == Some(0)
    };
    let weight = if untouched && while_waiting && last.certain { Weight::Direct } else { Weight::Symptom };
    for failure in failures.iter().rev().take(SHOWN) {
        let fact = Fact::SyscallFailed { call: "accept", process: Some(failure.process.clone()), errno: failure.errno };
        finding.support(Some(evidence(fact, &[failure.event.id], weight)));
    }
    if !while_waiting {
        finding.missing.push(need(Sensor::Syscalls, "a failing accept() while this very attempt waited"));
    }
    if !last.certain {
        finding.missing.push(need(Sensor::Host, "whether it is this listener that the upstream's address leads to"));
        finding.not_excluded(if broken { &["premature-close", "upstream-reset"] } else { &["read-timeout"] });
    }
    if !untouched {
        let (sensor, what) = if broken {
            (Sensor::SocketStates, "whether the upstream's application had read anything of this request")
        } else {
            (Sensor::Syscalls, "whether this connection was ever accepted")
        };
        finding.missing.push(need(sensor, what));
        finding.not_excluded(if broken { &["premature-close", "upstream-reset"] } else { &["read-timeout"] });
    }
    if let Some((waiting, limit)) = last.queue {
        finding.support(Some(evidence(Fact::AcceptQueue { waiting, limit }, &[last.event.id], Weight::Fits)));
    }
    let (close, reset) = (reading.close(), reading.reset());
    finding.support(close.as_ref().map(|close| close.evidence(Weight::Symptom)));
    finding.support(reset.as_ref().map(|reset| reading.reset_evidence(reset, Weight::Symptom)));
    finding.support(reading.answer_evidence());
    describe(&mut finding, reading, last, broken);
    Some(finding)
}

fn describe(finding: &mut Finding, reading: &Reading<'_>, last: &FailedAccept<'_>, broken: bool) {
    let (pid, command) = &last.process;
    let files = reading.open_files(*pid);
    let counts = files.as_ref().and_then(|evidence| match &evidence.fact {
        Fact::OpenFiles { open, limit: Some(limit), .. } => Some((*open, *limit)),
        _ => None,
    });
    finding.support(files);
    let upstream = reading.upstream_name();
    let outcome = if broken {
        "it closed this connection without reading the request".to_owned()
    } else {
        let waited = reading.started().map(|started| reading.failed_at().since_ns(started) / 1_000);
        format!(
            "this connection waited unaccepted{}",
            waited.map(|us| format!(" for {}", duration(us))).unwrap_or_default()
        )
    };
    let seen = counts.map(|(open, limit)| format!(" It has {open} of {limit} files open.")).unwrap_or_default();
    finding.summary = format!(
        "{command} (pid {pid}), which serves {upstream}, is out of file descriptors (accept() = {}): {outcome}.{seen}",
        last.errno
    );
    let limit = counts.map(|(_, limit)| format!(" (now {limit})")).unwrap_or_default();
    finding.fix.push(format!("Raise the limit of open files of {command}{limit}: LimitNOFILE= in its systemd unit, or its container's ulimit."));
    finding.fix.push(format!("See what it holds open: `ls -l /proc/{pid}/fd`; thousands of the same kind are a leak."));
    finding.fix.extend(server_advice(&CAUSE, reading));
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use crate::{
        diagnose::testing::{LENGTH, SERVER, START, World, closed_by, counters, moment},
        model::{
            complaint::{Message, Phase},
            coverage::Sensor,
            event::Body,
            flow::Side,
            net::Errno,
            process::Pid,
            socket::{Socket, Syscall, TcpCounters, TcpState},
            verdict::Confidence,
        },
    };

    fn failing_accept(world: &mut World, us: i64, pid: Pid, port: &str) {
        let socket = Socket {
            local: Some(port.parse().unwrap()),
            remote: None,
            accept_queue: Some((2, 128)),
            ..world.socket(Side::Upstream, TcpState::Listen, None)
        };
        let call = Syscall::Accept {
            listener: 3,
            result: Err(Errno::EMFILE),
            socket: Some(socket),
            peer: None,
            command: "node".to_owned(),
        };
        world.syscall_of(us, pid, call);
    }

    /// Node.js takes the connection with its spare descriptor and closes it at once.
    pub(crate) fn shed() -> World {
        let mut world = World::new(502);
        world.listening();
        world.accepted();
        world.connect(-95);
        failing_accept(&mut world, -80, SERVER, "0.0.0.0:8000");
        let tcp = TcpCounters { bytes_received: u64::from(LENGTH), rcv_nxt: LENGTH, copied_seq: 0, ..counters(1, 1) };
        world.state_with(-60, Side::Upstream, TcpState::Established, TcpState::Closed, tcp);
        world.reset_received(-59, TcpState::Established);
        world.reset_sent(-58, "TCP_ABORT_ON_CLOSE", None);
        world.sent(TcpState::Closed, START + LENGTH);
        world.complain(Message::ReceiveFailed, Phase::ReadingHeader, Some(Errno::ECONNRESET), "recv() failed");
        world
    }

    pub(crate) fn waiting() -> World {
        let mut world = World::new(504);
        world.listening();
        world.attempt().started = Some(moment(-2_000_000));
        world.connect(-1_999_900);
        failing_accept(&mut world, -1_999_000, SERVER, "127.0.0.1:8000");
        world.sent(TcpState::Established, START + LENGTH);
        world.complain(Message::TimedOut, Phase::ReadingHeader, Some(Errno::ETIMEDOUT), "upstream timed out");
        let tcp =
            TcpCounters { bytes_received: u64::from(LENGTH) + 1, rcv_nxt: LENGTH + 1, copied_seq: 0, ..counters(1, 1) };
        world.state_with(30, Side::Upstream, TcpState::Established, TcpState::CloseWait, tcp);
        world
    }

    #[test]
    fn shed_at_once() {
        let explanation = shed().expect("fd-exhausted-upstream", Confidence::Confirmed);
        assert!(explanation.summary.contains("node (pid 88)"), "{}", explanation.summary);
    }

    /// The process that accepts can have had descriptors for this one, which it handed to a worker.
    #[test]
    fn what_was_handed_to_another_process_was_not_shed() {
        let mut world = shed();
        closed_by(&mut world, -61, Pid(4711));
        let explanation = world.explained();
        assert_ne!((explanation.cause, explanation.confidence), ("fd-exhausted-upstream", Confidence::Confirmed));
    }

    /// A server that had taken the request, could make no socket for it, and closed.
    fn serving() -> World {
        let mut world = World::new(502);
        world.listening();
        world.accepted();
        world.connect(-95);
        world.syscall_of(-80, SERVER, Syscall::Socket { family: 2, error: Errno::EMFILE });
        let tcp = TcpCounters { bytes_received: u64::from(LENGTH), ..counters(LENGTH, LENGTH) };
        world.state_with(-60, Side::Upstream, TcpState::Established, TcpState::FinWait1, tcp);
        world.state(-59, Side::Nginx, TcpState::Established, TcpState::CloseWait, None);
        world.sent(TcpState::CloseWait, START + LENGTH);
        world.closed_before_header();
        world
    }

    #[test]
    fn out_of_descriptors_while_serving_is_likely() {
        let explanation = serving().expect("fd-exhausted-upstream", Confidence::Likely);
        assert!(explanation.rivals.contains(&"premature-close"), "{:?}", explanation.rivals);
        let mut opening = serving();
        opening.case.processes.clear();
        opening.syscall_of(-80, SERVER, Syscall::Open { error: Errno::EMFILE });
        let explanation = opening.expect("fd-exhausted-upstream", Confidence::Likely);
        assert!(explanation.summary.contains("(open() = EMFILE while it served"), "{}", explanation.summary);
        let mut another = serving();
        another.case.processes.clear();
        another.syscall_of(-80, Pid(4711), Syscall::Socket { family: 2, error: Errno::EMFILE });
        another.expect("premature-close", Confidence::Confirmed);
        let mut long_ago = serving();
        long_ago.case.processes.clear();
        long_ago.syscall_of(-9_000_000, SERVER, Syscall::Socket { family: 2, error: Errno::EMFILE });
        long_ago.expect("premature-close", Confidence::Confirmed);
    }

    #[test]
    fn waiting_unaccepted() {
        waiting().expect("fd-exhausted-upstream", Confidence::Confirmed);
    }

    #[test]
    fn accepted_and_read_is_not_it() {
        let mut world = waiting();
        world.accepted();
        world.flow().events.pop_back();
        world.nginx_leaves(0);
        world.expect("read-timeout", Confidence::Confirmed);
        let mut world = shed();
        world.flow().events.clear();
        world.connect(-95);
        let tcp = TcpCounters { bytes_received: u64::from(LENGTH), ..counters(1, 1) };
        world.state_with(-60, Side::Upstream, TcpState::Established, TcpState::Closed, tcp);
        world.reset_received(-59, TcpState::Established);
        world.reset_sent(-58, "TCP_STATE", None);
        world.expect("upstream-reset", Confidence::Confirmed);
    }

    /// Two containers serve the same port on every address of theirs.
    #[test]
    fn the_same_address_in_another_network_namespace_is_not_it() {
        let mut world = waiting();
        let (mut listener, call) = (world.listener("node"), world.case.processes.remove(0));
        listener.netns = Some(7);
        world.case.host.clear();
        world.look_up(true, vec![listener], Vec::new());
        let in_namespace = |netns| {
            let mut call = call.clone();
            let Body::Syscall(syscall) = &mut call.body else { panic!("{call:?}") };
            let Syscall::Accept { socket: Some(socket), .. } = &mut Arc::make_mut(syscall).call else { panic!() };
            socket.netns = Some(netns);
            call
        };
        world.case.processes = vec![in_namespace(8)];
        world.expect("read-timeout", Confidence::Likely);
        world.case.processes = vec![in_namespace(7)];
        world.expect("fd-exhausted-upstream", Confidence::Confirmed);
        // Nobody looked who listens there.
        world.case.host.clear();
        world.expect("fd-exhausted-upstream", Confidence::Likely);
        let end = world.flow().events.iter_mut().rev().find_map(|event| match &mut event.body {
            Body::Socket(e) if e.socket.state == TcpState::CloseWait => Some(&mut Arc::make_mut(e).socket),
            _ => None,
        });
        end.unwrap().netns = Some(7);
        world.expect("fd-exhausted-upstream", Confidence::Confirmed);
    }

    #[test]
    fn another_listener_or_another_time_is_not_it() {
        let mut world = waiting();
        world.case.processes.clear();
        failing_accept(&mut world, -1_999_000, Pid(99), "127.0.0.1:9000");
        world.expect("read-timeout", Confidence::Likely);
        world.case.processes.clear();
        failing_accept(&mut world, -60_000_000, SERVER, "127.0.0.1:8000");
        world.expect("read-timeout", Confidence::Likely);
    }

    #[test]
    fn without_the_call_what_is_left_is_not_certain() {
        let mut world = shed();
        world.case.processes.clear();
        world.blind(Sensor::Syscalls);
        let explanation = world.expect("upstream-reset", Confidence::Likely);
        assert!(explanation.rivals.contains(&"fd-exhausted-upstream"));
    }

    #[test]
    fn without_the_upstreams_counters_it_is_likely() {
        let mut world = shed();
        world.flow().events.clear();
        world.connect(-95);
        world.reset_received(-59, TcpState::Established);
        world.blind(Sensor::SocketStates);
        let explanation = world.expect("fd-exhausted-upstream", Confidence::Likely);
        assert!(explanation.rivals.contains(&"upstream-reset"));
    }
}
