//! Writing records.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_boot_ns, generated},
};
use probe_abi::{Header, Kind, losses::reason};

use super::{
    maps::{COUNTERS, EVENTS, LOSSES, SEQUENCE},
    read,
};

/// The reader comes by itself every few milliseconds. Waking it costs more than twenty records do (an interrupt to one's own
/// processor, which traps in a virtual machine), so it is woken only when this many bytes wait, and then once for each so many.
const BACKLOG: u64 = 1 << 20;

/// Writes one record: header filled, everything else zero until `fill` says otherwise.
///
/// `T` begins with a [`Header`] and is valid when all zero, as every record of `probe_abi` is.
#[inline(always)]
pub(crate) fn record<T: 'static>(kind: Kind, fill: impl FnOnce(&mut T)) {
    let sequence = next_sequence();
    // SAFETY: the map is a ring; the kernel gives that many bytes or null.
    let slot: *mut T = unsafe { generated::bpf_ringbuf_reserve(events(), size_of::<T>() as u64, 0) }.cast();
    if slot.is_null() {
        lost(reason::RING_FULL);
        return;
    }
    read::clear(slot);
    let both = bpf_get_current_pid_tgid();
    // SAFETY: the slot is ours until it is submitted, is aligned to eight bytes, and all zero is a valid record.
    unsafe {
        let header = &mut *slot.cast::<Header>();
        header.time_ns = bpf_ktime_get_boot_ns();
        header.sequence = sequence;
        header.kind = kind as u16;
        header.cpu = bpf_get_smp_processor_id() as u16;
        header.tgid = (both >> 32) as u32;
        header.tid = both as u32;
        fill(&mut *slot);
        generated::bpf_ringbuf_submit(slot.cast(), flags(size_of::<T>() as u64));
    }
}

/// Counts a loss.
#[inline(always)]
pub(crate) fn lost(why: u32) {
    if let Some(count) = LOSSES.get_ptr_mut(why) {
        add_one(count);
    }
}

/// Counts something that is not recorded.
#[inline(always)]
pub(crate) fn count(what: u32) {
    if let Some(count) = COUNTERS.get_ptr_mut(what) {
        add_one(count);
    }
}

#[inline(always)]
fn events() -> *mut core::ffi::c_void {
    (&raw const EVENTS).cast_mut().cast()
}

#[inline(always)]
fn flags(size: u64) -> u64 {
    // SAFETY: a question about a ring.
    let waiting = unsafe { generated::bpf_ringbuf_query(events(), u64::from(BPF_RB_AVAIL_DATA)) };
    // This record is the one that crossed the line: its header in the ring is eight bytes.
    if waiting > BACKLOG && waiting % BACKLOG < size + 16 {
        u64::from(BPF_RB_FORCE_WAKEUP)
    } else {
        u64::from(BPF_RB_NO_WAKEUP)
    }
}

/// Not atomic: an atomic addition that returns its result needs 5.12. A program interrupted by another between the
/// read and the write repeats a number; it never leaves one out, so that no gap is seen where nothing was lost.
#[inline(always)]
fn next_sequence() -> u64 {
    let Some(last) = SEQUENCE.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own slot.
    unsafe {
        let next = (*last).wrapping_add(1);
        *last = next;
        next
    }
}

#[inline(always)]
fn add_one(count: *mut u64) {
    // This CPU's own slot; a program that interrupts this one right here can cost one count.
    // SAFETY: a slot of a map, aligned and alive for the program's life.
    unsafe { *count = (*count).wrapping_add(1) };
}
