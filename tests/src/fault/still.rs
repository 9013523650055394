//! Servers that stand still: frozen with their control group, held by a debugger, stopped for a while; and processes that stand still, or
//! did, and are not why nothing was answered.

use std::time::Duration;

use anyhow::Result;

use super::Fault;
use crate::cgroup::Frozen;
use crate::debugger::Held;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::process::Stopped;
use crate::site::{Plan, Site};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "read-timeout-frozen",
        "the upstream's control group is frozen, as that of a paused container is: nobody accepts",
        |plan| own(plan, "read-timeout-frozen", FROZEN, "ok"),
        frozen,
    ),
    Fault::new(
        "read-timeout-traced",
        "a debugger holds the upstream's process: nobody accepts",
        |plan| own(plan, "read-timeout-traced", TRACED, "ok"),
        traced,
    ),
    Fault::new(
        "read-timeout-stopped-meanwhile",
        "the upstream hangs, and its process is stopped for some of that time",
        |plan| own(plan, "read-timeout-stopped-meanwhile", MEANWHILE, "hang"),
        meanwhile,
    ),
    Fault::new(
        "read-timeout-stopped-before",
        "the upstream hangs; that its process had been stopped and continued before is another story",
        |plan| own(plan, "read-timeout-stopped-before", BEFORE, "hang"),
        before,
    ),
    Fault::new(
        "read-timeout-stopped-other",
        "the upstream hangs, and the process of another upstream is stopped",
        |plan| {
            own(plan, "read-timeout-stopped-other", OTHER, "hang");
            plan.own_server("stopped-beside", BESIDE, None, None);
        },
        other,
    ),
    Fault::new(
        "read-timeout-stopped-master",
        "a worker of the upstream hangs, and its master is stopped",
        |plan| {
            let address = plan.app(MASTER);
            let arguments = vec![address.to_string(), "--workers".to_owned(), "2".to_owned()];
            plan.scripted("read-timeout-stopped-master", vec![address], arguments);
            pass(plan, "read-timeout-stopped-master", MASTER, "hang");
        },
        master,
    ),
];

const FROZEN: u16 = 9169;
const TRACED: u16 = 9171;
const MEANWHILE: u16 = 9173;
const BEFORE: u16 = 9175;
const OTHER: u16 = 9177;
const BESIDE: u16 = 9179;
const MASTER: u16 = 9185;
/// Whoever looks what the process does must find it so.
const LASTS: Duration = Duration::from_millis(500);
/// What nobody may say of a server that did not stand still.
const STILL: &[&str] =
    &["SIGSTOP", "SIGCONT", "stands still", "stood still", "stand still (", "signal 19", "kill -CONT"];

/// A server of the fault's own.
fn own(plan: &mut Plan, name: &'static str, port: u16, path: &str) {
    plan.own_server(name, port, None, None);
    pass(plan, name, port, path);
}

fn pass(plan: &mut Plan, name: &str, port: u16, path: &str) {
    let pass = format!("proxy_pass http://{}/{path}/;", plan.app(port));
    plan.config.location(&format!("/{name}/"), &[&pass, "proxy_read_timeout 1s;"]);
}

fn expected(site: &Site<'_>, port: u16) -> Expectation {
    let attempt = Attempt::fresh(site.app(port), &[Outcome::TimeoutRead], &[None, Some("ETIMEDOUT")]);
    Expectation::incident(504, &["read-timeout"], vec![attempt])
        .logged("upstream timed out (110: Connection timed out) while reading response header")
        .never(&["accept-queue-overflow", "fd-exhausted-upstream", "path-stall", "syn-timeout"])
}

fn frozen(site: &Site<'_>) -> Result<Vec<Witness>> {
    let frozen = Frozen::hold(site.upstream("read-timeout-frozen")?.pid())?;
    let exchange = site.connect()?.get("/read-timeout-frozen/1")?;
    std::thread::sleep(LASTS);
    let switch = frozen.switch().display().to_string();
    drop(frozen);
    let expected =
        expected(site, FROZEN).says(&["Nobody accepted the connection", "its control group is frozen", &switch]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn traced(site: &Site<'_>) -> Result<Vec<Witness>> {
    let held = Held::hold(site.upstream("read-timeout-traced")?.pid())?;
    let exchange = site.connect()?.get("/read-timeout-traced/1")?;
    std::thread::sleep(LASTS);
    drop(held);
    let debugger = format!("(pid {}) holds it as a debugger does", std::process::id());
    let expected = expected(site, TRACED).says(&["Nobody accepted the connection", &debugger]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn meanwhile(site: &Site<'_>) -> Result<Vec<Witness>> {
    let server = site.upstream("read-timeout-stopped-meanwhile")?;
    let mut client = site.connect()?;
    client.send("GET", "/read-timeout-stopped-meanwhile/1", b"")?;
    std::thread::sleep(Duration::from_millis(300));
    server.while_stopped(|| {
        std::thread::sleep(Duration::from_millis(300));
        Ok(())
    })?;
    let exchange = client.receive()?;
    let sent = |name| format!("{name} from ");
    let expected = expected(site, MEANWHILE).says(&[
        "stood still: ",
        &sent("SIGSTOP"),
        &sent("SIGCONT"),
        &format!("(pid {})", std::process::id()),
    ]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn before(site: &Site<'_>) -> Result<Vec<Witness>> {
    site.upstream("read-timeout-stopped-before")?.while_stopped(|| Ok(()))?;
    std::thread::sleep(Duration::from_millis(100));
    let exchange = site.connect()?.get("/read-timeout-stopped-before/1")?;
    Ok(vec![Witness::new(exchange, expected(site, BEFORE).silent(STILL))?])
}

fn other(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.upstream("stopped-beside")?.while_stopped(|| {
        let exchange = site.connect()?.get("/read-timeout-stopped-other/1")?;
        std::thread::sleep(LASTS);
        Ok(exchange)
    })?;
    Ok(vec![Witness::new(exchange, expected(site, OTHER).silent(STILL))?])
}

fn master(site: &Site<'_>) -> Result<Vec<Witness>> {
    let server = site.upstream("read-timeout-stopped-master")?;
    let stopped = Stopped::new(vec![server.pid()])?;
    let exchange = site.connect()?.get("/read-timeout-stopped-master/1")?;
    std::thread::sleep(LASTS);
    drop(stopped);
    Ok(vec![Witness::new(exchange, expected(site, MASTER).silent(STILL))?])
}
