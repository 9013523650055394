//! Packet filters that answer for the upstream, or say nothing: in the upstream's namespace, in nginx's own, in a router between.

use std::net::SocketAddr;

use anyhow::Result;

use super::Fault;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::namespace::Namespace;
use crate::site::{Plan, Site};
use crate::upstream::{Kind, Plan as UpstreamPlan};

/// One rejection: where the rule is, what it says, what nginx makes of it.
struct Reject {
    name: &'static str,
    port: u16,
    v6: bool,
    /// In nginx's namespace, on the way out; else in the upstream's, on the way in.
    outgoing: bool,
    with: &'static str,
    outcome: &'static [Outcome],
    errno: &'static [Option<&'static str>],
    says: &'static [&'static str],
}

macro_rules! rejects {
    ($({ $name:literal, $story:literal, $port:literal, $v6:literal, $outgoing:literal, $with:literal, $outcome:ident, $errno:literal, $says:expr }),* $(,)?) => {
        &[$(
            Fault::new(
                $name,
                $story,
                |plan| guard(plan, $name, $port, $v6),
                |site| {
                    reject(site, &Reject {
                        name: $name,
                        port: $port,
                        v6: $v6,
                        outgoing: $outgoing,
                        with: $with,
                        outcome: &[Outcome::$outcome],
                        errno: &[Some($errno)],
                        says: $says,
                    })
                },
            ),
        )*]
    };
}

/// Rules that answer. Each guards a port on which a server is alive.
pub(super) const REJECTS: &[Fault] = rejects![
    { "firewall-rejected-reset", "a filter beside the upstream answers by RST; the server is alive",
      9200, false, false, "tcp reset", Refused, "ECONNREFUSED", &["RST", "NETFILTER_DROP"] },
    { "firewall-rejected-port", "a filter beside the upstream answers by ICMP port unreachable",
      9201, false, false, "icmp type port-unreachable", Refused, "ECONNREFUSED", &["type 3, code 3"] },
    { "firewall-rejected-host", "a filter beside the upstream answers by ICMP host unreachable",
      9202, false, false, "icmp type host-unreachable", Unreachable, "EHOSTUNREACH", &["type 3, code 1", "NETFILTER_DROP"] },
    { "firewall-rejected-net", "a filter beside the upstream answers by ICMP network unreachable",
      9203, false, false, "icmp type net-unreachable", Unreachable, "ENETUNREACH", &["type 3, code 0", "NETFILTER_DROP"] },
    { "firewall-rejected-admin", "a filter beside the upstream answers by ICMP administratively prohibited",
      9204, false, false, "icmp type admin-prohibited", Unreachable, "EHOSTUNREACH", &["type 3, code 13"] },
    { "firewall-rejected-host-prohibited", "a filter beside the upstream answers by ICMP host prohibited",
      9205, false, false, "icmp type host-prohibited", Unreachable, "EHOSTUNREACH", &["type 3, code 10"] },
    { "firewall-rejected-net-prohibited", "a filter beside the upstream answers by ICMP network prohibited",
      9206, false, false, "icmp type net-prohibited", Unreachable, "ENETUNREACH", &["type 3, code 9"] },
    { "firewall-rejected-reset-v6", "a filter beside the upstream answers by RST (IPv6)",
      9207, true, false, "tcp reset", Refused, "ECONNREFUSED", &["RST", "NETFILTER_DROP"] },
    { "firewall-rejected-port-v6", "a filter beside the upstream answers by ICMPv6 port unreachable",
      9208, true, false, "icmpv6 type port-unreachable", Refused, "ECONNREFUSED", &["type 1, code 4"] },
    { "firewall-rejected-admin-v6", "a filter beside the upstream answers by ICMPv6 administratively prohibited",
      9209, true, false, "icmpv6 type admin-prohibited", LocalError, "EACCES", &["type 1, code 1"] },
    { "firewall-rejected-host-v6", "a filter beside the upstream answers by ICMPv6 address unreachable",
      9210, true, false, "icmpv6 type addr-unreachable", Unreachable, "EHOSTUNREACH", &["type 1, code 3", "NETFILTER_DROP"] },
    { "firewall-rejected-net-v6", "a filter beside the upstream answers by ICMPv6 no route",
      9211, true, false, "icmpv6 type no-route", Unreachable, "ENETUNREACH", &["type 1, code 0", "NETFILTER_DROP"] },
    { "firewall-rejected-out-reset", "a filter beside nginx answers its SYN by RST before it leaves",
      9212, false, true, "tcp reset", Refused, "ECONNREFUSED", &["NETFILTER_DROP"] },
    { "firewall-rejected-out-port", "a filter beside nginx answers its SYN by ICMP port unreachable before it leaves",
      9213, false, true, "icmp type port-unreachable", Refused, "ECONNREFUSED", &["NETFILTER_DROP"] },
    { "firewall-rejected-out-admin", "a filter beside nginx answers its SYN by ICMP administratively prohibited before it leaves",
      9214, false, true, "icmp type admin-prohibited", Unreachable, "EHOSTUNREACH", &["NETFILTER_DROP"] },
];

