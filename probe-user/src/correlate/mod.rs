//! From one ordered stream of events to cases. Pure: time is an argument, and nothing is read but what it is given.
//!
//! `handle(event)`, `advance(to)`, then `poll_question()` and `poll_case()` until empty.

mod answered;
pub mod attempts;
mod build;
mod connections;
pub mod crowded;
mod due;
mod failures;
pub mod flows;
mod folding;
mod host;
mod led;
pub mod limits;
pub mod lines;
pub mod memory;
mod newest;
pub mod notable;
mod questions;
pub mod requests;
mod sensors;
mod served;
mod status;
mod stops;
mod telling;
mod translated;
mod tuple;
mod unheard;
mod unix;
pub mod wire;
mod written;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use answered::Answered;
use connections::{Connections, Made};
use flows::Flows;
use folding::Folding;
use limits::{CLOSE_DELAY_NS, FAILURE_LINGER_NS, LOG_CLOSE_DELAY_NS, Limits, MILLISECOND_NS, SECOND_NS};
use lines::Lines;
use notable::Notable;
use requests::{OpenRequest, Requests};
use stops::Stops;
use telling::Telling;
use translated::Translations;
use unix::UnixConnections;
use wire::Wires;
use written::{Heard, Written};

pub use host::Question;

use crate::model::{
    case::{Case, CaseKind, EarlierFailure, Folded, Origin},
    complaint::Message,
    coverage::{Sensor, Sight},
    event::{Body, Event, EventId},
    net::Address,
    nginx::{ErrorLine, NginxEvent, NginxLog, NginxStatus, RequestKey},
    packet::{Content, PacketBody},
    process::{Pid, ProcessEvent},
    time::{At, Moment, WallClock},
};

/// What the correlator is told before it begins.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bounds.
    pub limits: Limits,
    /// For the cases' names.
    pub clock: WallClock,
    /// Statuses that make an incident.
    pub statuses: Vec<u16>,
}

/// A decided failure that waits for its late evidence.
#[derive(Debug)]
struct Decided {
    kind: CaseKind,
    origin: Origin,
    status: Option<u16>,
    at: At,
    by: Event,
    close_at: Moment,
    /// Nothing is decided before this was heard: nginx's list of attempts follows the status.
    request: OpenRequest,
    /// What nginx said of the request itself, latest first.
    statuses: Vec<NginxStatus>,
    /// A line of the error log about it.
    line: Option<ErrorLine>,
    /// Known from the logs only.
    from_lines: Option<lines::LineGroup>,
    /// Known from packets only.
    from_wire: Option<wire::WireGroup>,
}

/// The state.
#[derive(Debug)]
pub struct Correlator {
    settings: Settings,
    now: Moment,
    flows: Flows,
    requests: Requests,
    lines: Lines,
    wires: Wires,
    notable: Notable,
    stops: Stops,
    unix: UnixConnections,
    connections: Connections,
    translations: Translations,
    /// Workers that were heard from inside. As many as there are workers; a host's pids are bounded.
    speaking: BTreeSet<Pid>,
    /// Error lines of requests that nginx itself tells about: they have the whole text.
    written: Written,
    heard: Heard,
    host: host::Host,
    sensors: BTreeMap<Sensor, (Sight, Option<String>)>,
    losses: VecDeque<(At, Option<Sensor>, u64, String)>,
    /// Until when sensors saw less than they do now.
    dimmer: VecDeque<(Moment, Sensor, Sight, Option<String>)>,
    /// How often something was told to be lost.
    losses_told: u64,
    decided: VecDeque<Decided>,
    /// Those of them that nginx itself told of, where it tells them apart.
    deciding: BTreeMap<(RequestKey, u64, u64), u32>,
    folding: Folding,
    failures: VecDeque<EarlierFailure>,
    answered: Answered,
    /// Whose attempts each worker is telling. As many as there are workers.
    telling: BTreeMap<Pid, Telling>,
    /// The newest subrequest of each worker that was answered 502 by a server, of a request of which nothing else was heard. `auth_request`
    /// complains of it in the same turn of nginx's loop; else it is nobody's failure.
    passed: BTreeMap<Pid, OpenRequest>,
    last_case: u64,
    put_off: Option<EventId>,
    /// What was decided before this moment was told by the run that this one takes up.
    told_before: Moment,
    /// The last whole second at whose beginning old things were forgotten.
    swept: Moment,
    /// The last millisecond at which ended connections were forgotten.
    forgotten: Moment,
    finished: bool,
    /// Nothing is known of what came after this moment: the stream ended there.
    ended: Option<Moment>,
}

