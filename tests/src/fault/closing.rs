//! Faults on an established connection: resets, closes, silence.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};

use super::Fault;
use crate::client::Exchange;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::{Confidence, Outcome};
use crate::process::wait_until;
use crate::site::{Plan, Site};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new("upstream-reset", "the upstream reads the request and resets the connection", reset, provoke_reset),
    Fault::new(
        "upstream-reset-unread",
        "the upstream closes with the request unread, so its kernel resets",
        unread,
        provoke_unread,
    ),
    Fault::new(
        "upstream-reset-late",
        "the upstream works 300 ms on a reused connection, then resets: no keepalive race",
        late_reset,
        provoke_late_reset,
    ),
    Fault::new("premature-close", "the upstream closes without a byte of answer", close, provoke_close),
    Fault::new("premature-close-half", "the upstream closes in the middle of the header", half, provoke_half),
    Fault::new(
        "premature-close-late",
        "the upstream works 300 ms on a reused connection, then closes: no keepalive race",
        late_close,
        provoke_late_close,
    ),
    Fault::new(
        "keepalive-race-post",
        "the upstream closes an idle connection while a POST is on its way: 502",
        |plan| race(plan, "keepalive-race-post", RACE_POST, None),
        race_post,
    ),
    Fault::new(
        "keepalive-race-get",
        "the upstream closes an idle connection while a GET is on its way: nginx tries again",
        |plan| race(plan, "keepalive-race-get", RACE_GET, None),
        race_get,
    ),
    Fault::new(
        "keepalive-race-reset",
        "the upstream resets an idle connection as nginx takes it: nginx tries again",
        |plan| race(plan, "keepalive-race-reset", RACE_RESET, None),
        race_reset,
    ),
    Fault::new(
        "keepalive-race-unread",
        "the upstream's idle timer fires with a POST already in its queue: its kernel resets, 502",
        |plan| race(plan, "keepalive-race-unread", RACE_UNREAD, Some(IDLE)),
        race_unread,
    ),
    Fault::new("read-timeout", "the upstream takes the request and stays silent", hang, provoke_hang),
    Fault::new(
        "header-too-big",
        "the upstream's header does not fit into proxy_buffer_size",
        big_header,
        provoke_big_header,
    ),
];

const RACE_POST: u16 = 9011;
const RACE_GET: u16 = 9021;
const RACE_RESET: u16 = 9031;
const RACE_UNREAD: u16 = 9061;

/// After how long the server of `keepalive-race-unread` closes idle connections.
const IDLE: Duration = Duration::from_millis(400);

const RESET: &str = "recv() failed (104: Connection reset by peer) while reading response header from upstream";
const CLOSED: &str = "upstream prematurely closed connection while reading response header from upstream";

fn reset(plan: &mut Plan) {
    let pass = format!("proxy_pass http://{}/reset/0/;", plan.app(9001));
    plan.config.location("/upstream-reset/", &[&pass]);
}

fn provoke_reset(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/upstream-reset/cart")?;
    let attempt = Attempt::fresh(site.app_address(), &[Outcome::Reset], &[Some("ECONNRESET")]);
    Ok(vec![Witness::new(exchange, upstream_reset(attempt))?])
}

/// What must be said of a reset after the request.
fn upstream_reset(attempt: Attempt) -> Expectation {
    Expectation::incident(502, &["upstream-reset"], vec![attempt]).logged(RESET).never(&[
        "keepalive-race",
        "premature-close",
        "network-reset",
        "upstream-crashed",
        "upstream-exited",
    ])
}

fn unread(plan: &mut Plan) {
    let pass = format!("proxy_pass http://{}/unread/;", plan.app(9001));
    plan.config.location("/upstream-reset-unread/", &[&pass]);
}

fn provoke_unread(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/upstream-reset-unread/cart")?;
    let attempt = Attempt::fresh(site.app_address(), &[Outcome::Reset], &[Some("ECONNRESET")]);
    Ok(vec![Witness::new(exchange, upstream_reset(attempt))?])
}

fn late_reset(plan: &mut Plan) {
    late(plan, "upstream-reset-late", "reset");
}

