//! Recordings.

use probe502::{
    bundle::{
        manifest::Manifest,
        reader::{Part, Reader},
        section::{Kind, header, section},
    },
    merge::Arrival,
    pipeline::Pipeline,
};

use super::stream::{check, settings};

/// A recording: as it is, or, because no chance finds a checksum, the contents of sections that are framed here.
pub fn bundle(bytes: &[u8]) {
    read(bytes);
    read(&framed(bytes));
}

/// Sections of a kind and a length each: a byte and two.
fn framed(mut rest: &[u8]) -> Vec<u8> {
    const KINDS: [Kind; 5] = [Kind::Manifest, Kind::Opening, Kind::Events, Kind::Packets, Kind::Evicted];
    let manifest = serde_json::to_vec(&Manifest::default()).unwrap_or_default();
    let mut file = [header(), section(Kind::Manifest, &manifest)].concat();
    while let [kind, low, high, after @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(after.len());
        let (content, behind) = after.split_at(length);
        let kind = KINDS.get(usize::from(*kind) % KINDS.len()).copied().unwrap_or(Kind::Events);
        file.extend(section(kind, content));
        rest = behind;
    }
    file
}

fn read(bytes: &[u8]) {
    let Ok(mut reader) = Reader::open(bytes) else { return };
    let names = reader.manifest.names();
    let mut pipeline = Pipeline::new(settings());
    while let Ok(part) = reader.next_part() {
        match part {
            Part::Events(events) => {
                let interfaces = events.interfaces().len();
                for row in events.rows() {
                    let Some(entry) = row.entry else { continue };
                    let _ = entry.mark();
                    if let Some((position, _)) = &row.packet {
                        assert!(usize::try_from(*position).is_ok_and(|at| at < interfaces), "a packet of no interface");
                    }
                    let of_it = row.packet.as_ref().map(|(_, p)| (p.link, p.bytes.as_slice(), p.wire_length));
                    if let Ok(Some((at, source, body))) = entry.event(&names, of_it) {
                        pipeline.replay(Arrival { at, source, body });
                        check(&mut pipeline);
                    }
                }
            }
            Part::End(_) => break,
            Part::Opening(_) => {
                pipeline = Pipeline::new(settings());
            }
            Part::Evicted(_) | Part::Strange(_) => {}
        }
    }
    pipeline.finish();
    check(&mut pipeline);
}
