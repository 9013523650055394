//! The one thread that thinks: everything the sources deliver goes through the pipeline here, and nowhere else.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::mpsc::UnboundedSender;

use super::{clock, recorder::Recorder};
use crate::{
    bundle::{
        entry,
        packets::{CapturedPacket, PacketStore},
        tape::Raw,
    },
    model::{case::CaseKind, event::Body},
    pipeline::{Arrival, Judged, Pipeline, Question, Settings},
};

/// How far the stream stays behind the clock, so that the slowest source still finds its place: the ring is read at least every 20 ms,
/// the capture holds packets back for at most 20 ms, log lines come through inotify. Twice that, and room for the scheduler.
const LAG_NS: u64 = 80_000_000;

/// How often the thread thinks when nothing arrives.
const TURN: Duration = Duration::from_millis(10);

/// Deliveries that may wait for the thread. A storm fills it; what does not fit is counted as lost and never blocks the kernel's ring.
const WAITING: usize = 65_536;

/// Memory for packets kept for incidents to come. At a filter that lets a few packets of a connection through, seconds of thousands of them.
const PACKET_BYTES: usize = 12 << 20;

/// Something a source delivers.
#[derive(Debug)]
pub enum Delivery {
    /// Events that the probe found out itself; or any, where nothing is recorded.
    Arrivals(Vec<Arrival>),
    /// Events with what they were decoded from.
    Raw(Vec<(Arrival, Raw)>),
    /// A packet that decodes to an event.
    Packet(Box<(Arrival, CapturedPacket)>),
    /// No more will come.
    End,
}

/// What the thread says to the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Somebody should look this up.
    Question(Question),
    /// A case was printed.
    Case(CaseKind),
    /// The output is gone (a closed pipe).
    OutputGone,
    /// The thread is done.
    Ended,
}

/// Where judged cases go.
pub trait Sink: Send {
    /// Takes a judged case; the packets are there for it to pick from. An error means that nobody reads any more.
    fn case(&mut self, judged: &Judged, packets: &PacketStore) -> std::io::Result<()>;
}

/// The way in. Clones share it.
#[derive(Clone, Debug)]
pub struct Intake {
    sender: SyncSender<Delivery>,
    recording: bool,
}

impl Intake {
    /// Whether the raw form of what is delivered is wanted ([`Delivery::Raw`]).
    #[must_use]
    pub const fn is_recording(&self) -> bool {
        self.recording
    }

    /// Delivers without waiting. `false`: there was no room, and the delivery is lost; the caller counts it.
    #[must_use]
    pub fn try_deliver(&self, delivery: Delivery) -> bool {
        match self.sender.try_send(delivery) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => true,
            Err(TrySendError::Full(_)) => false,
        }
    }

    /// Delivers, waiting for room: for what is rare and must not be lost (coverage, answers about the host, the end).
    pub fn deliver(&self, delivery: Delivery) {
        // The thread ends only when the program does.
        let _ = self.sender.send(delivery);
    }
}

/// Starts the thread; with a recorder, everything that gets its place in the stream is kept there too.
pub fn start(
    settings: Settings,
    sink: Box<dyn Sink>,
    said: UnboundedSender<Said>,
    recorder: Option<Recorder>,
) -> std::io::Result<(Intake, JoinHandle<u64>)> {
    let (sender, receiver) = sync_channel(WAITING);
    let recording = recorder.is_some();
    let mut pipeline = Pipeline::new(settings);
    if recording {
        pipeline.keep_places();
    }
    let thinker = Thinker { pipeline, packets: PacketStore::new(PACKET_BYTES), sink, said, recorder };
    let handle = thread::Builder::new().name("thinker".into()).spawn(move || thinker.run(&receiver))?;
    Ok((Intake { sender, recording }, handle))
}

struct Thinker {
    pipeline: Pipeline,
    packets: PacketStore,
    sink: Box<dyn Sink>,
    said: UnboundedSender<Said>,
    recorder: Option<Recorder>,
}

impl Thinker {
    /// Returns how many arrivals came too late for their place.
    fn run(mut self, deliveries: &Receiver<Delivery>) -> u64 {
        loop {
            let mut next = match deliveries.recv_timeout(TURN) {
                Ok(delivery) => Some(delivery),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Delivery::End),
            };
            // Everything that is there belongs to this turn; what comes meanwhile belongs to the next.
            let now = clock::now();
            let mut ended = false;
            let mut budget = WAITING;
            while let Some(delivery) = next {
                ended |= self.take(delivery);
                budget -= 1;
                next = if ended || budget == 0 { None } else { deliveries.try_recv().ok() };
            }
            if ended {
                let told = self.pipeline.told();
                self.pipeline.finish();
                self.record();
                if let Some(recorder) = &mut self.recorder {
                    recorder.end(told);
                }
                self.speak();
                let _ = self.said.send(Said::Ended);
                return self.pipeline.late();
            }
            self.pipeline.advance(now.minus_ns(LAG_NS));
            self.record();
            self.speak();
        }
    }

    fn take(&mut self, delivery: Delivery) -> bool {
        match delivery {
            Delivery::Arrivals(arrivals) => arrivals.into_iter().for_each(|arrival| {
                let found = self.recorder.as_ref().and_then(|_| entry::finding(arrival.at, &arrival.body));
                self.push(arrival, found.map(Raw::Finding));
            }),
            Delivery::Raw(both) => both.into_iter().for_each(|(arrival, raw)| self.push(arrival, Some(raw))),
            Delivery::Packet(both) => {
                let (arrival, packet) = *both;
                let netns = match &arrival.body {
                    Body::Packet(event) => event.netns,
                    _ => None,
                };
                let raw = self.recorder.as_ref().map(|_| Raw::Packet(Box::new(packet.clone()), netns));
                self.packets.push(packet);
                self.push(arrival, raw);
            }
            Delivery::End => return true,
        }
        false
    }

    fn push(&mut self, arrival: Arrival, raw: Option<Raw>) {
        let at = arrival.at;
        let number = self.pipeline.push(arrival);
        if let (Some(recorder), Some(raw)) = (&mut self.recorder, raw) {
            recorder.tape.hold(number, at, raw);
        }
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
                }
                Err(_) => {
                    let _ = self.said.send(Said::OutputGone);
                }
            }
        }
    }
}
