//! Answers nginx cannot take: other protocols, broken ones, headers that are none.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use super::Fault;
use crate::client::Exchange;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::site::{Plan, Site};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "invalid-response-relayed",
        "an SSH server and a TLS alert where HTTP was expected: nginx passes them on",
        garbage,
        ask_garbage,
    ),
    Fault::new("invalid-response", "a good status line, then a header that is none", bad_header, ask_bad_header),
    Fault::new("header-too-big-fastcgi", "a header larger than fastcgi_buffer_size", big, ask_big),
    Fault::new("fastcgi-error", "broken records of FastCGI, and HTTP where FastCGI was expected", fastcgi, ask_fastcgi),
    Fault::new(
        "invalid-response-gateways",
        "headers that uwsgi_pass and scgi_pass cannot take",
        gateways,
        ask_gateways,
    ),
    Fault::new("grpc-error", "frames of HTTP/2 that refuse, leave or break the protocol", http2, ask_http2),
];

const BIG: u16 = 9141;
const FASTCGI: u16 = 9142;
const HTTP2: u16 = 9152;

fn garbage(plan: &mut Plan) {
    let pass = format!("proxy_pass http://{}/;", plan.app(9001));
    plan.config.location("/invalid-response-relayed/", &[&pass]);
}

fn ask_garbage(site: &Site<'_>) -> Result<Vec<Witness>> {
    let mut witnesses = Vec::new();
    for (path, looks) in [("garbage", "SSH"), ("alert/70", "TLS")] {
        // nginx relays it and keeps the client's connection: without a header nobody knows where the answer ends.
        let mut client = site.connect()?;
        client.send("GET", &format!("/invalid-response-relayed/{path}"), b"")?;
        client.await_bytes(Duration::from_secs(5))?;
        let exchange = client.abandon()?;
        let attempt = Attempt::fresh(site.app_address(), &[Outcome::BadResponse], &[None]);
        let mut expected = Expectation::near_miss(0, &["invalid-response"], vec![attempt])
            .logged("upstream sent no valid HTTP/1.0 header while reading response header from upstream")
            .says(&[looks])
            .never(&["premature-close", "tls-handshake-failed", "response-truncated"]);
        // What is relayed has no status at all.
        expected.status = None;
        witnesses.push(Witness::new(exchange, expected)?);
    }
    Ok(witnesses)
}

fn bad_header(plan: &mut Plan) {
    let pass = format!("proxy_pass http://{}/;", plan.app(9001));
    plan.config.location("/invalid-response/", &[&pass]);
}

fn ask_bad_header(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/invalid-response/bad-line")?;
    let expected = refused(site.app_address(), &["invalid-response"], "upstream sent invalid header");
    Ok(vec![Witness::new(exchange, expected)?])
}

/// What must be said of an answer that nginx's parser refused.
fn refused(address: SocketAddr, cause: &'static [&'static str], logged: &'static str) -> Expectation {
    let attempt = Attempt::fresh(address, &[Outcome::BadResponse], &[None]);
    Expectation::incident(502, cause, vec![attempt]).logged(logged).never(&["premature-close", "upstream-reset"])
}

/// One listener of the scripted peer for each behaviour, from this port on.
fn peers(plan: &mut Plan, name: &'static str, first: u16, paths: &[&str]) -> Vec<SocketAddr> {
    let addresses: Vec<SocketAddr> = (first..).zip(paths).map(|(port, _)| plan.app(port)).collect();
    let arguments = addresses.iter().zip(paths).map(|(address, path)| format!("{address}={path}")).collect();
    plan.scripted(name, addresses.clone(), arguments);
    addresses
}

fn big(plan: &mut Plan) {
    let address = peers(plan, "header-too-big-fastcgi", BIG, &["/fastcgi/big"])[0];
    plan.config.location("/header-too-big-fastcgi/", &[&format!("fastcgi_pass {address};"), "fastcgi_buffer_size 4k;"]);
}

fn ask_big(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/header-too-big-fastcgi/1")?;
    let expected = refused(site.app(BIG), &["header-too-big"], "upstream sent too big header")
        .says(&["fastcgi_buffer_size", "now 4k"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

const RECORDS: [(&str, &str); 3] = [
    ("/fastcgi/version", "upstream sent unsupported FastCGI protocol version: 72"),
    ("/fastcgi/type", "upstream sent invalid FastCGI record type: 99"),
    ("/fastcgi/empty", "upstream prematurely closed FastCGI stdout"),
];

fn fastcgi(plan: &mut Plan) {
    let addresses = peers(plan, "fastcgi-error", FASTCGI, &RECORDS.map(|(path, _)| path));
    for (number, address) in addresses.iter().enumerate() {
        plan.config.location(&format!("/fastcgi-error/{number}"), &[&format!("fastcgi_pass {address};")]);
    }
}

fn ask_fastcgi(site: &Site<'_>) -> Result<Vec<Witness>> {
    let mut witnesses = Vec::new();
    for ((number, (_, logged)), port) in RECORDS.into_iter().enumerate().zip(FASTCGI..) {
        let exchange = site.connect()?.get(&format!("/fastcgi-error/{number}"))?;
        witnesses.push(Witness::new(exchange, refused(site.app(port), &["fastcgi-error"], logged))?);
    }
    Ok(witnesses)
}

fn gateways(plan: &mut Plan) {
    let addresses = peers(plan, "invalid-response-gateways", 9147, &["/bad-line", "/bad-line", "/fastcgi/bad"]);
    for (protocol, address) in ["uwsgi", "scgi", "fastcgi"].into_iter().zip(addresses) {
        plan.config
            .location(&format!("/invalid-response-gateways/{protocol}"), &[&format!("{protocol}_pass {address};")]);
    }
}

fn ask_gateways(site: &Site<'_>) -> Result<Vec<Witness>> {
    let mut witnesses = Vec::new();
    for (protocol, port) in ["uwsgi", "scgi", "fastcgi"].into_iter().zip(9147..) {
        let exchange = site.connect()?.get(&format!("/invalid-response-gateways/{protocol}"))?;
        witnesses
            .push(Witness::new(exchange, refused(site.app(port), &["invalid-response"], "upstream sent invalid "))?);
    }
    Ok(witnesses)
}

const FRAMES: [(&str, &str, &str); 5] = [
    ("/http2/goaway/0", "upstream sent goaway with error 0", "GOAWAY"),
    ("/http2/rst/7", "upstream rejected request with error 7", "REFUSED_STREAM"),
    ("/http2/push/0", "upstream sent unexpected push promise frame", "HTTP/2"),
    ("/http2/stream/0", "upstream sent frame for unknown stream 3", "HTTP/2"),
    ("/http2/http1/0", "upstream sent too large http2 frame: 4740180", "HTTP/1"),
];

fn http2(plan: &mut Plan) {
    let addresses = peers(plan, "grpc-error", HTTP2, &FRAMES.map(|(path, ..)| path));
    for (number, address) in addresses.iter().enumerate() {
        plan.config.location(&format!("/grpc-error/{number}"), &[&format!("grpc_pass grpc://{address};")]);
    }
}

fn ask_http2(site: &Site<'_>) -> Result<Vec<Witness>> {
    let mut witnesses = Vec::new();
    for ((number, (_, logged, says)), port) in FRAMES.into_iter().enumerate().zip(HTTP2..) {
        let exchange: Exchange = site.connect()?.get(&format!("/grpc-error/{number}"))?;
        let expected = refused(site.app(port), &["grpc-error"], logged).says(&[says]);
        witnesses.push(Witness::new(exchange, expected)?);
    }
    Ok(witnesses)
}
