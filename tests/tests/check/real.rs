//! Configurations as people run them: all of them are understood, and none is found faulty by itself.

use anyhow::{Context, Result, ensure};
use probe502::check::{Weight, judge, plan, seen::Seen};
use probe502::decode::config::layout;

use crate::scene::Checked;

/// Name, text, and how many passes and endpoints are in it.
const CONFIGURATIONS: [(&str, &str, usize, usize); 4] = [
    ("container-default", include_str!("configurations/container-default.conf"), 0, 0),
    ("php-application", include_str!("configurations/php-application.conf"), 1, 1),
    ("websocket-and-grpc", include_str!("configurations/websocket-and-grpc.conf"), 9, 14),
    ("lua-gateway", include_str!("configurations/lua-gateway.conf"), 1, 0),
];

#[test]
fn real_configurations_have_no_fault_of_their_own() -> Result<()> {
    for (name, text, passes, endpoints) in CONFIGURATIONS {
        let layout = layout::read(text).context(name)?;
        ensure!(layout.passes.len() == passes, "{name}: {:#?}", layout.passes);
        let planned = plan::endpoints(&layout, Some("1.22.1"));
        ensure!(planned.len() == endpoints, "{name}: {} endpoints", planned.len());
        let seen = Seen { layout, endpoints: planned, ..Seen::default() };
        let faults: Vec<_> = judge(&seen).into_iter().filter(|finding| finding.weight == Weight::Fault).collect();
        ensure!(faults.is_empty(), "{name}: {faults:#?}");
    }
    Ok(())
}

/// What Debian's package ships: no upstream, and nothing to mind.
#[test]
fn the_installed_configuration_is_read_with_its_includes() -> Result<()> {
    let checked = Checked::run(&["check", "--json", "--conf", "/etc/nginx/nginx.conf"])?;
    checked.expect(&[])
}
