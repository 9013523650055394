//! Upstreams that take nothing more, or say nothing more.

use std::time::Duration;

use anyhow::Result;

use super::Fault;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::site::{Plan, Site};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new("send-timeout", "the upstream stops reading in the middle of an upload", deaf, upload),
    Fault::new("read-timeout-half", "the upstream falls silent in the middle of the header", half, provoke_half),
    Fault::new(
        "read-timeout-stopped",
        "the upstream's process is stopped while it has a request",
        stopped,
        provoke_stopped,
    ),
    Fault::new(
        "read-timeout-twins",
        "silence over FastCGI, uwsgi, SCGI and HTTP/2: each has its own timer",
        twins,
        provoke_twins,
    ),
];

const STOPPED: u16 = 9121;
const TWINS: u16 = 9124;
const TIMED_OUT: &str = "upstream timed out (110: Connection timed out) while reading response header from upstream";

fn deaf(plan: &mut Plan) {
    let pass = format!("proxy_pass http://{}/ignore/;", plan.app(9001));
    let lines = [pass.as_str(), "proxy_send_timeout 1s;", "client_max_body_size 64m;"];
    plan.config.location("/send-timeout/", &lines);
}

fn upload(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.request("POST", "/send-timeout/1", &vec![b'x'; 12 << 20])?;
    let attempt = Attempt::fresh(site.app_address(), &[Outcome::TimeoutSend], &[Some("ETIMEDOUT"), None]);
    let expected = Expectation::incident(504, &["send-timeout"], vec![attempt])
        .logged("upstream timed out (110: Connection timed out) while sending request to upstream")
        .says(&["proxy_send_timeout 1s"])
        .never(&["read-timeout", "path-stall", "upstream-reset"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn half(plan: &mut Plan) {
    let pass = format!("proxy_pass http://{}/half-hang/;", plan.app(9001));
    plan.config.location("/read-timeout-half/", &[&pass, "proxy_read_timeout 1s;"]);
}

fn provoke_half(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/read-timeout-half/1")?;
    let attempt = Attempt::fresh(site.app_address(), &[Outcome::TimeoutRead], &[Some("ETIMEDOUT"), None]);
    let expected = Expectation::incident(504, &["read-timeout"], vec![attempt])
        .logged(TIMED_OUT)
        .says(&["38 bytes of an unfinished header"])
        .never(&["response-truncated", "premature-close", "path-stall"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn stopped(plan: &mut Plan) {
    plan.own_server("read-timeout-stopped", STOPPED, None, None);
    let server = plan.app(STOPPED);
    plan.keepalive_location("read-timeout-stopped", "/read-timeout-stopped/", server, "/ok/");
    plan.config.server.push_str("        proxy_read_timeout 1s;\n");
}

fn provoke_stopped(site: &Site<'_>) -> Result<Vec<Witness>> {
    let server = site.upstream("read-timeout-stopped")?;
    let mut client = site.connect()?;
    client.get("/read-timeout-stopped/warm")?;
    let exchange = server.while_stopped(|| {
        let exchange = client.get("/read-timeout-stopped/1")?;
        // Whoever looks what the process does must find it so.
        std::thread::sleep(Duration::from_millis(500));
        Ok(exchange)
    })?;
    let attempt = Attempt::reused(site.app(STOPPED), &[Outcome::TimeoutRead], &[Some("ETIMEDOUT"), None]);
    let expected = Expectation::incident(504, &["read-timeout"], vec![attempt])
        .logged(TIMED_OUT)
        // Whether that was before the attempt began is a matter of nginx's milliseconds.
        .says(&["stands still: SIGSTOP from ", &format!("(pid {})", std::process::id())])
        .never(&["path-stall", "accept-queue-overflow", "keepalive-race"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn twins(plan: &mut Plan) {
    let address = plan.app(TWINS);
    plan.scripted("read-timeout-twins", vec![address], vec![format!("{address}=/hang")]);
    for protocol in ["fastcgi", "uwsgi", "scgi", "grpc"] {
        let target = if protocol == "grpc" { format!("grpc://{address}") } else { address.to_string() };
        plan.config.location(
            &format!("/read-timeout-twins/{protocol}"),
            &[&format!("{protocol}_pass {target};"), &format!("{protocol}_read_timeout 1s;")],
        );
    }
}

fn provoke_twins(site: &Site<'_>) -> Result<Vec<Witness>> {
    let mut witnesses = Vec::new();
    for protocol in ["fastcgi", "uwsgi", "scgi", "grpc"] {
        let exchange = site.connect()?.get(&format!("/read-timeout-twins/{protocol}"))?;
        let attempt = Attempt::fresh(site.app(TWINS), &[Outcome::TimeoutRead], &[Some("ETIMEDOUT"), None]);
        let expected = Expectation::incident(504, &["read-timeout"], vec![attempt])
            .logged(TIMED_OUT)
            .says(&[&format!("{protocol}_read_timeout 1s")])
            .never(&["path-stall", "fastcgi-error", "grpc-error"]);
        witnesses.push(Witness::new(exchange, expected)?);
    }
    Ok(witnesses)
}
