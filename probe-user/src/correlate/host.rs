//! What is known of the host, and what should be looked up.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
};

use super::{
    limits::{LOOK_NS, QUESTION_REST_NS},
    served::Served,
};
use crate::model::{
    event::{Event, EventId},
    host::{HostFact, NginxInstance},
    net::Address,
    process::Pid,
    socket::is_full,
    time::{At, Moment},
};

/// Something to look up on the host now. The answer is a [`HostFact`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    /// Who listens on this upstream address?
    Listeners {
        /// The address.
        upstream: SocketAddr,
        /// nginx's network namespace, where the address is a loopback address: each namespace has its own.
        netns: Option<u32>,
    },
    /// Who may accept what comes to this upstream's address, and what are they doing?
    Acceptors {
        /// The address.
        upstream: Address,
        /// As in [`Question::Listeners`].
        netns: Option<u32>,
        /// The worker that asks, for a unix socket: its paths are as its mount namespace has them.
        worker: Pid,
    },
    /// How many files has this process open?
    OpenFiles(Pid),
    /// What is this process doing?
    ProcessState(Pid),
    /// Where does this process listen?
    OtherListeners(Pid),
    /// Which route leads to this upstream?
    Route {
        /// The upstream.
        upstream: SocketAddr,
        /// nginx's network namespace.
        netns: Option<u32>,
    },
    /// How many local ports lead to this upstream already?
    LocalPorts {
        /// The upstream.
        upstream: SocketAddr,
        /// nginx's network namespace.
        netns: Option<u32>,
    },
    /// Where does this host's address translation lead this connection of nginx?
    Translation {
        /// nginx's end.
        local: SocketAddr,
        /// The upstream.
        upstream: SocketAddr,
        /// nginx's network namespace.
        netns: Option<u32>,
    },
    /// How many files has the whole system open?
    SystemFiles,
    /// What does this name of the configuration resolve to, for this nginx?
    Name {
        /// The name.
        name: String,
        /// The port that is written with it.
        port: u16,
        /// The nginx's master.
        master: Pid,
    },
    /// What is on the way to this unix socket, and who listens there?
    UnixSocket {
        /// The path.
        path: String,
        /// The worker that asks.
        worker: Pid,
    },
}

impl Question {
    /// Who listens on an upstream's address, as this network namespace sees it: it matters for a loopback address only.
    pub(super) fn listeners(upstream: SocketAddr, netns: Option<u32>) -> Self {
        Self::Listeners { upstream, netns: netns.filter(|_| upstream.ip().is_loopback()) }
    }

    /// Who may accept there, as [`Question::listeners`] asks who listens.
    pub(super) fn acceptors(upstream: &Address, netns: Option<u32>, worker: Pid) -> Self {
        let netns = netns.filter(|_| upstream.ip().is_some_and(|address| address.ip().is_loopback()));
        Self::Acceptors { upstream: upstream.clone(), netns, worker }
    }

    /// The question without who asked: answers are filed under it.
    fn subject(self) -> Self {
        match self {
            Self::Name { name, port, .. } => Self::Name { name, port, master: Pid(0) },
            Self::UnixSocket { path, .. } => Self::UnixSocket { path, worker: Pid(0) },
            Self::Acceptors { upstream, netns, .. } => Self::Acceptors { upstream, netns, worker: Pid(0) },
            other => other,
        }
    }
}

/// Counts of refused handshakes that are remembered, newest last.
const OVERFLOWS: usize = 256;
/// Look-ups that found an accept queue full and are remembered, newest last: by the time nginx gives up it may be empty again.
const FULL_QUEUES: usize = 256;
/// Names with the same port that are looked up for one failure.
const NAMES: usize = 8;
/// An older answer about who listens says nothing about the attempt.
const LISTENERS_LAST_NS: u64 = 1_000_000_000;

/// How many different subjects are remembered of each kind; the least recently learnt goes first.
const SUBJECTS: usize = 1_024;

/// The state.
#[derive(Debug, Default)]
pub(super) struct Host {
    instances: BTreeMap<Pid, (EventId, At, NginxInstance)>,
    masters: BTreeMap<Pid, Pid>,
    facts: BTreeMap<Question, (EventId, At, HostFact)>,
    new_upstreams: Vec<SocketAddr>,
    questions: VecDeque<Question>,
    asked: BTreeMap<Question, Moment>,
    /// Looks at who listens and who may accept that are not answered, and when they were asked for.
    looks: BTreeMap<Question, Moment>,
    known_upstreams: BTreeSet<SocketAddr>,
    served: Served,
    overflows: VecDeque<(EventId, At, HostFact)>,
    full_queues: VecDeque<(Question, (EventId, At, HostFact))>,
    /// Children that nobody but the kernel has told of yet.
    forks: BTreeMap<Pid, EventId>,
}

/// Remembers one more, and at most so many.
fn push<T>(to: &mut VecDeque<T>, limit: usize, one: T) {
    if to.len() >= limit {
        to.pop_front();
    }
    to.push_back(one);
}

impl Host {
    /// Takes any event that may tell who serves an upstream.
    pub(super) fn handle(&mut self, event: &Event) {
        self.served.handle(event);
    }

