//! A connection that nobody had taken when its listener was closed.

use super::{Reading, evidence};
use crate::model::{
    coverage::Sensor,
    event::{Body, Event, EventId},
    evidence::{Evidence, Fact, Weight},
    flow::Side,
    host::HostFact,
    process::{Ending, Pid, ProcessEvent},
    socket::{SocketChange, SocketEvent, TcpState},
};

/// The kernel works off the accept queue of a closed listener in one go.
const LISTENER_TO_CONNECTION_NS: u64 = 1_000_000_000;
/// A server that loses one process may take this long to give up as a whole.
const SERVER_GIVES_UP_NS: u64 = 2_000_000_000;

impl<'a> Reading<'a> {
    /// Nobody had accepted the connection when its listener was closed, and so the kernel aborted it: who closed the listener, and the
    /// record of that (`inet_csk_listen_stop()`, <https://elixir.bootlin.com/linux/v6.12/source/net/ipv4/inet_connection_sock.c>).
    pub(crate) fn closed_unaccepted(&self) -> Option<(Pid, EventId)> {
        // An accept() that could not be seen proves nothing by its absence.
        if !self.sees(Sensor::Syscalls) || self.taken_by_application() == Some(true) {
            return None;
        }
        let (aborted, end) = self.aborted_by_nobody()?;
        let mut closed = self.case.processes.iter().filter_map(|event| match &event.body {
            Body::Socket(e) if self.is_its_listener(e, end) => Some((e.by?, event)),
            _ => None,
        });
        let in_time = |event: &Event| {
            event.at.earliest <= aborted.at.latest
                && aborted.at.earliest.since_ns(event.at.latest) <= LISTENER_TO_CONNECTION_NS
        };
        let (by, event) = closed.by_ref().find(|(_, event)| in_time(event))?;
        // Of two processes, each with a listener of its own there (SO_REUSEPORT), nobody knows in whose queue it waited.
        closed.all(|(other, event)| other == by || !in_time(event)).then_some((by, event.id))
    }

    /// The same as evidence.
    pub(crate) fn unaccepted_evidence(&self) -> Option<Evidence> {
        let (process, event) = self.closed_unaccepted()?;
        Some(evidence(Fact::ClosedUnaccepted { process }, &[event], Weight::Symptom))
    }

    /// The upstream's end went from the connection to CLOSE without an error, and not by a process that had it.
    fn aborted_by_nobody(&self) -> Option<(&'a Event, &'a SocketEvent)> {
        let mut ends = self.flow()?.entered(Side::Upstream, TcpState::Closed);
        ends.find(|(_, e)| {
            let connected =
                matches!(e.change, SocketChange::State { from: TcpState::Established | TcpState::CloseWait });
            connected && e.by.is_none() && e.socket.error.is_none()
        })
    }

    /// Whether this is the end of the listener through which the connection came.
    fn is_its_listener(&self, closed: &SocketEvent, end: &SocketEvent) -> bool {
        let same = closed.socket.local.is_some_and(|local| self.is_upstreams(local));
        // The same address may be served in every network namespace, each time by somebody else.
        let home = closed.socket.netns.zip(end.socket.netns).is_none_or(|(one, other)| one == other);
        matches!(closed.change, SocketChange::State { from: TcpState::Listen }) && same && home
    }

    /// The end of this process would have been seen: it was known to serve the upstream's address before.
    pub(crate) fn known_to_serve(&self, process: Pid) -> bool {
        let served = |fact: &HostFact| matches!(fact, HostFact::Served { pid, .. } if *pid == process);
        self.listening_processes().any(|listening| listening == process)
            || self.case.host.iter().any(|(_, _, fact)| served(fact))
    }

    /// Another process of that server had ended, and not in order, a little before this one did, which did in order: it may have been why.
    pub(crate) fn another_ended_before(&self, process: Pid) -> bool {
        let exits = || {
            self.case.processes.iter().filter_map(|event| match &event.body {
                Body::Process(ProcessEvent::Exited { pid, command, how, .. }) => Some((event, *pid, command, *how)),
                _ => None,
            })
        };
        let Some((own, _, name, Ending::Exit(0))) = exits().find(|(_, pid, ..)| *pid == process) else { return false };
        exits().any(|(event, pid, command, how)| {
            pid != process
                && command == name
                && how != Ending::Exit(0)
                && event.at.earliest <= own.at.latest
                && own.at.earliest.since_ns(event.at.latest) <= SERVER_GIVES_UP_NS
        })
    }
}
