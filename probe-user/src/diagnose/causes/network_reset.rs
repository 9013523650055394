//! `network-reset`: a RST that the upstream's host did not send.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::{Broken, Locality, Reading, Reset, Survival, need},
    },
    servers::{TCP_KEEPALIVE, and_servers},
};
use crate::model::{
    coverage::Sensor,
    evidence::{Fact, Weight},
    flow::Side,
    socket::TcpState,
    verdict::Need,
};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "network-reset",
    title: "a reset that the upstream did not send",
    family: Family::Connection,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "The RST that ended the connection did not come from the upstream: a firewall, NAT gateway or load balancer that had \
                   forgotten an idle connection, a packet filter with a reject rule, or a stray packet that connection tracking let \
                   through.",
        proof: "An upstream on this host whose kernel sent no reset and whose socket went on. For one on another host a RST whose TTL \
                is not that of the upstream's other packets, or whose IP id is out of the count they keep, or after which the \
                upstream sent on, makes it likely, never more: some hosts give their resets a TTL or an id of their own (Linux \
                gives id 0 to those that answer for no socket, which says nothing).",
        refuted: "The kernel's record of sending it from the upstream's end (upstream-reset).",
        remedies: &const {
            and_servers::<2, 10>(
                [
                    (
                        "nginx",
                        "proxy_socket_keepalive on keeps idle connections known to what lies between; keepalive_timeout in the upstream \
                       block below its idle limit (NAT gateways 350 s, IPVS 900 s).",
                    ),
                    (
                        "kernel",
                        "net.ipv4.tcp_keepalive_time (7200) below the idle limit; net.netfilter.nf_conntrack_tcp_be_liberal=1, or drop \
                        INVALID packets instead of rejecting them.",
                    ),
                ],
                TCP_KEEPALIVE,
            )
        },
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    if reading.broken()? != Broken::Reset || matches!(reading.survival(), Survival::Ended(_)) {
        return None;
    }
    let reset = reading.reset()?;
    let what = "what the upstream's kernel sent";
    if reading.locality() != Locality::Here {
        return another_way(reading, &reset, Need { sensor: None, what: format!("{what}: it is not ours") });
    }
    if reset.sent_here.is_some() || reading.aborted_here().is_some() || reading.close().is_some() {
        return None;
    }
    if let Some(blind) = [Sensor::ResetsSent, Sensor::SocketStates].into_iter().find(|sensor| !reading.sees(*sensor)) {
        return another_way(reading, &reset, need(blind, what));
    }
    // A listener that answered the SYN is not yet an end of the connection.
    let mut ends = reading.flow()?.sockets(Side::Upstream);
    let upstream_end_seen = ends.any(|(_, e)| e.socket.state != TcpState::Listen);
    let mut finding = Finding::default();
    finding.support(reading.complaint_evidence());
    let weight = if upstream_end_seen { Weight::Direct } else { Weight::Symptom };
    finding.support(Some(reading.reset_evidence(&reset, weight)));
    for mark in reading.foreign_reset() {
        finding.support(Some(mark));
    }
    if !upstream_end_seen {
        finding.missing.push(need(
            Sensor::SocketStates,
            "the upstream's own socket on this host: address translation may hide it",
        ));
        finding.not_excluded(&["upstream-reset"]);
    }
    let upstream = reading.upstream_name();
    finding.summary = format!(
        "The connection to {upstream} was reset, but the kernel of the upstream, this host's own, sent no reset."
    );
    finding.fix.push("Look for what lies between: reject rules (`nft list ruleset`), connection tracking, NAT, IPVS (`ipvsadm -lnc`).".to_owned());
    Some(finding)
}

