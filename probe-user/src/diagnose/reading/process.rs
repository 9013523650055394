//! The process at the other end of the connection, where it is on this host.

use super::{Locality, Reading, evidence, need};
use crate::model::{
    coverage::Sensor,
    event::{Body, Event, EventId},
    evidence::{Evidence, Fact, Weight},
    net::Errno,
    process::{Ending, Pid, ProcessEvent, Role, Sender, Untaken},
    socket::Syscall,
    time::Moment,
    verdict::Need,
};

/// A dying process closes its sockets at once; freeing much memory may come between.
const EXIT_TO_CLOSE_NS: u64 = 2_000_000_000;
/// The clock of a capture, mapped to the kernel's, is off by less than this.
const SKEW_NS: u64 = 1_000_000;
/// The same, where nothing but the time ties the two: a core dump of a large process takes that long.
const HANDED_TO_CLOSE_NS: u64 = 200_000_000;
/// From a signal to the close by its handler: at once, as soon as the interpreter gets to it.
const SIGNAL_TO_CLOSE_NS: u64 = 2_000_000_000;
/// From a fault of the processor to the exit by its handler, which may write a backtrace before.
const FAULT_TO_EXIT_NS: u64 = 1_000_000_000;
/// From a signal to an exit that is certainly its handler's doing. After that a process may as well have ended for a reason of its own.
const SIGNAL_TO_EXIT_NS: u64 = 1_000_000_000;
/// From a request to end to the end: servers allow their workers about 30 s to finish (gunicorn's graceful timeout, for one).
const GRACE_NS: u64 = 35_000_000_000;

/// How the process that held the connection ended.
#[derive(Clone, Debug)]
pub(crate) struct Death<'a> {
    /// The record of its end.
    pub(crate) event: &'a Event,
    /// Who.
    pub(crate) process: (Pid, String),
    /// How.
    pub(crate) how: Ending,
    /// The OOM killer chose it.
    pub(crate) oom: Option<&'a Event>,
    /// That it ended before the connection did is certain.
    pub(crate) order_known: bool,
    /// Over a unix socket: the record that it still held the connection.
    pub(crate) held: Option<EventId>,
    /// It closed the connection itself before it ended, because of the signal.
    pub(crate) closed_first: bool,
    /// It had not accepted the connection.
    pub(crate) unaccepted: bool,
    /// Signals that it never took.
    pub(crate) untaken: Untaken,
    /// The signal that asked for it, and who sent it; `None` inside: the kernel.
    pub(crate) signal: Option<(&'a Event, u32, Option<Sender>)>,
}

impl Death<'_> {
    /// It was asked to end, and exited, but so much later, and so little as one does who was asked, that it may have had a reason of its own.
    pub(crate) fn may_be_its_own(&self) -> bool {
        let (Ending::Exit(code), Some((asked, signal, _))) = (self.how, &self.signal) else { return false };
        if self.untaken.has(*signal) {
            return true;
        }
        // In order, or as shells and Java call an end by a signal.
        let as_asked = code == 0 || i64::from(code) == 128 + i64::from(*signal);
        !as_asked && self.event.at.earliest.since_ns(asked.at.latest) > SIGNAL_TO_EXIT_NS
    }
}

/// Java programs, and the names that its servers give to their threads.
fn is_java(command: &str) -> bool {
    ["java", "http-nio-", "jetty", "qtp"].iter().any(|part| command.starts_with(part))
}

/// SIGILL, SIGBUS, SIGFPE, SIGSEGV: what the kernel sends to a process that did something impossible.
pub(crate) fn is_fault(signal: u32) -> bool {
    matches!(signal, 4 | 7 | 8 | 11)
}

/// Whether the process at the other end outlived the connection.
#[derive(Clone, Debug)]
pub(crate) enum Survival<'a> {
    /// It ended just before.
    Ended(Box<Death<'a>>),
    /// It did not.
    Alive,
    /// It cannot be told.
    NotKnown(Need),
}

