//! Every fault of the lab is explained: the right cause, confirmed, linked exactly, with the client's port, the upstream, the errno and
//! every attempt right, within a second, amid healthy traffic on the same workers; and nothing else is reported.

use anyhow::Result;
use probe_tests::each_fault;
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::trial::Trial;

fn prove(name: &str) -> Result<()> {
    Trial::WHOLE.hold(&Lab::new()?, &[Fault::named(name)?])?;
    Ok(())
}

each_fault!(prove);

/// Packets on the loopback are seen twice by some captures and the upstream's sockets are on nginx's own host. (About 15 s.)
#[test]
fn on_the_loopback_everything_is_explained_alike() -> Result<()> {
    let faults: Vec<Fault> = Fault::sharing().into_iter().filter(|fault| !fault.apart).collect();
    Trial::WHOLE.hold(&Lab::on_host_loopback()?, &faults)?;
    Ok(())
}
