//! What is known of the host, and what should be looked up.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
};

use super::limits::QUESTION_REST_NS;
use crate::model::{
    event::{Event, EventId},
    host::{HostFact, NginxInstance},
    net::Address,
    process::Pid,
    time::{At, Moment},
};

/// Something to look up on the host now. The answer is a [`HostFact`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    /// Who listens on this upstream address?
    Listeners {
        /// The address.
        upstream: SocketAddr,
        /// nginx's network namespace, where the address is a loopback address: each namespace has its own.
        netns: Option<u32>,
    },
    /// How many files has this process open?
    OpenFiles(Pid),
    /// What is this process doing?
    ProcessState(Pid),
}

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
    known_upstreams: BTreeSet<SocketAddr>,
    /// Children that nobody but the kernel has told of yet.
    forks: BTreeMap<Pid, EventId>,
}

impl Host {
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
            HostFact::Listeners { upstream, netns, .. } => Question::Listeners { upstream: *upstream, netns: *netns },
            HostFact::OpenFiles { pid, .. } => Question::OpenFiles(*pid),
            HostFact::ProcessState { pid, .. } => Question::ProcessState(*pid),
        };
        if self.facts.len() >= SUBJECTS && !self.facts.contains_key(&question) {
            let oldest = self.facts.iter().min_by_key(|(_, (id, ..))| *id).map(|(question, _)| *question);
            if let Some(oldest) = oldest {
                self.facts.remove(&oldest);
            }
        }
        self.facts.insert(question, (event.id, event.at, fact.clone()));
    }

    /// Where what is known was told, answers to questions and forks; a recorder keeps the rest by its kind.
    pub(super) fn events(&self) -> impl Iterator<Item = EventId> {
        self.facts.values().map(|(id, ..)| *id).chain(self.forks.values().copied())
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

    /// The question about an upstream of this worker.
    pub(super) fn listeners(&self, upstream: SocketAddr, worker: Option<Pid>) -> Question {
        let netns = worker.and_then(|worker| self.instance_of(worker)).and_then(|instance| instance.netns);
        Question::Listeners { upstream, netns: netns.filter(|_| upstream.ip().is_loopback()) }
    }

    pub(super) fn ask(&mut self, question: Question, now: Moment) {
        if self.asked.get(&question).is_some_and(|at| now.since_ns(*at) < QUESTION_REST_NS) {
            return;
        }
        if self.asked.len() >= SUBJECTS {
            self.asked.retain(|_, at| now.since_ns(*at) < QUESTION_REST_NS);
        }
        self.asked.insert(question, now);
        self.questions.push_back(question);
    }

    pub(super) fn poll(&mut self) -> Option<Question> {
        self.questions.pop_front()
    }

    /// What is known about these subjects.
    pub(super) fn about(&self, questions: &BTreeSet<Question>) -> Vec<(EventId, At, HostFact)> {
        questions.iter().filter_map(|question| self.facts.get(question).cloned()).collect()
    }
}
