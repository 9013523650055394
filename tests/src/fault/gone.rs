//! Nobody listens any more, or somebody listens beside: what the refusal must tell about it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

use super::Fault;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::process::{send, wait_until};
use crate::site::{Plan, Site};
use crate::upstream::{Kind, Plan as UpstreamPlan};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "upstream-refused-killed",
        "somebody has killed the server",
        |plan| {
            plan.own_server("upstream-refused-killed", KILLED, None, None);
            pass(plan, "upstream-refused-killed", plan.app(KILLED));
        },
        |site| {
            let pid = site.upstream("upstream-refused-killed")?.pid();
            send(pid, Signal::SIGKILL)?;
            wait_until("the server is gone", Duration::from_secs(5), || Ok(crate::process::stat(pid)?.0 == 'Z'))?;
            // Long ago, as these things go: no event of the request's own time tells it any more.
            std::thread::sleep(Duration::from_millis(1_500));
            let says = [format!("upstream (pid {pid})"), "killed by SIGKILL".to_owned(), "SIGKILL from".to_owned()];
            refused(site, "upstream-refused-killed", site.app(KILLED), &says)
        },
    ),
    Fault::new(
        "upstream-refused-stopped-listening",
        "the server lives and has closed its listening socket; it listens on another port",
        |plan| {
            let listen = vec![plan.app(CLOSED), plan.app(CLOSED + 1)];
            let control = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, CLOSED + 2)));
            let kind = Kind::Own { control, idle: None };
            plan.upstreams.push(UpstreamPlan {
                name: "upstream-refused-stopped-listening",
                kind,
                listen,
                open_files: None,
            });
            pass(plan, "upstream-refused-stopped-listening", plan.app(CLOSED));
        },
        |site| {
            let server = site.upstream("upstream-refused-stopped-listening")?;
            server.command(site.lab(), &format!("/stop-listening/{CLOSED}"))?;
            let pid = server.pid();
            let says = [
                format!("upstream (pid {pid}), which listened there, had closed its listening socket"),
                format!("{} (upstream, pid {pid}) does listen", site.app(CLOSED + 1)),
            ];
            refused(site, "upstream-refused-stopped-listening", site.app(CLOSED), &says)
        },
    ),
    Fault {
        apart: true,
        ..Fault::new(
            "upstream-refused-loopback",
            "the server listens on the loopback of its host only",
            |plan| {
                let listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, LOOPBACK))];
                let kind = Kind::Own { control: None, idle: None };
                plan.upstreams.push(UpstreamPlan { name: "loopback", kind, listen, open_files: None });
                pass(plan, "upstream-refused-loopback", plan.app(LOOPBACK));
            },
            |site| {
                let says = [format!("Nearby 127.0.0.1:{LOOPBACK} (upstream, pid")];
                refused(site, "upstream-refused-loopback", site.app(LOOPBACK), &says)
            },
        )
    },
    Fault {
        apart: true,
        ..Fault::new(
            "upstream-refused-other-family",
            "the server listens on the other address family only",
            |plan| {
                let kind = Kind::Own { control: None, idle: None };
                let listen = vec![plan.app6(IPV6)];
                plan.upstreams.push(UpstreamPlan { name: "ipv6", kind, listen, open_files: None });
                pass(plan, "upstream-refused-other-family", plan.app(IPV6));
            },
            |site| {
                let there = SocketAddr::from((site.lab().addresses().app6, IPV6));
                refused(
                    site,
                    "upstream-refused-other-family",
                    site.app(IPV6),
                    &[format!("Nearby {there} (upstream, pid")],
                )
            },
        )
    },
];

const KILLED: u16 = 9280;
const CLOSED: u16 = 9283;
const LOOPBACK: u16 = 9286;
const IPV6: u16 = 9287;

fn pass(plan: &mut Plan, name: &str, upstream: SocketAddr) {
    plan.config.location(&format!("/{name}/"), &[&format!("proxy_pass http://{upstream};")]);
}

fn refused(site: &Site<'_>, name: &str, upstream: SocketAddr, says: &[String]) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get(&format!("/{name}/cart"))?;
    let attempt = Attempt::fresh(upstream, &[Outcome::Refused], &[Some("ECONNREFUSED")]);
    let says: Vec<&str> = says.iter().map(String::as_str).collect();
    let expected = Expectation::incident(502, &["upstream-refused"], vec![attempt])
        .logged("connect() failed (111: Connection refused) while connecting to upstream")
        .says(&says)
        .never(&["firewall-rejected", "upstream-killed", "upstream-exited"]);
    Ok(vec![Witness::new(exchange, expected)?])
}
