//! Suricata, for the comparison only. Debian 12 has none any more; Debian 13's is put into a folder with all it needs, and started
//! from there by that folder's own loader, so that nothing of the host is changed.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{Host, Refusal};
use crate::{
    command,
    workspace::{Workspace, find_program},
};

const SUITE: &str = "trixie";
const MIRROR: &str = "http://deb.debian.org/debian";

/// How it is started here.
pub(crate) struct Suricata {
    pub(crate) program: PathBuf,
    /// What comes before its own arguments.
    pub(crate) arguments: Vec<OsString>,
}

/// Where ours is put.
fn folder(workspace: &Workspace) -> Result<PathBuf> {
    Ok(workspace.target_dir()?.join("suricata"))
}

impl Suricata {
    /// The host's, or else ours; `None`: there is none.
    pub(crate) fn find(workspace: &Workspace) -> Result<Option<Self>> {
        if let Some(program) = find_program("suricata") {
            return Ok(Some(Self { program, arguments: Vec::new() }));
        }
        let root = folder(workspace)?;
        Ok(root.join("usr/bin/suricata").exists().then(|| Self::below(&root)))
    }

    fn below(root: &Path) -> Self {
        let path = |inner: &str| root.join(inner).into_os_string();
        let setting = |name: &str, inner: &str| {
            let mut text = OsString::from(format!("{name}="));
            text.push(path(inner));
            text
        };
        let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(path).join(&OsString::from(":"));
        let arguments = vec![
            "--library-path".into(),
            libraries,
            path("usr/bin/suricata"),
            "-c".into(),
            path("etc/suricata/suricata.yaml"),
            "--set".into(),
            setting("classification-file", "etc/suricata/classification.config"),
            "--set".into(),
            setting("reference-config-file", "etc/suricata/reference.config"),
        ];
        Self { program: root.join("lib64/ld-linux-x86-64.so.2"), arguments }
    }
}

/// Puts one into its folder, unless there is one.
pub(super) fn install(workspace: &Workspace) -> Result<()> {
    if Suricata::find(workspace)?.is_some() {
        return Ok(());
    }
    let root = folder(workspace)?;
    if !Host::read().is_root() {
        let text = "Suricata is not installed: Debian's packages are unpacked into a folder by root only".to_owned();
        return Err(Refusal(text).into());
    }
    println!("setup: debootstrap {SUITE} with Suricata into {} (about a minute)", root.display());
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(["--variant=minbase", "--include=suricata", SUITE]).arg(&root).arg(MIRROR);
    command::read(&mut debootstrap).map(drop).with_context(|| {
        format!(
            "putting Suricata into {}, see debootstrap/debootstrap.log there; remove the folder before another try",
            root.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_takes_nothing_from_the_host() {
        let ours = Suricata::below(Path::new("/t"));
        assert_eq!(ours.program, Path::new("/t/lib64/ld-linux-x86-64.so.2"));
        let paths = ours.arguments.iter().filter(|argument| argument.to_string_lossy().contains('/'));
        for path in paths {
            let text = path.to_string_lossy().into_owned();
            let inner = text.rsplit('=').next().unwrap_or_default();
            assert!(inner.split(':').all(|part| part.starts_with("/t/")), "{text}");
        }
    }
}
