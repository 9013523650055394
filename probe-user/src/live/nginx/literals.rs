//! nginx's string literals, made present in the memory of a process.
//!
//! A worker that was just forked has none of its program's read-only pages: the kernel does not copy their entries, each is put in when
//! the worker first touches it (`vma_needs_copy()`, <https://elixir.bootlin.com/linux/v6.18/source/mm/memory.c>). A kernel program
//! cannot wait for that, and what nginx was doing ("connecting to upstream") would be missing from its first complaints.

use std::{os::unix::fs::FileExt as _, path::Path};

use procfs::{
    ProcResult,
    process::{MMPermissions, MMapPath, MemoryMap, Process},
};

/// The smallest page.
const PAGE: u64 = 4 << 10;
/// The most of a mapping that is touched; nginx's literals are some hundred KiB.
const MOST: u64 = 4 << 20;

/// Touches the read-only data of the program that this process runs, from outside.
///
/// # Errors
/// The process is gone, or not ours to look at.
pub(in crate::live) fn touch(pid: u32) -> ProcResult<()> {
    let process = Process::new(i32::try_from(pid).unwrap_or(-1))?;
    let program = process.exe()?;
    let memory = process.mem()?;
    for map in process.maps()?.into_iter().filter(|map| holds_literals(map, &program)) {
        let (from, to) = map.address;
        let mut at = from;
        while at < to.min(from.saturating_add(MOST)) {
            // A page beyond the file's end cannot be read, and holds no literal.
            if memory.read_at(&mut [0], at).is_err() {
                break;
            }
            at = at.saturating_add(PAGE);
        }
    }
    Ok(())
}

/// Whether it is a mapping of this program that is neither written nor run.
fn holds_literals(map: &MemoryMap, program: &Path) -> bool {
    map.perms == MMPermissions::READ | MMPermissions::PRIVATE
        && matches!(&map.pathname, MMapPath::Path(path) if path == program)
}

#[cfg(test)]
mod tests {
    use std::{process::Command, thread, time::Duration};

    use super::*;

    /// Bytes of its literals that the process has, as the kernel says.
    fn resident(pid: u32) -> ProcResult<(u64, u64)> {
        let process = Process::new(i32::try_from(pid).unwrap_or(-1))?;
        let program = process.exe()?;
        let maps = process.smaps()?.into_iter().filter(|map| holds_literals(map, &program));
        let sizes = maps.map(|map| (map.extension.map.get("Rss").copied().unwrap_or(0), map.address.1 - map.address.0));
        Ok(sizes.fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1)))
    }

    /// bash has more literals than a command needs that does nothing.
    #[test]
    fn a_process_has_its_literals_after_a_touch() -> ProcResult<()> {
        let mut child = Command::new("/bin/bash").args(["-c", "read -t 30 < <(sleep 30)"]).spawn()?;
        thread::sleep(Duration::from_millis(200));
        let (before, touched, after) = (resident(child.id())?, touch(child.id()), resident(child.id())?);
        child.kill()?;
        child.wait()?;
        touched?;
        assert_eq!(after.0, after.1, "all of them are there; before: {before:?}");
        Ok(())
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        assert!(touch(u32::MAX).is_err());
    }
}
