//! The process behind a unix socket ends: no packet and no state of a connection tells, only who accepted it and what it still held.

use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::signal::Signal;

use super::Fault;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::nginx::children_of;
use crate::process::{send, wait_until};
use crate::site::{Plan, Site};
use crate::upstream::{Kind, Plan as UpstreamPlan};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new("upstream-crashed-unix", "the worker behind a unix socket crashes", |plan| serve(plan, CRASH), crash),
    Fault::new("upstream-exited-unix", "the worker behind a unix socket calls exit()", |plan| serve(plan, EXIT), exit),
    Fault::new(
        "upstream-killed-unix",
        "another process kills the worker behind a unix socket",
        |plan| serve(plan, KILL),
        killed,
    ),
    Fault::new(
        "gunicorn-crashed-unix",
        "a gunicorn worker behind a unix socket crashes in an extension module",
        gunicorn,
        gunicorn_crash,
    ),
];

const CRASH: &str = "upstream-crashed-unix";
const EXIT: &str = "upstream-exited-unix";
const KILL: &str = "upstream-killed-unix";
const GUNICORN: &str = "gunicorn-crashed-unix";

const NEITHER: [&str; 3] = ["premature-close", "upstream-reset", "keepalive-race"];

fn serve(plan: &mut Plan, name: &'static str) {
    let listen = format!("unix:{}", plan.directory.join(format!("{name}.sock")).display());
    plan.scripted(name, Vec::new(), vec![listen.clone(), "--workers".to_owned(), "1".to_owned()]);
    plan.config.location(&format!("/{name}/"), &[&format!("proxy_pass http://{listen}:/;")]);
}

fn attempt(site: &Site<'_>, name: &str) -> Attempt {
    Attempt {
        upstream: format!("unix:{}", site.lab().directory().join(format!("{name}.sock")).display()),
        outcome: &[Outcome::Reset, Outcome::Closed],
        errno: &[None, Some("ECONNRESET")],
        reused: Some(false),
    }
}

fn ended(site: &Site<'_>, name: &'static str, cause: &'static [&'static str]) -> Expectation {
    Expectation::incident(502, cause, vec![attempt(site, name)])
        .logged(" while reading response header from upstream")
        .never(&NEITHER)
}

fn crash(site: &Site<'_>) -> Result<Vec<Witness>> {
    let mut witnesses = Vec::new();
    for signal in [Signal::SIGSEGV, Signal::SIGABRT] {
        let exchange = site.connect()?.get(&format!("/{CRASH}/crash/{}", signal as i32))?;
        let expected = ended(site, CRASH, &["upstream-crashed"]).says(&[signal.as_str(), "upstream (pid "]);
        witnesses.push(Witness::new(exchange, expected)?);
    }
    Ok(witnesses)
}

fn exit(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get(&format!("/{EXIT}/exit/3"))?;
    Ok(vec![Witness::new(exchange, ended(site, EXIT, &["upstream-exited"]).says(&["exit status 3"]))?])
}

fn killed(site: &Site<'_>) -> Result<Vec<Witness>> {
    let mut witnesses = Vec::new();
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let mut client = site.connect()?;
        client.send("GET", &format!("/{KILL}/hang/{}", signal as i32), b"")?;
        std::thread::sleep(Duration::from_millis(150));
        let [worker] = children_of(site.upstream(KILL)?.pid())?[..] else { bail!("one worker") };
        send(worker, signal)?;
        let expected = ended(site, KILL, &["upstream-killed"]).says(&[
            signal.as_str(),
            &format!("(pid {})", std::process::id()),
            &format!("(pid {worker})"),
        ]);
        witnesses.push(Witness::new(client.receive()?, expected)?);
    }
    Ok(witnesses)
}

fn gunicorn(plan: &mut Plan) {
    let listen = format!("unix:{}", plan.directory.join(format!("{GUNICORN}.sock")).display());
    let directory = plan.directory.display().to_string();
    let words = ["gunicorn", "--bind", &listen, "--workers", "1", "--log-level", "warning", "--chdir", &directory];
    let command = words.into_iter().chain(["wsgi:application"]).map(str::to_owned).collect();
    plan.upstreams.push(UpstreamPlan {
        name: GUNICORN,
        kind: Kind::Program { command },
        listen: Vec::new(),
        open_files: None,
    });
    plan.config.location(&format!("/{GUNICORN}/"), &[&format!("proxy_pass http://{listen}:/;")]);
}

fn gunicorn_crash(site: &Site<'_>) -> Result<Vec<Witness>> {
    let server = site.upstream(GUNICORN)?;
    let path = site.lab().directory().join(format!("{GUNICORN}.sock"));
    wait_until("gunicorn serves", Duration::from_secs(20), || {
        Ok(path.exists() && !children_of(server.pid())?.is_empty())
    })?;
    let [worker] = children_of(server.pid())?[..] else { bail!("one worker") };
    let exchange = site.connect()?.get(&format!("/{GUNICORN}/segv"))?;
    let expected = ended(site, GUNICORN, &["upstream-crashed"]).says(&[&format!("gunicorn (pid {worker})"), "SIGSEGV"]);
    Ok(vec![Witness::new(exchange, expected)?])
}
