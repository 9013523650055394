//! Names: what nginx's resolver is told, what a name meant when nginx started, and `localhost`.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Fault;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::{Confidence, Outcome};
use crate::site::{Plan, Site};

/// Names that nginx resolves while it runs.
pub(super) const RESOLVED: &[Fault] = &[
    Fault::new(
        "dns-failure-nxdomain",
        "the name server says that there is no such name",
        |plan| configure(plan, "dns-failure-nxdomain", "nxdomain.lab"),
        |site| unresolved(site, "dns-failure-nxdomain", "nxdomain.lab", "NXDOMAIN"),
    ),
    Fault::new(
        "dns-failure-servfail",
        "the name server fails",
        |plan| configure(plan, "dns-failure-servfail", "servfail.lab"),
        |site| unresolved(site, "dns-failure-servfail", "servfail.lab", "SERVFAIL"),
    ),
    Fault::new(
        "dns-failure-refused",
        "the name server refuses to answer",
        |plan| configure(plan, "dns-failure-refused", "refused.lab"),
        |site| unresolved(site, "dns-failure-refused", "refused.lab", "refused"),
    ),
    Fault::new(
        "dns-failure-silent",
        "the name server does not answer",
        |plan| configure(plan, "dns-failure-silent", "silent.lab"),
        |site| unresolved(site, "dns-failure-silent", "silent.lab", "came in time"),
    ),
    Fault::new(
        "dns-failure-no-resolver",
        "a variable names the upstream, and nginx has no resolver",
        |plan| {
            let set = format!("set $dns_failure_no_resolver http://unconfigured.lab:{APP};");
            plan.config.location("/dns-failure-no-resolver/", &[&set, "proxy_pass $dns_failure_no_resolver;"]);
        },
        |site| {
            let exchange = site.connect()?.get("/dns-failure-no-resolver/cart")?;
            let expected = Expectation::incident(502, &["dns-failure"], Vec::new())
                .logged("no resolver defined to resolve unconfigured.lab")
                .says(&["unconfigured.lab", "no resolver"]);
            Ok(vec![Witness::new(exchange, expected)?])
        },
    ),
    Fault::new(
        "harmless-resolved",
        "the name server answers: nothing to report",
        |plan| configure(plan, "harmless-resolved", "works.lab"),
        |site| {
            let _server = NameServer::start(site, "works.lab")?;
            let exchange = site.connect()?.get("/harmless-resolved/ok")?;
            Ok(vec![Witness::new(exchange, Expectation::nothing(Some(200)))?])
        },
    ),
    Fault::new(
        "upstream-refused-resolved",
        "the name server answers, with an address where nobody listens: no failure of DNS",
        |plan| configure(plan, "upstream-refused-resolved", "elsewhere.lab"),
        |site| {
            let _server = NameServer::start(site, "elsewhere.lab")?;
            let exchange = site.connect()?.get("/upstream-refused-resolved/ok")?;
            let upstream = SocketAddr::from((ELSEWHERE, APP));
            let attempt = Attempt::fresh(upstream, &[Outcome::Refused], &[Some("ECONNREFUSED")]);
            // The address was not known before it was asked for: the kernel's silence about it proves nothing.
            let expected = Expectation {
                confidence: &[Confidence::Confirmed, Confidence::Likely],
                ..Expectation::incident(502, &["upstream-refused"], vec![attempt])
            }
            .logged("connect() failed (111: ")
            .never(&["dns-failure"]);
            Ok(vec![Witness::new(exchange, expected)?])
        },
    ),
];

