use proptest::prelude::*;

use super::*;
use crate::{
    bundle::{
        entry::finding,
        manifest::Manifest,
        packets::Interface,
        reader::{Part, Reader},
    },
    decode::config,
    model::{
        case::CaseKind,
        coverage::{Coverage, Sensor, Sight},
        event::Body,
        host::{HostFact, NginxInstance},
        packet::{Direction, LinkType},
    },
};

const SECOND: u64 = 1_000_000_000;

fn bounds() -> Bounds {
    Bounds { before_ns: 30 * SECOND, after_ns: 5 * SECOND, memory: 8 << 20, window: 64 << 20 }
}

/// A tape, and the file that its pieces make.
struct Run {
    tape: Tape,
    file: Vec<u8>,
    windows: usize,
    events: u64,
}

impl Run {
    fn new(bounds: Bounds) -> Self {
        let interfaces = Interfaces::default();
        let lo = Interface { name: "lo".to_owned(), netns: Some(7), ..Interface::default() };
        interfaces.lock().unwrap().push(lo);
        let manifest = serde_json::to_vec(&Manifest::default()).unwrap();
        let file = [section::header(), section::section(Kind::Manifest, &manifest)].concat();
        Self { tape: Tape::new(bounds, interfaces), file, windows: 0, events: 0 }
    }

    fn event(&mut self, at: u64, raw: Raw) -> EventId {
        self.events += 1;
        let at = Moment(at);
        self.tape.hold(self.events, At::exactly(at), raw);
        self.tape.place(self.events, EventId(self.events), None);
        EventId(self.events)
    }

    fn record(&mut self, at: u64, bytes: &[u8]) -> EventId {
        self.event(at, Raw::Kernel(bytes.into()))
    }

    fn packet(&mut self, at: u64) -> EventId {
        let packet = CapturedPacket {
            number: self.events,
            interface: 0,
            link: LinkType::RAW,
            unix_ns: at,
            wire_length: 99,
            bytes: vec![9; 40],
            direction: Direction::Inbound,
        };
        self.event(at, Raw::Packet(Box::new(packet), Some(7)))
    }

    /// Time passes, second by second; what matters is asked for as often as the tape wants.
    fn pass(&mut self, from: u64, to: u64, matters: &[EventId]) {
        for second in from..=to {
            if self.tape.tell(Moment(second * SECOND)) {
                self.tape.forget(matters);
            }
            self.write();
        }
    }

    fn case(&mut self, number: u64, at: u64) {
        let id = format!("20261121T140207.331204-{number:06}");
        let mark = Mark { id, kind: CaseKind::Incident, cause: "unknown".to_owned() };
        self.tape.case(number, Moment(at), &mark, &Past::default());
        self.write();
    }

    fn write(&mut self) {
        for piece in self.tape.take() {
            match piece {
                Piece::Window(bytes) => {
                    self.windows += 1;
                    self.file.extend(bytes.iter());
                }
                Piece::More(bytes) => self.file.extend(bytes.iter()),
                Piece::Case => {}
            }
        }
    }
}

/// What a file holds: kernel records, packets, marks, and how often a window begins.
#[derive(Debug, Default, PartialEq)]
struct Held {
    records: Vec<Vec<u8>>,
    packets: Vec<u64>,
    marks: usize,
    openings: Vec<Opening>,
    findings: usize,
}

fn read(file: &[u8]) -> Held {
    let mut held = Held::default();
    let Ok(mut reader) = Reader::open(file) else { return held };
    loop {
        match reader.next_part().unwrap() {
            Part::Opening(opening) => held.openings.push(*opening),
            Part::Events(events) => {
                for row in events.rows() {
                    match row.entry {
                        Some(Entry::Kernel(bytes)) => held.records.push(bytes.into_owned()),
                        Some(Entry::Packet { number, .. }) => {
                            held.packets.push(number);
                            if let Some((_, packet)) = row.packet {
                                assert_eq!(packet.number, number);
                            }
                        }
                        Some(Entry::Case(_)) => held.marks += 1,
                        Some(Entry::Finding { .. }) => held.findings += 1,
                        _ => {}
                    }
                }
            }
            Part::End(_) => return held,
            _ => {}
        }
    }
}

