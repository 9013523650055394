//! `cargo xtask lint`: what a machine can say about the source.

use std::process::Command;

use anyhow::Result;

pub(crate) use crate::deny::Missing;
use crate::{
    command, deny,
    setup::{self, Kernel},
    test::Counts,
    tidy,
    workspace::Workspace,
};

/// One check, and how it ended.
pub(crate) struct Check {
    name: &'static str,
    verdict: Verdict,
}

enum Verdict {
    Passed,
    Failed,
    /// Not done, for this reason.
    Skipped(String),
}

impl Check {
    fn new(name: &'static str, passed: bool) -> Self {
        Self { name, verdict: if passed { Verdict::Passed } else { Verdict::Failed } }
    }

    /// It counts as one test.
    pub(crate) fn counts(&self) -> Counts {
        match self.verdict {
            Verdict::Passed => Counts::of_check(true),
            Verdict::Failed => Counts::of_check(false),
            Verdict::Skipped(_) => Counts::of_skipped(1),
        }
    }

    /// What there is to say at the end, if it did not pass.
    pub(crate) fn complaint(&self) -> Option<String> {
        match &self.verdict {
            Verdict::Passed => None,
            Verdict::Failed => Some(format!("lint {}: failed, see above", self.name)),
            Verdict::Skipped(why) => Some(format!("lint {}: skipped, because {why}", self.name)),
        }
    }
}

/// Sets up, runs every check, and says whether all passed.
pub(crate) fn run(workspace: &Workspace) -> Result<bool> {
    setup::run(workspace)?;
    let checks = all(workspace, Missing::IsInstalled)?;
    for complaint in checks.iter().filter_map(Check::complaint) {
        println!("{complaint}");
    }
    let counts: Counts = checks.iter().map(Check::counts).sum();
    println!("{counts}");
    Ok(counts.failed == 0)
}

/// Runs every check; the cheap ones first.
pub(crate) fn all(workspace: &Workspace, missing: Missing) -> Result<Vec<Check>> {
    let cargo = |arguments: &[&str]| {
        let mut cargo = workspace.cargo();
        // Clippy and check look at no kernel object.
        cargo.args(arguments).env("AYA_BUILD_SKIP", "1");
        cargo
    };
    let pass = |name: &'static str, command: &mut Command| {
        println!("lint: {name}");
        command::succeeds(command).map(|passed| Check::new(name, passed))
    };
    let mut checks = vec![pass("fmt", &mut cargo(&["fmt", "--all", "--", "--check", "--color=never"]))?];
    println!("lint: tidy");
    checks.push(Check::new("tidy", tidy::run(workspace)?));
    // Everything but `live` builds without aya, tokio and nix: the proof that the middle is pure.
    checks.push(pass(
        "purity",
        &mut cargo(&["check", "--quiet", "--locked", "--package=probe-user", "--no-default-features"]),
    )?);
    let clippy = ["clippy", "--quiet", "--locked", "--workspace", "--all-targets", "--", "-Dwarnings"];
    checks.push(pass("clippy", &mut cargo(&clippy))?);
    checks.push(match setup::kernel_side(workspace)? {
        Kernel::Lintable => pass("clippy for the kernel", &mut kernel_clippy(workspace)?)?,
        Kernel::OnlyBuildable => Check {
            name: "clippy for the kernel",
            verdict: Verdict::Skipped("rust-src is not installed for the toolchain that has clippy".to_owned()),
        },
    });
    checks.push(fuzz_lock(workspace));
    println!("lint: deny");
    checks.push(match deny::run(workspace, missing)? {
        deny::Outcome::Checked(passed) => Check::new("deny", passed),
        deny::Outcome::Skipped(why) => Check { name: "deny", verdict: Verdict::Skipped(why) },
    });
    Ok(checks)
}

/// The fuzz targets are a workspace of their own, with a lock of its own that no other command looks at.
fn fuzz_lock(workspace: &Workspace) -> Check {
    const NAME: &str = "lock of the fuzz targets";
    const MANIFEST: &str = "tests/fuzz/Cargo.toml";
    println!("lint: {NAME}");
    let read = |network: &[&str]| {
        let mut cargo = workspace.cargo();
        cargo
            .args(["metadata", "--quiet", "--format-version=1", "--locked", "--manifest-path", MANIFEST])
            .args(network);
        command::read(&mut cargo)
    };
    // On a host that never built them their dependencies have to be fetched first.
    let verdict = match read(&["--offline"]).or_else(|_| read(&[])) {
        Ok(_) => Verdict::Passed,
        Err(failure) if is_outdated(&failure.to_string()) => {
            println!(
                "tests/fuzz/Cargo.lock is out of date; `cargo metadata --manifest-path {MANIFEST} > /dev/null` brings it up to date"
            );
            Verdict::Failed
        }
        Err(failure) => {
            let why = failure.to_string();
            Verdict::Skipped(format!(
                "its dependencies could not be fetched ({})",
                why.lines().last().unwrap_or_default()
            ))
        }
    };
    Check { name: NAME, verdict }
}

/// Whether this is cargo's complaint about a lock that it would have to change.
fn is_outdated(complaint: &str) -> bool {
    complaint.lines().any(|line| line.contains("lock file") && line.contains("--locked was passed"))
}

/// Clippy over the programs themselves, which the host's clippy leaves out: they compile only for BPF.
fn kernel_clippy(workspace: &Workspace) -> Result<Command> {
    let mut cargo = workspace.cargo();
    cargo
        .args(["clippy", "--quiet", "--locked", "--package=probe-ebpf", "--bin=probe", "--features=kernel"])
        .args(["--target=bpfel-unknown-none", "-Zbuild-std=core"])
        // Build scripts run again when this variable changes; in the common directory everything would be built twice.
        .arg("--target-dir")
        .arg(workspace.target_dir()?.join("kernel-lint"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH))
        .args(["--", "-Dwarnings"]);
    Ok(cargo)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As cargo 1.83 and 1.95 say it.
    #[test]
    fn an_outdated_lock_is_told_from_a_missing_network() {
        for words in
            ["the lock file /x/Cargo.lock needs to be updated but", "cannot update the lock file /x/Cargo.lock because"]
        {
            assert!(is_outdated(&format!(
                "`cargo metadata` failed: exit status: 101: error: {words} --locked was passed to prevent this"
            )));
        }
        assert!(!is_outdated("error: failed to download `libfuzzer-sys v0.4.9`\nunable to get packages from source"));
    }
}
