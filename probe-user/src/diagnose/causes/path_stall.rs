//! `path-stall`: packets are lost on the way, after connecting; or of the handshake those on the way back.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::{LostAnswer, Reading, duration, evidence, need},
    },
    firewall_rejected::is_filter_drop,
    servers::{REQUEST_PATIENCE, and_servers},
};
use crate::model::{
    complaint::{Message, Phase},
    coverage::Sensor,
    evidence::{Fact, Weight},
    net::Errno,
};

/// A few are enough to show it.
const SHOWN: usize = 5;

/// Segments from this size on are the first to be lost where the MTU is smaller than the ends believe.
const LARGE: u32 = 1_200;

/// An answer to a SYN that takes longer is late for the kernel too, which sends the SYN again by then.
const ARRIVES_WITHIN_US: u64 = 1_000_000;

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "path-stall",
    title: "packets are lost on the way",
    family: Family::Connection,
    statuses: &[504, 502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "The connection was up, but bytes of the request were never acknowledged although the kernel sent them again and \
                   again: the packets or their answers are lost. If only full-size packets are lost it is the MTU: a tunnel or VPN \
                   with a smaller one, and ICMP filtered. Or one way does not carry anything: the upstream answers the SYN, and its \
                   answer does not arrive.",
        proof: "Repeated segments without acknowledgement until nginx's timer (504) or the kernel's (502, ETIMEDOUT), on a connection \
                that an application had taken; or, of a handshake, a SYN-ACK of the upstream's kernel on this host, and a second later \
                nginx's socket still waiting for it.",
        refuted: "Everything acknowledged (read-timeout). A closed window at the other end (send-timeout). A full accept queue on the \
                  upstream's host, which swallows the request just so (accept-queue-overflow).",
        remedies: &const {
            and_servers::<4, 12>(
                [
                    (
                        "network",
                        "`ping -M do -s 1472 HOST` (-s 1452 for IPv6) finds an MTU hole; `ip route get`, `mtr -T -P PORT HOST`.",
                    ),
                    (
                        "kernel",
                        "net.ipv4.tcp_mtu_probing=1 recovers from MTU holes; `iptables -t mangle ... TCPMSS --clamp-mss-to-pmtu` on the way.",
                    ),
                    ("nginx", "proxy_read_timeout and proxy_next_upstream timeout fail over."),
                    ("any server", "It waits for the rest of the request, and blames a slow client when it gives up:"),
                ],
                REQUEST_PATIENCE,
            )
        },
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    if reading.handshake_timed_out() {
        return lost_handshake(reading);
    }
    let by_nginx = reading.timed_out_unanswered() && reading.phase() != Some(Phase::Connecting);
    let by_kernel = reading.complains_of(&[Message::ReceiveFailed, Message::SendFailed])
        && reading.errno() == Some(Errno::ETIMEDOUT);
    if !(by_nginx || by_kernel) || reading.connected() == Some(false) {
        return None;
    }
    if let Some(lost) = reading.answer_lost() {
        return Some(lost_answer(reading, &lost, by_kernel));
    }
    let on_the_way = reading.counters_at_failure().map(|(tcp, event)| (tcp.snd_nxt.wrapping_sub(tcp.snd_una), event));
    if !reading.repeated_in_vain() {
        return None;
    }
    // Then the bytes arrived, and the listener's kernel says why it dropped them: accept-queue-overflow.
    if reading.drops().any(|(_, reason)| reason == Some("TCP_LISTEN_OVERFLOW")) {
        return None;
    }
    let repeated: Vec<_> = reading.data_retransmits().collect();
    let counted = reading.socket_at_failure().map_or(0, |(socket, _)| socket.retransmits);
    let mut finding = Finding::default();
    finding.support(reading.complaint_evidence());
    let events: Vec<_> = repeated.iter().rev().take(SHOWN).rev().map(|(event, _)| event.id).collect();
    let times = u32::try_from(repeated.len()).unwrap_or(u32::MAX).max(u32::from(counted));
    let unacknowledged = on_the_way.map(|(bytes, _)| bytes);
    let weight = if unacknowledged.is_some() { Weight::Direct } else { Weight::Symptom };
    finding.support(Some(evidence(Fact::Unacknowledged { bytes: unacknowledged, times }, &events, weight)));
    if unacknowledged.is_none() {
        finding.missing.push(need(Sensor::NginxFunctions, "whether the repeated bytes were acknowledged in the end"));
        finding.not_excluded(&["read-timeout"]);
    }
    if reading.taken_by_application() != Some(true) {
        finding.missing.push(need(Sensor::Syscalls, "whether an application had taken the connection"));
        finding.not_excluded(&["accept-queue-overflow"]);
    }
    show_drops(&mut finding, reading);
    let upstream = reading.upstream_name();
    let largest = repeated.iter().map(|(_, payload)| *payload).max().unwrap_or(0);
    let bytes =
        unacknowledged.map_or_else(|| "the request".to_owned(), |bytes| format!("{bytes} bytes of the request"));
    let waited = reading.started().map(|started| reading.failed_at().since_ns(started) / 1_000);
    let waited = waited.map(|us| format!(" in {}", duration(us))).unwrap_or_default();
    let who = if by_kernel { "the kernel gave up" } else { "nginx's timer ended it" };
    finding.summary =
        format!("{bytes} to {upstream} were sent {times} more times and never acknowledged{waited}, until {who}.");
    suspect_mtu(&mut finding, largest);
    finding.fix.push(format!("Find where the packets to {upstream} are lost: capture on both sides, `mtr -T`, drop counters of the hosts between."));
    Some(finding)
}