/// The faults of this file.
pub(super) const FAULTS: [&[Fault]; 2] = [REJECTS, OTHERS];

/// Rules that answer nothing, the answer by which a rule is told from a missing listener, and rules that do not matter.
pub(super) const OTHERS: &[Fault] = &[
    Fault::new(
        "firewall-rejected-nobody",
        "a filter answers by RST where nobody listens either: the filter comes first",
        |plan| pass(plan, "firewall-rejected-nobody", plan.app(UNHEARD)),
        |site| {
            site.lab().app().nft(&rule("firewall-rejected-nobody", "input", UNHEARD, "reject with tcp reset"))?;
            refused(site, "firewall-rejected-nobody", UNHEARD, "firewall-rejected", "upstream-refused")
        },
    ),
    Fault::new(
        "upstream-refused-beside-a-rule",
        "a reject rule guards another port: here nobody listens",
        |plan| pass(plan, "upstream-refused-beside-a-rule", plan.app(BESIDE)),
        |site| {
            site.lab().app().nft(&rule(
                "upstream-refused-beside-a-rule",
                "input",
                UNHEARD + 100,
                "reject with tcp reset",
            ))?;
            refused(site, "upstream-refused-beside-a-rule", BESIDE, "upstream-refused", "firewall-rejected")
        },
    ),
    Fault::new(
        "firewall-dropped-in",
        "a filter beside the upstream drops the SYN in silence",
        |plan| guard_briefly(plan, "firewall-dropped-in", DROP_IN),
        |site| {
            site.lab().app().nft(&rule("firewall-dropped-in", "input", DROP_IN, "drop"))?;
            dropped(site, "firewall-dropped-in", DROP_IN)
        },
    ),
    Fault::new(
        "firewall-dropped-out",
        "a filter beside nginx drops its SYN in silence",
        |plan| guard_briefly(plan, "firewall-dropped-out", DROP_OUT),
        |site| {
            site.lab().proxy().nft(&rule("firewall-dropped-out", "output", DROP_OUT, "drop"))?;
            dropped(site, "firewall-dropped-out", DROP_OUT)
        },
    ),
    Fault::new(
        "firewall-dropped-answer",
        "a filter beside nginx drops the upstream's SYN-ACK in silence",
        |plan| guard_briefly(plan, "firewall-dropped-answer", DROP_ANSWER),
        |site| {
            let ruleset = format!(
                "table inet firewall_dropped_answer {{ chain c {{ type filter hook input priority 0; tcp sport {DROP_ANSWER} drop\n}}\n}}\n"
            );
            site.lab().proxy().nft(&ruleset)?;
            dropped(site, "firewall-dropped-answer", DROP_ANSWER)
        },
    ),
];

const UNHEARD: u16 = 9220;
const BESIDE: u16 = 9221;
const DROP_IN: u16 = 9222;
const DROP_OUT: u16 = 9223;
const DROP_ANSWER: u16 = 9224;

