//! The one thread that thinks: everything the sources deliver goes through the pipeline here, and nowhere else.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::mpsc::UnboundedSender;

use super::{capture::CapturedPacket, clock, packets::PacketStore};
use crate::{
    model::case::CaseKind,
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
    /// Events.
    Arrivals(Vec<Arrival>),
    /// A packet that decodes to an event.
    Packet(Box<(Arrival, CapturedPacket)>),
    /// No more will come.
    End,
}

/// What the thread says to the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
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
pub struct Intake(SyncSender<Delivery>);

impl Intake {
    /// Delivers without waiting. `false`: there was no room, and the delivery is lost; the caller counts it.
    #[must_use]
    pub fn try_deliver(&self, delivery: Delivery) -> bool {
        match self.0.try_send(delivery) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => true,
            Err(TrySendError::Full(_)) => false,
        }
    }

    /// Delivers, waiting for room: for what is rare and must not be lost (coverage, answers about the host, the end).
    pub fn deliver(&self, delivery: Delivery) {
        // The thread ends only when the program does.
        let _ = self.0.send(delivery);
    }
}

/// Starts the thread.
pub fn start(
    settings: Settings,
    sink: Box<dyn Sink>,
    said: UnboundedSender<Said>,
) -> std::io::Result<(Intake, JoinHandle<u64>)> {
    let (sender, receiver) = sync_channel(WAITING);
    let thinker = Thinker { pipeline: Pipeline::new(settings), packets: PacketStore::new(PACKET_BYTES), sink, said };
    let handle = thread::Builder::new().name("thinker".into()).spawn(move || thinker.run(&receiver))?;
    Ok((Intake(sender), handle))
}

struct Thinker {
    pipeline: Pipeline,
    packets: PacketStore,
    sink: Box<dyn Sink>,
    said: UnboundedSender<Said>,
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
                self.pipeline.finish();
                self.speak();
                let _ = self.said.send(Said::Ended);
                return self.pipeline.late();
            }
            self.pipeline.advance(now.minus_ns(LAG_NS));
            self.speak();
        }
    }

    fn take(&mut self, delivery: Delivery) -> bool {
        match delivery {
            Delivery::Arrivals(arrivals) => arrivals.into_iter().for_each(|arrival| self.pipeline.push(arrival)),
            Delivery::Packet(both) => {
                let (arrival, packet) = *both;
                self.packets.push(packet);
                self.pipeline.push(arrival);
            }
            Delivery::End => return true,
        }
        false
    }

    fn speak(&mut self) {
        while let Some(question) = self.pipeline.poll_question() {
            let _ = self.said.send(Said::Question(question));
        }
        while let Some(judged) = self.pipeline.poll_case() {
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
