//! `cargo xtask cross`: everything compiles for the other architecture. It is not run there.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{command, setup, workspace::Workspace};

const ARCHITECTURE: &str = "aarch64";
const TARGET: &str = "aarch64-unknown-linux-gnu";

/// Checks both sides; whether they compile.
pub(crate) fn run(workspace: &Workspace) -> Result<bool> {
    setup::run(workspace)?;
    let mut rustup = Command::new("rustup");
    rustup.args(["--quiet", "target", "add", TARGET]).current_dir(workspace.root());
    command::read(rustup.env("PATH", crate::workspace::search_path()))
        .with_context(|| format!("adding the libraries for {TARGET}"))?;
    println!("cross: checking the program for {TARGET}");
    let mut program = workspace.cargo();
    program.args(["check", "--quiet", "--locked", "--workspace", "--all-targets", "--target", TARGET]);
    program.env("AYA_BUILD_SKIP", "1").env("PKG_CONFIG_ALLOW_CROSS", "1");
    // Nothing is linked, so what C there is in dependencies is not looked at: `true` compiles everything.
    for tool in ["CC", "AR", "CXX"] {
        program.env(format!("{tool}_{}", TARGET.replace('-', "_")), "true");
    }
    if !command::succeeds(&mut program)? {
        return Ok(false);
    }
    println!("cross: checking the kernel programs for {ARCHITECTURE}");
    let mut kernel = workspace.cargo();
    kernel
        .args(["check", "--quiet", "--locked", "--package=probe-ebpf", "--bin=probe", "--features=kernel"])
        .args(["--target=bpfel-unknown-none", "-Zbuild-std=core"])
        .arg("--target-dir")
        .arg(workspace.target_dir()?.join("cross"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{ARCHITECTURE}\""));
    command::succeeds(&mut kernel)
}