    pub(super) fn learn(&mut self, event: &Event, fact: &HostFact) {
        let question = match fact {
            HostFact::Nginx(instance) => {
                for worker in &instance.workers {
                    self.forks.remove(worker);
                    self.masters.insert(*worker, instance.master);
                }
                self.masters.insert(instance.master, instance.master);
                let upstreams = instance.configuration.iter().flat_map(|c| &c.upstreams).filter_map(Address::ip);
                for address in upstreams {
                    self.add_upstream(address);
                }
                self.instances.insert(instance.master, (event.id, event.at, instance.clone()));
                return;
            }
            HostFact::NginxGone { master } => {
                // Its last failures may still be open; the instance is kept until its number is used again.
                self.masters.retain(|_, m| m != master);
                self.forks.retain(|child, _| self.masters.contains_key(child));
                return;
            }
            HostFact::OpenConnection { upstream, .. } => {
                self.add_upstream(*upstream);
                return;
            }
            HostFact::Served { upstream, netns, pid, command, .. } => {
                self.served.serves(event, *upstream, *netns, (*pid, command.clone()));
                return;
            }
            HostFact::ListenOverflows { .. } => {
                push(&mut self.overflows, OVERFLOWS, (event.id, event.at, fact.clone()));
                return;
            }
            HostFact::Listeners { upstream, netns, listeners, .. } => {
                self.served.found(event, *upstream, listeners);
                let question = Question::Listeners { upstream: *upstream, netns: *netns };
                if listeners.iter().any(|listener| listener.accept_queue.is_some_and(is_full)) {
                    push(&mut self.full_queues, FULL_QUEUES, (question.clone(), (event.id, event.at, fact.clone())));
                }
                question
            }
            // Remembered by `translated`.
            HostFact::Translated { .. } => return,
            HostFact::OtherListeners { pid, .. } => Question::OtherListeners(*pid),
            HostFact::Route { upstream, netns, .. } => Question::Route { upstream: *upstream, netns: *netns },
            HostFact::LocalPorts { upstream, netns, .. } => Question::LocalPorts { upstream: *upstream, netns: *netns },
            HostFact::SystemFiles { .. } => Question::SystemFiles,
            HostFact::Name { name, port, .. } => Question::Name { name: name.clone(), port: *port, master: Pid(0) },
            HostFact::UnixSocket(socket) => Question::UnixSocket { path: socket.path.clone(), worker: Pid(0) },
            HostFact::Acceptors { upstream, netns, .. } => Question::acceptors(upstream, *netns, Pid(0)),
            HostFact::OpenFiles { pid, .. } => Question::OpenFiles(*pid),
            HostFact::ProcessState { pid, .. } => Question::ProcessState(*pid),
        };
        self.looks.remove(&question);
        if self.facts.len() >= SUBJECTS && !self.facts.contains_key(&question) {
            let oldest = self.facts.iter().min_by_key(|(_, (id, ..))| *id).map(|(question, _)| question.clone());
            if let Some(oldest) = oldest {
                self.facts.remove(&oldest);
            }
        }
        self.facts.insert(question, (event.id, event.at, fact.clone()));
    }

    /// Where what is known was told, answers to questions and forks; a recorder keeps the rest by its kind.
    pub(super) fn events(&self) -> impl Iterator<Item = EventId> {
        let full = self.full_queues.iter().map(|(_, (id, ..))| *id);
        self.facts.values().map(|(id, ..)| *id).chain(self.forks.values().copied()).chain(full)
    }

    fn add_upstream(&mut self, address: SocketAddr) {
        if self.known_upstreams.insert(address) {
            self.new_upstreams.push(address);
        }
    }

