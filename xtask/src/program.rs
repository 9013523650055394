//! `cargo xtask build` and `cargo xtask demo`.

use std::path::PathBuf;

use anyhow::Result;

use crate::{command, setup, workspace::Workspace};

/// Builds `probe502` in release and returns its path.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    setup::run(workspace)?;
    command::run(workspace.cargo().args([
        "build",
        "--locked",
        "--release",
        "--package",
        "probe-user",
        "--bin",
        "probe502",
    ]))?;
    let path = workspace.target_dir()?.join("release/probe502");
    println!("build: {}", path.display());
    Ok(path)
}

/// Builds the program and the lab, and lets the lab show one failure after another. Whether all of it went well.
pub(crate) fn demo(workspace: &Workspace) -> Result<bool> {
    let probe = build(workspace)?;
    let mut demo = workspace.cargo();
    demo.args(["run", "--quiet", "--locked", "--release", "--package", "probe-tests", "--bin", "demo"]);
    command::succeeds(demo.env("PROBE502_BIN", probe))
}
