//! `firewall-rejected`: a packet filter answered for the upstream.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::{Locality, Reading, evidence, need},
    },
    servers::{ADDRESSES, and_servers},
};
use crate::model::{
    coverage::Sensor,
    event::Event,
    evidence::{Fact, Weight},
    net::Errno,
    packet::IcmpPacket,
    socket::DropEvent,
};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "firewall-rejected",
    title: "a packet filter answered for the upstream",
    family: Family::Connect,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "A packet filter - on this host, on the upstream's, or between - refused the connection by a REJECT rule: with a \
                   RST, as if nobody listened, or with an ICMP message (port unreachable, administratively prohibited).",
        proof: "The ICMP message with such a code; or every SYN dropped on this host with a netfilter reason while nginx was told an error \
                instead of silence, whichever answer the rule gives (RST, host or network unreachable too); \
                or a RST for an upstream on this host whose listener is alive while the kernel's TCP sent none.",
        refuted: "The kernel's record that no socket listens (upstream-refused).",
        remedies: &const {
            and_servers::<6, 14>(
                [
                    (
                        "nftables",
                        "`nft list ruleset` and look for `reject`; `nft monitor trace` with a `meta nftrace set 1` rule shows which.",
                    ),
                    (
                        "iptables",
                        "`iptables-save | grep REJECT`; the counters of `iptables -vnL` show which rule takes it.",
                    ),
                    (
                        "Kubernetes",
                        "kube-proxy rejects connections to a Service without ready endpoints: `kubectl get endpointslices`.",
                    ),
                    (
                        "cloud",
                        "Security groups drop in silence and do not reject: a RST or ICMP comes from a host or an appliance.",
                    ),
                    ("nginx", "proxy_next_upstream error (the default) tries another server."),
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

/// Whether this message is one that only a packet filter sends to a SYN. A host without a listener answers TCP by RST.
pub(super) const fn is_filters(icmp: &IcmpPacket) -> bool {
    matches!(
        (icmp.v6, icmp.icmp_type, icmp.code),
        // Port unreachable; network, host, communication administratively prohibited (RFC 792, RFC 1812).
        (false, 3, 3 | 9 | 10 | 13)
        // Administratively prohibited, port unreachable, failed policy, reject route (RFC 4443).
        | (true, 1, 1 | 4 | 5 | 6)
    )
}

/// Drop reasons that a packet filter gives.
pub(super) fn is_filter_drop(reason: Option<&str>) -> bool {
    matches!(
        reason,
        Some(
            "NETFILTER_DROP"
                | "TC_INGRESS"
                | "TC_EGRESS"
                | "XDP"
                | "BPF_CGROUP_EGRESS"
                | "SECURITY_HOOK"
                | "SOCKET_FILTER"
        )
    )
}

/// This host's packet filter took every SYN of the attempt away, and yet nginx was told an error instead of silence: a rule that rejects.
/// A rule that drops leaves nginx waiting.
pub(super) fn took_and_answered<'a>(reading: &Reading<'a>) -> Option<(&'a Event, &'a DropEvent)> {
    let (errno, _) = reading.told_connect_error()?;
    if errno == Errno::ETIMEDOUT || reading.no_socket_for_syn().is_some() {
        return None;
    }
    let mut taken = reading.dropped_outward().filter(|(_, drop)| is_filter_drop(drop.reason.as_deref()));
    let first = taken.next()?;
    let times = 1 + taken.count();
    let (repeated, _) = reading.syn_retransmits();
    (u32::try_from(times).is_ok_and(|times| times > repeated)).then_some(first)
}

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let upstream = reading.server()?;
    if reading.connected() != Some(false) || reading.no_socket_for_syn().is_some() {
        return None;
    }
    let mut finding = Finding::default();
    finding.support(reading.complaint_evidence());
    let reset = reading.syn_reset();
    let mut how = None;
    for (event, icmp) in reading.icmp().filter(|(_, icmp)| is_filters(icmp)) {
        let fact = Fact::Icmp { from: icmp.from, icmp_type: icmp.icmp_type, code: icmp.code, v6: icmp.v6 };
        finding.support(Some(evidence(fact, &[event.id], Weight::Direct)));
        how = Some(format!("an ICMP message from {} (type {}, code {})", icmp.from, icmp.icmp_type, icmp.code));
    }
    let failed = reading.told_connect_error();
    if let Some((event, drop)) = took_and_answered(reading) {
        let fact = Fact::Dropped { reason: drop.reason.clone() };
        finding.support(Some(evidence(fact, &[event.id], Weight::Direct)));
        finding.support(reset.clone());
        for (event, icmp) in reading.icmp().filter(|(_, icmp)| !is_filters(icmp)) {
            let fact = Fact::Icmp { from: icmp.from, icmp_type: icmp.icmp_type, code: icmp.code, v6: icmp.v6 };
            finding.support(Some(evidence(fact, &[event.id], Weight::Symptom)));
            how = Some(format!("an ICMP message from {} (type {}, code {})", icmp.from, icmp.icmp_type, icmp.code));
        }
        let errno = failed.as_ref().map_or(Errno::ECONNREFUSED, |(errno, _)| *errno);
        let answer = how.unwrap_or_else(|| if reset.is_some() { "a RST".to_owned() } else { errno.to_string() });
        how = Some(format!("{answer}; the filter took the SYN away {}", reading.place_of(drop)));
    }
    let answered_by_tcp = reading.flow().is_some_and(|flow| flow.resets_sent_by_upstream().next().is_some());
    let silent = reading.locality() == Locality::Here
        && reading.sees(Sensor::ResetsSent)
        && reading.known_beforehand()
        && !answered_by_tcp;
    if how.is_none() {
        let refused = failed.as_ref().map(|(errno, _)| *errno).or_else(|| reading.errno()) == Some(Errno::ECONNREFUSED);
        let listens = reading.somebody_listens().filter(|_| refused && !answered_by_tcp)?;
        finding.support(Some(listens));
        if let Some(mut reset) = reset {
            if silent {
                reset.weight = Weight::Direct;
            }
            finding.support(Some(reset));
        } else {
            finding.missing.push(need(Sensor::ResetsReceived, "the RST that answered the SYN"));
        }
        if silent {
            how = Some("a RST that this host's TCP did not send, while the listener is alive".to_owned());
        } else {
            // The listener may have come just after.
            finding.missing.push(need(
                Sensor::ResetsSent,
                "whether this host's TCP sent the RST itself, for lack of a listener then",
            ));
            finding.not_excluded(&["upstream-refused"]);
            how = Some("a refusal, although somebody listens there".to_owned());
        }
    }
    finding.support(failed.map(|(_, evidence)| evidence));
    finding.summary =
        format!("A packet filter refused the connection to {upstream}: the answer was {}.", how.unwrap_or_default());
    finding.fix.push(format!(
        "Look for a reject rule on the way to {upstream}: `nft list ruleset`, `iptables-save | grep REJECT`{}.",
        if silent { "; it is on this host" } else { "" }
    ));
    Some(finding)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::World,
        model::{
            complaint::{Message, Phase},
            coverage::Sensor,
            flow::Side,
            net::Errno,
            socket::TcpState,
            verdict::Confidence,
        },
    };

    pub(crate) fn rejected() -> World {
        let mut world = World::new(502);
        world.listening();
        world.reset_received(-80, TcpState::SynSent);
        world.state(-79, Side::Nginx, TcpState::SynSent, TcpState::Closed, Some(Errno::ECONNREFUSED));
        world.complain(Message::ConnectFailed, Phase::Connecting, Some(Errno::ECONNREFUSED), "connect() failed");
        world
    }

    pub(crate) fn prohibited() -> World {
        let mut world = World::at("10.9.9.9:8000", 502);
        world.look_up(false, Vec::new(), Vec::new());
        world.icmp(-80, 3, 13);
        world.state(-79, Side::Nginx, TcpState::SynSent, TcpState::Closed, Some(Errno::EHOSTUNREACH));
        world.complain(Message::ConnectFailed, Phase::Connecting, Some(Errno::EHOSTUNREACH), "connect() failed");
        world
    }

    #[test]
    fn a_reset_while_the_listener_lives() {
        rejected().expect("firewall-rejected", Confidence::Confirmed);
    }

    #[test]
    fn icmp_prohibited() {
        prohibited().expect("firewall-rejected", Confidence::Confirmed);
    }

    #[test]
    fn port_unreachable_is_a_filters_answer_to_a_syn() {
        let mut world = World::at("10.9.9.9:8000", 502);
        world.icmp(-80, 3, 3);
        world.state(-79, Side::Nginx, TcpState::SynSent, TcpState::Closed, Some(Errno::ECONNREFUSED));
        world.complain(Message::ConnectFailed, Phase::Connecting, Some(Errno::ECONNREFUSED), "connect() failed");
        world.expect("firewall-rejected", Confidence::Confirmed);
    }

    #[test]
    fn a_drop_by_netfilter_and_a_reset() {
        let mut world = rejected();
        world.case.host.clear();
        world.drop_packet(-85, "NETFILTER_DROP");
        world.expect("firewall-rejected", Confidence::Confirmed);
    }

    #[test]
    fn a_drop_by_netfilter_and_an_unreachable_from_the_upstream_itself() {
        let mut world = World::new(502);
        world.listening();
        world.drop_packet(-85, "NETFILTER_DROP");
        world.icmp(-80, 3, 1);
        world.complain(Message::ConnectFailed, Phase::Connecting, Some(Errno::EHOSTUNREACH), "connect() failed");
        world.expect("firewall-rejected", Confidence::Confirmed);
    }

    #[test]
    fn a_drop_on_the_way_out_and_an_error_that_only_nginx_was_told() {
        let mut world = World::at("10.9.9.9:8000", 502);
        world.look_up(false, Vec::new(), Vec::new());
        world.drop_packet(-85, "NETFILTER_DROP");
        world.complain(Message::ConnectFailed, Phase::Connecting, Some(Errno::EHOSTUNREACH), "connect() failed");
        world.expect("firewall-rejected", Confidence::Confirmed);
    }

    /// Another connection to the same upstream was dropped and answered meanwhile.
    #[test]
    fn a_connection_without_a_port_has_met_no_filter() {
        let mut world = World::new(502);
        world.listening();
        world.drop_packet(-85, "NETFILTER_DROP");
        world.icmp(-80, 3, 1);
        world.complain(Message::ConnectFailed, Phase::Connecting, Some(Errno::EADDRNOTAVAIL), "connect() failed");
        assert_ne!(crate::report::cause(&world.judge()), "firewall-rejected");
    }

    #[test]
    fn a_drop_and_silence_is_no_answer() {
        let mut world = World::new(502);
        world.listening();
        world.drop_packet(-85, "NETFILTER_DROP");
        world.state(-79, Side::Nginx, TcpState::SynSent, TcpState::Closed, Some(Errno::ETIMEDOUT));
        world.complain(Message::ConnectFailed, Phase::Connecting, Some(Errno::ETIMEDOUT), "connect() failed");
        assert_eq!(crate::report::cause(&world.judge()), "firewall-dropped");
    }

    #[test]
    fn the_kernels_word_that_nobody_listens_is_not_it() {
        let mut world = rejected();
        world.reset_sent(-90, "NO_SOCKET", None);
        assert_eq!(crate::report::cause(&world.judge()), "upstream-refused");
    }

    #[test]
    fn without_the_kernels_silence_it_steps_down() {
        let mut world = rejected();
        world.blind(Sensor::ResetsSent);
        let explanation = world.expect("firewall-rejected", Confidence::Likely);
        assert_eq!(explanation.rivals, ["upstream-refused"]);
    }
}
