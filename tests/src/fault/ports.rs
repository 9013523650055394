//! Want of local things in nginx: ports, descriptors of the whole system, connection slots.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Fault;
use crate::client::Connection;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::site::{Plan, Site};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault {
        alone: true,
        healthy: "/static",
        ..Fault::new(
            "ephemeral-ports-exhausted",
            "nginx's host has four local ports, and all lead to this upstream already",
            |plan| configure(plan, "ephemeral-ports-exhausted", ""),
            |site| exhaust(site, "ephemeral-ports-exhausted"),
        )
    },
    Fault {
        alone: true,
        healthy: "/static",
        ..Fault::new(
            "ephemeral-ports-exhausted-bind",
            "the same with proxy_bind",
            |plan| {
                let bind = match plan.addresses.silent {
                    Some(_) => "proxy_bind 10.77.2.1;",
                    None => "proxy_bind 127.0.0.1;",
                };
                configure(plan, "ephemeral-ports-exhausted-bind", bind);
            },
            |site| exhaust(site, "ephemeral-ports-exhausted-bind"),
        )
    },
    Fault::new(
        "bind-failed",
        "proxy_bind names an address that this host does not have",
        |plan| {
            let pass = format!("proxy_pass http://{};", plan.app(9001));
            plan.config.location("/bind-failed/", &[&pass, "proxy_bind 192.0.2.77;"]);
        },
        |site| {
            let exchange = site.connect()?.get("/bind-failed/ok")?;
            let attempt = Attempt {
                reused: None,
                ..Attempt::fresh(site.app_address(), &[Outcome::LocalError], &[Some("EADDRNOTAVAIL")])
            };
            let expected = Expectation::incident(500, &["bind-failed"], vec![attempt])
                .logged("bind(192.0.2.77:0) failed (99: ")
                .says(&["192.0.2.77"])
                .never(&["fd-exhausted-nginx", "no-route", "ephemeral-ports-exhausted"]);
            Ok(vec![Witness::new(exchange, expected)?])
        },
    ),
    Fault {
        alone: true,
        healthy: "/static",
        starves: true,
        ..Fault::new(
            "worker-connections-exhausted",
            "clients hold every connection slot of the nginx worker",
            |plan| {
                plan.config.workers = 1;
                plan.config.connections = SLOTS;
                let pass = format!("proxy_pass http://{};", plan.app(9001));
                plan.config.location("/worker-connections-exhausted/", &[&pass]);
            },
            fill_slots,
        )
    },
    Fault {
        alone: true,
        healthy: "/static",
        starves: true,
        ..Fault::new(
            "fd-exhausted-system",
            "the whole system is out of file descriptors, for all but its administrator",
            |plan| {
                plan.config.workers = 1;
                plan.config.user = "nobody nogroup";
                let pass = format!("proxy_pass http://{};", plan.app(9001));
                plan.config.location("/fd-exhausted-system/", &[&pass]);
            },
            starve_system,
        )
    },
];

const PORTS: u16 = 9270;
/// The worker's connection slots: listeners and healthy connections take some.
const SLOTS: u32 = 16;
/// The range of local ports, in words of the sysctl, and how many there are.
const RANGE: (&str, usize) = ("41000 41003", 4);

fn configure(plan: &mut Plan, name: &'static str, line: &str) {
    plan.own_server("ported", PORTS, None, None);
    let pass = format!("proxy_pass http://{}/hang/;", plan.app(PORTS));
    plan.config.location(&format!("/{name}/held"), &[&pass, line]);
    let pass = format!("proxy_pass http://{}/ok/;", plan.app(PORTS));
    plan.config.location(&format!("/{name}/"), &[&pass, line]);
}

