//! One connection of the lab's upstream.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::behaviour::{Action, Behaviour, response};
use crate::client::find;

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// close(2): FIN, or RST when the kernel still holds unread bytes.
    Close,
    /// close(2) with linger 0: RST.
    Reset,
}

/// Where a connection stands.
#[derive(Debug)]
enum Phase {
    /// Waits for a request, or for the rest of one.
    Reading { since: Instant },
    /// Has read a request and acts on it when the time has come.
    Waiting { until: Instant, action: Action, keep: bool },
    /// Sends, then goes on reading or closes.
    Writing { keep: bool },
    /// Has read a request and will never answer.
    Hanging,
}

/// A connection and what has been read of its next request.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    control: bool,
    phase: Phase,
    input: Vec<u8>,
    output: Vec<u8>,
    command: Option<String>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, control: bool, now: Instant) -> Self {
        let phase = Phase::Reading { since: now };
        Self { stream, control, phase, input: Vec::new(), output: Vec::new(), command: None }
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// What to wait for.
    pub(super) fn interest(&self) -> PollFlags {
        match self.phase {
            Phase::Writing { .. } => PollFlags::POLLOUT,
            Phase::Reading { .. } | Phase::Hanging => PollFlags::POLLIN,
            Phase::Waiting { .. } => PollFlags::empty(),
        }
    }

    /// When it acts by itself.
    pub(super) fn deadline(&self, idle: Option<Duration>) -> Option<Instant> {
        match self.phase {
            Phase::Reading { since } => idle.filter(|_| self.is_idle()).map(|idle| since + idle),
            Phase::Waiting { until, .. } => Some(until),
            Phase::Writing { .. } | Phase::Hanging => None,
        }
    }

    /// Waits for a request of which nothing has come yet.
    pub(super) fn is_idle(&self) -> bool {
        !self.control && matches!(self.phase, Phase::Reading { .. }) && self.input.is_empty()
    }

    /// A command that came in on the control address.
    pub(super) fn take_command(&mut self) -> Option<String> {
        self.command.take()
    }

    /// Sends the answer to a command.
    pub(super) fn answer(&mut self, text: &str) {
        self.output = response(200, text);
        self.phase = Phase::Writing { keep: true };
    }

    /// Does what can be done now; says how the connection ends when it does.
    pub(super) fn advance(&mut self, ready: bool, now: Instant, idle: Option<Duration>) -> Option<Ending> {
        // Timers first, as in Node.js and most event loops: a request that arrived in the same turn is never read.
        if self.is_idle() && self.deadline(idle).is_some_and(|deadline| now >= deadline) {
            return Some(Ending::Close);
        }
        if ready && matches!(self.phase, Phase::Reading { .. } | Phase::Hanging) {
            if self.asks_to_stay_unread() {
                return Some(Ending::Close);
            }
            if !self.read() {
                return Some(Ending::Close);
            }
        }
        loop {
            match &self.phase {
                Phase::Reading { .. } => {
                    if !self.take_request(now) {
                        return None;
                    }
                }
                Phase::Waiting { until, action, keep } => {
                    if now < *until {
                        return None;
                    }
                    let keep = *keep;
                    match action.clone() {
                        Action::Reset => return Some(Ending::Reset),
                        Action::Close => return Some(Ending::Close),
                        Action::Hang => self.phase = Phase::Hanging,
                        Action::Answer(bytes) => {
                            self.output = bytes;
                            self.phase = Phase::Writing { keep };
                        }
                        Action::AnswerAndClose(bytes) => {
                            self.output = bytes;
                            self.phase = Phase::Writing { keep: false };
                        }
                    }
                }
                Phase::Writing { keep } => {
                    let keep = *keep;
                    match self.write() {
                        Ok(false) => return None,
                        Ok(true) if keep => self.phase = Phase::Reading { since: now },
                        Ok(true) | Err(()) => return Some(Ending::Close),
                    }
                }
                Phase::Hanging => return None,
            }
        }
    }

    /// Whether what waits in the kernel asks to be closed unread.
    fn asks_to_stay_unread(&self) -> bool {
        let mut start = [0; 64];
        let Ok(count) = self.stream.peek(&mut start) else { return false };
        let start = &start[..count];
        self.input.is_empty() && !self.control && (find(start, b" /unread").is_some())
    }

    /// Reads what is there; false at the end of the stream.
    fn read(&mut self) -> bool {
        let mut chunk = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return false,
                Ok(count) => self.input.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_reset) => return false,
            }
        }
    }

    /// Takes a whole request off the input, if one is there.
    fn take_request(&mut self, now: Instant) -> bool {
        let Some(end) = find(&self.input, b"\r\n\r\n") else { return false };
        let head = String::from_utf8_lossy(&self.input[..end]).to_ascii_lowercase();
        let length: usize = field(&head, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
        if self.input.len() < end + 4 + length {
            return false;
        }
        let original = String::from_utf8_lossy(&self.input[..end]).into_owned();
        self.input.drain(..end + 4 + length);
        let target = original.split(' ').nth(1).unwrap_or("/").to_owned();
        if self.control {
            self.command = Some(target);
            // The server answers in the same turn.
            self.phase = Phase::Hanging;
            return true;
        }
        let old = original.lines().next().is_some_and(|line| line.ends_with("HTTP/1.0"));
        let keep = match field(&head, "connection") {
            Some(value) => value != "close",
            None => !old,
        };
        let behaviour = Behaviour::of(&target);
        self.phase = Phase::Waiting { until: now + behaviour.delay, action: behaviour.action, keep };
        true
    }

    /// Sends what is left to send; true when all is sent.
    fn write(&mut self) -> Result<bool, ()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(()),
                Ok(count) => {
                    self.output.drain(..count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_reset) => return Err(()),
            }
        }
        Ok(true)
    }
}

/// The value of a field in a header given in lower case.
fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).filter_map(|line| line.split_once(':')).find(|(key, _)| *key == name).map(|(_, v)| v.trim())
}
