//! A recording, played into a pipeline.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::Read,
    sync::PoisonError,
};

use anyhow::Context as _;

use super::Audience;
use crate::{
    app::AppError,
    bundle::{
        BundleError,
        entry::{Entry, EntryError},
        manifest::{self, Asked, Earlier, Evicted, Gap, Manifest, Mark, Opening},
        packets::PacketStore,
        reader::{Events, Part, Reader},
        tape::Interfaces,
    },
    decode::access_log::Pattern,
    diagnose,
    model::{
        case::{CaseId, EarlierFailure},
        coverage::{Coverage, Sensor},
        event::{Body, Source},
        host::HostFact,
        net::Address,
        process::Pid,
        time::At,
    },
    pipeline::{Arrival, AskedFor, Forgotten, Limits, Pipeline, Resume, Settings},
    redact::{Key, Level, Redactor},
    report,
};

/// Memory for packets that incidents point to, as when it was recorded.
const PACKET_BYTES: usize = 8 << 20;

/// Judges a recording again; `name` is what the reader knows it by. Ends early when nobody listens any more.
pub fn play(name: &str, input: impl Read, redaction: Level, audience: &mut dyn Audience) -> Result<(), AppError> {
    let unreadable = |error: BundleError| AppError::usage(anyhow::anyhow!("cannot analyze {name}: {error}"));
    let mut reader = Reader::open(input).map_err(unreadable)?;
    let interfaces = Interfaces::default();
    audience.begins(&reader.manifest, &interfaces)?;
    let mut player = Player {
        manifest: reader.manifest.clone(),
        names: reader.manifest.names(),
        redactor: redactor(redaction, &reader.manifest).map_err(AppError::usage)?,
        window: None,
        audience,
        is_heard: true,
        packets: PacketStore::new(PACKET_BYTES),
        interfaces,
        strange: BTreeMap::new(),
        marked: BTreeMap::new(),
        printed: BTreeMap::new(),
        missing: Vec::new(),
        changed: Vec::new(),
    };
    loop {
        match reader.next_part().map_err(unreadable)? {
            Part::Opening(opening) => player.open(*opening),
            Part::Events(events) => player.play(&events),
            Part::Evicted(Evicted { windows, cases, why }) => {
                let text =
                    format!("{name}: {windows} windows with {cases} incidents and near misses were taken out: {why}");
                player.audience.remark("evicted", cases, &text);
            }
            Part::Strange(what) => *player.strange.entry(what).or_default() += 1,
            Part::End(why) => {
                if let Some(why) = why {
                    player.audience.remark("cut", 1, &format!("{name}: {why}"));
                }
                break;
            }
        }
        if !player.is_heard {
            return Ok(());
        }
    }
    player.close();
    for (what, count) in &player.strange {
        player.audience.remark("not-understood", *count, &format!("{name}: {count} times {what}"));
    }
    for text in player.missing.iter().chain(&player.changed) {
        player.audience.remark("judged-anew", 1, &format!("{name}: {text}"));
    }
    Ok(())
}

/// Plays a recording into a pipeline.
struct Player<'a> {
    manifest: Manifest,
    names: crate::decode::kernel::Names,
    /// Where less was taken out when it was recorded than is asked for now.
    redactor: Option<Redactor>,
    window: Option<Window>,
    audience: &'a mut dyn Audience,
    /// Somebody still listens.
    is_heard: bool,
    packets: PacketStore,
    interfaces: Interfaces,
    /// What could not be understood, and how often.
    strange: BTreeMap<String, u64>,
    /// Cases of the window as they were recorded.
    marked: BTreeMap<String, Mark>,
    /// Cases of the window as they were judged now: the cause.
    printed: BTreeMap<String, &'static str>,
    missing: Vec<String>,
    changed: Vec<String>,
}

struct Window {
    pipeline: Pipeline,
    /// Losses whose place in the stream is still to come.
    gaps: VecDeque<Gap>,
}

