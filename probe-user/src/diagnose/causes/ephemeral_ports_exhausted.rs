//! `ephemeral-ports-exhausted`: no local port is left towards the upstream.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::{Reading, need},
        said::connect_returned,
    },
    servers::{KEPT_CONNECTIONS, and_servers},
};
use crate::model::{coverage::Sensor, net::Errno};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "ephemeral-ports-exhausted",
    title: "no local port is left towards the upstream",
    family: Family::Connect,
    statuses: &[502, 500],
    depth: Depth::Mechanism,
    page: Page {
        happened: "Each connection to the same upstream address needs a local port of its own, and connections that nginx closed keep theirs for 60 s (TIME_WAIT). With the range used up connect() returns EADDRNOTAVAIL; with proxy_bind it can be bind(), and nginx answers 500.",
        proof: "EADDRNOTAVAIL from connect(), and the ports of net.ipv4.ip_local_port_range that lead to the upstream found (nearly) all in use.",
        refuted: "bind() failing for an address that is not this host's; an IPv6 address that no interface can reach, where the kernel says the same.",
        remedies: &const {
            and_servers::<3, 11>(
                [
                    (
                        "nginx",
                        "keepalive in the upstream block, with proxy_http_version 1.1 and an empty Connection header, ends the churn. Several upstream addresses or proxy_bind addresses multiply the range.",
                    ),
                    (
                        "kernel",
                        "net.ipv4.ip_local_port_range = 1024 65535 (default 32768 60999: 28232 ports); net.ipv4.tcp_tw_reuse = 1. `ss -tan state time-wait | wc -l` shows who holds them.",
                    ),
                    (
                        "any server",
                        "One that closes after every response makes nginx take a new local port for each; where nginx closes first, as it mostly does after a Content-Length, the port rests for 60 s in TIME_WAIT.",
                    ),
                ],
                KEPT_CONNECTIONS,
            )
        },
    },
    rule,
};

/// Reserved ports (`net.ipv4.ip_local_reserved_ports`) count into the range, and some connections end before they are counted.
pub(super) const fn nearly_all(in_use: u32, all: u32) -> bool {
    in_use as u64 * 10 >= all as u64 * 9
}

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let upstream = reading.upstream()?;
    let (mut finding, errno) = connect_returned(reading, &[Errno::EADDRNOTAVAIL])?;
    let ports = reading.local_ports();
    let counts = ports.as_ref().map(|(counts, _)| *counts);
    let taken = counts.is_some_and(|(in_use, all)| nearly_all(in_use, all));
    finding.support(ports.map(|(_, evidence)| evidence));
    if let Some((in_use, all)) = counts.filter(|_| !taken) {
        finding.missing.push(need(
            Sensor::Host,
            &format!("why there was no port: only {in_use} of {all} were found in use towards the upstream"),
        ));
    } else if !taken {
        finding.missing.push(need(
            Sensor::Host,
            "the ports in use against the range: an address that cannot be used gives the same errno",
        ));
    }
    finding.summary = format!("No local port was left for a connection to {upstream}: connect() returned {errno}.");
    if let Some((in_use, all)) = counts {
        finding.say(format_args!(" {in_use} of {all} local ports lead there already."));
    }
    finding.fix.push("Keep connections: `keepalive 32;` in the upstream block, proxy_http_version 1.1, proxy_set_header Connection \"\".".to_owned());
    finding.fix.push(
        "Widen the range: sysctl net.ipv4.ip_local_port_range=\"1024 65535\"; net.ipv4.tcp_tw_reuse=1.".to_owned(),
    );
    Some(finding)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::World,
        model::{coverage::Sensor, host::HostFact, net::Errno, verdict::Confidence},
    };

    pub(crate) fn world() -> World {
        in_use(28_232)
    }

    fn in_use(in_use: u32) -> World {
        let mut world = World::connect_fails("10.9.9.9:8000", Errno::EADDRNOTAVAIL);
        let upstream = "10.9.9.9:8000".parse().unwrap();
        let range = (32_768, 60_999);
        world.host(900, HostFact::LocalPorts { upstream, netns: None, range, in_use, waiting: in_use / 2 });
        world
    }

    #[test]
    fn ports_left_over_or_not_counted_leave_a_doubt() {
        in_use(12).expect("ephemeral-ports-exhausted", Confidence::Likely);
        let mut world = world();
        world.case.host.clear();
        world.expect("ephemeral-ports-exhausted", Confidence::Likely);
    }

    #[test]
    fn the_plain_case() {
        world().expect("ephemeral-ports-exhausted", Confidence::Confirmed);
    }

    #[test]
    fn the_nearest_case_is_not_it() {
        let other = World::connect_fails("10.9.9.9:8000", Errno::ENETUNREACH);
        assert_eq!(crate::report::cause(&other.judge()), "no-route");
    }

    #[test]
    fn without_the_call_it_is_likely() {
        let mut world = world();
        world.attempt().syscalls.clear();
        world.blind(Sensor::Syscalls);
        world.expect("ephemeral-ports-exhausted", Confidence::Likely);
    }
}
