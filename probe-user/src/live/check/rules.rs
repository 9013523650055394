//! Packet filter rules, listed and never changed.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use crate::{
    decode::rules::{self, Rules},
    live::capture,
};

/// Where distributions have programs of the administrator.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// The listing programs of each family: iptables as the host has it, and the one for the tables of the old kind; with the file that names
/// those tables.
const FAMILIES: [(&str, &str, &str, &str); 2] = [
    ("ip", "iptables-save", "iptables-legacy-save", "ip_tables_names"),
    ("ip6", "ip6tables-save", "ip6tables-legacy-save", "ip6_tables_names"),
];

/// The rules of a network namespace; why not, where they cannot be listed. A table of the old kind that is there and cannot be listed is
/// a reason too: what is left would be told as all there is.
pub(super) fn list(netns: Option<&Arc<File>>) -> Result<Rules, String> {
    let nft = program("nft");
    let mut rules = match nft {
        Some(folder) => {
            let text = run(netns, &format!("{folder}/nft"), &["-j", "list", "ruleset"])?;
            rules::decode(&text).ok_or_else(|| format!("{folder}/nft prints no JSON"))?
        }
        None if program("iptables-save").is_some() => Rules::default(),
        None => return Err("there is neither nft nor iptables here to list them with".to_owned()),
    };
    for (family, save, legacy, names) in FAMILIES {
        // Asking for tables that are not there could make the kernel load them.
        let has_legacy = capture::inside(netns, || {
            fs::read_to_string(format!("/proc/thread-self/net/{names}")).is_ok_and(|names| !names.trim().is_empty())
        })?;
        let mut listed_legacy = false;
        if let Some(folder) = program(save).filter(|_| has_legacy || nft.is_none() || rules.has_iptables(family)) {
            let text = run(netns, &format!("{folder}/{save}"), &[])?;
            let is_legacy = !text.contains("(nf_tables)");
            listed_legacy |= is_legacy;
            rules.add(rules::decode_iptables(&text, family), !is_legacy);
        }
        if has_legacy && !listed_legacy {
            let folder = program(legacy).ok_or_else(|| {
                format!(
                    "the kernel has iptables tables of the old kind, and there is no {legacy} here to list them with"
                )
            })?;
            let text = run(netns, &format!("{folder}/{legacy}"), &[])?;
            rules.add(rules::decode_iptables(&text, family), false);
        }
    }
    Ok(rules)
}

/// The folder that has it.
fn program(name: &str) -> Option<&'static str> {
    FOLDERS.into_iter().find(|folder| Path::new(folder).join(name).exists())
}

fn run(netns: Option<&Arc<File>>, program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = capture::inside(netns, || {
        // A child is born into the namespace of the thread that makes it.
        Command::new(program).args(arguments).env_clear().stdin(Stdio::null()).output()
    })?;
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program}: {}", said.lines().next().unwrap_or("failed")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
