//! Which answer on the wire is that of a request known from its lines.
//!
//! It has no number and no request line of its own, only its time, its status and whom it went to. So it is taken only where it is the one
//! that fits, and nobody else is there whose it can be.

use std::net::SocketAddr;

use super::{ANSWER_WINDOW_NS, Line, Lines, NOTICED_WITHIN_NS, bounded};
use crate::model::{event::Event, time::At};

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Answered {
    /// The one that is this request's.
    pub(super) answer: Option<(Event, u16, SocketAddr)>,
    /// The status of all that can be.
    pub(super) code: Option<u16>,
}

/// When the answer can have come to a request whose last line this is.
fn window(line: &Line) -> At {
    At::between(line.event.at.earliest, line.event.at.latest.plus_ns(ANSWER_WINDOW_NS))
}

/// Whether this is the client, as far as it is known; some formats of the access log have its port.
fn went_to(told: Option<&str>, client: SocketAddr) -> bool {
    told.is_none_or(|text| text == client.ip().to_string() || text == client.to_string())
}

impl Lines {
    /// The answer of the request whose last error line this is; `status`: what the access log says.
    pub(super) fn answer_of(&mut self, last: &Line, status: Option<u16>) -> Answered {
        let window = window(last);
        while self.unanswered.front().is_some_and(|(at, _)| at.latest.plus_ns(NOTICED_WITHIN_NS) < window.earliest) {
            self.unanswered.pop_front();
        }
        let found = self.only_answer(window, status, last.line.client.as_deref(), Some(last));
        if found.answer.is_none() {
            bounded(&mut self.unanswered, (window, last.line.client.clone()));
        }
        found
    }

    /// The one answer of this time, with this status and to this client as far as they are known, that nobody else's request can have;
    /// `mine`: a line of the request itself. It is taken.
    pub(super) fn only_answer(
        &mut self,
        window: At,
        status: Option<u16>,
        told: Option<&str>,
        mine: Option<&Line>,
    ) -> Answered {
        let fits = |(event, code, client): &&(Event, u16, SocketAddr)| {
            event.at.overlaps(&window) && status.is_none_or(|status| status == *code) && went_to(told, *client)
        };
        let mut fitting = self.answers.iter().filter(fits);
        let Some(first) = fitting.next().cloned() else { return Answered::default() };
        let mut code = Some(first.1);
        let mut several = false;
        for (_, other, _) in fitting {
            several = true;
            code = code.filter(|code| code == other);
        }
        if several || self.can_be_anothers(&first, mine) {
            return Answered { answer: None, code };
        }
        self.answers.retain(|(event, ..)| event.id != first.0.id);
        Answered { answer: Some(first), code }
    }

    /// Whether the answer fits another request too: one whose lines wait, or one that was told without its answer.
    fn can_be_anothers(&self, (event, _, client): &(Event, u16, SocketAddr), last: Option<&Line>) -> bool {
        let waits = self.errors.iter().any(|line| {
            last.is_none_or(|last| (line.line.pid, line.line.number) != (last.line.pid, last.line.number))
                && event.at.overlaps(&window(line))
                && went_to(line.line.client.as_deref(), *client)
        });
        waits || self.unanswered.iter().any(|(at, told)| event.at.overlaps(at) && went_to(told.as_deref(), *client))
    }
}
