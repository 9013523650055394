//! What kernel, wire and nginx show of each fate of an attempt.

mod answers;
mod connected;

use probe502::model::{
    attempt::Outcome as Became,
    net::Errno,
    packet::{Content, IcmpPacket},
    process::{Ending, Pid, ProcessEvent, Role, Sender, Untaken},
    socket::{Syscall, TcpState},
};

use super::{
    nginx::{CONNECTING, HANDSHAKING, HOST, Inner, READING, READING_HEADER, State, Words},
    stage::{MS, SECOND, Stage, US},
    tape::{NGINX_NETNS, OTHER_NETNS},
    tcp::{Connection, STEP},
    truth::{Answer, Attempt, Death, Fate, Lost, Place, Race, Read, Shortage},
};

/// How an attempt ended for nginx.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A header was accepted.
    Answered {
        /// Its status.
        status: u16,
    },
    /// It failed; nginx may try another peer.
    Failed {
        /// The status if it was the last.
        status: u16,
    },
    /// It failed, and nginx never tries another peer.
    Fatal,
    /// The header was passed on at this moment, then it broke.
    Broken {
        /// By a reset.
        reset: bool,
    },
}

/// The end of an attempt.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How.
    pub ended: Ended,
    /// nginx's moment: in a turn of its own.
    pub at: u64,
    /// Something of the request was sent.
    pub sent: bool,
    /// The contract's word for what became of it.
    pub became: Became,
    /// The connection, where it goes on.
    pub connection: Option<Connection>,
}

const RECEIVE_FAILED: Words = Words::new("recv() failed", Some(Errno::ECONNRESET), READING_HEADER);
const CLOSED: Words = Words::new("upstream prematurely closed connection", None, READING_HEADER);
const READ_TIMEOUT: Words = Words::new("upstream timed out", Some(Errno::ETIMEDOUT), READING_HEADER);
const CONNECT_TIMEOUT: Words = Words::new("upstream timed out", Some(Errno::ETIMEDOUT), CONNECTING);

const fn connect_failed(errno: Errno) -> Words {
    Words::new("connect() failed", Some(errno), CONNECTING)
}

/// The contract's word for what nginx complains of.
fn became(words: Words) -> Became {
    match (words.text, words.errno, words.action) {
        ("connect() failed", Some(Errno::ECONNREFUSED), _) => Became::Refused,
        ("connect() failed", Some(Errno::EHOSTUNREACH), _)
        | ("connect() to %V failed", Some(Errno::ENETUNREACH), _) => Became::Unreachable,
        ("connect() failed", Some(Errno::ETIMEDOUT), _) | ("upstream timed out", _, CONNECTING) => {
            Became::TimeoutConnect
        }
        ("connect() failed" | "recv() failed", Some(Errno::ECONNRESET), _) | ("writev() failed", ..) => Became::Reset,
        ("connect() failed" | "connect() to %V failed" | "socket() failed", ..) => Became::LocalError,
        (_, _, HANDSHAKING) => Became::TlsFailed,
        ("upstream sent too big header" | "upstream sent invalid header", ..) => Became::BadResponse,
        ("upstream timed out", ..) => Became::TimeoutRead,
        ("upstream prematurely closed connection", ..) => Became::Closed,
        _ => Became::Unknown,
    }
}

/// An attempt while it is played.
struct Scene<'s, 'w> {
    stage: &'s mut Stage<'w>,
    inner: &'s mut Inner,
    worker: usize,
    peer: usize,
    state: State,
    connection: Connection,
    bytes: u32,
}

