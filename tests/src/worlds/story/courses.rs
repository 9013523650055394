//! Requests without an upstream's address: names that are not resolved, unix sockets, the cache; and what stands between an upstream's
//! fate and the client.

use probe502::model::{
    net::{Address, Errno},
    socket::Syscall,
};

use super::{
    Became, CONNECTING, CaseKind, Dress, Inner, MS, Play, Report, STATUSES_WITH_A_PAGE, State, US, UnixFate, Words,
};
use crate::worlds::nginx::READING_HEADER;

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
            UnixFate::Closed => None,
        };
        let fd = self.stage.workers.get_mut(worker).map_or(3, crate::worlds::nginx::Worker::descriptor);
        inner.connection_made(&mut self.stage.tape, t + 500, fd);
        let address = Address::parse(SOCKET);
        let result = errno.map_or(Ok(0), Err);
        let pid = self.stage.worker_pid(worker);
        self.stage.tape.call(t + US, pid, Syscall::Connect { fd, address, result, socket: None });
        let (at, words) = if let Some(errno) = errno {
            let level = if errno == Errno::ENOENT || errno == Errno::EACCES { 3 } else { 4 };
            (t + 3 * US, Words { level, ..Words::new("connect() to %V failed", Some(errno), CONNECTING) })
        } else {
            let later = t + self.stage.tape.dice.between(50 * US, 200 * MS);
            let words = Words::new("upstream prematurely closed connection", None, READING_HEADER);
            (self.stage.turn(worker, later), words)
        };
        inner.complain(&mut self.stage.tape, at, words, SOCKET, None);
        let became = match fate {
            UnixFate::Closed => Became::Closed,
            UnixFate::Refused => Became::Refused,
            _ => Became::LocalError,
        };
        let sent = if fate == UnixFate::Closed { 210 } else { 0 };
        let peer = Some(SOCKET.to_owned());
        inner.states.push(State { peer, status: Some(502), span: (t, at), sent, ..State::default() });
        let report = Some(Report::without_attempt(fate.cause()));
        self.finish(worker, inner, at + 3 * US, (502, true), vec![(SOCKET.to_owned(), became)], report);
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
                now = inner.redirect(&mut self.stage.tape, now, status);
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
