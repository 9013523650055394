//! Faults of real servers, each amid healthy traffic: the right cause, confirmed, linked exactly, with the process by its pid and what
//! ended it. The faults of one server share a site: what one leaves behind must not be blamed for the next.

use anyhow::{Result, ensure};
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::trial::Trial;

/// Those whose name begins so, which is the name of their server.
fn of(server: &str) -> Vec<Fault> {
    Fault::of_servers().into_iter().filter(|fault| fault.name.split('-').next() == Some(server)).collect()
}

macro_rules! each_server {
    ($($server:ident),* $(,)?) => {
        const SERVERS: &[&str] = &[$(stringify!($server)),*];
        $(
            #[test]
            fn $server() -> Result<()> {
                let faults = of(stringify!($server));
                ensure!(!faults.is_empty(), "no faults");
                Trial::WHOLE.hold(&Lab::new()?, &faults)?;
                Ok(())
            }
        )*
    };
}

each_server!(gunicorn, node, php, uvicorn, uwsgi, grpc, nginx);

#[test]
fn every_fault_belongs_to_a_server() {
    for fault in Fault::of_servers() {
        assert!(SERVERS.iter().any(|server| fault.name.split('-').next() == Some(server)), "{}", fault.name);
    }
}

/// All servers on one site, everything on the host's own loopback. (About 40 s.)
#[test]
fn on_the_loopback_all_together() -> Result<()> {
    Trial::WHOLE.hold(&Lab::on_host_loopback()?, &Fault::of_servers())?;
    Ok(())
}
