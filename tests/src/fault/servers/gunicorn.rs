//! gunicorn: sync workers that end under a request in every way, gthread workers whose idle timeout races.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{CLOSED, Fault, HISTORY, cross_fin, end_worker, ended, masked_race, proxied, race, witness};
use crate::cgroup::MemoryLimit;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::site::{Plan, Site};
use crate::upstream::{Gunicorn, Kind};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "gunicorn-worker-timeout",
        "a request outlasts gunicorn's --timeout; the arbiter aborts the worker",
        |plan| {
            let kind = Kind::Gunicorn(Gunicorn { workers: 1, timeout: 1, ..Gunicorn::default() });
            proxied(plan, "gunicorn-worker-timeout", "gunicorn-impatient", kind, IMPATIENT, "hang");
        },
        worker_timeout,
    ),
    Fault::new(
        "gunicorn-segfault",
        "a gunicorn worker crashes in an extension module",
        |plan| sync(plan, "gunicorn-segfault", "segv"),
        |site| {
            let (exchange, pid) = end_worker(site, SYNC, "/gunicorn-segfault/cart")?;
            let who = format!("gunicorn (pid {pid})");
            witness(exchange, ended(site, PORT, &["upstream-crashed"]).says(&[&who, "SIGSEGV"]))
        },
    ),
    Fault::new(
        "gunicorn-abort",
        "a gunicorn worker aborts",
        |plan| sync(plan, "gunicorn-abort", "abort"),
        |site| {
            let (exchange, pid) = end_worker(site, SYNC, "/gunicorn-abort/cart")?;
            let who = format!("gunicorn (pid {pid})");
            witness(exchange, ended(site, PORT, &["upstream-crashed"]).says(&[&who, "SIGABRT"]))
        },
    ),
    Fault::new(
        "gunicorn-exit",
        "the application behind gunicorn calls os._exit(7)",
        |plan| sync(plan, "gunicorn-exit", "exit/7"),
        |site| {
            let (exchange, pid) = end_worker(site, SYNC, "/gunicorn-exit/cart")?;
            let who = format!("gunicorn (pid {pid})");
            witness(exchange, ended(site, PORT, &["upstream-exited"]).says(&[&who, "exit status 7"]))
        },
    ),
    Fault::new(
        "gunicorn-killed",
        "somebody else sends SIGKILL to a gunicorn worker",
        |plan| sync(plan, "gunicorn-killed", "hang"),
        killed,
    ),
    Fault::new(
        "gunicorn-oom",
        "a gunicorn worker meets the limit of its memory control group",
        |plan| sync(plan, "gunicorn-oom", "eat-memory"),
        out_of_memory,
    ),
    Fault::new(
        "gunicorn-own-502",
        "the application behind gunicorn answers 502 itself",
        |plan| sync(plan, "gunicorn-own-502", "status/502"),
        |site| {
            let exchange = site.connect()?.get("/gunicorn-own-502/cart")?;
            let attempt = Attempt::fresh(site.app(PORT), &[Outcome::Ok], &[None]);
            witness(exchange, Expectation::incident(502, &["upstream-sent-502"], vec![attempt]))
        },
    ),
    Fault::new(
        "gunicorn-big-header",
        "the application behind gunicorn sets a cookie that nginx has no room for",
        |plan| sync(plan, "gunicorn-big-header", "big-header"),
        |site| {
            let exchange = site.connect()?.get("/gunicorn-big-header/cart")?;
            let attempt = Attempt::fresh(site.app(PORT), &[Outcome::BadResponse], &[None]);
            let expected = Expectation::incident(502, &["header-too-big"], vec![attempt])
                .logged("upstream sent too big header while reading response header from upstream");
            witness(exchange, expected)
        },
    ),
    Fault::new(
        "gunicorn-truncated",
        "the application behind gunicorn promises more than it sends",
        |plan| sync(plan, "gunicorn-truncated", "truncate"),
        |site| {
            let exchange = site.connect()?.get("/gunicorn-truncated/cart")?;
            ensure!(exchange.body.len() < 1000, "the body is whole");
            let attempt = Attempt::fresh(site.app(PORT), &[Outcome::Closed, Outcome::Ok], &[None]);
            let expected = Expectation::near_miss(200, &["response-truncated"], vec![attempt])
                .logged("upstream prematurely closed connection while reading upstream");
            witness(exchange, expected)
        },
    ),
    Fault::new(
        "gunicorn-race-post",
        "gunicorn's gthread closes an idle connection while a POST is on its way",
        |plan| threads(plan, "gunicorn-race-post"),
        |site| {
            let exchange = cross_fin(site, "gunicorn-race-post", site.upstream(THREADS)?, "POST")?;
            witness(exchange, race(site, THREADS_PORT).says(&[HISTORY, "gunicorn: --keep-alive"]))
        },
    ),
    Fault::new(
        "gunicorn-race-get",
        "gunicorn's gthread closes an idle connection while a GET is on its way: nginx tries again",
        |plan| threads(plan, "gunicorn-race-get"),
        |site| {
            let exchange = cross_fin(site, "gunicorn-race-get", site.upstream(THREADS)?, "GET")?;
            witness(exchange, masked_race(site, THREADS_PORT))
        },
    ),
];

