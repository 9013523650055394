//! The kernel programs' entry points.
//!
//! One line each (and one more for uprobes): which hook, and which function of [`kernel`] answers it. The names are the ABI of
//! [`probe_abi::names::program`]; the loader's table says which of two programs for the same tracepoint is tried first.
#![no_std]
#![no_main]
#![expect(clippy::inline_always, reason = "the verifier follows pointers best where there are no calls")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "registers are 64 bits wide whatever the value in them; sizes here are far below 4 GiB"
)]
#![expect(clippy::needless_pass_by_value, reason = "the shape of an entry point is given")]
#![expect(clippy::unnecessary_wraps, reason = "every handler answers alike, so that `?` works in each")]

mod kernel;

use aya_ebpf::{
    macros::{btf_tracepoint, fexit, raw_tracepoint, tracepoint, uprobe},
    programs::{BtfTracePointContext, FExitContext, ProbeContext, RawTracePointContext, TracePointContext},
};
use kernel::{answer, drops, nginx, process, records, stack, syscalls, tcp};

#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state(context: BtfTracePointContext) -> Option<()> {
    tcp::state_typed(&context)
}

#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
fn inet_sock_set_state_raw(context: RawTracePointContext) -> Option<()> {
    tcp::state_probed(&context)
}

#[tracepoint(category = "sock", name = "inet_sock_set_state")]
fn inet_sock_set_state_record(context: TracePointContext) -> Option<()> {
    records::state(&context)
}

#[tracepoint(category = "tcp", name = "tcp_receive_reset")]
fn tcp_receive_reset_record(context: TracePointContext) -> Option<()> {
    records::reset_received(&context)
}

#[tracepoint(category = "tcp", name = "tcp_retransmit_skb")]
fn tcp_retransmit_skb_record(context: TracePointContext) -> Option<()> {
    records::retransmit(&context)
}

#[tracepoint(category = "sock", name = "inet_sk_error_report")]
fn inet_sk_error_report_record(context: TracePointContext) -> Option<()> {
    records::error_report(&context)
}

#[raw_tracepoint(tracepoint = "tcp_send_reset")]
fn tcp_send_reset(context: RawTracePointContext) -> Option<()> {
    tcp::reset_sent(&context)
}

#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
fn tcp_receive_reset(context: RawTracePointContext) -> Option<()> {
    tcp::reset_received(&context)
}

#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
fn tcp_retransmit_skb(context: RawTracePointContext) -> Option<()> {
    tcp::retransmit(&context)
}

#[raw_tracepoint(tracepoint = "tcp_retransmit_synack")]
fn tcp_retransmit_synack(context: RawTracePointContext) -> Option<()> {
    tcp::synack_retransmit(&context)
}

#[raw_tracepoint(tracepoint = "inet_sk_error_report")]
fn inet_sk_error_report(context: RawTracePointContext) -> Option<()> {
    tcp::error_report(&context)
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
fn kfree_skb(context: RawTracePointContext) -> Option<()> {
    drops::dropped(&context)
}

#[raw_tracepoint(tracepoint = "sched_process_fork")]
fn sched_process_fork(context: RawTracePointContext) -> Option<()> {
    process::fork(&context)
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn sched_process_exec(_context: RawTracePointContext) -> Option<()> {
    process::exec()
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn sched_process_exit(context: RawTracePointContext) -> Option<()> {
    process::exit(&context)
}

#[raw_tracepoint(tracepoint = "signal_generate")]
fn signal_generate(context: RawTracePointContext) -> Option<()> {
    process::signal(&context)
}

#[raw_tracepoint(tracepoint = "mark_victim")]
fn mark_victim(context: RawTracePointContext) -> Option<()> {
    process::oom_victim(&context)
}

#[tracepoint(category = "syscalls", name = "sys_exit_connect")]
fn sys_exit_connect(context: TracePointContext) -> Option<()> {
    syscalls::connect(&syscalls::Exit::of_tracepoint(&context)?)
}

#[tracepoint(category = "syscalls", name = "sys_exit_accept")]
fn sys_exit_accept(context: TracePointContext) -> Option<()> {
    syscalls::accept(&syscalls::Exit::of_tracepoint(&context)?)
}

#[tracepoint(category = "syscalls", name = "sys_exit_accept4")]
fn sys_exit_accept4(context: TracePointContext) -> Option<()> {
    syscalls::accept(&syscalls::Exit::of_tracepoint(&context)?)
}

#[tracepoint(category = "syscalls", name = "sys_exit_socket")]
fn sys_exit_socket(context: TracePointContext) -> Option<()> {
    syscalls::socket(&syscalls::Exit::of_tracepoint(&context)?)
}

#[tracepoint(category = "syscalls", name = "sys_exit_open")]
fn sys_exit_open(context: TracePointContext) -> Option<()> {
    syscalls::open_of(&context)
}

#[tracepoint(category = "syscalls", name = "sys_exit_openat")]
fn sys_exit_openat(context: TracePointContext) -> Option<()> {
    syscalls::open_of(&context)
}

#[fexit]
fn connect_return(context: FExitContext) -> Option<()> {
    syscalls::connect(&syscalls::Exit::of_function(&context))
}

#[fexit]
fn accept_return(context: FExitContext) -> Option<()> {
    syscalls::accept(&syscalls::Exit::of_function(&context))
}

#[fexit]
fn accept4_return(context: FExitContext) -> Option<()> {
    syscalls::accept(&syscalls::Exit::of_function(&context))
}

#[fexit]
fn socket_return(context: FExitContext) -> Option<()> {
    syscalls::socket(&syscalls::Exit::of_function(&context))
}

#[fexit]
fn open_return(context: FExitContext) -> Option<()> {
    syscalls::open(syscalls::Exit::of_function(&context).result)
}

#[fexit]
fn openat_return(context: FExitContext) -> Option<()> {
    syscalls::open(syscalls::Exit::of_function(&context).result)
}

#[raw_tracepoint(tracepoint = "sys_exit")]
fn sys_exit(context: RawTracePointContext) -> Option<()> {
    syscalls::any(&context)
}

#[raw_tracepoint(tracepoint = "sock_send_length")]
fn sock_send_length(context: RawTracePointContext) -> Option<()> {
    answer::sent(&context)
}

#[uprobe]
fn ngx_log_error_core(context: ProbeContext) -> Option<()> {
    stack::shared(&context);
    nginx::log(&context)
}

#[uprobe]
fn ngx_http_special_response_handler(context: ProbeContext) -> Option<()> {
    stack::shared(&context);
    nginx::special_response(&context)
}

#[uprobe]
fn ngx_http_send_header(context: ProbeContext) -> Option<()> {
    stack::shared(&context);
    nginx::send_header(&context)
}

#[uprobe]
fn ngx_http_upstream_test_next(context: ProbeContext) -> Option<()> {
    stack::shared(&context);
    answer::relayed(&context)
}

#[uprobe]
fn ngx_http_internal_redirect(context: ProbeContext) -> Option<()> {
    stack::shared(&context);
    nginx::redirect(&context)
}

#[uprobe]
fn ngx_http_named_location(context: ProbeContext) -> Option<()> {
    stack::shared(&context);
    nginx::redirect(&context)
}

#[uprobe]
fn ngx_get_connection(context: ProbeContext) -> Option<()> {
    stack::shared(&context);
    nginx::connection(&context)
}

// Some of the kernel's functions for programs are for GPL-compatible ones only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable: a program in which it could be reached does not pass the verifier.
    loop {}
}
