//! Seen from nginx's side alone, as where the upstream is another machine, every fault of this host is still reported with the same
//! request, attempts and link, and its verdict steps down: never sideways, never sure of what nginx's side cannot prove.

use anyhow::{Result, ensure};
use probe_tests::fault::{Fault, Party};
use probe_tests::lab::Lab;
use probe_tests::trial::Trial;

/// Those with a fault of this name, and whoever shares their nginx.
fn with(name: &str) -> Result<()> {
    let mut parties = Fault::parties();
    parties.retain(|party| party.faults.iter().any(|fault| fault.name == name));
    ensure!(!parties.is_empty(), "no fault {name}");
    hold(&parties)
}

fn hold(parties: &[Party]) -> Result<()> {
    for Party { faults, lab } in parties {
        Trial::ONLY_NGINX.hold(&lab()?, faults)?;
    }
    Ok(())
}

#[test]
fn the_first_causes() -> Result<()> {
    with("upstream-refused")
}

#[test]
fn processes_and_connections() -> Result<()> {
    hold(&[Party { faults: Fault::of_connection(), lab: Lab::new }])
}

#[test]
fn behind_a_router() -> Result<()> {
    hold(&[Party { faults: Fault::of_router(), lab: Lab::with_router }])
}

#[test]
fn answers() -> Result<()> {
    hold(&[Party { faults: Fault::of_protocol(), lab: Lab::new }])
}

#[test]
fn real_servers_and_those_alone() -> Result<()> {
    let rest = |party: &Party| {
        let first = party.faults.first().map(|fault| fault.name);
        let held = [Fault::sharing(), Fault::of_connection(), Fault::of_router(), Fault::of_protocol()];
        !held.iter().any(|faults| faults.first().map(|fault| fault.name) == first)
    };
    hold(&Fault::parties().into_iter().filter(rest).collect::<Vec<_>>())
}

/// Here the upstream's end is in nginx's own namespace.
#[test]
fn on_the_loopback() -> Result<()> {
    let faults: Vec<Fault> = Fault::sharing().into_iter().filter(|fault| !fault.apart).collect();
    Trial::ONLY_NGINX.hold(&Lab::on_host_loopback()?, &faults)?;
    Ok(())
}
