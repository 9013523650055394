//! `bind-failed`: the address that `proxy_bind` names cannot be used.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::Reading,
        said::nginx_said,
    },
    ephemeral_ports_exhausted::nearly_all,
};
use crate::model::{complaint::Message, net::Errno};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "bind-failed",
    title: "the local address that proxy_bind names cannot be used",
    family: Family::Connect,
    statuses: &[500],
    depth: Depth::Mechanism,
    page: Page {
        happened: "Before connecting nginx binds its socket to the address of proxy_bind (fastcgi_bind, ...), and bind() failed: \
                   EADDRNOTAVAIL, because no interface in nginx's network namespace has that address (a floating address that moved to \
                   another host, a container's own namespace); EADDRINUSE, because a fixed port is taken; EACCES or EPERM, because \
                   `transparent` needs a privilege. nginx answers 500 and tries no other server.",
        proof: "nginx's own message about bind() with the errno, heard inside nginx.",
        refuted: "A local port range that is used up towards this upstream (ephemeral-ports-exhausted); the message from connect() \
                  instead of bind().",
        remedies: &[
            (
                "nginx",
                "proxy_bind ADDRESS; must name an address of nginx's own host: `ip -br address` in its network namespace; \
                 proxy_bind off; in a location undoes an inherited one. Leave the port out. `transparent` needs user root or \
                 CAP_NET_RAW (nginx keeps it from 1.13.8 on).",
            ),
            (
                "keepalived, VRRP",
                "On the standby host the floating address is not there: net.ipv4.ip_nonlocal_bind = 1 lets bind() pass.",
            ),
            ("containers", "The host's addresses are not the container's: host networking, or no proxy_bind."),
            (
                "any server",
                "Without proxy_bind nginx comes from another address: what admits or trusts it by address must know that one.",
            ),
            ("gunicorn", "--forwarded-allow-ips (127.0.0.1) names the addresses whose X-Forwarded-Proto it believes."),
            ("uvicorn", "--forwarded-allow-ips (127.0.0.1), with --proxy-headers."),
            ("Node.js", "Express: app.set('trust proxy', '10.0.0.5')."),
            ("Puma", "Rails: config.action_dispatch.trusted_proxies (private addresses are in it)."),
            ("php-fpm", "listen.allowed_clients: it closes the connection of any other address."),
            (
                "uWSGI",
                "--http-socket shows the application nginx's address (werkzeug: ProxyFix(x_for=1)); uwsgi_params pass the client's.",
            ),
            ("Go", "r.RemoteAddr is nginx's address; gin: SetTrustedProxies."),
            (
                "Java",
                "server.tomcat.remoteip.internal-proxies (private addresses are in it), with server.forward-headers-strategy=native.",
            ),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let (mut finding, complaint) = nginx_said(reading, &[Message::BindFailed])?;
    let errno = complaint.errno;
    // A range that is used up says the same where nginx cannot leave the port's choice to connect() (before Linux 4.2).
    if reading.local_ports().is_some_and(|((in_use, all), _)| nearly_all(in_use, all)) {
        finding.not_excluded(&["ephemeral-ports-exhausted"]);
    }
    let address =
        complaint.text.strip_prefix("bind(").and_then(|rest| rest.split_once(')')).map(|(address, _)| address);
    let address =
        address.filter(|address| !address.contains('%')).map(|address| format!(" {address}")).unwrap_or_default();
    let why = match errno {
        Some(Errno::EADDRNOTAVAIL) => ": no interface of nginx's host has it",
        Some(Errno::EADDRINUSE) => ": it is in use",
        Some(Errno::EACCES | Errno::EPERM) => ": nginx may not use it",
        _ => "",
    };
    let shown = errno.map(|errno| format!(" ({errno})")).unwrap_or_default();
    finding.summary =
        format!("nginx could not bind its socket to the local address{address}{why}{shown}; nothing was sent.");
    finding.fix.push(format!(
        "Correct proxy_bind: `ip -br address` in nginx's network namespace shows which addresses it may name instead of{}.",
        if address.is_empty() { " this one" } else { address.as_str() }
    ));
    finding
        .fix
        .push("A floating address that is elsewhere now: net.ipv4.ip_nonlocal_bind=1, or no proxy_bind.".to_owned());
    Some(finding)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::World,
        model::{
            attempt::Joined,
            complaint::{Message, Phase},
            host::HostFact,
            net::Errno,
            verdict::Confidence,
        },
    };

    const TEXT: &str = "bind(192.0.2.77:0) failed";

    pub(crate) fn world() -> World {
        let mut world = World::new(500);
        world.attempt().flow = Joined::None;
        world.complain(Message::BindFailed, Phase::Connecting, Some(Errno::EADDRNOTAVAIL), TEXT);
        world
    }

    #[test]
    fn the_plain_case_names_the_address() {
        let explanation = world().expect("bind-failed", Confidence::Confirmed);
        assert!(explanation.summary.contains("192.0.2.77:0"), "{}", explanation.summary);
    }

    #[test]
    fn a_range_that_is_used_up_leaves_a_doubt() {
        let mut world = world();
        let upstream = "127.0.0.1:8000".parse().unwrap();
        world.host(900, HostFact::LocalPorts { upstream, netns: None, range: (41_000, 41_003), in_use: 4, waiting: 0 });
        let explanation = world.expect("bind-failed", Confidence::Likely);
        assert_eq!(explanation.rivals, ["ephemeral-ports-exhausted"]);
    }

    #[test]
    fn the_nearest_case_is_not_it() {
        let other = World::connect_fails("10.9.9.9:8000", Errno::EADDRNOTAVAIL);
        assert_eq!(crate::report::cause(&other.judge()), "ephemeral-ports-exhausted");
    }

    #[test]
    fn a_log_line_alone_makes_it_possible() {
        let mut world = world();
        world.log(Message::BindFailed, Phase::Connecting, Some(Errno::EADDRNOTAVAIL), TEXT);
        world.expect("bind-failed", Confidence::Possible);
    }
}