/// Plays an attempt from `t` on, which lies in a turn of the worker. `kept` is the connection it reuses.
pub fn play(
    stage: &mut Stage<'_>,
    inner: &mut Inner,
    worker: usize,
    attempt: Attempt,
    t: u64,
    kept: Option<Connection>,
) -> Outcome {
    let peer = stage.world.peer_index(attempt.peer);
    let name = stage.world.address(peer).to_string();
    let state = State { peer: Some(name.clone()), span: (t, t), ..State::default() };
    let bytes = u32::try_from(stage.tape.dice.between(80, 900)).unwrap_or(80);
    if attempt.fate == Fate::NginxFiles {
        return no_files(stage, inner, worker, &name, t);
    }
    if attempt.fate == Fate::NginxConnections {
        return answers::no_connections(stage, inner, &name, t);
    }
    let fresh = kept.is_none();
    let connection = kept.unwrap_or_else(|| stage.connection(worker, peer, t));
    if fresh {
        inner.connection_made(&mut stage.tape, t + 500, connection.fd);
    }
    let mut scene = Scene { stage, inner, worker, peer, state, connection, bytes };
    scene.connection.requests += 1;
    match attempt.fate {
        Fate::Refused { back_ms } => scene.refused(t, back_ms),
        Fate::Rejected(answer) => scene.rejected(t, answer),
        Fate::Unanswered { lost, by_kernel } => scene.unanswered(t, lost, by_kernel),
        Fate::QueueFull { established: false } => scene.queue_full(t),
        Fate::QueueFull { established: true } => scene.last_step_lost(t),
        Fate::UpstreamFiles { stuck } => scene.upstream_files(t, stuck),
        Fate::Race(race) => scene.race(t, race),
        Fate::Local(shortage) => scene.not_connected(t, shortage),
        Fate::TlsClosed => scene.tls(t, true),
        Fate::TlsCertificate => scene.tls(t, false),
        Fate::Stalled => scene.stalled(t, fresh),
        fate => scene.connected(t, fresh, fate),
    }
}

/// `socket()` fails.
fn no_files(stage: &mut Stage<'_>, inner: &mut Inner, worker: usize, name: &str, t: u64) -> Outcome {
    let family = if name.starts_with('[') { 10 } else { 2 };
    let pid = stage.worker_pid(worker);
    stage.tape.call(t + US, pid, Syscall::Socket { family, error: Errno::EMFILE });
    let words = Words { level: 2, ..Words::new("socket() failed", Some(Errno::EMFILE), CONNECTING) };
    inner.complain(&mut stage.tape, t + 5 * US, words, name, None);
    inner.states.push(State { span: (t, t), ..State::default() });
    Outcome { ended: Ended::Fatal, at: t + 10 * US, sent: false, became: Became::LocalError, connection: None }
}

impl Scene<'_, '_> {
    /// nginx notices, complains and closes.
    fn fails(mut self, noticed: u64, words: Words, status: u16) -> Outcome {
        let at = self.stage.turn(self.worker, noticed);
        self.fails_in_turn(at, words, status)
    }

    fn fails_in_turn(&mut self, at: u64, words: Words, status: u16) -> Outcome {
        let name = self.state.peer.clone().unwrap_or_default();
        self.inner.complain(&mut self.stage.tape, at, words, &name, Some(&self.connection));
        self.connection.nginx_close(&mut self.stage.tape, at + 6 * US);
        self.stage.port_free(&self.connection, at + 40 * MS);
        self.state.status = Some(status);
        self.state.span.1 = at;
        self.inner.states.push(self.state.clone());
        let sent = self.state.sent > 0;
        Outcome { ended: Ended::Failed { status }, at: at + 20 * US, sent, became: became(words), connection: None }
    }

    fn netns_of_upstream(&self) -> u32 {
        if self.stage.world.place(self.peer) == Place::Neighbour { OTHER_NETNS } else { NGINX_NETNS }
    }

    fn is_here(&self) -> bool {
        self.stage.world.place(self.peer).is_here()
    }

    fn latency(&mut self, low_us: u64, high_us: u64) -> u64 {
        self.stage.tape.dice.between(low_us * US, high_us * US)
    }

