//! Which versions go together. LLVM reads no bitcode that a newer LLVM wrote, not even by a patch level
//! (<https://github.com/aya-rs/bpf-linker/issues/387>), and says so in a way that helps nobody. So it is said here, before.

use anyhow::{Result, bail};

use super::{Refusal, compiler::Compiler, linker::Linker};
use crate::version;

/// The LLVM that bpf-linker is built on here, by Debian's package names.
const LLVM: u32 = 22;

/// The aya crates that were tested with each other. Another set is a change to make on purpose: run the live tests with it,
/// then write it here.
const AYA: [(&str, &str); 3] = [("aya", "0.14.0"), ("aya-obj", "0.3.0"), ("aya-ebpf", "0.2.1")];

/// The same for the line that setup ends with.
pub(crate) const AYA_TEXT: &str = "aya 0.14.0, aya-ebpf 0.2.1";

/// Refuses a lock file with another set of aya crates.
pub(crate) fn of_lock_file(lock: &str) -> Result<()> {
    for (package, wanted) in AYA {
        match version::in_lock_file(lock, package) {
            Some(locked) if locked == wanted => {}
            Some(locked) => bail!(
                "Cargo.lock has {package} {locked}, but {wanted} is the one tested with the rest; see xtask/src/setup/fit.rs"
            ),
            None => bail!("Cargo.lock has not exactly one {package}; {wanted} is wanted; see xtask/src/setup/fit.rs"),
        }
    }
    Ok(())
}

/// Refuses a compiler for which no bpf-linker can be built here.
pub(crate) fn of_compiler(compiler: &Compiler) -> Result<()> {
    if compiler.llvm.major == LLVM {
        return Ok(());
    }
    Err(Refusal(format!(
        "{compiler} cannot build the kernel programs, because bpf-linker is built on LLVM {LLVM} here; \
         use the toolchain named in rust-toolchain.toml (is RUSTUP_TOOLCHAIN or `rustup override` set?)"
    ))
    .into())
}

/// Refuses a linker that cannot read what the compiler writes.
pub(crate) fn of_llvm(compiler: &Compiler, linker: &Linker) -> Result<()> {
    let Some(theirs) = linker.llvm else { return Ok(()) };
    if theirs.major == compiler.llvm.major && !theirs.is_older_than(compiler.llvm) {
        return Ok(());
    }
    Err(Refusal(format!("{linker} cannot read what {compiler} writes; it needs LLVM {}", compiler.llvm)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(aya_ebpf: &str) -> String {
        let package =
            |name: &str, version: &str| format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n\n");
        package("aya", "0.14.0") + &package("aya-obj", "0.3.0") + &package("aya-ebpf", aya_ebpf)
    }

    fn compiler(llvm: &str) -> Compiler {
        Compiler::for_tests("1.95.0".parse().expect("a version"), llvm.parse().expect("a version"))
    }

    fn linker(llvm: Option<&str>) -> Linker {
        let release = "0.13.0".parse().expect("a version");
        Linker { release, llvm: llvm.map(|text| text.parse().expect("a version")) }
    }

    #[test]
    fn the_tested_set_of_aya_crates_passes_and_another_does_not() {
        assert!(of_lock_file(&lock("0.2.1")).is_ok());
        let error = of_lock_file(&lock("0.3.0")).unwrap_err().to_string();
        assert!(error.contains("aya-ebpf 0.3.0") && error.contains("0.2.1"), "{error}");
        assert!(of_lock_file("").is_err());
    }

    #[test]
    fn the_text_names_the_set() {
        for (package, version) in AYA.iter().filter(|(package, _)| *package != "aya-obj") {
            assert!(AYA_TEXT.contains(&format!("{package} {version}")), "{package}");
        }
    }

    #[test]
    fn a_linker_reads_its_own_llvm_and_older_ones() {
        assert!(of_llvm(&compiler("22.1.2"), &linker(Some("22.1.2"))).is_ok());
        assert!(of_llvm(&compiler("22.1.2"), &linker(Some("22.1.8"))).is_ok());
        assert!(of_llvm(&compiler("22.1.2"), &linker(Some("22.1"))).is_ok(), "the patch level is not known");
        assert!(of_llvm(&compiler("22.1.2"), &linker(None)).is_ok(), "a static build tells nothing");
    }

    #[test]
    fn a_linker_on_another_llvm_is_refused_in_one_sentence() {
        for (rustc, theirs) in [("22.1.8", "22.1.2"), ("23.1.0", "22.1.8"), ("21.1.0", "22.1.8")] {
            let error = of_llvm(&compiler(rustc), &linker(Some(theirs))).unwrap_err();
            assert!(error.is::<Refusal>());
            let text = error.to_string();
            assert!(text.contains(rustc) && text.contains(theirs) && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn a_compiler_with_another_llvm_is_sent_to_the_pinned_toolchain() {
        assert!(of_compiler(&compiler("22.9.9")).is_ok());
        let text = of_compiler(&compiler("23.1.0")).unwrap_err().to_string();
        assert!(text.contains("LLVM 23.1.0") && text.contains("rust-toolchain.toml"), "{text}");
    }
}
