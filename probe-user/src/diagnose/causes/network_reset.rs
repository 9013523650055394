//! `network-reset`: a RST that the upstream's host did not send.

use super::super::{
    cause::{Cause, Depth, Family, Finding, Page},
    reading::{Broken, Locality, Reading, Survival, need},
};
use crate::model::{coverage::Sensor, evidence::Weight, flow::Side};

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
        proof: "An upstream on this host whose kernel sent no reset and whose socket went on; for one on another host only signs (TTL, \
                sequence) tell, and the verdict is not this one yet.",
        refuted: "The kernel's record of sending it from the upstream's end (upstream-reset).",
        remedies: &[
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
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    if reading.broken()? != Broken::Reset
        || reading.locality() != Locality::Here
        || matches!(reading.survival(), Survival::Ended(_))
    {
        return None;
    }
    let reset = reading.reset()?;
    let upstream_end_seen = reading.flow()?.sockets(Side::Upstream).next().is_some();
    let silent = reading.sees(Sensor::ResetsSent) && reading.sees(Sensor::SocketStates);
    if reset.sent_here.is_some() || reading.aborted_here().is_some() || !silent || reading.close().is_some() {
        return None;
    }
    let mut finding = Finding::default();
    finding.support(reading.complaint_evidence());
    let weight = if upstream_end_seen { Weight::Direct } else { Weight::Symptom };
    finding.support(Some(reading.reset_evidence(&reset, weight)));
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

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::{LENGTH, START, World},
        model::{
            complaint::{Message, Phase},
            coverage::Sensor,
            flow::Side,
            net::Errno,
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
