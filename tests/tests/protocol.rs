//! The families `protocol` and `origin`: answers nginx cannot take, and 502s that no connection is to blame for.

use anyhow::Result;
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::trial::Trial;

/// All of them in one run of the probe (about 15 s).
#[test]
fn answers_that_nginx_cannot_take_and_those_it_made_itself() -> Result<()> {
    Trial::WHOLE.hold(&Lab::new()?, &Fault::of_protocol())?;
    Ok(())
}