impl Correlator {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let limits = settings.limits;
        Self {
            settings,
            now: Moment(0),
            flows: Flows::new(limits),
            requests: Requests::new(limits),
            lines: Lines::default(),
            wires: Wires::default(),
            notable: Notable::new(limits),
            stops: Stops::default(),
            unix: UnixConnections::default(),
            connections: Connections::default(),
            translations: Translations::default(),
            speaking: BTreeSet::new(),
            written: Written::default(),
            heard: Heard::default(),
            host: host::Host::default(),
            sensors: BTreeMap::new(),
            losses: VecDeque::new(),
            dimmer: VecDeque::new(),
            losses_told: 0,
            decided: VecDeque::new(),
            deciding: BTreeMap::new(),
            folding: Folding::default(),
            failures: VecDeque::new(),
            answered: Answered::default(),
            telling: BTreeMap::new(),
            passed: BTreeMap::new(),
            last_case: 0,
            put_off: None,
            told_before: Moment(0),
            swept: Moment(0),
            forgotten: Moment(0),
            finished: false,
            ended: None,
        }
    }

    /// This address is an upstream.
    pub fn add_upstream(&mut self, address: std::net::SocketAddr) {
        self.flows.add_upstream(address);
    }

    /// Takes the next event.
    pub fn handle(&mut self, event: &Event) {
        self.now = self.now.max(event.at.latest);
        if let (true, Body::Packet(packet)) = (self.wires.is_on(), &event.body) {
            // What it is of follows it.
            self.wires.packet(event, packet);
            return;
        }
        // Who serves an address, and who cannot, is known by the address where it is served.
        self.host.handle(event);
        self.notable.handle(event);
        self.stops.handle(event);
        let (canonical, seen_at) = self.translations.canonical(event, &mut self.flows);
        let event = canonical.as_ref();
        if let (Some(id), Some(to)) = (self.flows.handle(event), seen_at) {
            self.flows.led(id, event.id, to);
        }
        self.unix.handle(event);
        self.wonder(event);
        match &event.body {
            Body::Nginx(nginx) => self.nginx(event, nginx),
            Body::Coverage(coverage) => self.coverage(event.at, coverage),
            Body::Host(fact) => {
                self.host.learn(event, fact);
                self.learn_translation(event, fact);
                for address in self.host.new_upstreams() {
                    self.flows.add_upstream(address);
                }
                if let crate::model::host::HostFact::OpenConnection { worker, local, upstream } = &**fact {
                    self.flows.already_open(*worker, *local, *upstream, event);
                }
            }
            Body::Process(ProcessEvent::Forked { parent, child, .. }) => self.host.forked(*parent, *child, event.id),
            Body::ErrorLine(line) if self.heard.takes(event, line) || self.speaks(Pid(line.pid)) => {
                self.written.keep(event, line);
            }
            Body::ErrorLine(line) => self.lines.error_line(event, line),
            Body::AccessLine(line) => self.lines.access_line(event, line, self.tells_alone(line)),
            Body::Packet(packet) => {
                if let PacketBody::Tcp(tcp) = &packet.body
                    && let Content::HttpStatus { code, .. } = tcp.content
                {
                    let from = tcp.header.source;
                    if self.settings.statuses.contains(&code) && !self.flows.is_upstream(from) {
                        self.lines.status_packet(event, code, tcp.header.destination);
                    }
                }
            }
            Body::Wire(wire) => {
                self.wires.handle(event, wire);
                self.lines.whole = self.wires.is_on();
            }
            Body::Socket(_) | Body::Drop(_) | Body::Process(_) | Body::Syscall(_) => {}
        }
    }

    /// Tells the time. Cases whose wait is over can be polled.
    pub fn advance(&mut self, to: Moment) {
        self.now = self.now.max(to);
        if self.sight(Sensor::NginxFunctions) != Sight::On {
            self.decide_lines();
        }
        self.decide_wires();
        // At whole milliseconds and seconds, and as if it had been done just then: what is remembered does not depend on how often time is
        // told, which at depth deep is for every packet.
        let tick = Moment(self.now.ns() / MILLISECOND_NS * MILLISECOND_NS);
        if tick > self.forgotten || self.flows.are_too_many() {
            self.forgotten = tick.max(self.forgotten);
            self.flows.forget(self.forgotten);
        }
        let second = Moment(self.now.ns() / SECOND_NS * SECOND_NS);
        if second > self.swept {
            self.swept = second;
            self.folding.tell(second);
            self.flows.fill();
            self.requests.forget(second);
            self.notable.forget(second);
            self.lines.forget(second);
            while self.failures.front().is_some_and(|f| second.since_ns(f.at) > FAILURE_LINGER_NS) {
                self.failures.pop_front();
            }
            while self.losses.front().is_some_and(|(at, ..)| second.since_ns(at.latest) > FAILURE_LINGER_NS) {
                self.losses.pop_front();
            }
            while self.dimmer.front().is_some_and(|(until, ..)| second.since_ns(*until) > FAILURE_LINGER_NS) {
                self.dimmer.pop_front();
            }
        }
    }

    /// No more events will come; waits may still be told to be over, but nobody looked meanwhile.
    pub fn end(&mut self) {
        self.ended.get_or_insert(self.now);
    }

    /// The end of the stream: everything decided becomes ready now.
    pub fn finish(&mut self) {
        if self.sight(Sensor::NginxFunctions) != Sight::On {
            self.lines.hurry();
            self.decide_lines();
        }
        self.wires.hurry();
        self.decide_wires();
        self.finished = true;
    }

    /// The next failures that were counted, and not put together one by one.
    pub fn poll_folded(&mut self) -> Option<Folded> {
        if self.finished && self.decided.is_empty() {
            self.folding.tell(Moment(u64::MAX));
        }
        self.folding.poll()
    }

    /// The next thing somebody should look up on the host; its answer comes back as an event.
    pub fn poll_question(&mut self) -> Option<Question> {
        self.host.poll()
    }

    /// When [`Correlator::advance`] has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Moment> {
        let lines = self.lines.next_due(LOG_CLOSE_DELAY_NS).filter(|_| self.sight(Sensor::NginxFunctions) != Sight::On);
        self.next_case().into_iter().chain(lines).chain(self.wires.next_due()).min()
    }

    /// Connections remembered.
    #[must_use]
    pub fn flows_known(&self) -> usize {
        self.flows.known()
    }

    /// Events that were forgotten although they might have explained a failure.
    #[must_use]
    pub const fn crowded_out(&self) -> u64 {
        self.notable.crowded_out()
    }

    fn sight(&self, sensor: Sensor) -> Sight {
        self.sensors.get(&sensor).map_or(Sight::Off, |(sight, _)| *sight)
    }

    /// Whether this worker's failures are heard inside it: then its log lines tell nothing new, also where another nginx is mute.
    fn speaks(&self, worker: Pid) -> bool {
        self.sight(Sensor::NginxFunctions) == Sight::On || self.speaking.contains(&worker)
    }

    fn nginx(&mut self, event: &Event, nginx: &NginxEvent) {
        match nginx {
            NginxEvent::Log(log) => {
                self.speaking.insert(log.worker);
                self.log(event, log);
            }
            NginxEvent::Status(status) => {
                self.speaking.insert(status.worker);
                self.status(event, status);
            }
            NginxEvent::Attempt(attempt) => self.attempt(event.id, attempt),
            NginxEvent::Connection { request: Some(key), number, fd, .. } => {
                let made = Made { at: event.at.latest, number: *number, fd: *fd, told_in: event.id };
                self.connections.keep(*key, made);
            }
            NginxEvent::Connection { .. } => {}
        }
    }

    fn log(&mut self, event: &Event, log: &NginxLog) {
        let Some(complaint) = requests::complaint(log) else { return };
        if self.sight(Sensor::NginxFunctions) != Sight::On {
            self.heard.keep(event, log, complaint.message);
        }
        self.ask_about(log, complaint.message, complaint.phase);
        if let Some(socket) = log.upstream.as_ref().and_then(|connection| connection.socket.as_ref()) {
            self.flows.keep(socket);
        }
        let Some(key) = log.parent.or(log.request) else { return };
        if let Some(peer) = &log.peer
            && attempts::ends_attempt(complaint.message)
            && let Some(Address::Ip(address)) = Address::parse(peer)
        {
            self.flows.add_upstream(address);
        }
        let truncated = complaint.phase.is_after_header();
        let identity = (log.number, log.client_requests);
        if complaint.message == Message::AuthRequest {
            // It says less than what was complained of before it.
            if self.requests.get_mut(key).is_some_and(|open| !open.complaints.is_empty()) {
                return;
            }
            let passed = self.passed.remove(&key.worker);
            if let Some(passed) = passed.filter(|passed| passed.key == key && passed.identity == identity) {
                self.requests.put(passed);
            }
        }
        let open = self.requests.entry(key, identity, event.at.latest);
        open.heard.push(event.id);
        open.subrequest |= log.parent.is_some();
        let socket = log.upstream.as_ref().and_then(|connection| connection.socket.as_ref());
        if let Some(accept) = socket.and_then(|socket| self.unix.accept_of(socket)) {
            open.heard.push(accept.id);
            open.accepts.push(accept.clone());
        }
        open.complaints.push((event.clone(), log.clone(), complaint));
        if truncated {
            // The header was passed on: no status will follow that could decide it.
            let request = self.requests.take(key, identity);
            if let Some(request) = request {
                self.decide(event.clone(), request, CaseKind::NearMiss, Origin::Nginx, log.status, None);
            }
        }
    }

    fn decide(
        &mut self,
        by: Event,
        request: OpenRequest,
        kind: CaseKind,
        origin: Origin,
        status: Option<u16>,
        said: Option<NginxStatus>,
    ) {
        // The moment nginx decided is that of its special response; the header follows in the same call.
        let (at, by) = match (&request.special, request.redirected) {
            (Some((event, _)), false) => (event.at, event.clone()),
            _ => (by.at, by),
        };
        let mut statuses: Vec<NginxStatus> = said.into_iter().collect();
        statuses.extend(request.special.iter().map(|(_, status)| status.clone()));
        let close_at = self.now.max(at.latest).plus_ns(CLOSE_DELAY_NS);
        if let Some(identity) = identity_of(request.key, request.identity) {
            *self.deciding.entry(identity).or_default() += 1;
        }
        self.decided.push_back(Decided {
            kind,
            origin,
            status,
            at,
            by,
            close_at,
            request,
            statuses,
            line: None,
            from_lines: None,
            from_wire: None,
        });
    }

    fn close(&mut self, decided: &mut Decided) -> Option<Case> {
        if decided.from_lines.is_none() && !decided.statuses.is_empty() {
            let status = decided.status.unwrap_or(0);
            // What does not begin like HTTP is relayed as it is: the client gets no status then.
            decided.status = decided.status.filter(|status| *status >= 100);
            (decided.kind, decided.origin) = requests::decide(&decided.request, status, &self.settings.statuses)?;
        }
        if self.folds(decided) {
            return None;
        }
        let lines: Vec<Option<ErrorLine>> = decided
            .request
            .complaints
            .iter()
            .map(|(event, log, complaint)| self.written.of(event, log, complaint).cloned())
            .collect();
        for ((_, _, complaint), line) in decided.request.complaints.iter_mut().zip(&lines) {
            if let Some(line) = line {
                complaint.text.clone_from(&line.message);
            }
        }
        // A subrequest's attempts have the connections that were made for it.
        let of = decided.request.told_by.unwrap_or(decided.request.key);
        let number = decided.request.identity.0;
        let from = decided.request.began_after(decided.at.latest);
        decided.request.connections = self.connections.of(of, number, from, decided.at.latest);
        decided.line = lines.into_iter().flatten().next();
        if decided.at.latest < self.told_before {
            return None;
        }
        let id = build::name(self.settings.clock, decided.at.latest, self.last_case);
        let case = build::case(self, id, decided);
        if decided.kind == CaseKind::NearMiss && attempts::nothing_was_missing(&case.attempts) {
            return None;
        }
        self.remember(&case);
        Some(case)
    }
}

/// What tells a request of nginx from every other while the worker lives.
fn identity_of(key: RequestKey, identity: (Option<u64>, Option<u64>)) -> Option<(RequestKey, u64, u64)> {
    Some((key, identity.0?, identity.1?))
}

#[cfg(test)]
mod tests;
