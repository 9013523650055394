//! Processes that serve the upstream and could not run while nginx waited: stopped by a signal, held by a debugger, frozen with their
//! control group.

use super::{Locality, Reading, SKEW_NS, evidence, led::Way};
use crate::model::{
    coverage::Sensor,
    event::{Body, Event, EventId},
    evidence::{Evidence, Fact, Weight},
    flow::Side,
    host::HostFact,
    net::{Address, Errno},
    process::{Acceptor, Halt, Pid, ProcessEvent, SIGCONT, SIGSTOP, Sender, stops},
    socket::TcpState,
    time::Moment,
};

/// Whatever finds no room in an accept queue is sent again, and not sooner than after this (`TCP_RTO_MIN` is twice as long).
const TRIED_AGAIN_NS: u64 = 100_000_000;

/// A signal that was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent<'a> {
    /// The record.
    pub(crate) event: &'a Event,
    /// Its number.
    pub(crate) signal: u32,
    /// By whom; `None`: the kernel.
    pub(crate) sender: Option<&'a Sender>,
}

/// A process that could not run for all of the time that nginx waited, or for some of it.
#[derive(Clone, Debug)]
pub(crate) struct Still<'a> {
    /// Who.
    pub(crate) process: (Pid, &'a str),
    /// What kept it from running when it was looked at.
    pub(crate) halt: Option<&'a Halt>,
    /// The signal that stopped it.
    pub(crate) stopped: Option<Sent<'a>>,
    /// The signal that let it go on.
    pub(crate) continued: Option<Sent<'a>>,
}

/// Those of a server.
#[derive(Clone, Debug)]
pub(crate) struct Standstill<'a> {
    /// Each of them.
    pub(crate) processes: Vec<Still<'a>>,
    /// Of so many that may accept there; `None`: it is the one that has the connection.
    pub(crate) of: Option<usize>,
    /// The look at them.
    pub(crate) look: Option<EventId>,
}

impl Standstill<'_> {
    /// Nobody else can have served the request.
    pub(crate) fn is_whole(&self) -> bool {
        self.of.is_none_or(|of| of == self.processes.len())
    }
}

/// What a look at a process found.
#[derive(Clone, Copy)]
enum Found<'a> {
    /// Nobody looked.
    Nothing,
    /// It runs.
    Running,
    /// It does not.
    Halted(&'a Halt),
}

impl<'a> From<Option<&'a Halt>> for Found<'a> {
    fn from(halt: Option<&'a Halt>) -> Self {
        halt.map_or(Self::Running, Self::Halted)
    }
}

/// Who may accept there, as a look found them.
struct Looked<'a> {
    event: EventId,
    processes: &'a [Acceptor],
    all: bool,
}