/// Names that nginx resolved when it started. Each nginx has an `/etc/hosts` of its own.
pub(super) const HELD: &[Fault] = &[
    Fault {
        alone: true,
        apart: true,
        ..Fault::new(
            "upstream-refused-moved",
            "the name leads elsewhere by now; nobody listens at the address that nginx holds",
            |plan| hosts(plan, "upstream-refused-moved", "10.77.2.2 moved.lab\n", "moved.lab", MOVED),
            |site| {
                fs::write(site.nginx().directory().join("hosts"), "127.0.0.1 localhost\n10.77.2.3 moved.lab\n")?;
                let exchange = site.connect()?.get("/upstream-refused-moved/cart")?;
                let attempt = Attempt::fresh(site.app(MOVED), &[Outcome::Refused], &[Some("ECONNREFUSED")]);
                let expected = Expectation::incident(502, &["upstream-refused"], vec![attempt])
                    .logged("connect() failed (111: ")
                    .says(&["moved.lab", "10.77.2.3:9292", "Reload nginx"])
                    .never(&["dns-failure", "firewall-rejected"]);
                Ok(vec![Witness::new(exchange, expected)?])
            },
        )
    },
    Fault {
        alone: true,
        apart: true,
        ..Fault::new(
            "host-unreachable-moved",
            "the name leads elsewhere by now; the host that nginx holds is gone",
            |plan| hosts(plan, "host-unreachable-moved", "10.77.2.67 away.lab\n", "away.lab", AWAY),
            |site| {
                fs::write(site.nginx().directory().join("hosts"), "127.0.0.1 localhost\n10.77.2.2 away.lab\n")?;
                let exchange = site.connect()?.get("/host-unreachable-moved/cart")?;
                let held = SocketAddr::from(([10, 77, 2, 67], AWAY));
                let attempt = Attempt::fresh(held, &[Outcome::Unreachable], &[Some("EHOSTUNREACH")]);
                let expected = Expectation::incident(502, &["host-unreachable"], vec![attempt])
                    .logged("connect() failed (113: ")
                    .says(&["away.lab", "10.77.2.2:9293", "Reload nginx"])
                    .never(&["dns-failure", "syn-timeout", "no-route"]);
                Ok(vec![Witness::new(exchange, expected)?])
            },
        )
    },
    Fault {
        alone: true,
        ..Fault::new(
            "upstream-refused-named",
            "the name leads where it led; nobody listens there",
            |plan| hosts(plan, "upstream-refused-named", "10.77.2.2 stands.lab\n", "stands.lab", STANDS),
            |site| {
                let exchange = site.connect()?.get("/upstream-refused-named/cart")?;
                let attempt = Attempt::fresh(site.app(STANDS), &[Outcome::Refused], &[Some("ECONNREFUSED")]);
                let expected = Expectation::incident(502, &["upstream-refused"], vec![attempt])
                    .logged("connect() failed (111: ")
                    .silent(&["stands.lab"]);
                Ok(vec![Witness::new(exchange, expected)?])
            },
        )
    },
];

/// `localhost`, for a lab where everything is on the loopback.
pub(super) const LOCALHOST: &[Fault] = &[
    Fault {
        alone: true,
        ..Fault::new(
            "upstream-refused-localhost-masked",
            "localhost is ::1 first, and the server listens on 127.0.0.1: the client sees 200",
            |plan| {
                plan.own_server("localhost", LOCAL, None, None);
                hosts(plan, "upstream-refused-localhost-masked", "::1 localhost\n", "localhost", LOCAL);
            },
            |site| {
                let exchange = site.connect()?.get("/upstream-refused-localhost-masked/ok")?;
                let attempts = vec![
                    Attempt::fresh(loopback6(LOCAL), &[Outcome::Refused], &[Some("ECONNREFUSED")]),
                    Attempt::fresh(site.app(LOCAL), &[Outcome::Ok], &[None]),
                ];
                let expected = Expectation::near_miss(200, &["upstream-refused"], attempts)
                    .logged("connect() failed (111: ")
                    .says(&["Nearby 127.0.0.1:9295 (upstream, pid", "::1 first"]);
                Ok(vec![Witness::new(exchange, expected)?])
            },
        )
    },
    Fault {
        alone: true,
        ..Fault::new(
            "upstream-refused-localhost",
            "localhost is ::1 first and 127.0.0.1 then, and nobody listens on either",
            |plan| hosts(plan, "upstream-refused-localhost", "::1 localhost\n", "localhost", LOCAL_BOTH),
            |site| {
                let exchange = site.connect()?.get("/upstream-refused-localhost/ok")?;
                let attempts = [loopback6(LOCAL_BOTH), site.app(LOCAL_BOTH)]
                    .map(|peer| Attempt::fresh(peer, &[Outcome::Refused], &[Some("ECONNREFUSED")]))
                    .to_vec();
                let expected =
                    Expectation::incident(502, &["upstream-refused"], attempts).logged("connect() failed (111: ");
                Ok(vec![Witness::new(exchange, expected)?])
            },
        )
    },
];

