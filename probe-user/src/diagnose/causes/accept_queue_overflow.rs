//! `accept-queue-overflow`: the upstream on this host listens, but its accept queue is full.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::{Locality, Reading, evidence, need},
        standstill::remark_standstill,
    },
    server_advice,
};
use crate::model::{
    attempt::Outcome,
    coverage::Sensor,
    event::EventId,
    evidence::{Fact, Weight},
    net::Errno,
    socket::{SocketChange, TcpState, is_full},
};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "accept-queue-overflow",
    title: "the upstream's accept queue is full",
    family: Family::Connect,
    statuses: &[504, 502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "The upstream on this host does not accept connections as fast as they come, and the queue of finished handshakes is \
                   full. The kernel then ignores the SYN, or the last ACK of the handshake, and lets both ends repeat: nginx waits \
                   until a timer ends it. With net.ipv4.tcp_abort_on_overflow=1 it sends a RST instead (502).",
        proof: "The kernel's drop record with the reason TCP_LISTEN_OVERFLOW (Linux 6.16 and later) of an attempt that then timed out, \
                or the RST from the listening socket by which it refuses the end of a handshake. A SYN that is ignored leaves no \
                record in any kernel: there the listener's queue found beyond its limit, the SYN repeated in vain without a drop, and \
                TcpExtListenOverflows of its network namespace risen since before the attempt prove it; without the counter it is \
                likely.",
        refuted: "accept() failing in the server (fd-exhausted-upstream). A connection that was accepted.",
        remedies: &[
            (
                "any server",
                "More workers, or find what keeps them busy; then a longer queue: the listen() backlog, bounded by \
                            net.core.somaxconn (4096; 128 before Linux 5.4). `ss -ltn`: Recv-Q above Send-Q is full; \
                            `nstat -az TcpExtListenOverflows` counts.",
            ),
            (
                "nginx",
                "keepalive in the upstream block spares handshakes; proxy_connect_timeout of 2 to 5 s fails over sooner.",
            ),
            ("gunicorn", "--backlog (2048), --workers, --threads."),
            ("uvicorn", "--backlog (2048); a blocked event loop accepts nothing."),
            ("Node.js", "server.listen({ backlog: 4096 }) (default 511); a blocked event loop accepts nothing."),
            ("Puma", "bind 'tcp://0.0.0.0:9292?backlog=4096' (default 1024); Puma accepts only when a thread is free."),
            ("php-fpm", "listen.backlog = 4096 (default 511, in PHP 8.2 all that somaxconn allows); pm.max_children."),
            ("uWSGI", "--listen 4096 (default 100)."),
            ("Go", "net.Listen takes somaxconn; raise that."),
            ("Java", "Tomcat: acceptCount (100) and maxConnections (8192): server.tomcat.accept-count."),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let upstream = reading.server()?;
    if reading.locality() != Locality::Here
        || reading.taken_by_application() == Some(true)
        || reading.syn_reset().is_some()
        // It did find room at once, whoever did not after it.
        || reading.found_room()
        // No SYN left: whose queue was full then does not matter to this attempt.
        || reading.outcome() == Outcome::LocalError
    {
        return None;
    }
    let starved = |errno: Errno| matches!(errno, Errno::EMFILE | Errno::ENFILE);
    if reading.failed_accepts().any(|failure| failure.certain && starved(failure.errno)) {
        return None;
    }
    let mut finding = Finding::default();
    finding.support(reading.complaint_evidence());
    let timed_out = reading.timed_out_unanswered()
        || reading.errno() == Some(Errno::ETIMEDOUT)
        || matches!(reading.outcome(), Outcome::TimeoutConnect | Outcome::TimeoutSend | Outcome::TimeoutRead);
    let full = reading.accept_queue().filter(|(waiting, limit, _)| is_full((*waiting, *limit)));
    let mut direct = false;
    let from_listener = refusal(reading);
    // A last ACK that found the queue full is repeated, and may find room: what ends the connection then is another story.
    let mut overflows = reading.drops().filter(|(_, reason)| *reason == Some("TCP_LISTEN_OVERFLOW"));
    if let Some((event, reason)) = overflows.next().filter(|_| timed_out || from_listener.is_some()) {
        let fact = Fact::Dropped { reason: reason.map(str::to_owned) };
        finding.support(Some(evidence(fact, &[event.id], Weight::Direct)));
        direct = true;
    }
    if let Some((event, reason)) = from_listener {
        // Before 6.10 the kernel does not say why; a listener that has just taken another's place resets what it does not know.
        let counted = reading.listen_overflows();
        let certain = reason.is_some() || full.is_some() || counted.is_some();
        let weight = if certain { Weight::Direct } else { Weight::Symptom };
        let fact = Fact::UpstreamKernelReset { reason: reason.map(str::to_owned), unread: None };
        finding.support(Some(evidence(fact, &[event], weight)));
        finding.support(counted.filter(|_| full.is_none()));
        if !certain {
            finding.missing.push(need(Sensor::Host, "that the accept queue was full, or the kernel's reason"));
            finding.not_excluded(&["upstream-reset"]);
        }
        direct |= certain;
    }
    let (retransmits, events) = reading.syn_retransmits();
    if let Some((waiting, limit, event)) = full {
        finding.support(Some(evidence(Fact::AcceptQueue { waiting, limit }, &[event], Weight::Symptom)));
        // The kernel counts every handshake that it refuses for a full queue; it is this one's, as its queue is the full one, its SYN was
        // repeated in vain, and nothing of this host dropped it.
        let counted = reading.listen_overflows().filter(|_| {
            reading.sees(Sensor::Drops) && (reading.syn_retransmits().0 > 0 || reading.connected() == Some(true))
        });
        if finding.support(counted) {
            direct = true;
        }
        if !direct {
            // The kernel never says that it ignored a SYN for a full queue, and the queue was read after the failure.
            finding
                .missing
                .push(need(Sensor::Drops, "the kernel's record that this very handshake found the queue full"));
            finding.not_excluded(if reading.connected() == Some(true) { &["read-timeout"] } else { &["syn-timeout"] });
        }
        if !direct && !reading.sees(Sensor::Drops) {
            finding.not_excluded(&["firewall-dropped"]);
        }
    }
    let silent = timed_out && full.is_some();
    if !direct && !silent && from_listener.is_none() {
        return None;
    }
    if !reading.sees(Sensor::Syscalls) {
        finding.missing.push(need(Sensor::Syscalls, "whether the server's accept() was failing"));
        finding.not_excluded(&["fd-exhausted-upstream"]);
    }
    if retransmits > 0 {
        let waited_us = reading.started().map(|started| reading.failed_at().since_ns(started) / 1_000);
        finding.support(Some(evidence(Fact::SynUnanswered { retransmits, waited_us }, &events, Weight::Symptom)));
    }
    let queue = full.map(|(waiting, limit, _)| format!(" ({waiting} waiting, limit {limit})")).unwrap_or_default();
    let who = reading.server_command().unwrap_or("the server");
    finding.summary =
        format!("The accept queue of {upstream} is full{queue}: {who} does not accept connections fast enough.");
    finding.fix.push(format!(
        "Find out what keeps {who} busy, or run more workers; `ss -ltn` shows the queue (Recv-Q against Send-Q)."
    ));
    finding.fix.push("A longer queue for bursts: the server's backlog and net.core.somaxconn, both.".to_owned());
    finding.fix.extend(server_advice(&CAUSE, reading));
    remark_standstill(&mut finding, reading);
    Some(finding)
}

/// The RST of a listener that refuses the end of a handshake (`net.ipv4.tcp_abort_on_overflow`), and why, where the kernel says:
/// `INVALID_SYN` for what is refused there; it has other reasons for what it does not know
/// (`tcp_check_req()`, <https://elixir.bootlin.com/linux/v6.12/source/net/ipv4/tcp_minisocks.c>).
fn refusal<'a>(reading: &Reading<'a>) -> Option<(EventId, Option<&'a str>)> {
    let mut resets = reading.flow()?.resets_sent_by_upstream().filter(|(_, e, _)| e.socket.state == TcpState::Listen);
    resets.find_map(|(event, e, reason)| {
        // A SYN in place of the handshake's end is refused in the same words.
        let ends_it =
            !matches!(&e.change, SocketChange::ResetSent { answered: Some(packet), .. } if packet.flags.syn());
        (ends_it && reason.is_none_or(|why| why == "INVALID_SYN")).then_some((event.id, reason))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::{LENGTH, START, World, moment},
        model::{
            complaint::{Message, Phase},
            coverage::Sensor,
            flow::Side,
            host::{HostFact, Listener},
            net::Errno,
            socket::{SocketChange, TcpState},
            verdict::Confidence,
        },
    };

    pub(crate) fn full() -> World {
        let mut world = World::new(504);
        let mut listener = world.listener("gunicorn");
        listener.accept_queue = Some((129, 128));
        world.look_up(true, vec![listener], Vec::new());
        world.attempt().started = Some(moment(-2_000_000));
        let socket = world.socket(Side::Nginx, TcpState::SynSent, None);
        world.change(-1_000_000, socket.clone(), SocketChange::Retransmitted { payload: 0 });
        world.attempt().socket_at_failure = Some(socket);
        world.complain(Message::TimedOut, Phase::Connecting, Some(Errno::ETIMEDOUT), "upstream timed out");
        world
    }

    pub(crate) fn last_ack_lost() -> World {
        let mut world = World::new(504);
        world.listening();
        world.attempt().started = Some(moment(-2_000_000));
        world.connect(-1_999_900);
        world.drop_packet(-1_999_890, "TCP_LISTEN_OVERFLOW");
        world.sent(TcpState::Established, START);
        world.complain(Message::TimedOut, Phase::ReadingHeader, Some(Errno::ETIMEDOUT), "upstream timed out");
        world
    }

    #[test]
    fn a_full_queue_and_a_silent_listener() {
        full().expect("accept-queue-overflow", Confidence::Likely);
    }

    #[test]
    fn the_last_ack_found_it_full() {
        last_ack_lost().expect("accept-queue-overflow", Confidence::Confirmed);
    }

    fn reset_by_listener(reason: Option<&str>) -> World {
        let mut world = World::new(502);
        world.listening();
        world.connect(-95);
        let socket = world.socket(Side::Upstream, TcpState::Listen, None);
        world.change(-80, socket, SocketChange::ResetSent { reason: reason.map(str::to_owned), answered: None });
        world.reset_received(-79, TcpState::Established);
        world.sent(TcpState::Closed, START + LENGTH);
        world.complain(Message::ReceiveFailed, Phase::ReadingHeader, Some(Errno::ECONNRESET), "recv() failed");
        world
    }

    #[test]
    fn a_reset_from_the_listener() {
        reset_by_listener(Some("INVALID_SYN")).expect("accept-queue-overflow", Confidence::Confirmed);
    }

    /// A look-up that came too late, or not at all, is not needed where the kernel told all.
    #[test]
    fn a_reset_and_the_drop_behind_it_need_no_look_at_the_queue() {
        let mut world = reset_by_listener(Some("INVALID_SYN"));
        world.case.host.clear();
        world.drop_packet(-80, "TCP_LISTEN_OVERFLOW");
        world.expect("accept-queue-overflow", Confidence::Confirmed);
    }

    /// With `SO_REUSEPORT` the last ACK may meet a listener that has just been opened, and knows nothing of the handshake.
    #[test]
    fn a_reset_from_a_listener_that_knows_nothing_of_the_handshake_is_not_it() {
        let other = reset_by_listener(Some("TCP_FLAGS")).explained();
        assert_ne!(other.cause, "accept-queue-overflow", "{other:#?}");
        let unsaid = reset_by_listener(None).explained();
        assert_ne!(unsaid.confidence, Confidence::Confirmed, "{unsaid:#?}");
    }

    /// The last ACK came again and found room; the server was killed before it accepted.
    #[test]
    fn what_ended_a_connection_that_found_room_in_the_end_is_not_the_queue() {
        let mut world = World::new(502);
        world.listening();
        world.connect(-1_000_000);
        world.drop_packet(-999_900, "TCP_LISTEN_OVERFLOW");
        world.reset_sent(-80, "NOT_SPECIFIED", None);
        world.reset_received(-79, TcpState::Established);
        world.sent(TcpState::Closed, START + LENGTH);
        world.complain(Message::ReceiveFailed, Phase::ReadingHeader, Some(Errno::ECONNRESET), "recv() failed");
        let explanation = world.explained();
        assert_ne!(explanation.cause, "accept-queue-overflow", "{explanation:#?}");
    }

    /// The kernel's count of refused handshakes in the listener's namespace, before the attempt and after it.
    fn count_refused(world: &mut World, before: u64, after: u64) {
        world.host(-2_500_000, HostFact::ListenOverflows { netns: 7, count: before });
        world.host(1_000, HostFact::ListenOverflows { netns: 7, count: after });
    }

    #[test]
    fn the_kernels_count_of_refused_handshakes_makes_it_certain() {
        let mut world = full();
        world.case.host.clear();
        let listener = Listener { netns: Some(7), accept_queue: Some((129, 128)), ..world.listener("gunicorn") };
        world.look_up(true, vec![listener], Vec::new());
        let mut unchanged = world.clone();
        count_refused(&mut world, 10, 13);
        world.expect("accept-queue-overflow", Confidence::Confirmed);
        count_refused(&mut unchanged, 10, 10);
        unchanged.expect("accept-queue-overflow", Confidence::Likely);
    }

    /// The look-up came when the queue had room again: it may have been full when the SYN came.
    #[test]
    fn handshakes_refused_before_the_queue_had_room_again_leave_it_open() {
        let mut world = full();
        world.case.host.clear();
        let listener = Listener { netns: Some(7), ..world.listener("gunicorn") };
        world.look_up(true, vec![listener], Vec::new());
        count_refused(&mut world, 10, 13);
        let explanation = world.expect("syn-timeout", Confidence::Likely);
        assert!(explanation.rivals.contains(&"accept-queue-overflow"), "{explanation:?}");
    }

    #[test]
    fn room_in_the_queue_is_not_it() {
        let mut world = full();
        world.case.host.clear();
        world.listening();
        world.expect("syn-timeout", Confidence::Confirmed);
    }

    #[test]
    fn without_the_queue_what_is_left_is_not_certain() {
        let mut world = full();
        world.case.host.clear();
        world.blind(Sensor::Host);
        let explanation = world.expect("syn-timeout", Confidence::Likely);
        assert!(explanation.rivals.contains(&"accept-queue-overflow"));
    }

    #[test]
    fn without_sight_of_drops_a_filter_is_possible_too() {
        let mut world = full();
        world.blind(Sensor::Drops);
        world.expect("accept-queue-overflow", Confidence::Likely);
    }
}
