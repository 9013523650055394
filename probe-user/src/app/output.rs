//! What `watch` prints and leaves behind: text or JSON lines on stdout, a folder for each incident.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    sync::{Arc, Mutex, PoisonError},
};

use super::folder::{Folder, Partial};
use crate::{
    bundle::{
        packets::{Interface, PacketStore},
        tape::Interfaces,
    },
    model::{
        case::{Case, CaseKind, Folded},
        event::Body,
        packet::{PacketBody, PacketRef},
        time::WallClock,
    },
    pipeline::Judged,
    report::{
        self,
        json::{self, Incident},
        pcapng,
        text::{self, Style},
    },
};

/// What an incident's folder holds: the incident as it was printed, and its packets.
pub const INCIDENT: &str = "incident.json";
/// See [`INCIDENT`].
pub const PACKETS: &str = "packets.pcapng";

/// What has been told so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Gateway failures.
    pub incidents: u64,
    /// Near misses.
    pub near_misses: u64,
    /// Those of both that were counted only, because they are like one that was explained.
    pub folded: u64,
    /// Of each cause: of those that were explained.
    pub by_cause: BTreeMap<&'static str, u64>,
    /// What could not be written, once.
    pub trouble: Vec<String>,
}

/// A tally that several threads look at.
pub type SharedTally = Arc<Mutex<Tally>>;

/// Reads or changes the tally.
pub fn with<T>(tally: &SharedTally, work: impl FnOnce(&mut Tally) -> T) -> T {
    work(&mut tally.lock().unwrap_or_else(PoisonError::into_inner))
}

/// How stdout is written.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// JSON lines.
    pub json: bool,
    /// With colour.
    pub style: Style,
}

impl Form {
    /// Colour only for a terminal, and not where `NO_COLOR` asks for none.
    #[must_use]
    pub fn choose(json: bool) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { json, style: Style { color: !json && !plain && io::stdout().is_terminal(), whole_uris: false } }
    }
}

/// Writes whole lines to stdout and flushes: whoever reads a pipe waits for them.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// The sink of the thinking thread.
pub struct Printer {
    form: Form,
    clock: WallClock,
    folder: Option<Folder>,
    interfaces: Interfaces,
    tally: SharedTally,
    whole_uris: bool,
}

impl Printer {
    /// Prints in this form; leaves incidents in `out`.
    pub fn new(form: Form, clock: WallClock, out: Option<Folder>, interfaces: Interfaces, tally: SharedTally) -> Self {
        Self { form, clock, folder: out, interfaces, tally, whole_uris: false }
    }

    /// Prints URIs with the values of their queries.
    #[must_use]
    pub fn with_whole_uris(mut self, whole: bool) -> Self {
        self.whole_uris = whole;
        self
    }
}

#[cfg(feature = "live")]
impl crate::live::thinker::Sink for Printer {
    fn case(&mut self, judged: &Judged, packets: &PacketStore) -> io::Result<()> {
        self.print(judged, packets)
    }

    fn folded(&mut self, folded: &Folded) -> io::Result<()> {
        self.print_folded(folded)
    }
}

impl Printer {
    /// Prints a case, and leaves it in the folder.
    pub fn print(&mut self, judged: &Judged, packets: &PacketStore) -> io::Result<()> {
        let Judged { case, verdict } = judged;
        with(&self.tally, |tally| {
            match case.kind {
                CaseKind::Incident => tally.incidents += 1,
                CaseKind::NearMiss => tally.near_misses += 1,
            }
            *tally.by_cause.entry(report::cause(verdict)).or_default() += 1;
        });
        let frames = if self.folder.is_some() { frames(case, packets) } else { BTreeMap::new() };
        let incident = incident(judged, self.clock, self.whole_uris, &frames);
        if let Some(folder) = &self.folder {
            let interfaces = self.interfaces.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let comments = comments(&incident, case, &frames);
            if let Err(error) = folder
                .leave(&incident.id, |partial| write(partial, &incident, &frames, &comments, packets, &interfaces))
            {
                let text = format!("{error}; incidents are still printed, no more files are written");
                with(&self.tally, |tally| tally.trouble.push(text));
                self.folder = None;
            }
        }
        if self.form.json {
            print(&json::line(&incident))
        } else {
            print(&text::incident(case, verdict, self.clock, Style { whole_uris: self.whole_uris, ..self.form.style }))
        }
    }

    /// Says how many failures were like a case, and were not explained one by one.
    pub fn print_folded(&mut self, folded: &Folded) -> io::Result<()> {
        with(&self.tally, |tally| {
            match folded.kind {
                CaseKind::Incident => tally.incidents += folded.count,
                CaseKind::NearMiss => tally.near_misses += folded.count,
            }
            tally.folded += folded.count;
        });
        let text = text::folded(folded);
        if self.form.json {
            print(&json::line(&json::Folded { what: "folded", count: folded.count, text, like: folded.like.0.clone() }))
        } else {
            print(&text)
        }
    }
}

/// A case as it is printed: evidence points into the case's own file of packets, where these frames are in it.
#[must_use]
pub fn incident(judged: &Judged, clock: WallClock, whole_uris: bool, frames: &BTreeMap<PacketRef, u64>) -> Incident {
    let Judged { case, verdict } = judged;
    let mut incident = json::incident(case, verdict, clock);
    if whole_uris {
        incident.request.uri = case.request.uri.as_deref().map(report::redact::text);
    }
    refer(&mut incident, frames);
    incident
}

