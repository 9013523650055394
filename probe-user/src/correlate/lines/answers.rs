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

/// Whether this is the client, as far as it is known.
fn went_to(told: Option<&str>, client: SocketAddr) -> bool {
    told.is_none_or(|text| text == client.ip().to_string())
}

impl Lines {
    /// The answer of the request whose last error line this is; `status`: what the access log says.
    pub(super) fn answer_of(&mut self, last: &Line, status: Option<u16>) -> Answered {
        let window = window(last);
        while self.unanswered.front().is_some_and(|(at, _)| at.latest.plus_ns(NOTICED_WITHIN_NS) < window.earliest) {
            self.unanswered.pop_front();
        }
        let fits = |(event, code, client): &&(Event, u16, SocketAddr)| {
            event.at.overlaps(&window)
                && status.is_none_or(|status| status == *code)
                && went_to(last.line.client.as_deref(), *client)
        };
        let mut fitting = self.answers.iter().filter(fits);
        let Some(first) = fitting.next().cloned() else { return self.without_answer(last, window, None) };
        let mut code = Some(first.1);
        let mut several = false;
        for (_, other, _) in fitting {
            several = true;
            code = code.filter(|code| code == other);
        }
        if several || self.can_be_anothers(&first, Some(last)) {
            return self.without_answer(last, window, code);
        }
        self.answers.retain(|(event, ..)| event.id != first.0.id);
        Answered { answer: Some(first), code }
    }

    fn without_answer(&mut self, last: &Line, window: At, code: Option<u16>) -> Answered {
        bounded(&mut self.unanswered, (window, last.line.client.clone()));
        Answered { answer: None, code }
    }

    /// Whether the answer fits another request too: one whose lines wait, or one that was told without its answer.
    pub(super) fn can_be_anothers(&self, (event, _, client): &(Event, u16, SocketAddr), last: Option<&Line>) -> bool {
        let waits = self.errors.iter().any(|line| {
            last.is_none_or(|last| (line.line.pid, line.line.number) != (last.line.pid, last.line.number))
                && event.at.overlaps(&window(line))
                && went_to(line.line.client.as_deref(), *client)
        });
        waits || self.unanswered.iter().any(|(at, told)| event.at.overlaps(at) && went_to(told.as_deref(), *client))
    }
}
