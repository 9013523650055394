//! A BPF program of five instructions, as a host's policy has them: no connection to this port.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

/// Numbers of `enum bpf_cmd`, `enum bpf_prog_type`, `enum bpf_attach_type`
/// (<https://elixir.bootlin.com/linux/v6.12/source/include/uapi/linux/bpf.h>).
const PROG_LOAD: i64 = 5;
const PROG_ATTACH: i64 = 8;
const CGROUP_SOCK_ADDR: u32 = 18;
const CGROUP_INET4_CONNECT: u32 = 10;

/// `struct bpf_insn`: opcode, registers (source high, destination low), offset, immediate value.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Instruction {
    opcode: u8,
    registers: u8,
    offset: i16,
    value: i32,
}

/// What `BPF_PROG_LOAD` needs of `union bpf_attr`.
#[derive(Debug)]
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// What `BPF_PROG_ATTACH` needs of it.
#[derive(Debug)]
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Loads a program that lets every `connect()` over IPv4 pass but those to this port, which get EPERM.
pub(crate) fn forbid_connecting(port: u16) -> Result<OwnedFd> {
    let instruction = |opcode, registers, offset, value| Instruction { opcode, registers, offset, value };
    // `struct bpf_sock_addr` has the port at 24, in network order.
    let instructions = [
        instruction(0x61, 0x12, 24, 0),                      // r2 = context.user_port
        instruction(0xb7, 0x00, 0, 1),                       // r0 = 1: allowed
        instruction(0x55, 0x02, 1, i32::from(port.to_be())), // if r2 != port, skip one
        instruction(0xb7, 0x00, 0, 0),                       // r0 = 0: EPERM
        instruction(0x95, 0x00, 0, 0),                       // return r0
    ];
    let mut load = Load {
        kind: CGROUP_SOCK_ADDR,
        count: u32::try_from(instructions.len()).context("count the instructions")?,
        instructions: instructions.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        version: 0,
        flags: 0,
        name: *b"lab_no_connect\0\0",
        interface: 0,
        attach_type: CGROUP_INET4_CONNECT,
    };
    // SAFETY: the pointers in `load` are to `instructions` and a static string, which outlive the call.
    let number = unsafe { bpf(PROG_LOAD, &mut load) }.context("load a BPF program")?;
    // SAFETY: the kernel has just given this descriptor to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Attaches it to a control group; it goes with the group.
pub(crate) fn attach_to_connect(program: &OwnedFd, group: &File) -> Result<()> {
    let number = |descriptor: i32| u32::try_from(descriptor).context("a descriptor");
    let mut attach = Attach {
        target: number(group.as_raw_fd())?,
        program: number(program.as_raw_fd())?,
        kind: CGROUP_INET4_CONNECT,
        flags: 0,
    };
    // SAFETY: `attach` holds no pointers.
    unsafe { bpf(PROG_ATTACH, &mut attach) }.context("attach a BPF program to a control group")?;
    Ok(())
}

/// `bpf(2)`, for which libc has no function.
///
/// # Safety
///
/// `attributes` must be laid out as the command wants it, and its pointers must be valid during the call.
unsafe fn bpf<T>(command: i64, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: as promised by the caller; the size is that of `attributes`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(result).map_err(io::Error::other) }
}
