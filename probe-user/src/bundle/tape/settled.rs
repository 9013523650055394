//! What matters from before the newest part of the stream.

use std::collections::{BTreeMap, VecDeque};

use super::chunk::{Chunk, Interfaces, Sealed};
use crate::{
    bundle::{
        entry::{Entry, Finding, entries},
        manifest::Gap,
        packets::CapturedPacket,
        section::{Found, Kind, Sections},
    },
    model::{
        coverage::{Coverage, Sensor},
        event::EventId,
        host::HostFact,
        process::Pid,
        time::Moment,
    },
    report::pcapng,
};

/// A loss lowers the confidence of cases that overlap it; it is remembered as long as the correlator does (`FAILURE_LINGER_NS`).
const LOSSES_NS: u64 = 120_000_000_000;
/// What is known of one nginx: as many of its configurations and sets of workers as may still have a worker running.
const INSTANCES: usize = 32;
/// Findings in all.
const FINDINGS: usize = 4096;
/// What keeping an event costs besides its bytes.
const OVERHEAD: usize = 96;
/// A part of what is written before a window.
const PART: usize = 4 << 20;

/// What a later finding replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Sensor(Sensor),
    Instance(Pid),
    Loss,
}

/// A finding that holds until another replaces it.
#[derive(Debug)]
struct Held {
    id: EventId,
    at: Moment,
    subject: Subject,
    entry: Vec<u8>,
}

#[derive(Debug)]
struct Kept {
    at: Moment,
    entry: Vec<u8>,
    packet: Option<Box<CapturedPacket>>,
    /// It did not matter when it was last asked.
    doubted: bool,
}

impl Kept {
    fn size(&self) -> usize {
        self.entry.len() + self.packet.as_ref().map_or(0, |packet| packet.bytes.len() + OVERHEAD) + OVERHEAD
    }
}

/// The events.
#[derive(Debug, Default)]
pub(super) struct Settled {
    events: BTreeMap<EventId, Kept>,
    bytes: usize,
    findings: VecDeque<Held>,
}

impl Settled {
    /// Keeps a finding that holds until another replaces it; answers to questions are kept like other events.
    pub(super) fn found(&mut self, id: EventId, at: Moment, entry: &Entry<'_>) {
        let Entry::Finding { json, .. } = entry else { return };
        let subject = match serde_json::from_slice(json) {
            Ok(Finding::Coverage(Coverage::Sensor { sensor, .. })) => Subject::Sensor(sensor),
            Ok(Finding::Coverage(Coverage::Lost { .. })) => Subject::Loss,
            Ok(Finding::Host(fact)) => match *fact {
                HostFact::Nginx(instance) => Subject::Instance(instance.master),
                HostFact::NginxGone { master } => Subject::Instance(master),
                _ => return,
            },
            Err(_) => return,
        };
        let mut bytes = Vec::new();
        entry.write(&mut bytes);
        if self.findings.len() >= FINDINGS {
            self.findings.pop_front();
        }
        self.findings.push_back(Held { id, at, subject, entry: bytes });
    }

