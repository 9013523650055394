//! The pipeline by events, as their sources hand them over.

use probe502::{
    decode::{
        access_log::{self, Pattern},
        error_log,
        kernel::{self, Names},
        packet,
    },
    merge::Arrival,
    model::{
        event::{Body, Source},
        packet::{LinkType, PacketEvent, PacketRef},
        time::{At, Moment, WallClock},
    },
    pipeline::{Judged, Limits, Pipeline, Settings},
    redact::{Key, Level, Redactor},
    report::{json, text},
};

/// Small ones, so that few bytes reach them.
const LIMITS: Limits = Limits { flows: 32, events_per_flow: 12, requests: 8, notable: 8, failures: 8, explained: 4 };
/// Where time begins: an hour after the host did.
const BEGIN_NS: u64 = 3_600_000_000_000;
/// Of a recording's host, so that error lines have a time near the events'.
const CLOCK: WallClock = WallClock { offset_ns: 1_700_000_000_000_000_000 };

/// Settings of a run with small limits.
#[must_use]
pub fn settings() -> Settings {
    Settings { limits: LIMITS, clock: CLOCK, statuses: vec![500, 502, 503, 504] }
}

/// What must hold of a pipeline at any time: what it remembers is bounded, and what it says can be printed.
pub fn check(pipeline: &mut Pipeline) -> Vec<Judged> {
    assert!(pipeline.flows_known() <= LIMITS.flows, "{} connections are remembered", pipeline.flows_known());
    while pipeline.poll_question().is_some() {}
    let mut all = Vec::new();
    while let Some(judged) = pipeline.poll_case() {
        printed(&judged);
        all.push(judged);
    }
    all
}

fn printed(Judged { case, verdict }: &Judged) {
    let told = json::incident(case, verdict, CLOCK);
    let times: Vec<i64> = told.evidence.iter().map(|line| line.t_us).collect();
    assert!(times.is_sorted(), "the evidence is not in the order of time: {times:?}");
    let line = json::line(&told);
    assert!(!line.contains('\n') && serde_json::from_str::<serde_json::Value>(&line).is_ok(), "no JSON line: {line}");
    let page = text::incident(case, verdict, CLOCK, text::Style { color: false, whole_uris: false });
    assert!(page.chars().all(|c| c == '\n' || !c.is_control()), "a terminal would obey this: {page:?}");
}

/// A record of the kernel programs.
pub fn record(bytes: &[u8]) {
    let names = Names::default();
    let whole = kernel::decode(bytes, &names);
    for level in [Level::Default, Level::All] {
        let mut kept = bytes.to_vec();
        Redactor::new(level, Key::new([7; 16])).record(&mut kept);
        assert_eq!(kept.len(), bytes.len(), "redaction changes a length");
        let again = kernel::decode(&kept, &names);
        assert_eq!(whole.is_ok(), again.is_ok(), "redaction makes a record unreadable");
    }
    if let Ok(decoded) = whole {
        let mut pipeline = Pipeline::new(settings());
        pipeline.replay(Arrival { at: At::exactly(decoded.time), source: Source::Kernel, body: decoded.body });
        pipeline.finish();
        check(&mut pipeline);
    }
}

/// Events of every source. Each has a byte for its kind, two for how much later than the one before it is (microseconds; with the highest
/// bit set, milliseconds), two for its length, and its bytes.
pub fn stream(bytes: &[u8]) {
    let once = run(bytes);
    assert_eq!(once, run(bytes), "the same events are judged differently");
}

fn run(mut rest: &[u8]) -> Vec<Judged> {
    let mut pipeline = Pipeline::new(settings());
    let combined = Pattern::compile(access_log::COMBINED);
    let mut now = BEGIN_NS;
    let mut judged = Vec::new();
    while let [kind, d0, d1, l0, l1, after @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*l0, *l1])).min(after.len());
        let (content, behind) = after.split_at(length);
        rest = behind;
        now += match u16::from_le_bytes([*d0, *d1]) {
            delay if delay & 0x8000 != 0 => u64::from(delay & 0x7fff) * 1_000_000,
            delay => u64::from(delay) * 1_000,
        };
        if kind % 8 == 7 {
            pipeline.advance(Moment(now));
        } else if let Some((at, source, body)) = event(kind % 8, content, now, &combined) {
            pipeline.push(Arrival { at, source, body });
        }
        judged.extend(check(&mut pipeline));
    }
    pipeline.finish();
    judged.extend(check(&mut pipeline));
    judged
}

fn event(kind: u8, content: &[u8], now: u64, combined: &Pattern) -> Option<(At, Source, Body)> {
    let exactly = At::exactly(Moment(now));
    // What the log knows of its time.
    let second = At::between(Moment(now / 1_000_000_000 * 1_000_000_000), Moment(now));
    Some(match kind {
        0..=3 => {
            let decoded = kernel::decode(content, &Names::default()).ok()?;
            (exactly, Source::Kernel, decoded.body)
        }
        4 => {
            let link = if content.first()? >> 4 == 6 { LinkType::IPV6 } else { LinkType::IPV4 };
            let body = packet::decode(link, content, u32::try_from(content.len()).ok()?)?;
            (exactly, Source::Packet, Body::Packet(PacketEvent { reference: PacketRef(now), netns: Some(1), body }))
        }
        5 => (second, Source::ErrorLog, Body::from(error_log::decode(content).ok()?.line)),
        _ => (second, Source::AccessLog, Body::AccessLine(access_log::decode(combined, content).ok()?.line)),
    })
}
