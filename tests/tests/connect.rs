//! The family `connect`: no connection came about. Every row of the catalogue, made with the real thing, and beside it the nearest
//! thing that must not get its verdict.

use anyhow::{Result, ensure};
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::probe::Probe;
use probe_tests::site::Site;
use probe_tests::trial::{Trial, WITHIN};

/// The faults whose names begin so, and not so, and which can share a site, on one site.
fn together(prefixes: &[&str], but: &[&str]) -> Result<()> {
    let faults: Vec<Fault> = Fault::of_connect()
        .into_iter()
        .filter(|fault| !fault.alone && prefixes.iter().any(|prefix| fault.name.starts_with(prefix)))
        .filter(|fault| !but.iter().any(|prefix| fault.name.starts_with(prefix)))
        .collect();
    ensure!(!faults.is_empty(), "no fault is called {prefixes:?}");
    Trial::WHOLE.hold(&Lab::new()?, &faults)?;
    Ok(())
}

/// One fault on a site of its own.
fn alone(name: &str) -> Result<()> {
    Trial::WHOLE.hold(&Lab::new()?, &[Fault::named(name)?])?;
    Ok(())
}

#[test]
fn filters_that_answer() -> Result<()> {
    together(&["firewall-rejected-", "upstream-refused-beside"], &["firewall-rejected-router"])
}

#[test]
fn filters_that_are_silent() -> Result<()> {
    together(&["firewall-dropped-"], &[])
}

#[test]
fn routes_and_neighbours() -> Result<()> {
    together(&["host-unreachable", "no-route", "connect-denied", "firewall-rejected-router", "path-stall"], &[])
}

#[test]
fn full_accept_queues() -> Result<()> {
    together(&["accept-queue-overflow", "read-timeout-queued", "upstream-killed-unaccepted"], &[])
}

#[test]
fn unix_sockets() -> Result<()> {
    together(&["unix-"], &[])
}

#[test]
fn unix_socket_denied() -> Result<()> {
    alone("unix-socket-denied")
}

#[test]
fn unix_socket_that_is_a_directory() -> Result<()> {
    alone("unix-socket-denied-no-socket")
}

#[test]
fn unix_socket_in_a_denied_directory() -> Result<()> {
    alone("unix-socket-denied-directory")
}

#[test]
fn ports_exhausted() -> Result<()> {
    alone("ephemeral-ports-exhausted")
}

#[test]
fn ports_exhausted_with_proxy_bind() -> Result<()> {
    alone("ephemeral-ports-exhausted-bind")
}

#[test]
fn an_address_to_bind_that_is_not_here() -> Result<()> {
    together(&["bind-failed"], &[])
}

#[test]
fn connection_slots_exhausted() -> Result<()> {
    // Without healthy traffic: nginx would close its idle connections to make room.
    let lab = Lab::new()?;
    let fault = Fault::named("worker-connections-exhausted")?;
    let site = Site::start(&lab, std::slice::from_ref(&fault))?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let witnesses = site.provoke(&fault)?;
    probe.check_all(&witnesses, WITHIN)?;
    probe.stop()?;
    Ok(())
}

#[test]
fn descriptors_of_the_system_exhausted() -> Result<()> {
    alone("fd-exhausted-system")
}

#[test]
fn listeners_gone_and_listeners_nearby() -> Result<()> {
    together(
        &["upstream-refused-killed", "upstream-refused-stopped", "upstream-refused-loopback", "upstream-refused-other"],
        &[],
    )
}

#[test]
fn resolvers() -> Result<()> {
    together(&["dns-failure", "harmless-resolved", "upstream-refused-resolved"], &[])
}

#[test]
fn a_name_that_moved() -> Result<()> {
    alone("upstream-refused-moved")
}

#[test]
fn a_name_that_moved_from_a_host_that_is_gone() -> Result<()> {
    alone("host-unreachable-moved")
}

#[test]
fn a_name_that_stands() -> Result<()> {
    alone("upstream-refused-named")
}

#[test]
fn localhost_is_ipv6_first() -> Result<()> {
    Trial::WHOLE.hold(&Lab::on_host_loopback()?, &[Fault::named("upstream-refused-localhost-masked")?])?;
    Trial::WHOLE.hold(&Lab::on_host_loopback()?, &[Fault::named("upstream-refused-localhost")?])?;
    Ok(())
}
