//! The compilers: the one of the workspace, and the one that builds the kernel object (the same, if it has `core` in source).

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    command,
    version::{self, Version},
    workspace::{Workspace, find_program, search_path},
};

/// Debian's way to a compiler with the sources of `core`; `probe-user/build.rs` knows it too.
pub(crate) const DEBIAN_PACKAGES: [&str; 2] = ["rustc-web", "rust-web-src"];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// A rustc.
pub(crate) struct Compiler {
    /// Its release.
    pub(crate) release: Version,
    /// The LLVM inside.
    pub(crate) llvm: Version,
    sysroot: PathBuf,
}

impl Compiler {
    /// The one the workspace is built with.
    pub(crate) fn of_workspace(workspace: &Workspace) -> Result<Self> {
        // Beside the cargo that runs us: `PATH` may name Debian's.
        let beside = env::var_os("CARGO").map(|cargo| Path::new(&cargo).with_file_name("rustc"));
        Self::ask(workspace, &beside.filter(|rustc| rustc.exists()).unwrap_or_else(|| "rustc".into()))
    }

    /// The one the kernel object is built with; by the same choice as `probe-user/build.rs`.
    pub(crate) fn for_kernel(workspace: &Workspace) -> Result<Self> {
        let ours = Self::of_workspace(workspace)?;
        if ours.has_core_source() || !Path::new(DEBIAN_RUSTC).exists() {
            return Ok(ours);
        }
        let debian = Self::ask(workspace, Path::new(DEBIAN_RUSTC))?;
        Ok(if debian.has_core_source() { debian } else { ours })
    }

    fn ask(workspace: &Workspace, program: &Path) -> Result<Self> {
        let rustc = |arguments: &[&str]| {
            let mut rustc = Command::new(program);
            command::read(rustc.args(arguments).current_dir(workspace.root()).env("PATH", search_path()))
        };
        let verbose = rustc(&["-vV"])?;
        let (release, llvm) = version::of_rustc(&verbose)
            .with_context(|| format!("`rustc -vV` names no release and no LLVM:\n{verbose}"))?;
        Ok(Self { release, llvm, sysroot: rustc(&["--print", "sysroot"])?.trim().into() })
    }

    #[cfg(test)]
    pub(crate) fn for_tests(release: Version, llvm: Version) -> Self {
        Self { release, llvm, sysroot: PathBuf::new() }
    }

    /// Whether `-Zbuild-std=core` can work.
    pub(crate) fn has_core_source(&self) -> bool {
        self.sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
    }

    /// The components besides rust-src that are not installed. `rust-toolchain.toml` tells why they are not listed there.
    pub(crate) fn missing_components(&self) -> Vec<&'static str> {
        let installed = |program: &str| self.sysroot.join("bin").join(program).exists() || find_elsewhere(program);
        [("rustfmt", "rustfmt"), ("clippy", "clippy-driver")]
            .into_iter()
            .filter(|(_, program)| !installed(program))
            .map(|(component, _)| component)
            .collect()
    }
}

/// A program that is not rustup's: rustup's proxies stand in cargo's directory whether or not the component is installed.
fn find_elsewhere(program: &str) -> bool {
    find_program(program).is_some_and(|path| !path.with_file_name("rustup").exists())
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rustc {} with LLVM {}", self.release, self.llvm)
    }
}

/// `rustup component add`, for the toolchain in use.
pub(crate) fn add_components(workspace: &Workspace, components: &[&str]) -> Result<()> {
    if components.is_empty() {
        return Ok(());
    }
    let Some(rustup) = find_program("rustup") else { bail!("rustup is not installed") };
    let mut add = Command::new(rustup);
    add.args(["component", "add"]).args(components).current_dir(workspace.root());
    command::read(&mut add)?;
    Ok(())
}
