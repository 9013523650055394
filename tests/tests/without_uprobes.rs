//! Without uprobes the same faults still come out right, linked `strong` or `inferred`. One site and one run of the probe for all that
//! can share one (about 20 s).

use anyhow::Result;
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::trial::Trial;

#[test]
fn every_fault_that_can_share_a_site() -> Result<()> {
    Trial::WITHOUT_UPROBES.hold(&Lab::new()?, &Fault::sharing())?;
    Ok(())
}

/// What no upstream's connection is to blame for: the access log tells it, with `$upstream_status` and `$upstream_cache_status`. But for
/// the 502 that a retry or a page hid: no error line goes with it, and access lines of good answers are not looked into.
#[test]
fn answers_of_others() -> Result<()> {
    let hidden = |fault: &Fault| fault.name.starts_with("masked-502");
    let told = Fault::of_origin().into_iter().filter(|fault| !hidden(fault)).collect::<Vec<_>>();
    Trial::WITHOUT_UPROBES.hold(&Lab::new()?, &told)?;
    Ok(())
}

#[test]
fn every_fault_that_needs_a_site_of_its_own() -> Result<()> {
    let lonely: Vec<Fault> = Fault::all().into_iter().filter(|fault| fault.alone).collect();
    assert!(!lonely.is_empty());
    for fault in lonely {
        Trial::WITHOUT_UPROBES.hold(&Lab::new()?, &[fault])?;
    }
    Ok(())
}
