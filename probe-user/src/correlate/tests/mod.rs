//! The correlator against small worlds made by hand. What the kernel and nginx say, and in which order, is taken from records made live
//! on Linux 6.18 with nginx 1.22.1.

mod beside;
mod crowded;
mod ends;
mod exact;
mod folding;
mod lines;
mod lists;
mod logged;
mod looks;
mod many;
mod reuse;
mod translated;
mod unasked;

use std::net::SocketAddr;

use super::{Correlator, Question, Settings, limits::Limits};
use crate::model::{
    attempt::{Link, Outcome},
    case::{Case, CaseKind, Origin},
    coverage::{Coverage, Sensor, Sight},
    event::{Body, Event, EventId, Source},
    host::{Configuration, HostFact, NginxInstance, UpstreamGroup, UpstreamServer},
    net::{Address, Errno},
    nginx::{
        AccessLine, ErrorLine, NginxAttempt, NginxEvent, NginxLog, NginxStatus, RequestKey, StatusPoint,
        UpstreamConnection,
    },
    packet::{Content, PacketBody, PacketEvent, PacketRef, TcpFlags, TcpHeader, TcpPacket},
    process::{Ending, Pid, ProcessEvent, Role, Untaken},
    socket::{Socket, SocketChange, SocketEvent, SocketPointer, TcpCounters, TcpState},
    time::{At, Moment, WallClock},
};

const WORKER: Pid = Pid(812);
const MS: u64 = 1_000_000;

struct World {
    correlator: Correlator,
    now: u64,
    events: u64,
    /// Bytes nginx says it sent to the peer.
    sent: u64,
    /// What the client has got by the time nginx complains.
    answered: Option<u16>,
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn socket(local: &str, upstream: &str, state: TcpState) -> Socket {
    Socket {
        pointer: Some(SocketPointer(0xffff_8880_0000_1000)),
        cookie: None,
        netns: Some(7),
        local: Some(address(local)),
        remote: Some(address(upstream)),
        state,
        error: None,
        soft_error: None,
        retransmits: 0,
        tcp: Some(TcpCounters {
            bytes_acked: 0,
            bytes_received: 0,
            bytes_sent: 0,
            write_seq: 100,
            snd_una: 100,
            snd_nxt: 100,
            rcv_nxt: 200,
            copied_seq: 200,
            rtt_us: 40,
            total_retransmits: 0,
            since_sent_us: None,
            since_received_us: None,
        }),
        accept_queue: None,
    }
}

fn key(pointer: u64) -> RequestKey {
    RequestKey { worker: WORKER, pointer }
}

impl World {
    fn new() -> Self {
        Self::limited(Limits::default())
    }

    fn limited(limits: Limits) -> Self {
        let settings = Settings { limits, clock: WallClock { offset_ns: 0 }, statuses: vec![500, 502, 503, 504] };
        let mut world =
            Self { correlator: Correlator::new(settings), now: 1_000_000_000, events: 0, sent: 0, answered: None };
        for sensor in Sensor::ALL {
            world
                .tell(Source::Probe, Body::Coverage(Coverage::Sensor { sensor: *sensor, sight: Sight::On, why: None }));
        }
        world
    }

    fn without_uprobes() -> Self {
        let mut world = Self::new();
        for sensor in [Sensor::NginxFunctions, Sensor::NginxStatuses] {
            world.tell(Source::Probe, Body::Coverage(Coverage::Sensor { sensor, sight: Sight::Off, why: None }));
        }
        world
    }

    fn without_headers() -> Self {
        let mut world = Self::new();
        let off = Coverage::Sensor { sensor: Sensor::NginxStatuses, sight: Sight::Off, why: None };
        world.tell(Source::Probe, Body::Coverage(off));
        world
    }

    fn tell(&mut self, source: Source, body: Body) -> EventId {
        self.now += 10_000;
        self.events += 1;
        let id = EventId(self.events);
        self.correlator.handle(&Event { id, at: At::exactly(Moment(self.now)), source, body });
        id
    }

    fn wait(&mut self, ns: u64) {
        self.now += ns;
        self.correlator.advance(Moment(self.now));
    }

    fn cases(&mut self) -> Vec<Case> {
        self.wait(1_000 * MS);
        std::iter::from_fn(|| self.correlator.poll_case()).collect()
    }

    fn state(&mut self, socket: Socket, from: TcpState) {
        let event = SocketEvent { change: SocketChange::State { from }, socket, by: None };
        self.tell(Source::Kernel, Body::from(event));
    }

    /// A server's process ends.
    fn exited(&mut self, pid: Pid, how: Ending) {
        let (role, command, untaken) = (Role::Upstream, "gunicorn".to_owned(), Untaken::default());
        self.tell(Source::Kernel, Body::Process(ProcessEvent::Exited { pid, role, command, how, untaken }));
    }

    fn reset_received(&mut self, socket: Socket) {
        let event = SocketEvent { change: SocketChange::ResetReceived, socket, by: None };
        self.tell(Source::Kernel, Body::from(event));
    }

