//! A RST forged on the way, by a raw socket in the router: the upstream's kernel never sent it.

use std::net::{SocketAddr, SocketAddrV4};

use anyhow::{Context, Result, bail};

use super::Fault;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::forger::{Forger, Forgery};
use crate::line::Outcome;
use crate::site::{Plan, Site};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "network-reset-forged",
        "a RST forged on the way, with a TTL and an IP id of its own",
        |plan| late(plan, "network-reset-forged"),
        |site| {
            let exchange = struck(site, "/network-reset-forged", Forgery { ttl: 200, ..OWN_ID }, |path| {
                site.connect()?.get(path)
            })?;
            let attempt = Attempt::fresh(site.app_address(), &[Outcome::Reset], &[Some("ECONNRESET")]);
            Ok(vec![Witness::new(exchange, reset(vec![attempt], &["TTL 200", "TTL 63"]))?])
        },
    ),
    Fault::new(
        "network-reset-same-ttl",
        "a RST forged on the way on a kept connection, with the upstream's TTL: only its IP id is out of the upstream's count",
        |plan| kept(plan, "network-reset-same-ttl"),
        |site| {
            let mut client = site.connect()?;
            let mut witnesses = Vec::new();
            // The forger is there from the connection's beginning on: else it would not know how far the upstream has counted.
            let exchange = struck(site, "/network-reset-same-ttl", OWN_ID, |path| {
                for number in 0..3 {
                    let exchange = client.get(&format!("/network-reset-same-ttl/{number}"))?;
                    witnesses.push(Witness::new(exchange, Expectation::nothing(Some(200)))?);
                }
                // A request that nginx may not send twice.
                client.request("POST", path, b"x")
            })?;
            let attempt = Attempt::reused(site.app_address(), &[Outcome::Reset], &[Some("ECONNRESET")]);
            witnesses.push(Witness::new(exchange, reset(vec![attempt], &[]))?);
            Ok(witnesses)
        },
    ),
    Fault::new(
        "harmless-blind-reset",
        "a RST forged without knowing the sequence number: nginx's kernel does not take it, and the answer comes",
        |plan| late(plan, "harmless-blind-reset"),
        |site| {
            let exchange = struck(site, "/harmless-blind-reset", BLIND, |path| site.connect()?.get(path))?;
            Ok(vec![Witness::new(exchange, Expectation::nothing(Some(200)))?])
        },
    ),
    Fault::new(
        "premature-close-blind-reset",
        "a RST forged without knowing the sequence number, which nginx's kernel does not take; then the upstream closes",
        |plan| {
            let pass = format!("proxy_pass http://{}/close/50/;", plan.app(9001));
            plan.config.location("/premature-close-blind-reset/", &[&pass]);
        },
        |site| {
            let exchange = struck(site, "/premature-close-blind-reset", BLIND, |path| site.connect()?.get(path))?;
            let attempt = Attempt::fresh(site.app_address(), &[Outcome::Closed], &[None]);
            let expected = Expectation::incident(502, &["premature-close"], vec![attempt])
                .logged("upstream prematurely closed connection while reading response header from upstream")
                .silent(&["a RST arrived"])
                .never(&["network-reset", "upstream-reset", "keepalive-race"]);
            Ok(vec![Witness::new(exchange, expected)?])
        },
    ),
];

/// The TTL with which the upstream's packets leave the router.
const PEERS_TTL: u8 = 63;
/// A RST in sequence, with an IP id of its own.
const OWN_ID: Forgery = Forgery { ttl: PEERS_TTL, id_ahead: 0x4321, sequence_ahead: 0 };
/// A RST out of any window.
const BLIND: Forgery = Forgery { sequence_ahead: 0x4000_0000, ..OWN_ID };

/// The upstream answers 50 ms after it was asked.
fn late(plan: &mut Plan, name: &str) {
    let pass = format!("proxy_pass http://{}/slow/50/;", plan.app(9001));
    plan.config.location(&format!("/{name}/"), &[&pass]);
}

fn kept(plan: &mut Plan, name: &str) {
    let app = plan.app(9001);
    plan.keepalive_location(name, &format!("/{name}/"), app, "/slow/50/");
}

/// Sends requests to this location, against the last of which the forger forges one RST.
fn struck<T>(site: &Site<'_>, location: &str, forgery: Forgery, request: impl FnOnce(&str) -> Result<T>) -> Result<T> {
    let router = site.lab().router().context("this lab has no router")?;
    let forger = Forger::start(router, upstream(site)?, TRIGGER, forgery)?;
    let exchange = request(&format!("{location}/{TRIGGER}"))?;
    forger.finish()?;
    Ok(exchange)
}

/// What the forger waits for in a request: a piece of its path.
const TRIGGER: &str = "strike-here";

fn upstream(site: &Site<'_>) -> Result<SocketAddrV4> {
    match site.app_address() {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(address) => bail!("{address} is not IPv4"),
    }
}

fn reset(attempts: Vec<Attempt>, says: &[&str]) -> Expectation {
    Expectation::incident(502, &["network-reset"], attempts)
        .logged("recv() failed (104: Connection reset by peer) while reading response header from upstream")
        .says(says)
        .never(&["upstream-reset", "keepalive-race", "firewall-rejected", "premature-close"])
}
