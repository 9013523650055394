//! 502s that are not the connection's fault, and what looks like one and is none.

use std::fmt::Write as _;

use anyhow::Result;

use super::Fault;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::site::{Plan, Site};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new("upstream-sent-502", "the upstream itself answers 502", passed_on, ask_passed_on),
    Fault::new(
        "upstream-sent-502-intercepted",
        "the upstream's 502 with a page of nginx's own (proxy_intercept_errors)",
        intercepted,
        ask_intercepted,
    ),
    Fault::new(
        "upstream-sent-502-last",
        "nine servers refuse, and the tenth answers 502 itself",
        last_of_many,
        ask_last_of_many,
    ),
    Fault::new(
        "masked-502",
        "the first server answers 502, and nginx goes on to the second: the client sees 200",
        masked,
        ask_masked,
    ),
    Fault::new(
        "masked-502-page",
        "the upstream's 502, in whose place an error_page answers with 200",
        replaced,
        ask_replaced,
    ),
    Fault::new(
        "masked-subrequest",
        "the upstream behind an SSI include closes: the client's page, begun with 200, lacks a piece",
        include,
        ask_include,
    ),
    Fault::new("cached-502-answer", "the upstream's 502, then the same from the cache", cached, ask_cached),
    Fault::new(
        "cached-502-failure",
        "a refused connection, then the same failure from the cache",
        cached_failure,
        ask_cached_failure,
    ),
    Fault::new(
        "configured-502",
        "return 502, error_page =502 and try_files =502 of the configuration",
        configured,
        ask_configured,
    ),
    Fault::new("configured-502-text", "return 502 with a text of its own", configured_text, ask_configured_text),
    Fault::new("masked-fallback", "an error_page hides nginx's 502: the client sees 200", fallback, ask_fallback),
    Fault::new(
        "upstream-sent-502-auth",
        "the server behind auth_request answers 502 itself: the client sees 500",
        auth_answers,
        ask_auth_answers,
    ),
    Fault::new("upstream-refused-auth", "the server behind auth_request refuses: the client sees 500", auth, ask_auth),
    Fault::new("harmless-limit", "limit_req answers 503, and the configuration returns 500", limited, ask_limited),
];

/// Those whose configuration lets answers be failures without a word before (caches, texts, answers inside of answers): beside one of them
/// every answer of nginx is looked at.
pub(super) const UNANNOUNCED: &[&str] = &[
    "upstream-sent-502-intercepted",
    "masked-subrequest",
    "cached-502-answer",
    "cached-502-failure",
    "configured-502-text",
    "upstream-sent-502-auth",
    "upstream-refused-auth",
];

const NOBODY: u16 = 9181;

/// A second server for `masked-502`.
const OTHER: &str = "127.0.0.1:9182";

const REFUSED: &str = "connect() failed (111: Connection refused) while connecting to upstream";

fn passed_on(plan: &mut Plan) {
    let pass = format!("proxy_pass http://{}/status/502/;", plan.app(9001));
    plan.config.location("/upstream-sent-502/", &[&pass]);
}

fn answered(site: &Site<'_>) -> Attempt {
    Attempt::fresh(site.app_address(), &[Outcome::Ok], &[None])
}

