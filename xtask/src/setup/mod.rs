//! `cargo xtask setup`: what building and testing need, installed once, and checked to fit together.
//!
//! Everything is looked at before anything is installed, so that a machine where setup may not install is left as it was.

mod compiler;
mod debian;
mod fit;
mod linker;
mod needs;
mod suricata;

use std::{error::Error, fmt, fs};

use anyhow::Result;

use self::{
    compiler::Compiler,
    linker::{Linker, State},
    needs::Need,
};
pub(crate) use self::{debian::Host, suricata::Suricata};
use crate::workspace::Workspace;

/// The machine does not allow it: the program ends with status 3.
#[derive(Debug)]
pub(crate) struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Refusal {}

/// What the machine lacks.
#[derive(Default)]
struct Missing {
    packages: Vec<&'static Need>,
    components: Vec<&'static str>,
    core_source: bool,
    linker: Option<String>,
}

impl Missing {
    fn is_empty(&self) -> bool {
        self.packages.is_empty() && self.components.is_empty() && !self.core_source && self.linker.is_none()
    }

    /// One line for each thing: what and why.
    fn lines(&self) -> Vec<String> {
        let mut all: Vec<(&str, &str)> = self.packages.iter().map(|need| (need.package, need.why)).collect();
        all.extend(self.components.iter().map(|name| (*name, "rustup component; `cargo xtask lint` runs it")));
        if self.core_source {
            all.push(("rust-src", "rustup component; `core` is compiled for BPF, no toolchain ships it compiled"));
        }
        if let Some(why) = &self.linker {
            all.push(("bpf-linker", why));
        }
        all.into_iter().map(|(what, why)| format!("  {what:<20} {why}")).collect()
    }

    /// The commands that install it, for those who have to do it by hand.
    fn commands(&self) -> Vec<String> {
        let mut commands = Vec::new();
        if !self.packages.is_empty() {
            let names: Vec<&str> = self.packages.iter().map(|need| need.package).collect();
            commands.push(format!("  (Debian's names) apt-get install --no-install-recommends {}", names.join(" ")));
        }
        let components = self.components.iter().copied().chain(self.core_source.then_some("rust-src"));
        let components: Vec<&str> = components.collect();
        if !components.is_empty() {
            commands.push(format!("  rustup component add {}", components.join(" ")));
        }
        if self.linker.is_some() {
            commands.push(format!("  {}", linker::by_hand()));
        }
        commands
    }
}

/// Installs what is missing, says so before, and checks that the versions fit.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    fit::of_lock_file(&fs::read_to_string(workspace.root().join("Cargo.lock"))?)?;
    let missing = look(workspace)?;
    if !missing.is_empty() {
        install(workspace, &missing)?;
    }
    let compiler = Compiler::for_kernel(workspace)?;
    let linker = Linker::find()?;
    fit::of_llvm(&compiler, &linker)?;
    let done = if missing.is_empty() { "nothing is missing" } else { "done" };
    println!("setup: {done} ({compiler}; {linker}; {})", fit::AYA_TEXT);
    Ok(())
}

/// Everything [`run`] provides, and what virtual machines need beside it.
pub(crate) fn for_machines(workspace: &Workspace) -> Result<()> {
    with(workspace, needs::FOR_MACHINES)
}

/// Everything [`run`] provides, and what benches compare with.
pub(crate) fn for_benches(workspace: &Workspace) -> Result<()> {
    with(workspace, needs::FOR_BENCHES)?;
    suricata::install(workspace)
}

fn with(workspace: &Workspace, needs: &'static [Need]) -> Result<()> {
    run(workspace)?;
    let packages: Vec<&Need> = needs.iter().filter(|need| !need.is_met()).collect();
    let missing = Missing { packages, ..Missing::default() };
    if missing.is_empty() { Ok(()) } else { install(workspace, &missing) }
}

