//! php-fpm over TCP and over a unix socket: a crash, slow requests, a full pool.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{Fault, end_worker, ended, witness};
use crate::client::Connection;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::site::{Plan, Site};
use crate::upstream::{Kind, Php, Plan as UpstreamPlan};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "php-segfault",
        "a php-fpm child crashes: a recursion without end",
        |plan| pool(plan, "php-segfault", "segv"),
        |site| {
            let (exchange, pid) = end_worker(site, POOL, "/php-segfault/cart")?;
            let who = format!("(pid {pid})");
            witness(exchange, ended(site, PORT, &["upstream-crashed"]).says(&[&who, "php-fpm", "SIGSEGV"]))
        },
    ),
    Fault::new(
        "php-terminated",
        "a request outlasts php-fpm's request_terminate_timeout; the master ends the child",
        impatient,
        |site| {
            let master = site.upstream(IMPATIENT)?.pid();
            let (exchange, pid) = end_worker(site, IMPATIENT, "/php-terminated/cart")?;
            let (who, by) = (format!("(pid {pid})"), format!("(pid {master})"));
            let says = [who.as_str(), &by, "SIGTERM from php-fpm", "request_terminate_timeout"];
            witness(exchange, ended(site, IMPATIENT_PORT, &["upstream-killed"]).says(&says))
        },
    ),
    Fault::new(
        "php-slow",
        "php-fpm works longer than fastcgi_read_timeout allows",
        |plan| pool(plan, "php-slow", "slow/1500"),
        slow,
    ),
    Fault::new(
        "php-busy",
        "every php-fpm child is busy and the listen queue is full (TCP): no answer to the SYN",
        full,
        busy_tcp,
    ),
    Fault::new(
        "php-busy-unix",
        "every php-fpm child is busy and the listen queue is full (unix socket): refused at once",
        full_unix,
        busy_unix,
    ),
];

const POOL: &str = "php";
const PORT: u16 = 9231;
const IMPATIENT: &str = "php-impatient";
const IMPATIENT_PORT: u16 = 9232;
const FULL: &str = "php-full";
const FULL_PORT: u16 = 9233;
const UNIX: &str = "php-unix";

/// The kernel lets one connection more wait than `listen.backlog` says.
const BACKLOG: u32 = 1;

fn pool(plan: &mut Plan, name: &str, path: &str) {
    plan.server(POOL, Kind::Php(Php { children: 2, ..Php::default() }), PORT);
    let address = plan.app(PORT);
    location(plan, &format!("/{name}/"), &address.to_string(), path, &["fastcgi_read_timeout 1s;"]);
}

fn impatient(plan: &mut Plan) {
    let settings = Php { children: 1, terminate_timeout: Some(1), ..Php::default() };
    plan.server(IMPATIENT, Kind::Php(settings), IMPATIENT_PORT);
    let address = plan.app(IMPATIENT_PORT);
    location(plan, "/php-terminated/", &address.to_string(), "hang", &[]);
}

/// A location that asks the application for `path`.
fn location(plan: &mut Plan, prefix: &str, address: &str, path: &str, lines: &[&str]) {
    let pass = format!("fastcgi_pass {address};");
    let script = format!("fastcgi_param SCRIPT_FILENAME {}/app.php;", plan.directory.display());
    let info = format!("fastcgi_param PATH_INFO /{path};");
    let fixed = [&pass, &script, &info, "fastcgi_param REQUEST_METHOD $request_method;"];
    plan.config.location(prefix, &[&fixed, lines].concat());
}

fn slow(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/php-slow/cart")?;
    let attempt = Attempt::fresh(site.app(PORT), &[Outcome::TimeoutRead], &[None, Some("ETIMEDOUT")]);
    let expected = Expectation::incident(504, &["read-timeout"], vec![attempt])
        .logged("upstream timed out (110: Connection timed out) while reading response header from upstream")
        .never(&["send-timeout", "path-stall", "accept-queue-overflow"])
        .says(&["php-fpm: pm.max_children", "sleeps"]);
    witness(exchange, expected)
}

fn full(plan: &mut Plan) {
    plan.server(FULL, Kind::Php(Php { children: 1, backlog: Some(BACKLOG), ..Php::default() }), FULL_PORT);
    let address = plan.app(FULL_PORT).to_string();
    location(plan, "= /php-busy/slow", &address, "slow/2500", &[]);
    // Long enough for one retransmission of the SYN.
    location(plan, "/php-busy/", &address, "ok", &["fastcgi_connect_timeout 1500ms;"]);
}

/// Occupies the only child with a request that will be answered late.
fn occupy(site: &Site<'_>, server: &str, uri: &str) -> Result<Connection> {
    let server = site.upstream(server)?;
    let files = server.worker_files()?;
    let mut client = site.connect()?;
    client.send("GET", uri, b"")?;
    server.wait_taken(&files)?;
    Ok(client)
}

fn busy_tcp(site: &Site<'_>) -> Result<Vec<Witness>> {
    let mut slow = occupy(site, FULL, "/php-busy/slow")?;
    let address = site.app(FULL_PORT);
    let waiting = (0..=BACKLOG).map(|_| Connection::open(site.lab().app(), address)).collect::<Result<Vec<_>>>()?;
    let exchange = site.connect()?.get("/php-busy/cart")?;
    drop(waiting);
    ensure!(slow.receive()?.status == Some(200), "the slow request was not answered");
    let attempt = Attempt::fresh(address, &[Outcome::TimeoutConnect], &[None, Some("ETIMEDOUT")]);
    let expected = Expectation::incident(504, &["accept-queue-overflow"], vec![attempt])
        .logged("upstream timed out (110: Connection timed out) while connecting to upstream")
        .never(&["syn-timeout", "firewall-dropped", "read-timeout"])
        .says(&["php-fpm: listen.backlog"]);
    witness(exchange, expected)
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("php.sock")
}

fn full_unix(plan: &mut Plan) {
    let path = socket(&plan.directory);
    let settings = Php { socket: Some(path.clone()), children: 1, backlog: Some(BACKLOG), ..Php::default() };
    let kind = Kind::Php(settings);
    plan.upstreams.push(UpstreamPlan { name: UNIX, kind, listen: Vec::new(), open_files: None });
    let address = format!("unix:{}", path.display());
    location(plan, "= /php-busy-unix/slow", &address, "slow/1000", &[]);
    location(plan, "/php-busy-unix/", &address, "ok", &[]);
}

fn busy_unix(site: &Site<'_>) -> Result<Vec<Witness>> {
    let mut slow = occupy(site, UNIX, "/php-busy-unix/slow")?;
    let path = socket(site.lab().directory());
    let connect = |_| UnixStream::connect(&path).with_context(|| format!("connect to {}", path.display()));
    let waiting = (0..=BACKLOG).map(connect).collect::<Result<Vec<_>>>()?;
    let exchange = site.connect()?.get("/php-busy-unix/cart")?;
    ensure!(slow.receive()?.status == Some(200), "the slow request was not answered");
    drop(waiting);
    let attempt = Attempt {
        upstream: format!("unix:{}", path.display()),
        outcome: &[Outcome::LocalError],
        errno: &[Some("EAGAIN")],
        reused: None,
    };
    let expected = Expectation::incident(502, &["unix-backlog-full"], vec![attempt])
        .logged("failed (11: Resource temporarily unavailable) while connecting to upstream")
        .never(&["unix-socket-refused", "upstream-refused"])
        .says(&["pm.max_children"]);
    witness(exchange, expected)
}