impl Player<'_> {
    fn open(&mut self, opening: Opening) {
        self.close();
        let settings = Settings {
            limits: Limits { explained: self.manifest.explained.unwrap_or(u64::MAX), ..Limits::default() },
            clock: self.manifest.clock(),
            statuses: self.manifest.statuses.clone(),
        };
        let mut pipeline = Pipeline::new(settings);
        pipeline.resume(Resume {
            cases: opening.cases,
            from: opening.from,
            upstreams: opening.upstreams,
            speaking: opening.speaking.into_iter().map(Pid).collect(),
            earlier: opening.earlier.into_iter().map(earlier).collect(),
            asked: opening.asked.into_iter().map(asked).collect(),
            forgotten: opening.forgotten.iter().filter_map(forgotten).collect(),
        });
        let mut gaps: Vec<Gap> = opening.evicted;
        gaps.sort_by_key(|gap| gap.to);
        self.window = Some(Window { pipeline, gaps: gaps.into() });
    }

    /// The window is over: every case of it has been judged again, or should have been.
    fn close(&mut self) {
        self.window = None;
        let (marked, mut printed) = (std::mem::take(&mut self.marked), std::mem::take(&mut self.printed));
        for (id, mark) in marked {
            match printed.remove(&id) {
                None => self.missing.push(format!(
                    "{id} ({}) was told when it was recorded, and is not found again; if this version is not older, please report it",
                    mark.cause
                )),
                Some(cause) if cause != mark.cause => {
                    self.changed.push(format!("{id} was judged {} when it was recorded, and is {cause} now", mark.cause));
                }
                Some(_) => {}
            }
        }
    }

    fn play(&mut self, events: &Events) {
        let positions = self.positions(events);
        for row in events.rows() {
            let Some(entry) = row.entry else {
                self.strange("an entry of a kind that is not known");
                continue;
            };
            if let Some(mark) = entry.mark() {
                self.marked.insert(mark.id.clone(), mark);
                continue;
            }
            let mut entry = entry;
            let packet = row.packet.map(|(position, mut packet)| {
                if let Some(redactor) = &self.redactor {
                    redactor.packet(packet.link, &mut packet.bytes);
                }
                let position = usize::try_from(position).ok();
                packet.interface = position.and_then(|at| positions.get(at)).copied().unwrap_or(u32::MAX);
                packet
            });
            let of_it = packet.as_ref().map(|packet| (packet.link, packet.bytes.as_slice(), packet.wire_length));
            if let Some(redactor) = &self.redactor {
                redact(&mut entry, redactor);
            }
            let event = entry.event(&self.names, of_it);
            self.learn_sides(event.as_ref());
            self.packets_push(packet);
            let Some(window) = &mut self.window else {
                self.strange("an entry outside of any window");
                continue;
            };
            match (event, entry) {
                (Ok(Some((at, source, body))), _) => {
                    while let Some(gap) = window.gaps.pop_front_if(|gap| gap.to <= at.latest) {
                        for arrival in lost(&gap) {
                            window.pipeline.replay(arrival);
                        }
                    }
                    window.pipeline.replay(Arrival { at, source, body });
                }
                (Ok(None), Entry::Tick(to)) => window.pipeline.advance(to),
                (Ok(None), Entry::End(told)) => {
                    window.pipeline.advance(told);
                    window.pipeline.finish();
                }
                (Ok(None), _) => {}
                (Err(error), _) => self.strange(&error.to_string()),
            }
            self.speak();
        }
    }

    /// Who is no client, where clients' addresses are taken out.
    fn learn_sides(&self, event: Result<&Option<(At, Source, Body)>, &EntryError>) {
        let (Some(redactor), Ok(Some((_, _, Body::Host(fact))))) = (&self.redactor, event) else { return };
        let HostFact::Nginx(instance) = &**fact else { return };
        if let Some(configuration) = &instance.configuration {
            let upstreams = configuration.upstreams.iter().filter_map(Address::ip);
            redactor.learn(configuration.listen.iter().copied(), upstreams);
        }
    }

    fn packets_push(&mut self, packet: Option<crate::bundle::packets::CapturedPacket>) {
        if let Some(packet) = packet {
            self.packets.push(packet);
        }
    }

    /// The run's numbers of the interfaces that these packets name by position.
    fn positions(&mut self, events: &Events) -> Vec<u32> {
        let mut all = self.interfaces.lock().unwrap_or_else(PoisonError::into_inner);
        let mut positions = Vec::new();
        for interface in events.interfaces() {
            let same = |known: &crate::bundle::packets::Interface| {
                known.name == interface.name && known.netns == interface.netns
            };
            let position = all.iter().position(same).unwrap_or_else(|| {
                all.push(interface.clone());
                all.len() - 1
            });
            if let Some(known) = all.get_mut(position) {
                known.received = known.received.max(interface.received);
                known.dropped = known.dropped.max(interface.dropped);
            }
            positions.push(u32::try_from(position).unwrap_or(u32::MAX));
        }
        positions
    }

    fn speak(&mut self) {
        let Some(window) = &mut self.window else { return };
        // The answers are in the recording.
        while window.pipeline.poll_question().is_some() {}
        while let Some(judged) = window.pipeline.poll_case() {
            self.printed.insert(judged.case.id.0.clone(), report::cause(&judged.verdict));
            self.is_heard = self.is_heard && self.audience.case(&judged, &self.packets).is_ok();
        }
        while let Some(folded) = window.pipeline.poll_folded() {
            self.is_heard = self.is_heard && self.audience.folded(&folded).is_ok();
        }
    }

    fn strange(&mut self, what: &str) {
        *self.strange.entry(what.to_owned()).or_default() += 1;
    }
}

