//! At depth light every failure that the client sees is still reported with its exact link, and its verdict steps down where the healthy part
//! of a connection's life would have told more: never sideways, never sure of what was not looked at.

use anyhow::Result;
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::trial::Trial;

/// What a retry hides from the client is known from the final status, which is read once per response: not at light.
/// So is a 502 that the upstream sent itself, where the access log does not tell it from nginx's own.
const HIDDEN: [&str; 4] = ["masked-retry", "keepalive-race-get", "keepalive-race-reset", "upstream-sent-502-dial"];

#[test]
fn every_fault_that_can_share_a_site() -> Result<()> {
    let mut faults = Fault::sharing();
    let all = faults.len();
    faults.retain(|fault| !HIDDEN.contains(&fault.name));
    assert_eq!(faults.len() + HIDDEN.len(), all, "a hidden fault has another name now");
    Trial::LIGHT.hold(&Lab::new()?, &faults)?;
    Ok(())
}

#[test]
fn processes_and_connections() -> Result<()> {
    Trial::LIGHT.hold(&Lab::new()?, &Fault::of_connection())?;
    Ok(())
}