const SYNC: &str = "gunicorn";
const PORT: u16 = 9201;
const IMPATIENT: u16 = 9202;
const THREADS: &str = "gunicorn-threads";
const THREADS_PORT: u16 = 9203;

/// Room for a Python that has grown already, far less than it asks for.
const MEMORY: u64 = 48 << 20;

fn sync(plan: &mut Plan, name: &str, path: &str) {
    proxied(plan, name, SYNC, Kind::Gunicorn(Gunicorn::default()), PORT, path);
}

fn threads(plan: &mut Plan, name: &str) {
    plan.server(
        THREADS,
        Kind::Gunicorn(Gunicorn { workers: 1, threads: 4, keep_alive: 1, ..Gunicorn::default() }),
        THREADS_PORT,
    );
    let server = plan.app(THREADS_PORT);
    plan.keepalive_location(name, &format!("/{name}/"), server, "/ok/");
}

fn worker_timeout(site: &Site<'_>) -> Result<Vec<Witness>> {
    let arbiter = site.upstream("gunicorn-impatient")?.pid();
    let (exchange, pid) = end_worker(site, "gunicorn-impatient", "/gunicorn-worker-timeout/cart")?;
    let (who, by) = (format!("gunicorn (pid {pid})"), format!("SIGABRT from gunicorn (pid {arbiter})"));
    // The handler in the worker turns the signal into sys.exit(1), which closes the connection in order.
    let expected = ended(site, IMPATIENT, &["upstream-killed"]).logged(CLOSED).says(&[&who, &by, "WORKER TIMEOUT"]);
    witness(exchange, expected)
}

fn killed(site: &Site<'_>) -> Result<Vec<Witness>> {
    let server = site.upstream(SYNC)?;
    let (workers, files) = (server.workers()?, server.worker_files()?);
    let mut client = site.connect()?;
    client.send("GET", "/gunicorn-killed/cart", b"")?;
    let worker = server.wait_taken(&files)?;
    // The worker must have read the request, or its kernel answers with a RST for what was left unread.
    std::thread::sleep(Duration::from_millis(50));
    let mut kill = Command::new("kill");
    let mut kill = kill.args(["-KILL", &worker.to_string()]).stdin(Stdio::null()).spawn().context("run kill")?;
    let killer = kill.id();
    kill.wait()?;
    let exchange = client.receive()?;
    ensure!(server.wait_replaced(&workers)? == worker, "another worker has gone than {worker}");
    let (who, by) = (format!("gunicorn (pid {worker})"), format!("SIGKILL from kill (pid {killer})"));
    witness(exchange, ended(site, PORT, &["upstream-killed"]).says(&[&who, &by]))
}

fn out_of_memory(site: &Site<'_>) -> Result<Vec<Witness>> {
    let server = site.upstream(SYNC)?;
    let limits = server.workers()?.into_iter().map(|pid| MemoryLimit::hold(pid, MEMORY)).collect::<Result<Vec<_>>>()?;
    let (exchange, pid) = end_worker(site, SYNC, "/gunicorn-oom/cart")?;
    drop(limits);
    let who = format!("gunicorn (pid {pid})");
    witness(exchange, ended(site, PORT, &["upstream-oom-killed"]).says(&[&who]))
}