/// A location for one address.
fn pass(plan: &mut Plan, name: &str, upstream: SocketAddr) {
    plan.config.location(&format!("/{name}/"), &[&format!("proxy_pass http://{upstream};")]);
}

/// A server that is alive behind the rule; the same for all of them.
fn serve(plan: &mut Plan, address: SocketAddr) {
    match plan.upstreams.iter_mut().find(|upstream| upstream.name == "guarded") {
        Some(guarded) => guarded.listen.push(address),
        None => plan.upstreams.push(UpstreamPlan {
            name: "guarded",
            kind: Kind::Own { control: None, idle: None },
            listen: vec![address],
            open_files: None,
        }),
    }
}

fn guard(plan: &mut Plan, name: &str, port: u16, v6: bool) {
    let address = if v6 { plan.app6(port) } else { plan.app(port) };
    serve(plan, address);
    pass(plan, name, address);
}

fn guard_briefly(plan: &mut Plan, name: &str, port: u16) {
    let address = plan.app(port);
    serve(plan, address);
    // Long enough for one retransmission, which the kernel sends after a second.
    let pass = format!("proxy_pass http://{address};");
    plan.config.location(&format!("/{name}/"), &[&pass, "proxy_connect_timeout 1500ms;"]);
}

/// A ruleset with one rule for one destination port.
fn rule(name: &str, hook: &str, port: u16, verdict: &str) -> String {
    let table = name.replace('-', "_");
    format!("table inet {table} {{ chain c {{ type filter hook {hook} priority 0; tcp dport {port} {verdict}\n}}\n}}\n")
}

fn reject(site: &Site<'_>, reject: &Reject) -> Result<Vec<Witness>> {
    let (namespace, hook): (&Namespace, _) =
        if reject.outgoing { (site.lab().proxy(), "output") } else { (site.lab().app(), "input") };
    namespace.nft(&rule(reject.name, hook, reject.port, &format!("reject with {}", reject.with)))?;
    let exchange = site.connect()?.get(&format!("/{}/cart", reject.name))?;
    let addresses = site.lab().addresses();
    let upstream = if reject.v6 {
        SocketAddr::from((addresses.app6, reject.port))
    } else {
        SocketAddr::from((addresses.app, reject.port))
    };
    let attempt = Attempt::fresh(upstream, reject.outcome, reject.errno);
    let expected = Expectation::incident(502, &["firewall-rejected"], vec![attempt])
        .logged("connect() failed (")
        .says(reject.says)
        .never(&["upstream-refused", "host-unreachable", "no-route", "connect-denied", "firewall-dropped"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

/// A refusal by RST of which one of two causes is the truth and the other the likeliest mistake.
fn refused(site: &Site<'_>, name: &str, port: u16, truth: &'static str, mistake: &'static str) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get(&format!("/{name}/cart"))?;
    let attempt = Attempt::fresh(site.app(port), &[Outcome::Refused], &[Some("ECONNREFUSED")]);
    let causes: &[&'static str] =
        if truth == "firewall-rejected" { &["firewall-rejected"] } else { &["upstream-refused"] };
    let mistakes: &[&'static str] =
        if mistake == "firewall-rejected" { &["firewall-rejected"] } else { &["upstream-refused"] };
    let expected = Expectation::incident(502, causes, vec![attempt])
        .logged("connect() failed (111: Connection refused) while connecting to upstream")
        .never(mistakes);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn dropped(site: &Site<'_>, name: &str, port: u16) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get(&format!("/{name}/cart"))?;
    // nginx writes 110 though no system call returned it.
    let attempt = Attempt::fresh(site.app(port), &[Outcome::TimeoutConnect], &[None, Some("ETIMEDOUT")]);
    let expected = Expectation::incident(504, &["firewall-dropped"], vec![attempt])
        .logged("upstream timed out (110: Connection timed out) while connecting to upstream")
        .says(&["NETFILTER_DROP"])
        .never(&["syn-timeout", "accept-queue-overflow", "firewall-rejected", "host-unreachable"]);
    Ok(vec![Witness::new(exchange, expected)?])
}
