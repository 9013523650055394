//! Captured packets, and the files they come in.

use probe502::{
    decode,
    model::packet::{LinkType, PacketBody},
    offline::{
        analysis::{Analysis, Finding, Options},
        decode::{Decoder, Progress},
        frame,
        segment::Batch,
    },
    redact::{Key, Level, Redactor},
    report::pcapng,
};

/// Link types, so that few bytes choose among those that are read.
const LINKS: [u16; 12] = [1, 0, 108, 101, 228, 229, 113, 276, 12, 14, 105, 9];

/// A captured packet: a byte for the link type, one for what was on the wire beyond the capture, and the packet.
pub fn packet(bytes: &[u8]) {
    let [link, beyond, captured @ ..] = bytes else { return };
    let link = LINKS.get(usize::from(*link) % LINKS.len()).copied().unwrap_or(1);
    let wire = captured.len() + usize::from(*beyond);
    if let Some(inner) = frame::dissect(link, captured, wire) {
        assert!(inner.payload.len() <= captured.len(), "a payload longer than its packet");
    }
    let wire_length = u32::try_from(wire).unwrap_or(u32::MAX);
    let whole = decode::packet::decode(LinkType(link), captured, wire_length);
    for level in [Level::Default, Level::All] {
        let mut kept = captured.to_vec();
        let redactor = Redactor::new(level, Key::new([7; 16]));
        redactor.learn(["0.0.0.0:80".parse(), "[::]:80".parse()].into_iter().flatten(), []);
        redactor.packet(LinkType(link), &mut kept);
        assert_eq!(kept.len(), captured.len(), "redaction changes a length");
        let blanked = decode::packet::decode(LinkType(link), &kept, wire_length);
        if level == Level::Default {
            same_header(whole.as_ref(), blanked.as_ref());
        } else {
            assert_eq!(whole.is_some(), blanked.is_some(), "redaction makes a packet unreadable");
        }
    }
}

/// What is blanked is the payload: who talks to whom, and the sequence numbers, stay.
fn same_header(one: Option<&PacketBody>, other: Option<&PacketBody>) {
    match (one, other) {
        (Some(PacketBody::Tcp(one)), Some(PacketBody::Tcp(other))) => {
            assert_eq!((&one.header, one.payload_length), (&other.header, other.payload_length), "another header");
        }
        (one, other) => assert_eq!(one.is_some(), other.is_some(), "redaction makes a packet unreadable"),
    }
}

/// A capture file: the first byte says in what pieces it is read.
pub fn capture(bytes: &[u8]) {
    let [size, file @ ..] = bytes else { return };
    // At once and in pieces it must come to the same.
    let whole = findings(file, usize::MAX);
    let pieces = findings(file, 64 + usize::from(*size) * 16);
    assert_eq!(whole, pieces, "read in pieces it says something else");
    if let Ok(contents) = pcapng::read(file) {
        assert!(
            contents.packets.iter().all(|packet| packet.bytes.len() <= file.len()),
            "a packet longer than its file"
        );
    }
}

/// What an analysis finds in a file that is read in pieces of at least so many bytes.
fn findings(file: &[u8], size: usize) -> Vec<String> {
    let mut decoder = Decoder::default();
    let options = Options {
        connections: true,
        exchanges: true,
        attempts: true,
        statuses: vec![500, 502, 503, 504],
        ..Options::default()
    };
    let mut analysis = Analysis::new(options);
    let mut all = Vec::new();
    let mut at = 0;
    let mut wanted = size;
    while let Some(rest) = file.get(at..).filter(|rest| !rest.is_empty()) {
        let part = rest.get(..wanted.min(rest.len())).unwrap_or_default();
        let mut batch = Batch { block: part.to_vec(), ..Batch::default() };
        let progress = decoder.read(&mut batch);
        analysis.take(0, &batch);
        while let Some(finding) = analysis.poll() {
            all.push(told(&finding));
        }
        match progress {
            Progress::Need { read, need } => {
                if part.len() == rest.len() {
                    break;
                }
                at += read;
                wanted = size.max(need);
                assert!(read > 0 || need > part.len(), "it asks for what it has");
            }
            Progress::Skip(more) => at += part.len() + usize::try_from(more).unwrap_or(usize::MAX - file.len()),
            Progress::Damaged(..) => break,
        }
    }
    analysis.finish();
    while let Some(finding) = analysis.poll() {
        all.push(told(&finding));
    }
    all
}

fn told(finding: &Finding) -> String {
    format!("{finding:?}")
}
