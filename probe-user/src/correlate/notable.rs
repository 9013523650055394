//! Events that may explain a failure later: exits, signals, OOM kills, failed system calls.

use std::collections::{BTreeSet, VecDeque};

use super::limits::{Limits, NOTABLE_LINGER_NS};
use crate::model::{
    event::{Body, Event},
    process::{Pid, ProcessEvent, Role},
    socket::Syscall,
    time::Moment,
};

/// Remembers them for a while.
#[derive(Debug, Default)]
pub struct Notable {
    events: VecDeque<Event>,
    limits: Limits,
}

impl Notable {
    /// With these bounds.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { events: VecDeque::new(), limits }
    }

    /// Keeps the event if it is of that kind.
    pub fn handle(&mut self, event: &Event) {
        let keep = match &event.body {
            Body::Process(process) => !matches!(process, ProcessEvent::Forked { .. }),
            Body::Syscall(call) => match &call.call {
                Syscall::Connect { result, socket, .. } => {
                    // A connect() in progress over TCP is part of its flow; the rest has no other place.
                    result.is_err() && socket.as_ref().is_none_or(|s| s.remote.is_none())
                }
                Syscall::Accept { result, .. } => result.is_err(),
                Syscall::Socket { .. } | Syscall::Open { .. } => true,
            },
            _ => false,
        };
        if keep {
            if self.events.len() >= self.limits.notable {
                self.events.pop_front();
            }
            self.events.push_back(event.clone());
        }
    }

    /// Every event kept.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.events.iter()
    }

    /// Forgets what is too old.
    pub fn forget(&mut self, now: Moment) {
        while self.events.front().is_some_and(|event| now.since_ns(event.at.latest) > NOTABLE_LINGER_NS) {
            self.events.pop_front();
        }
    }

    /// Processes that were sent a signal to end since then, and have not ended.
    #[must_use]
    pub fn asked_to_end(&self, since: Moment) -> BTreeSet<Pid> {
        let mut asked = BTreeSet::new();
        for event in self.events.iter().filter(|event| event.at.latest >= since) {
            match &event.body {
                // SIGINT, SIGQUIT, SIGABRT, SIGTERM; SIGKILL has no handler.
                Body::Process(ProcessEvent::Signalled { target, signal: 2 | 3 | 6 | 15, .. }) => {
                    asked.insert(*target);
                }
                Body::Process(ProcessEvent::Exited { pid, .. }) => {
                    asked.remove(pid);
                }
                _ => {}
            }
        }
        asked
    }

    /// What may concern a request served by `worker` over connections held by `holders`, between the two moments.
    #[must_use]
    pub fn concerning(&self, worker: Option<Pid>, holders: &[Pid], from: Moment, to: Moment) -> Vec<Event> {
        let in_time = |event: &&Event| event.at.latest >= from && event.at.earliest <= to;
        let concerns = |event: &&Event| match &event.body {
            Body::Process(process) => match process {
                ProcessEvent::Exited { pid, role, .. } | ProcessEvent::Executed { pid, role, .. } => {
                    *role == Role::Upstream || Some(*pid) == worker || holders.contains(pid)
                }
                ProcessEvent::Signalled { target, role, .. } => {
                    *role == Role::Upstream || Some(*target) == worker || holders.contains(target)
                }
                ProcessEvent::Held { pid, .. } => holders.contains(pid),
                ProcessEvent::OomVictim { .. } => true,
                ProcessEvent::Forked { .. } => false,
            },
            Body::Syscall(call) => match &call.call {
                Syscall::Accept { .. } => true,
                // A server that can make no socket and open no file cannot get what it needs for its answer.
                Syscall::Socket { .. } | Syscall::Open { .. } => {
                    Some(call.pid) == worker || holders.contains(&call.pid)
                }
                Syscall::Connect { .. } => Some(call.pid) == worker,
            },
            _ => false,
        };
        self.events.iter().filter(in_time).filter(concerns).cloned().collect()
    }
}
