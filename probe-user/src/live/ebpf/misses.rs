//! Events for which a program of ours was not run, because it was at work already on that processor.
//!
//! The kernel runs no program within itself. Since 6.1 that goes for raw tracepoints too (`__bpf_trace_run`,
//! <https://elixir.bootlin.com/linux/v6.1/source/kernel/trace/bpf_trace.c>), and since 7.0 a task can be taken off its processor in the middle of
//! one: then another task's event of the same kind is skipped. The kernel counts that (5.12) and tells nobody.

use std::{
    collections::BTreeMap,
    io,
    mem::size_of,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use super::load::Kernel;

impl Kernel {
    /// How often each program was not run for its event, of those to which that has happened. Cheap enough to be asked all the time: a
    /// system call for each.
    #[must_use]
    pub fn misses(&self) -> BTreeMap<String, u64> {
        let of = |program: &aya::programs::Program| misses_of(program.fd().ok()?.as_fd()).ok().flatten();
        self.ebpf
            .programs()
            .filter_map(|(name, program)| of(program).filter(|count| *count > 0).map(|count| (name.to_owned(), count)))
            .collect()
    }
}

/// `struct bpf_prog_info` (`linux/bpf.h`) in words, up to and with the one that is wanted here.
const WORDS: usize = 27;
/// `recursion_misses`, in words from its beginning.
const MISSES: usize = 26;

/// What `BPF_OBJ_GET_INFO_BY_FD` is asked with.
#[repr(C)]
struct Question {
    descriptor: u32,
    length: u32,
    answer: u64,
}

/// How often this program was skipped; `None` on a kernel that does not count that.
fn misses_of(program: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
    // Zeroes mean that no list is wanted.
    let mut info = [0_u64; WORDS];
    let mut question = Question {
        descriptor: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
        length: u32::try_from(size_of::<[u64; WORDS]>()).map_err(io::Error::other)?,
        answer: info.as_mut_ptr() as u64,
    };
    // SAFETY: the kernel reads the question, whose size is given, and writes as many bytes into `info` as the question says it has; both
    // live through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET_INFO_BY_FD, &raw mut question, size_of::<Question>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // An older kernel's structure ends earlier.
    let told = usize::try_from(question.length).unwrap_or(0) / size_of::<u64>();
    Ok(info.get(MISSES).copied().filter(|_| told > MISSES))
}

#[cfg(test)]
#[path = "misses_tests.rs"]
mod tests;