/// The upstream answered the SYN, and nginx's socket never heard it.
fn lost_handshake(reading: &Reading<'_>) -> Option<Finding> {
    let (told, seen) = reading.syn_answers();
    let first = told.iter().chain(&seen).map(|event| event.at.latest).min()?;
    // firewall-dropped says more.
    if reading.drops().any(|(_, reason)| is_filter_drop(reason)) || reading.syn_reset().is_some() {
        return None;
    }
    let mut finding = Finding::default();
    finding.support(reading.complaint_evidence());
    let waited_us = reading.failed_at().since_ns(first) / 1_000;
    let waiting = reading
        .still_waiting()
        .or_else(|| reading.connect_error().map(|(_, e)| e.events).and_then(|e| e.first().copied()));
    let events: Vec<_> = told.iter().chain(&seen).take(SHOWN).map(|event| event.id).chain(waiting).collect();
    // What only a capture on the way shows may have been another's forgery, or meant for another.
    let certain = !told.is_empty() && waiting.is_some() && waited_us >= ARRIVES_WITHIN_US;
    let times = u32::try_from(told.len().max(seen.len())).unwrap_or(u32::MAX);
    let weight = if certain { Weight::Direct } else { Weight::Symptom };
    finding.support(Some(evidence(Fact::SynAckLost { times }, &events, weight)));
    if waiting.is_none() {
        finding.missing.push(need(Sensor::NginxFunctions, "nginx's socket still waiting when the timer fired"));
    }
    if !reading.sees(Sensor::Drops) {
        finding.missing.push(need(Sensor::Drops, "whether this host itself dropped the answer"));
        finding.not_excluded(&["firewall-dropped"]);
    }
    show_drops(&mut finding, reading);
    let upstream = reading.upstream_name();
    let who = if reading.kernel_gave_up() { "the kernel gave up" } else { "nginx's timer ended it" };
    finding.summary = format!(
        "{upstream} answered the SYN, the first time seen {} before the end, and none of its answers reached nginx's socket until {who}.",
        duration(waited_us)
    );
    finding.fix.push("Ask the upstream's host for its way back: `ip route get` to nginx's address; a reverse path filter (rp_filter) on the way drops what comes by another way.".to_owned());
    finding.fix.push(format!(
        "Find where the packets from {upstream} are lost: capture on both sides, drop counters and rules of the hosts between."
    ));
    Some(finding)
}

