//! The correlator against small worlds made by hand. What the kernel and nginx say, and in which order, is taken from records made live
//! on Linux 6.18 with nginx 1.22.1.

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
    process::Pid,
    socket::{Socket, SocketChange, SocketEvent, SocketPointer, TcpCounters, TcpState},
    time::{At, Moment, WallClock},
};

const WORKER: Pid = Pid(812);
const MS: u64 = 1_000_000;

struct World {
    correlator: Correlator,
    now: u64,
    events: u64,
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
        let settings = Settings {
            limits: Limits::default(),
            clock: WallClock { offset_ns: 0 },
            statuses: vec![500, 502, 503, 504],
        };
        let mut world = Self { correlator: Correlator::new(settings), now: 1_000_000_000, events: 0 };
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
        self.tell(Source::Kernel, Body::Socket(event));
    }

    fn reset_received(&mut self, socket: Socket) {
        let event = SocketEvent { change: SocketChange::ResetReceived, socket, by: None };
        self.tell(Source::Kernel, Body::Socket(event));
    }

    /// A refused connection as the kernel tells it: RST sent for lack of a socket, RST received, state, all inside connect().
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
        self.tell(Source::Kernel, Body::Socket(SocketEvent { change, socket: nobody, by: None }));
        self.reset_received(socket(local, upstream, TcpState::SynSent));
        let closed = Socket { error: Some(Errno::ECONNREFUSED), ..socket(local, upstream, TcpState::Closed) };
        self.state(closed.clone(), TcpState::SynSent);
        closed
    }

    fn log(
        &mut self,
        request: u64,
        number: u64,
        format: &str,
        errno: Option<Errno>,
        action: &str,
        peer: &str,
        upstream: Option<UpstreamConnection>,
    ) {
        let log = NginxLog {
            worker: WORKER,
            request: Some(key(request)),
            parent: None,
            number: Some(number),
            client_requests: Some(1),
            level: 4,
            errno,
            format: format.into(),
            action: Some(action.into()),
            peer: Some(peer.into()),
            upstream,
            client: Some(address("10.0.0.7:51234")),
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
        let said = NginxStatus {
            point,
            worker: WORKER,
            request: key(request),
            parent: None,
            number: Some(number),
            client_requests: Some(1),
            status,
            overriding: None,
            request_line: Some("GET /cart?x=1 HTTP/1.1".into()),
            host: Some("shop.example".into()),
            client: Some(address("10.0.0.7:51234")),
            attempts: Some(u32::try_from(attempts.len()).unwrap()),
        };
        self.tell(Source::Kernel, Body::Nginx(NginxEvent::Status(Box::new(said))));
        for (index, (peer, status, header_ms)) in attempts.iter().enumerate() {
            let attempt = NginxAttempt {
                request: key(request),
                index: u32::try_from(index).unwrap(),
                total: u32::try_from(attempts.len()).unwrap(),
                peer: (!peer.is_empty()).then(|| (*peer).to_owned()),
                status: Some(*status),
                connect_ms: *header_ms,
                header_ms: *header_ms,
                response_ms: Some(1),
                bytes_sent: 0,
                bytes_received: 0,
            };
            self.tell(Source::Kernel, Body::Nginx(NginxEvent::Attempt(attempt)));
        }
    }

    fn answer(&mut self, request: u64, number: u64, status: u16, attempts: &[(&str, u16, Option<u64>)]) {
        self.status(StatusPoint::SpecialResponse, request, number, status, attempts);
        self.status(StatusPoint::SendHeader, request, number, status, attempts);
    }

    fn upstream(&mut self, text: &str) {
        let configuration = Configuration { upstreams: vec![Address::Ip(address(text))], ..Configuration::default() };
        self.instance(configuration);
    }

    fn instance(&mut self, configuration: Configuration) {
        let instance = NginxInstance {
            master: Pid(800),
            workers: vec![WORKER],
            version: Some("1.22.1".into()),
            netns: Some(7),
            configuration: Some(configuration),
        };
        self.tell(Source::Probe, Body::Host(HostFact::Nginx(instance)));
    }
}

