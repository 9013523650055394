//! The thread that answers: reading `/proc` may take milliseconds and must not hold anything else up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Sender, channel},
    },
    thread,
};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::Lookup;
use crate::{
    live::{clock, delivery::Delivery, thinker::Intake},
    model::{
        event::{Body, Source},
        host::HostFact,
        time::{At, Moment},
    },
    pipeline::{Arrival, Question},
};

/// Names that are looked up at the same time: a name server that is silent holds each of them for its timeout.
const RESOLVING: usize = 8;

/// Starts a thread; questions go in by the sender, answers go to the thinker.
fn answer_questions(name: &str, intake: Intake, mut lookup: Lookup) -> Sender<Question> {
    let (sender, receiver) = channel::<Question>();
    let started = thread::Builder::new().name(name.into()).spawn(move || {
        let resolving = Arc::new(AtomicUsize::new(0));
        while let Ok(question) = receiver.recv() {
            if matches!(question, Question::Name { .. }) {
                resolve_aside(question, &intake, &resolving);
                continue;
            }
            let before = clock::now();
            deliver(&intake, before, lookup.answer(&question));
            lookup.look_around();
        }
    });
    if let Err(error) = started {
        tracing::warn!("nothing can be looked up on this host: {error}");
    }
    sender
}

/// Where questions go. One that waits for its answer waits for none that is slower, or that nobody waits for.
#[derive(Debug)]
pub struct Desks {
    /// `None`: nothing is looked up any more.
    host: Option<Sender<Question>>,
    /// Likewise. Whoever looks at every descriptor of the host takes longer.
    acceptors: Option<Sender<Question>>,
    translations: Sender<Question>,
    strangers: Sender<Question>,
}

impl Desks {
    /// Starts their threads. Where connections are led comes back, for what is found there must be watched before it is told.
    #[must_use]
    pub fn open(intake: &Intake, looks_up: bool, lookup: &Lookup) -> (Self, UnboundedReceiver<Vec<HostFact>>) {
        let (answer, answers) = unbounded_channel();
        let desks = Self {
            host: looks_up.then(|| answer_questions("lookup", intake.clone(), lookup.beside())),
            acceptors: looks_up.then(|| answer_questions("acceptors", intake.clone(), lookup.beside())),
            translations: answer_aside("translations", answer.clone(), lookup.beside()),
            strangers: answer_aside("strangers", answer, lookup.beside()),
        };
        (desks, answers)
    }

    /// A failure asks.
    pub fn ask(&self, question: Question) {
        // The threads end only with the program.
        let _ = match question {
            Question::Translation { .. } => self.translations.send(question),
            Question::Acceptors { .. } => self.acceptors.as_ref().map_or(Ok(()), |desk| desk.send(question)),
            _ => self.host.as_ref().map_or(Ok(()), |host| host.send(question)),
        };
    }

    /// Nothing has failed, and nobody waits.
    pub fn wonder(&self, question: Question) {
        let _ = self.strangers.send(question);
    }
}

/// Starts a thread whose answers come back, those that say something.
fn answer_aside(name: &str, answer: UnboundedSender<Vec<HostFact>>, mut lookup: Lookup) -> Sender<Question> {
    let (sender, receiver) = channel::<Question>();
    let started = thread::Builder::new().name(name.into()).spawn(move || {
        while let Ok(question) = receiver.recv() {
            let found = lookup.answer(&question);
            if !found.is_empty() && answer.send(found).is_err() {
                break;
            }
        }
    });
    if let Err(error) = started {
        tracing::warn!("where upstreams lead is not asked: {error}");
    }
    sender
}

/// A name server may be part of the outage: nobody waits for it.
fn resolve_aside(question: Question, intake: &Intake, resolving: &Arc<AtomicUsize>) {
    if resolving.fetch_add(1, Ordering::Relaxed) >= RESOLVING {
        resolving.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let (intake, counted) = (intake.clone(), Arc::clone(resolving));
    let started = thread::Builder::new().name("resolve".into()).spawn(move || {
        let before = clock::now();
        deliver(&intake, before, Lookup::default().answer(&question));
        counted.fetch_sub(1, Ordering::Relaxed);
    });
    if let Err(error) = started {
        resolving.fetch_sub(1, Ordering::Relaxed);
        tracing::warn!("a name is not looked up: {error}");
    }
}

fn deliver(intake: &Intake, before: Moment, facts: Vec<HostFact>) {
    if facts.is_empty() {
        return;
    }
    let at = At::between(before, clock::now());
    let arrivals =
        facts.into_iter().map(|fact| Arrival { at, source: Source::Probe, body: Body::from(fact) }).collect();
    intake.deliver(Delivery::Arrivals(arrivals));
}