/// Packets of the connection that this host's kernel dropped.
fn show_drops(finding: &mut Finding, reading: &Reading<'_>) {
    for (event, reason) in reading.drops().take(SHOWN) {
        let fact = Fact::Dropped { reason: reason.map(str::to_owned) };
        finding.support(Some(evidence(fact, &[event.id], Weight::Symptom)));
    }
}

/// The upstream answered, as its kernel shows, and nothing of it arrived.
fn lost_answer(reading: &Reading<'_>, lost: &LostAnswer, by_kernel: bool) -> Finding {
    let mut finding = Finding::default();
    finding.support(reading.complaint_evidence());
    finding.support(reading.request_acknowledged());
    let events: Vec<_> = lost.events.iter().rev().take(SHOWN).rev().copied().collect();
    let fact = Fact::AnswerNotTaken { bytes: lost.bytes, times: lost.times };
    finding.support(Some(evidence(fact, &events, Weight::Direct)));
    let upstream = reading.upstream_name();
    let who = if by_kernel { "the kernel gave up" } else { "nginx's timer ended it" };
    let again = match lost.times {
        0 => "were lost, or found no way back,".to_owned(),
        times => format!("were sent {times} more times"),
    };
    finding.summary = format!(
        "{upstream} took the request and answered: {} bytes of its answer {again} and never arrived, until {who}.",
        lost.bytes
    );
    suspect_mtu(&mut finding, lost.largest);
    if lost.times == 0 {
        finding.fix.push("Ask the upstream's host for its way back: `ip route get` to nginx's address, and the state of its interface.".to_owned());
    }
    finding.fix.push(format!(
        "Find where the packets from {upstream} are lost: capture on both sides, drop counters and rules of the hosts between."
    ));
    finding
}

