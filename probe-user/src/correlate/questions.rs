//! What to look up on the host when nginx complains: soon, because the answer changes.

use super::{Correlator, Question};
use crate::model::{
    complaint::{Message, Phase},
    net::Address,
    nginx::NginxLog,
};

impl Correlator {
    pub(super) fn ask_about(&mut self, log: &NginxLog, message: Message, phase: Phase) {
        let upstream = log.peer.as_deref().and_then(Address::parse).and_then(|address| address.ip());
        match message {
            Message::SocketFailed | Message::AcceptFailed | Message::WorkerConnections => {
                self.host.ask(Question::OpenFiles(log.worker), self.now);
            }
            _ => {}
        }
        if let Some(upstream) = upstream {
            self.host.ask(self.host.listeners(upstream, Some(log.worker)), self.now);
        }
        if message == Message::TimedOut && phase != Phase::Connecting {
            let socket = log.upstream.as_ref().and_then(|connection| connection.socket.as_ref());
            let holder = socket
                .and_then(|s| self.flows.current(s.local?, s.remote?, s.netns))
                .and_then(|id| self.flows.get(id))
                .and_then(|flow| flow.accepted_by.as_ref().map(|(pid, _)| *pid));
            if let Some(pid) = holder {
                self.host.ask(Question::ProcessState(pid), self.now);
            }
        }
    }
}
