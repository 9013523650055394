//! Lines of the error log about requests that nginx itself tells about: they have the whole text of a message.

use std::collections::VecDeque;

use super::limits::WRITTEN_LINES;
use crate::model::{
    complaint::{Complaint, Message},
    event::{Event, EventId},
    nginx::{ErrorLine, NginxLog},
    time::At,
};

/// The newest lines.
#[derive(Debug, Default)]
pub(super) struct Written(VecDeque<(At, ErrorLine, EventId)>);

impl Written {
    /// Keeps a line of a request.
    pub(super) fn keep(&mut self, event: &Event, line: &ErrorLine) {
        if line.number.is_none() {
            return;
        }
        if self.0.len() >= WRITTEN_LINES {
            self.0.pop_front();
        }
        self.0.push_back((event.at, line.clone(), event.id));
    }

    /// The line that this complaint became: of the same client connection, with the same errno and meaning, within a second (nginx's log
    /// knows no less).
    pub(super) fn of(&self, event: &Event, log: &NginxLog, complaint: &Complaint) -> Option<&ErrorLine> {
        let window = At::between(event.at.earliest.minus_ns(1_000_000_000), event.at.latest.plus_ns(1_000_000_000));
        let fits = |(at, line, _): &&(At, ErrorLine, EventId)| {
            line.number == log.number
                && line.errno == log.errno
                && at.overlaps(&window)
                && Message::classify(&line.message) == Some(complaint.message)
        };
        self.0.iter().rev().find(fits).map(|(_, line, _)| line)
    }

    /// Lines written in one of these times.
    pub(super) fn within(&self, times: &[At]) -> impl Iterator<Item = EventId> {
        self.0.iter().filter(|(at, ..)| times.iter().any(|time| time.overlaps(at))).map(|(.., id)| *id)
    }
}
