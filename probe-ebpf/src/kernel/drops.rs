//! Packets the kernel threw away.

use aya_ebpf::programs::RawTracePointContext;
use probe_abi::{Kind, losses::counter, socket::Drop};

use super::{emit, globals::setting, skb};

/// `kfree_skb(skb, location, reason[, rx_sk])`. The loader attaches it only where the kernel gives a reason.
#[inline(always)]
pub(crate) fn dropped(context: &RawTracePointContext) -> Option<()> {
    let reason: u32 = context.arg(2);
    if !is_interesting(reason) {
        emit::count(counter::DROPS_NOISE);
        return Some(());
    }
    let skb: u64 = context.arg(0);
    let packet = skb::packet(skb)?;
    if skb::is_watched(&packet) {
        emit::record(Kind::Drop, |record: &mut Drop| {
            record.reason = reason;
            record.location = context.arg(1);
            record.netns = skb::netns(skb);
            record.packet = packet;
        });
    }
    Some(())
}

/// Reasons of other subsystems (their number is in the upper half) are few and always worth a look.
#[inline(always)]
fn is_interesting(reason: u32) -> bool {
    let word = match reason >> 5 {
        0 => setting!(drop_reasons[0]),
        1 => setting!(drop_reasons[1]),
        2 => setting!(drop_reasons[2]),
        3 => setting!(drop_reasons[3]),
        4 => setting!(drop_reasons[4]),
        5 => setting!(drop_reasons[5]),
        6 => setting!(drop_reasons[6]),
        7 => setting!(drop_reasons[7]),
        _ => return true,
    };
    word >> (reason & 31) & 1 != 0
}
