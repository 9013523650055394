//! The one thread that thinks: everything the sources deliver goes through the pipeline here, and nowhere else.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::mpsc::UnboundedSender;

use super::{
    clock,
    delivery::Delivery,
    marks::{Mark, Marks, Pace},
    memory,
    privilege::{self, Work},
    recorder::Recorder,
    rest::Rest,
    sieve::{GoesOn, Sieve},
    sources::{self, Counts},
};
use crate::{
    bundle::{entry, packets::PacketStore, tape::Raw},
    decode::{
        kernel::{self, Names},
        packet,
    },
    model::{
        case::{CaseKind, Folded},
        coverage::{Coverage, Sensor, Sight},
        event::{Body, Source},
        host::HostFact,
        packet::{PacketEvent, PacketRef},
        time::{At, Moment},
    },
    pipeline::{Arrival, Judged, Pipeline, Question, Settings},
    redact::Redactor,
};

/// How far the stream stays behind the clock, so that the slowest source still finds its place: the ring is read at least every 20 ms,
/// the capture holds packets back for at most 20 ms, log lines come through inotify. Twice that, and room for the scheduler.
const LAG_NS: u64 = 80_000_000;

/// So much of the stream is thought about before what comes of it is printed.
const STEP_NS: u64 = 20_000_000;
/// What is older than this is thought about at once: nothing happened then, or it was long ago that anybody could still wait for it.
const CATCHES_UP_NS: u64 = 10_000_000_000;

/// How often the thread thinks. What arrives does not wake it: the stream lags much further behind, and a wake-up for each delivery costs who
/// delivers, and this thread, more than most of them are worth.
const TURN: Duration = Duration::from_millis(10);
/// How often while all rest; whatever arrives wakes it at once.
const RESTING_TURN: Duration = Duration::from_secs(1);
/// After so long without a delivery, and if no case waits for anything, all rest.
const REST_AFTER_NS: u64 = 500_000_000;

/// How often free memory goes back to the kernel: what a storm needed, or ten thousand connections that were opened at once, until all but a
/// few bytes of each were put away.
const GIVES_BACK_EVERY_NS: u64 = 10_000_000_000;

/// Deliveries that may wait for the thread. A storm fills it; what does not fit is counted as lost and never blocks the kernel's ring.
const WAITING: usize = 65_536;

/// Bytes of deliveries that may wait for the thread: at 3 kB a failure's records and packets, 30,000 failures.
const UNDERWAY: usize = 96 << 20;

/// Memory for packets kept for incidents to come. At a filter that lets a few packets of a connection through, seconds of thousands of them.
const PACKET_BYTES: usize = 8 << 20;

/// What the thread says to the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Somebody should look this up.
    Question(Question),
    /// The same, but nobody waits for the answer: nothing has failed yet.
    Stranger(Question),
    /// A case was printed.
    Case(CaseKind),
    /// A greater depth would have told more of that case.
    TooShallow,
    /// The output is gone (a closed pipe).
    OutputGone,
    /// The thread is done.
    Ended,
}

/// Where judged cases go.
pub trait Sink: Send {
    /// Takes a judged case; the packets are there for it to pick from, if it leaves files in a folder. An error means that nobody reads any more.
    fn case(&mut self, judged: &Judged, packets: &PacketStore) -> std::io::Result<()>;
    /// Takes the count of failures that are like a case it has taken.
    fn folded(&mut self, folded: &Folded) -> std::io::Result<()>;
}

/// The way in. Clones share it.
#[derive(Clone, Debug)]
pub struct Intake {
    sender: SyncSender<Delivery>,
    /// Bytes on the way, about.
    underway: Arc<AtomicUsize>,
    /// Deliveries so far.
    count: Arc<AtomicUsize>,
    redactor: Arc<Redactor>,
    marks: Marks,
    rest: Rest,
}

