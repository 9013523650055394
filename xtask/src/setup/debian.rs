//! The host's distribution, and installing its packages without starting the services in them.

use std::{fs, process::Command};

use anyhow::{Result, bail};

use crate::version;

/// Whose machine this is.
pub(crate) struct Host {
    /// `ID` and `VERSION_ID` of os-release.
    system: (String, String),
    root: bool,
}

impl Host {
    /// What os-release and `/proc/self/status` say; a file that cannot be read is "not Debian", "not root".
    pub(crate) fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            system: version::of_system(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
            root: is_root(&status),
        }
    }

    /// Whether we run as root.
    pub(crate) fn is_root(&self) -> bool {
        self.root
    }

    /// Why packages cannot be installed here, if they cannot.
    pub(crate) fn obstacle(&self) -> Option<String> {
        let (id, release) = &self.system;
        if (id.as_str(), release.as_str()) != ("debian", "12") {
            let name = if id.is_empty() { "a system without /etc/os-release" } else { id };
            return Some(format!("this is {name} {release}").trim_end().to_owned());
        }
        (!self.root).then(|| "this is not root".to_owned())
    }
}

/// The effective user id is the second of four (proc(5)).
fn is_root(status: &str) -> bool {
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    ids.split_whitespace().nth(1) == Some("0")
}

/// Keeps invoke-rc.d and deb-systemd-invoke from starting anything while the packages are unpacked: Debian's nginx would
/// take port 80 of this machine, php-fpm would run for nobody. A shell and not this program, because its trap also runs when somebody presses Ctrl-C. The
/// line by which the file is known as ours lets a later run clear away what a `kill -9` left.
const INSTALL: &str = r#"
policy=/usr/sbin/policy-rc.d
ours='# made by probe502: cargo xtask setup; removed when the packages are installed'
if [ -f "$policy" ] && grep -qxF "$ours" "$policy"; then rm -f "$policy"; fi
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\n%s\nexit 101\n' "$ours" > "$policy" && chmod 755 "$policy" || exit 1
fi
had_nginx=$(command -v nginx)
had_php=$(command -v php-fpm8.2)
export DEBIAN_FRONTEND=noninteractive
lock='-oDPkg::Lock::Timeout=300'
apt-get "$lock" -qq update || echo 'setup: apt-get update failed; going on with the lists that are here' >&2
apt-get "$lock" -qq -y -oDpkg::Use-Pty=0 --no-install-recommends install "$@"
status=$?
# Not started now must not mean started at the next boot.
if [ -z "$had_nginx" ] && command -v nginx > /dev/null; then update-rc.d nginx disable; fi
if [ -z "$had_php" ] && command -v php-fpm8.2 > /dev/null; then update-rc.d php8.2-fpm disable; fi
exit $status
"#;

/// Installs packages; the output is shown only if it fails.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let output = Command::new("/bin/sh")
        .args(["-c", INSTALL, "setup"])
        .args(packages)
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(std::process::Stdio::null())
        .output()?;
    if !output.status.success() {
        let (told, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("apt-get install {} failed ({}):\n{told}{complaint}", packages.join(" "), output.status);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(id: &str, release: &str, root: bool) -> Host {
        Host { system: (id.to_owned(), release.to_owned()), root }
    }

    #[test]
    fn packages_are_installed_only_by_root_on_debian_12() {
        assert_eq!(host("debian", "12", true).obstacle(), None);
        assert_eq!(host("debian", "12", false).obstacle().as_deref(), Some("this is not root"));
        assert_eq!(host("debian", "13", true).obstacle().as_deref(), Some("this is debian 13"));
        assert_eq!(host("arch", "", true).obstacle().as_deref(), Some("this is arch"));
        assert_eq!(host("", "", true).obstacle().as_deref(), Some("this is a system without /etc/os-release"));
    }

    #[test]
    fn root_is_the_effective_user() {
        assert!(is_root("Name:\txtask\nUid:\t1000\t0\t0\t0\n"));
        assert!(!is_root("Name:\txtask\nUid:\t0\t1000\t1000\t1000\n"));
        assert!(!is_root(""));
    }
}