    fn refused(mut self, t: u64, back_ms: Option<u32>) -> Outcome {
        let from = t;
        let mut now = self.connection.connect(&mut self.stage.tape, t + 2 * US);
        if self.is_here() {
            now = self.connection.refuse(&mut self.stage.tape, now);
            self.connection.connect_returned(&mut self.stage.tape, now);
        } else {
            self.connection.connect_returned(&mut self.stage.tape, now);
            now = self.connection.refuse(&mut self.stage.tape, now + 2 * self.connection.one_way());
        }
        if let Some(server) = self.stage.servers.get_mut(self.peer) {
            let back = back_ms.map_or(u64::MAX, |ms| now + u64::from(ms) * MS);
            let needed = server.needed.iter().filter(|at| **at > now).min().copied().unwrap_or(u64::MAX);
            server.down.push((from, back.min(needed.saturating_sub(1))));
        }
        let noticed = now + self.latency(2, 60);
        self.fails(noticed, connect_failed(Errno::ECONNREFUSED), 502)
    }

    fn rejected(mut self, t: u64, answer: Answer) -> Outcome {
        let netns = self.netns_of_upstream();
        let here = self.is_here();
        let mut now = self.connection.connect(&mut self.stage.tape, t + 2 * US);
        let dropped = |scene: &mut Self, at: u64| {
            if here {
                let syn = scene.connection.syn();
                scene.stage.tape.drop(at, "NETFILTER_DROP", netns, syn);
            }
        };
        if answer == Answer::Reset {
            dropped(&mut self, now);
            if !here {
                self.connection.connect_returned(&mut self.stage.tape, now);
                now += 2 * self.connection.one_way();
            }
            now = self.connection.reset_of_syn(&mut self.stage.tape, now + STEP);
            if here {
                self.connection.connect_returned(&mut self.stage.tape, now);
            }
            let noticed = now + self.latency(2, 60);
            return self.fails(noticed, connect_failed(Errno::ECONNREFUSED), 502);
        }
        let (icmp, errno) = self.icmp(answer);
        dropped(&mut self, now);
        if here && self.stage.connect_timeout < SECOND {
            self.stage.tape.icmp(now + STEP, icmp);
            self.connection.connect_returned(&mut self.stage.tape, now + 3 * STEP);
            // nginx gives up before the SYN is sent again.
            let at = t + self.stage.connect_timeout;
            return self.fails(at, CONNECT_TIMEOUT, 504);
        }
        if here {
            // The answer comes while connect() holds the socket: a soft error only. The next SYN, from the timer, meets a hard one.
            self.stage.tape.icmp(now + STEP, icmp.clone());
            self.connection.connect_returned(&mut self.stage.tape, now + 3 * STEP);
            now += SECOND + self.latency(0, 8_000);
            self.connection.repeat_syn(&mut self.stage.tape, now);
            dropped(&mut self, now + STEP);
        } else {
            self.connection.connect_returned(&mut self.stage.tape, now);
            now += 2 * self.connection.one_way();
        }
        self.stage.tape.icmp(now + 2 * STEP, icmp);
        self.connection.give_up(&mut self.stage.tape, now + 3 * STEP, errno);
        let noticed = now + self.latency(8, 60);
        let level = if errno == Errno::EACCES { 2 } else { 4 };
        self.fails(noticed, Words { level, ..connect_failed(errno) }, 502)
    }

    fn icmp(&self, answer: Answer) -> (IcmpPacket, Errno) {
        let v6 = self.connection.remote.is_ipv6();
        let (icmp_type, code, errno) = match (answer, v6) {
            (Answer::Prohibited, false) => (3, 13, Errno::EHOSTUNREACH),
            (Answer::HostUnreachable, false) => (3, 1, Errno::EHOSTUNREACH),
            (_, false) => (3, 3, Errno::ECONNREFUSED),
            (Answer::Prohibited, true) => (1, 1, Errno::EACCES),
            (Answer::HostUnreachable, true) => (1, 3, Errno::EHOSTUNREACH),
            (_, true) => (1, 4, Errno::ECONNREFUSED),
        };
        let about = (self.connection.local, self.connection.remote);
        let from = match (answer, v6) {
            // A router says so; a filter answers with the address that was asked.
            (Answer::HostUnreachable, false) => [10, 255, 255, 1].into(),
            (Answer::HostUnreachable, true) => [0xfd00, 0, 0, 0, 0, 0, 0, 1].into(),
            _ => self.connection.remote.ip(),
        };
        (IcmpPacket { from, icmp_type, code, v6, about, syn: None }, errno)
    }

