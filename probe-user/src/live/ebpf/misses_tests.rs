//! A program that is skipped on purpose: it prints, which is itself an event, and it runs at that event.

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};

use super::misses_of;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    value: i32,
}

const fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, value }
}

/// `bpf_trace_printk("x")`.
const PRINTS: [Instruction; 7] = [
    // *(u64 *)(r10 - 8) = 'x', with its end
    instruction(0x7a, 10, 0, -8, 0x78),
    // r1 = r10 - 8; r2 = 2
    instruction(0xbf, 1, 10, 0, 0),
    instruction(0x07, 1, 0, 0, -8),
    instruction(0xb7, 2, 0, 0, 2),
    // call 6; r0 = 0; exit
    instruction(0x85, 0, 0, 0, 6),
    instruction(0xb7, 0, 0, 0, 0),
    instruction(0x95, 0, 0, 0, 0),
];

/// The part of `union bpf_attr` that is used here.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

#[repr(C)]
struct Attach {
    name: u64,
    program: u32,
    reserved: u32,
}

/// `test` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Run {
    program: u32,
    result: u32,
    sizes: [u32; 2],
    data: [u64; 2],
    repeat: u32,
    duration: u32,
    context_sizes: [u32; 2],
    context: [u64; 2],
    flags: u32,
    processor: u32,
    batch: u32,
    reserved: u32,
}

fn bpf<T>(command: libc::c_int, mut argument: T) -> io::Result<libc::c_long> {
    // SAFETY: the argument lives through the call, which is told its size.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut argument, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn descriptor(result: libc::c_long) -> OwnedFd {
    // SAFETY: the call has just made it, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(result).unwrap()) }
}

fn text(text: &'static CStr) -> u64 {
    text.as_ptr() as u64
}

#[test]
#[ignore = "needs root"]
fn a_program_that_was_skipped_is_counted() {
    use std::os::fd::AsRawFd as _;

    const PROG_LOAD: libc::c_int = 5;
    const PROG_TEST_RUN: libc::c_int = 10;
    const RAW_TRACEPOINT_OPEN: libc::c_int = 17;
    const RAW_TRACEPOINT: u32 = 17;

    let load = Load {
        kind: RAW_TRACEPOINT,
        count: u32::try_from(PRINTS.len()).unwrap(),
        instructions: PRINTS.as_ptr() as u64,
        license: text(c"GPL"),
    };
    let program = descriptor(bpf(PROG_LOAD, load).unwrap());
    assert_eq!(misses_of(program.as_fd()).unwrap(), Some(0), "this kernel counts, and nothing happened yet");
    let number = u32::try_from(program.as_raw_fd()).unwrap();
    let attach = Attach { name: text(c"bpf_trace_printk"), program: number, reserved: 0 };
    let _attached = descriptor(bpf(RAW_TRACEPOINT_OPEN, attach).unwrap());
    for expected in 1..=3 {
        // Run by hand it prints, at which it runs by itself, and prints: at that it is at work already.
        bpf(PROG_TEST_RUN, Run { program: number, ..Run::default() }).unwrap();
        assert_eq!(misses_of(program.as_fd()).unwrap(), Some(expected));
    }
}
