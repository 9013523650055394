//! `host-unreachable`: ICMP or ARP says that the host cannot be reached.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::{Reading, evidence, need},
        said::remark_moved_name,
    },
    firewall_rejected::{is_filters, took_and_answered},
    servers::{ADDRESSES, and_servers},
};
use crate::model::{
    attempt::Outcome,
    coverage::Sensor,
    evidence::{Fact, Weight},
    net::Errno,
};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "host-unreachable",
    title: "the upstream's host cannot be reached",
    family: Family::Connect,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "The SYN left nginx's socket, and then somebody said that the host cannot be reached: this host itself, because \
                   nobody answers its ARP (or neighbour solicitation) for the address, about 3 s later; or a router, by ICMP.",
        proof: "The ICMP message (network or host unreachable), or the kernel's record that the neighbour was not found, and \
                EHOSTUNREACH or ENETUNREACH on nginx's socket.",
        refuted: "connect() failing at once: no route here (no-route). ICMP codes of a packet filter, or this host's own filter taking the \
                  SYN away (firewall-rejected). Said by the very address that was asked it is likely only: a rule can reject with this \
                  message, and a NAT can stand there whose target is gone.",
        remedies: &const {
            and_servers::<4, 12>(
                [
                    (
                        "network",
                        "`ip neigh show ADDRESS`: FAILED means that nobody has that address on the link: host down, container gone, \
                         wrong subnet or VLAN. ICMP from a router names the hop that gave up.",
                    ),
                    (
                        "containers",
                        "An address that a stopped container had: nginx resolves names in its configuration once, at start. Use a \
                            resolver and a variable, or `server NAME resolve` (open source from 1.27.3).",
                    ),
                    ("nginx", "proxy_next_upstream error (the default) tries another server."),
                    (
                        "any server",
                        "A server is reached on the address that it was bound to: on this same host name 127.0.0.1 or a unix socket, which no link and no router can lose.",
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
    let unreachable = |errno: Errno| matches!(errno, Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EHOSTDOWN);
    let on_the_wire = reading.outcome() == Outcome::Unreachable && reading.icmp().next().is_some();
    if !(reading.errno().is_some_and(unreachable) || on_the_wire)
        || reading.connected() == Some(true)
        || reading.connect_call_error().is_some()
    {
        return None;
    }
    if reading.complains_of(&[crate::model::complaint::Message::ConnectFailedAtOnce])
        || reading.icmp().any(|(_, i)| is_filters(i))
        || took_and_answered(reading).is_some()
    {
        return None;
    }
    let mut finding = Finding::default();
    finding.support(reading.complaint_evidence());
    finding.require(reading.told_connect_error().map(|(_, evidence)| evidence), || {
        need(Sensor::SocketErrors, "the error the kernel gave to nginx's socket")
    });
    let mut who = None;
    for (event, icmp) in reading.icmp() {
        let fact = Fact::Icmp { from: icmp.from, icmp_type: icmp.icmp_type, code: icmp.code, v6: icmp.v6 };
        finding.support(Some(evidence(fact, &[event.id], Weight::Direct)));
        who = Some(format!("{} said so by ICMP (type {}, code {})", icmp.from, icmp.icmp_type, icmp.code));
        if icmp.from == upstream.ip() {
            // Its own address speaks of it as unreachable: a rule that rejects with this message, or a NAT whose target is gone.
            finding.not_excluded(&["firewall-rejected"]);
        }
    }
    let neighbour = |reason: Option<&str>| reason.is_some_and(|reason| reason.starts_with("NEIGH_"));
    if let Some((event, reason)) = reading.drops().find(|(_, reason)| neighbour(*reason)) {
        let fact = Fact::Dropped { reason: reason.map(str::to_owned) };
        finding.support(Some(evidence(fact, &[event.id], Weight::Direct)));
        who = Some("nobody on the link answers for that address (ARP, or neighbour discovery)".to_owned());
    }
    if who.is_none() {
        finding.missing.push(need(Sensor::Packets, "the ICMP message or the failed neighbour look-up behind it"));
        finding.not_excluded(&["firewall-rejected"]);
    }
    let who = who.map(|who| format!(": {who}")).unwrap_or_default();
    finding.summary = format!("The host of {upstream} cannot be reached{who}.");
    finding.fix.push(format!(
        "Is the host of {upstream} up, and is the address still its own? `ip neigh show {}` and `ip route get {}` on nginx's host.",
        upstream.ip(),
        upstream.ip()
    ));
    finding.fix.push("If a name stands for it in nginx's configuration: it was resolved when nginx started; reload nginx, or use a resolver.".to_owned());
    remark_moved_name(&mut finding, reading);
    Some(finding)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::World,
        model::{
            complaint::{Message, Phase},
            flow::Side,
            net::Errno,
            socket::TcpState,
            verdict::Confidence,
        },
    };

    pub(crate) fn no_neighbour() -> World {
        let mut world = World::at("10.9.9.9:8000", 502);
        world.look_up(false, Vec::new(), Vec::new());
        world.drop_packet(-90, "NEIGH_FAILED");
        world.state(-79, Side::Nginx, TcpState::SynSent, TcpState::Closed, Some(Errno::EHOSTUNREACH));
        world.complain(Message::ConnectFailed, Phase::Connecting, Some(Errno::EHOSTUNREACH), "connect() failed");
        world
    }

    #[test]
    fn nobody_answers_arp_and_a_router_says_so() {
        no_neighbour().expect("host-unreachable", Confidence::Confirmed);
        let mut world = no_neighbour();
        world.flow().events.remove(0);
        world.icmp_from("10.1.1.1", -85, 3, 1);
        world.expect("host-unreachable", Confidence::Confirmed);
    }

    #[test]
    fn said_by_the_address_itself_it_can_be_a_rule_that_rejects() {
        let mut world = no_neighbour();
        world.flow().events.remove(0);
        world.icmp(-85, 3, 1);
        let explanation = world.expect("host-unreachable", Confidence::Likely);
        assert_eq!(explanation.rivals, ["firewall-rejected"]);
    }

    #[test]
    fn a_prohibition_is_a_filters_word() {
        let mut world = no_neighbour();
        world.icmp(-85, 3, 10);
        world.expect("firewall-rejected", Confidence::Confirmed);
    }

    #[test]
    fn without_the_reason_it_is_likely() {
        let mut world = no_neighbour();
        world.flow().events.remove(0);
        world.expect("host-unreachable", Confidence::Likely);
    }
}
