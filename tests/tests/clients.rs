//! Clients that speak TLS, HTTP/2 and IPv6: each incident names the right client, protocol and URI, also where only some of the
//! streams of one connection fail.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use probe_tests::client::Exchange;
use probe_tests::config::TLS_PORT;
use probe_tests::curl::{Version, get_all};
use probe_tests::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::line::Outcome;
use probe_tests::probe::Probe;
use probe_tests::site::Site;
use probe_tests::trial::WITHIN;

/// The faults of which one URI each fails by itself.
const FAULTS: [&str; 4] = ["upstream-refused", "upstream-reset", "premature-close", "header-too-big"];

/// What must be said about a request to one of them.
fn expected(site: &Site<'_>, exchange: &Exchange) -> Expectation {
    let name = exchange.uri.split('/').nth(1).unwrap_or_default();
    let (outcome, errno, port): (&'static [Outcome], &'static [Option<&'static str>], u16) = match name {
        "upstream-refused" => (&[Outcome::Refused], &[Some("ECONNREFUSED")], 9091),
        "upstream-reset" => (&[Outcome::Reset], &[Some("ECONNRESET")], 9001),
        "premature-close" => (&[Outcome::Closed], &[None], 9001),
        "header-too-big" => (&[Outcome::BadResponse], &[None], 9001),
        _ => return Expectation::nothing(Some(200)),
    };
    let cause = FAULTS.iter().find(|fault| **fault == name).map_or(&[][..], std::slice::from_ref);
    Expectation::incident(502, cause, vec![Attempt::fresh(site.app(port), outcome, errno)])
}

/// Sends all at once or one after the other, and checks every incident; none may be missing, none too many.
fn hold(version: Version, protocol: &str, ipv6: bool) -> Result<()> {
    let lab = Lab::new()?;
    let faults = FAULTS.iter().map(|name| Fault::named(name)).collect::<Result<Vec<_>>>()?;
    let site = Site::start_with(&lab, "site", &faults, |plan| plan.config.tls = true)?;
    let load = site.healthy("/ok", 200, 6)?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    // Each fault twice, and as many that are answered meanwhile.
    let uris: Vec<String> = FAULTS
        .iter()
        .flat_map(|name| [1, 2].map(|n| [format!("/{name}/{n}"), format!("/ok?{name}{n}")]))
        .flatten()
        .collect();
    let target = SocketAddr::new(lab.proxy_address(ipv6), TLS_PORT);
    let words: Vec<&str> = uris.iter().map(String::as_str).collect();
    let exchanges = get_all(&lab, version, target, &words)?;
    if version == Version::Two {
        ensure!(exchanges.iter().all(|exchange| exchange.local == exchanges[0].local), "more than one connection");
    }
    let mut witnesses = Vec::new();
    for exchange in exchanges {
        let expected = expected(&site, &exchange);
        witnesses.push(Witness::new(exchange, expected)?);
    }
    for incident in probe.check_all(&witnesses, WITHIN)? {
        ensure!(incident.request.protocol.as_deref() == Some(protocol), "another protocol: {incident:#?}");
    }
    ensure!(load.stop()?.all_ok(), "the healthy traffic suffered");
    let summary = probe.stop()?.summary()?.clone();
    assert_eq!((summary.incidents, summary.near_misses), (FAULTS.len() as u64 * 2, 0));
    Ok(())
}

#[test]
fn http1_over_tls() -> Result<()> {
    hold(Version::One, "HTTP/1.1", false)
}

#[test]
fn http2_with_concurrent_streams() -> Result<()> {
    hold(Version::Two, "HTTP/2.0", false)
}

#[test]
fn http2_over_ipv6() -> Result<()> {
    hold(Version::Two, "HTTP/2.0", true)
}
