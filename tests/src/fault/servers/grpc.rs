//! gRPC: a server that is killed or stops in the middle of a call, frames that refuse, a port that speaks no HTTP/2.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::{Fault, ended, witness};
use crate::client::Exchange;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::process::send;
use crate::site::{Plan, Site};
use crate::upstream::Kind;

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "grpc-killed",
        "a gRPC server is killed in the middle of a call",
        |plan| call(plan, "grpc-killed", Some(("grpc-killed", Kind::Grpc)), KILLED, "Hang"),
        killed,
    ),
    Fault::new(
        "grpc-stopped",
        "a gRPC server stops in the middle of a call: it says so in gRPC's own terms, under a status of 200",
        |plan| call(plan, "grpc-stopped", Some(("grpc-stopped", Kind::Grpc)), STOPPED, "Stop"),
        |site| witness(ask(site, "grpc-stopped")?, Expectation::nothing(Some(200))),
    ),
    Fault::new(
        "grpc-goaway",
        "an HTTP/2 server goes away (GOAWAY) with a call on a kept connection unserved",
        |plan| {
            plan.server("frames", Kind::Frames, FRAMES);
            let server = format!("server {};", plan.app(FRAMES));
            plan.config.upstream("frames", &[&server, "keepalive 4;"]);
            location(plan, "= /grpc-goaway/warm", "frames", "Echo");
            location(plan, "/grpc-goaway/", "frames", "Goaway");
        },
        goaway,
    ),
    Fault::new(
        "grpc-reset",
        "an HTTP/2 server ends the call's stream (RST_STREAM)",
        |plan| call(plan, "grpc-reset", Some(("frames", Kind::Frames)), FRAMES, "Reset"),
        |site| refused(site, "grpc-reset", FRAMES, &["RST_STREAM"]),
    ),
    Fault::new(
        "grpc-plain",
        "grpc_pass goes to a port that speaks HTTP/1.1",
        |plan| call(plan, "grpc-plain", None, 9001, "Echo"),
        |site| refused(site, "grpc-plain", 9001, &["speak HTTP/2"]),
    ),
];

const KILLED: u16 = 9251;
const STOPPED: u16 = 9252;
const FRAMES: u16 = 9253;

/// An empty message in gRPC's framing: not compressed, length 0.
const MESSAGE: &[u8] = &[0; 5];

/// A location that calls a method.
fn call(plan: &mut Plan, name: &str, server: Option<(&'static str, Kind)>, port: u16, method: &str) {
    if let Some((server, kind)) = server {
        plan.server(server, kind, port);
    }
    let address = plan.app(port).to_string();
    location(plan, &format!("/{name}/"), &address, method);
}

fn location(plan: &mut Plan, prefix: &str, to: &str, method: &str) {
    let rewrite = format!("rewrite ^ /lab.Shop/{method} break;");
    let pass = format!("grpc_pass grpc://{to};");
    let headers = "grpc_set_header Content-Type application/grpc; grpc_set_header TE trailers;";
    plan.config.location(prefix, &[&rewrite, &pass, headers]);
}

fn ask(site: &Site<'_>, name: &str) -> Result<Exchange> {
    site.connect()?.request("POST", &format!("/{name}/cart"), MESSAGE)
}

fn killed(site: &Site<'_>) -> Result<Vec<Witness>> {
    let server = site.upstream("grpc-killed")?;
    let mut client = site.connect()?;
    client.send("POST", "/grpc-killed/cart", MESSAGE)?;
    // Until the call has surely arrived.
    std::thread::sleep(Duration::from_millis(500));
    send(server.pid(), Signal::SIGKILL)?;
    let exchange = client.receive()?;
    let (who, by) = (format!("(pid {})", server.pid()), format!("SIGKILL from {} (pid ", own_name()?));
    witness(exchange, ended(site, KILLED, &["upstream-killed"]).says(&[&who, &by]))
}

/// The name of the calling thread, as the kernel tells it of whoever sends a signal.
fn own_name() -> Result<String> {
    let name = std::fs::read_to_string("/proc/thread-self/comm").context("read the thread's name")?;
    Ok(name.trim_end().to_owned())
}

fn goaway(site: &Site<'_>) -> Result<Vec<Witness>> {
    let mut client = site.connect()?;
    let warm = client.request("POST", "/grpc-goaway/warm", MESSAGE)?;
    ensure!(warm.status == Some(200), "the first call was answered {:?}", warm.status);
    let exchange = client.request("POST", "/grpc-goaway/cart", MESSAGE)?;
    let attempt = Attempt::reused(site.app(FRAMES), &[Outcome::BadResponse], &[None]);
    witness(exchange, broken(attempt, &["GOAWAY"]))
}

fn refused(site: &Site<'_>, name: &str, port: u16, says: &[&str]) -> Result<Vec<Witness>> {
    let exchange = ask(site, name)?;
    let attempt = Attempt::fresh(site.app(port), &[Outcome::BadResponse], &[None]);
    witness(exchange, broken(attempt, says))
}

/// What must be said of frames that nginx cannot serve the client with.
fn broken(attempt: Attempt, says: &[&str]) -> Expectation {
    Expectation::incident(502, &["grpc-error"], vec![attempt])
        .logged("upstream ")
        .never(&["premature-close", "upstream-reset", "invalid-response", "upstream-exited", "keepalive-race"])
        .says(says)
}