impl<'a> Reading<'a> {
    /// Who closed the connection, by the kernel's own context; or the listener in whose queue it waited.
    fn closed_by(&self) -> Option<Pid> {
        use crate::model::{flow::Side, socket::TcpState};
        let flow = self.flow()?;
        let ends = [TcpState::FinWait1, TcpState::Closed];
        let itself = ends.iter().find_map(|state| flow.entered(Side::Upstream, *state).find_map(|(_, e)| e.by));
        itself.or_else(|| self.closed_unaccepted().map(|(process, _)| process))
    }

    /// Another process than the one that accepted the connection closed it: that one had handed it on, by `fork()` or over a unix socket.
    pub(crate) fn handed_to(&self) -> Option<Pid> {
        let (accepted, _) = self.accepted_by()?;
        if let Some(closer) = self.closed_by() {
            return Some(closer).filter(|closer| *closer != accepted);
        }
        let inode = self.attempt?.socket_at_failure.as_ref()?.cookie.filter(|_| self.unix_path().is_some())?;
        let until = self.failed_at();
        self.case.processes.iter().rev().find_map(|event| match &event.body {
            Body::Process(ProcessEvent::Held { pid, connections, .. })
                if *pid != accepted
                    && connections.contains(&inode)
                    && event.at.earliest <= until
                    && until.since_ns(event.at.latest) <= EXIT_TO_CLOSE_NS =>
            {
                Some(*pid)
            }
            _ => None,
        })
    }

    /// Who closed the connection was not seen, and another process of that server ended just before: it can have been handed to that one.
    fn can_have_been_handed_on(&self) -> bool {
        let Some((accepted, command)) = self.accepted_by() else { return false };
        if self.closed_by().is_some() {
            return false;
        }
        let inode = self.attempt.and_then(|attempt| attempt.socket_at_failure.as_ref()?.cookie);
        let innocent = |other: Pid| {
            self.case.processes.iter().any(|event| {
                matches!(&event.body, Body::Process(ProcessEvent::Held { pid, connections, all: true, .. })
                    if *pid == other && inode.is_some_and(|inode| !connections.contains(&inode)))
            })
        };
        let end = self.ended_at().plus_ns(SKEW_NS);
        self.case.processes.iter().any(|event| {
            matches!(&event.body, Body::Process(ProcessEvent::Exited { pid, command: name, .. })
                if *pid != accepted && name == command && !innocent(*pid))
                && event.at.earliest <= end
                && end.since_ns(event.at.latest) <= HANDED_TO_CLOSE_NS
        })
    }

    /// The process that held the upstream's end.
    pub(crate) fn holder(&self) -> Option<Pid> {
        self.accepted_by().map(|(pid, _)| pid).or_else(|| self.closed_by())
    }

    /// The process that accepted the connection, and its name.
    pub(crate) fn accepted_by(&self) -> Option<(Pid, &'a str)> {
        let of_flow = self.flow().and_then(|flow| flow.accepted_by.as_ref()).filter(|_| !self.accepted_too_late());
        let over_unix = || self.attempt?.unix_accept().map(|(_, pid, command)| (pid, command));
        of_flow.map(|(pid, command)| (*pid, command.as_str())).or_else(over_unix)
    }

    /// It was accepted when nginx had given it up: until then nobody had it.
    fn accepted_too_late(&self) -> bool {
        let until = self.failed_at().plus_ns(SKEW_NS);
        let mut accepts = self.flow_events().filter(
            |event| matches!(&event.body, Body::Syscall(call) if matches!(call.call, Syscall::Accept { result: Ok(_), .. })),
        );
        self.timed_out_unanswered() && accepts.next().is_some_and(|accept| accept.at.earliest > until)
    }

