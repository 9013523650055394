//! System calls of watched processes: the failures that leave no packet.

use aya_ebpf::{
    helpers::generated::{bpf_get_current_task_btf, bpf_ktime_get_boot_ns, bpf_task_pt_regs},
    programs::{FExitContext, RawTracePointContext, TracePointContext},
};
use probe_abi::{
    Kind,
    endpoint::FAMILY_UNIX,
    losses::counter,
    process::{Watched, role},
    socket::state,
    syscall::{Accept, Connect, OpenCall, PATH, SocketCall},
};

use super::{
    descriptor, emit,
    globals::{offset, setting},
    maps::{FAILED_ACCEPT, FailedAccept},
    process::command,
    read,
    request::{endpoint, internet},
    socket::{Probed, Sock, TCP, describe, identify},
    target, unix,
};

/// `-EINPROGRESS`: how a connection normally begins in nginx.
const IN_PROGRESS: i64 = -115;
/// `-EAGAIN`: nobody is waiting to be accepted.
const AGAIN: i64 = -11;

/// `-EMFILE`, `-ENFILE`: out of descriptors, the process or the host.
const OUT_OF_FILES: [i64; 2] = [-24, -23];

/// A system call about to return.
pub(crate) struct Exit {
    /// `struct pt_regs *` as it was at the call; the result is not in it yet.
    registers: u64,
    /// What it returns.
    pub(crate) result: i64,
    /// The caller.
    tgid: u32,
}

impl Exit {
    /// From a tracepoint of one call; its record is common fields, the call's number, then the result.
    #[inline(always)]
    pub(crate) fn of_tracepoint(context: &TracePointContext) -> Option<Self> {
        let result = result_of(context)?;
        // SAFETY: the current task is alive, and so are its saved registers.
        let registers = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as u64;
        Some(Self { registers, result, tgid: target::current() })
    }

    /// From the return of the call's own function, `long __x64_sys_connect(const struct pt_regs *)` and its like: the verifier knows one
    /// argument, and the result stands behind it.
    #[inline(always)]
    pub(crate) fn of_function(context: &FExitContext) -> Self {
        Self { registers: context.arg(0), result: context.arg(1), tgid: target::current() }
    }

    #[inline(always)]
    fn argument_0(&self) -> Option<u64> {
        read::member(self.registers, offset!(regs_argument_0))
    }

    #[inline(always)]
    fn argument_1(&self) -> Option<u64> {
        read::member(self.registers, offset!(regs_argument_1))
    }

    #[inline(always)]
    fn argument_2(&self) -> Option<u64> {
        read::member(self.registers, offset!(regs_argument_2))
    }
}

/// What the call of a tracepoint returns.
#[inline(always)]
fn result_of(context: &TracePointContext) -> Option<i64> {
    // SAFETY: `struct syscall_trace_exit` has been laid out so since 2.6.33.
    unsafe { context.read_at(16) }.ok()
}

/// Raw `sys_exit(regs, result)`, for every call of every process: what is not watched leaves at once.
#[inline(always)]
pub(crate) fn any(context: &RawTracePointContext) -> Option<()> {
    let registers: u64 = context.arg(0);
    let number: u64 = read::member(registers, offset!(regs_number))?;
    let exit = Exit { registers, result: context.arg(1), tgid: target::current() };
    if number == u64::from(setting!(syscall_numbers[0])) {
        connect(&exit)
    } else if number == u64::from(setting!(syscall_numbers[1])) || number == u64::from(setting!(syscall_numbers[2])) {
        accept(&exit)
    } else if number == u64::from(setting!(syscall_numbers[3])) {
        socket(&exit)
    } else if number == u64::from(setting!(syscall_numbers[4])) || number == u64::from(setting!(syscall_numbers[5])) {
        open(exit.result)
    } else {
        None
    }
}

/// `connect(fd, address, length)`: every result of nginx's workers, the failures of the others.
///
/// Where the kernel's types are known, only of TCP and unix sockets: a resolver connects as well, over UDP.
#[inline(always)]
pub(crate) fn connect(exit: &Exit) -> Option<()> {
    let process = target::watched(exit.tgid)?;
    let ordinary = exit.result == 0 || exit.result == IN_PROGRESS;
    if process.role == role::UPSTREAM && ordinary {
        return Some(());
    }
    let descriptor = exit.argument_0()? as i32;
    let address = exit.argument_1()?;
    let length = exit.argument_2()?;
    let sock = descriptor::socket(descriptor);
    let found = sock.and_then(internet);
    if let (Some(sock), Some(_)) = (sock, found)
        && Probed(sock).read::<u16>(offset!(sock_protocol)).is_some_and(|protocol| protocol != TCP)
    {
        return Some(());
    }
    emit::record(Kind::Connect, |record: &mut Connect| {
        record.result = exit.result as i32;
        record.fd = descriptor;
        let family = endpoint(&mut record.address, address);
        if family == Some(FAMILY_UNIX) {
            path(record, address, length);
        }
        if let (Some(sock), Some((ends, state))) = (sock, found) {
            describe(&mut record.socket, Probed(sock), &ends, state);
        } else if let (Some(sock), Some(FAMILY_UNIX), 0) = (sock, family, exit.result) {
            unix::describe(&mut record.socket, sock);
        }
    });
    Some(())
}

