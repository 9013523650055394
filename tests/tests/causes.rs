//! Every fault of the lab is explained: the right cause, confirmed, linked exactly, with the client's port, the upstream, the errno and
//! every attempt right, within a second, amid healthy traffic on the same workers; and nothing else is reported.

use anyhow::Result;
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::trial::Trial;

macro_rules! each_fault {
    ($($test:ident => $name:literal),* $(,)?) => {
        const NAMES: &[&str] = &[$($name),*];
        $(
            #[test]
            fn $test() -> Result<()> {
                Trial::WHOLE.hold(&Lab::new()?, &[Fault::named($name)?])?;
                Ok(())
            }
        )*
    };
}

each_fault! {
    upstream_refused => "upstream-refused",
    upstream_refused_v6 => "upstream-refused-v6",
    syn_timeout_nginx => "syn-timeout-nginx",
    syn_timeout_kernel => "syn-timeout-kernel",
    no_live_upstreams => "no-live-upstreams",
    masked_retry => "masked-retry",
    upstream_reset => "upstream-reset",
    upstream_reset_unread => "upstream-reset-unread",
    upstream_reset_late => "upstream-reset-late",
    premature_close => "premature-close",
    premature_close_half => "premature-close-half",
    premature_close_late => "premature-close-late",
    keepalive_race_post => "keepalive-race-post",
    keepalive_race_get => "keepalive-race-get",
    keepalive_race_reset => "keepalive-race-reset",
    keepalive_race_unread => "keepalive-race-unread",
    read_timeout => "read-timeout",
    header_too_big => "header-too-big",
    fd_exhausted_nginx => "fd-exhausted-nginx",
    fd_exhausted_upstream_node => "fd-exhausted-upstream-node",
    fd_exhausted_upstream_accept => "fd-exhausted-upstream-accept",
    harmless_answers => "harmless-answers",
    harmless_return => "harmless-return",
    harmless_abort => "harmless-abort",
}

#[test]
fn every_fault_has_its_test() {
    let all: Vec<&str> = Fault::all().iter().map(|fault| fault.name).collect();
    assert_eq!(all, NAMES);
}

/// Packets on the loopback are seen twice by some captures and the upstream's sockets are on nginx's own host. (About 15 s.)
#[test]
fn on_the_loopback_everything_is_explained_alike() -> Result<()> {
    let faults: Vec<Fault> = Fault::sharing().into_iter().filter(|fault| !fault.apart).collect();
    Trial::WHOLE.hold(&Lab::on_host_loopback()?, &faults)?;
    Ok(())
}
