//! Memory that is not needed any more.

use std::{fs, path::Path, ptr::NonNull, sync::OnceLock};

use nix::sys::mman::{MmapAdvise, madvise};

/// Gives back to the kernel what is free, and the program's own code. Reading the kernel's types and nginx's symbols takes tens of megabytes for
/// a moment, a storm hundreds, and the allocator would keep them for the days that follow; of the code most ran once, at the start, and
/// what runs again comes back from the page cache.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no preconditions; it locks the allocator's own arenas.
    unsafe {
        libc::malloc_trim(0);
    }
    // Found at the first call: later, a thread may not be allowed to look.
    for (first, behind) in CODE.get_or_init(all_code) {
        let Some(start) = NonNull::new(std::ptr::with_exposed_provenance_mut(*first)) else { continue };
        // SAFETY: this is code: a private mapping of a file that nobody writes to. Its pages are read again from the file where they are
        // touched, so that nothing changes for who runs in them.
        let done = unsafe { madvise(start, behind - first, MmapAdvise::MADV_DONTNEED) };
        if let Err(error) = done {
            tracing::debug!("the program's code stays in memory: {error}");
        }
    }
}

/// Has all threads share one heap, for those that allocate little: what one thread leaves free another uses. To be called before there are
/// threads.
pub fn share_a_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no preconditions; it sets a number of the allocator's.
    let _done = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Where this program's code is.
static CODE: OnceLock<Vec<(usize, usize)>> = OnceLock::new();

fn all_code() -> Vec<(usize, usize)> {
    let program = fs::read_link("/proc/self/exe").ok();
    let program = program.as_deref().and_then(Path::to_str);
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    program.map(|program| maps.lines().filter_map(|line| code(line, program)).collect()).unwrap_or_default()
}

/// Where code of this program is mapped, or what never changes: `55d0c0a00000-55d0c1200000 r-xp 00a00000 08:01 1234  /usr/bin/probe502`.
/// Of what can only be read the beginning of the file is so; what follows the code was written to when the program was linked as it started.
fn code(line: &str, program: &str) -> Option<(usize, usize)> {
    let mut words = line.split_whitespace();
    let (first, behind) = words.next()?.split_once('-')?;
    let is_code = match (words.next()?, words.next()?) {
        ("r-xp", _) => true,
        ("r--p", offset) => offset.bytes().all(|digit| digit == b'0'),
        _ => false,
    } && line.ends_with(program);
    let number = |text| usize::from_str_radix(text, 16).ok();
    let (first, behind) = (number(first)?, number(behind)?);
    (is_code && first < behind).then_some((first, behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_the_program_is_let_go() {
        let program = "/usr/bin/probe502";
        let line =
            |rights: &str, file: &str| format!("55d0c0a00000-55d0c0a02000 {rights} 00a00000 08:01 1234      {file}");
        assert_eq!(code(&line("r-xp", program), program), Some((0x55d0_c0a0_0000, 0x55d0_c0a0_2000)));
        assert_eq!(code(&line("r--p", program), program), None);
        let first = line("r--p", program).replace("00a00000 08", "00000000 08");
        assert_eq!(code(&first, program), Some((0x55d0_c0a0_0000, 0x55d0_c0a0_2000)));
        assert_eq!(code(&line("rw-p", program), program), None);
        assert_eq!(code(&line("r-xp", "/usr/lib/libpcap.so.1"), program), None);
        assert_eq!(code("7ffd0-7ffd1 r-xp 00000000 00:00 0 [vdso]", program), None);
        assert_eq!(code("garbage", program), None);
    }

    /// Kilobytes of this program's code that are in memory.
    fn resident() -> u64 {
        let program = fs::read_link("/proc/self/exe").unwrap();
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| code(line, program.to_str().unwrap()).is_none());
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn code_that_does_not_run_is_not_in_memory() {
        let before = resident();
        give_back();
        let after = resident();
        assert!(after < before, "{before} kB before, {after} kB after");
    }
}
