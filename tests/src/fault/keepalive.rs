//! Kept connections over unix sockets, where no packet tells anything, and answers lost by the way they were given.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, bail};

use super::Fault;
use crate::client::Connection;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::process::wait_until;
use crate::site::{Plan, Site};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "keepalive-race-unix",
        "the upstream closes an idle connection over a unix socket while a POST is on its way: EPIPE, no packet at all",
        unix_race,
        cross_unix,
    ),
    Fault::new(
        "premature-close-unix",
        "the upstream closes over a unix socket without an answer",
        unix_closed,
        close_unix,
    ),
    Fault::new(
        "early-response-lost",
        "the upstream answers 413 without reading the body and closes; nginx's next write fails",
        early,
        answer_early,
    ),
];

const UNIX_CONTROL: u16 = 9111;
const EARLY: u16 = 9112;
const EARLY_CONTROL: u16 = 9113;

fn control(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Sends a command to a scripted server's control address; how many connections it was about.
fn command(site: &Site<'_>, port: u16, command: &str) -> Result<usize> {
    let answer = Connection::open(site.lab().app(), control(port))?.get(command)?;
    Ok(String::from_utf8_lossy(&answer.body).trim().parse()?)
}

fn unix_attempt(site: &Site<'_>, name: &str, reused: bool) -> Attempt {
    Attempt {
        upstream: format!("unix:{}", site.lab().directory().join(format!("{name}.sock")).display()),
        outcome: &[Outcome::Reset, Outcome::Closed],
        errno: &[None, Some("EPIPE"), Some("ECONNRESET")],
        reused: Some(reused),
    }
}

fn unix_race(plan: &mut Plan) {
    let path = plan.directory.join("keepalive-race-unix.sock");
    let listen = format!("unix:{}", path.display());
    let arguments = vec![listen.clone(), "--control".to_owned(), control(UNIX_CONTROL).to_string()];
    plan.scripted("keepalive-race-unix", Vec::new(), arguments);
    plan.config.upstream("unix_race", &[&format!("server {listen};"), "keepalive 4;"]);
    let lines = ["proxy_pass http://unix_race/ok/;", "proxy_http_version 1.1;", "proxy_set_header Connection \"\";"];
    plan.config.location("/keepalive-race-unix/", &lines);
}

fn cross_unix(site: &Site<'_>) -> Result<Vec<Witness>> {
    command(site, UNIX_CONTROL, "/close-idle")?;
    std::thread::sleep(Duration::from_millis(50));
    let mut client = site.connect()?;
    let warm = client.get("/keepalive-race-unix/warm")?;
    if warm.status != Some(200) {
        bail!("the warming request was answered {:?}", warm.status);
    }
    std::thread::sleep(Duration::from_millis(300));
    site.nginx().while_stopped(|| {
        client.send("POST", "/keepalive-race-unix/cart", b"amount=42")?;
        client.wait_delivered()?;
        let ended = command(site, UNIX_CONTROL, "/close-idle")?;
        if ended != 1 {
            bail!("{ended} idle connections were ended instead of one");
        }
        Ok(())
    })?;
    let expected =
        Expectation::incident(502, &["keepalive-race"], vec![unix_attempt(site, "keepalive-race-unix", true)])
            .logged("failed (32: Broken pipe) while sending request to upstream")
            .says(&["had accepted this very connection"])
            .never(&["premature-close", "upstream-reset", "early-response-lost"]);
    Ok(vec![Witness::new(client.receive()?, expected)?])
}

fn unix_closed(plan: &mut Plan) {
    let listen = format!("unix:{}", plan.directory.join("premature-close-unix.sock").display());
    plan.scripted("premature-close-unix", Vec::new(), vec![listen.clone()]);
    plan.config.location("/premature-close-unix/", &[&format!("proxy_pass http://{listen}:/;")]);
}

fn close_unix(site: &Site<'_>) -> Result<Vec<Witness>> {
    let mut witnesses = Vec::new();
    for (path, cause, logged) in [
        ("close/0", &["premature-close"], "upstream prematurely closed connection while reading response header"),
        ("unread", &["upstream-reset"], "recv() failed (104: Connection reset by peer) while reading response header"),
    ] {
        let exchange = site.connect()?.get(&format!("/premature-close-unix/{path}/1"))?;
        let expected = Expectation::incident(502, cause, vec![unix_attempt(site, "premature-close-unix", false)])
            .logged(logged)
            .never(&["keepalive-race", "upstream-exited", "upstream-crashed", "network-reset"]);
        witnesses.push(Witness::new(exchange, expected)?);
    }
    Ok(witnesses)
}

fn early(plan: &mut Plan) {
    let address = plan.app(EARLY);
    let arguments = vec![address.to_string(), "--control".to_owned(), control(EARLY_CONTROL).to_string()];
    plan.scripted("early-response-lost", vec![address], arguments);
    let pass = format!("proxy_pass http://{address}/early/;");
    plan.config.location("/early-response-lost/", &[&pass, "proxy_request_buffering off;"]);
}

fn answer_early(site: &Site<'_>) -> Result<Vec<Witness>> {
    let server = site.upstream("early-response-lost")?;
    let mut client = site.connect()?;
    client.begin("POST", "/early-response-lost/upload", 4_000, &[b'x'; 1_000])?;
    wait_until("the request lies in the upstream's queue", Duration::from_secs(2), || Ok(server.unread_bytes()? > 0))?;
    std::thread::sleep(Duration::from_millis(100));
    // More of the body, then the answer and the reset: nginx finds all of it at once, the client's part first.
    site.nginx().while_stopped(|| {
        client.proceed(&[b'x'; 1_000])?;
        client.wait_delivered()?;
        let answered = command(site, EARLY_CONTROL, "/answer-early")?;
        if answered != 1 {
            bail!("{answered} connections were answered instead of one");
        }
        Ok(())
    })?;
    let attempt = Attempt::fresh(site.app(EARLY), &[Outcome::Reset], &[Some("ECONNRESET"), Some("EPIPE")]);
    let expected = Expectation::incident(502, &["early-response-lost"], vec![attempt])
        .logged(" while sending request to upstream")
        .says(&["HTTP/1.1 413 Payload Too Large"])
        .never(&["upstream-reset", "keepalive-race", "premature-close"]);
    Ok(vec![Witness::new(client.receive()?, expected)?])
}