fn exhaust(site: &Site<'_>, name: &str) -> Result<Vec<Witness>> {
    site.lab().proxy().sysctl("ipv4/ip_local_port_range", RANGE.0)?;
    let mut held: Vec<Connection> = Vec::new();
    for _ in 0..RANGE.1 {
        let mut client = site.connect()?;
        client.send("GET", &format!("/{name}/held"), b"")?;
        held.push(client);
    }
    let upstream = site.app(PORTS);
    crate::process::wait_until("every local port is taken", Duration::from_secs(5), || {
        Ok(site.established_to(upstream)? == RANGE.1)
    })?;
    let exchange = site.connect()?.get(&format!("/{name}/cart"))?;
    let attempt = Attempt::fresh(upstream, &[Outcome::LocalError], &[Some("EADDRNOTAVAIL")]);
    let expected = Expectation::incident(502, &["ephemeral-ports-exhausted"], vec![attempt])
        .logged("connect() to ")
        .says(&["41000", "4 of 4"])
        .never(&["no-route", "fd-exhausted-nginx", "upstream-refused", "bind-failed"]);
    let mut witnesses = vec![Witness::new(exchange, expected)?];
    std::thread::sleep(Duration::from_millis(300));
    for client in held {
        witnesses.push(Witness::new(client.abandon()?, Expectation::nothing(None))?);
    }
    Ok(witnesses)
}

/// Times that the last slot is tried for.
const TRIES: u32 = 50;

fn fill_slots(site: &Site<'_>) -> Result<Vec<Witness>> {
    // Connections whose request is half sent: idle ones nginx would close to make room.
    let mut held: Vec<TcpStream> = Vec::new();
    loop {
        let mut connection = site.lab().client().inside(|| Ok(TcpStream::connect(site.address())?))?;
        connection.write_all(b"GET /static HTTP/1.1\r\nHost: shop.example\r\n")?;
        connection.set_read_timeout(Some(Duration::from_millis(30)))?;
        // What it accepts beyond its slots nginx closes at once; the others wait for the rest of the request.
        match connection.read(&mut [0; 1]) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => held.push(connection),
            _ => break,
        }
        if held.len() > 64 {
            bail!("the worker's connection slots do not run out");
        }
    }
    // One slot for the client, and none for its upstream.
    drop(held.pop());
    std::thread::sleep(Duration::from_millis(50));
    let mut exchange = site.connect()?.get("/worker-connections-exhausted/ok")?;
    // Healthy traffic takes slots too: another client may have had the one, or have left one for the upstream.
    for _ in 0..TRIES {
        if exchange.status == Some(500) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
        exchange = site.connect()?.get("/worker-connections-exhausted/ok")?;
    }
    drop(held);
    let attempt = Attempt { reused: None, ..Attempt::fresh(site.app_address(), &[Outcome::LocalError], &[None]) };
    let expected = Expectation::incident(500, &["worker-connections-exhausted"], vec![attempt])
        .logged(" worker_connections are not enough while connecting to upstream")
        .says(&["worker_connections"])
        .never(&["fd-exhausted-nginx", "fd-exhausted-system"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

/// The system-wide limit, put back when dropped. It binds nobody who has `CAP_SYS_ADMIN` (`alloc_empty_file`), so that only what runs
/// under another user meets it, for the moment it is lowered.
struct FileMax(String);

const FILE_MAX: &str = "/proc/sys/fs/file-max";

impl FileMax {
    fn lower() -> Result<Self> {
        let before = fs::read_to_string(FILE_MAX).context("read fs.file-max")?;
        fs::write(FILE_MAX, "16").context("lower fs.file-max")?;
        Ok(Self(before))
    }
}

impl Drop for FileMax {
    fn drop(&mut self) {
        // Nothing could be done about a failure here.
        let _ = fs::write(FILE_MAX, self.0.trim());
    }
}

fn starve_system(site: &Site<'_>) -> Result<Vec<Witness>> {
    let mut client = site.connect()?;
    client.get("/static")?;
    let lowered = FileMax::lower()?;
    let exchange = client.get("/fd-exhausted-system/ok")?;
    // Whoever reads the numbers because of the failure must still find them.
    std::thread::sleep(Duration::from_millis(250));
    drop(lowered);
    let attempt =
        Attempt { reused: None, ..Attempt::fresh(site.app_address(), &[Outcome::LocalError], &[Some("ENFILE")]) };
    let expected = Expectation::incident(500, &["fd-exhausted-system"], vec![attempt])
        .logged("socket() failed (23: Too many open files in system) while connecting to upstream")
        .says(&["fs.file-max"])
        .never(&["fd-exhausted-nginx", "fd-exhausted-upstream"]);
    Ok(vec![Witness::new(exchange, expected)?])
}
