//! nginx knows the upstream by an address that its host translates (DNAT), as a Service of Kubernetes or a published port of a container is.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::Fault;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::site::{Plan, Site};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[Fault {
    apart: true,
    ..Fault::new(
        "upstream-crashed-translated",
        "the upstream's worker crashes behind an address that nginx's host translates, a Service's, after a request that went well",
        workers,
        crash,
    )
}];

const PORT: u16 = 9119;
/// The Service's: a documentation address, which nobody has.
const SERVICE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 80)), 80);

/// The probe is told of a connection after 15 ms, and learns where it leads within some tens; a busy host takes longer.
const LEARNT: Duration = Duration::from_secs(1);

fn workers(plan: &mut Plan) {
    const NAME: &str = "upstream-crashed-translated";
    let address = plan.app(PORT);
    plan.scripted(NAME, vec![address], vec![address.to_string(), "--workers".to_owned(), "1".to_owned()]);
    let pass = format!("proxy_pass http://{SERVICE}/;");
    plan.config.location(&format!("/{NAME}/"), &[&pass]);
}

fn crash(site: &Site<'_>) -> Result<Vec<Witness>> {
    let (server, proxy) = (site.app(PORT), site.lab().proxy());
    // Without a route there would be no packet to translate.
    proxy.ip_batch(&format!("route add {} via {}\n", SERVICE.ip(), server.ip()))?;
    proxy.nft(&format!(
        "table ip service {{ chain c {{ type nat hook output priority -100; ip daddr {} tcp dport {} dnat to {server}\n}}\n}}\n",
        SERVICE.ip(),
        SERVICE.port()
    ))?;
    // What nobody has connected to yet leads nowhere: a connection that goes well shows where, and leaves nothing at nginx.
    let healthy = site.connect()?.get("/upstream-crashed-translated/ok")?;
    ensure!(healthy.status == Some(200), "the Service does not work: {healthy:?}");
    sleep(LEARNT);
    let mut witnesses = Vec::new();
    for _ in 0..2 {
        let exchange = site.connect()?.get("/upstream-crashed-translated/crash/11")?;
        let attempt = Attempt::fresh(SERVICE, &[Outcome::Reset, Outcome::Closed], &[None, Some("ECONNRESET")]);
        let expected = Expectation::incident(502, &["upstream-crashed"], vec![attempt])
            .says(&["SIGSEGV", "upstream (pid ", &format!("led the connection to {server}")])
            .never(&["premature-close", "upstream-reset", "upstream-killed", "upstream-exited", "network-reset"]);
        witnesses.push(Witness::new(exchange, expected)?);
        sleep(Duration::from_millis(500));
    }
    Ok(witnesses)
}