/// What can be done with the kernel side besides building it.
pub(crate) enum Kernel {
    /// The toolchain with clippy has the sources of `core`.
    Lintable,
    /// Only Debian's compiler has them, and it comes without clippy.
    OnlyBuildable,
}

/// Whether clippy can look at the kernel side.
pub(crate) fn kernel_side(workspace: &Workspace) -> Result<Kernel> {
    let lintable = Compiler::of_workspace(workspace)?.has_core_source();
    Ok(if lintable { Kernel::Lintable } else { Kernel::OnlyBuildable })
}

fn look(workspace: &Workspace) -> Result<Missing> {
    let compiler = Compiler::for_kernel(workspace)?;
    fit::of_compiler(&compiler)?;
    let linker = match Linker::state(&compiler)? {
        State::Fits => None,
        State::Wanted(why) => Some(why),
    };
    Ok(Missing {
        packages: needs::missing(linker.is_some()),
        components: Compiler::of_workspace(workspace)?.missing_components(),
        core_source: !compiler.has_core_source(),
        linker,
    })
}

fn install(workspace: &Workspace, missing: &Missing) -> Result<()> {
    println!("setup: this machine lacks\n{}", missing.lines().join("\n"));
    let host = Host::read();
    if !missing.packages.is_empty()
        && let Some(obstacle) = host.obstacle()
    {
        let by_hand = missing.commands().join("\n");
        let text = format!(
            "nothing was installed, because setup installs packages only as root on Debian 12 and {obstacle}; the same by hand:\n{by_hand}"
        );
        return Err(Refusal(text).into());
    }
    if !missing.packages.is_empty() {
        let names: Vec<&str> = missing.packages.iter().map(|need| need.package).collect();
        println!("setup: apt-get install {} (no service is started)", names.join(" "));
        debian::install(&names)?;
    }
    compiler::add_components(workspace, &missing.components)?;
    if missing.core_source {
        provide_core_source(workspace, &host)?;
    }
    if missing.linker.is_some() {
        // Asked again: the compiler may be another one now.
        fit::of_compiler(&Compiler::for_kernel(workspace)?)?;
        println!("setup: cargo install bpf-linker {} (about a minute)", linker::VERSION);
        linker::install(workspace)?;
    }
    Ok(())
}

/// rustup's component where it can be had, else Debian's second compiler with its own sources.
fn provide_core_source(workspace: &Workspace, host: &Host) -> Result<()> {
    println!("setup: rustup component add rust-src");
    let Err(failure) = compiler::add_components(workspace, &["rust-src"]) else { return Ok(()) };
    if let Some(obstacle) = host.obstacle() {
        let text = format!(
            "rustup could not add rust-src ({failure:#}), and the other way, Debian's {}, is closed because {obstacle}",
            compiler::DEBIAN_PACKAGES.join(" and ")
        );
        return Err(Refusal(text).into());
    }
    println!(
        "setup: that failed ({failure:#})\nsetup: apt-get install {} instead",
        compiler::DEBIAN_PACKAGES.join(" ")
    );
    debian::install(&compiler::DEBIAN_PACKAGES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_by_hand_names_everything_that_is_missing() {
        let missing = Missing {
            packages: needs::ALL.iter().collect(),
            components: vec!["rustfmt"],
            core_source: true,
            linker: Some("absent".to_owned()),
        };
        let (lines, commands) = (missing.lines().join("\n"), missing.commands().join("\n"));
        for need in needs::ALL {
            assert!(lines.contains(need.package) && lines.contains(need.why), "{}", need.package);
            assert!(commands.contains(need.package), "{}", need.package);
        }
        assert!(commands.contains("rustup component add rustfmt rust-src"), "{commands}");
        assert!(commands.contains("cargo install bpf-linker --version 0.13.0"), "{commands}");
    }

    #[test]
    fn nothing_missing_needs_no_command() {
        assert!(Missing::default().is_empty());
        assert!(Missing::default().commands().is_empty());
    }
}