fn connection(requests: u64, socket: Socket) -> Option<UpstreamConnection> {
    Some(UpstreamConnection { fd: 13, requests: Some(requests), unix: false, socket: Some(socket) })
}

const CONNECTING: &str = "connecting to upstream";

#[test]
fn a_refused_connection_is_one_incident_with_its_flow() {
    let mut world = World::new();
    world.upstream("127.0.0.1:8000");
    let closed = world.refused("127.0.0.1:40000", "127.0.0.1:8000", 1);
    world.log(
        1,
        41,
        "connect() failed",
        Some(Errno::ECONNREFUSED),
        CONNECTING,
        "127.0.0.1:8000",
        connection(1, closed),
    );
    world.answer(1, 41, 502, &[("127.0.0.1:8000", 502, None)]);
    let cases = world.cases();
    let [case] = cases.as_slice() else { panic!("{cases:#?}") };
    assert_eq!(
        (case.kind, case.status, case.origin, case.link),
        (CaseKind::Incident, Some(502), Origin::Nginx, Link::Exact)
    );
    assert_eq!(case.request.method.as_deref(), Some("GET"));
    assert_eq!(case.request.uri.as_deref(), Some("/cart?x=1"));
    assert_eq!(case.request.client, Some(address("10.0.0.7:51234")));
    assert_eq!(case.request.connection, Some(41));
    assert_eq!(case.nginx_version.as_deref(), Some("1.22.1"));
    let [attempt] = case.attempts.as_slice() else { panic!("{:#?}", case.attempts) };
    assert_eq!(
        (attempt.outcome, attempt.errno, attempt.reused),
        (Outcome::Refused, Some(Errno::ECONNREFUSED), Some(false))
    );
    let flow = attempt.flow.one().expect("its flow");
    assert_eq!(flow.local, Some(address("127.0.0.1:40000")));
    assert_eq!(flow.events.len(), 3);
    assert_eq!(flow.resets_received().count(), 1);
    assert_eq!(flow.resets_sent_by_upstream().filter_map(|(.., reason)| reason).collect::<Vec<_>>(), ["NO_SOCKET"]);
}

#[test]
fn the_host_is_asked_who_listens_there() {
    let mut world = World::new();
    world.upstream("127.0.0.1:8000");
    let closed = world.refused("127.0.0.1:40000", "127.0.0.1:8000", 1);
    for _ in 0..3 {
        world.log(
            1,
            41,
            "connect() failed",
            Some(Errno::ECONNREFUSED),
            CONNECTING,
            "127.0.0.1:8000",
            connection(1, closed.clone()),
        );
    }
    let asked: Vec<_> = std::iter::from_fn(|| world.correlator.poll_question()).collect();
    assert_eq!(asked, [Question::Listeners { upstream: address("127.0.0.1:8000"), netns: Some(7) }], "asked once");
}

#[test]
fn a_reused_tuple_is_another_flow() {
    let mut world = World::new();
    world.upstream("127.0.0.1:8000");
    for (request, syn) in [(1, 11), (2, 22)] {
        let closed = world.refused("127.0.0.1:40000", "127.0.0.1:8000", syn);
        world.log(
            request,
            request,
            "connect() failed",
            Some(Errno::ECONNREFUSED),
            CONNECTING,
            "127.0.0.1:8000",
            connection(1, closed),
        );
        world.answer(request, request, 502, &[("127.0.0.1:8000", 502, None)]);
        let cases = world.cases();
        assert_eq!(cases.len(), 1);
        assert_eq!(
            cases[0].attempts[0].flow.one().expect("its flow").events.len(),
            3,
            "events of its own incarnation only"
        );
    }
}

