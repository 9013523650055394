//! Faults by want of descriptors, in nginx and in the upstream.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Fault;
use crate::client::Connection;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::{Confidence, Outcome};
use crate::process::open_files;
use crate::site::{Plan, Site};
use crate::upstream::{Kind, Plan as UpstreamPlan};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault {
        alone: true,
        // Needs no descriptor once its connections stand.
        healthy: "/static",
        ..Fault::new(
            "fd-exhausted-nginx",
            "clients hold every descriptor of the nginx worker; socket() fails",
            starved_nginx,
            starve_nginx,
        )
    },
    Fault::new(
        "fd-exhausted-upstream-node",
        "Node.js at its ulimit -n accepts and closes at once",
        starved_node,
        starve_node,
    ),
    Fault::new(
        "fd-exhausted-upstream-accept",
        "the upstream's accept() fails for want of descriptors; requests wait in its queue",
        starved_server,
        starve_server,
    ),
    Fault::new(
        "fd-exhausted-upstream-dial",
        "the upstream has no descriptor for a socket to its own backend, and closes",
        |plan| leaking(plan, "fd-exhausted-upstream-dial", DIAL, "dial-close"),
        |site| {
            let expected = Expectation {
                confidence: &[Confidence::Likely],
                ..leaked(site, DIAL, Outcome::Closed, &["fd-exhausted-upstream"])
            };
            let expected = expected.logged(CLOSED).says(&["socket() = EMFILE", "Not excluded: premature-close"]);
            leak(site, "fd-exhausted-upstream-dial", expected)
        },
    ),
    Fault::new(
        "fd-exhausted-upstream-open",
        "the upstream has no descriptor for a file it needs, and closes",
        |plan| leaking(plan, "fd-exhausted-upstream-open", OPEN, "open-close"),
        |site| {
            let expected = Expectation {
                confidence: &[Confidence::Likely],
                ..leaked(site, OPEN, Outcome::Closed, &["fd-exhausted-upstream"])
            };
            let expected = expected.logged(CLOSED).says(&["open() = EMFILE", "Not excluded: premature-close"]);
            leak(site, "fd-exhausted-upstream-open", expected)
        },
    ),
    Fault::new(
        "upstream-sent-502-dial",
        "the upstream has no descriptor for a socket to its own backend, and answers 502",
        |plan| leaking(plan, "upstream-sent-502-dial", DIAL_502, "dial-502"),
        |site| {
            let expected = leaked(site, DIAL_502, Outcome::Ok, &["upstream-sent-502"]);
            leak(site, "upstream-sent-502-dial", expected.says_meanwhile(&["could make no socket (EMFILE)"]))
        },
    ),
];

/// The worker's limit: its own dozen, the healthy connections, and some to fill.
const NGINX_FILES: u64 = 48;
const NODE: u16 = 9041;
const NODE_FILES: u64 = 64;
const SERVER: u16 = 9051;
const SERVER_FILES: u64 = 24;

const DIAL: u16 = 9055;
const OPEN: u16 = 9056;
const DIAL_502: u16 = 9057;
const LEAKY_FILES: u64 = 32;
const CLOSED: &str = "upstream prematurely closed connection while reading response header from upstream";

/// The want lasts so long after the failure: whoever counts open files because of the failure must still find them open.
const LASTS: Duration = Duration::from_millis(500);

fn starved_nginx(plan: &mut Plan) {
    plan.config.workers = 1;
    plan.config.open_files = Some(NGINX_FILES);
    let pass = format!("proxy_pass http://{};", plan.app(9001));
    plan.config.location("/fd-exhausted-nginx/", &[&pass]);
}