    pub(super) fn new_upstreams(&mut self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.new_upstreams)
    }

    pub(super) fn forked(&mut self, parent: Pid, child: Pid, told_in: EventId) {
        if let Some(master) = self.masters.get(&parent).copied() {
            self.masters.insert(child, master);
            self.forks.insert(child, told_in);
        }
    }

    /// The nginx a worker belongs to.
    pub(super) fn instance_of(&self, worker: Pid) -> Option<&NginxInstance> {
        let master = self.masters.get(&worker)?;
        self.instances.get(master).map(|(_, _, instance)| instance)
    }

    /// The nginx, if there is only one.
    pub(super) fn only_instance(&self) -> Option<&NginxInstance> {
        let mut all = self.instances.values();
        all.next().filter(|_| all.next().is_none()).map(|(_, _, instance)| instance)
    }

    /// nginx's network namespace.
    pub(super) fn netns(&self, worker: Pid) -> Option<u32> {
        self.instance_of(worker).and_then(|instance| instance.netns)
    }

    /// The names of this worker's configuration that may stand for the upstream.
    pub(super) fn names(&self, upstream: SocketAddr, worker: Pid) -> Vec<Question> {
        let Some(instance) = self.instance_of(worker) else { return Vec::new() };
        let names = instance.configuration.iter().flat_map(|configuration| &configuration.names);
        names
            .filter(|name| name.port == upstream.port())
            .take(NAMES)
            .map(|name| Question::Name { name: name.name.clone(), port: name.port, master: instance.master })
            .collect()
    }

    /// Whoever closed its listener on this address, and lives.
    pub(super) fn stopped_listening(&self, upstream: SocketAddr, worker: Option<Pid>) -> Option<Pid> {
        let Question::Listeners { netns, .. } = self.listeners(upstream, worker) else { return None };
        self.served.alive_elsewhere(upstream, netns)
    }

    /// The question about an upstream of this worker.
    pub(super) fn listeners(&self, upstream: SocketAddr, worker: Option<Pid>) -> Question {
        let netns = worker.and_then(|worker| self.instance_of(worker)).and_then(|instance| instance.netns);
        Question::listeners(upstream, netns)
    }

    pub(super) fn ask(&mut self, question: Question, now: Moment) {
        if self.asked.get(&question).is_some_and(|at| now.since_ns(*at) < QUESTION_REST_NS) {
            return;
        }
        if self.asked.len() >= SUBJECTS {
            self.asked.retain(|_, at| now.since_ns(*at) < QUESTION_REST_NS);
        }
        self.asked.insert(question.clone(), now);
        if matches!(question, Question::Acceptors { .. } | Question::Listeners { .. }) {
            self.looks.retain(|_, at| now.since_ns(*at) < LOOK_NS);
            self.looks.insert(question.clone().subject(), now);
        }
        self.questions.push_back(question);
    }

    /// Until when it is worth while to wait for one of these looks, of those that were asked for by then: what is asked for later is
    /// another failure's, and where one follows the other there would be no end.
    pub(super) fn looks_until(&self, by: Moment, one_of: impl Fn(&Question) -> bool) -> Option<Moment> {
        let asked = self.looks.iter().filter(|(question, at)| **at <= by && one_of(question));
        asked.map(|(_, at)| at.plus_ns(LOOK_NS)).max()
    }

    pub(super) fn poll(&mut self) -> Option<Question> {
        self.questions.pop_front()
    }

    /// What is known about these subjects, for something that began at `began`.
    pub(super) fn about(&self, questions: &BTreeSet<Question>, began: Moment) -> Vec<(EventId, At, HostFact)> {
        let mut found = Vec::new();
        let mut homes = BTreeSet::new();
        for question in questions {
            if let Question::Listeners { upstream, netns } = question {
                found.extend(self.served.former(*upstream, *netns));
            }
            let subject = question.clone().subject();
            let Some((id, at, fact)) = self.facts.get(&subject) else { continue };
            let full = self.full_queues.iter().filter(|(of, _)| *of == subject).map(|(_, told)| told);
            found.extend(full.filter(|(full, at, _)| full != id && at.latest >= began).cloned());
            if let HostFact::Listeners { listeners, .. } = fact {
                if at.latest.plus_ns(LISTENERS_LAST_NS) < began {
                    continue;
                }
                homes.extend(listeners.iter().filter_map(|listener| listener.netns));
            }
            found.push((*id, *at, fact.clone()));
        }
        let of_home = |(_, _, fact): &&(EventId, At, HostFact)| match fact {
            HostFact::ListenOverflows { netns, .. } => homes.contains(netns),
            _ => false,
        };
        let counts: Vec<_> = self.overflows.iter().filter(of_home).cloned().collect();
        // The last before it began, and those since.
        let before = counts.iter().rposition(|(_, at, _)| at.latest <= began).unwrap_or(0);
        found.extend(counts.into_iter().skip(before));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        event::{Body, Source},
        host::Listener,
    };

    fn look_up(host: &mut Host, id: u64, waiting: u32) {
        let upstream = "10.0.0.1:8000".parse().unwrap();
        let listener = Listener {
            address: upstream,
            netns: Some(1),
            pid: None,
            command: None,
            accept_queue: Some((waiting, 128)),
        };
        let fact =
            HostFact::Listeners { upstream, netns: None, local: true, listeners: vec![listener], nearby: vec![] };
        let at = At::exactly(Moment(id * 1_000_000_000));
        let event = Event { id: EventId(id), at, source: Source::Probe, body: Body::from(fact.clone()) };
        host.learn(&event, &fact);
    }

    /// nginx waits for a minute; the queue was full when the SYN came, and has room when nginx gives up.
    #[test]
    fn a_queue_that_was_full_meanwhile_is_remembered() {
        let mut host = Host::default();
        for (second, waiting) in [(1, 129), (3, 129), (7, 5), (8, 0)] {
            look_up(&mut host, second, waiting);
        }
        let asked = BTreeSet::from([Question::Listeners { upstream: "10.0.0.1:8000".parse().unwrap(), netns: None }]);
        let found = |began| host.about(&asked, Moment(began)).iter().map(|(id, ..)| id.0).collect::<Vec<_>>();
        assert_eq!(found(500_000_000), [1, 3, 8]);
        assert_eq!(found(2_000_000_000), [3, 8]);
        assert_eq!(found(8_000_000_000), [8]);
        assert_eq!(host.events().map(|id| id.0).collect::<BTreeSet<_>>(), BTreeSet::from([1, 3, 8]));
    }
}
