//! Requests without an upstream's address: names that are not resolved, unix sockets, the cache; and what stands between an upstream's
//! fate and the client.

use probe502::model::{
    net::{Address, Errno},
    nginx::UpstreamConnection,
    process::Pid,
    socket::{Socket, Syscall},
};

use super::{
    Became, CONNECTING, CaseKind, Dress, Inner, MS, Play, Report, STATUSES_WITH_A_PAGE, State, US, UnixFate, Words,
    fate,
};
use crate::worlds::nginx::READING_HEADER;
use crate::worlds::truth::Death;

/// The server behind the unix socket.
const SOCKET: &str = "unix:/run/app.sock";

impl Play<'_> {
    /// The resolver has no address.
    pub(super) fn unresolved(&mut self, t: u64, worker: usize, inner: &Inner) {
        let at = t + self.stage.tape.dice.between(MS, 900 * MS);
        let at = self.stage.turn(worker, at);
        inner.complain(&mut self.stage.tape, at, Words::new("%V could not be resolved (%i: %s)", None, ""), "", None);
        let report = Some(Report::without_attempt("dns-failure"));
        self.finish(worker, inner, at + 3 * US, (502, true), Vec::new(), report);
    }

    /// nginx answers from its cache what an upstream said earlier.
    pub(super) fn cached(&mut self, t: u64, worker: usize, inner: &Inner) {
        let report = Some(Report::without_attempt("cached-502"));
        self.finish(worker, inner, t + 5 * US, (502, false), Vec::new(), report);
    }

    /// An attempt over a unix socket, of which neither packets nor TCP tell.
    pub(super) fn unix(&mut self, t: u64, worker: usize, inner: &mut Inner, fate: UnixFate) {
        let errno = match fate {
            UnixFate::Missing => Some(Errno::ENOENT),
            UnixFate::Refused => Some(Errno::ECONNREFUSED),
            UnixFate::Denied => Some(Errno::EACCES),
            UnixFate::Full => Some(Errno::EAGAIN),
            UnixFate::Closed | UnixFate::Reset | UnixFate::Silent | UnixFate::Died { .. } => None,
        };
        let fd = self.stage.workers.get_mut(worker).map_or(3, crate::worlds::nginx::Worker::descriptor);
        inner.connection_made(&mut self.stage.tape, t + 500, fd);
        let address = Address::parse(SOCKET);
        let pid = self.stage.worker_pid(worker);
        let peer = Some(SOCKET.to_owned());
        let told = |became: Became| vec![(SOCKET.to_owned(), became)];
        let report = Some(Report { kind: CaseKind::Incident, causes: fate.causes(), about: None });
        if let Some(errno) = errno {
            let call = Syscall::Connect { fd, address, result: Err(errno), socket: None };
            self.stage.tape.call(t + US, pid, call);
            let level = if errno == Errno::ENOENT || errno == Errno::EACCES { 3 } else { 4 };
            let words = Words { level, ..Words::new("connect() to %V failed", Some(errno), CONNECTING) };
            let at = t + 3 * US;
            inner.complain(&mut self.stage.tape, at, words, SOCKET, None);
            inner.states.push(State { peer, status: Some(502), span: (t, at), ..State::default() });
            let became = if fate == UnixFate::Refused { Became::Refused } else { Became::LocalError };
            return self.finish(worker, inner, at + 3 * US, (502, true), told(became), report);
        }
        // The kernel gives the numbers of inodes in order.
        self.inodes += 2;
        let inode = self.inodes;
        let socket = Some(Socket::over_unix(inode));
        self.stage.tape.call(t + US, pid, Syscall::Connect { fd, address, result: Ok(0), socket: socket.clone() });
        let later = t + self.stage.tape.dice.between(50 * US, 200 * MS);
        let broken = self.unix_server(t + 2 * US, later, inode, fate);
        let (status, words, became) = match fate {
            UnixFate::Silent => {
                let words = Words::new("upstream timed out", Some(Errno::ETIMEDOUT), READING_HEADER);
                (504, words, Became::TimeoutRead)
            }
            UnixFate::Reset | UnixFate::Died { read: false, .. } => {
                (502, Words::new("recv() failed", Some(Errno::ECONNRESET), READING_HEADER), Became::Reset)
            }
            _ => (502, Words::new("upstream prematurely closed connection", None, READING_HEADER), Became::Closed),
        };
        let at = self.stage.turn(worker, broken);
        let upstream = UpstreamConnection { fd, requests: Some(1), unix: true, socket };
        inner.complain_of(&mut self.stage.tape, at, words, SOCKET, Some(upstream));
        let state =
            State { peer, status: Some(status), span: (t, at), connected: Some(t), sent: 210, ..State::default() };
        inner.states.push(state);
        self.finish(worker, inner, at + 3 * US, (status, true), told(became), report);
    }

    /// The server behind the unix socket takes a connection, and does this with it at `later`. Returns when nginx knows.
    fn unix_server(&mut self, t: u64, later: u64, inode: u64, fate: UnixFate) -> u64 {
        const MASTER: Pid = Pid(5_000);
        const COMMAND: &str = "uwsgi";
        let taken = t + self.stage.tape.dice.between(2 * US, 40 * US);
        self.servers += 2;
        let (holder, sibling) = (Pid(MASTER.0 + self.servers), Pid(MASTER.0 + self.servers + 1));
        // A server that accepts and hands the connection on to its worker.
        let handed_on = self.stage.tape.dice.chance(200);
        let acceptor = if handed_on { MASTER } else { holder };
        let (socket, command) = (Some(Socket::over_unix(inode + 1)), COMMAND.to_owned());
        let call = Syscall::Accept { listener: 5, result: Ok(9), socket, peer: Some(inode), command };
        self.stage.tape.call(taken, acceptor, call);
        if self.stage.tape.dice.chance(300) {
            let moment =
                (later.saturating_sub(900 * US).max(taken + US), later.saturating_sub(20 * US).max(taken + 5 * US));
            let death = Death::Killed(9);
            fate::tell_end(&mut self.stage, moment, (sibling, COMMAND), MASTER, death, Some(Vec::new()));
        }
        match fate {
            UnixFate::Silent => t + self.stage.read_timeout,
            UnixFate::Died { death, .. } => {
                let exit = later + self.stage.tape.dice.between(30 * US, 4 * MS);
                fate::tell_end(&mut self.stage, (later, exit), (holder, COMMAND), MASTER, death, Some(vec![inode]));
                exit + self.stage.tape.dice.between(10 * US, 2 * MS)
            }
            _ => later,
        }
    }

    /// The end of a request: its status, and whether nginx makes a special response of it; its line, its truth.
    pub(super) fn finish(
        &mut self,
        worker: usize,
        inner: &Inner,
        t: u64,
        (status, special): (u16, bool),
        attempts: Vec<(String, Became)>,
        case: Option<Report>,
    ) {
        let mut ending = Ending { at: t, status, case };
        let mut now = t;
        if inner.parent.is_some() {
            return self.finish_subrequest(worker, inner, special, attempts, ending);
        }
        if special {
            let hides = self.dress == Dress::HiddenPage && STATUSES_WITH_A_PAGE.contains(&status);
            now = inner.special_response(&mut self.stage.tape, now, status, hides.then_some(200));
            if hides || (self.dress == Dress::ErrorPage && STATUSES_WITH_A_PAGE.contains(&status)) {
                now = inner.redirect(&mut self.stage.tape, now, if hides { 200 } else { status });
                ending.at = now;
            }
            if hides {
                ending = ending.hidden();
            }
        }
        now = inner.send_header(&mut self.stage.tape, now, ending.status);
        self.leave(worker, inner, now, attempts, ending);
    }

    /// The subrequest of `auth_request` is over: the main request goes on with its page, or ends with 500.
    fn finish_subrequest(
        &mut self,
        worker: usize,
        inner: &Inner,
        special: bool,
        attempts: Vec<(String, Became)>,
        mut ending: Ending,
    ) {
        let main = inner.main();
        let mut now = ending.at;
        if special {
            now = inner.special_response(&mut self.stage.tape, now, ending.status, None);
        }
        now = inner.send_header(&mut self.stage.tape, now, ending.status) + 2 * US;
        ending.at = now;
        if ending.status != 200 {
            ending.status = 500;
            now = main.special_response(&mut self.stage.tape, now, 500, None);
        }
        now = main.send_header(&mut self.stage.tape, now, ending.status);
        if let Some(nginx) = self.stage.workers.get_mut(worker) {
            nginx.release(inner.key.pointer, now);
        }
        self.leave(worker, &main, now, attempts, ending);
    }

    fn leave(&mut self, worker: usize, inner: &Inner, t: u64, attempts: Vec<(String, Became)>, ending: Ending) {
        let status = ending.status;
        inner.access_line(&mut self.stage.tape, t + 10 * US, status, self.stage.world.detailed_access_log);
        let stays = status != 500 && self.stage.tape.dice.chance(700);
        self.stage.depart(worker, t + 20 * US, inner, stays);
        self.tell(inner, Some(ending.at), ending.case, Some(status), attempts);
    }
}

/// How a request ends for the client.
struct Ending {
    /// When that was decided.
    at: u64,
    status: u16,
    case: Option<Report>,
}

impl Ending {
    /// The client sees 200. What nginx never complained of is then nobody's business.
    fn hidden(self) -> Self {
        let complained = |report: &Report| report.causes != ["configured-502"];
        let case = self.case.filter(complained).map(|report| Report { kind: CaseKind::NearMiss, ..report });
        Self { status: 200, case, ..self }
    }
}