#[test]
fn what_came_shortly_before_a_case_is_in_its_window() {
    let mut run = Run::new(bounds());
    run.record(SECOND, b"old");
    run.pass(1, 40, &[]);
    run.record(41 * SECOND, b"new");
    run.packet(41 * SECOND + 1);
    run.pass(41, 42, &[]);
    run.case(1, 42 * SECOND);
    let held = read(&run.file);
    assert_eq!((held.records, held.packets.len(), held.marks), (vec![b"new".to_vec()], 1, 1));
}

#[test]
fn what_matters_is_kept_from_long_before() {
    let mut run = Run::new(bounds());
    let opening = run.record(SECOND, b"the opening");
    let packet = run.packet(2 * SECOND);
    run.record(3 * SECOND, b"noise");
    let told = Body::Coverage(Coverage::Sensor { sensor: Sensor::Drops, sight: Sight::On, why: None });
    run.event(4 * SECOND, Raw::Finding(finding(At::exactly(Moment(4 * SECOND)), &told).unwrap()));
    run.pass(4, 500, &[opening, packet]);
    run.case(1, 500 * SECOND);
    let held = read(&run.file);
    assert_eq!((held.records, held.packets.len(), held.findings), (vec![b"the opening".to_vec()], 1, 1));
    // When it does not matter any more it goes, after a while.
    run.pass(501, 600, &[]);
    run.case(2, 600 * SECOND);
    assert_eq!(read(&run.file).records.len(), 1, "only in the first window");
}

#[test]
fn overlapping_windows_are_written_once() {
    let mut run = Run::new(bounds());
    for second in 1..=60 {
        run.record(second * SECOND, &[u8::try_from(second).unwrap()]);
        run.pass(second, second, &[]);
        if second % 20 == 0 {
            run.case(second / 20, second * SECOND);
        }
    }
    let held = read(&run.file);
    assert_eq!((run.windows, held.openings.len(), held.marks), (1, 1, 3));
    let mut once = held.records.clone();
    once.dedup();
    assert_eq!(once, held.records);
    assert!(held.records.len() >= 59, "without a hole: {}", held.records.len());
}

#[test]
fn a_window_ends_and_another_begins() {
    let mut run = Run::new(bounds());
    run.record(SECOND, b"one");
    run.pass(1, 2, &[]);
    run.case(1, 2 * SECOND);
    run.pass(3, 20, &[]);
    run.record(20 * SECOND, b"between");
    run.pass(21, 100, &[]);
    run.record(101 * SECOND, b"two");
    run.pass(101, 102, &[]);
    run.case(2, 102 * SECOND);
    let held = read(&run.file);
    assert_eq!(held.records, [b"one".to_vec(), b"two".to_vec()]);
    assert_eq!(held.openings.iter().map(|opening| opening.cases).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn a_full_memory_lets_go_the_oldest_and_says_so() {
    let mut run = Run::new(Bounds { memory: 1 << 20, ..bounds() });
    let mut state = 1_u64;
    for second in 1..=20 {
        for _ in 0..1_000 {
            // Noise does not shrink.
            let noise: Vec<u8> = (0..200)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    u8::try_from(state >> 56).unwrap()
                })
                .collect();
            run.record(second * SECOND, &noise);
        }
        run.pass(second, second, &[]);
        assert!(run.tape.size() <= (1 << 20) + CHUNK_BYTES, "{}", run.tape.size());
    }
    run.case(1, 20 * SECOND);
    let held = read(&run.file);
    let [gap] = held.openings[0].evicted.as_slice() else { panic!("{:?}", held.openings) };
    assert_eq!((gap.from, gap.events + u64::try_from(held.records.len()).unwrap()), (Moment(SECOND), 20_000));
}

/// What `nginx -T` says of a host with so many locations.
fn locations(count: usize) -> HostFact {
    let location = |number| format!("location /{number}/ {{ proxy_pass http://10.0.0.1:8000; }}");
    let locations = (0..count).map(location).collect::<Vec<_>>().join("\n");
    let names = (0..30).map(|number| format!("shop-{number}.example")).collect::<Vec<_>>().join(" ");
    let text = format!("http {{ server {{ server_name {names}; {locations} }} }}");
    HostFact::Nginx(NginxInstance {
        master: Pid(7),
        workers: vec![Pid(8)],
        version: None,
        netns: None,
        configuration: Some(config::decode(&text).unwrap().configuration.into()),
    })
}

