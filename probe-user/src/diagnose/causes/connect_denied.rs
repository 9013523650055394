//! `connect-denied`: a policy of this host forbids the connection.

use super::super::{
    cause::{Cause, Depth, Family, Finding, Page},
    reading::Reading,
    said::connect_returned,
};
use crate::model::{host::RouteKind, net::Errno};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "connect-denied",
    title: "a policy of this host forbids the connection",
    family: Family::Connect,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "connect() was refused by this host itself before a packet left: SELinux or another security module, a control group's BPF program, a packet filter on output, or a prohibit route.",
        proof: "EACCES or EPERM from connect() itself. A prohibit route is named; what SELinux, a control group or a filter decided stands in their own logs.",
        refuted: "An ICMP message that came back (firewall-rejected).",
        remedies: &[
            (
                "SELinux",
                "`ausearch -m avc -ts recent` names it; setsebool -P httpd_can_network_connect 1, or label the port: semanage port -a -t http_port_t -p tcp PORT.",
            ),
            ("systemd", "IPAddressDeny=, RestrictAddressFamilies= and SocketBindDeny= in nginx.service."),
            ("network", "`ip route get ADDRESS` says prohibit where a route forbids it."),
            ("AppArmor", "`dmesg | grep apparmor`."),
            (
                "any server",
                "`semanage port -l | grep -w PORT` shows the label of its port: -a gives one, -m replaces that of another service.",
            ),
            ("gunicorn", "semanage port -m -t http_port_t -p tcp 8000 (the default port carries soundd_port_t)."),
            ("uvicorn", "semanage port -m -t http_port_t -p tcp 8000 (the default port carries soundd_port_t)."),
            ("Node.js", "semanage port -m -t http_port_t -p tcp 3000 (the usual port carries ntop_port_t)."),
            ("Puma", "semanage port -a -t http_port_t -p tcp 9292 (the default port)."),
            (
                "php-fpm",
                "Port 9000 carries http_port_t already: httpd_can_network_relay or httpd_can_network_connect is enough. Over a unix socket see unix-socket-denied.",
            ),
            ("uWSGI", "semanage port -m -t http_port_t -p tcp 3031 (the usual port carries eppc_port_t)."),
            (
                "Go",
                "Port 8080 carries http_cache_port_t: httpd_can_network_relay or httpd_can_network_connect is enough.",
            ),
            (
                "Java",
                "Port 8080 carries http_cache_port_t: httpd_can_network_relay or httpd_can_network_connect is enough.",
            ),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let upstream = reading.upstream()?;
    let (mut finding, errno) = connect_returned(reading, &[Errno::EACCES, Errno::EPERM])?;
    finding.summary = format!(
        "A policy of this host forbids nginx to connect to {upstream}: connect() returned {errno}, no packet was sent."
    );
    if let Some((RouteKind::Prohibit, destination, evidence)) = reading.route() {
        let destination = destination.unwrap_or("to it");
        finding.say(format_args!(" It is the route `prohibit {destination}`."));
        finding.fix.push(format!(
            "`ip route show type prohibit` in nginx's network namespace: remove `prohibit {destination}`."
        ));
        finding.support(Some(evidence));
        return Some(finding);
    }
    finding.fix.push(
        "SELinux: `ausearch -m avc -ts recent`; if it is that, `setsebool -P httpd_can_network_connect 1`.".to_owned(),
    );
    finding.fix.push(format!(
        "Else: `ip route get {}` (prohibit), IPAddressDeny= in nginx.service, an output rule of nftables.",
        upstream.ip()
    ));
    Some(finding)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::World,
        model::{coverage::Sensor, net::Errno, verdict::Confidence},
    };

    pub(crate) fn world() -> World {
        World::connect_fails("10.9.9.9:8000", Errno::EACCES)
    }

    #[test]
    fn the_plain_case() {
        world().expect("connect-denied", Confidence::Confirmed);
    }

    #[test]
    fn the_nearest_case_is_not_it() {
        let other = World::connect_fails("unix:/run/app.sock", Errno::EACCES);
        assert_eq!(crate::report::cause(&other.judge()), "unix-socket-denied");
    }

    #[test]
    fn without_the_call_it_is_likely() {
        let mut world = world();
        world.attempt().syscalls.clear();
        world.blind(Sensor::Syscalls);
        world.expect("connect-denied", Confidence::Likely);
    }
}
