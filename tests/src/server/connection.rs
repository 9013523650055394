//! One connection of the lab's upstream.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::sys::signal::Signal;

use super::behaviour::{Action, Behaviour, Wanted, response};
use super::prefork;
use crate::client::find;

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// close(2): FIN, or RST when the kernel still holds unread bytes.
    Close,
    /// close(2) with linger 0: RST.
    Reset,
}

/// How long after its sibling's end a worker closes: the two are told apart by nothing but who held the connection.
const BESIDE: Duration = Duration::from_millis(30);

/// Who looks at the process because of the failure still finds its descriptors taken.
const STARVES: Duration = Duration::from_millis(600);

/// So long after an answer nginx has read it.
const READ_BY_THEN: Duration = Duration::from_millis(150);

/// What becomes of a request that is left unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unread {
    /// The connection is closed over it.
    Close,
    /// It waits for the command to answer.
    Wait,
    /// Nothing.
    Never,
}

/// Where a connection stands.
#[derive(Debug)]
enum Phase {
    /// Waits for a request, or for the rest of one.
    Reading { since: Instant },
    /// Has read a request and acts on it when the time has come.
    Waiting { until: Instant, action: Action, keep: bool },
    /// Sends, then goes on reading or closes.
    Writing { then: Afterwards },
    /// Has read a request and will never answer.
    Hanging,
    /// Reads nothing until it is told to answer (`/early`), or for ever (`/ignore`).
    Deaf { answers: bool },
}

/// What happens when everything is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Afterwards {
    /// The next request.
    Keep,
    /// The end.
    End(Ending),
    /// A reset, when nginx has certainly read what was sent.
    ResetSoon,
    /// Nothing any more.
    Hang,
}

/// What a connection's listener is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// Requests choose the behaviour.
    Requests,
    /// Commands to the server.
    Control,
    /// Whatever comes is met with this behaviour.
    Script(String),
}