impl<'a> Reading<'a> {
    /// Who of those that had the connection, or may accept it, stood still while nginx waited.
    pub(crate) fn standstill(&self) -> Option<Standstill<'a>> {
        if self.locality() != Locality::Here || self.handed_to().is_some() {
            return None;
        }
        let (processes, of, look) = match self.accepted_by() {
            Some(holder) => {
                let found = self.look_at(holder.0);
                let still = self.stood_still(holder, found.map_or(Found::Nothing, |(_, halt)| halt.into()))?;
                (vec![still], None, found.map(|(event, _)| event))
            }
            None => self.acceptors_still()?,
        };
        Some(Standstill { processes, of, look })
    }

    fn acceptors_still(&self) -> Option<(Vec<Still<'a>>, Option<usize>, Option<EventId>)> {
        let looked = self.acceptors()?;
        let halted = |pid: Pid| looked.processes.iter().any(|other| other.pid == pid && other.halt.is_some());
        // A master that stands still hinders nobody while its workers run.
        let hinders = |one: &Acceptor| {
            one.halt.is_none() || !looked.processes.iter().any(|other| other.parent == one.pid && !halted(other.pid))
        };
        let serving: Vec<&Acceptor> = looked.processes.iter().filter(|one| hinders(one)).collect();
        let still: Vec<Still<'a>> = serving
            .iter()
            .filter_map(|one| self.stood_still((one.pid, &one.command), one.halt.as_ref().into()))
            .collect();
        let of = if looked.all { serving.len() } else { usize::MAX };
        (!still.is_empty()).then_some((still, Some(of), Some(looked.event)))
    }

    /// Whether this process stood still while nginx waited.
    fn stood_still(&self, process: (Pid, &'a str), found: Found<'a>) -> Option<Still<'a>> {
        let until = self.failed_at().plus_ns(SKEW_NS);
        let sent = self.stops_of(process.0);
        let before = |one: &&Sent<'_>| one.event.at.earliest <= until;
        let last = sent.iter().rposition(|one| stops(one.signal) && before(&one));
        let continued = last.and_then(|last| sent[last..].iter().find(|one| one.signal == SIGCONT)).copied();
        match found {
            Found::Halted(halt @ Halt::Stopped) => {
                let later = sent.iter().any(|one| stops(one.signal) && !before(&one));
                // The first since it last went on; what stopped it only after nginx had given up explains nothing.
                let since = sent.iter().rposition(|one| one.signal == SIGCONT && before(&one)).map_or(0, |at| at + 1);
                let stopped = sent[since..].iter().find(|one| stops(one.signal) && before(one)).copied();
                let stopped = stopped.filter(|_| continued.is_none());
                (stopped.is_some() || !later).then_some(Still { process, halt: Some(halt), stopped, continued: None })
            }
            Found::Halted(halt) => Some(Still { process, halt: Some(halt), stopped: None, continued: None }),
            Found::Nothing | Found::Running => {
                let stopped = sent[last?];
                let waited_meanwhile = match continued {
                    Some(continued) => self.started().is_none_or(|started| continued.event.at.latest >= started),
                    // It runs again, and what let it go on was not seen; or nobody looked.
                    None => matches!(found, Found::Nothing),
                };
                // Of the others it may have thought otherwise.
                (waited_meanwhile && stopped.signal == SIGSTOP).then_some(Still {
                    process,
                    halt: None,
                    stopped: Some(stopped),
                    continued,
                })
            }
        }
    }

    /// The signals by which this process was stopped, and let go on, in order.
    fn stops_of(&self, process: Pid) -> Vec<Sent<'a>> {
        let of = |event: &'a Event| match &event.body {
            Body::Process(ProcessEvent::Signalled { target, signal, sender, .. })
                if *target == process && (stops(*signal) || *signal == SIGCONT) =>
            {
                Some(Sent { event, signal: *signal, sender: sender.as_ref() })
            }
            _ => None,
        };
        self.case.processes.iter().filter_map(of).collect()
    }

    /// What keeps this process from running, by the last look at it since the attempt began.
    fn look_at(&self, process: Pid) -> Option<(EventId, Option<&'a Halt>)> {
        let since = self.looked_since();
        self.case.host.iter().rev().filter(|(_, at, _)| at.earliest >= since).find_map(|(event, _, fact)| match fact {
            // What was recorded before there was more to tell than a letter.
            HostFact::ProcessState { pid, state: 'T', halt: None, .. } if *pid == process => {
                Some((*event, Some(&Halt::Stopped)))
            }
            HostFact::ProcessState { pid, state: 't', halt: None, .. } if *pid == process => {
                Some((*event, Some(&Halt::Traced(None))))
            }
            HostFact::ProcessState { pid, halt, .. } if *pid == process => Some((*event, halt.as_ref())),
            _ => None,
        })
    }

    /// Who may accept what comes to the server, by the last look since the attempt began.
    fn acceptors(&self) -> Option<Looked<'a>> {
        let wanted = match self.unix_path() {
            Some(path) => Address::Unix(path.to_owned()),
            None => Address::Ip(self.server()?),
        };
        let since = self.looked_since();
        self.case.host.iter().rev().filter(|(_, at, _)| at.earliest >= since).find_map(|(event, _, fact)| match fact {
            HostFact::Acceptors { upstream, processes, all, .. } if *upstream == wanted => {
                Some(Looked { event: *event, processes, all: *all })
            }
            _ => None,
        })
    }

    fn looked_since(&self) -> Moment {
        self.started().unwrap_or_else(|| self.failed_at())
    }

    /// The end of the handshake found room in the accept queue of the server's listener, at the first try: the upstream's end came about as
    /// soon as nginx's (`tcp_v4_syn_recv_sock()`, <https://elixir.bootlin.com/linux/v6.12/source/net/ipv4/tcp_ipv4.c>).
    pub(crate) fn found_room(&self) -> bool {
        let Some(flow) = self.flow() else { return false };
        let when = |side| flow.entered(side, TcpState::Established).next().map(|(event, _)| event.at.latest);
        when(Side::Nginx).zip(when(Side::Upstream)).is_some_and(|(here, there)| there.since_ns(here) < TRIED_AGAIN_NS)
    }

    /// Nobody had accepted the connection when nginx gave it up, nor read a byte of it: the record of nginx's close, as it came there.
    pub(crate) fn never_accepted(&self) -> Option<Evidence> {
        // An accept() that could not be seen proves nothing by its absence.
        let watched = self.sees(Sensor::Syscalls) && self.known_beforehand() && self.way() == Way::Straight;
        if !watched
            || self.locality() != Locality::Here
            || self.reused() != Some(false)
            || self.taken_by_application() == Some(true)
        {
            return None;
        }
        let (event, left) = self.flow()?.entered(Side::Upstream, TcpState::CloseWait).next()?;
        let tcp = left.socket.tcp.filter(|_| event.at.latest >= self.failed_at())?;
        (tcp.bytes_received <= u64::from(tcp.unread()))
            .then(|| evidence(Fact::NeverAccepted, &[event.id], Weight::Symptom))
    }

    /// Everybody who may accept there has descriptors left, and none was seen to fail for want of them.
    pub(crate) fn has_descriptors(&self) -> Option<Evidence> {
        let looked = self.acceptors().filter(|looked| looked.all && !looked.processes.is_empty())?;
        let short = |errno: Errno| matches!(errno, Errno::EMFILE | Errno::ENFILE);
        if self.failed_accepts().any(|failure| short(failure.errno)) {
            return None;
        }
        looked.processes.iter().all(|one| one.has_room() == Some(true)).then(|| {
            let fact = Fact::Acceptors { processes: looked.processes.to_vec() };
            evidence(fact, &[looked.event], Weight::Fits)
        })
    }
}
