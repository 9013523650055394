//! What does not belong into the repository.

use std::path::Path;

use super::Breach;

/// Things that are built, or recorded by accident.
const BUILT: [&str; 6] = ["o", "so", "a", "rlib", "bc", "core"];
const RECORDED: [&str; 3] = ["pcap", "pcapng", "p502"];
/// The place for recordings on purpose.
const CORPUS: &str = "tests/cases";
/// Large enough for a capture of one failure, in bytes.
const LARGEST: u64 = 512 * 1024;

/// Checks one file by its name and size.
pub(crate) fn check(path: &Path, size: u64) -> Option<Breach> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if BUILT.contains(&extension) {
        return Some(Breach::new(path, 0, "a built file does not belong into the repository"));
    }
    if RECORDED.contains(&extension) && !path.starts_with(CORPUS) {
        return Some(Breach::new(path, 0, format!("a recording belongs under {CORPUS}, or nowhere")));
    }
    (size > LARGEST).then(|| Breach::new(path, 0, format!("{size} bytes, more than {LARGEST}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_told(path: &str, size: u64) -> bool {
        check(Path::new(path), size).is_some()
    }

    #[test]
    fn built_files_are_told_everywhere() {
        for path in ["probe.o", "tests/cases/x/probe.o", "lib/liba.a", "x.so"] {
            assert!(is_told(path, 1), "{path}");
        }
    }

    #[test]
    fn recordings_are_kept_in_the_corpus_alone() {
        assert!(is_told("incident.p502", 1));
        assert!(is_told("tests/a.pcap", 1));
        assert!(!is_told("tests/cases/refused/input.pcap", 1));
        assert!(!is_told("tests/cases/refused/input.p502", 1));
    }

    #[test]
    fn large_files_are_told() {
        assert!(is_told("tests/cases/refused/input.pcap", LARGEST + 1));
        assert!(!is_told("Cargo.lock", LARGEST));
    }
}
