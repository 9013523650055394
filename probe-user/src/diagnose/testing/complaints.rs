//! What nginx complains of.

use super::*;
use crate::model::nginx::{ErrorLine, NginxLog};

impl World {
    /// nginx complains, heard inside it.
    pub(crate) fn complain(&mut self, message: Message, phase: Phase, errno: Option<Errno>, text: &str) -> EventId {
        let log = NginxLog {
            worker: WORKER,
            request: None,
            parent: None,
            number: Some(41),
            client_requests: None,
            level: 4,
            errno,
            format: text.to_owned(),
            status: None,
            action: None,
            peer: None,
            upstream: None,
            client: None,
            request_line: None,
            host: None,
        };
        let event = self.event(-20, Source::Kernel, Body::Nginx(NginxEvent::Log(Box::new(log))));
        self.put_complaint(event, message, phase, errno, text)
    }

    /// nginx complains that the connection ended while it waited for the header.
    pub(crate) fn closed_before_header(&mut self) -> EventId {
        let text = "upstream prematurely closed connection";
        self.complain(Message::PrematurelyClosed, Phase::ReadingHeader, None, text)
    }

    /// nginx complains, read in its log.
    pub(crate) fn log(&mut self, message: Message, phase: Phase, errno: Option<Errno>, text: &str) -> EventId {
        let line = ErrorLine {
            level: "error".to_owned(),
            pid: WORKER.0,
            number: Some(41),
            message: text.to_owned(),
            errno,
            action: None,
            client: None,
            server: None,
            request: None,
            subrequest: None,
            upstream: None,
            host: None,
        };
        let mut event = self.event(0, Source::ErrorLog, Body::from(line));
        event.at = At::between(DECIDED.minus_ns(500_000_000), DECIDED.plus_ns(500_000_000));
        self.put_complaint(event, message, phase, errno, text)
    }

    fn put_complaint(
        &mut self,
        event: Event,
        message: Message,
        phase: Phase,
        errno: Option<Errno>,
        text: &str,
    ) -> EventId {
        let id = event.id;
        let complaint = Complaint { message, phase, errno, text: text.to_owned() };
        match self.case.attempts.last_mut() {
            Some(attempt) => {
                attempt.errno = errno;
                attempt.complaint = Some((event, complaint));
            }
            None => self.case.complaints.push((event, complaint)),
        }
        id
    }
}