/// An upstream whose kernel is not ours: only the packet itself can tell. A stack may give resets a TTL of their own, and packets may come
/// different ways; so it is never the whole proof.
/// Where nobody could see whether the upstream's kernel sent it, the way it came can tell.
fn another_way(reading: &Reading<'_>, reset: &Reset, missing: Need) -> Option<Finding> {
    let marks = reading.foreign_reset();
    if marks.is_empty() {
        return None;
    }
    let words = marks.iter().filter_map(|mark| match mark.fact {
        Fact::ForeignTtl { .. } => Some("its TTL is not that of the upstream's others"),
        Fact::ForeignId { .. } => Some("its IP id is out of the upstream's count"),
        Fact::SentOn { .. } => Some("the upstream sent on after it"),
        _ => None,
    });
    let words = words.collect::<Vec<_>>().join(", and ");
    let mut finding = Finding::default();
    finding.support(reading.complaint_evidence());
    finding.support(Some(reading.reset_evidence(reset, Weight::Symptom)));
    for mark in marks {
        finding.support(Some(mark));
    }
    finding.missing.push(missing);
    finding.not_excluded(&["upstream-reset"]);
    let upstream = reading.upstream_name();
    finding.summary = format!(
        "The connection to {upstream} was reset by a packet that is not like the upstream's own ({words}): something between has \
         sent it."
    );
    finding.fix.push(
        "Look for what lies between: reject rules, NAT gateways and load balancers with an idle limit, connection tracking."
            .to_owned(),
    );
    Some(finding)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::{LENGTH, START, World},
        model::{
            complaint::{Message, Phase},
            coverage::Sensor,
            event::{Body, EventId},
            evidence::Fact,
            flow::Side,
            net::Errno,
            packet::{Content, PacketBody, TcpPacket},
            socket::TcpState,
            verdict::Confidence,
        },
    };

    pub(crate) fn injected() -> World {
        let mut world = World::new(502);
        world.listening();
        world.accepted();
        world.connect(-99);
        world.state(-98, Side::Upstream, TcpState::SynReceived, TcpState::Established, None);
        world.reset_received(-60, TcpState::Established);
        world.state(-59, Side::Nginx, TcpState::Established, TcpState::Closed, Some(Errno::ECONNRESET));
        world.sent(TcpState::Closed, START + LENGTH);
        world.complain(Message::ReceiveFailed, Phase::ReadingHeader, Some(Errno::ECONNRESET), "recv() failed");
        world
    }

    #[test]
    fn the_plain_case() {
        injected().expect("network-reset", Confidence::Confirmed);
    }

    #[test]
    fn a_listener_that_answered_the_syn_is_no_end_of_the_connection() {
        let mut world = injected();
        world.flow().events.retain(|event| !format!("{event:?}").contains("SynReceived"));
        world.expect("network-reset", Confidence::Likely);
        let listener = world.socket(Side::Upstream, TcpState::Listen, None);
        world.change(-99, listener, crate::model::socket::SocketChange::SynAckRetransmitted);
        world.expect("network-reset", Confidence::Likely);
    }

    #[test]
    fn on_another_host_the_ttl_makes_it_likely() {
        let mut world = World::at("10.9.9.9:8000", 502);
        world.look_up(false, Vec::new(), Vec::new());
        world.connect(-90);
        let ends = ("10.9.9.9:8000".parse().unwrap(), "127.0.0.1:41822".parse().unwrap());
        for (us, flags, ttl) in [(-85, 0x12, 58), (-60, 0x14, 61)] {
            let id = world.packet(us, ends, flags, (0, START + LENGTH), (0, Content::Empty));
            set_ttl(&mut world, id, ttl);
        }
        world.reset_received(-58, TcpState::Established);
        world.sent(TcpState::Closed, START + LENGTH);
        world.complain(Message::ReceiveFailed, Phase::ReadingHeader, Some(Errno::ECONNRESET), "recv() failed");
        let explanation = world.expect("network-reset", Confidence::Likely);
        assert!(explanation.rivals.contains(&"upstream-reset"), "{:?}", explanation.rivals);
        let last = world.flow().events.iter().rev().find(|event| matches!(event.body, Body::Packet(_))).unwrap().id;
        set_ttl(&mut world, last, 58);
        world.expect("upstream-reset", Confidence::Likely);
    }

    /// An upstream on another host whose connection ended by a RST; its packets by time, flags, sequence, length and IP id.
    fn elsewhere(packets: &[(i64, u8, u32, u32, u16)]) -> World {
        let mut world = World::at("10.9.9.9:8000", 502);
        world.look_up(false, Vec::new(), Vec::new());
        world.connect(-90);
        let ends = ("10.9.9.9:8000".parse().unwrap(), "127.0.0.1:41822".parse().unwrap());
        for &(us, flags, sequence, length, ip_id) in packets {
            let content = if length == 0 { Content::Empty } else { Content::Other };
            let id = world.packet(us, ends, flags, (sequence, START + LENGTH), (length, content));
            change(&mut world, id, |packet| packet.ip_id = Some(ip_id));
        }
        world.reset_received(-58, TcpState::Established);
        world.sent(TcpState::Closed, START + LENGTH);
        world.complain(Message::ReceiveFailed, Phase::ReadingHeader, Some(Errno::ECONNRESET), "recv() failed");
        world
    }

    const SYN_ACK: u8 = 0x12;
    const ACK: u8 = 0x10;
    const RST: u8 = 0x04;

    /// The upstream's packets before the RST, and the RST with this id.
    fn with_id(ids: [u16; 3], reset: u16) -> World {
        elsewhere(&[
            (-85, SYN_ACK, 0, 0, 0),
            (-80, ACK, 1, 0, ids[0]),
            (-75, ACK, 1, 0, ids[1]),
            (-70, ACK, 1, 0, ids[2]),
            (-60, RST, 1, 0, reset),
        ])
    }

    #[test]
    fn on_another_host_an_id_out_of_the_count_makes_it_likely() {
        let explanation = with_id([65_534, 65_535, 3], 21_000).expect("network-reset", Confidence::Likely);
        assert!(explanation.rivals.contains(&"upstream-reset"), "{:?}", explanation.rivals);
        assert!(explanation.because.iter().any(|e| matches!(e.fact, Fact::ForeignId { reset: 21_000, peer: 3 })));
    }

    #[test]
    fn an_id_says_nothing_where_it_is_zero_or_in_the_count_or_nobody_counts() {
        with_id([700, 701, 702], 0).expect("upstream-reset", Confidence::Likely);
        with_id([700, 701, 702], 703).expect("upstream-reset", Confidence::Likely);
        with_id([700, 40_001, 9_002], 21_000).expect("upstream-reset", Confidence::Likely);
        with_id([0, 0, 702], 21_000).expect("upstream-reset", Confidence::Likely);
    }

    #[test]
    fn an_upstream_that_sends_on_has_not_reset() {
        let late = [(-85, SYN_ACK, 0, 0, 0), (-60, RST, 1, 0, 0), (5_000, 0x18, 1, 120, 0)];
        let explanation = elsewhere(&late).expect("network-reset", Confidence::Likely);
        assert!(explanation.because.iter().any(|e| matches!(e.fact, Fact::SentOn { bytes: 120, .. })));
        // What was overtaken on the way was sent before.
        let overtaken = [(-85, SYN_ACK, 0, 0, 0), (-60, RST, 1, 0, 0), (-50, 0x18, 1, 120, 0)];
        elsewhere(&overtaken).expect("upstream-reset", Confidence::Likely);
        let repeated = [(-85, SYN_ACK, 0, 0, 0), (-60, RST, 200, 0, 0), (5_000, 0x18, 1, 120, 0)];
        elsewhere(&repeated).expect("upstream-reset", Confidence::Likely);
    }

    fn set_ttl(world: &mut World, id: EventId, ttl: u8) {
        change(world, id, |packet| packet.header.ttl = ttl);
    }

    fn change(world: &mut World, id: EventId, change: impl Fn(&mut TcpPacket)) {
        for event in &mut world.flow().events {
            if let Body::Packet(packet) = &mut event.body
                && event.id == id
                && let PacketBody::Tcp(tcp) = &mut packet.body
            {
                change(tcp);
            }
        }
    }

    #[test]
    fn here_too_the_ttl_makes_it_likely_where_sending_could_not_be_seen() {
        let mut world = injected();
        let ends = ("127.0.0.1:8000".parse().unwrap(), "127.0.0.1:41822".parse().unwrap());
        for (us, flags, ttl) in [(-98, 0x12, 64), (-60, 0x14, 41)] {
            let id = world.packet(us, ends, flags, (0, START + LENGTH), (0, Content::Empty));
            set_ttl(&mut world, id, ttl);
        }
        world.blind(Sensor::SocketStates);
        let explanation = world.expect("network-reset", Confidence::Likely);
        assert!(explanation.rivals.contains(&"upstream-reset"), "{:?}", explanation.rivals);
    }

    #[test]
    fn a_reset_the_upstream_sent_is_not_it() {
        let mut world = injected();
        world.reset_sent(-61, "TCP_STATE", None);
        world.expect("upstream-reset", Confidence::Confirmed);
    }

    #[test]
    fn where_sending_could_not_be_seen_it_is_not_claimed() {
        let mut world = injected();
        world.blind(Sensor::ResetsSent);
        let explanation = world.expect("upstream-reset", Confidence::Likely);
        assert!(explanation.rivals.contains(&"network-reset"));
    }
}
