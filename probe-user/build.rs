//! Builds the kernel object (`probe-ebpf`, target `bpfel-unknown-none`) and leaves it as `OUT_DIR/probe` for embedding.
//!
//! The nested cargo is run here and not through `aya-build`, which (0.2.0) prints every line of it as a warning on every
//! build, passes neither `--locked` nor a rustc of our choice, and brings `cargo_metadata` along. The flags are the same.
//!
//! | environment | effect |
//! | --- | --- |
//! | `AYA_BUILD_SKIP` (set, not `0`) | an empty object is written: lints and docs need the file to exist, not to work |
//! | `PROBE_EBPF_RUSTC` | this compiler builds the object, whatever else is installed |

use std::{
    env,
    error::Error,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output},
};

/// The name of the binary target of `probe-ebpf`, and of the object in `OUT_DIR`.
const OBJECT: &str = "probe";

/// Debian's second compiler, from the packages `rustc-web` and `rust-web-src`: the answer where rustup cannot give `rust-src`.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&*error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "returned from `main`, the compiler's message would be one escaped line")]
fn complain(error: &dyn Error) {
    eprintln!("{error}");
}

fn run() -> Result<(), Box<dyn Error>> {
    for variable in ["AYA_BUILD_SKIP", "PROBE_EBPF_RUSTC"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    // Without any path, cargo would run this again on every change inside `probe-user`.
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_LIVE").is_none() {
        return Ok(());
    }
    let out = PathBuf::from(variable("OUT_DIR")?);
    if env::var_os("AYA_BUILD_SKIP").is_some_and(|value| !value.is_empty() && value != "0") {
        return Ok(fs::write(out.join(OBJECT), [])?);
    }
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..");
    // The library half of `probe-ebpf` is an ordinary dependency; its kernel half and what it is built with are not.
    for input in ["probe-ebpf/src", "probe-ebpf/Cargo.toml", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    let search = search_path()?;
    let linker = find(&search, "bpf-linker").ok_or("bpf-linker is not installed; run `cargo xtask setup`")?;
    println!("cargo::rerun-if-changed={}", linker.display());
    let compiler = compiler()?;
    let kernel = out.join("kernel");
    if is_newer(&linker, &out.join(OBJECT)) {
        // The nested cargo does not know what its linker depends on.
        fs::remove_dir_all(&kernel).or_else(|error| if kernel.exists() { Err(error) } else { Ok(()) })?;
    }
    let object = build(&workspace, &kernel, &compiler, &search)?;
    fs::copy(&object, out.join(OBJECT))
        .map_err(|error| format!("copying {} to OUT_DIR failed: {error}", object.display()))?;
    Ok(())
}

/// Runs the nested cargo and returns the path of the object it made.
fn build(workspace: &Path, target_dir: &Path, compiler: &OsStr, search: &OsStr) -> Result<PathBuf, Box<dyn Error>> {
    let target = match variable("CARGO_CFG_TARGET_ENDIAN")?.to_str() {
        Some("big") => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let mut architecture = OsString::from("--cfg=bpf_target_arch=\"");
    architecture.push(variable("CARGO_CFG_TARGET_ARCH")?);
    architecture.push("\"");
    // Debug information of every crate, `core` too: BTF is made from it, and a callee without BTF is refused by the kernel.
    let mut flags = vec![architecture, "-Cdebuginfo=2".into(), "-Clink-arg=--btf".into()];
    // It names source files. Under these names they are the same wherever the object is built.
    let workspace_path = fs::canonicalize(workspace)?;
    let places = [(Some(workspace_path), "/probe502"), (cargo_home(), "/cargo"), (sysroot(compiler), "/rust")];
    for (place, name) in places {
        if let Some(place) = place {
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(place);
            flag.push("=");
            flag.push(name);
            flags.push(flag);
        }
    }

    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .current_dir(workspace)
        .args(["build", "--quiet", "--locked", "--release", "--package", "probe-ebpf", "--bin", OBJECT])
        .args(["--features", "kernel", "--target", target, "-Zbuild-std=core"])
        // How the host program is optimised is no business of the object. BPF is linked from bitcode as a whole anyway.
        .args(["--config", "profile.release.lto=false", "--config", "profile.release.strip=\"none\""])
        .args(["--config", "profile.release.codegen-units=1", "--config", "profile.release.debug=2"])
        // Its own directory, or it would wait for the lock that the outer cargo holds.
        .arg("--target-dir")
        .arg(target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(OsStr::new("\x1f")))
        .env("PATH", search)
        .env("RUSTC", compiler)
        // `-Zbuild-std` on a stable compiler; set for this one child, so that no dependency of ours starts to
        // probe for nightly features.
        .env("RUSTC_BOOTSTRAP", "1");
    // Under clippy these name clippy-driver.
    for wrapper in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(wrapper);
    }
    let output = cargo.output().map_err(|error| format!("starting cargo for the kernel object failed: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(failure(&output, &text).into());
    }
    // With `--quiet` nothing but real warnings is left.
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        println!("cargo::warning={line}");
    }
    Ok(target_dir.join(target).join("release").join(OBJECT))
}

/// The whole text of the nested cargo, and for the failures whose text misleads one sentence that does not.
fn failure(output: &Output, text: &str) -> String {
    let advice = if text.contains("Invalid record") || text.contains("Unknown attribute kind") {
        "\nbpf-linker was built against another LLVM than rustc's; run `cargo xtask setup`, which says which one fits"
    } else if text.contains("rust-src") {
        "\nthe sources of `core` are not installed; run `cargo xtask setup`"
    } else {
        ""
    };
    format!("building the kernel object failed ({}):\n{text}{advice}", output.status)
}

/// The compiler for the object: the outer one if its `core` is here in source, else Debian's.
fn compiler() -> Result<OsString, Box<dyn Error>> {
    if let Some(chosen) = env::var_os("PROBE_EBPF_RUSTC") {
        return Ok(chosen);
    }
    let ours = variable("RUSTC")?;
    if has_core_source(&ours) || !has_core_source(OsStr::new(DEBIAN_RUSTC)) {
        return Ok(ours);
    }
    Ok(DEBIAN_RUSTC.into())
}

fn has_core_source(compiler: &OsStr) -> bool {
    sysroot(compiler).is_some_and(|root| root.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists())
}

/// Where a compiler keeps its libraries and their sources.
fn sysroot(compiler: &OsStr) -> Option<PathBuf> {
    let output = Command::new(compiler).args(["--print", "sysroot"]).output().ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Where cargo keeps the sources of dependencies.
fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| env::home_dir().map(|home| home.join(".cargo")))
}

/// `PATH`, with cargo's own directory added: `cargo install` puts bpf-linker there even if the shell does not look there.
fn search_path() -> Result<OsString, Box<dyn Error>> {
    let listed = env::var_os("PATH").unwrap_or_default();
    Ok(env::join_paths(env::split_paths(&listed).chain(cargo_home().map(|home| home.join("bin"))))?)
}

/// Whether the first file changed after the second; not, if either cannot be asked.
fn is_newer(this: &Path, that: &Path) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    matches!((changed(this), changed(that)), (Some(this), Some(that)) if this > that)
}

fn find(search: &OsStr, program: &str) -> Option<PathBuf> {
    env::split_paths(search).map(|directory| directory.join(program)).find(|path| path.is_file())
}

fn variable(name: &str) -> Result<OsString, Box<dyn Error>> {
    env::var_os(name).ok_or_else(|| format!("{name} is not set; this script is run by cargo").into())
}