/// The packets of a case: each reference with its frame number in the case's file, from 1.
#[must_use]
pub fn frames(case: &Case, packets: &PacketStore) -> BTreeMap<PacketRef, u64> {
    let of_flows = case.attempts.iter().filter_map(|attempt| attempt.flow.one()).flat_map(|flow| &flow.events);
    let references: BTreeSet<PacketRef> = of_flows
        .filter_map(|event| match &event.body {
            Body::Packet(packet) => Some(packet.reference),
            _ => None,
        })
        .filter(|reference| packets.get(*reference).is_some())
        .collect();
    references.into_iter().zip(1..).collect()
}

/// Evidence points into the case's own file, or nowhere.
fn refer(incident: &mut Incident, frames: &BTreeMap<PacketRef, u64>) {
    for line in &mut incident.evidence {
        let number = line.reference.as_deref().and_then(|text| text.split_once('#')).and_then(|(_, n)| n.parse().ok());
        let frame = number.and_then(|number| frames.get(&PacketRef(number)));
        line.reference = frame.map(|frame| format!("{PACKETS}#{frame}"));
    }
}

/// What the report says about each frame: the incident, who sent it where that is a process of this host, and what it proves.
fn comments(incident: &Incident, case: &Case, frames: &BTreeMap<PacketRef, u64>) -> BTreeMap<u64, String> {
    let senders = senders(case);
    let mut comments: BTreeMap<u64, String> = BTreeMap::new();
    for (reference, frame) in frames {
        let mut text = format!("Incident: {}", incident.id);
        if let Some(sender) = senders.get(reference) {
            text.push_str("\nProcess: ");
            text.push_str(sender);
        }
        comments.insert(*frame, text);
    }
    for line in &incident.evidence {
        let frame = line.reference.as_deref().and_then(|text| text.split_once('#')).and_then(|(_, n)| n.parse().ok());
        if let Some(comment) = frame.and_then(|frame: u64| comments.get_mut(&frame)) {
            let step = line.weight.as_ref().map_or(String::new(), |weight| format!("\nWeight: {weight}"));
            // Writing to a String cannot fail.
            let _ = write!(comment, "\nCause: {}\nEvidence: {}{step}", incident.verdict.cause, line.text);
        }
    }
    comments
}

/// The processes behind packets: nginx's worker, and whoever accepted the connection.
fn senders(case: &Case) -> BTreeMap<PacketRef, String> {
    let mut senders = BTreeMap::new();
    for flow in case.attempts.iter().filter_map(|attempt| attempt.flow.one()) {
        let worker = flow.worker.or(case.worker).map(|pid| format!("nginx (pid {pid})"));
        let holder =
            flow.accepted_by.as_ref().map(|(pid, command)| format!("{} (pid {pid})", report::redact::text(command)));
        for event in &flow.events {
            let Body::Packet(packet) = &event.body else { continue };
            let PacketBody::Tcp(tcp) = &packet.body else { continue };
            let sender = if tcp.header.source == flow.upstream { &holder } else { &worker };
            if let Some(sender) = sender {
                senders.insert(packet.reference, sender.clone());
            }
        }
    }
    senders
}

/// Writes both files into a folder that has no final name yet.
fn write(
    partial: &Partial<'_>,
    incident: &Incident,
    frames: &BTreeMap<PacketRef, u64>,
    comments: &BTreeMap<u64, String>,
    packets: &PacketStore,
    interfaces: &[Interface],
) -> Result<(), anyhow::Error> {
    let mut used: Vec<u32> = frames.keys().filter_map(|r| packets.get(*r)).map(|packet| packet.interface).collect();
    used.sort_unstable();
    used.dedup();
    if used.is_empty() && !interfaces.is_empty() {
        // A file without an interface is one that tcpdump refuses to open, though none of its packets is missing.
        used.push(0);
    }
    let mut kept = Vec::new();
    let described: Vec<pcapng::Interface> = used
        .iter()
        .map(|index| {
            let any = frames.keys().filter_map(|r| packets.get(*r)).find(|packet| packet.interface == *index);
            let known = usize::try_from(*index).ok().and_then(|index| interfaces.get(index));
            pcapng::Interface {
                name: known.map_or_else(|| format!("interface {index}"), |known| known.name.clone()),
                description: known.and_then(|known| known.netns).map(|netns| format!("network namespace {netns}")),
                link: any.map_or(crate::model::packet::LinkType::ETHERNET, |packet| packet.link),
                snap_length: known.map_or(0, |known| known.snap_length),
                filter: known.map(|known| known.filter.clone()),
                received: known.map(|known| known.received),
                dropped: known.map(|known| known.dropped),
            }
        })
        .collect();
    for (reference, frame) in frames {
        let Some(packet) = packets.get(*reference) else { continue };
        let position = used.binary_search(&packet.interface).unwrap_or(0);
        kept.push(pcapng::Packet {
            interface: u32::try_from(position).unwrap_or(0),
            unix_ns: packet.unix_ns,
            wire_length: packet.wire_length,
            bytes: &packet.bytes,
            direction: packet.direction,
            comment: comments.get(frame).map(String::as_str),
        });
    }
    partial.create(PACKETS, &pcapng::write(&described, &kept))?;
    partial.create(INCIDENT, format!("{}\n", json::line(incident)).as_bytes())
}
