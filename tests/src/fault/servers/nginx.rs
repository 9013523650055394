//! nginx behind nginx: the inner one is to blame, the outer one passes on what it says.

use anyhow::Result;

use super::{Fault, witness};
use crate::config::Config;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::site::{Plan, Site};
use crate::upstream::Kind;

/// The faults of this file.
pub(super) const FAULTS: &[Fault] =
    &[Fault::new("nginx-behind", "an nginx behind nginx finds nobody listening; its 502 is passed on", behind, ask)];

/// The inner nginx as an upstream of the outer one.
pub const INNER: &str = "inner-nginx";
const PORT: u16 = 9261;
/// Where nobody listens.
const NOBODY: u16 = 9262;

fn behind(plan: &mut Plan) {
    let mut inner = Config { port: PORT, workers: 1, ..Config::default() };
    inner.location("= /ok", &["return 200 \"ok\\n\";"]);
    inner.location("/nginx-behind/", &[&format!("proxy_pass http://{};", plan.app(NOBODY))]);
    plan.server(INNER, Kind::Nginx(Box::new(inner)), PORT);
    let pass = format!("proxy_pass http://{};", plan.app(PORT));
    plan.config.location("/nginx-behind/", &[&pass]);
}

fn ask(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/nginx-behind/cart")?;
    let attempt = Attempt::fresh(site.app(PORT), &[Outcome::Ok], &[None]);
    let expected = Expectation::incident(502, &["upstream-sent-502"], vec![attempt])
        .never(&["upstream-refused", "configured-502"]);
    witness(exchange, expected)
}