/// `sun_path` behind the family: a string, or, of an abstract socket, bytes that begin with a NUL.
#[inline(always)]
fn path(record: &mut Connect, address: u64, length: u64) {
    const FAMILY: u64 = 2;
    let from = address.wrapping_add(FAMILY);
    let wanted = length.saturating_sub(FAMILY).min(PATH as u64);
    if read::user::<u8>(from) == Some(0) {
        let to = (&raw mut record.path).cast::<[u8; 128]>();
        // SAFETY: `path` is 108 bytes long, and no more than that is copied; the 128 are for the verifier, whose bound
        // is a mask, and lie inside the record.
        if unsafe { read::user_bytes(&mut *to, from, wanted) } {
            record.path_length = wanted as u32;
        }
    } else if let Some(read) = read::user_string(&mut record.path, from) {
        record.path_length = read;
    }
}

/// `accept(fd, …)`, `accept4(fd, …)`. A process that serves a watched address becomes watched by this.
#[inline(always)]
pub(crate) fn accept(exit: &Exit) -> Option<()> {
    if exit.result == AGAIN {
        return Some(());
    }
    let listener = exit.argument_0()? as i32;
    // What was accepted; if nothing was, the listener with its queue.
    let number = if exit.result < 0 { listener } else { exit.result as i32 };
    let watched = target::watched(exit.tgid);
    let sock = descriptor::socket(number);
    let found = sock.and_then(internet);
    if watched.is_none() {
        let serves = match found {
            // A listener may have a wildcard address, an accepted socket has not.
            Some((ends, state::LISTEN)) => target::port(ends.local.port),
            Some((ends, _)) => target::upstream(&ends.local),
            None => exit.result >= 0 && unix::serves_nginx(sock?),
        };
        if !serves {
            return Some(());
        }
        target::watch(exit.tgid, &Watched { role: role::UPSTREAM, layout: 0, master: exit.tgid, reserved: 0 });
    }
    if exit.result < 0 && repeats(exit, sock.unwrap_or(0)) {
        emit::count(counter::ACCEPTS_REPEATED);
        return Some(());
    }
    emit::record(Kind::Accept, |record: &mut Accept| {
        record.result = exit.result as i32;
        record.fd = listener;
        record.command = command();
        // One after the other: a pair of both is copied whole, also where there is nothing in it, and before 6.3 the verifier lets nobody
        // read a stack that was not written.
        let Some(sock) = sock else { return };
        match &found {
            None => unix::describe(&mut record.socket, sock),
            Some((ends, state)) if exit.result < 0 => describe(&mut record.socket, Probed(sock), ends, *state),
            // Who has it now is what this tells; how far it is, its state changes do.
            Some((ends, state)) => identify(&mut record.socket, Probed(sock), ends, *state),
        }
    });
    Some(())
}

/// A server out of descriptors may call `accept()` in a loop, hundreds of thousands of times a second: once a millisecond says the same
/// and leaves the ring to others.
#[inline(always)]
fn repeats(exit: &Exit, listener: u64) -> bool {
    const REST_NS: u64 = 1_000_000;
    let Some(last) = FAILED_ACCEPT.get_ptr_mut(0) else { return false };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let told = FailedAccept { time_ns: now, listener, tgid: exit.tgid, result: exit.result as i32 };
    // SAFETY: this CPU's own slot.
    unsafe {
        let before = *last;
        let same = (before.listener, before.tgid, before.result) == (listener, told.tgid, told.result);
        if same && now.wrapping_sub(before.time_ns) < REST_NS {
            return true;
        }
        *last = told;
    }
    false
}

/// `socket(family, …)`: failures only.
#[inline(always)]
pub(crate) fn socket(exit: &Exit) -> Option<()> {
    if exit.result >= 0 || target::watched(exit.tgid).is_none() {
        return Some(());
    }
    let family = exit.argument_0()? as i32;
    emit::record(Kind::SocketCall, |record: &mut SocketCall| {
        record.result = exit.result as i32;
        record.family = family;
    });
    Some(())
}

/// `open()`, `openat()`: only for want of descriptors. Programs open files all the time: nothing but the result is looked at first.
#[inline(always)]
pub(crate) fn open_of(context: &TracePointContext) -> Option<()> {
    open(result_of(context)?)
}

/// The same where the result is known.
#[inline(always)]
pub(crate) fn open(result: i64) -> Option<()> {
    if !OUT_OF_FILES.contains(&result) || target::watched(target::current()).is_none() {
        return Some(());
    }
    emit::record(Kind::OpenCall, |record: &mut OpenCall| record.result = result as i32);
    Some(())
}
