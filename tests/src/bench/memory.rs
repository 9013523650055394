//! How much memory a process holds.

use std::fs;

use anyhow::{Context, Result};

/// What it holds now, bytes.
pub(super) fn now(pid: u32) -> Result<u64> {
    field(pid, "VmRSS")
}

/// The most it ever held, bytes.
pub(super) fn peak(pid: u32) -> Result<u64> {
    field(pid, "VmHWM")
}

fn field(pid: u32, name: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kilobytes = value.and_then(|value| value.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    Ok(kilobytes.with_context(|| format!("{path} says nothing of {name}"))? * 1024)
}