    /// Over a unix socket: the `accept()` of this very connection.
    pub(crate) fn accepted_over_unix(&self) -> Option<Evidence> {
        let (event, pid, command) = self.attempt?.unix_accept()?;
        Some(evidence(Fact::AcceptedBy { process: (pid, command.to_owned()) }, &[event], Weight::Symptom))
    }

    /// Over a unix socket: whether a process still held this connection when it ended. `None`: not known.
    pub(crate) fn held_at_end(&self, holder: Pid) -> Option<(bool, EventId)> {
        let inode = self.attempt?.socket_at_failure.as_ref()?.cookie?;
        self.attempt?.unix_accept()?;
        self.case.processes.iter().find_map(|event| match &event.body {
            Body::Process(ProcessEvent::Held { pid, connections, all, .. }) if *pid == holder => {
                let held = connections.contains(&inode);
                (held || *all).then_some((held, event.id))
            }
            _ => None,
        })
    }

    /// The name of the process at the other end: who holds the connection, else who listens there.
    pub(crate) fn server_command(&self) -> Option<&'a str> {
        let look_up = self.look_up();
        self.accepted_by()
            .map(|(_, command)| command)
            .or_else(|| look_up.and_then(|look_up| look_up.listeners.iter().find_map(|l| l.command.as_deref())))
    }

    /// Whether the process at the other end outlived the connection.
    pub(crate) fn survival(&self) -> Survival<'a> {
        let Some(holder) = self.holder() else {
            return match self.locality() {
                Locality::Here if self.listeners_watched() && !self.some_upstream_ended() => Survival::Alive,
                Locality::Here => {
                    Survival::NotKnown(need(Sensor::Syscalls, "which process of this host held the connection"))
                }
                Locality::Elsewhere | Locality::Unwatched | Locality::Unknown => {
                    Survival::NotKnown(self.unseen(Sensor::Syscalls, "what the upstream's process did"))
                }
            };
        };
        let handed = self.handed_to();
        let of_closer = handed.and_then(|closer| self.death(closer));
        // The last one with a copy of the descriptor may end in order, long after the one that had the request did not.
        let in_order = |death: &Death<'_>| death.signal.is_none() && death.how == Ending::Exit(0);
        let of_holder = if of_closer.as_ref().is_none_or(in_order) { self.death(holder) } else { None };
        if let Some(death) = of_holder.or(of_closer) {
            return Survival::Ended(Box::new(death));
        }
        if self.can_have_been_handed_on() {
            return Survival::NotKnown(need(
                Sensor::SocketStates,
                "which process closed the connection: another one of that server ended just before",
            ));
        }
        if self.asked_to_end(holder) || handed.is_some_and(|closer| self.asked_to_end(closer)) {
            // Its handler closed the connection, or it would have closed it anyway: only its end tells.
            return Survival::NotKnown(need(Sensor::Processes, "the end of the process, which a signal had asked for"));
        }
        // A process that never accepted anything may not have been watched.
        let watched = self.closed_unaccepted().is_none_or(|(closer, _)| self.known_to_serve(closer));
        if self.ends_are_seen() && watched {
            Survival::Alive
        } else {
            Survival::NotKnown(need(Sensor::Processes, "whether the upstream's process had ended"))
        }
    }

    /// The end of this process, if it came before nginx gave up.
    pub(crate) fn ended_before_failure(&self, holder: Pid) -> Option<(&'a Event, Ending)> {
        let mut exits = self.exits_of(holder);
        exits.find(|(event, ..)| event.at.latest < self.failed_at()).map(|(event, _, how)| (event, how))
    }

    /// The ends of this process, and its name.
    fn exits_of(&self, process: Pid) -> impl Iterator<Item = (&'a Event, &'a str, Ending)> + use<'a> {
        self.case.processes.iter().filter_map(move |event| match &event.body {
            Body::Process(ProcessEvent::Exited { pid, command, how, .. }) if *pid == process => {
                Some((event, command.as_str(), *how))
            }
            _ => None,
        })
    }

    /// Another process, or the kernel, had sent this one a signal that asks it to end, and it had not ended when the case was put together.
    fn asked_to_end(&self, target: Pid) -> bool {
        let ended = self.ended_by_kernel().unwrap_or_else(|| self.ended_at().plus_ns(SKEW_NS));
        self.case.processes.iter().any(|event| {
            matches!(
                &event.body,
                Body::Process(ProcessEvent::Signalled { target: to, signal: 2 | 3 | 6 | 9 | 15, sender, .. })
                    if *to == target && sender.as_ref().is_none_or(|sender| sender.pid != target)
            ) && event.at.earliest <= ended
                && ended.since_ns(event.at.latest) <= SIGNAL_TO_CLOSE_NS
        })
    }

    /// The end of a process that serves an upstream would have been seen. Who accepts is watched from then on; where no call is seen (depth
    /// light) a server that came after the probe is not.
    fn ends_are_seen(&self) -> bool {
        self.sees(Sensor::Processes) && self.sees(Sensor::Syscalls)
    }

    /// Processes that listen there are known, and the end of any of them would have been seen.
    fn listeners_watched(&self) -> bool {
        self.ends_are_seen() && self.listening_processes().next().is_some()
    }

    /// Some upstream process of this host ended about then.
    fn some_upstream_ended(&self) -> bool {
        let end = self.ended_at().plus_ns(SKEW_NS);
        self.case.processes.iter().any(|event| {
            matches!(&event.body, Body::Process(ProcessEvent::Exited { role: Role::Upstream | Role::Other, .. }))
                && event.at.earliest <= end
                && end.since_ns(event.at.latest) <= EXIT_TO_CLOSE_NS + SKEW_NS
        })
    }

    /// The orderly end of the process that had closed the connection, and how long after that, microseconds.
    pub(crate) fn left_afterwards(&self) -> Option<(EventId, u64)> {
        let holder = self.closed_by().filter(|closer| Some(*closer) == self.holder())?;
        let ended = self.ended_by_kernel()?;
        let mut exits = self.exits_of(holder);
        let (event, ..) = exits.find(|(event, _, how)| *how == Ending::Exit(0) && event.at.earliest > ended)?;
        Some((event.id, event.at.latest.since_ns(ended) / 1_000))
    }

    /// How this process ended, if that is what ended the connection.
    fn death(&self, holder: Pid) -> Option<Death<'a>> {
        let by_kernel = self.ended_by_kernel();
        let ended = by_kernel.unwrap_or_else(|| self.ended_at().plus_ns(SKEW_NS));
        // Whoever accepted a connection over a unix socket is who can close it; whether the end of the process did, it shows itself.
        let over_unix = self.attempt.is_some_and(|attempt| attempt.unix_accept().is_some());
        let closed_it = over_unix || self.closed_by() == Some(holder);
        let held = self.held_at_end(holder);
        let (event, command, how) = self.exits_of(holder).next()?;
        let before = event.at.earliest <= ended && held.is_none_or(|(held, _)| held);
        let (signal, closed_first) = if before {
            if !closed_it && ended.since_ns(event.at.latest) > EXIT_TO_CLOSE_NS {
                return None;
            }
            // The Java machine takes SIGSEGV for its own ends all the time and goes on.
            // <https://docs.oracle.com/en/java/javase/17/troubleshoot/handle-signals-and-exceptions.html>
            let exits_after_fault = matches!(how, Ending::Exit(_));
            // And SIGQUIT makes it write what its threads do.
            let ordinary = |signal: u32| exits_after_fault && (is_fault(signal) || signal == 3) && is_java(command);
            let signal = self.fatal_signal(holder, event.at.latest, how).filter(|(_, signal, _)| !ordinary(*signal));
            (signal, false)
        } else {
            // gunicorn's handler of SIGABRT is sys.exit(1): Python closes what is open in order, and ends some milliseconds later.
            // <https://github.com/benoitc/gunicorn/blob/20.1.0/gunicorn/workers/base.py#L200-L203>
            let signal = self.fatal_signal(holder, ended, how).filter(|(event, _, sender)| {
                ended.since_ns(event.at.latest) <= SIGNAL_TO_CLOSE_NS
                    && sender.as_ref().is_some_and(|sender| sender.pid != holder)
            });
            // An exception that ends the program does so by itself, and the exit status tells it from a process that had done its work.
            let by_itself = self.closed_by() == Some(holder)
                && matches!(how, Ending::Exit(1..))
                && self.fatal_signal(holder, event.at.latest, how).is_none();
            if !closed_it || (signal.is_none() && !by_itself) {
                return None;
            }
            (signal, true)
        };
        let oom = self.case.processes.iter().find(
            |event| matches!(&event.body, Body::Process(ProcessEvent::OomVictim { victim, .. }) if *victim == holder),
        );
        Some(Death {
            event,
            process: (holder, command.to_owned()),
            how,
            oom,
            signal,
            order_known: by_kernel.is_some() || held.is_some_and(|(held, _)| held),
            held: held.filter(|(held, _)| *held).map(|(_, event)| event),
            closed_first,
            untaken: self.untaken(holder),
            unaccepted: self.closed_unaccepted().is_some_and(|(closer, _)| closer == holder),
        })
    }

    /// What this process had been sent, and never took.
    fn untaken(&self, process: Pid) -> Untaken {
        let mut ends = self.case.processes.iter().filter_map(|event| match &event.body {
            Body::Process(ProcessEvent::Exited { pid, untaken, .. }) if *pid == process => Some(*untaken),
            _ => None,
        });
        ends.next_back().unwrap_or_default()
    }

    /// How often this process was sent this signal, as far as it was seen.
    fn times_sent(&self, to: Pid, which: u32) -> usize {
        let sent = |event: &&Event| {
            matches!(&event.body, Body::Process(ProcessEvent::Signalled { target, signal, .. })
                if *target == to && *signal == which)
        };
        self.case.processes.iter().filter(sent).count()
    }

    /// The signal that asked the process to end, not later than at its end (or at what its handler did first).
    fn fatal_signal(&self, target: Pid, end: Moment, how: Ending) -> Option<(&'a Event, u32, Option<Sender>)> {
        let mut signals = self.case.processes.iter().rev().filter_map(|event| match &event.body {
            Body::Process(ProcessEvent::Signalled { target: to, signal, sender, .. }) if *to == target => {
                let in_time = event.at.earliest <= end && end.since_ns(event.at.latest) <= GRACE_NS;
                let decisive = match how {
                    Ending::Signal { signal: died_of, .. } if u32::from(died_of) == *signal => true,
                    // uWSGI's handler of SIGSEGV writes a backtrace and exits with 1.
                    Ending::Exit(code) if is_fault(*signal) => {
                        code != 0 && sender.is_none() && end.since_ns(event.at.latest) <= FAULT_TO_EXIT_NS
                    }
                    // SIGINT, SIGQUIT, SIGABRT, SIGKILL, SIGTERM ask a process to end, whatever its handler makes of it.
                    Ending::Signal { .. } | Ending::Exit(_) => matches!(signal, 2 | 3 | 6 | 9 | 15),
                };
                (in_time && decisive).then(|| (event, *signal, sender.clone()))
            }
            _ => None,
        });
        // Of a signal that it had blocked when it exited it has not heard; sent more than once, one of them may have come before that.
        let blocked = |signal: u32| matches!(how, Ending::Exit(_)) && self.untaken(target).has(signal);
        let mut signals =
            signals.by_ref().filter(|(_, signal, _)| !blocked(*signal) || self.times_sent(target, *signal) > 1);
        let last = signals.next()?;
        let by_itself = |sender: &Option<Sender>| sender.as_ref().is_some_and(|sender| sender.pid == target);
        if !by_itself(&last.2) {
            return Some(last);
        }
        // A handler that has done its work restores the default and sends the same signal to its own process; PHP does so with SIGTERM.
        // <https://github.com/php/php-src/blob/php-8.2.0/Zend/zend_signal.c#L183-L200>
        let first = signals.find(|(event, signal, sender)| {
            *signal == last.1
                && !by_itself(sender)
                && last.0.at.earliest.since_ns(event.at.latest) <= SIGNAL_TO_CLOSE_NS
        });
        Some(first.unwrap_or(last))
    }

    /// `socket()` and `open()` calls of the process that held the connection that failed for want of descriptors while it did.
    pub(crate) fn starved_holder(&self, weight: Weight) -> Vec<Evidence> {
        let Some((holder, command)) = self.attempt.and_then(|attempt| attempt.holder()) else { return Vec::new() };
        let until = self.failed_at().plus_ns(SKEW_NS);
        let since = self.started().unwrap_or(until).minus_ns(SKEW_NS);
        let failing = |event: &Event| match &event.body {
            Body::Syscall(syscall) if syscall.pid == holder => match syscall.call {
                Syscall::Socket { error: error @ (Errno::EMFILE | Errno::ENFILE), .. } => Some(("socket", error)),
                Syscall::Open { error } => Some(("open", error)),
                _ => None,
            },
            _ => None,
        };
        let meanwhile = |event: &&Event| event.at.latest >= since && event.at.earliest <= until;
        self.case
            .processes
            .iter()
            .filter(meanwhile)
            .filter_map(|event| failing(event).map(|(call, errno)| (event.id, call, errno)))
            .map(|(id, call, errno)| {
                let process = Some((holder, command.to_owned()));
                evidence(Fact::SyscallFailed { call, process, errno }, &[id], weight)
            })
            .collect()
    }

    /// Failed `accept()` calls of processes that listen on the upstream's address, in order.
    pub(crate) fn failed_accepts(&self) -> impl Iterator<Item = FailedAccept<'a>> {
        let upstream = self.upstream();
        let listening: Vec<Pid> = self.listening_processes().collect();
        let homes: Vec<u32> = self.upstream_namespaces().collect();
        let of_flow = self.flow().into_iter().flat_map(|flow| flow.events.iter());
        self.case.processes.iter().chain(of_flow).filter_map(move |event| match &event.body {
            Body::Syscall(syscall) => match &syscall.call {
                Syscall::Accept { result: Err(errno), socket, command, .. } => {
                    let address = socket.as_ref().and_then(|socket| socket.local);
                    let same = match (address, upstream) {
                        (Some(address), Some(_)) => self.is_upstreams(address),
                        _ => listening.contains(&syscall.pid),
                    };
                    // The same address may be served in every network namespace, each time by somebody else.
                    let netns = socket.as_ref().and_then(|socket| socket.netns).filter(|_| !homes.is_empty());
                    let home = netns.map(|netns| homes.contains(&netns));
                    (same && home != Some(false)).then(|| FailedAccept {
                        event,
                        certain: home == Some(true) || listening.contains(&syscall.pid),
                        process: (syscall.pid, command.clone()),
                        errno: *errno,
                        queue: socket.as_ref().and_then(|socket| socket.accept_queue),
                    })
                }
                _ => None,
            },
            _ => None,
        })
    }
}

/// An `accept()` of the upstream that failed.
pub(crate) struct FailedAccept<'a> {
    /// The record.
    pub(crate) event: &'a Event,
    /// The listener is known to be the one that the upstream's address leads to, and not one like it in another network namespace.
    pub(crate) certain: bool,
    /// Who called.
    pub(crate) process: (Pid, String),
    /// Why it failed.
    pub(crate) errno: Errno,
    /// The listener's accept queue then: waiting, limit.
    pub(crate) queue: Option<(u32, u32)>,
}