    fn unanswered(mut self, t: u64, lost: Lost, by_kernel: bool) -> Outcome {
        let (netns, here) = (self.netns_of_upstream(), self.is_here());
        let filtered_going_out = lost == Lost::SynHere && !here;
        self.connection.mute(filtered_going_out);
        let lose = |scene: &mut Self, at: u64| match lost {
            Lost::Beyond => {}
            Lost::SynHere => {
                let netns = if here { netns } else { NGINX_NETNS };
                let syn = scene.connection.syn();
                scene.stage.tape.drop(at, "NETFILTER_DROP", netns, syn);
            }
            Lost::AnswerHere => {
                let back = at + if here { STEP } else { 2 * scene.connection.one_way() };
                scene.connection.answer_syn(&mut scene.stage.tape, back);
                let answer = scene.connection.syn_ack();
                scene.stage.tape.drop(back + STEP, "NETFILTER_DROP", NGINX_NETNS, answer);
            }
        };
        let now = self.connection.connect(&mut self.stage.tape, t + 2 * US);
        lose(&mut self, now);
        self.connection.connect_returned(&mut self.stage.tape, now + 4 * STEP);
        let slow = self.latency(0, 8_000);
        let gives_up = if by_kernel { 3 * SECOND + slow } else { self.stage.connect_timeout };
        for after in [SECOND, 3 * SECOND] {
            if after < gives_up && !(by_kernel && after > SECOND) {
                let at = now + after + slow;
                self.connection.repeat_syn(&mut self.stage.tape, at);
                lose(&mut self, at + 2 * STEP);
            }
        }
        if by_kernel {
            let at = now + gives_up;
            self.connection.give_up(&mut self.stage.tape, at, Errno::ETIMEDOUT);
            return self.fails(at + 10 * US, connect_failed(Errno::ETIMEDOUT), 502);
        }
        let at = now + gives_up + self.latency(10, 900);
        self.fails(at, CONNECT_TIMEOUT, 504)
    }

    fn queue_full(self, t: u64) -> Outcome {
        let until = t + self.stage.connect_timeout + 50 * MS;
        if let Some(server) = self.stage.servers.get_mut(self.peer) {
            server.full.push((t, until));
        }
        self.unanswered(t, Lost::Beyond, false)
    }

    fn last_step_lost(mut self, t: u64) -> Outcome {
        let (netns, here) = (self.netns_of_upstream(), self.is_here());
        let line = self.inner.line.clone();
        let mut now = self.connection.connect(&mut self.stage.tape, t + 2 * US);
        if !here {
            self.connection.connect_returned(&mut self.stage.tape, now);
            now += 2 * self.connection.one_way();
        }
        now = self.connection.half_open(&mut self.stage.tape, now);
        let ack = self.connection.last_step();
        if here {
            self.stage.tape.drop(now, "TCP_LISTEN_OVERFLOW", netns, ack);
            self.connection.connect_returned(&mut self.stage.tape, now + STEP);
        }
        self.state.connected = Some(now);
        let begin = self.stage.turn(self.worker, now + 3 * STEP);
        self.state.sent = u64::from(self.bytes);
        self.connection.request_lost(&mut self.stage.tape, begin, self.bytes, &line, HOST);
        let gives_up = begin + self.stage.read_timeout;
        let mut after = 210 * MS;
        while begin + after < gives_up {
            let again = self.connection.repeat_request(&mut self.stage.tape, begin + after, self.bytes, &line, HOST);
            if here {
                self.stage.tape.drop(begin + after + 2 * STEP, "TCP_LISTEN_OVERFLOW", netns, again);
            }
            after *= 2;
        }
        if let Some(server) = self.stage.servers.get_mut(self.peer) {
            server.full.push((t, gives_up + 50 * MS));
        }
        self.fails(gives_up, READ_TIMEOUT, 504)
    }
}

