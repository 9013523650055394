//! What to look up on the host when nginx complains: soon, because the answer changes.

use std::net::SocketAddr;

use super::{Correlator, Question, lines::peer_of};
use crate::model::{
    complaint::{Message, Phase},
    event::{Body, Event},
    host::HostFact,
    net::{Address, Errno},
    nginx::NginxLog,
    process::Pid,
    socket::{SocketChange, Syscall, TcpState},
};

impl Correlator {
    pub(super) fn ask_about(&mut self, log: &NginxLog, message: Message, phase: Phase) {
        let peer = log.peer.as_deref().and_then(Address::parse);
        let upstream = peer.as_ref().and_then(Address::ip);
        match message {
            Message::SocketFailed | Message::AcceptFailed | Message::WorkerConnections => {
                self.host.ask(Question::OpenFiles(log.worker), self.now);
            }
            _ => {}
        }
        if let Some(upstream) = upstream {
            self.host.ask(self.host.listeners(upstream, Some(log.worker)), self.now);
            if phase == Phase::Connecting {
                self.ask_about_names(upstream, log.worker);
                if let Some(pid) = self.host.stopped_listening(upstream, Some(log.worker)) {
                    self.host.ask(Question::OtherListeners(pid), self.now);
                }
            }
        }
        let socket = log.upstream.as_ref().and_then(|connection| connection.socket.as_ref());
        if let Some((local, upstream)) = socket.and_then(|socket| socket.local.zip(socket.remote))
            && self.translations.may_ask(self.now)
        {
            self.host.ask(Question::Translation { local, upstream, netns: self.host.netns(log.worker) }, self.now);
        }
        if let (Message::BindFailed, Some(upstream)) = (message, upstream) {
            self.host.ask(Question::LocalPorts { upstream, netns: self.host.netns(log.worker) }, self.now);
        }
        if message == Message::TimedOut {
            let led = socket
                .and_then(|s| self.flows.current(s.local?, s.remote?, s.netns))
                .and_then(|id| self.flows.get(id))
                .and_then(|flow| flow.led.as_ref().map(|led| led.to));
            if let Some(server) = led.map(Address::Ip).or(peer) {
                let netns = self.host.netns(log.worker).filter(|_| led.is_none());
                self.host.ask(Question::acceptors(&server, netns, log.worker), self.now);
            }
        }
        let timed_out = message == Message::TimedOut && phase != Phase::Connecting;
        if timed_out {
            let socket = log.upstream.as_ref().and_then(|connection| connection.socket.as_ref());
            let holder = socket
                .and_then(|s| self.flows.current(s.local?, s.remote?, s.netns))
                .and_then(|id| self.flows.get(id))
                .and_then(|flow| flow.accepted_by.as_ref().map(|(pid, _)| *pid));
            let holder = holder.or_else(|| self.unix.holder(socket?));
            if let Some(pid) = holder {
                self.host.ask(Question::ProcessState(pid), self.now);
            }
        }
    }

    /// Who is found where a connection was led is who the upstream is.
    pub(super) fn learn_translation(&mut self, event: &Event, fact: &HostFact) {
        self.translations.learn(event, fact);
        if let HostFact::Translated { upstream, to, netns, .. } = fact {
            // nginx connects there; of those that went well nothing need have been heard.
            self.flows.add_upstream(*upstream);
            self.host.ask(Question::listeners(*to, *netns), self.now);
        }
    }

    /// A name that led elsewhere when nginx started may be why nobody answers at the address.
    fn ask_about_names(&mut self, upstream: SocketAddr, worker: Pid) {
        for question in self.host.names(upstream, worker) {
            self.host.ask(question, self.now);
        }
    }

    /// What the kernel shows of a failure before, or without, nginx's own word.
    pub(super) fn wonder(&mut self, event: &Event) {
        match &event.body {
            Body::Syscall(call) => match &call.call {
                Syscall::Accept { result: Err(Errno::EMFILE | Errno::ENFILE), .. }
                | Syscall::Socket { error: Errno::EMFILE, .. }
                | Syscall::Open { error: Errno::EMFILE } => {
                    self.host.ask(Question::OpenFiles(call.pid), self.now);
                }
                Syscall::Socket { error: Errno::ENFILE, .. } | Syscall::Open { error: Errno::ENFILE } => {
                    self.host.ask(Question::SystemFiles, self.now);
                }
                Syscall::Connect { result: Err(errno), address: Some(address), .. } => {
                    self.ask_about_connect(*errno, address, call.pid);
                }
                _ => {}
            },
            // A SYN that has to be repeated: is the queue full that it is not taken into?
            Body::Socket(e) if e.socket.state == TcpState::SynSent => {
                if let (SocketChange::Retransmitted { .. }, Some(upstream)) = (&e.change, e.socket.remote) {
                    self.host.ask(Question::listeners(upstream, e.socket.netns), self.now);
                }
            }
            Body::ErrorLine(line) => {
                if let Some(Address::Ip(upstream)) = peer_of(line).as_deref().and_then(Address::parse) {
                    let worker = Pid(line.pid);
                    self.host.ask(self.host.listeners(upstream, Some(worker)), self.now);
                    self.ask_about_names(upstream, worker);
                }
            }
            _ => {}
        }
    }

    fn ask_about_connect(&mut self, errno: Errno, address: &Address, worker: Pid) {
        match (address, errno) {
            (_, Errno::EINPROGRESS) => {}
            (Address::Unix(path), _) => {
                self.host.ask(Question::UnixSocket { path: path.clone(), worker }, self.now);
                if errno == Errno::EAGAIN {
                    self.host.ask(Question::acceptors(address, None, worker), self.now);
                }
            }
            (Address::Ip(upstream), Errno::EADDRNOTAVAIL) => {
                self.host.ask(Question::LocalPorts { upstream: *upstream, netns: self.host.netns(worker) }, self.now);
            }
            (Address::Ip(upstream), _) => {
                self.host.ask(Question::Route { upstream: *upstream, netns: self.host.netns(worker) }, self.now);
            }
        }
    }
}
