//! Requests that go on to another location with an upstream, and fail there.

use anyhow::Result;

use super::Fault;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::site::{Plan, Site};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "redirected-error-page",
        "nobody listens, error_page goes on to another upstream, and that one closes too",
        error_page,
        ask_error_page,
    ),
    Fault::new(
        "redirected-accel",
        "the upstream answers X-Accel-Redirect, and behind that location nobody listens",
        accel,
        ask_accel,
    ),
];

const NOBODY: u16 = 9183;

fn error_page(plan: &mut Plan) {
    let (nobody, app) = (plan.app(NOBODY), plan.app(9001));
    let pass = format!("proxy_pass http://{nobody};");
    plan.config.location("/redirected-error-page/", &[&pass, "error_page 502 = @redirected_error_page;"]);
    let pass = format!("proxy_pass http://{app};");
    plan.config.location("@redirected_error_page", &["rewrite ^ /close/0 break;", &pass]);
}

fn ask_error_page(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/redirected-error-page/1")?;
    let attempts = vec![
        Attempt::fresh(site.app(NOBODY), &[Outcome::Refused], &[Some("ECONNREFUSED")]),
        Attempt::fresh(site.app_address(), &[Outcome::Closed], &[None]),
    ];
    let expected = Expectation::incident(502, &["premature-close"], attempts)
        .logged("upstream prematurely closed connection while reading response header from upstream")
        .never(&["upstream-refused", "no-live-upstreams"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn accel(plan: &mut Plan) {
    let (nobody, app) = (plan.app(NOBODY), plan.app(9001));
    let pass = format!("proxy_pass http://{app}/accel/;");
    plan.config.location("/redirected-accel/", &[&pass]);
    let pass = format!("proxy_pass http://{nobody};");
    plan.config.location("/redirected-accel-hidden/", &["internal;", &pass]);
}

fn ask_accel(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/redirected-accel/1")?;
    let attempts = vec![
        Attempt::fresh(site.app_address(), &[Outcome::Ok], &[None]),
        Attempt::fresh(site.app(NOBODY), &[Outcome::Refused], &[Some("ECONNREFUSED")]),
    ];
    let expected = Expectation::incident(502, &["upstream-refused"], attempts)
        .logged("connect() failed (111: Connection refused) while connecting to upstream")
        .never(&["upstream-sent-502", "cached-502"]);
    Ok(vec![Witness::new(exchange, expected)?])
}
