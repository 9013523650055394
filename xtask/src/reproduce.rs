//! `cargo xtask reproduce`: the kernel object is the same, byte by byte, in whatever folder it is built.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{command, setup, workspace::Workspace};

/// Builds the object in two copies of the sources, whose paths are not even equally long. Whether they are the same.
pub(crate) fn run(workspace: &Workspace) -> Result<bool> {
    setup::run(workspace)?;
    let home = workspace.target_dir()?.join("reproduce");
    let script = home.join("build-script");
    fs::create_dir_all(&home).with_context(|| format!("making {}", home.display()))?;
    // The script that builds the object for the program depends on nothing: it is compiled and run here without its package.
    let mut compiler = workspace.rustc();
    compiler.args(["--edition=2024", "-o"]).arg(&script).arg(workspace.root().join("probe-user/build.rs"));
    command::run(&mut compiler)?;
    let objects = ["one", "another/and/deeper"]
        .into_iter()
        .map(|name| build(workspace, &script, &home.join(name)))
        .collect::<Result<Vec<_>>>()?;
    let same = objects.windows(2).all(|pair| pair[0] == pair[1]);
    let length = objects.first().map_or(0, Vec::len);
    println!(
        "reproduce: {} ({length} bytes)",
        if same { "the same bytes in both folders" } else { "the bytes differ" }
    );
    Ok(same)
}

/// The object as it comes out of a fresh copy of the sources.
fn build(workspace: &Workspace, script: &Path, home: &Path) -> Result<Vec<u8>> {
    if home.exists() {
        fs::remove_dir_all(home).with_context(|| format!("removing {}", home.display()))?;
    }
    let sources = home.join("sources");
    let out = home.join("out");
    for folder in [&sources, &out] {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    for name in tracked(workspace)? {
        let (from, to) = (workspace.root().join(&name), sources.join(&name));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        }
        fs::copy(&from, &to).with_context(|| format!("copying {}", from.display()))?;
    }
    let mut script = Command::new(script);
    script.current_dir(&sources).env("PATH", crate::workspace::search_path());
    script.env("CARGO", workspace.cargo().get_program()).env("RUSTC", workspace.rustc().get_program());
    script.env("CARGO_MANIFEST_DIR", sources.join("probe-user")).env("OUT_DIR", &out);
    script.env("CARGO_FEATURE_LIVE", "1").env_remove("AYA_BUILD_SKIP");
    script.env("CARGO_CFG_TARGET_ARCH", std::env::consts::ARCH).env("CARGO_CFG_TARGET_ENDIAN", "little");
    println!("reproduce: building in {}", sources.display());
    command::read(&mut script)?;
    let object = out.join("probe");
    fs::read(&object).with_context(|| format!("reading {}", object.display()))
}

/// The files that git knows and that are there.
fn tracked(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    let listed = command::read(git.current_dir(workspace.root()).args(["ls-files", "-z"]))?;
    let names = listed.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from);
    Ok(names.filter(|name| workspace.root().join(name).is_file()).collect())
}
