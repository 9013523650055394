//! `cargo xtask build`, `cargo xtask demo` and `cargo xtask lab-table`.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::{command, setup, workspace::Workspace};

/// Builds `probe502` in release and returns its path.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    setup::run(workspace)?;
    release(workspace, &["--package=probe-user", "--bin=probe502"])?;
    let path = workspace.target_dir()?.join("release/probe502");
    println!("build: {}", path.display());
    Ok(path)
}

/// Builds the program and the lab, and lets the lab show one failure after another. Whether all of it went well.
pub(crate) fn demo(workspace: &Workspace) -> Result<bool> {
    setup::run(workspace)?;
    println!("demo: building probe502 and the lab (some minutes the first time)");
    // In one go: both processors stay busy, and what the two have in common is built once.
    release(workspace, &["--package=probe-user", "--package=probe-tests", "--bins"])?;
    let built = workspace.target_dir()?.join("release");
    let mut demo = Command::new(built.join("demo"));
    demo.current_dir(workspace.root()).env("PATH", crate::workspace::search_path());
    command::succeeds(demo.env("PROBE502_BIN", built.join("probe502")))
}

/// Builds as for the tests and lets the lab write the README's table. Whether it went well.
pub(crate) fn lab_table(workspace: &Workspace, filter: Option<&str>) -> Result<bool> {
    setup::run(workspace)?;
    command::run(workspace.cargo().args(["build", "--locked", "--workspace", "--bins"]))?;
    let built = workspace.target_dir()?.join("debug");
    let mut table = Command::new(built.join("table"));
    table.arg(workspace.root().join("README.md")).args(filter).env("PATH", crate::workspace::search_path());
    command::succeeds(table.env("PROBE502_BIN", built.join("probe502")))
}

/// Builds the program and the lab, and measures what watching costs. Whether it could be measured.
pub(crate) fn bench(workspace: &Workspace, arguments: &[String]) -> Result<bool> {
    setup::run(workspace)?;
    release(workspace, &["--package=probe-user", "--package=probe-tests", "--bins"])?;
    let built = workspace.target_dir()?.join("release");
    let mut bench = Command::new(built.join("bench"));
    bench.args(arguments).current_dir(workspace.root()).env("PATH", crate::workspace::search_path());
    command::succeeds(bench.env("PROBE502_BIN", built.join("probe502")))
}

/// Builds the program and the lab's program for virtual machines; the directory they are in. Emulated processors are too slow for what
/// is not optimised at all; a release would build every dependency anew.
pub(crate) fn for_machines(workspace: &Workspace) -> Result<PathBuf> {
    println!("vm-test: building probe502 and the lab");
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--locked", "--workspace", "--bins", "--config=profile.dev.opt-level=1"]);
    command::run(&mut cargo)?;
    Ok(workspace.target_dir()?.join("debug"))
}

fn release(workspace: &Workspace, what: &[&str]) -> Result<()> {
    command::run(workspace.cargo().args(["build", "--locked", "--release"]).args(what))
}
