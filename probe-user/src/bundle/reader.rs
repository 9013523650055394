//! Reads a bundle from its beginning to the last whole section, one second of the recording at a time.

use std::io::Read;

use super::{
    BundleError,
    entry::{Entry, entries},
    manifest::{Evicted, Manifest, Opening},
    packets::{CapturedPacket, Interface},
    section::{Found, Kind, Sections},
};
use crate::{model::packet::LinkType, report::pcapng};

/// A part of the recording.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// A window begins.
    Opening(Box<Opening>),
    /// It goes on.
    Events(Events),
    /// Windows were taken out.
    Evicted(Evicted),
    /// Something that is not understood: another program's, or damaged. Reading goes on.
    Strange(String),
    /// The end, and why if it is not a clean one.
    End(Option<String>),
}

/// About a second of the recording.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Events {
    rows: Vec<u8>,
    packets: Vec<u8>,
}

/// An entry, with its packet if it is one.
#[derive(Clone, Debug, PartialEq)]
pub struct Row<'a> {
    /// The entry; `None`: it is of a kind that is not known, or damaged.
    pub entry: Option<Entry<'a>>,
    /// Its packet: the position of its interface, and the rest.
    pub packet: Option<(u32, CapturedPacket)>,
}

impl Events {
    /// The interfaces that the packets name by position.
    #[must_use]
    pub fn interfaces(&self) -> Vec<Interface> {
        let contents = pcapng::read(&self.packets).unwrap_or_default();
        contents
            .interfaces
            .into_iter()
            .map(|interface| Interface {
                netns: interface.description.as_deref().and_then(|text| text.rsplit(' ').next()?.parse().ok()),
                name: interface.name,
                filter: interface.filter.unwrap_or_default(),
                snap_length: interface.snap_length,
                received: interface.received.unwrap_or(0),
                dropped: interface.dropped.unwrap_or(0),
            })
            .collect()
    }

    /// The entries in order.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        let contents = pcapng::read(&self.packets).unwrap_or_default();
        let links: Vec<LinkType> = contents.interfaces.iter().map(|interface| interface.link).collect();
        let mut packets = contents.packets.into_iter();
        entries(&self.rows).map(move |entry| {
            let packet = match entry {
                Some(Entry::Packet { number, .. }) => packets.next().and_then(|packet| {
                    let link = *links.get(usize::try_from(packet.interface).ok()?)?;
                    let captured = CapturedPacket {
                        number,
                        interface: packet.interface,
                        link,
                        unix_ns: packet.unix_ns,
                        wire_length: packet.wire_length,
                        bytes: packet.bytes.to_vec(),
                        direction: packet.direction,
                    };
                    Some((packet.interface, captured))
                }),
                _ => None,
            };
            Row { entry, packet }
        })
    }
}

/// A bundle that is being read.
#[derive(Debug)]
pub struct Reader<R> {
    sections: Sections<R>,
    /// What it says about itself.
    pub manifest: Manifest,
    packets: Vec<u8>,
}

/// Whether a file that begins like this is a bundle, or was one.
#[must_use]
pub fn is_bundle(begin: &[u8]) -> bool {
    let length = begin.len().min(super::MAGIC.len());
    length > 0 && begin.get(..length) == super::MAGIC.get(..length)
}

impl<R: Read> Reader<R> {
    /// Reads the header and the manifest.
    pub fn open(input: R) -> Result<Self, BundleError> {
        let mut sections = Sections::open(input)?;
        let manifest = match sections.read()? {
            Found::Whole(Kind::Manifest, json) => {
                serde_json::from_slice(&json).map_err(|_| BundleError::Damaged("manifest"))?
            }
            Found::End { why: "cut off within a section" | "", .. } => return Err(BundleError::Cut),
            _ => return Err(BundleError::Damaged("manifest")),
        };
        Ok(Self { sections, manifest, packets: Vec::new() })
    }

    /// The next part. After [`Part::End`] there is no other.
    pub fn next_part(&mut self) -> Result<Part, BundleError> {
        loop {
            let (kind, content) = match self.sections.read()? {
                Found::Whole(kind, content) => (kind, content),
                Found::Unknown(number) => {
                    return Ok(Part::Strange(format!("a section of kind {number}, which this version does not know")));
                }
                Found::TooLong(length) => {
                    let what = format!("a section of {} MiB, more than this version reads as one", length >> 20);
                    return Ok(Part::Strange(what));
                }
                Found::End { unusable: 0, .. } => return Ok(Part::End(None)),
                Found::End { unusable, why } => {
                    let text = format!("the recording ends early: {why}; its last {unusable} bytes are of no use");
                    return Ok(Part::End(Some(text)));
                }
            };
            match kind {
                Kind::Packets => self.packets = content,
                Kind::Events => {
                    let packets = std::mem::take(&mut self.packets);
                    return Ok(Part::Events(Events { rows: content, packets }));
                }
                Kind::Opening => {
                    return Ok(serde_json::from_slice(&content).map_or_else(
                        |error| Part::Strange(format!("a window whose beginning cannot be read: {error}")),
                        Part::Opening,
                    ));
                }
                Kind::Evicted => {
                    return Ok(serde_json::from_slice(&content).map_or_else(
                        |error| Part::Strange(format!("a remark that cannot be read: {error}")),
                        Part::Evicted,
                    ));
                }
                Kind::Manifest => {}
            }
        }
    }
}