    /// A refused connection as the kernel tells it: RST sent for lack of a socket, RST received, state, all inside `connect()`.
    fn refused(&mut self, local: &str, upstream: &str, syn: u32) -> Socket {
        let answered = TcpHeader {
            source: address(local),
            destination: address(upstream),
            sequence: syn,
            acknowledgement: 0,
            flags: TcpFlags(2),
            ttl: 64,
        };
        let nobody = Socket {
            pointer: None,
            local: Some(address(upstream)),
            remote: Some(address(local)),
            ..socket(local, upstream, TcpState::Closed)
        };
        let change = SocketChange::ResetSent { reason: Some("NO_SOCKET".into()), answered: Some(answered) };
        self.tell(Source::Kernel, Body::from(SocketEvent { change, socket: nobody, by: None }));
        let asking = |state| {
            let mut socket = socket(local, upstream, state);
            socket.tcp = socket.tcp.map(|tcp| TcpCounters {
                write_seq: syn + 1,
                snd_una: syn,
                rcv_nxt: 0,
                copied_seq: 0,
                ..tcp
            });
            socket
        };
        self.reset_received(asking(TcpState::SynSent));
        let closed = Socket { error: Some(Errno::ECONNREFUSED), ..asking(TcpState::Closed) };
        self.state(closed.clone(), TcpState::SynSent);
        closed
    }

    /// The connection of nginx's request 41 is refused, and nginx complains.
    fn refuse(&mut self) {
        let closed = self.refused("127.0.0.1:40000", "127.0.0.1:8000", 1);
        let said = ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING);
        self.log((1, 41), said, "127.0.0.1:8000", Some(connection(1, closed)));
    }

    /// nginx complains: message, errno, action.
    fn log(
        &mut self,
        (request, number): (u64, u64),
        said: (&str, Option<Errno>, &str),
        peer: &str,
        upstream: Option<UpstreamConnection>,
    ) {
        let (format, errno, action) = said;
        let log = NginxLog {
            worker: WORKER,
            request: Some(key(request)),
            parent: None,
            number: Some(number),
            client_requests: Some(1),
            level: 4,
            errno,
            format: format.into(),
            status: self.answered,
            action: Some(action.into()),
            peer: Some(peer.into()),
            upstream,
            client: Some(address("10.0.0.7:51234")),
            request_line: None,
            host: None,
        };
        self.tell(Source::Kernel, Body::Nginx(NginxEvent::Log(Box::new(log))));
    }

    fn status(
        &mut self,
        point: StatusPoint,
        request: u64,
        number: u64,
        status: u16,
        attempts: &[(&str, u16, Option<u64>)],
    ) {
        let total = u32::try_from(attempts.len()).unwrap();
        self.say_status(point, key(request), number, status, total);
        for (index, attempt) in (0..).zip(attempts) {
            self.say_attempt(key(request), (index, total), *attempt);
        }
    }

    /// A status without its list of attempts.
    fn say_status(&mut self, point: StatusPoint, request: RequestKey, number: u64, status: u16, attempts: u32) {
        self.say_status_of(None, (point, status), request, number, attempts);
    }

    /// `parent`: of a subrequest.
    fn say_status_of(
        &mut self,
        parent: Option<RequestKey>,
        (point, status): (StatusPoint, u16),
        request: RequestKey,
        number: u64,
        attempts: u32,
    ) {
        let said = NginxStatus {
            point,
            worker: request.worker,
            request,
            parent,
            number: Some(number),
            client_requests: Some(1),
            status,
            overriding: None,
            upstream_begun: None,
            request_line: Some("GET /cart?x=1 HTTP/1.1".into()),
            host: Some("shop.example".into()),
            client: Some(address("10.0.0.7:51234")),
            attempts: Some(attempts),
        };
        self.tell(Source::Kernel, Body::Nginx(NginxEvent::Status(Box::new(said))));
    }

    /// An entry of the list.
    fn say_attempt(
        &mut self,
        request: RequestKey,
        (index, total): (u32, u32),
        (peer, status, header_ms): (&str, u16, Option<u64>),
    ) {
        let attempt = NginxAttempt {
            request,
            index,
            total,
            peer: (!peer.is_empty()).then(|| peer.to_owned()),
            status: (status != 0).then_some(status),
            connect_ms: header_ms,
            header_ms,
            response_ms: Some(1),
            bytes_sent: self.sent,
            bytes_received: 0,
        };
        self.tell(Source::Kernel, Body::Nginx(NginxEvent::Attempt(attempt)));
    }

    fn answer(&mut self, request: u64, number: u64, status: u16, attempts: &[(&str, u16, Option<u64>)]) {
        self.status(StatusPoint::SpecialResponse, request, number, status, attempts);
        self.status(StatusPoint::SendHeader, request, number, status, attempts);
    }

    fn upstream(&mut self, text: &str) {
        let configuration = Configuration { upstreams: vec![Address::Ip(address(text))], ..Configuration::default() };
        self.instance(configuration);
    }

    /// Who listens there was looked up: nobody.
    fn nobody_listens(&mut self, text: &str) {
        let (upstream, netns) = (address(text), Some(7).filter(|_| address(text).ip().is_loopback()));
        let (listeners, nearby) = (Vec::new(), Vec::new());
        let fact = HostFact::Listeners { upstream, netns, local: true, listeners, nearby };
        self.tell(Source::Probe, Body::from(fact));
    }

    fn instance(&mut self, configuration: Configuration) {
        let instance = NginxInstance {
            master: Pid(800),
            workers: vec![WORKER],
            version: Some("1.22.1".into()),
            netns: Some(7),
            configuration: Some(configuration.into()),
        };
        self.tell(Source::Probe, Body::from(HostFact::Nginx(instance)));
    }
}

fn connection(requests: u64, socket: Socket) -> UpstreamConnection {
    UpstreamConnection { fd: 13, requests: Some(requests), unix: false, socket: Some(socket) }
}

const CONNECTING: &str = "connecting to upstream";