impl Intake {
    /// For a source that says how far it has been read. What it delivers is wanted so long after it happened.
    #[must_use]
    pub fn mark(&self, slack_ns: u64) -> Mark {
        self.marks.add(clock::now(), slack_ns)
    }

    /// Whether all rest, because nothing comes.
    #[must_use]
    pub const fn rest(&self) -> &Rest {
        &self.rest
    }

    /// What every source asks before it reads what it has read.
    #[must_use]
    pub fn redactor(&self) -> &Redactor {
        &self.redactor
    }

    /// How many deliveries there were, taken or lost.
    #[must_use]
    pub fn deliveries(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Delivers without waiting. `false`: there was no room, and the delivery is lost; the caller counts it.
    #[must_use]
    pub fn try_deliver(&self, delivery: Delivery) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.rest.end();
        let weight = delivery.weight();
        if self.underway.fetch_add(weight, Ordering::Relaxed) > UNDERWAY {
            self.underway.fetch_sub(weight, Ordering::Relaxed);
            return false;
        }
        match self.sender.try_send(delivery) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => true,
            Err(TrySendError::Full(_)) => {
                self.underway.fetch_sub(weight, Ordering::Relaxed);
                false
            }
        }
    }

    /// Delivers, waiting for room: for what is rare and must not be lost (coverage, answers about the host, the end).
    pub fn deliver(&self, delivery: Delivery) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.rest.end();
        self.underway.fetch_add(delivery.weight(), Ordering::Relaxed);
        // The thread ends only when the program does.
        let _ = self.sender.send(delivery);
    }
}

/// Starts the thread, which writes in this folder and nowhere else; with a recorder, everything that gets its place in the stream is kept there too.
pub fn start(
    settings: Settings,
    sink: Box<dyn Sink>,
    said: UnboundedSender<Said>,
    counts: Arc<Counts>,
    recorder: Option<Recorder>,
    redactor: Arc<Redactor>,
    folder: Option<PathBuf>,
) -> std::io::Result<(Intake, JoinHandle<u64>)> {
    let (sender, receiver) = sync_channel(WAITING);
    let underway = Arc::new(AtomicUsize::new(0));
    let (marks, rest) = (Marks::default(), Rest::default());
    let mut pipeline = Pipeline::new(settings);
    if recorder.is_some() {
        pipeline.keep_places();
    }
    let thinker = Thinker {
        pipeline,
        packets: PacketStore::new(PACKET_BYTES),
        // Nobody but who leaves them in files.
        keeps_packets: folder.is_some(),
        sieve: Sieve::default(),
        names: Arc::default(),
        sights: BTreeMap::new(),
        counts,
        underway: Arc::clone(&underway),
        marks: marks.clone(),
        pace: Pace::default(),
        rest: rest.clone(),
        sink,
        said,
        recorder,
    };
    let handle = thread::Builder::new().name("thinker".into()).spawn(move || {
        privilege::confine(Work::Writes(folder.as_deref()));
        thinker.run(&receiver)
    })?;
    Ok((Intake { sender, underway, count: Arc::default(), redactor, marks, rest }, handle))
}

struct Thinker {
    pipeline: Pipeline,
    packets: PacketStore,
    /// Somebody wants packets of a case as they were captured.
    keeps_packets: bool,
    sieve: Sieve,
    names: Arc<Names>,
    /// How well nginx's own functions are heard.
    sights: BTreeMap<Sensor, Sight>,
    counts: Arc<Counts>,
    underway: Arc<AtomicUsize>,
    marks: Marks,
    pace: Pace,
    rest: Rest,
    sink: Box<dyn Sink>,
    said: UnboundedSender<Said>,
    recorder: Option<Recorder>,
}

