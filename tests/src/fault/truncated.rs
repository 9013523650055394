//! Half a header, half a body, half a connection.

use anyhow::Result;

use super::Fault;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::site::{Plan, Site};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "upstream-reset-half",
        "the upstream resets in the middle of the header",
        half_reset,
        provoke_half_reset,
    ),
    Fault::new(
        "premature-close-shutdown",
        "the upstream ends its sending side only, and keeps the connection",
        shut,
        provoke_shut,
    ),
    Fault::new(
        "response-truncated",
        "the connection ends in the middle of the body: by FIN, by RST, in a chunk, by silence",
        truncated,
        cut,
    ),
];

fn location(plan: &mut Plan, name: &str, path: &str, more: &[&str]) {
    let pass = format!("proxy_pass http://{}{path};", plan.app(9001));
    plan.config.location(&format!("/{name}/"), &[&[pass.as_str()], more].concat());
}

fn half_reset(plan: &mut Plan) {
    location(plan, "upstream-reset-half", "/half-reset/", &[]);
}

fn provoke_half_reset(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/upstream-reset-half/1")?;
    let attempt = Attempt::fresh(site.app_address(), &[Outcome::Reset], &[Some("ECONNRESET")]);
    let expected = Expectation::incident(502, &["upstream-reset"], vec![attempt])
        .logged("recv() failed (104: Connection reset by peer) while reading response header from upstream")
        .never(&["premature-close", "network-reset", "response-truncated"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn shut(plan: &mut Plan) {
    location(plan, "premature-close-shutdown", "/shutdown/", &[]);
}

fn provoke_shut(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/premature-close-shutdown/1")?;
    let attempt = Attempt::fresh(site.app_address(), &[Outcome::Closed], &[None]);
    let expected = Expectation::incident(502, &["premature-close"], vec![attempt])
        .logged("upstream prematurely closed connection while reading response header from upstream")
        .never(&["upstream-reset", "upstream-exited"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn truncated(plan: &mut Plan) {
    location(plan, "response-truncated", "/", &["proxy_read_timeout 1s;", "proxy_http_version 1.1;"]);
}

fn cut(site: &Site<'_>) -> Result<Vec<Witness>> {
    let kinds: [(&str, Outcome, Option<&str>, &str); 4] = [
        ("cut", Outcome::Closed, None, "upstream prematurely closed connection while reading upstream"),
        (
            "cut-reset",
            Outcome::Reset,
            Some("ECONNRESET"),
            "failed (104: Connection reset by peer) while reading upstream",
        ),
        ("cut-chunk", Outcome::Closed, None, "upstream prematurely closed connection while reading upstream"),
        (
            "cut-hang",
            Outcome::TimeoutRead,
            Some("ETIMEDOUT"),
            "upstream timed out (110: Connection timed out) while reading upstream",
        ),
    ];
    let mut witnesses = Vec::new();
    for (path, _outcome, _errno, logged) in kinds {
        let exchange = site.connect()?.get(&format!("/response-truncated/{path}/1"))?;
        let attempt = Attempt::fresh(
            site.app_address(),
            &[Outcome::Closed, Outcome::Reset, Outcome::TimeoutRead],
            &[None, Some("ECONNRESET"), Some("ETIMEDOUT")],
        );
        let expected = Expectation::near_miss(200, &["response-truncated"], vec![attempt]).logged(logged).never(&[
            "premature-close",
            "upstream-reset",
            "read-timeout",
        ]);
        witnesses.push(Witness::new(exchange, expected)?);
    }
    Ok(witnesses)
}
