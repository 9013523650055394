//! Processes: born, replaced, signalled, gone.

use aya_ebpf::{helpers::bpf_get_current_comm, programs::RawTracePointContext};
use probe_abi::{
    Kind,
    globals::ABSENT,
    process::{Exec, Exit, Fork, Held, OomVictim, Signal, Watched, role},
};

use super::{
    emit,
    globals::{offset, setting},
    read, target, unix,
};

/// Signals that say nothing here (bits): 14 ALRM, 17 CHLD, 23 URG, 26 VTALRM, 27 PROF, 28 WINCH, 29 IO. Go runtimes send
/// SIGURG to themselves all the time, `timer_resolution` makes nginx take a SIGALRM per tick, and the death of a child
/// is told by itself. Real-time signals (32 and up) are the threading library's own.
const QUIET: u32 = 1 << 14 | 1 << 17 | 1 << 23 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29;
/// What ends a stop.
const SIGCONT: u32 = 18;

/// `sched_process_fork(parent, child)`, in the parent's context. A thread is not a process.
#[inline(always)]
pub(crate) fn fork(context: &RawTracePointContext) -> Option<()> {
    let parent = target::current();
    let mut watched = target::watched(parent)?;
    let child: u32 = read::member(context.arg(1), offset!(task_tgid))?;
    if child == parent {
        return Some(());
    }
    if watched.role == role::NGINX_MASTER {
        watched.role = role::NGINX_WORKER;
    }
    target::watch(child, &watched);
    emit::record(Kind::Fork, |record: &mut Fork| {
        record.child = child;
        record.role = watched.role;
        record.command = command();
    });
    Some(())
}

/// `sched_process_exec(p, old_pid, bprm)`, in the process's context, its new name already in place.
#[inline(always)]
pub(crate) fn exec() -> Option<()> {
    let role = target::watched(target::current()).map_or(0, |process| process.role);
    let command = command();
    if role != 0 || is_nginx(&command) {
        emit::record(Kind::Exec, |record: &mut Exec| {
            record.role = role;
            record.command = command;
        });
    }
    Some(())
}

/// `sched_process_exit(p[, group_dead])`, in the process's context, its code already set.
#[inline(always)]
pub(crate) fn exit(context: &RawTracePointContext) -> Option<()> {
    let tgid = target::current();
    let watched: Watched = target::watched(tgid)?;
    let task: u64 = context.arg(0);
    let signal: u64 = read::member(task, offset!(task_signal))?;
    let last = if setting!(has_group_dead) == 0 {
        // Counted down before the tracepoint. https://elixir.bootlin.com/linux/v6.1/source/kernel/exit.c (do_exit)
        read::member::<u32>(signal, offset!(signal_live))? == 0
    } else {
        context.arg::<u64>(1) & 0xff != 0
    };
    if !last {
        return Some(());
    }
    let group: u32 = read::member(signal, offset!(signal_group_exit_code)).unwrap_or(0);
    let code = if group == 0 { read::member(task, offset!(task_exit_code))? } else { group };
    // Bit 0 is signal 1, in the low half of the set's first word.
    let waiting = read::member::<u32>(signal, offset!(signal_pending)).unwrap_or(0)
        | read::member::<u32>(task, offset!(task_pending)).unwrap_or(0);
    target::forget(tgid);
    if watched.role == role::UPSTREAM && offset!(upid_nr) != ABSENT {
        emit::record(Kind::Held, |record: &mut Held| unix::held(record, &watched));
    }
    emit::record(Kind::Exit, |record: &mut Exit| {
        record.code = (code & 0xffff) | ((waiting & 0x7fff) << 17);
        record.role = watched.role;
        record.command = command();
    });
    Some(())
}

/// `signal_generate(sig, info, task, group, result)`. `info` below a page is not a pointer: 0 a process, 1 the kernel.
/// <https://elixir.bootlin.com/linux/v6.12/source/include/linux/sched/signal.h> (`SEND_SIG_NOINFO`, `SEND_SIG_PRIV`)
#[inline(always)]
pub(crate) fn signal(context: &RawTracePointContext) -> Option<()> {
    let signal: u32 = context.arg(0);
    if signal > 31 || QUIET >> signal & 1 != 0 {
        return Some(());
    }
    // `SIG_IGN`, or the first process of a container without a handler: nothing comes of it. But a stopped process goes on before it is
    // asked whether SIGCONT is ignored, which it is by default (`prepare_signal()`).
    if signal != SIGCONT && context.arg::<u32>(4) == IGNORED {
        return Some(());
    }
    let target: u32 = read::member(context.arg(2), offset!(task_tgid))?;
    let watched = target::watched(target)?;
    let info: u64 = context.arg(1);
    let code: i32 = match info {
        0 => 0,
        1 => SI_KERNEL,
        _ => read::member(info, offset!(siginfo_code))?,
    };
    emit::record(Kind::Signal, |record: &mut Signal| {
        record.signal = signal;
        record.target = target;
        record.code = code;
        record.from_kernel = u32::from(code > 0);
        record.command = command();
        record.role = watched.role;
    });
    Some(())
}

/// `mark_victim(task, uid)`, or `mark_victim(pid)` in older kernels.
#[inline(always)]
pub(crate) fn oom_victim(context: &RawTracePointContext) -> Option<()> {
    let victim: u32 =
        if setting!(victim_is_task) == 0 { context.arg(0) } else { read::member(context.arg(0), offset!(task_tgid))? };
    emit::record(Kind::OomVictim, |record: &mut OomVictim| {
        record.victim = victim;
        record.role = target::watched(victim).map_or(0, |process| process.role);
    });
    Some(())
}

/// `TRACE_SIGNAL_IGNORED` (`include/trace/events/signal.h`, 6.12).
const IGNORED: u32 = 1;
/// `SI_KERNEL`.
const SI_KERNEL: i32 = 0x80;

/// The current process's name.
#[inline(always)]
pub(crate) fn command() -> [u8; 16] {
    bpf_get_current_comm().unwrap_or_default()
}

/// Whether a program of this name is an nginx or one of its forks.
#[inline(always)]
fn is_nginx(command: &[u8; 16]) -> bool {
    begins(command, b"nginx")
        || begins(command, b"angie")
        || begins(command, b"openresty")
        || begins(command, b"freenginx")
}

#[inline(always)]
fn begins<const N: usize>(command: &[u8; 16], name: &[u8; N]) -> bool {
    const { assert!(N <= 16) };
    let mut index = 0;
    while index < N {
        if command[index] != name[index] {
            return false;
        }
        index += 1;
    }
    true
}
