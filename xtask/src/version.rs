//! Version numbers, and the places they are read from.

use std::{fmt, str::FromStr};

/// `major.minor.patch`; a patch level that is not known is not compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) patch: Option<u32>,
}

impl Version {
    /// Whether this is certainly older than `other`. `22.1` is not certainly older than `22.1.8`.
    pub(crate) fn is_older_than(self, other: Self) -> bool {
        let (ours, theirs) = ((self.major, self.minor), (other.major, other.minor));
        ours < theirs || (ours == theirs && matches!((self.patch, other.patch), (Some(a), Some(b)) if a < b))
    }
}

impl FromStr for Version {
    type Err = ();

    /// Reads `1.95.0`, `22.1`, `22.1.8-rust-1.96` and `1.97.0-nightly`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.split_once(['-', '+', ' ']).map_or(text, |(number, _)| number);
        let mut parts = digits.split('.').map(str::parse::<u32>);
        let mut next = || parts.next().transpose().map_err(|_| ());
        let (major, minor, patch) = (next()?.ok_or(())?, next()?.ok_or(())?, next()?);
        Ok(Self { major, minor, patch })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        self.patch.map_or(Ok(()), |patch| write!(f, ".{patch}"))
    }
}

/// The release and the LLVM of a compiler, from `rustc -vV`.
pub(crate) fn of_rustc(verbose: &str) -> Option<(Version, Version)> {
    let field = |name: &str| verbose.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    Some((field("release:")?, field("LLVM version:")?))
}

/// The version from `PROGRAM --version`: `bpf-linker 0.13.0`.
pub(crate) fn of_program(output: &str) -> Option<Version> {
    output.split_whitespace().nth(1)?.parse().ok()
}

/// The LLVM library a program is linked with, from `ldd`: its path, and the version in its name.
pub(crate) fn of_linked_llvm(ldd: &str) -> Option<LinkedLlvm> {
    let line = ldd.lines().find(|line| line.trim_start().starts_with("libLLVM"))?;
    let (name, place) = line.split_once("=>")?;
    // `libLLVM.so.22.1` from upstream and LLVM 18 on, `libLLVM-17.so.1` before.
    let number = name.trim().trim_start_matches("libLLVM").trim_start_matches(".so.").trim_start_matches('-');
    let version = number.parse().ok();
    let path = place.trim().split(" (").next().filter(|path| path.starts_with('/')).map(str::to_owned);
    Some(LinkedLlvm { version, path })
}

/// What `ldd` says about a program's LLVM.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LinkedLlvm {
    /// From the file name: no patch level. `None` if the name has none.
    pub(crate) version: Option<Version>,
    /// `None` if the library is not on this machine.
    pub(crate) path: Option<String>,
}

/// The version of a package in `Cargo.lock`; `None` unless there is exactly one.
pub(crate) fn in_lock_file(lock: &str, package: &str) -> Option<String> {
    let wanted = format!("name = \"{package}\"");
    let mut lines = lock.lines();
    let mut found = None;
    while let Some(line) = lines.next() {
        if line == wanted {
            let version = lines.next()?.strip_prefix("version = \"")?.strip_suffix('"')?;
            if found.replace(version.to_owned()).is_some() {
                return None;
            }
        }
    }
    found
}

/// `ID` and `VERSION_ID` of `/etc/os-release` (os-release(5)).
pub(crate) fn of_system(os_release: &str) -> (String, String) {
    let field = |name: &str| {
        let value = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default();
        value.trim().trim_matches(['"', '\'']).to_owned()
    };
    (field("ID"), field("VERSION_ID"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().expect("a version")
    }

    #[test]
    fn versions_are_compared_by_number_and_not_by_text() {
        assert!(version("22.1.2").is_older_than(version("22.1.10")));
        assert!(version("9.9.9").is_older_than(version("22.1.0")));
        assert!(!version("22.1.8").is_older_than(version("22.1.8")));
        assert!(!version("22.1.8").is_older_than(version("22.1.2")));
    }

    #[test]
    fn an_unknown_patch_level_decides_nothing() {
        assert!(!version("22.1").is_older_than(version("22.1.8")));
        assert!(!version("22.1.8").is_older_than(version("22.1")));
        assert!(version("22.1").is_older_than(version("22.2.0")));
    }

    #[test]
    fn what_follows_the_number_is_ignored() {
        assert_eq!(version("1.97.0-nightly"), version("1.97.0"));
        assert_eq!(version("22.1.8-rust-1.96.0-stable").to_string(), "22.1.8");
        for wrong in ["", "22", "x.y.z", "1..2", "-1.0"] {
            assert!(wrong.parse::<Version>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn rustc_tells_its_release_and_its_llvm() {
        let text = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\n\
                    release: 1.95.0\nLLVM version: 22.1.2\n";
        assert_eq!(of_rustc(text), Some((version("1.95.0"), version("22.1.2"))));
        assert_eq!(of_rustc("rustc 1.95.0\nrelease: 1.95.0\n"), None);
    }

    #[test]
    fn bpf_linker_tells_its_version() {
        assert_eq!(of_program("bpf-linker 0.13.0\n"), Some(version("0.13.0")));
        assert_eq!(of_program("bpf-linker"), None);
        assert_eq!(of_program(""), None);
    }

    #[test]
    fn ldd_tells_which_llvm_a_program_loads() {
        let text = "\tlinux-vdso.so.1 (0x00007f)\n\
                    \tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x00007f423d800000)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n";
        let linked = of_linked_llvm(text).expect("an LLVM");
        assert_eq!(linked.version, Some(version("22.1")));
        assert_eq!(linked.path.as_deref(), Some("/usr/lib/llvm-22/lib/libLLVM.so.22.1"));
    }

    #[test]
    fn a_missing_library_and_a_static_program_are_told_apart() {
        let missing = of_linked_llvm("\tlibLLVM.so.22.1 => not found\n").expect("an LLVM");
        assert_eq!(missing, LinkedLlvm { version: Some(version("22.1")), path: None });
        assert_eq!(of_linked_llvm("\tstatically linked\n"), None);
    }

    #[test]
    fn the_lock_file_tells_the_one_version_of_a_package() {
        let lock = "[[package]]\nname = \"aya\"\nversion = \"0.14.0\"\n\n[[package]]\nname = \"aya-ebpf\"\nversion = \"0.2.1\"\n\
                    \n[[package]]\nname = \"syn\"\nversion = \"1.0.0\"\n\n[[package]]\nname = \"syn\"\nversion = \"2.0.0\"\n";
        assert_eq!(in_lock_file(lock, "aya").as_deref(), Some("0.14.0"));
        assert_eq!(in_lock_file(lock, "aya-ebpf").as_deref(), Some("0.2.1"));
        assert_eq!(in_lock_file(lock, "syn"), None, "two versions are not one");
        assert_eq!(in_lock_file(lock, "tokio"), None);
    }

    #[test]
    fn os_release_is_read_with_and_without_quotes() {
        let debian =
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(of_system(debian), ("debian".to_owned(), "12".to_owned()));
        assert_eq!(of_system("ID=arch\n"), ("arch".to_owned(), String::new()));
        assert_eq!(of_system(""), (String::new(), String::new()));
    }
}
