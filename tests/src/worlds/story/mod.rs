//! A world from its beginning to its end: everything that could be seen of it, and what is true of each request.

mod courses;
mod noise;

use std::collections::BTreeMap;

use probe502::model::{attempt::Outcome as Became, case::CaseKind, nginx::RequestKey, packet::Content, process::Pid};

use super::{
    fate::{self, Ended},
    nginx::{CONNECTING, Inner, State, Words},
    stage::{BEGIN, FIRST, GROUP, Life, MS, SECOND, Server, Stage, US},
    tape::Record,
    tcp::Connection,
    truth::{
        Answer, Attempt, Course, Dress, Fate, ForeignEnd, Lost, Noise, NoiseKind, Place, Race, Read, UnixFate, World,
    },
};

/// What is true of a request.
#[derive(Clone, Debug)]
pub struct Truth {
    /// Its worker and pointer.
    pub key: RequestKey,
    /// `*N`.
    pub number: u64,
    /// The how-manieth on the client's connection.
    pub client_requests: u64,
    /// When it came.
    pub begun: u64,
    /// When its status, or its last failure, was decided; `None`: it had neither.
    pub decided: Option<u64>,
    /// What there is to report about it.
    pub kind: Option<CaseKind>,
    /// The status the client saw.
    pub status: Option<u16>,
    /// The peers tried, in order, and what became of it there.
    pub attempts: Vec<(String, Became)>,
    /// The causes that may be `confirmed` for it; the first is the one that says most.
    pub causes: Vec<&'static str>,
}

/// A world that was played.
#[derive(Clone, Debug)]
pub struct Story {
    /// What could be seen, in order of time.
    pub records: Vec<Record>,
    /// What is true of each request, in order of their beginnings; those that warmed connections up are among them.
    pub truths: Vec<Truth>,
    /// The servers, for questions about the host.
    pub servers: Vec<Server>,
    /// nginx's connections, from when to when.
    pub connections: Vec<Life>,
    /// The world's last moment.
    pub end: u64,
}

impl Attempt {
    /// What can be in the place where it happens: a connection that fails to come about is a fresh one, a kernel that is not ours does
    /// nothing in our namespaces.
    #[must_use]
    pub fn sound(self, world: &World) -> Self {
        let place = world.place(self.peer);
        let fate = match (self.fate, place) {
            // Nothing is lost on the way to oneself: a SYN that is not answered was dropped, or its queue was full.
            (Fate::Unanswered { lost: Lost::Beyond, by_kernel }, Place::Loopback) => {
                Fate::Unanswered { lost: Lost::SynHere, by_kernel }
            }
            (Fate::Rejected(Answer::HostUnreachable), Place::Loopback | Place::Neighbour) => {
                Fate::Rejected(Answer::Prohibited)
            }
            (Fate::Race(Race::FinCrossed), Place::Loopback | Place::Neighbour) => Fate::Race(Race::FinBefore),
            (Fate::Race(Race::Forgotten), Place::Loopback | Place::Neighbour) => Fate::Race(Race::Unread),
            // Nor is a request.
            (Fate::Stalled, Place::Loopback) => Fate::Silent,
            (fate, _) => fate,
        };
        let idle_ms = match fate {
            Fate::Refused { .. }
            | Fate::Rejected(_)
            | Fate::Unanswered { .. }
            | Fate::QueueFull { .. }
            | Fate::NginxFiles
            | Fate::NginxConnections
            | Fate::Local(_)
            | Fate::TlsClosed
            | Fate::TlsCertificate
            | Fate::UpstreamFiles { .. } => None,
            Fate::Race(_) => Some(self.idle_ms.unwrap_or(5_000)),
            _ => self.idle_ms,
        };
        Self { idle_ms, fate, ..self }
    }
}

/// One thing that begins at its time.
enum Job<'w> {
    Warm { request: usize, attempt: usize, peer: usize },
    Request { index: usize, plan: &'w super::truth::Request },
    Noise(Noise),
}

