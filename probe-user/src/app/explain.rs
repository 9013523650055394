//! `probe502 explain`.

use std::io::{IsTerminal as _, Write as _};

use super::AppError;
use crate::{
    cli::plan::Output,
    diagnose::{self, cause::Cause},
    report::{explain, text::COLUMNS},
};

/// Narrower than this nothing can be read that has columns.
const LEAST_COLUMNS: usize = 60;

/// Prints the catalogue, or the page of one cause.
pub fn run(cause: Option<&str>, output: Output) -> Result<(), AppError> {
    let text = match cause {
        None if output.json => {
            let rows: Vec<_> = diagnose::catalogue().iter().map(|cause| row(cause)).collect();
            serde_json::Value::from(rows).to_string()
        }
        None => explain::list(diagnose::catalogue(), columns()),
        Some(id) => {
            let cause = diagnose::find(id).ok_or_else(|| {
                AppError::usage(anyhow::anyhow!("there is no cause {id:?}; `probe502 explain` lists them"))
            })?;
            if output.json { row(cause).to_string() } else { explain::page(cause, columns()) }
        }
    };
    // A reader that goes away early (head, less) has read enough.
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
    Ok(())
}

/// As wide as the terminal, as far as one reads well; what goes elsewhere is the same everywhere.
fn columns() -> usize {
    let stdout = std::io::stdout();
    let terminal = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok()).flatten();
    // A terminal that does not know its size says 0.
    let columns = terminal.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
    columns.map_or(COLUMNS, |columns| columns.clamp(LEAST_COLUMNS, COLUMNS))
}

fn row(cause: &Cause) -> serde_json::Value {
    let remedies: Vec<_> =
        cause.page.remedies.iter().map(|(who, what)| serde_json::json!({ "for": who, "do": what })).collect();
    serde_json::json!({
        "id": cause.id,
        "title": cause.title,
        "family": cause.family.name(),
        "statuses": cause.statuses,
        "happened": cause.page.happened,
        "proof": cause.page.proof,
        "refuted": cause.page.refuted,
        "remedies": remedies,
    })
}
