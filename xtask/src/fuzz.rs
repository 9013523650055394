//! `cargo xtask fuzz`: searches for inputs that break what reads the bytes of others.
//!
//! The engine is libFuzzer, compiled with the targets; the coverage it needs comes from flags that the stable compiler has, so that
//! neither cargo-fuzz nor another toolchain is wanted (`cargo fuzz run --fuzz-dir tests/fuzz` works too, for who has them).

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    command,
    workspace::{Workspace, find_program},
};

/// What cargo-fuzz passes too: a counter at every edge, and the operands of comparisons.
const FLAGS: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// An input that takes longer is a finding, seconds.
const TIMEOUT: u32 = 10;
/// An input that needs more memory is a finding, MiB.
const MEMORY: u32 = 1_024;

/// What to do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Only this target.
    pub(crate) target: Option<String>,
    /// For so long each.
    pub(crate) minutes: u32,
}

/// Runs the targets one after another; whether nothing was found.
pub(crate) fn run(workspace: &Workspace, plan: &Plan) -> Result<bool> {
    let package = workspace.root().join("tests/fuzz");
    let known = targets(&fs::read_to_string(package.join("Cargo.toml"))?);
    let chosen: Vec<&String> =
        known.iter().filter(|name| plan.target.as_ref().is_none_or(|wanted| wanted == *name)).collect();
    if chosen.is_empty() {
        bail!("there is no such target; there are {}", known.join(", "));
    }
    ensure!(
        find_program("c++").is_some(),
        "libFuzzer is C++ and there is no compiler for it; on Debian: apt-get install --no-install-recommends g++"
    );
    let built = workspace.target_dir()?.join("fuzz");
    let programs = build(workspace, &package, &built)?;
    let mut clean = true;
    for name in chosen {
        clean &= search(&package, &built, &programs, name, plan.minutes)?;
    }
    Ok(clean)
}

/// The targets that a manifest names.
fn targets(manifest: &str) -> Vec<String> {
    let bins = manifest.split("[[bin]]").skip(1);
    let name = |bin: &str| {
        let line = bin.lines().find_map(|line| line.strip_prefix("name = "))?;
        Some(line.trim_matches('"').to_owned())
    };
    bins.filter_map(name).collect()
}

/// Builds all of them; the folder they are in.
fn build(workspace: &Workspace, package: &Path, built: &Path) -> Result<PathBuf> {
    let version = command::read(Command::new("rustc").arg("-vV").current_dir(workspace.root()))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    println!("fuzz: building the targets (some minutes the first time)");
    let mut cargo = workspace.cargo();
    // With --target the flags do not reach build scripts.
    cargo.args(["build", "--locked", "--release", "--bins", "--target", host, "--manifest-path"]);
    cargo.arg(package.join("Cargo.toml")).env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    // No target runs a kernel program.
    cargo.env("CARGO_TARGET_DIR", built).env("AYA_BUILD_SKIP", "1");
    command::run(&mut cargo)?;
    Ok(built.join(host).join("release"))
}

/// Runs one target; whether nothing was found.
fn search(package: &Path, built: &Path, programs: &Path, name: &str, minutes: u32) -> Result<bool> {
    let corpus = built.join("corpus").join(name);
    let found = built.join("found").join(name);
    for folder in [&corpus, &found] {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let seeds = package.join("seeds").join(name);
    let log = built.join(format!("{name}.log"));
    let output = fs::File::create(&log).with_context(|| format!("making {}", log.display()))?;
    let mut prefix = found.clone().into_os_string();
    prefix.push("/");
    let mut engine = Command::new(programs.join(name));
    engine.args([
        format!("-max_total_time={}", minutes * 60),
        format!("-timeout={TIMEOUT}"),
        format!("-rss_limit_mb={MEMORY}"),
        format!("-artifact_prefix={}", Path::new(&prefix).display()),
        "-print_final_stats=1".to_owned(),
    ]);
    println!("fuzz: {name} for {minutes} min");
    let status = engine.arg(&corpus).arg(&seeds).stdin(Stdio::null()).stdout(Stdio::null()).stderr(output).status();
    let status = status.with_context(|| format!("starting the target {name}"))?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let figure = |what: &str| text.lines().find_map(|line| line.strip_prefix(what)).map_or("?", str::trim).to_owned();
    let coverage = text.lines().rev().find_map(|line| line.split_once(" cov: ")?.1.split(' ').next()).unwrap_or("?");
    println!("fuzz: {name}: {} inputs, {coverage} edges", figure("stat::number_of_executed_units:"));
    if status.success() {
        return Ok(true);
    }
    for line in text.lines().filter(|line| line.contains("panicked at") || line.contains("SUMMARY:")) {
        println!("fuzz: {name}: {line}");
    }
    println!(
        "fuzz: {name}: what broke it is in {}, what was said in {}; once mended, it belongs into {}",
        found.display(),
        log.display(),
        seeds.display()
    );
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_those_of_the_manifest() {
        let manifest = "[package]\nname = \"x\"\n\n[[bin]]\nname = \"one\"\npath = \"a\"\n\n[[bin]]\nname = \"two\"\n";
        assert_eq!(targets(manifest), ["one", "two"]);
    }
}