/// Plays a world.
#[must_use]
pub fn play(world: &World) -> Story {
    let mut play = Play {
        stage: Stage::new(world),
        truths: Vec::new(),
        about: Vec::new(),
        kept: BTreeMap::new(),
        disabled: BTreeMap::new(),
        dress: Dress::Plain,
        inodes: 70_000,
        servers: 0,
    };
    play.stage.introduce(BEGIN + MS);
    for (at, job) in jobs(world, &mut play.stage) {
        match job {
            Job::Warm { request, attempt, peer } => play.warm(at, request, attempt, peer),
            Job::Request { index, plan } => play.request(at, index, plan),
            Job::Noise(noise) => play.noise(at, noise),
        }
    }
    for (truth, tried) in play.truths.iter_mut().zip(&play.about) {
        let Some(tried) = tried else { continue };
        let Some(server) = play.stage.servers.get(world.peer_index(tried.attempt.peer)) else { continue };
        truth.causes.extend(tried.circumstances(server));
    }
    let records = play.stage.tape.into_records();
    let end = records.last().map_or(FIRST, |record| record.arrival.at.latest.0) + SECOND;
    Story { records, truths: play.truths, servers: play.stage.servers, connections: play.stage.lives, end }
}

fn jobs<'w>(world: &'w World, stage: &mut Stage<'_>) -> Vec<(u64, Job<'w>)> {
    let mut jobs = Vec::new();
    let mut at = FIRST;
    for (index, plan) in world.requests.iter().enumerate() {
        at += u64::from(plan.gap_ms) * MS + stage.tape.dice.between(0, 999 * US);
        if let Course::Passed(attempts) = &plan.course {
            for (number, attempt) in attempts.iter().enumerate() {
                let attempt = attempt.sound(world);
                if let Some(idle) = attempt.idle_ms {
                    let before = at.saturating_sub(u64::from(idle.max(60)) * MS);
                    let peer = world.peer_index(attempt.peer);
                    jobs.push((before, Job::Warm { request: index, attempt: number, peer }));
                }
            }
        }
        jobs.push((at, Job::Request { index, plan }));
    }
    for noise in &world.noise {
        jobs.push((FIRST + u64::from(noise.at_ms) * MS + stage.tape.dice.between(0, 999 * US), Job::Noise(*noise)));
    }
    jobs.sort_by_key(|(at, _)| *at);
    jobs
}

/// What there is to report about a request.
#[derive(Clone, Debug)]
struct Report {
    kind: CaseKind,
    causes: Vec<&'static str>,
    /// The attempt it is about, and its time.
    about: Option<Tried>,
}

/// An attempt that was made, from when to when.
#[derive(Clone, Copy, Debug)]
struct Tried {
    attempt: Attempt,
    from: u64,
    to: u64,
}

impl Report {
    fn of(kind: CaseKind, tried: Tried) -> Self {
        Self { kind, causes: tried.attempt.true_causes(), about: Some(tried) }
    }

    fn without_attempt(cause: &'static str) -> Self {
        Self { kind: CaseKind::Incident, causes: vec![cause], about: None }
    }
}

impl Tried {
    /// Causes that are true of the attempt because of what its server went through meanwhile.
    fn circumstances(&self, server: &Server) -> Vec<&'static str> {
        let during = |windows: &[(u64, u64)]| windows.iter().any(|(from, to)| *from <= self.to && *to >= self.from);
        let silent = matches!(self.attempt.fate, Fate::Unanswered { lost: Lost::Beyond, .. } | Fate::QueueFull { .. });
        let mut causes = Vec::new();
        if silent && during(&server.full) {
            // Had the SYN come through, there would have been no place for it.
            causes.push("accept-queue-overflow");
        }
        if silent && during(&server.full) && during(&server.out_of_files) {
            // A server that cannot accept is why its queue is full.
            causes.push("fd-exhausted-upstream");
        }
        let filtered = matches!(self.attempt.fate, Fate::Rejected(Answer::Reset | Answer::PortUnreachable));
        if filtered && during(&server.down) {
            // The filter only says what the kernel would have said: nobody listens.
            causes.push("upstream-refused");
        }
        causes
    }
}

struct Play<'w> {
    stage: Stage<'w>,
    truths: Vec<Truth>,
    /// Of which attempt each truth speaks.
    about: Vec<Option<Tried>>,
    /// Connections that wait for the attempt that will reuse them.
    kept: BTreeMap<(usize, usize), Connection>,
    /// Until which second a worker leaves a peer alone.
    disabled: BTreeMap<(usize, usize), u64>,
    /// Of the request that is played.
    dress: Dress,
    /// The last inode of a connection over a unix socket.
    inodes: u64,
    /// The last process of the server behind it.
    servers: u32,
}