#[test]
fn a_configuration_with_thousands_of_places_is_recorded_and_read() {
    let fact = Body::from(locations(18_000));
    let entry = finding(At::exactly(Moment(SECOND)), &fact).unwrap();
    let Entry::Finding { json, .. } = &entry else { panic!() };
    assert!(json.len() > section::LONGEST, "{}", json.len());
    let mut run = Run::new(bounds());
    // Once in the newest part, and once long before it.
    run.record(SECOND, b"before");
    run.event(SECOND, Raw::Finding(entry));
    run.record(2 * SECOND, b"behind");
    run.pass(2, 3, &[]);
    run.case(1, 3 * SECOND);
    run.pass(4, 100, &[]);
    run.record(100 * SECOND, b"later");
    run.case(2, 100 * SECOND);
    let held = read(&run.file);
    assert_eq!((held.findings, held.marks), (2, 2));
    assert_eq!(held.records, [b"before".to_vec(), b"behind".to_vec(), b"later".to_vec()]);
}

#[test]
fn what_nobody_could_read_is_left_out_and_said() {
    let mut run = Run::new(bounds());
    let json = vec![b' '; LONGEST_ENTRY + 1].into();
    run.record(SECOND, b"before");
    run.event(SECOND, Raw::Finding(Entry::Finding { at: At::exactly(Moment(SECOND)), json }));
    let matters = run.record(SECOND, b"behind");
    run.pass(2, 3, &[]);
    run.case(1, 3 * SECOND);
    run.pass(4, 100, &[matters]);
    run.case(2, 100 * SECOND);
    let held = read(&run.file);
    let [gap] = held.openings[0].evicted.as_slice() else { panic!("{:?}", held.openings) };
    assert!(gap.events == 1 && gap.why.contains("128 MiB"), "{gap:?}");
    // Whoever is named by its place is still found there.
    assert_eq!(held.records, [b"before".to_vec(), b"behind".to_vec(), b"behind".to_vec()]);
}

#[test]
fn an_opening_never_holds_more_than_can_be_read() {
    let asked = |number: u64| Asked {
        host: None,
        uri: "x".repeat(4 << 20),
        status: Some(502),
        case: format!("20261121T140207.331204-{number:06}"),
        at: Moment(number),
    };
    let past = Past { asked: (1..=10).map(asked).collect(), ..Past::default() };
    let mut run = Run::new(bounds());
    let mark = Mark { id: "a-11".to_owned(), kind: CaseKind::Incident, cause: "unknown".to_owned() };
    run.tape.case(11, Moment(SECOND), &mark, &past);
    run.write();
    let held = read(&run.file);
    let opening = &held.openings[0];
    assert!(!opening.asked.is_empty() && opening.asked.len() < 10);
    assert_eq!(opening.asked.last(), past.asked.last(), "the newest are kept");
    let left_out = u64::try_from(10 - opening.asked.len()).unwrap();
    assert!(opening.evicted.iter().any(|gap| gap.events == left_out && gap.why.contains("failed")), "{opening:?}");
}

fn file() -> Vec<u8> {
    let mut run = Run::new(bounds());
    for second in 1..=4 {
        run.record(second * SECOND, &[7; 300]);
        run.packet(second * SECOND + 1);
        run.pass(second, second, &[]);
    }
    run.case(1, 4 * SECOND);
    run.file
}

proptest! {
    /// Nothing that is damaged makes the reader panic, go on for ever, or see what was never there.
    #[test]
    fn a_damaged_file_gives_a_beginning(at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
        let whole = file();
        let all = read(&whole);
        let mut bytes = whole.clone();
        bytes[at.index(whole.len())] = byte;
        bytes.truncate(cut.index(whole.len()) + 1);
        let held = read(&bytes);
        prop_assert!(all.records.starts_with(&held.records) && all.packets.starts_with(&held.packets));
    }

    /// The same where the checksum was made right again: then anything may stand there.
    #[test]
    fn a_forged_section_does_no_harm(at in any::<prop::sample::Index>(), byte: u8, kind in 0_usize..4) {
        let kind = [Kind::Opening, Kind::Events, Kind::Packets, Kind::Evicted][kind];
        let mut file = [section::header(), section::section(Kind::Manifest, b"{}")].concat();
        let mut content = Vec::new();
        if kind == Kind::Packets {
            content = crate::report::pcapng::write(&[], &[]);
        } else {
            Entry::Packet { number: 1, at: Moment(1), netns: None }.write(&mut content);
            Entry::Kernel(vec![1; 40].into()).write(&mut content);
        }
        let at = at.index(content.len());
        content[at] = byte;
        file.extend(section::section(kind, &content));
        file.extend(section::section(Kind::Events, &content));
        read(&file);
    }
}
