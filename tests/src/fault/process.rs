//! The process that held the connection ends, or another one does.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::Fault;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::nginx::children_of;
use crate::probe::is_emulated;
use crate::process::send;
use crate::site::{Plan, Site};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "upstream-crashed",
        "the upstream's worker crashes: SIGSEGV, SIGABRT, SIGBUS, SIGILL, SIGFPE",
        workers,
        crash,
    ),
    Fault::new(
        "upstream-crashed-forked",
        "a server that forks a child for each connection: the child crashes, the parent has closed its own end long before",
        forking,
        child_crashes,
    ),
    Fault::new("upstream-exited", "the upstream's worker calls exit() in the middle of a request", workers_exit, exit),
    Fault::new(
        "upstream-exited-deaf",
        "the upstream's worker ignores SIGTERM, and a little later it exits by itself",
        workers_deaf,
        deaf,
    ),
    Fault::new(
        "upstream-exited-blocked",
        "the upstream's worker has SIGTERM blocked when it comes, and a little later it exits by itself",
        workers_blocked,
        blocked,
    ),
    Fault::new(
        "upstream-killed",
        "another process kills the upstream's worker in the middle of a request",
        workers_kill,
        killed,
    ),
    Fault::new(
        "harmless-killed-idle",
        "a worker is killed, and its sibling answers: no failure of any request",
        workers_idle,
        killed_idle,
    ),
    Fault::new(
        "premature-close-sibling",
        "one worker crashes, and 30 ms later another closes a connection of its own",
        siblings,
        beside,
    ),
];

/// What takes the whole machine, and so wants one that nobody else uses.
pub(super) const OF_A_WHOLE_MACHINE: &[Fault] = &[Fault::new(
    "upstream-oom-killed",
    "memory runs out on the whole host, and the kernel takes the upstream's worker",
    workers_eat,
    out_of_memory,
)];

const CRASH: u16 = 9101;
const EXIT: u16 = 9102;
const KILL: u16 = 9103;
const SIBLING: u16 = 9104;
const IDLE: u16 = 9105;
const EAT: u16 = 9106;
const FORK: u16 = 9107;
const DEAF: u16 = 9108;
const BLOCKED: u16 = 9109;

const ENDED: &[Outcome] = &[Outcome::Reset, Outcome::Closed];
const ENDED_ERRNO: &[Option<&str>] = &[None, Some("ECONNRESET")];

/// A prefork server for one fault alone: its crashes are not the healthy traffic's.
fn serve(plan: &mut Plan, name: &'static str, port: u16, workers: u8) {
    let address = plan.app(port);
    plan.scripted(name, vec![address], vec![address.to_string(), "--workers".to_owned(), workers.to_string()]);
    let pass = format!("proxy_pass http://{address}/;");
    plan.config.location(&format!("/{name}/"), &[&pass]);
}

fn workers(plan: &mut Plan) {
    serve(plan, "upstream-crashed", CRASH, 1);
}

fn crash(site: &Site<'_>) -> Result<Vec<Witness>> {
    let mut witnesses = Vec::new();
    for signal in [Signal::SIGSEGV, Signal::SIGABRT, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE] {
        let exchange = site.connect()?.get(&format!("/upstream-crashed/crash/{}", signal as i32))?;
        let attempt = Attempt::fresh(site.app(CRASH), ENDED, ENDED_ERRNO);
        let expected = Expectation::incident(502, &["upstream-crashed"], vec![attempt])
            .logged(" while reading response header from upstream")
            .says(&[signal.as_str(), "upstream (pid "])
            .never(&["premature-close", "upstream-reset", "upstream-killed", "upstream-exited"]);
        witnesses.push(Witness::new(exchange, expected)?);
    }
    Ok(witnesses)
}

fn forking(plan: &mut Plan) {
    serve(plan, "upstream-crashed-forked", FORK, 1);
}

