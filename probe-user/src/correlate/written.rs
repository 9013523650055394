//! Lines of the error log about requests that nginx itself tells about: they have the whole text of a message.

use super::{limits::WRITTEN_LINES, newest::Newest};
use crate::model::{
    complaint::{Complaint, Message},
    event::{Event, EventId},
    nginx::{ErrorLine, NginxLog},
    time::At,
};

/// The newest lines, by the client connection they are of.
#[derive(Debug)]
pub(super) struct Written(Newest<u64, (At, ErrorLine, EventId)>);

impl Default for Written {
    fn default() -> Self {
        Self(Newest::new(WRITTEN_LINES))
    }
}

impl Written {
    /// Keeps a line of a request.
    pub(super) fn keep(&mut self, event: &Event, line: &ErrorLine) {
        if let Some(number) = line.number {
            self.0.keep(number, (event.at, line.clone(), event.id));
        }
    }

    /// The line that this complaint became: of the same client connection, with the same errno and meaning, within a second (nginx's log
    /// knows no less).
    pub(super) fn of(&self, event: &Event, log: &NginxLog, complaint: &Complaint) -> Option<&ErrorLine> {
        let window = At::between(event.at.earliest.minus_ns(1_000_000_000), event.at.latest.plus_ns(1_000_000_000));
        let fits = |(at, line, _): &&(At, ErrorLine, EventId)| {
            line.errno == log.errno
                && at.overlaps(&window)
                && Message::classify(&line.message) == Some(complaint.message)
        };
        self.0.of(log.number?).rev().find(fits).map(|(_, line, _)| line)
    }

    /// Lines written in one of these times.
    pub(super) fn within(&self, times: &[At]) -> impl Iterator<Item = EventId> {
        let spans = joined(times);
        let inside = move |at: &At| {
            // The last span that begins before the line was certainly written, if it reaches it.
            let after = spans.partition_point(|span| span.earliest <= at.latest);
            after.checked_sub(1).and_then(|place| spans.get(place)).is_some_and(|span| span.overlaps(at))
        };
        self.0.all().filter(move |(_, (at, ..))| inside(at)).map(|(_, (.., id))| *id)
    }
}

/// The same times, in order, without those that others cover.
fn joined(times: &[At]) -> Vec<At> {
    let mut times = times.to_vec();
    times.sort_by_key(|time| time.earliest);
    let mut spans: Vec<At> = Vec::new();
    for time in times {
        match spans.last_mut().filter(|span| span.overlaps(&time)) {
            Some(span) => span.latest = span.latest.max(time.latest),
            None => spans.push(time),
        }
    }
    spans
}
