//! The status that the client gets, heard without a word from the requests that are well.
//!
//! Every answer passes `ngx_http_send_header`, and a breakpoint there is what a healthy request would pay most for. So requests of which
//! something bad was heard are remembered by their client's socket, and their status is read when something is sent on it: nginx keeps it
//! in the request, which lives until its answer is out. What an upstream itself answered is heard where nginx looks whether it should ask
//! another one, which it does for statuses of 300 and more only.

use aya_ebpf::programs::{ProbeContext, RawTracePointContext};
use probe_abi::{Kind, nginx::Layout};

use super::{
    descriptor,
    maps::{AWAITED, AWAITED_UNTIL, RequestKey},
    nginx::{States, is_wanted, tell},
    read,
    request::{Request, arm, armed, disarm, here},
    target,
    tcp::jiffies,
};

/// So long is an answer waited for, jiffies: ten minutes where they are shortest. Later ones are told all the same while others are awaited.
const PATIENCE: u64 = 600 * 1_000;

/// Waits for the answer to this request, which is the client's (the main one).
#[inline(always)]
pub(crate) fn wait_for(tgid: u32, layout: &Layout, request: u64) {
    // Its header is out: what follows cannot change what the client has got.
    if read::user_member::<u64>(request, layout.request_status) != Some(0) {
        return;
    }
    let Some(sock) = client(layout, request) else { return };
    // The map makes room by itself.
    let _done = AWAITED.insert(sock, RequestKey { request, tgid, reserved: 0 }, 0);
    if let Some(until) = AWAITED_UNTIL.get_ptr_mut(0) {
        // Two processors that write at the same time write nearly the same.
        // SAFETY: a slot of an array map.
        unsafe { *until = jiffies() + PATIENCE };
    }
}

/// The socket of a request's client.
#[inline(always)]
fn client(layout: &Layout, request: u64) -> Option<u64> {
    let connection: u64 = read::user_member(request, layout.request_connection)?;
    descriptor::socket(read::user_member(connection, layout.connection_fd)?)
}

/// The answer to this request was heard in another way.
#[inline(always)]
pub(crate) fn heard(layout: &Layout, request: u64) {
    if let Some(sock) = client(layout, request) {
        let _gone = AWAITED.remove(sock);
    }
}

/// nginx is about to complain of this request (the main one). If it has decided on its answer and keeps that back, waiting for more of it
/// to come (`postpone_output`, filters), it may never send it: the answer is told now, before what befell it.
#[inline(always)]
pub(crate) fn kept_back(tgid: u32, layout: &Layout, request: u64) -> Option<()> {
    if read::user_member::<u64>(request, layout.request_status)? == 0 {
        return None;
    }
    let sock = client(layout, request)?;
    // SAFETY: as in `sent`.
    let awaited = unsafe { AWAITED.get(sock) }.copied()?;
    if awaited.tgid != tgid || awaited.request != request {
        return None;
    }
    look(sock, tgid, layout, request)
}

/// `sock_send_length(sk, result, flags)`: something was sent, or was to be. Nearly always nothing is awaited.
#[inline(always)]
pub(crate) fn sent(context: &RawTracePointContext) -> Option<()> {
    if AWAITED_UNTIL.get(0).is_none_or(|until| *until < jiffies()) {
        return Some(());
    }
    let sock: u64 = context.arg(0);
    // SAFETY: copied at once; an entry that changes meanwhile is another request's, and is looked at as that.
    let awaited = unsafe { AWAITED.get(sock) }.copied()?;
    if awaited.tgid != target::current() {
        return Some(());
    }
    let (tgid, layout) = here()?;
    look(sock, tgid, layout, awaited.request)
}

/// Tells the answer to the request that is awaited on this socket, if there is one by now.
#[inline(always)]
fn look(sock: u64, tgid: u32, layout: &Layout, address: u64) -> Option<()> {
    let request = Request::at(layout, address);
    let remembered = armed(tgid, address);
    let (Some(request), Some(identity)) = (request, remembered) else {
        return give_up(sock);
    };
    if identity != request.identity(layout) || is_freed(layout, &request) {
        // It is over, and was never answered.
        return give_up(sock);
    }
    let status = read::user_member::<u64>(address, layout.request_status).unwrap_or(0) as u32;
    // What is no HTTP is relayed without a status, after nginx has written one down for the server; what else is sent before there is an
    // answer ("100 Continue", "103 Early Hints") is none.
    let is_answer = status != 0
        || States::of(layout, &request).and_then(|states| states.last_status(layout)).is_some_and(|said| said >= 200);
    if !is_answer {
        return Some(());
    }
    disarm(tgid, address);
    tell(Kind::NginxSendHeader, layout, &request, status);
    give_up(sock)
}

/// A TLS client is told of the end (`close_notify`) when its request's memory is free already, and may still look like a request: nginx takes it
/// out of the log's context before.
#[inline(always)]
fn is_freed(layout: &Layout, request: &Request) -> bool {
    let context: u64 = read::user_member(request.log, layout.log_data).unwrap_or(0);
    context != 0 && read::user_member::<u64>(context, layout.context_request) == Some(0)
}

#[inline(always)]
fn give_up(sock: u64) -> Option<()> {
    let _gone = AWAITED.remove(sock);
    Some(())
}

/// nginx looks at the answer of an upstream, which is none of 2xx. Where the request is the compiler knows: in a register, or on the stack.
#[inline(always)]
pub(crate) fn relayed(context: &ProbeContext) -> Option<()> {
    let (tgid, layout) = here()?;
    let registers = context.regs as u64;
    let mut found = None;
    let mut index = 0;
    while index < REGISTERS {
        let value: u64 = read::kernel(registers.wrapping_add(index * 8)).unwrap_or(0);
        found = found.or_else(|| with_upstream(layout, value));
        index += 1;
    }
    let stack: u64 = read::kernel(registers.wrapping_add(STACK_POINTER * 8)).unwrap_or(0);
    index = 0;
    while index < FRAME && found.is_none() {
        let value: u64 = read::user(stack.wrapping_add(index * 8)).unwrap_or(0);
        found = with_upstream(layout, value);
        index += 1;
    }
    let Some(request) = found else {
        super::emit::lost(probe_abi::losses::reason::READ_FAILED);
        return None;
    };
    let status = States::of(layout, &request).and_then(|states| states.last_status(layout));
    // From 500 on it is passed on to the next server by `proxy_next_upstream`, whatever is asked about. After "103 Early Hints" nginx keeps
    // that status, not the one that follows.
    if status.is_none_or(|status| is_wanted(status) || !(200..500).contains(&status)) {
        arm(tgid, layout, request.address, request.main(layout), request.identity(layout));
    }
    Some(())
}

/// General registers at the beginning of x86's `struct pt_regs`.
const REGISTERS: u64 = 15;
/// Where the stack pointer stands behind them.
const STACK_POINTER: u64 = 19;
/// Words of the frame that are looked at.
const FRAME: u64 = 16;

#[inline(always)]
fn with_upstream(layout: &Layout, address: u64) -> Option<Request> {
    // Small numbers are no addresses.
    if address < 0x1_0000 {
        return None;
    }
    let request = Request::at(layout, address)?;
    let upstream: u64 = read::user_member(address, layout.request_upstream)?;
    (upstream != 0).then_some(request)
}