#[test]
fn a_retry_that_hid_a_failure_is_a_near_miss() {
    let mut world = World::new();
    world.upstream("127.0.0.1:8000");
    let closed = world.refused("127.0.0.1:40000", "127.0.0.1:8000", 1);
    world.log(
        1,
        41,
        "connect() failed",
        Some(Errno::ECONNREFUSED),
        CONNECTING,
        "127.0.0.1:8000",
        connection(1, closed),
    );
    world.status(
        StatusPoint::SendHeader,
        1,
        41,
        200,
        &[("127.0.0.1:8000", 502, None), ("127.0.0.1:8001", 200, Some(3))],
    );
    let cases = world.cases();
    let [case] = cases.as_slice() else { panic!("{cases:#?}") };
    assert_eq!((case.kind, case.status), (CaseKind::NearMiss, Some(200)));
    assert_eq!(case.attempts.iter().map(|a| a.outcome).collect::<Vec<_>>(), [Outcome::Refused, Outcome::Ok]);
}

#[test]
fn answers_of_the_application_are_not_gateway_failures() {
    for status in [404, 500, 503, 504] {
        let mut world = World::new();
        world.status(StatusPoint::SendHeader, 1, 41, status, &[("127.0.0.1:8000", status, Some(3))]);
        assert_eq!(world.cases(), [], "{status}");
    }
    // `return 503`, limit_req: nginx made it, and no upstream had to do with it.
    let mut world = World::new();
    world.answer(1, 41, 503, &[]);
    assert_eq!(world.cases(), []);
}

#[test]
fn the_applications_own_502_is_passed_on() {
    let mut world = World::new();
    world.status(StatusPoint::SendHeader, 1, 41, 502, &[("127.0.0.1:8000", 502, Some(3))]);
    let cases = world.cases();
    assert_eq!(cases.len(), 1);
    assert_eq!((cases[0].kind, cases[0].origin), (CaseKind::Incident, Origin::Upstream));
}

#[test]
fn a_failed_attempt_before_the_applications_own_error_is_a_near_miss() {
    let mut world = World::new();
    world.log(1, 41, "connect() failed", Some(Errno::ECONNREFUSED), CONNECTING, "127.0.0.1:8000", None);
    world.status(
        StatusPoint::SendHeader,
        1,
        41,
        503,
        &[("127.0.0.1:8000", 502, None), ("127.0.0.1:8001", 503, Some(3))],
    );
    let cases = world.cases();
    assert_eq!(cases.len(), 1);
    assert_eq!((cases[0].kind, cases[0].origin), (CaseKind::NearMiss, Origin::Upstream));
}

#[test]
fn an_error_page_that_answers_200_is_a_near_miss() {
    let mut world = World::new();
    world.log(1, 41, "connect() failed", Some(Errno::ECONNREFUSED), CONNECTING, "127.0.0.1:8000", None);
    world.status(StatusPoint::SpecialResponse, 1, 41, 502, &[("127.0.0.1:8000", 502, None)]);
    world.status(StatusPoint::Redirect, 1, 41, 502, &[("127.0.0.1:8000", 502, None)]);
    world.status(StatusPoint::SendHeader, 1, 41, 200, &[("127.0.0.1:8000", 502, None)]);
    let cases = world.cases();
    assert_eq!(cases.len(), 1);
    assert_eq!((cases[0].kind, cases[0].status), (CaseKind::NearMiss, Some(200)));
}

