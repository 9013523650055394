//! The one program of a virtual machine (`cargo xtask vm-test`); see `probe_tests::vm`. Called `upstream`, it is the lab's server.

use std::path::Path;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args();
    let called = arguments.next().unwrap_or_default();
    if Path::new(&called).file_name().is_some_and(|name| name == "upstream") {
        return probe_tests::server::serve(arguments);
    }
    probe_tests::vm::run(arguments.next().as_deref());
    Ok(())
}