/// Those that have an `error_page`, where there is one.
const STATUSES_WITH_A_PAGE: [u16; 3] = [500, 502, 504];

impl Play<'_> {
    fn worker_of(&self, worker: usize) -> usize {
        worker % self.stage.workers.len().max(1)
    }

    /// A request that is served, over a connection that stays open.
    fn warm(&mut self, at: u64, request: usize, attempt: usize, peer: usize) {
        let worker = self.stage.world.requests.get(request).map_or(0, |plan| self.worker_of(plan.worker));
        self.dress = Dress::Plain;
        let t = self.stage.turn(worker, at);
        if self.stage.servers.get(peer).is_some_and(|server| server.is_down(t)) {
            return;
        }
        let mut inner = self.stage.arrive(worker, t, false, "GET");
        inner.passed = true;
        let served = Attempt { peer, idle_ms: None, fate: Fate::Answered(200) };
        let mut connection = self.stage.connection(worker, peer, t);
        inner.connection_made(&mut self.stage.tape, t + 500, connection.fd);
        connection.open(&mut self.stage.tape, t + 2 * US);
        if let Some(server) = self.stage.servers.get_mut(peer) {
            server.needed.push(t + 40 * US + 2 * connection.one_way());
            let holder = server.process(t);
            let accepted = t + 60 * US + 3 * connection.one_way();
            connection.accept(&mut self.stage.tape, accepted, holder);
        }
        let begin = self.stage.turn(worker, t + 80 * US + 4 * connection.one_way());
        let outcome = fate::play(&mut self.stage, &mut inner, worker, served, begin, Some(connection));
        if let (Ended::Answered { status }, Some(connection)) = (outcome.ended, outcome.connection) {
            self.kept.insert((request, attempt), connection);
            self.finish(worker, &inner, outcome.at, (status, false), Vec::new(), None);
        }
    }

    fn request(&mut self, at: u64, index: usize, plan: &super::truth::Request) {
        let worker = self.worker_of(plan.worker);
        let t = self.stage.turn(worker, at);
        let method = if plan.post { "POST" } else { "GET" };
        let mut inner = self.stage.arrive(worker, t, plan.same_client, method);
        self.dress = plan.dress;
        inner.passed = !matches!(plan.course, Course::Returned(_));
        if plan.dress == Dress::Subrequest && matches!(plan.course, Course::Passed(_) | Course::Unix(_)) {
            let pointer = self.stage.workers.get_mut(worker).map_or(0x2000, |worker| worker.pointer(t));
            inner = inner.subrequest(pointer);
        }
        match &plan.course {
            Course::Passed(attempts) => self.passed(t + 2 * US, index, worker, plan.post, &mut inner, attempts),
            Course::Returned(status) => {
                let kind = (*status == 502).then(|| Report::without_attempt("configured-502"));
                let special = self.stage.tape.dice.chance(700);
                self.finish(worker, &inner, t + 5 * US, (*status, special), Vec::new(), kind);
            }
            Course::Unresolved => self.unresolved(t + 2 * US, worker, &inner),
            Course::Cached => self.cached(t + 2 * US, worker, &inner),
            Course::Unix(fate) => self.unix(t + 2 * US, worker, &mut inner, *fate),
            Course::Abandoned { peer } => self.abandoned(t + 2 * US, worker, &mut inner, *peer),
        }
    }

    fn tell(
        &mut self,
        inner: &Inner,
        decided: Option<u64>,
        case: Option<Report>,
        status: Option<u16>,
        attempts: Vec<(String, Became)>,
    ) {
        let (kind, causes, about) =
            case.map_or((None, Vec::new(), None), |report| (Some(report.kind), report.causes, report.about));
        self.about.push(about);
        self.truths.push(Truth {
            key: inner.key,
            number: inner.number,
            client_requests: inner.client_requests,
            begun: inner.begun,
            decided,
            kind,
            status,
            attempts,
            causes,
        });
    }

    fn abandoned(&mut self, t: u64, worker: usize, inner: &mut Inner, peer: usize) {
        let peer = self.stage.world.peer_index(peer);
        if self.stage.servers.get(peer).is_some_and(|server| server.is_down(t)) {
            // There is nothing to wait for; the client goes at once.
            self.tell(inner, None, None, None, Vec::new());
            return;
        }
        let mut connection = self.stage.connection(worker, peer, t);
        connection.requests = 1;
        inner.connection_made(&mut self.stage.tape, t + 500, connection.fd);
        let connected = connection.open(&mut self.stage.tape, t + 2 * US);
        if let Some(server) = self.stage.servers.get_mut(peer) {
            server.needed.push(connected);
            let holder = server.process(t);
            server.done(holder.0, connected + 5 * SECOND);
            connection.accept(&mut self.stage.tape, connected + connection.one_way() + 50 * US, holder);
        }
        let from = self.stage.turn(worker, connected + US);
        let line = inner.line.clone();
        connection.request(&mut self.stage.tape, from, 200, &line, super::nginx::HOST);
        connection.upstream.read_all();
        let away = from + 2 * connection.one_way() + self.stage.tape.dice.between(MS, 200 * MS);
        let at = self.stage.turn(worker, away);
        connection.nginx_close(&mut self.stage.tape, at);
        self.stage.port_free(&connection, at + 100 * MS);
        inner.access_line(&mut self.stage.tape, at + 20 * US, 499, self.stage.world.detailed_access_log);
        self.stage.depart(worker, at + 30 * US, inner, false);
        self.tell(inner, None, None, None, Vec::new());
    }

    fn passed(&mut self, t: u64, index: usize, worker: usize, post: bool, inner: &mut Inner, plan: &[Attempt]) {
        let mut now = t;
        let mut tries = self.stage.servers.len();
        let mut tried = Vec::new();
        let mut told: Vec<(String, Became)> = Vec::new();
        let mut failed: Vec<Tried> = Vec::new();
        for number in 0.. {
            let wanted = plan.get(number).copied();
            let Some(attempt) = self.next_attempt(worker, now, number, &tried, wanted, index) else {
                return self.no_live(worker, inner, now, told, failed.last());
            };
            tried.push(attempt.peer);
            let kept = attempt.idle_ms.and_then(|_| self.kept.remove(&(index, number)));
            let reused = kept.is_some();
            let attempt = Attempt { idle_ms: if reused { attempt.idle_ms } else { None }, ..attempt };
            let outcome = fate::play(&mut self.stage, inner, worker, attempt, now, kept);
            let tried_now = Tried { attempt, from: now, to: outcome.at };
            now = outcome.at;
            let name = self.stage.world.address(attempt.peer).to_string();
            told.push((name, outcome.became));
            match outcome.ended {
                Ended::Answered { status } => {
                    let case = match (status, failed.last()) {
                        (502, _) => Some(Report::of(CaseKind::Incident, tried_now)),
                        (_, Some(last)) => Some(Report::of(CaseKind::NearMiss, *last)),
                        (_, None) => None,
                    };
                    return self.finish(worker, inner, now, (status, false), told, case);
                }
                Ended::Fatal => {
                    let case = Some(Report::of(CaseKind::Incident, tried_now));
                    return self.finish(worker, inner, now, (500, true), told, case);
                }
                Ended::Broken { reset } => {
                    return self.broken(worker, inner, now, reset, outcome.connection, told, tried_now);
                }
                Ended::Failed { status } => {
                    failed.push(tried_now);
                    if self.stage.servers.len() > 1 && self.stage.world.counts_failures {
                        self.disabled.insert((worker, attempt.peer), now / SECOND + 10);
                    }
                    tries = tries.saturating_sub(1) + usize::from(reused && status == 502);
                    if tries == 0 || (post && outcome.sent) {
                        let case = Some(Report::of(CaseKind::Incident, tried_now));
                        return self.finish(worker, inner, now, (status, true), told, case);
                    }
                }
            }
        }
    }

    /// The next attempt nginx makes: as planned if its balancer lets it, at another peer if not; `None`: no peer is left.
    fn next_attempt(
        &mut self,
        worker: usize,
        now: u64,
        number: usize,
        tried: &[usize],
        wanted: Option<Attempt>,
        index: usize,
    ) -> Option<Attempt> {
        let world = self.stage.world;
        let single = self.stage.servers.len() == 1;
        let free = |peer: usize| {
            let disabled = self.disabled.get(&(worker, peer)).is_some_and(|until| now / SECOND <= *until);
            single || (!tried.contains(&peer) && !disabled)
        };
        let planned = wanted.map_or(number, |attempt| attempt.peer);
        let peer = (0..self.stage.servers.len()).map(|n| world.peer_index(planned + n)).find(|peer| free(*peer))?;
        let planned_here = wanted.filter(|attempt| world.peer_index(attempt.peer) == peer);
        let fate = wanted.map_or(Fate::Answered(200), |attempt| attempt.fate);
        let fate = match fate {
            // Another failed attempt and a broken answer would be two things to report of one request.
            Fate::Truncated { .. } if number > 0 => Fate::Answered(200),
            // `auth_request` wants no more than the status, and other statuses are its own business.
            Fate::Truncated { .. } | Fate::Answered(_) if self.dress == Dress::Subrequest => Fate::Answered(200),
            fate => fate,
        };
        let mut attempt = Attempt { peer, idle_ms: planned_here.and_then(|a| a.idle_ms), fate }.sound(world);
        let has_kept = self.kept.contains_key(&(index, number)) && planned_here.is_some();
        if attempt.idle_ms.is_some() && !has_kept {
            // The connection could not be made before (nobody listened), or belongs to another peer.
            attempt.idle_ms = None;
            if let Fate::Race(_) = attempt.fate {
                attempt.fate = Fate::Reset { read: Read::All, header: 0, after_us: 50 };
            }
        }
        let local = matches!(attempt.fate, Fate::NginxFiles | Fate::NginxConnections | Fate::Local(_));
        let connects = attempt.idle_ms.is_none() && !local;
        let filtered =
            matches!(attempt.fate, Fate::Rejected(_) | Fate::Unanswered { lost: Lost::Beyond | Lost::SynHere, .. });
        if connects && self.stage.servers.get(peer).is_some_and(|server| server.is_down(now)) {
            // What stands before the listener works as before.
            if !filtered {
                attempt.fate = Fate::Refused { back_ms: Some(1) };
            }
        } else if connects
            && !matches!(attempt.fate, Fate::Refused { .. })
            && let Some(server) = self.stage.servers.get_mut(peer)
        {
            server.needed.push(now);
        }
        Some(attempt)
    }

    fn no_live(&mut self, worker: usize, inner: &mut Inner, t: u64, told: Vec<(String, Became)>, last: Option<&Tried>) {
        let words = Words::new("no live upstreams", None, CONNECTING);
        inner.complain(&mut self.stage.tape, t + US, words, GROUP, None);
        let state = State { peer: Some(GROUP.to_owned()), status: Some(502), span: (t, t), ..State::default() };
        inner.states.push(state);
        let mut report = Report::without_attempt("no-live-upstreams");
        if let Some(last) = last {
            // After failed attempts the last of them made the peers run out: what is said of it is true of this request too.
            report.causes.extend(last.attempt.true_causes());
            report.about = Some(*last);
        }
        self.finish(worker, inner, t + 5 * US, (502, true), told, Some(report));
    }

    #[expect(clippy::too_many_arguments, reason = "one call; each is a different thing about the one request")]
    fn broken(
        &mut self,
        worker: usize,
        inner: &Inner,
        t: u64,
        reset: bool,
        connection: Option<Connection>,
        told: Vec<(String, Became)>,
        tried: Tried,
    ) {
        let sent = inner.send_header(&mut self.stage.tape, t + 5 * US, 200);
        let later = sent + self.stage.tape.dice.between(300 * US, 400 * MS);
        let Some(connection) = connection else { return };
        let broken = fate::break_off(&mut self.stage, inner, worker, connection, later, reset);
        let over = broken + 30 * US;
        inner.access_line(&mut self.stage.tape, over, 200, self.stage.world.detailed_access_log);
        self.stage.depart(worker, over, inner, false);
        let case = Some(Report::of(CaseKind::NearMiss, tried));
        self.tell(inner, Some(broken), case, Some(200), told);
    }
}
