//! uWSGI, by its own protocol and by HTTP: harakiri, a crash, an application that ends it.

use anyhow::Result;

use super::{Fault, end_worker, ended, proxied, witness};
use crate::expect::Witness;
use crate::site::{Plan, Site};
use crate::upstream::Kind;

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "uwsgi-harakiri",
        "a request outlasts uWSGI's --harakiri; the master kills the worker",
        |plan| native(plan, "uwsgi-harakiri", "hang"),
        harakiri,
    ),
    Fault::new(
        "uwsgi-segfault",
        "a uWSGI worker crashes in an extension module",
        |plan| native(plan, "uwsgi-segfault", "segv"),
        |site| {
            let (exchange, pid) = end_worker(site, NATIVE, "/uwsgi-segfault/cart")?;
            let who = format!("uwsgi-core (pid {pid})");
            witness(exchange, ended(site, PORT, &["upstream-crashed"]).says(&[&who, "SIGSEGV"]))
        },
    ),
    Fault::new(
        "uwsgi-http-exit",
        "the application behind uWSGI (speaking HTTP) calls os._exit(7)",
        |plan| proxied(plan, "uwsgi-http-exit", HTTP, Kind::Uwsgi { http: true, harakiri: None }, HTTP_PORT, "exit/7"),
        |site| {
            let (exchange, pid) = end_worker(site, HTTP, "/uwsgi-http-exit/cart")?;
            let who = format!("uwsgi-core (pid {pid})");
            witness(exchange, ended(site, HTTP_PORT, &["upstream-exited"]).says(&[&who, "exit status 7"]))
        },
    ),
];

const NATIVE: &str = "uwsgi";
const PORT: u16 = 9241;
const HTTP: &str = "uwsgi-http";
const HTTP_PORT: u16 = 9242;

fn native(plan: &mut Plan, name: &str, path: &str) {
    plan.server(NATIVE, Kind::Uwsgi { http: false, harakiri: Some(1) }, PORT);
    let pass = format!("uwsgi_pass {};", plan.app(PORT));
    let parameters = ["uwsgi_param REQUEST_METHOD $request_method;", "uwsgi_param QUERY_STRING $query_string;"];
    let info =
        format!("uwsgi_param PATH_INFO /{path}; uwsgi_param SERVER_NAME $server_name; uwsgi_param SERVER_PORT 80;");
    plan.config.location(&format!("/{name}/"), &[&[pass.as_str(), &info], &parameters[..]].concat());
}

fn harakiri(site: &Site<'_>) -> Result<Vec<Witness>> {
    let master = site.upstream(NATIVE)?.pid();
    let (exchange, pid) = end_worker(site, NATIVE, "/uwsgi-harakiri/cart")?;
    let (who, by) = (format!("uwsgi-core (pid {pid})"), format!("from uwsgi-core (pid {master})"));
    witness(exchange, ended(site, PORT, &["upstream-killed"]).says(&[&who, &by, "--harakiri"]))
}