/// Two locations over one kept connection: `/NAME/warm` is answered, the rest works for 300 ms and then fails.
fn late(plan: &mut Plan, name: &str, behaviour: &str) {
    let app = plan.app(9001);
    plan.keepalive_location(name, &format!("/{name}/"), app, &format!("/{behaviour}/300/"));
    let group = name.replace('-', "_");
    let pass = format!("proxy_pass http://{group}/ok;");
    plan.config
        .location(&format!("= /{name}/warm"), &[&pass, "proxy_http_version 1.1;", "proxy_set_header Connection \"\";"]);
}

fn provoke_late_reset(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = after_warming(site, "upstream-reset-late")?;
    let attempt = Attempt::reused(site.app_address(), &[Outcome::Reset], &[Some("ECONNRESET")]);
    Ok(vec![Witness::new(exchange, upstream_reset(attempt))?])
}

/// A POST (not tried again once sent) on an upstream connection that has served a request before.
fn after_warming(site: &Site<'_>, name: &str) -> Result<Exchange> {
    let mut client = site.connect()?;
    let warm = client.get(&format!("/{name}/warm"))?;
    if warm.status != Some(200) {
        bail!("the warming request was answered {:?}", warm.status);
    }
    client.post(&format!("/{name}/cart"))
}

fn close(plan: &mut Plan) {
    let pass = format!("proxy_pass http://{}/close/0/;", plan.app(9001));
    plan.config.location("/premature-close/", &[&pass]);
}

fn provoke_close(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/premature-close/cart")?;
    let attempt = Attempt::fresh(site.app_address(), &[Outcome::Closed], &[None]);
    Ok(vec![Witness::new(exchange, premature_close(attempt))?])
}

/// What must be said of a close before the header's end.
fn premature_close(attempt: Attempt) -> Expectation {
    Expectation::incident(502, &["premature-close"], vec![attempt]).logged(CLOSED).never(&[
        "keepalive-race",
        "upstream-reset",
        "upstream-crashed",
        "upstream-exited",
    ])
}

fn half(plan: &mut Plan) {
    let pass = format!("proxy_pass http://{}/half/;", plan.app(9001));
    plan.config.location("/premature-close-half/", &[&pass]);
}

fn provoke_half(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/premature-close-half/cart")?;
    let attempt = Attempt::fresh(site.app_address(), &[Outcome::Closed], &[None]);
    Ok(vec![Witness::new(exchange, premature_close(attempt))?])
}

fn late_close(plan: &mut Plan) {
    late(plan, "premature-close-late", "close");
}

fn provoke_late_close(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = after_warming(site, "premature-close-late")?;
    let attempt = Attempt::reused(site.app_address(), &[Outcome::Closed], &[None]);
    Ok(vec![Witness::new(exchange, premature_close(attempt))?])
}

/// A server for this race alone, so that its idle connections are ours.
fn race(plan: &mut Plan, name: &'static str, port: u16, idle: Option<Duration>) {
    plan.own_server(name, port, idle, None);
    let server = plan.app(port);
    plan.keepalive_location(name, &format!("/{name}/"), server, "/ok/");
}

