//! `firewall-dropped`: a packet filter of this host took the SYN, or its answer, away.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::{Reading, evidence, need},
    },
    firewall_rejected::{is_filter_drop, is_filters},
    servers::{ADDRESSES, and_servers},
};
use crate::model::{
    attempt::Outcome,
    complaint::{Message, Phase},
    coverage::Sensor,
    evidence::{Fact, Weight},
    net::Errno,
};

/// A few are enough to show it.
const SHOWN: usize = 4;

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "firewall-dropped",
    title: "a packet filter of this host dropped the SYN or its answer",
    family: Family::Connect,
    statuses: &[504, 502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "The SYN towards the upstream, or the answer to it, was dropped on this host in silence: by nftables or iptables, by \
                   tc, XDP or a control group's BPF program, by a security module. nginx waits until its timer (504) or the kernel's \
                   (502) ends it.",
        proof: "The kernel's record of dropping a packet of this very connection, with a packet filter's reason.",
        refuted: "An answer of any kind.",
        remedies: &const {
            and_servers::<6, 14>(
                [
                    (
                        "nftables",
                        "`nft list ruleset`: a `drop` rule or a chain with policy drop; a `meta nftrace set 1` rule and `nft monitor \
                          trace` show which.",
                    ),
                    (
                        "iptables",
                        "`iptables -vnL` and watch which DROP rule's counter moves; -t raw and -t mangle too.",
                    ),
                    (
                        "conntrack",
                        "`dmesg | grep conntrack`: a full table (nf_conntrack_max) drops new connections with this reason too.",
                    ),
                    ("containers", "Network policies (Cilium, Calico) drop by BPF (tc, cgroup) or nftables."),
                    ("nginx", "proxy_connect_timeout of 2 to 5 s fails over sooner."),
                    (
                        "any server",
                        "The rule must let nginx reach the address and the port that the server listens on:",
                    ),
                ],
                ADDRESSES,
            )
        },
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let upstream = reading.server()?;
    if reading.connected() == Some(true) || reading.syn_reset().is_some() {
        return None;
    }
    let timed_out = reading.complains_of(&[Message::TimedOut]) && reading.phase() == Some(Phase::Connecting)
        || reading.errno() == Some(Errno::ETIMEDOUT)
        || reading.outcome() == Outcome::TimeoutConnect;
    let drops: Vec<_> = reading.drops().filter(|(_, reason)| is_filter_drop(*reason)).take(SHOWN).collect();
    let (_, reason) = drops.first().filter(|_| timed_out)?;
    let reason = reason.unwrap_or_default().to_owned();
    // A reject rule drops the packet too; its answer is what tells the two apart, and nginx's socket may take no notice of it.
    if reading.icmp().any(|(_, icmp)| is_filters(icmp)) {
        return None;
    }
    let mut finding = Finding::default();
    if !reading.sees(Sensor::Packets) {
        finding.missing.push(need(Sensor::Packets, "whether the filter answered by ICMP"));
        finding.not_excluded(&["firewall-rejected"]);
    }
    finding.support(reading.complaint_evidence());
    for (event, reason) in &drops {
        let fact = Fact::Dropped { reason: reason.map(str::to_owned) };
        finding.support(Some(evidence(fact, &[event.id], Weight::Direct)));
    }
    let (retransmits, events) = reading.syn_retransmits();
    let waited_us = reading.started().map(|started| reading.failed_at().since_ns(started) / 1_000);
    if !events.is_empty() {
        finding.support(Some(evidence(Fact::SynUnanswered { retransmits, waited_us }, &events, Weight::Symptom)));
    }
    let place = reading.dropped_outward().find(|(_, drop)| is_filter_drop(drop.reason.as_deref()));
    let place = place.map(|(_, drop)| format!(", {}", reading.place_of(drop))).unwrap_or_default();
    finding.summary =
        format!("This host dropped the handshake with {upstream} itself ({reason}{place}), so no answer could come.");
    finding.fix.push(format!(
        "Find the rule of this host that drops it: `nft list ruleset`, `iptables -vnL`, `tc filter show`, for {upstream}."
    ));
    Some(finding)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::{World, moment},
        model::{
            complaint::{Message, Phase},
            flow::Side,
            net::Errno,
            socket::{SocketChange, TcpState},
            verdict::Confidence,
        },
    };

    pub(crate) fn dropped() -> World {
        let mut world = World::new(504);
        world.listening();
        world.attempt().started = Some(moment(-4_000_000));
        world.drop_packet(-3_999_000, "NETFILTER_DROP");
        let socket = world.socket(Side::Nginx, TcpState::SynSent, None);
        world.change(-3_000_000, socket.clone(), SocketChange::Retransmitted { payload: 0 });
        world.drop_packet(-2_999_000, "NETFILTER_DROP");
        world.attempt().socket_at_failure = Some(socket);
        world.complain(Message::TimedOut, Phase::Connecting, Some(Errno::ETIMEDOUT), "upstream timed out");
        world
    }

    #[test]
    fn the_plain_case() {
        dropped().expect("firewall-dropped", Confidence::Confirmed);
    }

    #[test]
    fn another_reason_is_not_it() {
        let mut world = dropped();
        world.flow().events.retain(|event| !format!("{event:?}").contains("NETFILTER_DROP"));
        world.drop_packet(-2_999_000, "NO_SOCKET");
        world.expect("syn-timeout", Confidence::Confirmed);
    }

    #[test]
    fn without_the_drop_record_what_is_left_is_not_certain() {
        let mut world = dropped();
        world.flow().events.retain(|event| !format!("{event:?}").contains("NETFILTER_DROP"));
        world.blind(crate::model::coverage::Sensor::Drops);
        let explanation = world.expect("syn-timeout", Confidence::Likely);
        assert_eq!(explanation.rivals, ["firewall-dropped"]);
    }
}
