//! cargo-deny: licences, sources and duplicates of the dependencies, and known vulnerabilities where the database can be had.

use anyhow::Result;

use crate::{command, workspace::Workspace, workspace::find_program};

/// The release that `deny.toml` is written for.
const VERSION: &str = "0.20.2";

/// What to do when cargo-deny is not installed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Install it: somebody asked for the lint.
    IsInstalled,
    /// Leave the check out and say so: it takes minutes to compile, as long as all else that the tests do.
    IsSkipped,
}

/// How it went.
pub(crate) enum Outcome {
    /// Done; whether it passed.
    Checked(bool),
    /// Not done, for this reason.
    Skipped(String),
}

/// Checks the dependencies.
pub(crate) fn run(workspace: &Workspace, missing: Missing) -> Result<Outcome> {
    if find_program("cargo-deny").is_none() {
        if missing == Missing::IsSkipped {
            return Ok(Outcome::Skipped("cargo-deny is not installed (`cargo xtask lint` installs it)".to_owned()));
        }
        println!("lint: cargo-deny is not installed: cargo install cargo-deny {VERSION} (2 to 5 minutes, once)");
        let mut install = workspace.cargo();
        install
            .args(["install", "cargo-deny", "--locked", "--quiet", "--version", VERSION])
            .env_remove("CARGO_TARGET_DIR");
        command::run(&mut install)?;
    }
    let deny = |arguments: &[&str]| {
        let mut cargo = workspace.cargo();
        cargo.args(["deny", "--all-features", "--locked", "--log-level=error"]).args(arguments);
        cargo
    };
    // The licences of what other systems need are checked as well, which no build here has fetched.
    if let Err(failure) = command::read(workspace.cargo().args(["fetch", "--locked", "--quiet"])) {
        let why = last_line(&failure);
        return Ok(Outcome::Skipped(format!("the dependencies for other systems cannot be fetched ({why})")));
    }
    let offline =
        command::succeeds(&mut deny(&["--offline", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"]))?;
    // The one part that wants more than a crate registry. No network is no fault of the source.
    if let Err(failure) = command::read(&mut deny(&["fetch", "db"])) {
        let why = last_line(&failure);
        println!(
            "lint: known vulnerabilities were NOT checked, because the RustSec database could not be fetched ({why})"
        );
        return Ok(Outcome::Checked(offline));
    }
    let advisories = command::succeeds(&mut deny(&["--offline", "check", "advisories"]))?;
    Ok(Outcome::Checked(offline && advisories))
}

/// What it comes down to.
fn last_line(failure: &anyhow::Error) -> String {
    failure.to_string().lines().last().unwrap_or_default().to_owned()
}
