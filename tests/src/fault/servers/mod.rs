//! Faults of real servers: gunicorn, uvicorn, Node.js, php-fpm, uWSGI, gRPC, nginx behind nginx.

mod grpc;
mod gunicorn;
pub mod nginx;
mod node;
mod php;
mod uvicorn;
mod uwsgi;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Fault;
use crate::client::{Connection, Exchange};
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::process::wait_until;
use crate::site::{Plan, Site};
use crate::upstream::{Kind, Upstream};

/// The faults of each server.
pub(super) const FAULTS: &[&[Fault]] =
    &[gunicorn::FAULTS, node::FAULTS, php::FAULTS, uvicorn::FAULTS, uwsgi::FAULTS, grpc::FAULTS, nginx::FAULTS];

/// What nginx logs when the other end closes before a byte of the answer.
const CLOSED: &str = "upstream prematurely closed connection while reading response header from upstream";

/// What must not be said of a connection that ended with its process.
const NOT_BY_ITSELF: &[&str] = &["upstream-reset", "premature-close", "keepalive-race"];

/// What must be told of a kept connection.
const HISTORY: &str = "which had served one request and been idle for";

/// A server and a location for one fault of it: `/NAME/…` is passed to `path` there.
fn proxied(plan: &mut Plan, name: &str, server: &'static str, kind: Kind, port: u16, path: &str) {
    plan.server(server, kind, port);
    let pass = format!("proxy_pass http://{}/{path}/;", plan.app(port));
    plan.config.location(&format!("/{name}/"), &[&pass]);
}

/// The end of a process under a GET: a FIN, or a RST where something was still unread.
fn ended(site: &Site<'_>, port: u16, cause: &'static [&'static str]) -> Expectation {
    let outcomes = &[Outcome::Closed, Outcome::Reset];
    let attempt = Attempt::fresh(site.app(port), outcomes, &[None, Some("ECONNRESET")]);
    Expectation::incident(502, cause, vec![attempt])
        .logged(" while reading response header from upstream")
        .never(NOT_BY_ITSELF)
}

/// A request that ends one of the workers of a server; with its pid.
fn end_worker(site: &Site<'_>, server: &str, uri: &str) -> Result<(Exchange, u32)> {
    let server = site.upstream(server)?;
    let workers = server.workers()?;
    let exchange = site.connect()?.get(uri)?;
    Ok((exchange, server.wait_replaced(&workers)?))
}

/// A connection to nginx whose last request has warmed up an upstream connection: the only one to the server, and idle from now on.
fn warmed(site: &Site<'_>, name: &str, address: SocketAddr) -> Result<Connection> {
    let none_is_left = || Ok(site.established_to(address)? == 0);
    wait_until("what earlier requests left is closed", Duration::from_secs(5), none_is_left)?;
    let mut client = site.connect()?;
    let warm = client.get(&format!("/{name}/warm"))?;
    if warm.status != Some(200) {
        bail!("the warming request was answered {:?}", warm.status);
    }
    if site.established_to(address)? != 1 {
        bail!("no connection to {address} is kept");
    }
    Ok(client)
}

/// Lets a request and the FIN of the server's idle timeout cross: nginx stands still while both arrive, the request first.
fn cross_fin(site: &Site<'_>, name: &str, server: &Upstream, method: &str) -> Result<Exchange> {
    let address = server.address()?;
    let mut client = warmed(site, name, address)?;
    std::thread::sleep(Duration::from_millis(50));
    site.nginx().while_stopped(|| {
        client.send(method, &format!("/{name}/cart"), if method == "POST" { b"amount=42" } else { b"" })?;
        client.wait_delivered()?;
        wait_until("the server has closed the idle connection", Duration::from_secs(5), || {
            Ok(site.established_to(address)? == 0)
        })
    })?;
    client.receive()
}

/// What must be said when a POST met the FIN of an idle timeout.
fn race(site: &Site<'_>, port: u16) -> Expectation {
    let closed = Attempt::reused(site.app(port), &[Outcome::Closed], &[None]);
    Expectation::incident(502, &["keepalive-race"], vec![closed])
        .logged(CLOSED)
        .never(&["premature-close", "upstream-reset"])
}

/// What must be said when a GET met it, and nginx tried again.
fn masked_race(site: &Site<'_>, port: u16) -> Expectation {
    let closed = Attempt::reused(site.app(port), &[Outcome::Closed], &[None]);
    let answered = Attempt::fresh(site.app(port), &[Outcome::Ok], &[None]);
    Expectation::near_miss(200, &["keepalive-race"], vec![closed, answered])
        .logged(CLOSED)
        .never(&["premature-close", "upstream-reset"])
        .says(&[HISTORY])
}

/// One request, and what must be said about it.
fn witness(exchange: Exchange, expected: Expectation) -> Result<Vec<Witness>> {
    let uri = exchange.uri.clone();
    Ok(vec![Witness::new(exchange, expected).with_context(|| uri)?])
}
