//! What a process has attached in the kernel, and whether it is gone.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::namespace::run;
use crate::process::wait_until;

/// The eBPF programs and links of one process, by id. Ids are never given twice while the machine runs, so other users of eBPF on this host
/// do not disturb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    programs: BTreeSet<u64>,
    links: BTreeSet<u64>,
}

impl Attached {
    /// What the process holds now; an error when it holds nothing, since then nothing could be proved later.
    pub fn of(pid: u32) -> Result<Self> {
        let programs = held("prog_id", pid)?;
        let links = held("link_id", pid)?;
        if programs.is_empty() {
            bail!("pid {pid} holds no eBPF program");
        }
        Ok(Self { programs, links })
    }

    /// How many programs and links.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.programs.len(), self.links.len())
    }

    /// Waits until nothing of it is left; the kernel frees programs a moment after the last reference.
    pub fn wait_gone(&self, timeout: Duration) -> Result<()> {
        let mut left = String::new();
        let gone = wait_until("nothing stays attached", timeout, || {
            let mut programs = all("prog")?;
            programs.retain(|entry| id(entry).is_some_and(|id| self.programs.contains(&id)));
            let mut links = all("link")?;
            links.retain(|entry| id(entry).is_some_and(|id| self.links.contains(&id)));
            left = format!("programs: {programs:?}\nlinks: {links:?}");
            Ok(programs.is_empty() && links.is_empty())
        });
        gone.with_context(|| format!("still attached:\n{left}"))
    }
}

/// The objects of a kind.
fn all(kind: &str) -> Result<Vec<Value>> {
    let text = run(Command::new("bpftool").args(["-j", kind, "show"]))?;
    serde_json::from_str(&text).with_context(|| format!("read what `bpftool -j {kind} show` says"))
}

/// The numbers that stand behind `field:` in what /proc says of a process's descriptors. (bpftool names the holders of an object only
/// where it was built with BPF skeletons, which Debian 12's is not.)
fn held(field: &str, pid: u32) -> Result<BTreeSet<u64>> {
    let directory = format!("/proc/{pid}/fdinfo");
    let mut ids = BTreeSet::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("list {directory}"))? {
        // A descriptor may be closed between the listing and the reading.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let values = text.lines().filter_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        ids.extend(values.filter_map(|value| value.trim().parse::<u64>().ok()));
    }
    Ok(ids)
}

/// An object's id.
fn id(entry: &Value) -> Option<u64> {
    entry.get("id").and_then(Value::as_u64)
}
