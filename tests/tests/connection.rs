//! The family `connection`, fault by fault: processes that end, connections that break, fall silent or are cut on the way. Each with the
//! nearest thing that must not get its verdict.

use anyhow::Result;
use probe_tests::expect::{Expectation, Report};
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::line::Confidence;
use probe_tests::trial::Trial;
use probe_tests::view::View;

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

/// Where the upstream's kernel is not ours, every packet of the connection tells that the RST was not the upstream's: by its TTL, and
/// where that is forged as well, by its IP id. That makes it likely, and no more (about 3 s).
#[test]
fn a_forged_reset_from_nginxs_side() -> Result<()> {
    let likely = |expected: Expectation| {
        let reset = expected.report == Report::Incident;
        let kept = expected.attempts.first().is_some_and(|attempt| attempt.reused == Some(true));
        // A fresh connection has no count of ids yet: whether the upstream sends an ACK of its own before its answer is open.
        let mark = if kept { "IP id" } else { "TTL" };
        let expected = Expectation { confidence: &[Confidence::Likely], ..expected };
        if reset { expected.says(&[mark, "not like the upstream's own"]) } else { expected }
    };
    let view =
        View { name: "every packet, only nginx", arguments: &["--only-nginx", "--depth", "deep"], adapt: likely };
    let faults = ["network-reset-forged", "network-reset-same-ttl"].map(Fault::named);
    Trial(view).hold(&Lab::with_router()?, &faults.into_iter().collect::<Result<Vec<_>>>()?)?;
    Ok(())
}
