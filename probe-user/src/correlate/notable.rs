//! Events that may explain a failure later: exits, signals, OOM kills, listeners closed, failed system calls.

use std::collections::{BTreeSet, VecDeque};

use super::{
    crowded::{Crowded, Forgotten},
    limits::{Limits, NOTABLE_LINGER_NS},
};
use crate::model::{
    event::{Body, Event},
    process::{Pid, ProcessEvent, Role, stops_or_continues},
    socket::{SocketChange, Syscall, TcpState},
    time::Moment,
};

/// Remembers them for a while.
#[derive(Debug, Default)]
pub struct Notable {
    /// Of processes, and of their listeners.
    processes: Kept,
    /// Failed system calls: in a storm, one for each failure. They do not crowd out the rest.
    calls: Kept,
    /// Processes that serve upstreams and ended, or were sent a signal, so far; and whoever the kernel killed for memory.
    ends: u64,
    /// Those that there was no room for any more.
    crowded: Crowded,
    limits: Limits,
}

impl Notable {
    /// With these bounds.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Keeps the event if it is of that kind.
    pub fn handle(&mut self, event: &Event) {
        // Remembered for longer by `stops`, and there may be very many.
        if matches!(&event.body, Body::Process(ProcessEvent::Signalled { signal, .. }) if stops_or_continues(*signal)) {
            return;
        }
        if let Body::Process(process) = &event.body {
            self.ends += u64::from(match process {
                ProcessEvent::Exited { role, .. } | ProcessEvent::Signalled { role, .. } => *role == Role::Upstream,
                ProcessEvent::OomVictim { .. } => true,
                ProcessEvent::Executed { .. } | ProcessEvent::Held { .. } | ProcessEvent::Forked { .. } => false,
            });
        }
        let keep = match &event.body {
            Body::Process(process) => !matches!(process, ProcessEvent::Forked { .. }),
            // With a listener goes every connection that waits in its accept queue.
            Body::Socket(e) => matches!(e.change, SocketChange::State { from: TcpState::Listen }),
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
            let kept = if matches!(event.body, Body::Syscall(_)) { &mut self.calls } else { &mut self.processes };
            if let Some(oldest) = kept.push(event, self.limits.notable) {
                self.crowded.note(&oldest);
            }
        }
    }

    /// Every event kept.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.processes.since(Moment(0)).chain(self.calls.since(Moment(0)))
    }

    /// How many processes came to an end, or were asked to, that may have served an upstream.
    #[must_use]
    pub const fn ends(&self) -> u64 {
        self.ends
    }

    /// What was forgotten before it was too old, as far as it still matters.
    pub fn forgotten(&self) -> impl Iterator<Item = Forgotten> {
        self.crowded.all()
    }

    /// How many events were.
    #[must_use]
    pub const fn crowded_out(&self) -> u64 {
        self.crowded.total()
    }

    /// What another run had forgotten.
    pub fn resume(&mut self, forgotten: &[Forgotten]) {
        for lost in forgotten {
            self.crowded.resume(lost);
        }
    }

    /// Forgets what is too old.
    pub fn forget(&mut self, now: Moment) {
        self.crowded.forget(now);
        self.processes.forget(now);
        self.calls.forget(now);
    }

    /// Processes that were sent a signal to end since then, and have not ended.
    #[must_use]
    pub fn asked_to_end(&self, since: Moment) -> BTreeSet<Pid> {
        let mut asked = BTreeSet::new();
        for event in self.processes.since(since).filter(|event| event.at.latest >= since) {
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
                // Whoever accepted a connection can have handed it on.
                ProcessEvent::Held { pid, role, .. } => *role == Role::Upstream || holders.contains(pid),
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
            Body::Socket(_) => true,
            _ => false,
        };
        let of_processes = self.processes.since(from).filter(in_time).filter(concerns);
        let calls = self.calls.since(from).filter(in_time).filter(concerns);
        let mut found: Vec<Event> = of_processes.chain(calls).cloned().collect();
        found.sort_by_key(|event| event.id);
        found
    }
}

/// Events in the order of the stream, each with the latest moment so far: that one never goes back, and a late event is found all the same.
#[derive(Debug, Default)]
struct Kept(VecDeque<(Moment, Event)>);

impl Kept {
    /// Gives the one that had to go for it.
    fn push(&mut self, event: &Event, most: usize) -> Option<Event> {
        let gone = if self.0.len() >= most { self.0.pop_front() } else { None };
        let reached = self.0.back().map_or(event.at.latest, |(reached, _)| event.at.latest.max(*reached));
        self.0.push_back((reached, event.clone()));
        gone.map(|(_, event)| event)
    }

    fn forget(&mut self, now: Moment) {
        while self.0.front().is_some_and(|(_, event)| now.since_ns(event.at.latest) > NOTABLE_LINGER_NS) {
            self.0.pop_front();
        }
    }

    /// Every event that may have happened at or after a moment, and perhaps some from before.
    fn since(&self, since: Moment) -> impl Iterator<Item = &Event> {
        self.0.range(self.0.partition_point(|(reached, _)| *reached < since)..).map(|(_, event)| event)
    }
}
