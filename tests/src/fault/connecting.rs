//! Faults before a connection to the upstream exists.

use std::net::SocketAddr;

use anyhow::{Context, Result};

use super::Fault;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::site::{Plan, Site};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new("upstream-refused", "nobody listens on the upstream's port", refused, refuse),
    Fault::new("upstream-refused-v6", "nobody listens on the upstream's port (IPv6)", refused6, refuse6),
    Fault {
        apart: true,
        ..Fault::new(
            "syn-timeout-nginx",
            "the upstream's address answers no SYN; nginx gives up after proxy_connect_timeout",
            silent_nginx,
            wait_for_nginx,
        )
    },
    Fault {
        apart: true,
        ..Fault::new(
            "syn-timeout-kernel",
            "the upstream's address answers no SYN; the kernel gives up before nginx does",
            silent_kernel,
            wait_for_kernel,
        )
    },
    Fault::new(
        "no-live-upstreams",
        "both servers of a group refuse, then the next request finds none left to try",
        all_refuse,
        exhaust_peers,
    ),
    Fault::new("masked-retry", "the first server refuses, the second answers: the client sees 200", masked, mask),
];

/// Ports on which nobody listens, one for every fault.
const NOBODY: u16 = 9091;
const NOBODY6: u16 = 9092;
const SILENT: u16 = 9093;
const GROUP: [u16; 2] = [9094, 9095];
const MASKED: u16 = 9096;

const REFUSED: &str = "connect() failed (111: Connection refused) while connecting to upstream";

fn refused(plan: &mut Plan) {
    let pass = format!("proxy_pass http://{};", plan.app(NOBODY));
    plan.config.location("/upstream-refused/", &[&pass]);
}

fn refuse(site: &Site<'_>) -> Result<Vec<Witness>> {
    // A connection that has served before: the client's port is not fresh in anybody's memory.
    let mut client = site.connect()?;
    client.get("/ok")?;
    let exchange = client.get("/upstream-refused/cart")?;
    let attempt = Attempt::fresh(site.app(NOBODY), &[Outcome::Refused], &[Some("ECONNREFUSED")]);
    let expected = Expectation::incident(502, &["upstream-refused"], vec![attempt]).logged(REFUSED).never(&[
        "firewall-rejected",
        "upstream-reset",
        "keepalive-race",
    ]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn refused6(plan: &mut Plan) {
    let pass = format!("proxy_pass http://{};", plan.app6(NOBODY6));
    plan.config.location("/upstream-refused-v6/", &[&pass]);
}

fn refuse6(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect6()?.get("/upstream-refused-v6/cart")?;
    let upstream = SocketAddr::from((site.lab().addresses().app6, NOBODY6));
    let attempt = Attempt::fresh(upstream, &[Outcome::Refused], &[Some("ECONNREFUSED")]);
    let expected = Expectation::incident(502, &["upstream-refused"], vec![attempt]).logged(REFUSED).never(&[
        "firewall-rejected",
        "upstream-reset",
        "keepalive-race",
    ]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn silent_nginx(plan: &mut Plan) {
    if let Some([silent, _]) = plan.addresses.silent {
        let pass = format!("proxy_pass http://{silent}:{SILENT};");
        // Long enough for one retransmission, which the kernel sends after a second.
        plan.config.location("/syn-timeout-nginx/", &[&pass, "proxy_connect_timeout 2s;"]);
    }
}

fn wait_for_nginx(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/syn-timeout-nginx/cart")?;
    let [silent, _] = site.lab().addresses().silent.context("addresses that swallow packets")?;
    // nginx writes 110 though no system call returned it.
    let attempt =
        Attempt::fresh(SocketAddr::from((silent, SILENT)), &[Outcome::TimeoutConnect], &[None, Some("ETIMEDOUT")]);
    let expected = Expectation::incident(504, &["syn-timeout"], vec![attempt])
        .logged("upstream timed out (110: Connection timed out) while connecting to upstream")
        .never(&["read-timeout", "firewall-dropped", "host-unreachable", "accept-queue-overflow"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn silent_kernel(plan: &mut Plan) {
    if let Some([_, silent]) = plan.addresses.silent {
        let pass = format!("proxy_pass http://{silent}:{SILENT};");
        plan.config.location("/syn-timeout-kernel/", &[&pass, "proxy_connect_timeout 60s;"]);
        // One retransmission after 1 s, the end 2 s later. The linear ones (since 6.5) would come on top.
        plan.proxy_sysctls.push(("ipv4/tcp_syn_retries", "1"));
        if std::path::Path::new("/proc/sys/net/ipv4/tcp_syn_linear_timeouts").exists() {
            plan.proxy_sysctls.push(("ipv4/tcp_syn_linear_timeouts", "0"));
        }
    }
}

fn wait_for_kernel(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/syn-timeout-kernel/cart")?;
    let [_, silent] = site.lab().addresses().silent.context("addresses that swallow packets")?;
    let attempt = Attempt::fresh(SocketAddr::from((silent, SILENT)), &[Outcome::TimeoutConnect], &[Some("ETIMEDOUT")]);
    let expected = Expectation::incident(502, &["syn-timeout"], vec![attempt])
        .logged("connect() failed (110: Connection timed out) while connecting to upstream")
        .never(&["read-timeout", "firewall-dropped", "host-unreachable", "accept-queue-overflow"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn all_refuse(plan: &mut Plan) {
    let servers = GROUP.map(|port| format!("server {} max_fails=1 fail_timeout=30s;", plan.app(port)));
    plan.config.upstream("all_refuse", &[&servers[0], &servers[1]]);
    plan.config.location("/no-live-upstreams/", &["proxy_pass http://all_refuse;"]);
}

fn exhaust_peers(site: &Site<'_>) -> Result<Vec<Witness>> {
    // One connection is one worker, and without a `zone` each worker counts failures for itself.
    let mut client = site.connect()?;
    let first = client.get("/no-live-upstreams/first")?;
    let second = client.get("/no-live-upstreams/second")?;
    let attempts =
        GROUP.map(|port| Attempt::fresh(site.app(port), &[Outcome::Refused], &[Some("ECONNREFUSED")])).to_vec();
    let refused = Expectation::incident(502, &["upstream-refused"], attempts).logged(REFUSED);
    let mut none_left = Expectation::incident(502, &["no-live-upstreams"], Vec::new())
        .logged("no live upstreams while connecting to upstream")
        .never(&["upstream-refused"]);
    none_left.blames = Some(0);
    Ok(vec![Witness::new(first, refused)?, Witness::new(second, none_left)?])
}

fn masked(plan: &mut Plan) {
    // max_fails=0: the first server is tried first every time.
    let first = format!("server {} max_fails=0;", plan.app(MASKED));
    let second = format!("server {} backup;", plan.app(9001));
    plan.config.upstream("masked", &[&first, &second]);
    plan.config.location("/masked-retry/", &["proxy_pass http://masked/ok/;"]);
}

fn mask(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/masked-retry/cart")?;
    let refused = Attempt::fresh(site.app(MASKED), &[Outcome::Refused], &[Some("ECONNREFUSED")]);
    let answered = Attempt::fresh(site.app_address(), &[Outcome::Ok], &[None]);
    let expected = Expectation::near_miss(200, &["upstream-refused"], vec![refused, answered]).logged(REFUSED);
    Ok(vec![Witness::new(exchange, expected)?])
}