impl Thinker {
    /// Returns how many arrivals came too late for their place.
    fn run(mut self, deliveries: &Receiver<Delivery>) -> u64 {
        self.sieve.set_open(true);
        let mut delivered = clock::now();
        let (mut turned, mut given_back) = (delivered, delivered);
        loop {
            let rests = clock::now().since_ns(delivered) > REST_AFTER_NS && !self.pipeline.waits();
            if rests {
                self.rest.begin();
            }
            let patience = if rests {
                RESTING_TURN
            } else {
                // One that has taken longer than its time is behind.
                thread::sleep(TURN.saturating_sub(Duration::from_nanos(clock::now().since_ns(turned))));
                Duration::ZERO
            };
            let mut next = match deliveries.recv_timeout(patience) {
                Ok(delivery) => Some(delivery),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Delivery::End(clock::now())),
            };
            // Everything that is there belongs to this turn; what comes meanwhile belongs to the next.
            let now = clock::now();
            turned = now;
            let read = self.marks.earliest();
            if next.is_some() {
                delivered = now;
                // Once more: who delivered it may have done so just before the rest began.
                self.rest.end();
            }
            let mut ended = None;
            let mut budget = WAITING;
            while let Some(delivery) = next {
                ended = self.take(delivery);
                budget -= 1;
                next = if ended.is_some() || budget == 0 { None } else { deliveries.try_recv().ok() };
            }
            if let Some(ended) = ended {
                // Who was behind has not judged anybody yet of whom everything is known by now.
                self.think(ended.minus_ns(LAG_NS));
                self.release(Moment(u64::MAX));
                let told = self.pipeline.told();
                self.pipeline.finish();
                tracing::info!("{} records and packets of healthy connections were let go", self.sieve.let_go());
                self.record();
                if let Some(recorder) = &mut self.recorder {
                    recorder.end(told);
                }
                self.speak();
                let _ = self.said.send(Said::Ended);
                return self.pipeline.late();
            }
            let until = self.pace.until(now.minus_ns(LAG_NS), read, now);
            self.think(until);
            if now.since_ns(given_back) > GIVES_BACK_EVERY_NS {
                given_back = now;
                memory::give_back();
            }
        }
    }

    /// Thinks up to here, in steps: after a pause a whole second's cases would wait for the last of them to be printed.
    fn think(&mut self, until: Moment) {
        loop {
            let next = until.min(self.pipeline.told().max(until.minus_ns(CATCHES_UP_NS)).plus_ns(STEP_NS));
            self.release(next);
            self.pipeline.advance(next);
            self.counts.forgotten.store(self.pipeline.crowded_out(), Ordering::Relaxed);
            self.record();
            self.speak();
            if next >= until {
                return;
            }
        }
    }

    /// Returns when the end was said.
    fn take(&mut self, delivery: Delivery) -> Option<Moment> {
        self.underway.fetch_sub(delivery.weight(), Ordering::Relaxed);
        match delivery {
            Delivery::Arrivals(arrivals) => {
                for arrival in arrivals {
                    self.hear(&arrival);
                    let found = self.recorder.as_ref().and_then(|_| entry::finding(arrival.at, &arrival.body));
                    push(&mut self.pipeline, self.recorder.as_mut(), arrival, || found.map(Raw::Finding));
                }
            }
            Delivery::Records(records) => {
                self.names = records.names;
                self.sieve.records(records.bytes, &records.lengths);
                for question in self.sieve.take_questions() {
                    let _ = self.said.send(Said::Stranger(question));
                }
            }
            Delivery::Line(both) => {
                let (arrival, raw) = *both;
                push(&mut self.pipeline, self.recorder.as_mut(), arrival, || Some(raw));
            }
            Delivery::Packets(batch) => self.sieve.packets(batch),
            Delivery::End(said) => return Some(said),
        }
        None
    }

    /// Which addresses are one's. And nothing is let go unless nginx itself says which connections failed, and how every request ended.
    fn hear(&mut self, arrival: &Arrival) {
        if let Body::Host(fact) = &arrival.body
            && let HostFact::Translated { upstream, to, seen_as: None, .. } = &**fact
        {
            self.sieve.learn_translation(*upstream, *to);
        }
        if let Body::Coverage(Coverage::Sensor { sensor, sight, .. }) = &arrival.body
            && matches!(sensor, Sensor::NginxFunctions | Sensor::NginxStatuses)
        {
            self.sights.insert(*sensor, *sight);
            let heard = self.sights.len() == 2 && self.sights.values().all(|sight| *sight == Sight::On);
            self.sieve.set_open(!heard);
        }
    }

    /// Everything up to here goes into the pipeline, except what the sieve lets go.
    fn release(&mut self, until: Moment) {
        let Self { sieve, pipeline, packets, keeps_packets, names, counts, recorder, .. } = self;
        sieve.release(until.0, |what| match what {
            GoesOn::Record(record) => match kernel::decode(record, names) {
                Ok(decoded) => {
                    tracing::trace!(?decoded, "record");
                    let at = At::exactly(decoded.time);
                    let arrival = Arrival { at, source: Source::Kernel, body: decoded.body };
                    push(pipeline, recorder.as_mut(), arrival, || Some(Raw::Kernel(record.into())));
                }
                Err(error) => {
                    counts.unreadable.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!("unreadable kernel record: {error}");
                }
            },
            GoesOn::Packet(moment, batch, place) => {
                let Some((head, bytes)) = batch.get(place) else { return };
                // The filter lets other ICMP and fragments through; they say nothing about a flow.
                let Some(body) = packet::decode(batch.link, bytes, head.wire_length) else { return };
                let netns = batch.netns;
                let event = PacketEvent { reference: PacketRef(head.number), netns, body };
                let at = At::exactly(moment);
                let arrival = Arrival { at, source: Source::Packet, body: Body::Packet(event) };
                let whole = || batch.packet(place);
                push(pipeline, recorder.as_mut(), arrival, || {
                    whole().map(|packet| Raw::Packet(Box::new(packet), netns))
                });
                if let Some(packet) = keeps_packets.then(whole).flatten() {
                    packets.push(packet);
                }
            }
        });
    }

    /// What got its place in the stream is kept.
    fn record(&mut self) {
        let Some(recorder) = &mut self.recorder else { return };
        for placed in self.pipeline.take_placed() {
            recorder.tape.place(placed.arrival, placed.id, placed.behind);
        }
        if recorder.tape.tell(self.pipeline.told()) {
            recorder.tape.forget(&self.pipeline.memory().events);
        }
        recorder.write();
    }

    fn speak(&mut self) {
        while let Some(question) = self.pipeline.poll_question() {
            let _ = self.said.send(Said::Question(question));
        }
        while let Some(judged) = self.pipeline.poll_case() {
            if let Some(recorder) = &mut self.recorder {
                recorder.case(&judged, || self.pipeline.memory());
            }
            match self.sink.case(&judged, &self.packets) {
                Ok(()) => {
                    let _ = self.said.send(Said::Case(judged.case.kind));
                    if sources::would_know_more(&judged) {
                        let _ = self.said.send(Said::TooShallow);
                    }
                }
                Err(_) => {
                    let _ = self.said.send(Said::OutputGone);
                }
            }
        }
        while let Some(folded) = self.pipeline.poll_folded() {
            if self.sink.folded(&folded).is_err() {
                let _ = self.said.send(Said::OutputGone);
            }
        }
    }
}

/// Hands an arrival on to the pipeline; its raw form waits in the recorder until it has its place.
fn push(pipeline: &mut Pipeline, recorder: Option<&mut Recorder>, arrival: Arrival, raw: impl FnOnce() -> Option<Raw>) {
    let at = arrival.at;
    let number = pipeline.push(arrival);
    if let Some(recorder) = recorder
        && let Some(raw) = raw()
    {
        recorder.tape.hold(number, at, raw);
    }
}
