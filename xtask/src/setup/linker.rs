//! bpf-linker: which one is here, whether it can read what rustc writes, and building the right one.

use std::{fmt, path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::{compiler::Compiler, fit};
use crate::{
    command,
    version::{self, Version},
    workspace::{Workspace, find_program, search_path},
};

/// The release that is tested with this rustc and this aya.
pub(crate) const VERSION: &str = "0.13.0";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const INSTALL: [&str; 8] =
    ["install", "bpf-linker", "--version", VERSION, "--locked", "--no-default-features", "--features", "llvm-22"];

/// The bpf-linker that the build will find.
#[derive(Debug)]
pub(crate) struct Linker {
    /// Its release.
    pub(crate) release: Version,
    /// The LLVM it is linked with; `None` if that cannot be told (a static build).
    pub(crate) llvm: Option<Version>,
}

/// What there is to do about bpf-linker.
pub(crate) enum State {
    /// Nothing.
    Fits,
    /// It has to be built, for this reason.
    Wanted(String),
}

impl Linker {
    /// The one in `PATH` or in cargo's directory.
    pub(crate) fn find() -> Result<Self> {
        let path = find_program("bpf-linker").context("bpf-linker is not installed")?;
        let output = command::read(Command::new(&path).arg("--version"))?;
        let release = version::of_program(&output)
            .with_context(|| format!("`{} --version` says `{}`, which is no version", path.display(), output.trim()))?;
        Ok(Self { release, llvm: llvm_of(&path) })
    }

    /// Whether it is there and fits the compiler.
    pub(crate) fn state(compiler: &Compiler) -> Result<State> {
        let wanted = |why: &str| State::Wanted(format!("links the kernel programs; {why}"));
        if find_program("bpf-linker").is_none() {
            return Ok(wanted(&format!("{VERSION}, built on LLVM {}", compiler.llvm.major)));
        }
        // One that does not even start lacks its LLVM library.
        let Ok(linker) = Self::find() else { return Ok(wanted("the one that is here does not run")) };
        if linker.release != VERSION.parse().ok().context("the pinned version of bpf-linker is no version")? {
            return Ok(wanted(&format!("{} is here, {VERSION} is the one that is tested", linker.release)));
        }
        Ok(match fit::of_llvm(compiler, &linker) {
            Ok(()) => State::Fits,
            Err(misfit) => wanted(&format!("{misfit:#}")),
        })
    }
}

impl fmt::Display for Linker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.llvm {
            Some(llvm) => write!(f, "bpf-linker {} with LLVM {llvm}", self.release),
            None => write!(f, "bpf-linker {} with an LLVM that cannot be told", self.release),
        }
    }
}

/// The library's name has no patch level; the llvm-config beside it knows.
fn llvm_of(program: &Path) -> Option<Version> {
    let loaded = version::of_linked_llvm(&command::read(Command::new("ldd").arg(program)).ok()?)?;
    let config =
        loaded.path.as_deref().and_then(|library| Some(Path::new(library).parent()?.parent()?.join("bin/llvm-config")));
    let exact =
        config.and_then(|config| command::read(Command::new(config).arg("--version")).ok()?.trim().parse().ok());
    exact.or(loaded.version)
}

/// Builds it into cargo's directory.
pub(crate) fn install(workspace: &Workspace) -> Result<()> {
    let path = std::env::join_paths(
        std::iter::once(Path::new(LLVM_PREFIX).join("bin")).chain(std::env::split_paths(&search_path())),
    )?;
    command::run(
        workspace
            .cargo()
            .args(INSTALL)
            .args(["--force", "--quiet"])
            .env("LLVM_PREFIX", LLVM_PREFIX)
            .env("PATH", path)
            // Its objects are of no use to us, and our flags none to it.
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("RUSTFLAGS"),
    )
}

/// The same as one would type it.
pub(crate) fn by_hand() -> String {
    format!("LLVM_PREFIX={LLVM_PREFIX} PATH={LLVM_PREFIX}/bin:$PATH cargo {}", INSTALL.join(" "))
}