const APP: u16 = 9001;
const MOVED: u16 = 9292;
const AWAY: u16 = 9293;
const STANDS: u16 = 9294;
const LOCAL: u16 = 9295;
const LOCAL_BOTH: u16 = 9298;
/// The names that are asked for. Each has a name server of its own, so that all can be asked for at once.
const NAMES: [&str; 6] = ["nxdomain.lab", "servfail.lab", "refused.lab", "silent.lab", "works.lab", "elsewhere.lab"];
/// Nobody listens there: nginx's own namespace has no server on that port.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 5);

const fn loopback6(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), port)
}

/// Where a name's server listens, in nginx's namespace.
fn name_server(name: &str) -> (Ipv4Addr, u16) {
    let number = NAMES.iter().position(|known| *known == name).and_then(|position| u8::try_from(position).ok());
    (Ipv4Addr::new(127, 0, 0, 53 + number.unwrap_or(0)), 5399)
}

fn configure(plan: &mut Plan, fault: &str, name: &str) {
    let variable = fault.replace('-', "_");
    let set = format!("set ${variable} http://{name}:{APP}/ok/;");
    let pass = format!("proxy_pass ${variable};");
    let (address, port) = name_server(name);
    let resolver = format!("resolver {address}:{port} ipv6=off;");
    plan.config.location(&format!("/{fault}/"), &[&resolver, "resolver_timeout 1s;", &set, &pass]);
}

fn hosts(plan: &mut Plan, fault: &str, line: &str, name: &str, port: u16) {
    plan.config.hosts = Some(format!("127.0.0.1 localhost\n{line}"));
    let pass = format!("proxy_pass http://{name}:{port}/ok/;");
    plan.config.location(&format!("/{fault}/"), &[&pass]);
}

fn unresolved(site: &Site<'_>, fault: &str, name: &str, says: &str) -> Result<Vec<Witness>> {
    let _server = NameServer::start(site, name)?;
    let exchange = site.connect()?.get(&format!("/{fault}/cart"))?;
    let expected = Expectation::incident(502, &["dns-failure"], Vec::new())
        .logged(" could not be resolved (")
        .says(&[name, says])
        .never(&["upstream-refused", "no-live-upstreams", "host-unreachable"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

/// A name server whose names say what it answers; it ends when dropped.
struct NameServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    fn start(site: &Site<'_>, name: &str) -> Result<Self> {
        let address = name_server(name);
        let socket = site.lab().proxy().inside(|| UdpSocket::bind(address).context("listen for DNS questions"))?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let app = site.lab().addresses().app;
        let thread = std::thread::spawn(move || {
            let mut question = [0; 512];
            while !told.load(Ordering::Relaxed) {
                let Ok((length, asker)) = socket.recv_from(&mut question) else { continue };
                if let Some(answer) = answer(&question[..length], app) {
                    // A question that stays unanswered is what some names are for.
                    let _ = socket.send_to(&answer, asker);
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The answer (RFC 1035, section 4) that a name asks for.
fn answer(question: &[u8], app: Ipv4Addr) -> Option<Vec<u8>> {
    let first = usize::from(*question.get(12)?);
    let name = question.get(13..13 + first)?;
    let (code, address) = match name {
        b"nxdomain" => (3, None),
        b"servfail" => (2, None),
        b"refused" => (5, None),
        b"works" => (0, Some(app)),
        b"elsewhere" => (0, Some(ELSEWHERE)),
        _ => return None,
    };
    let mut answer = question.to_vec();
    answer[2] |= 0x80;
    answer[3] = 0x80 | code;
    answer[6..12].fill(0);
    if let Some(address) = address {
        answer[7] = 1;
        // The name is the question's; type A, class IN, one second.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