fn starve_nginx(site: &Site<'_>) -> Result<Vec<Witness>> {
    let workers = site.nginx().workers()?;
    let [worker] = workers[..] else { bail!("one worker, not {workers:?}") };
    let mut client = site.connect()?;
    client.get("/static")?;
    let mut held: Vec<Connection> = Vec::new();
    while open_files(worker)? < NGINX_FILES {
        // An answer says that it was accepted; the last descriptor must be taken, and none beyond it.
        let mut connection = site.connect()?;
        connection.get("/static")?;
        held.push(connection);
        if held.len() as u64 > NGINX_FILES {
            bail!("the worker's descriptors do not run out");
        }
    }
    let exchange = client.get("/fd-exhausted-nginx/ok")?;
    std::thread::sleep(LASTS);
    let attempt =
        Attempt { reused: None, ..Attempt::fresh(site.app_address(), &[Outcome::LocalError], &[Some("EMFILE")]) };
    let expected = Expectation::incident(500, &["fd-exhausted-nginx"], vec![attempt])
        .logged("socket() failed (24: Too many open files) while connecting to upstream")
        .never(&["fd-exhausted-system", "fd-exhausted-upstream", "worker-connections-exhausted"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn starved_node(plan: &mut Plan) {
    let listen = vec![plan.app(NODE)];
    let kind = Kind::Node { keep_alive: None };
    plan.upstreams.push(UpstreamPlan { name: "node", kind, listen, open_files: Some(NODE_FILES) });
    let pass = format!("proxy_pass http://{};", plan.app(NODE));
    plan.config.location("/fd-exhausted-upstream-node/", &[&pass]);
}

fn starve_node(site: &Site<'_>) -> Result<Vec<Witness>> {
    let node = site.upstream("node")?;
    let held = node.exhaust(site.lab())?;
    let exchange = site.connect()?.get("/fd-exhausted-upstream-node/cart")?;
    std::thread::sleep(LASTS);
    drop(held);
    // libuv accepts with the descriptor it keeps in reserve and closes: a RST if the request was there already, else a FIN.
    let attempt =
        Attempt::fresh(site.app(NODE), &[Outcome::Reset, Outcome::Closed], &[None, Some("ECONNRESET"), Some("EPIPE")]);
    let expected = Expectation::incident(502, &["fd-exhausted-upstream"], vec![attempt]).logged(" upstream").never(&[
        "upstream-reset",
        "premature-close",
        "keepalive-race",
    ]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn starved_server(plan: &mut Plan) {
    plan.own_server("starved", SERVER, None, Some(SERVER_FILES));
    let pass = format!("proxy_pass http://{};", plan.app(SERVER));
    plan.config.location("/fd-exhausted-upstream-accept/", &[&pass, "proxy_read_timeout 1s;"]);
}

fn starve_server(site: &Site<'_>) -> Result<Vec<Witness>> {
    let server = site.upstream("starved")?;
    let held = server.exhaust(site.lab())?;
    let exchange = site.connect()?.get("/fd-exhausted-upstream-accept/ok")?;
    std::thread::sleep(LASTS);
    drop(held);
    let address: SocketAddr = server.address().context("the starved server's address")?;
    let attempt = Attempt::fresh(address, &[Outcome::TimeoutRead], &[None, Some("ETIMEDOUT")]);
    let expected = Expectation::incident(504, &["fd-exhausted-upstream"], vec![attempt])
        .logged("upstream timed out (110: Connection timed out) while reading response header from upstream")
        .never(&["read-timeout", "syn-timeout", "accept-queue-overflow"]);
    // The queue has to drain before the same server can be starved again.
    std::thread::sleep(Duration::from_millis(200));
    Ok(vec![Witness::new(exchange, expected)?])
}

/// A server that runs out of descriptors while it serves, and what it does then.
fn leaking(plan: &mut Plan, name: &'static str, port: u16, behaviour: &str) {
    let listen = vec![plan.app(port)];
    let kind = Kind::Own { control: None, idle: None };
    plan.upstreams.push(UpstreamPlan { name, kind, listen, open_files: Some(LEAKY_FILES) });
    let pass = format!("proxy_pass http://{}/{behaviour}/;", plan.app(port));
    plan.config.location(&format!("/{name}/"), &[&pass]);
}

fn leaked(site: &Site<'_>, port: u16, outcome: Outcome, cause: &'static [&'static str]) -> Expectation {
    let outcome: &[Outcome] = if outcome == Outcome::Ok { &[Outcome::Ok] } else { &[Outcome::Closed] };
    Expectation::incident(502, cause, vec![Attempt::fresh(site.app(port), outcome, &[None])])
}

fn leak(site: &Site<'_>, name: &str, expected: Expectation) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get(&format!("/{name}/cart"))?;
    Ok(vec![Witness::new(exchange, expected)?])
}