/// A connection and what has been read of its next request.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    role: Role,
    phase: Phase,
    input: Vec<u8>,
    output: Vec<u8>,
    command: Option<String>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, role: Role, now: Instant) -> Self {
        let phase = Phase::Reading { since: now };
        Self { stream, role, phase, input: Vec::new(), output: Vec::new(), command: None }
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// What to wait for.
    pub(super) fn interest(&self) -> PollFlags {
        match self.phase {
            Phase::Writing { .. } => PollFlags::POLLOUT,
            Phase::Reading { .. } | Phase::Hanging => PollFlags::POLLIN,
            Phase::Waiting { .. } | Phase::Deaf { .. } => PollFlags::empty(),
        }
    }

    /// When it acts by itself.
    pub(super) fn deadline(&self, idle: Option<Duration>) -> Option<Instant> {
        match self.phase {
            Phase::Reading { since } => idle.filter(|_| self.is_idle()).map(|idle| since + idle),
            Phase::Waiting { until, .. } => Some(until),
            Phase::Writing { .. } | Phase::Hanging | Phase::Deaf { .. } => None,
        }
    }

    /// Waits for a request of which nothing has come yet.
    pub(super) fn is_idle(&self) -> bool {
        self.role != Role::Control && matches!(self.phase, Phase::Reading { .. }) && self.input.is_empty()
    }

    /// Waits with the request unread for the command to answer.
    pub(super) fn waits_unread(&self) -> bool {
        matches!(self.phase, Phase::Deaf { answers: true })
    }

    /// Sends these bytes at once, whatever the phase.
    pub(super) fn blurt(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// A command that came in on the control address.
    pub(super) fn take_command(&mut self) -> Option<String> {
        self.command.take()
    }

    /// Sends the answer to a command.
    pub(super) fn answer(&mut self, text: &str) {
        self.output = response(200, text);
        self.phase = Phase::Writing { then: Afterwards::Keep };
    }

    /// Does what can be done now; says how the connection ends when it does.
    pub(super) fn advance(&mut self, ready: bool, now: Instant, idle: Option<Duration>) -> Option<Ending> {
        // Timers first, as in Node.js and most event loops: a request that arrived in the same turn is never read.
        if self.is_idle() && self.deadline(idle).is_some_and(|deadline| now >= deadline) {
            return Some(Ending::Close);
        }
        if ready && matches!(self.phase, Phase::Reading { .. } | Phase::Hanging) {
            match self.asks_to_stay_unread() {
                Some(Unread::Close) => return Some(Ending::Close),
                Some(Unread::Wait) => {
                    self.phase = Phase::Deaf { answers: true };
                    return None;
                }
                Some(Unread::Never) => {
                    self.phase = Phase::Deaf { answers: false };
                    return None;
                }
                None => {}
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
                    let keep = if *keep { Afterwards::Keep } else { Afterwards::End(Ending::Close) };
                    if let Some(ending) = self.act(action.clone(), keep, now) {
                        return Some(ending);
                    }
                }
                Phase::Writing { then } => {
                    let then = *then;
                    match (self.write(), then) {
                        (Ok(false), _) => return None,
                        (Ok(true), Afterwards::Keep) => self.phase = Phase::Reading { since: now },
                        (Ok(true), Afterwards::Hang) => self.phase = Phase::Hanging,
                        (Ok(true), Afterwards::ResetSoon) => {
                            self.phase =
                                Phase::Waiting { until: now + READ_BY_THEN, action: Action::Reset, keep: false };
                            return None;
                        }
                        (Ok(true), Afterwards::End(ending)) => return Some(ending),
                        (Err(()), _) => return Some(Ending::Close),
                    }
                }
                Phase::Deaf { .. } | Phase::Hanging => return None,
            }
        }
    }

    /// Does what the request asks for; says how the connection ends when it does.
    fn act(&mut self, action: Action, keep: Afterwards, now: Instant) -> Option<Ending> {
        let (bytes, then) = match action {
            Action::Reset => return Some(Ending::Reset),
            Action::Close => return Some(Ending::Close),
            Action::Hang => (Vec::new(), Afterwards::Hang),
            Action::Answer(bytes) => (bytes, keep),
            Action::AnswerAndClose(bytes) => (bytes, Afterwards::End(Ending::Close)),
            Action::AnswerAndReset(bytes) => (bytes, Afterwards::ResetSoon),
            Action::AnswerAndHang(bytes) => (bytes, Afterwards::Hang),
            Action::Shutdown => {
                let _ = self.stream.shutdown(Shutdown::Write);
                (Vec::new(), Afterwards::Hang)
            }
            Action::Crash(signal) => {
                prefork::crash(signal);
                return Some(Ending::Close);
            }
            Action::CrashInChild(signal) => {
                // The parent's descriptor is closed; that is no end of the connection.
                prefork::crash_in_child(signal);
                return Some(Ending::Close);
            }
            Action::Exit(status) => std::process::exit(status),
            Action::DeafExit(status) => prefork::exit_deaf(status),
            Action::BlockedExit(status) => prefork::exit_blocked(status),
            Action::EatMemory => {
                prefork::eat_memory();
                return Some(Ending::Close);
            }
            Action::Starve(what, then) => {
                starve(what);
                return self.act(*then, keep, now);
            }
            Action::SiblingCrash => {
                prefork::kill_siblings(Signal::SIGSEGV);
                self.phase = Phase::Waiting { until: now + BESIDE, action: Action::Close, keep: false };
                return None;
            }
        };
        self.output = bytes;
        self.phase = Phase::Writing { then };
        None
    }

    /// Whether what waits in the kernel asks to be left unread.
    fn asks_to_stay_unread(&self) -> Option<Unread> {
        let mut start = [0; 64];
        let count = self.stream.peek(&mut start).ok()?;
        let start = &start[..count];
        if !self.input.is_empty() || self.role == Role::Control {
            return None;
        }
        let wishes = [(b" /unread", Unread::Close), (b" /early/", Unread::Wait), (b" /ignore", Unread::Never)];
        wishes.into_iter().find(|(wish, _)| find(start, &wish[..]).is_some()).map(|(_, unread)| unread)
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
        if let Role::Script(target) = &self.role {
            if self.input.is_empty() {
                return false;
            }
            let behaviour = Behaviour::of(target);
            self.input.clear();
            self.phase = Phase::Waiting { until: now + behaviour.delay, action: behaviour.action, keep: false };
            return true;
        }
        // Not a method: as servers of plain HTTP answer to a TLS handshake.
        if self.input.first().is_some_and(|byte| !byte.is_ascii_uppercase()) {
            self.input.clear();
            let action = Action::AnswerAndClose(response(400, "plain HTTP is spoken here\n"));
            self.phase = Phase::Waiting { until: now, action, keep: false };
            return true;
        }
        let Some(end) = find(&self.input, b"\r\n\r\n") else { return false };
        let head = String::from_utf8_lossy(&self.input[..end]).to_ascii_lowercase();
        let length: usize = field(&head, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
        if self.input.len() < end + 4 + length {
            return false;
        }
        let original = String::from_utf8_lossy(&self.input[..end]).into_owned();
        self.input.drain(..end + 4 + length);
        let target = original.split(' ').nth(1).unwrap_or("/").to_owned();
        if self.role == Role::Control {
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

/// Takes every descriptor that is left, for a while.
fn starve(what: Wanted) {
    let mut held: Vec<OwnedFd> = Vec::new();
    loop {
        let opened = match what {
            Wanted::Sockets => UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map(OwnedFd::from),
            Wanted::Files => File::open("/dev/null").map(OwnedFd::from),
        };
        match opened {
            Ok(one) => held.push(one),
            Err(_) => break,
        }
    }
    std::thread::spawn(move || {
        std::thread::sleep(STARVES);
        drop(held);
    });
}
