//! Whose RST it was, as far as packets tell: its TTL, its IP identification, its place in the sequence.

use super::{Reading, evidence};
use crate::model::{
    coverage::Sensor,
    event::Event,
    evidence::{Evidence, Fact, Weight},
    flow::Flow,
    packet::TcpPacket,
};

/// Packets of one socket that follow each other have IP ids this near: each segment takes one, a large one on its way to the interface
/// takes one for each of its pieces (`ip_select_ident_segs()`, <https://elixir.bootlin.com/linux/v6.18/source/include/net/ip.h>).
const ID_STEP: u16 = 64;

/// An IP id farther than this from every other is out of the count, however many packets the capture has missed.
const ID_FAR: u16 = 4_096;

/// Segments that overtake each other on the way are nearer to each other than this.
const REORDERED_NS: u64 = 3_000_000;

impl<'a> Reading<'a> {
    /// The upstream's RSTs on the wire, without those that nginx's kernel did not take because their sequence number was wrong
    /// (RFC 5961, section 3.2): whoever sent them did not know the connection, and they ended nothing.
    pub(super) fn effective_resets(&self) -> Vec<(&'a Event, &'a TcpPacket)> {
        let Some(flow) = self.flow() else { return Vec::new() };
        let untaken = self.sees(Sensor::ResetsReceived) && flow.resets_received().next().is_none();
        let mut expected: Option<u32> = None;
        let mut resets = Vec::new();
        for (event, packet) in flow.packets_from_upstream() {
            if packet.header.flags.rst() {
                let elsewhere = expected.is_some_and(|expected| expected != packet.header.sequence);
                // Not every packet is captured: where nobody asked the kernel, the place in the sequence says nothing.
                if !(untaken && elsewhere) {
                    resets.push((event, packet));
                }
            } else {
                let end = end(packet);
                let further = expected.is_none_or(|known| end.wrapping_sub(known).cast_signed() > 0);
                expected = if further { Some(end) } else { expected };
            }
        }
        resets
    }

    /// What about the attempt's RST does not look like the upstream's own packets; empty: nothing does.
    pub(crate) fn foreign_reset(&self) -> Vec<Evidence> {
        let failed_at = self.failed_at();
        let Some((event, reset)) =
            self.effective_resets().into_iter().find(|(event, _)| event.at.earliest <= failed_at)
        else {
            return Vec::new();
        };
        let others: Vec<(&Event, &TcpPacket)> = self
            .flow()
            .into_iter()
            .flat_map(Flow::packets_from_upstream)
            .filter(|(_, packet)| !packet.header.flags.rst())
            .collect();
        [foreign_ttl(event, reset, &others), foreign_id(event, reset, &others), sent_on(event, reset, &others)]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// Where a segment ends in the sequence.
fn end(packet: &TcpPacket) -> u32 {
    let flags = packet.header.flags;
    let length = packet.payload_length.wrapping_add(u32::from(flags.syn())).wrapping_add(u32::from(flags.fin()));
    packet.header.sequence.wrapping_add(length)
}

/// The RST came with another TTL than the upstream's other packets: from another end or by another way.
fn foreign_ttl(event: &Event, reset: &TcpPacket, others: &[(&Event, &TcpPacket)]) -> Option<Evidence> {
    let mut known = others.iter().filter(|(_, packet)| packet.header.ttl != 0);
    let (other, first) = known.next()?;
    let (reset, peer) = (reset.header.ttl, first.header.ttl);
    // Packets of one end that come different ways say nothing.
    let steady = known.all(|(_, packet)| packet.header.ttl == peer);
    (reset != 0 && steady && reset != peer)
        .then(|| evidence(Fact::ForeignTtl { reset, peer }, &[event.id, other.id], Weight::Symptom))
}

/// The RST's IP id is out of the count that the upstream's other packets keep. Linux counts for each socket, beginning anywhere; it gives
/// id 0 to what it sends without one (SYN-ACK, a RST that answers for no socket, `TIME_WAIT`), which says nothing. Who draws ids by chance
/// does not count.
fn foreign_id(event: &Event, reset: &TcpPacket, others: &[(&Event, &TcpPacket)]) -> Option<Evidence> {
    let id = reset.ip_id.filter(|id| *id != 0)?;
    let counted: Vec<(&Event, u16)> =
        others.iter().filter_map(|(other, packet)| packet.ip_id.filter(|id| *id != 0).map(|id| (*other, id))).collect();
    let mut steps = counted.windows(2).map(|pair| match pair {
        // A retransmission can be overtaken by what came later.
        [(_, one), (_, other)] => other.wrapping_sub(*one),
        _ => 0,
    });
    if counted.len() < 2 || !steps.all(|step| (1..=ID_STEP).contains(&step)) {
        return None;
    }
    let apart = |other: u16| id.wrapping_sub(other).min(other.wrapping_sub(id));
    let (other, peer) = *counted.iter().min_by_key(|(_, other)| apart(*other))?;
    (apart(peer) > ID_FAR)
        .then(|| evidence(Fact::ForeignId { reset: id, peer }, &[event.id, other.id], Weight::Symptom))
}

/// New bytes came from the upstream after the RST, and not because something had overtaken it: an end that resets has nothing more to say.
fn sent_on(event: &Event, reset: &TcpPacket, others: &[(&Event, &TcpPacket)]) -> Option<Evidence> {
    let late = |other: &Event| other.at.earliest.since_ns(event.at.latest);
    let mut after = others.iter().filter(|(other, packet)| {
        let new = end(packet).wrapping_sub(reset.header.sequence).cast_signed() > 0;
        new && packet.payload_length > 0 && late(other) > REORDERED_NS
    });
    let (first, packet) = after.next()?;
    let fact = Fact::SentOn { bytes: packet.payload_length, after_us: late(first) / 1_000 };
    Some(evidence(fact, &[event.id, first.id], Weight::Symptom))
}