fn suspect_mtu(finding: &mut Finding, largest: u32) {
    if largest >= LARGE {
        finding.say(format_args!(" The lost segments are large ({largest} bytes): suspect the MTU on the way."));
        finding.fix.push(
            "Look for an MTU hole: `ping -M do -s 1472` to the upstream; net.ipv4.tcp_mtu_probing=1 works around it."
                .to_owned(),
        );
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::{START, World, moment},
        model::{
            complaint::{Message, Phase},
            coverage::Sensor,
            flow::Side,
            net::Errno,
            socket::{SocketChange, TcpState},
            verdict::Confidence,
        },
    };

    pub(crate) fn stalled() -> World {
        let mut world = World::new(504);
        world.listening();
        world.accepted();
        world.attempt().started = Some(moment(-3_000_000));
        world.connect(-2_999_000);
        for us in [-2_700_000, -2_300_000, -1_500_000] {
            let socket = world.socket(Side::Nginx, TcpState::Established, None);
            world.change(us, socket, SocketChange::Retransmitted { payload: 1_448 });
        }
        world.sent(TcpState::Established, START);
        world.complain(Message::TimedOut, Phase::ReadingHeader, Some(Errno::ETIMEDOUT), "upstream timed out");
        world
    }

    #[test]
    fn the_plain_case_suspects_the_mtu() {
        let explanation = stalled().expect("path-stall", Confidence::Confirmed);
        assert!(explanation.summary.contains("suspect the MTU"), "{}", explanation.summary);
    }

    pub(crate) fn handshake() -> World {
        let mut world = World::new(504);
        world.listening();
        world.attempt().started = Some(moment(-4_000_000));
        let waiting = world.socket(Side::Nginx, TcpState::SynSent, None);
        for us in [-3_000_000, -1_000_000] {
            world.change(us, waiting.clone(), SocketChange::Retransmitted { payload: 0 });
            let listener = world.socket(Side::Upstream, TcpState::Listen, None);
            world.change(us + 100, listener, SocketChange::SynAckRetransmitted);
        }
        world.attempt().socket_at_failure = Some(waiting);
        world.complain(Message::TimedOut, Phase::Connecting, Some(Errno::ETIMEDOUT), "upstream timed out");
        world
    }

    #[test]
    fn an_answer_to_the_syn_that_does_not_arrive_is_an_answer() {
        let explanation = handshake().expect("path-stall", Confidence::Confirmed);
        assert!(explanation.summary.contains("answered the SYN"), "{}", explanation.summary);
        // Where this host cannot tell, nothing is claimed of the upstream.
        let mut blind = handshake();
        blind.flow().events.retain(|event| !format!("{event:?}").contains("SynAck"));
        blind.blind(Sensor::Retransmits);
        assert!(blind.explained().summary.starts_with("No answer to the SYN arrived from"), "{:?}", blind.explained());
    }

    #[test]
    fn one_that_can_still_be_on_its_way_is_likely() {
        let mut world = handshake();
        world.flow().events.retain(|event| !format!("{event:?}").contains("SynAck"));
        let listener = world.socket(Side::Upstream, TcpState::Listen, None);
        world.change(-300_000, listener, SocketChange::SynAckRetransmitted);
        world.expect("path-stall", Confidence::Likely);
    }

    #[test]
    fn one_that_a_capture_shows_is_likely() {
        let mut world = handshake();
        world.flow().events.retain(|event| !format!("{event:?}").contains("SynAck"));
        world.packet_from_upstream(-3_000_000, 0x12, 1);
        world.expect("path-stall", Confidence::Likely);
    }

    #[test]
    fn a_filter_of_this_host_says_more() {
        let mut world = handshake();
        world.drop_packet(-2_999_000, "NETFILTER_DROP");
        world.expect("firewall-dropped", Confidence::Confirmed);
    }

    #[test]
    fn an_answer_sent_again_and_again_is_not_a_silent_upstream() {
        let mut world = stalled();
        world.flow().events.retain(|event| !format!("{event:?}").contains("Retransmitted"));
        world.sent(TcpState::Established, START + crate::diagnose::testing::LENGTH);
        world.nginx_leaves(0);
        let nginx = world.attempt().socket_at_failure.as_ref().unwrap().tcp.unwrap();
        world.expect("read-timeout", Confidence::Confirmed);
        let mut socket = world.socket(Side::Upstream, TcpState::Established, None);
        let mut tcp = nginx;
        (tcp.snd_una, tcp.snd_nxt, tcp.write_seq) = (nginx.rcv_nxt, nginx.rcv_nxt + 2_896, nginx.rcv_nxt + 9_000);
        socket.tcp = Some(tcp);
        for us in [-1_500_000, -900_000] {
            world.change(us, socket.clone(), SocketChange::Retransmitted { payload: 1_448 });
        }
        let explanation = world.expect("path-stall", Confidence::Confirmed);
        assert!(explanation.summary.contains("9000 bytes of its answer"), "{}", explanation.summary);
        assert!(explanation.summary.contains("MTU"), "{}", explanation.summary);
        // It arrived in the end: then something else is slow.
        world.attempt().socket_at_failure.as_mut().unwrap().tcp.as_mut().unwrap().rcv_nxt += 9_000;
        world.expect("read-timeout", Confidence::Confirmed);
    }

    #[test]
    fn everything_acknowledged_in_the_end_is_a_read_timeout() {
        let mut world = stalled();
        world.sent(TcpState::Established, START + crate::diagnose::testing::LENGTH);
        world.nginx_leaves(0);
        world.expect("read-timeout", Confidence::Confirmed);
    }

    #[test]
    fn a_connection_that_nobody_took_can_be_a_full_queue() {
        let mut world = stalled();
        world.flow().accepted_by = None;
        let explanation = world.expect("path-stall", Confidence::Likely);
        assert_eq!(explanation.rivals, ["accept-queue-overflow"]);
    }
}