fn race_post(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = cross(site, "keepalive-race-post", "POST", "/close-idle")?;
    let closed = Attempt::reused(site.app(RACE_POST), &[Outcome::Closed], &[None]);
    let expected = Expectation::incident(502, &["keepalive-race"], vec![closed])
        .logged(CLOSED)
        .never(&["premature-close", "upstream-reset"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn race_get(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = cross(site, "keepalive-race-get", "GET", "/close-idle")?;
    let closed = Attempt::reused(site.app(RACE_GET), &[Outcome::Closed], &[None]);
    let answered = Attempt::fresh(site.app(RACE_GET), &[Outcome::Ok], &[None]);
    let expected = Expectation::near_miss(200, &["keepalive-race"], vec![closed, answered])
        .logged(CLOSED)
        .never(&["premature-close", "upstream-reset"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn race_reset(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = cross(site, "keepalive-race-reset", "POST", "/reset-idle")?;
    let reset = Attempt::reused(site.app(RACE_RESET), &[Outcome::Reset], &[Some("ECONNRESET")]);
    let answered = Attempt::fresh(site.app(RACE_RESET), &[Outcome::Ok], &[None]);
    let expected = Expectation::near_miss(200, &["keepalive-race"], vec![reset, answered])
        // Nothing was connected in this request: nginx finds the error with getsockopt before it sends.
        .logged("connect() failed (104: Connection reset by peer) while connecting to upstream")
        .never(&["premature-close", "upstream-reset", "upstream-refused"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn race_unread(site: &Site<'_>) -> Result<Vec<Witness>> {
    let name = "keepalive-race-unread";
    let server = site.upstream(name)?;
    let address = server.address()?;
    let mut client = site.connect()?;
    let warm = client.get(&format!("/{name}/warm"))?;
    if warm.status != Some(200) {
        bail!("the warming request was answered {:?}", warm.status);
    }
    // The server stands still past its idle timeout (a long garbage collection, say) and then serves its timers first.
    server.while_stopped(|| {
        std::thread::sleep(IDLE + Duration::from_millis(100));
        client.send("POST", &format!("/{name}/cart"), b"amount=42")?;
        wait_until("the request waits in the upstream's queue", Duration::from_secs(2), || {
            Ok(server.unread_bytes()? > 0)
        })
    })?;
    let exchange = client.receive()?;
    let reset = Attempt::reused(address, &[Outcome::Reset], &[Some("ECONNRESET")]);
    // Both are true; that the connection was idle to the end can be seen only where the upstream's reads are.
    let mut expected = Expectation::incident(502, &["keepalive-race", "upstream-reset"], vec![reset])
        .logged(RESET)
        .never(&["premature-close", "network-reset"]);
    expected.confidence = &[Confidence::Confirmed, Confidence::Likely];
    Ok(vec![Witness::new(exchange, expected)?])
}

/// Lets a request and the close of the idle upstream connection it will be sent on cross each other, always: while nginx stands
/// still the request arrives first and the FIN (or RST) second; going on, nginx finds both in one batch, the request first.
fn cross(site: &Site<'_>, name: &'static str, method: &str, command: &str) -> Result<Exchange> {
    let server = site.upstream(name)?;
    let address: SocketAddr = server.address()?;
    // What an earlier crossing left idle goes first, noticed by nginx in time.
    server.command(site.lab(), "/close-idle")?;
    wait_until("no old connection is left", Duration::from_secs(2), || Ok(site.established_to(address)? == 0))?;
    let mut client = site.connect()?;
    let warm = client.get(&format!("/{name}/warm"))?;
    if warm.status != Some(200) {
        bail!("the warming request was answered {:?}", warm.status);
    }
    std::thread::sleep(Duration::from_millis(50));
    site.nginx().while_stopped(|| {
        client.send(method, &format!("/{name}/cart"), if method == "POST" { b"amount=42" } else { b"" })?;
        client.wait_delivered()?;
        let ended = server.command(site.lab(), command)?;
        if ended != 1 {
            bail!("{ended} idle connections were ended instead of one");
        }
        wait_until("the end has arrived", Duration::from_secs(2), || Ok(site.established_to(address)? == 0))
    })?;
    client.receive()
}

fn hang(plan: &mut Plan) {
    let pass = format!("proxy_pass http://{}/hang/;", plan.app(9001));
    plan.config.location("/read-timeout/", &[&pass, "proxy_read_timeout 1s;"]);
}

fn provoke_hang(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/read-timeout/cart")?;
    let attempt = Attempt::fresh(site.app_address(), &[Outcome::TimeoutRead], &[None, Some("ETIMEDOUT")]);
    let expected = Expectation::incident(504, &["read-timeout"], vec![attempt])
        .logged("upstream timed out (110: Connection timed out) while reading response header from upstream")
        .never(&["syn-timeout", "send-timeout", "path-stall", "fd-exhausted-upstream", "accept-queue-overflow"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn big_header(plan: &mut Plan) {
    let pass = format!("proxy_pass http://{}/bighdr/;", plan.app(9001));
    plan.config.location("/header-too-big/", &[&pass]);
}

fn provoke_big_header(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/header-too-big/cart")?;
    let attempt = Attempt::fresh(site.app_address(), &[Outcome::BadResponse], &[None]);
    let expected = Expectation::incident(502, &["header-too-big"], vec![attempt])
        .logged("upstream sent too big header while reading response header from upstream")
        .never(&["upstream-reset", "premature-close"]);
    Ok(vec![Witness::new(exchange, expected)?])
}
