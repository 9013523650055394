//! The README's table says what the probe says: every fault has its row, and cells taken from it are made again.

use anyhow::{Context, Result, ensure};
use probe_tests::fault::{Fault, Party};
use probe_tests::lab::Lab;
use probe_tests::table;
use probe_tests::view;

const README: &str = include_str!("../../README.md");

/// Faults of which every machine gives the same account, one of each kind.
const SPOTS: [&str; 4] = ["upstream-refused", "upstream-reset", "premature-close", "harmless-return"];

#[test]
fn every_fault_has_its_row() -> Result<()> {
    let rows = table::read(README)?;
    let written: Vec<&str> = rows.iter().map(|row| row.fault.as_str()).collect();
    let all: Vec<&str> = Fault::every().iter().map(|fault| fault.name).collect();
    assert_eq!(written, all, "run `cargo xtask lab-table`");
    for row in rows {
        assert_eq!(row.cells.len(), view::ALL.len(), "{}", row.fault);
    }
    Ok(())
}

/// Matched by time and content, the same failure is sometimes `likely` and sometimes only `possible`: what else happened in its
/// millisecond decides.
fn settled(cell: &str) -> String {
    cell.replace("likely, inferred", "possible, inferred")
}

#[test]
fn cells_are_what_the_probe_says() -> Result<()> {
    let rows = table::read(README)?;
    let faults: Vec<Fault> = SPOTS.iter().map(|name| Fault::named(name)).collect::<Result<Vec<_>>>()?;
    let party = Party { faults, lab: Lab::new };
    for (column, view) in view::ALL.iter().enumerate() {
        for (fault, _, cell) in table::look(&party, view)? {
            let row = rows.iter().find(|row| row.fault == fault.name).context("a row")?;
            let written = row.cells.get(column).context("a cell")?;
            ensure!(
                settled(written) == settled(&cell.to_string()),
                "{}, {}: {cell}, and in the README {written}; run `cargo xtask lab-table`",
                fault.name,
                view.name
            );
        }
    }
    Ok(())
}
