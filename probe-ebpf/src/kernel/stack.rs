//! Keeping the programs at nginx's functions on the stack of the process that runs them.
//!
//! From 6.13 on the kernel gives a program whose frames are large a stack of its own, one for each processor, and relies on nobody
//! running that program a second time on that processor meanwhile. It makes sure of that for tracepoints, and not for uprobes: where
//! a process can be preempted inside one (7.2 with lazy preemption), the next process at the same function writes over its frame,
//! and the first goes on with the other's pointers. Seen on Debian's 7.2.12: the kernel's own null pointer dereference.
//!
//! No program with a tail call in it gets such a stack; whether the call can be reached is not asked.
//! <https://elixir.bootlin.com/linux/v6.13/source/kernel/bpf/verifier.c> (`check_max_stack_depth`, `bpf_enable_priv_stack`)

use aya_ebpf::{btf_maps::ProgramArray, macros::btf_map, programs::ProbeContext};

use super::globals::setting;

/// Empty, and stays so.
#[btf_map]
static NO_PROGRAMS: ProgramArray<1> = ProgramArray::new();

/// To be called first in each program at a function of nginx; does nothing.
#[inline(always)]
pub(crate) fn shared(context: &ProbeContext) {
    if setting!(never) != 0 {
        // SAFETY: with no program in the map it comes back; and the loader leaves the switch at zero.
        unsafe { NO_PROGRAMS.tail_call(context, 0) };
    }
}