fn child_crashes(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/upstream-crashed-forked/crash-in-child/11")?;
    let attempt = Attempt::fresh(site.app(FORK), ENDED, ENDED_ERRNO);
    let expected = Expectation::incident(502, &["upstream-crashed"], vec![attempt])
        .logged(" while reading response header from upstream")
        .says(&["SIGSEGV", "upstream (pid "])
        .never(&["premature-close", "upstream-reset", "upstream-killed", "upstream-exited"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn workers_exit(plan: &mut Plan) {
    serve(plan, "upstream-exited", EXIT, 1);
}

fn exit(site: &Site<'_>) -> Result<Vec<Witness>> {
    let mut witnesses = Vec::new();
    for status in [0, 3] {
        let exchange = site.connect()?.get(&format!("/upstream-exited/exit/{status}"))?;
        let attempt = Attempt::fresh(site.app(EXIT), ENDED, ENDED_ERRNO);
        let expected = Expectation::incident(502, &["upstream-exited"], vec![attempt])
            .logged(" while reading response header from upstream")
            .says(&[&format!("exit status {status}")])
            .never(&["premature-close", "upstream-reset", "upstream-killed", "upstream-crashed"]);
        witnesses.push(Witness::new(exchange, expected)?);
    }
    Ok(witnesses)
}

fn workers_deaf(plan: &mut Plan) {
    serve(plan, "upstream-exited-deaf", DEAF, 1);
}

fn deaf(site: &Site<'_>) -> Result<Vec<Witness>> {
    unheard(site, "upstream-exited-deaf", "deaf-exit", DEAF)
}

fn workers_blocked(plan: &mut Plan) {
    serve(plan, "upstream-exited-blocked", BLOCKED, 1);
}

fn blocked(site: &Site<'_>) -> Result<Vec<Witness>> {
    unheard(site, "upstream-exited-blocked", "blocked-exit", BLOCKED)
}

/// A SIGTERM that the worker does not hear of, and then its own exit.
fn unheard(site: &Site<'_>, name: &str, behaviour: &str, port: u16) -> Result<Vec<Witness>> {
    let mut client = site.connect()?;
    client.send("GET", &format!("/{name}/{behaviour}/3"), b"")?;
    std::thread::sleep(Duration::from_millis(150));
    let [worker] = children_of(site.upstream(name)?.pid())?[..] else { anyhow::bail!("one worker") };
    send(worker, Signal::SIGTERM)?;
    let attempt = Attempt::fresh(site.app(port), ENDED, ENDED_ERRNO);
    let expected = Expectation::incident(502, &["upstream-exited"], vec![attempt])
        .logged(" while reading response header from upstream")
        .says(&["exit status 3"])
        .never(&["premature-close", "upstream-reset", "upstream-killed", "upstream-crashed"]);
    Ok(vec![Witness::new(client.receive()?, expected)?])
}

fn workers_kill(plan: &mut Plan) {
    serve(plan, "upstream-killed", KILL, 1);
}

fn killed(site: &Site<'_>) -> Result<Vec<Witness>> {
    let mut witnesses = Vec::new();
    // What a supervisor sends, and signals that a process rather brings upon itself.
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGABRT] {
        let mut client = site.connect()?;
        client.send("GET", &format!("/upstream-killed/hang/{}", signal as i32), b"")?;
        std::thread::sleep(Duration::from_millis(150));
        let [worker] = children_of(site.upstream("upstream-killed")?.pid())?[..] else { anyhow::bail!("one worker") };
        send(worker, signal)?;
        let attempt = Attempt::fresh(site.app(KILL), ENDED, ENDED_ERRNO);
        let expected = Expectation::incident(502, &["upstream-killed"], vec![attempt])
            .logged(" while reading response header from upstream")
            .says(&[signal.as_str(), &format!("(pid {})", std::process::id()), &format!("(pid {worker})")])
            .never(&["premature-close", "upstream-reset", "upstream-crashed", "upstream-oom-killed"]);
        witnesses.push(Witness::new(client.receive()?, expected)?);
    }
    Ok(witnesses)
}

fn workers_eat(plan: &mut Plan) {
    serve(plan, "upstream-oom-killed", EAT, 1);
}

fn out_of_memory(site: &Site<'_>) -> Result<Vec<Witness>> {
    ensure!(is_emulated(), "the memory of a machine that others use is not taken");
    let exchange = site.connect()?.get("/upstream-oom-killed/eat-memory")?;
    let attempt = Attempt::fresh(site.app(EAT), ENDED, ENDED_ERRNO);
    let expected = Expectation::incident(502, &["upstream-oom-killed"], vec![attempt])
        .logged(" while reading response header from upstream")
        .says(&["OOM", "upstream (pid "])
        .never(&["premature-close", "upstream-reset", "upstream-killed", "upstream-crashed"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn siblings(plan: &mut Plan) {
    serve(plan, "premature-close-sibling", SIBLING, 2);
}

fn beside(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/premature-close-sibling/sibling/1")?;
    let attempt = Attempt::fresh(site.app(SIBLING), &[Outcome::Closed], &[None]);
    let expected = Expectation::incident(502, &["premature-close"], vec![attempt])
        .logged("upstream prematurely closed connection while reading response header from upstream")
        .never(&["upstream-crashed", "upstream-killed", "upstream-exited"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn workers_idle(plan: &mut Plan) {
    serve(plan, "harmless-killed-idle", IDLE, 2);
}

fn killed_idle(site: &Site<'_>) -> Result<Vec<Witness>> {
    let first = children_of(site.upstream("harmless-killed-idle")?.pid())?.first().copied().context("a worker")?;
    send(first, Signal::SIGKILL)?;
    let exchange = site.connect()?.get("/harmless-killed-idle/ok")?;
    Ok(vec![Witness::new(exchange, Expectation::nothing(Some(200)))?])
}
