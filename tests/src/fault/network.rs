//! Faults on the way between nginx and the upstream: a router that refuses, drops and loses.

use std::time::Duration;

use anyhow::Result;

use super::Fault;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::site::{Plan, Site};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "network-reset",
        "a router that has forgotten the connection answers the request with a reset; the upstream sends none",
        refused,
        provoke_refused,
    ),
    Fault::new(
        "upstream-reset-routed",
        "behind a router, the upstream itself resets: not the network's",
        peer,
        provoke_peer,
    ),
    Fault::new("path-stall-mtu", "a router drops every large packet and says nothing: an MTU hole", mtu, provoke_mtu),
    Fault::new("path-stall-lost", "a router drops everything after the handshake", lost, provoke_lost),
    Fault::new(
        "path-stall-answer",
        "a router drops the large packets of the answer: for nginx the upstream is silent, and it is not",
        answer,
        provoke_answer,
    ),
    Fault::new(
        "path-stall-answer-unroutable",
        "the upstream's host loses its way back to nginx in the middle of a request: the answer is never even sent again",
        unroutable,
        provoke_unroutable,
    ),
    Fault::new(
        "harmless-loss",
        "every tenth packet is lost, and every request answered: no failure",
        loss,
        provoke_loss,
    ),
];

const REFUSED: u16 = 9131;
const MTU: u16 = 9132;
const LOST: u16 = 9133;
const ANSWER: u16 = 9134;
const LOSS: u16 = 9135;
const UNROUTABLE: u16 = 9136;

const TIMED_OUT: &str = "upstream timed out (110: Connection timed out) while reading response header from upstream";

/// A port of the app's own server for a rule of the router alone.
fn port(plan: &mut Plan, name: &'static str, port: u16, path: &str, rule: &str) {
    let address = plan.app(port);
    plan.scripted(name, vec![address], vec![address.to_string()]);
    let pass = format!("proxy_pass http://{address}{path};");
    plan.config.location(&format!("/{name}/"), &[&pass, "proxy_read_timeout 3s;"]);
    plan.forward.push_str(rule);
    plan.forward.push('\n');
}

fn refused(plan: &mut Plan) {
    let rule = format!("tcp dport {REFUSED} tcp flags & psh == psh reject with tcp reset");
    port(plan, "network-reset", REFUSED, "/ok/", &rule);
}

fn provoke_refused(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/network-reset/1")?;
    let attempt = Attempt::fresh(site.app(REFUSED), &[Outcome::Reset], &[Some("ECONNRESET")]);
    let expected = Expectation::incident(502, &["network-reset"], vec![attempt])
        .logged("recv() failed (104: Connection reset by peer) while reading response header from upstream")
        .says(&["TTL 64", "TTL 63"])
        .never(&["upstream-reset", "keepalive-race", "firewall-rejected", "premature-close"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn peer(plan: &mut Plan) {
    let pass = format!("proxy_pass http://{}/reset/0/;", plan.app(9001));
    plan.config.location("/upstream-reset-routed/", &[&pass]);
}

fn provoke_peer(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/upstream-reset-routed/1")?;
    let attempt = Attempt::fresh(site.app_address(), &[Outcome::Reset], &[Some("ECONNRESET")]);
    let expected = Expectation::incident(502, &["upstream-reset"], vec![attempt])
        .logged("recv() failed (104: Connection reset by peer) while reading response header from upstream")
        .never(&["network-reset"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn mtu(plan: &mut Plan) {
    port(plan, "path-stall-mtu", MTU, "/ok/", &format!("tcp dport {MTU} ip length > 1000 drop"));
}

fn provoke_mtu(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.request("POST", "/path-stall-mtu/1", &[b'x'; 6_000])?;
    let attempt = Attempt::fresh(site.app(MTU), &[Outcome::TimeoutRead], &[Some("ETIMEDOUT"), None]);
    let expected = Expectation::incident(504, &["path-stall"], vec![attempt])
        .logged(TIMED_OUT)
        .says(&["MTU"])
        .never(&["read-timeout", "send-timeout", "syn-timeout", "firewall-dropped"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn lost(plan: &mut Plan) {
    port(plan, "path-stall-lost", LOST, "/ok/", &format!("tcp dport {LOST} tcp flags & psh == psh drop"));
}

fn provoke_lost(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/path-stall-lost/1")?;
    let attempt = Attempt::fresh(site.app(LOST), &[Outcome::TimeoutRead], &[Some("ETIMEDOUT"), None]);
    let expected = Expectation::incident(504, &["path-stall"], vec![attempt]).logged(TIMED_OUT).never(&[
        "read-timeout",
        "send-timeout",
        "syn-timeout",
        "accept-queue-overflow",
    ]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn answer(plan: &mut Plan) {
    port(plan, "path-stall-answer", ANSWER, "/large/", &format!("tcp sport {ANSWER} ip length > 1000 drop"));
}

fn provoke_answer(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/path-stall-answer/1")?;
    let attempt = Attempt::fresh(site.app(ANSWER), &[Outcome::TimeoutRead], &[Some("ETIMEDOUT"), None]);
    let expected = Expectation::incident(504, &["path-stall"], vec![attempt])
        .logged(TIMED_OUT)
        .says(&["MTU"])
        .never(&["read-timeout"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn unroutable(plan: &mut Plan) {
    port(plan, "path-stall-answer-unroutable", UNROUTABLE, "/slow/500/", "");
}

fn provoke_unroutable(site: &Site<'_>) -> Result<Vec<Witness>> {
    let app = site.lab().app();
    let rule = |change: &str| app.ip_batch(&format!("rule {change} ipproto tcp sport {UNROUTABLE} unreachable\n"));
    let mut client = site.connect()?;
    client.send("GET", "/path-stall-answer-unroutable/1", b"")?;
    std::thread::sleep(Duration::from_millis(200));
    rule("add")?;
    let exchange = client.receive()?;
    rule("del")?;
    let attempt = Attempt::fresh(site.app(UNROUTABLE), &[Outcome::TimeoutRead], &[Some("ETIMEDOUT"), None]);
    let expected = Expectation::incident(504, &["path-stall"], vec![attempt])
        .logged(TIMED_OUT)
        .says(&["found no way back"])
        .never(&["read-timeout"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn loss(plan: &mut Plan) {
    port(plan, "harmless-loss", LOSS, "/ok/", &format!("tcp sport {LOSS} numgen inc mod 10 == 0 drop"));
}

fn provoke_loss(site: &Site<'_>) -> Result<Vec<Witness>> {
    let mut witnesses = Vec::new();
    for number in 0..5 {
        let exchange = site.connect()?.get(&format!("/harmless-loss/{number}"))?;
        witnesses.push(Witness::new(exchange, Expectation::nothing(Some(200)))?);
    }
    Ok(witnesses)
}
