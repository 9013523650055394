//! Seen from nginx's side alone, as where the upstream is another machine, every fault of this host is still reported with the same
//! request, attempts and link, and its verdict steps down: never sideways, never sure of what nginx's side cannot prove.

use anyhow::Result;
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::trial::Trial;

#[test]
fn every_fault_that_can_share_a_site() -> Result<()> {
    Trial::ONLY_NGINX.hold(&Lab::new()?, &Fault::sharing())?;
    Ok(())
}

#[test]
fn every_fault_that_needs_a_site_of_its_own() -> Result<()> {
    let lonely: Vec<Fault> = Fault::all().into_iter().filter(|fault| fault.alone).collect();
    assert!(!lonely.is_empty());
    for fault in lonely {
        Trial::ONLY_NGINX.hold(&Lab::new()?, &[fault])?;
    }
    Ok(())
}

/// Here the upstream's end is in nginx's own namespace.
#[test]
fn on_the_loopback() -> Result<()> {
    let faults: Vec<Fault> = Fault::sharing().into_iter().filter(|fault| !fault.apart).collect();
    Trial::ONLY_NGINX.hold(&Lab::on_host_loopback()?, &faults)?;
    Ok(())
}
