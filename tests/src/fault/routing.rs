//! Faults of routes and neighbours, at nginx and at a router between.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;

use super::Fault;
use crate::cgroup::ConnectPolicy;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::site::{Plan, Site};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault {
        apart: true,
        ..Fault::new(
            "host-unreachable-arp",
            "nobody on the link has the upstream's address: ARP stays unanswered",
            |plan| pass(plan, "host-unreachable-arp", NOBODY),
            |site| {
                let expected = Expected {
                    cause: &["host-unreachable"],
                    never: &["no-route", "syn-timeout", "firewall-rejected"],
                    logged: "connect() failed (113: ",
                    outcome: &[Outcome::Unreachable],
                    errno: &[Some("EHOSTUNREACH")],
                    says: &["NEIGH_FAILED"],
                };
                ask(site, "host-unreachable-arp", NOBODY, &expected)
            },
        )
    },
    Fault::new(
        "no-route",
        "nginx's host has no route to the upstream",
        |plan| pass(plan, "no-route", UNROUTED),
        |site| ask(site, "no-route", UNROUTED, &no_route("connect() to ", &[Some("ENETUNREACH")])),
    ),
    Fault::new(
        "no-route-unreachable",
        "nginx's host has an unreachable route to the upstream",
        |plan| pass(plan, "no-route-unreachable", UNREACHABLE),
        |site| {
            site.lab().proxy().ip_batch(&format!("route add unreachable {}\n", UNREACHABLE.ip()))?;
            ask(site, "no-route-unreachable", UNREACHABLE, &no_route("connect() to ", &[Some("EHOSTUNREACH")]))
        },
    ),
    Fault::new(
        "no-route-blackhole",
        "nginx's host has a blackhole route to the upstream",
        |plan| pass(plan, "no-route-blackhole", BLACKHOLE),
        |site| {
            site.lab().proxy().ip_batch(&format!("route add blackhole {}\n", BLACKHOLE.ip()))?;
            let expected = Expected {
                says: &["blackhole"],
                outcome: &[Outcome::LocalError],
                ..no_route("connect() to ", &[Some("EINVAL")])
            };
            ask(site, "no-route-blackhole", BLACKHOLE, &expected)
        },
    ),
    Fault::new(
        "connect-denied-route",
        "nginx's host has a prohibit route to the upstream",
        |plan| pass(plan, "connect-denied-route", PROHIBITED),
        |site| {
            site.lab().proxy().ip_batch(&format!("route add prohibit {}\n", PROHIBITED.ip()))?;
            let expected = Expected {
                cause: &["connect-denied"],
                never: &["no-route", "firewall-rejected", "host-unreachable"],
                logged: "connect() to ",
                outcome: &[Outcome::LocalError],
                errno: &[Some("EACCES")],
                says: &["prohibit"],
            };
            ask(site, "connect-denied-route", PROHIBITED, &expected)
        },
    ),
    Fault::new(
        "connect-denied-cgroup",
        "a control group's BPF program forbids nginx's workers to connect there",
        |plan| pass(plan, "connect-denied-cgroup", FORBIDDEN),
        |site| {
            let policy = ConnectPolicy::hold(&site.nginx().workers()?, FORBIDDEN.port())?;
            let expected = Expected {
                cause: &["connect-denied"],
                never: &["no-route", "firewall-rejected", "host-unreachable"],
                logged: "connect() to ",
                outcome: &[Outcome::LocalError],
                errno: &[Some("EPERM")],
                says: &["EPERM"],
            };
            let witnesses = ask(site, "connect-denied-cgroup", FORBIDDEN, &expected);
            drop(policy);
            witnesses
        },
    ),
    Fault {
        apart: true,
        ..Fault::new(
            "host-unreachable-router",
            "a router on the way answers by ICMP that the host cannot be reached",
            |plan| pass(plan, "host-unreachable-router", BEYOND),
            |site| {
                route_by_the_app(site)?;
                site.lab().app().ip_batch(&format!("route add unreachable {}\n", BEYOND.ip()))?;
                let expected = Expected {
                    cause: &["host-unreachable"],
                    never: &["no-route", "firewall-rejected", "syn-timeout"],
                    logged: "connect() failed (113: ",
                    outcome: &[Outcome::Unreachable],
                    errno: &[Some("EHOSTUNREACH")],
                    says: &["ICMP", "type 3, code 1"],
                };
                ask(site, "host-unreachable-router", BEYOND, &expected)
            },
        )
    },
    Fault {
        apart: true,
        ..Fault::new(
            "firewall-rejected-router-icmp",
            "a router on the way answers by ICMP that its administrator prohibits it",
            |plan| pass(plan, "firewall-rejected-router-icmp", PROHIBITED_BEYOND),
            |site| {
                route_by_the_app(site)?;
                site.lab().app().ip_batch(&format!("route add prohibit {}\n", PROHIBITED_BEYOND.ip()))?;
                let expected = Expected {
                    cause: &["firewall-rejected"],
                    never: &["connect-denied", "no-route", "host-unreachable", "syn-timeout"],
                    logged: "connect() failed (113: ",
                    outcome: &[Outcome::Unreachable],
                    errno: &[Some("EHOSTUNREACH")],
                    says: &["type 3, code 13"],
                };
                ask(site, "firewall-rejected-router-icmp", PROHIBITED_BEYOND, &expected)
            },
        )
    },
    Fault {
        apart: true,
        ..Fault::new(
            "firewall-rejected-router-reset",
            "a packet filter of a router on the way answers by RST",
            |plan| pass(plan, "firewall-rejected-router-reset", REJECTED_BEYOND),
            |site| {
                route_by_the_app(site)?;
                let host = REJECTED_BEYOND.ip();
                site.lab().app().nft(&format!(
                    "table inet router_rejects {{ chain c {{ type filter hook forward priority 0; ip daddr {host} meta l4proto tcp reject with tcp reset\n}}\n}}\n"
                ))?;
                let expected = Expected {
                    cause: &["firewall-rejected"],
                    never: &["upstream-refused", "host-unreachable"],
                    logged: "connect() failed (111: ",
                    outcome: &[Outcome::Refused],
                    errno: &[Some("ECONNREFUSED")],
                    says: &["NETFILTER_DROP"],
                };
                ask(site, "firewall-rejected-router-reset", REJECTED_BEYOND, &expected)
            },
        )
    },
    Fault {
        apart: true,
        ..Fault::new(
            "path-stall-handshake",
            "the upstream answers the SYN, and its host sends the answer to somebody else: nothing arrives",
            |plan| {
                let pass = format!("proxy_pass http://{};", plan.app(LISTENING));
                let bind = format!("proxy_bind {UNFOUND};");
                // Long enough for the kernel to send the SYN again, and a second more.
                plan.config.location("/path-stall-handshake/", &[&pass, &bind, "proxy_connect_timeout 3s;"]);
            },
            no_way_back,
        )
    },
];

