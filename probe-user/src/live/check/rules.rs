//! Packet filter rules, listed and never changed.

use std::{
    fs::File,
    process::{Command, Stdio},
    sync::Arc,
};

use crate::{
    decode::rules::{self, Rules},
    live::capture,
};

/// Where distributions have it.
const PROGRAMS: [&str; 3] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"];

/// The rules of a network namespace; why not, where they cannot be listed.
pub(super) fn list(netns: Option<&Arc<File>>) -> Result<Rules, String> {
    let program = PROGRAMS.iter().find(|path| std::path::Path::new(path).exists());
    let program = program.ok_or_else(|| "there is no nft here to list them with".to_owned())?;
    let output = capture::inside(netns, || {
        // A child is born into the namespace of the thread that makes it.
        Command::new(program).args(["-j", "list", "ruleset"]).env_clear().stdin(Stdio::null()).output()
    })?;
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program}: {}", said.lines().next().unwrap_or("failed")));
    }
    rules::decode(&String::from_utf8_lossy(&output.stdout)).ok_or_else(|| format!("{program} prints no JSON"))
}