/// What is still to be taken out: nothing, if as much was taken out when it was recorded.
fn redactor(level: Level, manifest: &Manifest) -> Result<Option<Redactor>, anyhow::Error> {
    if level <= Level::from_name(&manifest.redaction) {
        return Ok(None);
    }
    let mut random = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .context("cannot read random bytes for the redaction")?;
    Ok(Some(Redactor::new(level, Key::new(random))))
}

fn redact(entry: &mut Entry<'_>, redactor: &Redactor) {
    match entry {
        Entry::Kernel(record) if redactor.concerns_record(record) => redactor.record(record.to_mut()),
        Entry::ErrorLine { line, .. } => redactor.error_line(line.to_mut()),
        Entry::AccessLine { format, line, .. } => {
            let pattern = Pattern::compile(format);
            // What is no text was made text before it was recorded.
            let text = String::from_utf8_lossy(line).into_owned();
            redactor.access_line(line.to_mut(), &pattern.places(&text));
        }
        _ => {}
    }
}

/// What the recorder let go: nobody saw what happened meanwhile.
fn lost(gap: &Gap) -> [Arrival; 2] {
    [None, Some(Sensor::Packets)].map(|sensor| {
        let lost = Coverage::Lost { sensor, count: gap.events.max(1), why: gap.why.clone() };
        Arrival { at: gap.at(), source: Source::Probe, body: Body::Coverage(lost) }
    })
}

fn earlier(earlier: Earlier) -> EarlierFailure {
    EarlierFailure {
        case: CaseId(earlier.case),
        at: earlier.at,
        peer: earlier.peer,
        cause: earlier.cause.as_deref().map(known_cause),
        worker: earlier.worker.map(Pid),
        client: earlier.client,
    }
}

fn asked(asked: Asked) -> AskedFor {
    let Asked { host, uri, status, case, at } = asked;
    AskedFor { host, uri, status, case: CaseId(case), at }
}

/// `None`: a sensor that this version does not know.
fn forgotten(lost: &manifest::Forgotten) -> Option<Forgotten> {
    let sensor = Sensor::ALL.iter().copied().find(|sensor| sensor.name() == lost.sensor)?;
    Some(Forgotten { sensor, at: At::between(lost.from, lost.to), count: lost.events })
}

/// The catalogue's own name of a cause; one that has been renamed since is none.
fn known_cause(id: &str) -> &'static str {
    diagnose::find(id).map_or(report::UNKNOWN, |cause| cause.id)
}