#[test]
fn a_blackout_knows_the_failures_that_made_it() {
    let mut world = World::new();
    let server = |name: &str| UpstreamServer {
        name: name.into(),
        addresses: vec![Address::parse(name).unwrap()],
        max_fails: 1,
        fail_timeout_ms: 10_000,
        down: false,
        backup: false,
    };
    let group = UpstreamGroup {
        name: "app".into(),
        servers: vec![server("127.0.0.1:8000"), server("127.0.0.1:8001")],
        ..UpstreamGroup::default()
    };
    let upstreams = group.servers.iter().flat_map(|s| s.addresses.clone()).collect();
    world.instance(Configuration { groups: vec![group], upstreams, ..Configuration::default() });
    for (port, peer) in [("40000", "127.0.0.1:8000"), ("40001", "127.0.0.1:8001")] {
        let closed = world.refused(&format!("127.0.0.1:{port}"), peer, 1);
        world.log(1, 41, "connect() failed", Some(Errno::ECONNREFUSED), CONNECTING, peer, connection(1, closed));
    }
    world.answer(1, 41, 502, &[("127.0.0.1:8000", 502, None), ("127.0.0.1:8001", 502, None)]);
    let first = world.cases();
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].attempts.len(), 2);
    world.correlator.judged(&first[0].id, "127.0.0.1:8001", "upstream-refused");
    world.log(2, 43, "no live upstreams", None, CONNECTING, "app", None);
    world.answer(2, 43, 502, &[("app", 502, None)]);
    let second = world.cases();
    assert_eq!(second.len(), 1);
    assert_eq!(second[0].attempts, [], "nothing was tried");
    let blamed: Vec<_> = second[0].earlier.iter().map(|f| (f.case.clone(), f.peer.as_str(), f.cause)).collect();
    let id = first[0].id.clone();
    assert_eq!(blamed, [(id.clone(), "127.0.0.1:8000", None), (id, "127.0.0.1:8001", Some("upstream-refused"))]);
}

#[test]
fn idle_time_is_read_from_the_socket() {
    let mut world = World::new();
    world.upstream("127.0.0.1:8000");
    let mut reset =
        Socket { error: Some(Errno::ECONNRESET), ..socket("127.0.0.1:40000", "127.0.0.1:8000", TcpState::Closed) };
    if let Some(tcp) = &mut reset.tcp {
        (tcp.since_sent_us, tcp.since_received_us, tcp.bytes_received) = (Some(0), Some(5_000_000), 900);
    }
    world.reset_received(reset.clone());
    world.log(
        1,
        41,
        "recv() failed",
        Some(Errno::ECONNRESET),
        "reading response header from upstream",
        "127.0.0.1:8000",
        connection(15, reset),
    );
    world.answer(1, 41, 502, &[("127.0.0.1:8000", 502, None)]);
    let cases = world.cases();
    let attempt = &cases[0].attempts[0];
    assert_eq!((attempt.reused, attempt.requests_before, attempt.idle_us), (Some(true), Some(14), Some(5_000_000)));
    assert_eq!(attempt.outcome, Outcome::Reset);
}