/// A process of a server ends, as this host's kernel tells it. Returns when its files are closed.
pub fn end_process(stage: &mut Stage<'_>, peer: usize, t: u64, process: (Pid, &str), death: Death) -> u64 {
    let master = stage.servers.get(peer).map_or(Pid(1), |server| server.master);
    let until_exit = stage.tape.dice.between(30 * US, 4 * MS);
    let until_closed = stage.tape.dice.between(10 * US, 2 * MS);
    let gone = t + until_exit + until_closed;
    if stage.world.place(peer).is_here() {
        tell_end(stage, (t, t + until_exit), process, master, death, None);
    }
    gone
}

/// What this host's kernel tells of the end of a process that something is done to at `t`, and that has ended at `exit`. `held`: the
/// connections over unix sockets that it still has then.
pub fn tell_end(
    stage: &mut Stage<'_>,
    (t, exit): (u64, u64),
    (pid, command): (Pid, &str),
    master: Pid,
    death: Death,
    held: Option<Vec<u64>>,
) {
    let killer = if stage.tape.dice.chance(500) {
        Sender { pid: master, command: command.to_owned() }
    } else {
        Sender { pid: Pid(4_242), command: "kill".to_owned() }
    };
    let own = Sender { pid, command: command.to_owned() };
    let by_signal = |signal: u8| Ending::Signal { signal, core: matches!(signal, 6 | 11) };
    let (signal, sender, how) = match death {
        Death::Fault => (Some(11), None, by_signal(11)),
        Death::Abort => (Some(6), Some(own), by_signal(6)),
        Death::Killed(signal) => (Some(signal), Some(killer), by_signal(signal)),
        Death::Asked(signal, code) => (Some(signal), Some(killer), Ending::Exit(code)),
        Death::Oom => {
            stage.tape.process(t, ProcessEvent::OomVictim { victim: pid, role: Role::Upstream });
            (Some(9), None, by_signal(9))
        }
        Death::Exit(code) => (None, None, Ending::Exit(code)),
    };
    if let Some(signal) = signal {
        let event = ProcessEvent::Signalled { target: pid, role: Role::Upstream, signal: u32::from(signal), sender };
        stage.tape.process(t + 2 * US, event);
    }
    if let Some(connections) = held {
        let event = ProcessEvent::Held { pid, role: Role::Upstream, connections, all: true };
        stage.tape.process(exit - US, event);
    }
    let event = ProcessEvent::Exited {
        pid,
        role: Role::Upstream,
        command: command.to_owned(),
        how,
        untaken: Untaken::default(),
    };
    stage.tape.process(exit, event);
}

/// The connection breaks after its header was passed on, at `t`. Returns when nginx complained of it.
pub fn break_off(
    stage: &mut Stage<'_>,
    inner: &Inner,
    worker: usize,
    mut connection: Connection,
    t: u64,
    reset: bool,
) -> u64 {
    let name = connection.remote.to_string();
    let known = if reset {
        connection.upstream_abort(&mut stage.tape, t, "TCP_STATE")
    } else {
        connection.upstream_close(&mut stage.tape, t)
    };
    let at = stage.turn(worker, known + 3 * US);
    connection.nginx.read_all();
    let words = if reset {
        Words::new("recv() failed", Some(Errno::ECONNRESET), READING)
    } else {
        Words::new("upstream prematurely closed connection", None, READING)
    };
    inner.complain(&mut stage.tape, at, words, &name, Some(&connection));
    connection.nginx_close(&mut stage.tape, at + 6 * US);
    stage.port_free(&connection, at + 40 * MS);
    at
}