/// The app's own server.
const LISTENING: u16 = 9001;
/// An address of nginx's of which the app has been told that it is elsewhere.
const UNFOUND: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 51);
/// In the app's network, and nobody's.
const NOBODY: SocketAddr = at([10, 77, 2, 66], 9240);
/// TEST-NET-1: the proxy has no default route.
const UNROUTED: SocketAddr = at([192, 0, 2, 1], 9241);
const UNREACHABLE: SocketAddr = at([192, 0, 2, 2], 9242);
const BLACKHOLE: SocketAddr = at([192, 0, 2, 3], 9243);
const PROHIBITED: SocketAddr = at([192, 0, 2, 4], 9244);
/// TEST-NET-2: beyond the app, which routes for it.
const BEYOND: SocketAddr = at([198, 51, 100, 2], 9245);
const PROHIBITED_BEYOND: SocketAddr = at([198, 51, 100, 3], 9246);
/// The app's own address, where nobody listens and nobody is asked.
const FORBIDDEN: SocketAddr = at([10, 77, 2, 2], 9248);
const REJECTED_BEYOND: SocketAddr = at([198, 51, 100, 4], 9247);

fn no_way_back(site: &Site<'_>) -> Result<Vec<Witness>> {
    site.lab().proxy().ip_batch(&format!("addr replace {UNFOUND}/32 dev lo\n"))?;
    // A station that does not exist.
    site.lab().app().ip_batch(&format!("neigh replace {UNFOUND} lladdr 02:00:00:00:00:97 nud permanent dev app0\n"))?;
    let exchange = site.connect()?.get("/path-stall-handshake/cart")?;
    let outcome = &[Outcome::TimeoutConnect];
    let attempt = Attempt::fresh(site.app(LISTENING), outcome, &[None, Some("ETIMEDOUT")]);
    let expected = Expectation::incident(504, &["path-stall"], vec![attempt])
        .logged("upstream timed out (110: Connection timed out) while connecting to upstream")
        .says(&["answered the SYN"])
        .never(&["syn-timeout", "accept-queue-overflow", "firewall-dropped", "host-unreachable"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

const fn at([a, b, c, d]: [u8; 4], port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(a, b, c, d)), port)
}

/// What must be said, without the address.
struct Expected {
    cause: &'static [&'static str],
    never: &'static [&'static str],
    logged: &'static str,
    outcome: &'static [Outcome],
    errno: &'static [Option<&'static str>],
    says: &'static [&'static str],
}

const fn no_route(logged: &'static str, errno: &'static [Option<&'static str>]) -> Expected {
    Expected {
        cause: &["no-route"],
        never: &["host-unreachable", "connect-denied", "syn-timeout"],
        logged,
        outcome: &[Outcome::Unreachable],
        errno,
        says: &[],
    }
}

fn pass(plan: &mut Plan, name: &str, upstream: SocketAddr) {
    plan.config.location(&format!("/{name}/"), &[&format!("proxy_pass http://{upstream};")]);
}

/// Makes the app's namespace a router for TEST-NET-2. The route is the same for every fault that needs it.
fn route_by_the_app(site: &Site<'_>) -> Result<()> {
    site.lab().app().sysctl("ipv4/ip_forward", "1")?;
    // The router sends as many messages as it is asked for.
    site.lab().app().sysctl("ipv4/icmp_ratelimit", "0")?;
    site.lab().app().ip_batch("route replace 198.51.100.4/32 dev app0\n")?;
    site.lab().proxy().ip_batch(&format!("route replace 198.51.100.0/24 via {}\n", site.lab().addresses().app))
}

fn ask(site: &Site<'_>, name: &str, upstream: SocketAddr, wanted: &Expected) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get(&format!("/{name}/cart"))?;
    let attempt = Attempt::fresh(upstream, wanted.outcome, wanted.errno);
    let expected = Expectation::incident(502, wanted.cause, vec![attempt])
        .logged(wanted.logged)
        .says(wanted.says)
        .never(wanted.never);
    Ok(vec![Witness::new(exchange, expected)?])
}