#[test]
fn foreign_traffic_changes_nothing() {
    let run = |foreign: bool| {
        let mut world = World::new();
        world.upstream("127.0.0.1:8000");
        if foreign {
            // Another program's refused connection to the same upstream, and one to somewhere else.
            world.refused("127.0.0.1:41111", "127.0.0.1:8000", 99);
            world.refused("127.0.0.1:41112", "127.0.0.1:9999", 98);
        } else {
            world.now += 60_000;
            world.events += 6;
        }
        let closed = world.refused("127.0.0.1:40000", "127.0.0.1:8000", 1);
        world.log(
            1,
            41,
            "connect() failed",
            Some(Errno::ECONNREFUSED),
            CONNECTING,
            "127.0.0.1:8000",
            connection(1, closed),
        );
        world.answer(1, 41, 502, &[("127.0.0.1:8000", 502, None)]);
        world
            .cases()
            .into_iter()
            .map(|mut case| {
                for attempt in &mut case.attempts {
                    if let crate::model::attempt::Joined::One(flow) = &mut attempt.flow {
                        flow.id = crate::model::flow::FlowId(0);
                    }
                }
                case
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(run(true), run(false));
}

fn error_line(number: u64, message: &str, errno: Option<Errno>, action: &str, upstream: &str) -> Body {
    Body::ErrorLine(ErrorLine {
        level: "error".into(),
        pid: WORKER.0,
        number: Some(number),
        message: message.into(),
        errno,
        action: Some(action.into()),
        client: Some("10.0.0.7".into()),
        server: Some("lab".into()),
        request: Some("GET /cart HTTP/1.1".into()),
        subrequest: None,
        upstream: Some(upstream.into()),
        host: Some("shop.example".into()),
    })
}

fn access_line(status: u16) -> Body {
    Body::AccessLine(AccessLine {
        client: Some("10.0.0.7".into()),
        request: Some("GET /cart HTTP/1.1".into()),
        status: Some(status),
        number: None,
        client_requests: None,
        pid: None,
        upstream_status: None,
        upstream_address: None,
    })
}

fn answer_packet(client: &str, code: u16) -> Body {
    let header = TcpHeader {
        source: address("10.0.0.1:80"),
        destination: address(client),
        sequence: 1,
        acknowledgement: 1,
        flags: TcpFlags(24),
        ttl: 64,
    };
    let content = Content::HttpStatus { code, line: format!("HTTP/1.1 {code} Bad Gateway") };
    let packet = TcpPacket { header, payload_length: 300, window: 1, ip_id: Some(1), content };
    Body::Packet(PacketEvent { reference: PacketRef(1), netns: Some(7), body: PacketBody::Tcp(packet) })
}

#[test]
fn from_logs_and_packets_alone_the_link_is_inferred() {
    let mut world = World::without_uprobes();
    world.upstream("127.0.0.1:8000");
    world.refused("127.0.0.1:40000", "127.0.0.1:8000", 1);
    world.tell(
        Source::ErrorLog,
        error_line(41, "connect() failed", Some(Errno::ECONNREFUSED), CONNECTING, "http://127.0.0.1:8000/cart"),
    );
    world.tell(Source::Packet, answer_packet("10.0.0.7:51234", 502));
    world.tell(Source::AccessLog, access_line(502));
    let cases = world.cases();
    let [case] = cases.as_slice() else { panic!("{cases:#?}") };
    assert_eq!((case.kind, case.status, case.link), (CaseKind::Incident, Some(502), Link::Inferred));
    assert_eq!(case.request.client, Some(address("10.0.0.7:51234")));
    assert_eq!(case.attempts[0].flow.one().expect("its flow").local, Some(address("127.0.0.1:40000")));
}

#[test]
fn two_answers_that_fit_are_ambiguous_and_none_is_chosen() {
    let mut world = World::without_uprobes();
    world.upstream("127.0.0.1:8000");
    for (number, port) in [(41, 40000), (42, 40001)] {
        world.refused(&format!("127.0.0.1:{port}"), "127.0.0.1:8000", 1);
        world.tell(
            Source::ErrorLog,
            error_line(number, "connect() failed", Some(Errno::ECONNREFUSED), CONNECTING, "http://127.0.0.1:8000/cart"),
        );
    }
    world.tell(Source::Packet, answer_packet("10.0.0.7:51234", 502));
    world.tell(Source::Packet, answer_packet("10.0.0.7:51235", 502));
    world.tell(Source::AccessLog, access_line(502));
    world.tell(Source::AccessLog, access_line(502));
    let cases = world.cases();
    assert_eq!(cases.len(), 2);
    assert_eq!(cases[0].request.client, None);
    assert_eq!(cases[0].request.client_address.as_deref(), Some("10.0.0.7"));
}

#[test]
fn a_masked_failure_is_a_near_miss_from_the_logs_too() {
    let mut world = World::without_uprobes();
    world.tell(
        Source::ErrorLog,
        error_line(41, "connect() failed", Some(Errno::ECONNREFUSED), CONNECTING, "http://127.0.0.1:8000/cart"),
    );
    world.tell(Source::AccessLog, access_line(200));
    let cases = world.cases();
    assert_eq!(cases.len(), 1);
    assert_eq!((cases[0].kind, cases[0].status), (CaseKind::NearMiss, Some(200)));
}
