//! Node.js: its idle timeout in both forms of the race, and an exception that nobody catches.

use std::time::Duration;

use anyhow::Result;

use super::{Connection, Fault, HISTORY, cross_fin, ended, masked_race, proxied, race, warmed, witness};
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::{Confidence, Outcome};
use crate::process::wait_until;
use crate::site::{Plan, Site};
use crate::upstream::Kind;

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "node-race-post",
        "Node.js closes an idle connection (keepAliveTimeout) while a POST is on its way",
        |plan| kept(plan, "node-race-post"),
        |site| {
            let exchange = cross_fin(site, "node-race-post", site.upstream(NODE)?, "POST")?;
            witness(exchange, race(site, PORT).says(&[HISTORY, "idle timeout of ", "Node.js: server.keepAliveTimeout"]))
        },
    ),
    Fault::new(
        "node-race-get",
        "Node.js closes an idle connection while a GET is on its way: nginx tries again",
        |plan| kept(plan, "node-race-get"),
        |site| {
            let exchange = cross_fin(site, "node-race-get", site.upstream(NODE)?, "GET")?;
            witness(exchange, masked_race(site, PORT))
        },
    ),
    Fault::new(
        "node-race-reset",
        "Node.js, held up past its keepAliveTimeout, closes with a POST unread in its queue: its kernel resets",
        |plan| kept(plan, "node-race-reset"),
        reset,
    ),
    Fault::new(
        "node-throws",
        "an exception that nobody catches ends Node.js",
        |plan| proxied(plan, "node-throws", "node-thrower", Kind::Node { keep_alive: None }, THROWER, "throw"),
        |site| {
            let pid = site.upstream("node-thrower")?.pid();
            let exchange = site.connect()?.get("/node-throws/cart")?;
            let who = format!("node (pid {pid})");
            witness(exchange, ended(site, THROWER, &["upstream-exited"]).says(&[&who, "exit status 1"]))
        },
    ),
];

const NODE: &str = "node-kept";
const PORT: u16 = 9211;
const THROWER: u16 = 9212;
const IDLE: Duration = Duration::from_secs(1);
/// By then it has closed: Node.js 20.20 waits a second longer than it is told, Debian's 18 does not.
const CLOSES: Duration = Duration::from_secs(2);

fn kept(plan: &mut Plan, name: &str) {
    plan.server(NODE, Kind::Node { keep_alive: Some(IDLE) }, PORT);
    let server = plan.app(PORT);
    plan.keepalive_location(name, &format!("/{name}/"), server, "/ok/");
}

fn reset(site: &Site<'_>) -> Result<Vec<Witness>> {
    let server = site.upstream(NODE)?;
    let mut client = warmed(site, "node-race-reset", server.address()?)?;
    // Another request keeps JavaScript busy past the timeout; Node.js runs its timers before it looks at its sockets again.
    let mut busy = Connection::open(site.lab().app(), server.address()?)?;
    busy.send("GET", &format!("/block/{}", CLOSES.as_millis() + 500), b"")?;
    std::thread::sleep(CLOSES);
    client.send("POST", "/node-race-reset/cart", b"amount=42")?;
    wait_until("the request waits in the queue", Duration::from_secs(2), || Ok(server.unread_bytes()? > 0))?;
    let exchange = client.receive()?;
    let attempt = Attempt::reused(site.app(PORT), &[Outcome::Reset], &[Some("ECONNRESET")]);
    // Both are true; that the connection was idle to the end can be seen only where the upstream's reads are.
    let mut expected = Expectation::incident(502, &["keepalive-race", "upstream-reset"], vec![attempt])
        .logged("recv() failed (104: Connection reset by peer) while reading response header from upstream")
        .never(&["premature-close", "network-reset"]);
    expected.confidence = &[Confidence::Confirmed, Confidence::Likely];
    witness(exchange, expected)
}
