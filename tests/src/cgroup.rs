//! Control groups that are removed again: a limit of memory for one process, a policy that forbids processes to connect, a freezer.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::namespace::PREFIX;
use crate::process::wait_until;

/// A control group with a limit of memory; when it is dropped, whoever is left in it goes back to the root and it is removed.
#[derive(Debug)]
pub struct MemoryLimit {
    directory: PathBuf,
    root: PathBuf,
}

impl MemoryLimit {
    /// Puts a process under a limit. What it has already is counted where it was.
    pub fn hold(pid: u32, bytes: u64) -> Result<Self> {
        let (root, version) = hierarchy(&read("/proc/self/mounts")?)?;
        let directory = root.join(format!("{PREFIX}{}-{pid}", std::process::id()));
        if version == 2 {
            write(&root.join("cgroup.subtree_control"), "+memory")?;
        }
        fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
        let limit = Self { directory, root };
        // Without swap: it would put the end off.
        if version == 1 {
            limit.set("memory.limit_in_bytes", &bytes.to_string())?;
            limit.set("memory.swappiness", "0")?;
        } else {
            limit.set("memory.max", &bytes.to_string())?;
            if limit.directory.join("memory.swap.max").exists() {
                limit.set("memory.swap.max", "0")?;
            }
        }
        limit.set("cgroup.procs", &pid.to_string())?;
        Ok(limit)
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        write(&self.directory.join(file), value)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        for pid in fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(self.root.join("cgroup.procs"), pid);
        }
        // A process that has just been killed is counted until it is reaped.
        let _ = wait_until("the control group is empty", Duration::from_secs(2), || {
            Ok(fs::remove_dir(&self.directory).is_ok())
        });
    }
}

/// Where memory is controlled, and by which version of control groups.
fn hierarchy(mounts: &str) -> Result<(PathBuf, u8)> {
    let mut second = None;
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(place), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next()) else { continue };
        if kind == "cgroup" && options.split(',').any(|option| option == "memory") {
            return Ok((place.into(), 1));
        }
        if kind == "cgroup2" {
            second = Some(PathBuf::from(place));
        }
    }
    let Some(second) = second else { bail!("no control groups are mounted") };
    Ok((second, 2))
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {path}"))
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("write {value} to {}", path.display()))
}

/// A control group whose BPF program forbids `connect()` to one port over IPv4; when it is dropped, whoever is in it goes back to the root,
/// and it is removed, and its program with it.
#[derive(Debug)]
pub struct ConnectPolicy {
    directory: PathBuf,
    root: PathBuf,
}

impl ConnectPolicy {
    /// Puts processes under the policy.
    pub fn hold(pids: &[u32], port: u16) -> Result<Self> {
        let root = second(&read("/proc/self/mounts")?)?;
        let directory = root.join(format!("{PREFIX}{}-connect-{port}", std::process::id()));
        fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
        let policy = Self { directory, root };
        let program = crate::bpf::forbid_connecting(port)?;
        let group = fs::File::open(&policy.directory).context("open the control group")?;
        crate::bpf::attach_to_connect(&program, &group)?;
        for pid in pids {
            write(&policy.directory.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(policy)
    }
}

impl Drop for ConnectPolicy {
    fn drop(&mut self) {
        for pid in fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(self.root.join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.directory);
    }
}

/// A control group that is frozen; when it is dropped, it is thawed, whoever is in it goes back to the root, and it is removed.
#[derive(Debug)]
pub struct Frozen {
    directory: PathBuf,
    root: PathBuf,
}

impl Frozen {
    /// Freezes a process, and waits until it is.
    pub fn hold(pid: u32) -> Result<Self> {
        let root = second(&read("/proc/self/mounts")?)?;
        let directory = root.join(format!("{PREFIX}{}-frozen-{pid}", std::process::id()));
        fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
        let frozen = Self { directory, root };
        write(&frozen.directory.join("cgroup.procs"), &pid.to_string())?;
        write(&frozen.switch(), "1")?;
        let events = frozen.directory.join("cgroup.events");
        wait_until("the control group is frozen", Duration::from_secs(5), || {
            Ok(fs::read_to_string(&events).unwrap_or_default().contains("frozen 1"))
        })?;
        Ok(frozen)
    }

    /// The file that thaws it.
    #[must_use]
    pub fn switch(&self) -> PathBuf {
        self.directory.join("cgroup.freeze")
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = fs::write(self.switch(), "0");
        for pid in fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(self.root.join("cgroup.procs"), pid);
        }
        let _ = wait_until("the control group is empty", Duration::from_secs(2), || {
            Ok(fs::remove_dir(&self.directory).is_ok())
        });
    }
}

/// Where the second version of control groups is mounted.
fn second(mounts: &str) -> Result<PathBuf> {
    let place = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(place))
    });
    place.context("no control groups of the second version are mounted")
}

#[cfg(test)]
mod tests {
    use super::hierarchy;

    #[test]
    fn memory_is_controlled_by_the_first_version_where_it_has_it() {
        let second = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        let first = "cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n";
        let (place, version) = hierarchy(&format!("{second}{first}")).unwrap();
        assert_eq!((place.to_str(), version), (Some("/sys/fs/cgroup/memory"), 1));
        let (place, version) = hierarchy(second).unwrap();
        assert_eq!((place.to_str(), version), (Some("/sys/fs/cgroup/unified"), 2));
        assert!(hierarchy("proc /proc proc rw 0 0\n").is_err());
    }
}
