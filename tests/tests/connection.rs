//! The family `connection`, fault by fault: processes that end, connections that break, fall silent or are cut on the way. Each with the
//! nearest thing that must not get its verdict.

use anyhow::Result;
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::trial::Trial;

/// All that can share a site, in one run of the probe (about 20 s).
#[test]
fn between_neighbours() -> Result<()> {
    Trial::WHOLE.hold(&Lab::new()?, &Fault::of_connection())?;
    Ok(())
}

/// Those that need a router on the way (about 20 s).
#[test]
fn behind_a_router() -> Result<()> {
    Trial::WHOLE.hold(&Lab::with_router()?, &Fault::of_router())?;
    Ok(())
}
