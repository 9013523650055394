//! A second of the stream.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    bundle::{
        entry::Entry,
        packets::{CapturedPacket, Interface},
        section::{self, Kind},
    },
    model::{event::EventId, packet::LinkType, time::Moment},
    report::pcapng,
};

/// The interfaces packets come from, in the order of their numbers; whoever captures keeps the list up to date.
pub type Interfaces = Arc<Mutex<Vec<Interface>>>;

/// Part of the stream that is being collected.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    entries: Vec<u8>,
    packets: Option<pcapng::Encoder>,
    /// The numbers of the interfaces described in `packets`.
    described: Vec<(u32, LinkType)>,
    newest_packet: u64,
    first: Option<EventId>,
    from: Moment,
    to: Moment,
    count: u64,
}

/// Part of the stream, compressed as it stands in a file.
#[derive(Debug)]
pub(super) struct Sealed {
    /// A Packets section, if there are packets, and an Events section.
    pub(super) bytes: Arc<Vec<u8>>,
    /// The numbers of the interfaces of its packets.
    pub(super) interfaces: Vec<(u32, LinkType)>,
    /// The first event's name; the others are numbered on from there.
    pub(super) first: EventId,
    /// How many events.
    pub(super) count: u64,
    /// The earliest.
    pub(super) from: Moment,
    /// The latest.
    pub(super) to: Moment,
    /// It is in the file.
    pub(super) written: bool,
}

impl Sealed {
    /// Bytes of memory.
    pub(super) fn size(&self) -> usize {
        self.bytes.len() + size_of::<Self>() + 32
    }
}

impl Chunk {
    /// Adds an event. Its name must follow the last one's, unless the names of this chunk are of no use.
    pub(super) fn event(&mut self, id: EventId, at: Moment, entry: &Entry<'_>) {
        self.note(id, at);
        entry.write(&mut self.entries);
    }

    /// Adds an event that is written already.
    pub(super) fn written(&mut self, id: EventId, at: Moment, entry: &[u8]) {
        self.note(id, at);
        self.entries.extend(entry);
    }

    /// Adds a packet.
    pub(super) fn packet(
        &mut self,
        id: EventId,
        at: Moment,
        packet: &CapturedPacket,
        netns: Option<u32>,
        interfaces: &Interfaces,
    ) {
        self.captured(packet, interfaces);
        self.event(id, at, &Entry::Packet { number: packet.number, at, netns });
    }

    /// Adds a packet without its entry.
    pub(super) fn captured(&mut self, packet: &CapturedPacket, interfaces: &Interfaces) {
        let key = (packet.interface, packet.link);
        let file = self.packets.get_or_insert_default();
        let position = self.described.iter().position(|known| *known == key).unwrap_or_else(|| {
            file.interface(&describe(key, interfaces));
            self.described.push(key);
            self.described.len() - 1
        });
        self.newest_packet = self.newest_packet.max(packet.unix_ns);
        file.packet(&pcapng::Packet {
            interface: u32::try_from(position).unwrap_or(u32::MAX),
            unix_ns: packet.unix_ns,
            wire_length: packet.wire_length,
            bytes: &packet.bytes,
            direction: packet.direction,
            comment: None,
        });
    }

    /// Adds what is no event.
    pub(super) fn remark(&mut self, entry: &Entry<'_>) {
        entry.write(&mut self.entries);
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.entries.len() + self.packets.as_ref().map_or(0, pcapng::Encoder::len)
    }

    /// When its first event happened.
    pub(super) fn began(&self) -> Option<Moment> {
        self.first.map(|_| self.from)
    }

    /// Compresses it; `None`: it holds nothing.
    pub(super) fn seal(self, interfaces: &Interfaces, told: Moment) -> Option<Sealed> {
        if self.entries.is_empty() {
            return None;
        }
        let mut bytes = Vec::new();
        if let Some(mut file) = self.packets {
            for (position, key) in (0..).zip(&self.described) {
                let counted = describe(*key, interfaces);
                file.statistics(position, self.newest_packet, counted.received, counted.dropped);
            }
            bytes.extend(section::section(Kind::Packets, &file.into_bytes()));
        }
        bytes.extend(section::section(Kind::Events, &self.entries));
        Some(Sealed {
            bytes: Arc::new(bytes),
            interfaces: self.described,
            first: self.first.unwrap_or(EventId(u64::MAX)),
            count: self.count,
            from: self.first.map_or(told, |_| self.from),
            to: self.first.map_or(told, |_| self.to),
            written: false,
        })
    }

    fn note(&mut self, id: EventId, at: Moment) {
        if self.first.is_none() {
            self.first = Some(id);
            (self.from, self.to) = (at, at);
        }
        self.count += 1;
        (self.from, self.to) = (self.from.min(at), self.to.max(at));
    }
}

fn describe((number, link): (u32, LinkType), interfaces: &Interfaces) -> pcapng::Interface {
    let all = interfaces.lock().unwrap_or_else(PoisonError::into_inner);
    let known = usize::try_from(number).ok().and_then(|number| all.get(number));
    pcapng::Interface {
        name: known.map_or_else(|| format!("interface {number}"), |known| known.name.clone()),
        description: known.and_then(|known| known.netns).map(|netns| format!("network namespace {netns}")),
        link,
        snap_length: known.map_or(0, |known| known.snap_length),
        filter: known.map(|known| known.filter.clone()),
        received: known.map(|known| known.received),
        dropped: known.map(|known| known.dropped),
    }
}
