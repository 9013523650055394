//! uvicorn: its idle timeout, and one process that crashes with everything in it.

use super::{Fault, HISTORY, cross_fin, ended, proxied, race, witness};
use crate::site::Plan;
use crate::upstream::Kind;

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "uvicorn-race-post",
        "uvicorn closes an idle connection (--timeout-keep-alive) while a POST is on its way",
        |plan: &mut Plan| {
            plan.server(KEPT, Kind::Uvicorn { keep_alive: 1 }, PORT);
            let server = plan.app(PORT);
            plan.keepalive_location("uvicorn-race-post", "/uvicorn-race-post/", server, "/ok/");
        },
        |site| {
            let exchange = cross_fin(site, "uvicorn-race-post", site.upstream(KEPT)?, "POST")?;
            witness(exchange, race(site, PORT).says(&[HISTORY, "idle timeout of 1 s", "uvicorn: "]))
        },
    ),
    Fault::new(
        "uvicorn-segfault",
        "uvicorn crashes in an extension module",
        |plan| proxied(plan, "uvicorn-segfault", "uvicorn-crasher", Kind::Uvicorn { keep_alive: 5 }, CRASHER, "segv"),
        |site| {
            let pid = site.upstream("uvicorn-crasher")?.pid();
            let exchange = site.connect()?.get("/uvicorn-segfault/cart")?;
            let who = format!("uvicorn (pid {pid})");
            witness(exchange, ended(site, CRASHER, &["upstream-crashed"]).says(&[&who, "SIGSEGV"]))
        },
    ),
];

const KEPT: &str = "uvicorn-kept";
const PORT: u16 = 9221;
const CRASHER: u16 = 9222;
