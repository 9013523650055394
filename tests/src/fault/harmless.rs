//! What looks like a gateway failure and is none: nothing may be reported.

use std::time::Duration;

use anyhow::Result;

use super::Fault;
use crate::expect::{Expectation, Witness};
use crate::site::{Plan, Site};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new("harmless-answers", "the upstream itself answers 404, 500, 503 and 504", answers, ask),
    Fault::new("harmless-return", "the configuration returns 503", returns, ask_return),
    Fault::new("harmless-abort", "the client leaves before the answer: 499", slow, leave),
];

const STATUSES: [u16; 4] = [404, 500, 503, 504];

fn answers(plan: &mut Plan) {
    let app = plan.app(9001);
    plan.keepalive_location("harmless-answers", "/harmless-answers/", app, "/status/");
}

fn ask(site: &Site<'_>) -> Result<Vec<Witness>> {
    let mut client = site.connect()?;
    let mut witnesses = Vec::new();
    for status in STATUSES {
        let exchange = client.get(&format!("/harmless-answers/{status}"))?;
        witnesses.push(Witness::new(exchange, Expectation::nothing(Some(status)))?);
    }
    Ok(witnesses)
}

fn returns(plan: &mut Plan) {
    plan.config.location("/harmless-return/", &["return 503;"]);
}

fn ask_return(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/harmless-return/closed-for-today")?;
    Ok(vec![Witness::new(exchange, Expectation::nothing(Some(503)))?])
}

fn slow(plan: &mut Plan) {
    let pass = format!("proxy_pass http://{}/hang/;", plan.app(9001));
    plan.config.location("/harmless-abort/", &[&pass]);
}

fn leave(site: &Site<'_>) -> Result<Vec<Witness>> {
    let mut client = site.connect()?;
    client.send("GET", "/harmless-abort/cart", b"")?;
    std::thread::sleep(Duration::from_millis(200));
    Ok(vec![Witness::new(client.abandon()?, Expectation::nothing(None))?])
}