fn ask_passed_on(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/upstream-sent-502/1")?;
    let expected = Expectation::incident(502, &["upstream-sent-502"], vec![answered(site)])
        .says(&["HTTP/1.1 502"])
        .never(&["configured-502", "cached-502"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn intercepted(plan: &mut Plan) {
    let pass = format!("proxy_pass http://{}/status/502/;", plan.app(9001));
    let lines = [pass.as_str(), "proxy_intercept_errors on;", "error_page 502 /upstream-sent-502-intercepted-page;"];
    plan.config.location("/upstream-sent-502-intercepted/", &lines);
    plan.config.location("= /upstream-sent-502-intercepted-page", &["internal;", "return 502 \"sorry\\n\";"]);
}

fn ask_intercepted(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/upstream-sent-502-intercepted/1")?;
    let expected = Expectation::incident(502, &["upstream-sent-502"], vec![answered(site)])
        .says(&["HTTP/1.1 502"])
        .never(&["configured-502", "cached-502"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

/// More than nginx's list of attempts is told of (`probe_abi::nginx::ATTEMPTS`).
const NOBODIES: std::ops::Range<u16> = 9190..9199;

fn last_of_many(plan: &mut Plan) {
    let nobodies = NOBODIES.map(|port| format!("server {} max_fails=0;", plan.app(port)));
    let last = format!("server {} max_fails=0 backup;", plan.app(9001));
    let servers: Vec<String> = nobodies.chain([last]).collect();
    plan.config.upstream("many_502", &servers.iter().map(String::as_str).collect::<Vec<_>>());
    plan.config.location("/upstream-sent-502-last/", &["proxy_pass http://many_502/status/502/;"]);
}

fn ask_last_of_many(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/upstream-sent-502-last/1")?;
    let refused = |port| Attempt::fresh(site.app(port), &[Outcome::Refused], &[Some("ECONNREFUSED")]);
    let attempts = NOBODIES.map(refused).chain([answered(site)]).collect();
    let expected = Expectation::incident(502, &["upstream-sent-502"], attempts).never(&[
        "upstream-refused",
        "configured-502",
        "cached-502",
    ]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn masked(plan: &mut Plan) {
    // The other server is this nginx itself: what it is asked is what the first one is.
    let _ = writeln!(plan.config.http, "    server {{ listen {OTHER}; return 200 \"fine\\n\"; }}");
    let (first, second) = (format!("server {} max_fails=0;", plan.app(9001)), format!("server {OTHER} backup;"));
    plan.config.upstream("masked_502", &[&first, &second]);
    let lines = ["proxy_next_upstream error http_502;", "proxy_pass http://masked_502/status/502/;"];
    plan.config.location("/masked-502/", &lines);
}

fn ask_masked(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/masked-502/1")?;
    let next = Attempt { upstream: OTHER.to_owned(), ..answered(site) };
    let expected = Expectation::near_miss(200, &["upstream-sent-502"], vec![answered(site), next])
        .says(&["nginx went on without it"])
        .never(&["configured-502", "cached-502"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn replaced(plan: &mut Plan) {
    let pass = format!("proxy_pass http://{}/status/502/;", plan.app(9001));
    let lines = [pass.as_str(), "proxy_intercept_errors on;", "error_page 502 =200 /masked-502-page-page;"];
    plan.config.location("/masked-502-page/", &lines);
    plan.config.location("= /masked-502-page-page", &["internal;", "return 200 \"sorry\\n\";"]);
}

fn ask_replaced(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/masked-502-page/1")?;
    let expected = Expectation::near_miss(200, &["upstream-sent-502"], vec![answered(site)])
        .says(&["nginx went on without it"])
        .never(&["configured-502", "cached-502"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn include(plan: &mut Plan) {
    let page = "return 200 \"before <!--#include virtual='/masked-subrequest-piece' --> after\\n\";";
    plan.config.location("= /masked-subrequest", &["ssi on;", "default_type text/html;", page]);
    let pass = format!("proxy_pass http://{}/close/;", plan.app(9001));
    plan.config.location("= /masked-subrequest-piece", &[&pass]);
}

fn ask_include(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/masked-subrequest")?;
    let attempt = Attempt { outcome: &[Outcome::Closed], ..answered(site) };
    let expected = Expectation::near_miss(200, &["premature-close"], vec![attempt])
        .logged("upstream prematurely closed connection while reading response header from upstream");
    Ok(vec![Witness::new(exchange, expected)?])
}

fn zone(plan: &mut Plan, name: &str) {
    let directory = plan.directory.join(name);
    let path = directory.display();
    let _ = writeln!(plan.config.http, "    proxy_cache_path {path} keys_zone={name}:1m use_temp_path=off;");
}

fn cached(plan: &mut Plan) {
    zone(plan, "cached_answer");
    let pass = format!("proxy_pass http://{}/status/502/;", plan.app(9001));
    let lines = [pass.as_str(), "proxy_cache cached_answer;", "proxy_cache_valid 502 1m;"];
    plan.config.location("/cached-502-answer/", &lines);
}

fn ask_cached(site: &Site<'_>) -> Result<Vec<Witness>> {
    // Each run of the fault has a page of its own.
    let uri = unique("/cached-502-answer/");
    let first = site.connect()?.get(&uri)?;
    let sent = Expectation::incident(502, &["upstream-sent-502"], vec![answered(site)]).never(&["cached-502"]);
    std::thread::sleep(std::time::Duration::from_millis(300));
    let second = site.connect()?.get(&uri)?;
    Ok(vec![Witness::new(first, sent)?, from_cache(second)?])
}

fn unique(prefix: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn from_cache(exchange: crate::client::Exchange) -> Result<Witness> {
    let mut expected = Expectation::incident(502, &["cached-502"], Vec::new()).says(&["proxy_cache_valid"]).never(&[
        "upstream-sent-502",
        "configured-502",
        "upstream-refused",
    ]);
    expected.blames = Some(0);
    Witness::new(exchange, expected)
}

fn cached_failure(plan: &mut Plan) {
    zone(plan, "cached_failure");
    let pass = format!("proxy_pass http://{};", plan.app(NOBODY));
    let lines = [pass.as_str(), "proxy_cache cached_failure;", "proxy_cache_valid any 1m;"];
    plan.config.location("/cached-502-failure/", &lines);
}

fn ask_cached_failure(site: &Site<'_>) -> Result<Vec<Witness>> {
    let uri = unique("/cached-502-failure/");
    let first = site.connect()?.get(&uri)?;
    let attempt = Attempt::fresh(site.app(NOBODY), &[Outcome::Refused], &[Some("ECONNREFUSED")]);
    let refused = Expectation::incident(502, &["upstream-refused"], vec![attempt]).logged(REFUSED);
    std::thread::sleep(std::time::Duration::from_millis(300));
    let second = site.connect()?.get(&uri)?;
    Ok(vec![Witness::new(first, refused)?, from_cache(second)?])
}

fn configured(plan: &mut Plan) {
    plan.config.location("/configured-502/return", &["return 502;"]);
    plan.config.location("/configured-502/page", &["error_page 404 =502 /configured-502-page;", "return 404;"]);
    plan.config.location("= /configured-502-page", &["internal;", "return 200 \"page\\n\";"]);
    plan.config.location("/configured-502/files", &["root /nonexistent;", "try_files $uri =502;"]);
}

fn ask_configured(site: &Site<'_>) -> Result<Vec<Witness>> {
    let mut witnesses = Vec::new();
    for (path, directive) in
        [("return", "return 502"), ("page", "error_page 404 =502"), ("files", "try_files $uri =502")]
    {
        let exchange = site.connect()?.get(&format!("/configured-502/{path}"))?;
        let expected = Expectation::incident(502, &["configured-502"], Vec::new())
            .says(&[directive, &format!("/configured-502/{path}")])
            .never(&["cached-502", "upstream-sent-502"]);
        witnesses.push(Witness::new(exchange, expected)?);
    }
    Ok(witnesses)
}

fn configured_text(plan: &mut Plan) {
    plan.config.location("/configured-502-text/", &["return 502 \"closed for today\\n\";"]);
}

fn ask_configured_text(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/configured-502-text/1")?;
    let expected = Expectation::incident(502, &["configured-502"], Vec::new())
        .says(&["return 502", "/configured-502-text/"])
        .never(&["cached-502", "upstream-sent-502"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn fallback(plan: &mut Plan) {
    let pass = format!("proxy_pass http://{};", plan.app(NOBODY));
    plan.config.location("/masked-fallback/", &[&pass, "error_page 502 =200 @sorry;"]);
    plan.config.location("@sorry", &["return 200 \"one moment\\n\";"]);
}

fn ask_fallback(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/masked-fallback/1")?;
    let attempt = Attempt::fresh(site.app(NOBODY), &[Outcome::Refused], &[Some("ECONNREFUSED")]);
    let expected = Expectation::near_miss(200, &["upstream-refused"], vec![attempt])
        .logged(REFUSED)
        .never(&["configured-502", "cached-502"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn auth(plan: &mut Plan) {
    let (app, nobody) = (plan.app(9001), plan.app(NOBODY));
    let pass = format!("proxy_pass http://{app}/ok/;");
    plan.config.location("/upstream-refused-auth/", &["auth_request /upstream-refused-auth-check;", &pass]);
    let check = format!("proxy_pass http://{nobody};");
    plan.config.location("= /upstream-refused-auth-check", &["internal;", &check, "proxy_pass_request_body off;"]);
}

fn auth_answers(plan: &mut Plan) {
    let pass = format!("proxy_pass http://{}/ok/;", plan.app(9001));
    plan.config.location("/upstream-sent-502-auth/", &["auth_request /upstream-sent-502-auth-check;", &pass]);
    let ask = format!("proxy_pass http://{}/status/502;", plan.app(9001));
    plan.config.location("= /upstream-sent-502-auth-check", &["internal;", &ask, "proxy_pass_request_body off;"]);
}

fn ask_auth_answers(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/upstream-sent-502-auth/1")?;
    let attempt = Attempt::fresh(site.app(9001), &[Outcome::Ok], &[None]);
    let expected = Expectation::incident(500, &["upstream-sent-502"], vec![attempt])
        .logged("auth request unexpected status: 502")
        .says(&["auth_request"]);
    // Another status is told by nginx's functions alone, and so by no test that goes through all views.
    Ok(vec![Witness::new(exchange, expected)?])
}

fn ask_auth(site: &Site<'_>) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get("/upstream-refused-auth/1")?;
    let attempt = Attempt::fresh(site.app(NOBODY), &[Outcome::Refused], &[Some("ECONNREFUSED")]);
    let expected = Expectation::incident(500, &["upstream-refused"], vec![attempt]).logged(REFUSED);
    Ok(vec![Witness::new(exchange, expected)?])
}

fn limited(plan: &mut Plan) {
    plan.config.http.push_str("    limit_req_zone $binary_remote_addr zone=lab:1m rate=1r/m;\n");
    plan.config.location("/harmless-limit/limit", &["limit_req zone=lab;", "return 200;"]);
    let pass = format!("proxy_pass http://{}/ok/;", plan.app(9001));
    plan.config.location("/harmless-limit/pass", &["limit_req zone=lab;", &pass]);
    plan.config.location("/harmless-limit/return", &["return 500;"]);
}

fn ask_limited(site: &Site<'_>) -> Result<Vec<Witness>> {
    let mut client = site.connect()?;
    // The first takes what the limit allows.
    client.get("/harmless-limit/pass")?;
    let limited = site.connect()?.get("/harmless-limit/pass")?;
    let mut witnesses = vec![Witness::new(limited, Expectation::nothing(Some(503)).logged("limiting requests"))?];
    let exchange = site.connect()?.get("/harmless-limit/return")?;
    witnesses.push(Witness::new(exchange, Expectation::nothing(Some(500)))?);
    Ok(witnesses)
}
