//! `no-route`: `connect()` failed at once: no route.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::{Reading, need},
        said::connect_returned,
    },
    servers::{ADDRESSES, and_servers},
};
use crate::model::{coverage::Sensor, host::RouteKind, net::Errno};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "no-route",
    title: "this host has no route to the upstream",
    family: Family::Connect,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "nginx's host knows no way to the address: connect() failed at once, and no packet left. ENETUNREACH: no route at all; EHOSTUNREACH: an unreachable route; EINVAL: a blackhole route.",
        proof: "The errno that connect() itself returned, and no SYN; for EINVAL also the blackhole route itself.",
        refuted: "A packet that did leave: then somebody else said it (host-unreachable).",
        remedies: &const {
            and_servers::<4, 12>(
                [
                    (
                        "network",
                        "`ip route get ADDRESS` in nginx's network namespace shows what the kernel would do; `ip -6 route` for IPv6.",
                    ),
                    (
                        "nginx",
                        "A name with an AAAA record on a host without IPv6: resolver ... ipv6=off, or name the IPv4 address.",
                    ),
                    ("containers", "Is the network attached to nginx's container?"),
                    (
                        "any server",
                        "Does it listen in the family that nginx tries? An AAAA record for a server that listens on IPv4 alone ends here or as a refusal.",
                    ),
                ],
                ADDRESSES,
            )
        },
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let upstream = reading.upstream()?;
    let (mut finding, errno) =
        connect_returned(reading, &[Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::ENETDOWN, Errno::EINVAL])?;
    let route = reading.route().filter(|(kind, ..)| {
        matches!(
            (errno, kind),
            (Errno::EINVAL, RouteKind::Blackhole)
                | (Errno::EHOSTUNREACH, RouteKind::Unreachable)
                | (Errno::ENETUNREACH, RouteKind::None)
        )
    });
    if errno == Errno::EINVAL && route.is_none() {
        finding.missing.push(need(Sensor::Host, "the route: EINVAL is a blackhole route's answer, but not only"));
    }
    finding.summary =
        format!("This host has no route to {upstream}: connect() returned {errno} at once, no packet was sent.");
    if let Some((kind, destination, evidence)) = route {
        if kind != RouteKind::None {
            let destination = destination.unwrap_or("to it");
            finding.say(format_args!(" Its route is `{} {destination}`.", kind.name()));
        }
        finding.support(Some(evidence));
    }
    finding.fix.push(format!("`ip route get {}` in nginx's network namespace shows what is missing.", upstream.ip()));
    if upstream.is_ipv6() {
        finding
            .fix
            .push("If this host has no IPv6: `resolver ... ipv6=off`, or name the upstream's IPv4 address.".to_owned());
    }
    Some(finding)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::World,
        model::{coverage::Sensor, net::Errno, verdict::Confidence},
    };

    pub(crate) fn world() -> World {
        World::connect_fails("10.9.9.9:8000", Errno::ENETUNREACH)
    }

    #[test]
    fn the_plain_case() {
        world().expect("no-route", Confidence::Confirmed);
    }

    #[test]
    fn the_nearest_case_is_not_it() {
        let other = World::connect_fails("10.9.9.9:8000", Errno::EACCES);
        assert_eq!(crate::report::cause(&other.judge()), "connect-denied");
    }

    #[test]
    fn without_the_call_it_is_likely() {
        let mut world = world();
        world.attempt().syscalls.clear();
        world.blind(Sensor::Syscalls);
        world.expect("no-route", Confidence::Likely);
    }
}
