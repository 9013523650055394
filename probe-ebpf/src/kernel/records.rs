//! The same events without types: what classic tracepoints write into their records.
//!
//! For kernels without BTF. Tuple, states and errors are there; byte counters, sequence numbers and who held the socket
//! are not, and [`probe_abi::socket::present`] says so.

use aya_ebpf::programs::TracePointContext;
use probe_abi::{
    Endpoint, Kind,
    globals::{ABSENT, RecordFormat},
    socket::{Socket, SocketEvent, StateChange, present, state},
};

use super::{
    emit,
    globals::{RECORDS, place},
    socket::{Ends, TCP, version_6},
    target,
    tcp::{is_watched, jiffies, wanted},
};

/// `sock:inet_sock_set_state`.
#[inline(always)]
pub(crate) fn state(context: &TracePointContext) -> Option<()> {
    let format = &raw const RECORDS.state_change;
    let new = field::<u32>(context, place!(format, state))? as u8;
    if !wanted(new) || field::<u16>(context, place!(format, protocol)).is_some_and(|protocol| protocol != TCP) {
        return Some(());
    }
    let old = field::<u32>(context, place!(format, old_state))? as u8;
    let ends = ends(context, format)?;
    if new == state::SYN_SENT {
        if target::worker().is_some() && !target::upstream(&ends.remote) {
            target::learn(&ends.remote);
        }
        return Some(());
    }
    let listener = old == state::LISTEN || new == state::LISTEN;
    let watched = if listener { target::port(ends.local.port) } else { is_watched(&ends) };
    if !watched {
        return Some(());
    }
    emit::record(Kind::StateChange, |record: &mut StateChange| {
        describe(&mut record.socket, context, format, &ends);
        record.socket.state = new;
        record.socket.old_state = old;
        record.jiffies = jiffies();
        record.in_task = if new == state::FIN_WAIT1 || new == state::LAST_ACK || listener { 1 } else { 2 };
    });
    Some(())
}

/// `tcp:tcp_receive_reset`.
#[inline(always)]
pub(crate) fn reset_received(context: &TracePointContext) -> Option<()> {
    tell(Kind::ResetReceived, context, &raw const RECORDS.reset_received, 0)
}

/// `tcp:tcp_retransmit_skb`. The record does not say how long the segment is.
#[inline(always)]
pub(crate) fn retransmit(context: &TracePointContext) -> Option<()> {
    tell(Kind::Retransmit, context, &raw const RECORDS.retransmit, 0)
}

/// `sock:inet_sk_error_report`.
#[inline(always)]
pub(crate) fn error_report(context: &TracePointContext) -> Option<()> {
    let format = &raw const RECORDS.error_report;
    let error: u32 = field(context, place!(format, error))?;
    if error == 0 || field::<u16>(context, place!(format, remote_port)) == Some(0) {
        return Some(());
    }
    tell(Kind::ErrorReport, context, format, error)
}

#[inline(always)]
fn tell(kind: Kind, context: &TracePointContext, format: *const RecordFormat, value: u32) -> Option<()> {
    let ends = ends(context, format)?;
    if is_watched(&ends) {
        emit::record(kind, |record: &mut SocketEvent| {
            describe(&mut record.socket, context, format, &ends);
            record.jiffies = jiffies();
            record.value = value;
        });
    }
    Some(())
}

#[inline(always)]
fn describe(record: &mut Socket, context: &TracePointContext, format: *const RecordFormat, ends: &Ends) {
    record.pointer = field(context, place!(format, socket)).unwrap_or(0);
    record.state = field::<u32>(context, place!(format, state)).unwrap_or(0) as u8;
    record.old_state = record.state;
    record.local = ends.local;
    record.remote = ends.remote;
    record.present = present::TUPLE;
}

#[inline(always)]
fn ends(context: &TracePointContext, format: *const RecordFormat) -> Option<Ends> {
    let mut local = Endpoint::UNKNOWN;
    let mut remote = Endpoint::UNKNOWN;
    local.port = field::<u16>(context, place!(format, local_port))?.to_be_bytes();
    remote.port = field::<u16>(context, place!(format, remote_port))?.to_be_bytes();
    version_6(&mut local, field(context, place!(format, local))?);
    version_6(&mut remote, field(context, place!(format, remote))?);
    Some(Ends { local, remote })
}

#[inline(always)]
fn field<T>(context: &TracePointContext, offset: u32) -> Option<T> {
    if offset == ABSENT {
        return None;
    }
    // SAFETY: the offset comes from the kernel's own description of this record.
    unsafe { context.read_at(offset as usize) }.ok()
}