    /// Keeps what matters of a part of the stream that is let go.
    pub(super) fn settle(&mut self, sealed: &Sealed, matters: &[EventId]) {
        let end = EventId(sealed.first.0.saturating_add(sealed.count));
        let begin = matters.partition_point(|id| *id < sealed.first);
        let wanted = matters.get(begin..matters.partition_point(|id| *id < end)).unwrap_or_default();
        if wanted.is_empty() {
            return;
        }
        let (mut captured, mut rows) = (Vec::new(), Vec::new());
        let mut sections = Sections::bare(sealed.bytes.as_slice());
        while let Ok(Found::Whole(kind, content)) = sections.read() {
            match kind {
                Kind::Packets => captured = content,
                Kind::Events => rows = content,
                Kind::Manifest | Kind::Opening | Kind::Evicted => {}
            }
        }
        let packets = pcapng::read(&captured).unwrap_or_default().packets;
        let mut packets = packets.iter();
        let events = entries(&rows).flatten().filter(Entry::is_event);
        for (id, entry) in (sealed.first.0..).map(EventId).zip(events) {
            let packet = match entry {
                Entry::Packet { number, at, .. } => packets.next().map(|packet| (number, at, packet)),
                _ => None,
            };
            if wanted.binary_search(&id).is_err() || self.findings.iter().any(|held| held.id == id) {
                continue;
            }
            let mut bytes = Vec::new();
            entry.write(&mut bytes);
            let at = packet.map_or(sealed.to, |(_, at, _)| at);
            let packet = packet.and_then(|(number, _, packet)| {
                let position = usize::try_from(packet.interface).ok()?;
                let (interface, link) = *sealed.interfaces.get(position)?;
                Some(Box::new(CapturedPacket {
                    number,
                    interface,
                    link,
                    unix_ns: packet.unix_ns,
                    wire_length: packet.wire_length,
                    bytes: packet.bytes.to_vec(),
                    direction: packet.direction,
                }))
            });
            let kept = Kept { at, entry: bytes, packet, doubted: false };
            self.bytes += kept.size();
            self.events.insert(id, kept);
        }
    }

    /// Lets go what has not mattered for a while.
    pub(super) fn prune(&mut self, matters: &[EventId], told: Moment, before_ns: u64) {
        let mut freed = 0;
        self.events.retain(|id, kept| {
            let matters = matters.binary_search(id).is_ok();
            let keep = matters || !kept.doubted;
            kept.doubted = !matters;
            if !keep {
                freed += kept.size();
            }
            keep
        });
        self.bytes -= freed;
        let oldest = told.minus_ns(before_ns);
        // How many later ones on the same subject are old already: those hold from before any window to come.
        let mut later: Vec<(Subject, usize)> = Vec::new();
        let mut kept = VecDeque::with_capacity(self.findings.len());
        while let Some(held) = self.findings.pop_back() {
            let count = later.iter().find(|(subject, _)| *subject == held.subject).map_or(0, |(_, count)| *count);
            let keep = match held.subject {
                Subject::Loss => told.since_ns(held.at) < LOSSES_NS + before_ns,
                Subject::Sensor(_) => count == 0,
                Subject::Instance(_) => count < INSTANCES,
            };
            if held.at < oldest {
                match later.iter_mut().find(|(subject, _)| *subject == held.subject) {
                    Some((_, count)) => *count += 1,
                    None => later.push((held.subject, 1)),
                }
            }
            if keep {
                kept.push_front(held);
            }
        }
        self.findings = kept;
    }

    /// Lets go of the oldest event.
    pub(super) fn evict(&mut self) -> Option<Gap> {
        let (_, kept) = self.events.pop_first()?;
        self.bytes -= kept.size();
        Some(Gap { from: kept.at, to: kept.at, events: 1, why: String::new() })
    }

    /// What comes before this event, in parts.
    pub(super) fn before(&self, first: EventId, interfaces: &Interfaces) -> Vec<Chunk> {
        let mut rows: BTreeMap<EventId, (Moment, &[u8], Option<&CapturedPacket>)> = BTreeMap::new();
        for (id, kept) in self.events.range(..first) {
            rows.insert(*id, (kept.at, &kept.entry, kept.packet.as_deref()));
        }
        for held in self.findings.iter().filter(|held| held.id < first) {
            rows.insert(held.id, (held.at, &held.entry, None));
        }
        let mut chunks = vec![Chunk::default()];
        for (id, (at, entry, packet)) in rows {
            if chunks.last().is_none_or(|chunk| chunk.len() > PART) {
                chunks.push(Chunk::default());
            }
            let Some(chunk) = chunks.last_mut() else { continue };
            if let Some(packet) = packet {
                chunk.captured(packet, interfaces);
            }
            chunk.written(id, at, entry);
        }
        chunks
    }

    /// Bytes of memory.
    pub(super) const fn size(&self) -> usize {
        self.bytes
    }
}
