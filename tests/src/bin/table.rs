//! Runs every fault of the lab in every view and writes the table into the README given as its argument; with a second argument only the
//! faults whose name has it in it, and those that share their nginx.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use probe_tests::table;

fn main() -> Result<()> {
    let mut arguments = std::env::args();
    let called = arguments.next().unwrap_or_default();
    if Path::new(&called).file_name().is_some_and(|name| name == "upstream") {
        // As the demonstration, it is its own upstream.
        return probe_tests::server::serve(arguments);
    }
    let path = PathBuf::from(arguments.next().context("which README? Run `cargo xtask lab-table`")?);
    let mut say = |text: &str| {
        // What cannot be told changes nothing about the table.
        let _ = writeln!(std::io::stderr(), "table: {text}");
    };
    let filter = arguments.next();
    let readme = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let table = table::render(&table::make(&readme, filter.as_deref(), &mut say)?);
    fs::write(&path, table::replace(&readme, &table)?).with_context(|| format!("write {}", path.display()))
}
