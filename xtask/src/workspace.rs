//! Where the workspace is, and how its cargo is called.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::command;

/// The workspace this program was built from.
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// Finds the workspace: cargo names the directory of this package when it runs us.
    pub(crate) fn find() -> Result<Self> {
        let package =
            env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let root = package.parent().context("the xtask package has no parent directory")?.to_path_buf();
        Ok(Self { root })
    }

    /// Its root directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where cargo leaves what it builds: `target`, unless `CARGO_TARGET_DIR` or a configuration file says otherwise.
    pub(crate) fn target_dir(&self) -> Result<PathBuf> {
        let metadata = command::read(self.cargo().args(["metadata", "--format-version=1", "--no-deps", "--locked"]))?;
        let metadata: serde_json::Value =
            serde_json::from_str(&metadata).context("reading what `cargo metadata` says")?;
        let directory = metadata.get("target_directory").and_then(serde_json::Value::as_str);
        Ok(directory.context("`cargo metadata` names no target directory")?.into())
    }

    /// A cargo that runs in the root, with cargo's own `bin` directory in `PATH`.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root).env("PATH", search_path());
        // Set by the cargo that runs us; a nested one would take them for its caller's wishes.
        for variable in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
            cargo.env_remove(variable);
        }
        cargo
    }

    /// The compiler that belongs to [`Workspace::cargo`].
    pub(crate) fn rustc(&self) -> Command {
        let beside = env::var_os("CARGO").map(|cargo| Path::new(&cargo).with_file_name("rustc"));
        let mut rustc = Command::new(beside.filter(|rustc| rustc.exists()).unwrap_or_else(|| "rustc".into()));
        rustc.current_dir(&self.root).env("PATH", search_path());
        rustc
    }
}

/// `PATH` with the places added where a program may be although the shell does not look there: cargo's own directory,
/// and the system directories that only root's shell knows.
pub(crate) fn search_path() -> OsString {
    let listed = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let all: Vec<PathBuf> =
        env::split_paths(&listed).chain(cargo_home().map(|home| home.join("bin"))).chain(system).collect();
    env::join_paths(all).unwrap_or(listed)
}

/// Cargo's home, where `cargo install` puts programs under `bin`.
pub(crate) fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| env::home_dir().map(|home| home.join(".cargo")))
}

/// The first file of this name in [`search_path`].
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&search_path()).map(|directory| directory.join(name)).find(|path| path.is_file())
}
