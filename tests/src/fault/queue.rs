//! A listener that is alive and does not accept: its accept queue is full.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

use super::Fault;
use crate::client::Connection;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::lab::Lab;
use crate::line::Outcome;
use crate::process::{Process, Start, Stopped, send, wait_until};
use crate::site::{Plan, Site};
use crate::upstream::own_binary;

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "accept-queue-overflow",
        "the upstream stands still and its accept queue is full: the SYN is ignored",
        |plan| configure(plan, "accept-queue-overflow", FULL),
        |site| {
            let server = StandingStill::start(site.lab(), site.app(FULL))?;
            let exchange = site.connect()?.get("/accept-queue-overflow/cart")?;
            std::thread::sleep(LASTS);
            drop(server);
            let attempt = Attempt::fresh(site.app(FULL), &[Outcome::TimeoutConnect], &[None, Some("ETIMEDOUT")]);
            let expected = Expectation::incident(504, &["accept-queue-overflow"], vec![attempt])
                .logged("upstream timed out (110: Connection timed out) while connecting to upstream")
                .says(&["(3 waiting, limit 2)", "stands still: SIGSTOP from ", "kill -CONT"])
                .never(&["syn-timeout", "firewall-dropped", "fd-exhausted-upstream"]);
            Ok(vec![Witness::new(exchange, expected)?])
        },
    ),
    Fault::new(
        "accept-queue-overflow-abort",
        "the same with tcp_abort_on_overflow=1: a SYN is ignored all the same",
        |plan| configure(plan, "accept-queue-overflow-abort", ABORT),
        |site| {
            site.lab().app().sysctl("ipv4/tcp_abort_on_overflow", "1")?;
            let server = StandingStill::start(site.lab(), site.app(ABORT))?;
            let exchange = site.connect()?.get("/accept-queue-overflow-abort/cart")?;
            std::thread::sleep(LASTS);
            drop(server);
            site.lab().app().sysctl("ipv4/tcp_abort_on_overflow", "0")?;
            let attempt = Attempt::fresh(site.app(ABORT), &[Outcome::TimeoutConnect], &[None, Some("ETIMEDOUT")]);
            let expected = Expectation::incident(504, &["accept-queue-overflow"], vec![attempt])
                .logged("upstream timed out (110: Connection timed out) while connecting to upstream")
                .never(&["syn-timeout", "firewall-dropped", "fd-exhausted-upstream"]);
            Ok(vec![Witness::new(exchange, expected)?])
        },
    ),
    Fault::new(
        "accept-queue-overflow-reset",
        "with tcp_abort_on_overflow=1 the queue fills up while a handshake is under way: its last packet is answered by RST",
        |plan| {
            let pass = format!("proxy_pass http://{};", plan.app(RACE));
            plan.config.location("/accept-queue-overflow-reset/", &[&pass, &format!("proxy_bind {SLOW};")]);
        },
        overtaken,
    ),
    Fault::new(
        "read-timeout-queued",
        "the upstream stands still with room in its queue: connected, and no answer",
        |plan| {
            let pass = format!("proxy_pass http://{};", plan.app(ROOM));
            plan.config.location("/read-timeout-queued/", &[&pass, "proxy_read_timeout 1s;"]);
        },
        |site| {
            let server = StandingStill::with(site.lab(), site.app(ROOM), 1)?;
            let pid = server.process.pid();
            let exchange = site.connect()?.get("/read-timeout-queued/cart")?;
            std::thread::sleep(LASTS);
            drop(server);
            let attempt = Attempt::fresh(site.app(ROOM), &[Outcome::TimeoutRead], &[None, Some("ETIMEDOUT")]);
            let expected = Expectation::incident(504, &["read-timeout"], vec![attempt])
                .logged("upstream timed out (110: Connection timed out) while reading response header")
                .says(&[
                    "Nobody accepted the connection: it lay in the accept queue (2 waiting, limit 2)",
                    &format!("(pid {pid}) stands still: SIGSTOP from "),
                    &format!("(pid {})", std::process::id()),
                    &format!("kill -CONT {pid}"),
                ])
                .never(&["accept-queue-overflow", "syn-timeout", "fd-exhausted-upstream"]);
            Ok(vec![Witness::new(exchange, expected)?])
        },
    ),
    Fault::new(
        "upstream-killed-unaccepted",
        "the upstream stands still, and is killed with the connection still in its accept queue",
        |plan| {
            let pass = format!("proxy_pass http://{};", plan.app(DIES));
            plan.config.location("/upstream-killed-unaccepted/", &[&pass]);
        },
        killed_unaccepted,
    ),
];

const FULL: u16 = 9260;
const ABORT: u16 = 9261;
const ROOM: u16 = 9262;
const RACE: u16 = 9263;
const DIES: u16 = 9264;
/// An address of nginx's whose neighbours wait to learn where it is.
const SLOW: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 50);
/// The queue's limit; it takes one more than that.
const BACKLOG: usize = 2;
/// Whoever reads the queue because of the failure must still find it full.
const LASTS: Duration = Duration::from_millis(500);

fn configure(plan: &mut Plan, name: &str, port: u16) {
    let pass = format!("proxy_pass http://{};", plan.app(port));
    // Long enough for one retransmission, which the kernel sends after a second.
    plan.config.location(&format!("/{name}/"), &[&pass, "proxy_connect_timeout 1500ms;"]);
}

/// The SYN finds room in the queue. The SYN-ACK waits for the neighbour's answer, which is withheld; meanwhile the queue fills up.
fn overtaken(site: &Site<'_>) -> Result<Vec<Witness>> {
    let (proxy, app) = (site.lab().proxy(), site.lab().app());
    // An address of the loopback is not told to neighbours when this is set.
    proxy.sysctl("ipv4/conf/proxy-a/arp_ignore", "1")?;
    proxy.ip_batch(&format!("addr replace {SLOW}/32 dev lo\n"))?;
    app.sysctl("ipv4/tcp_abort_on_overflow", "1")?;
    let address = site.app(RACE);
    let server = StandingStill::with(site.lab(), address, BACKLOG)?;
    let mut client = site.connect()?;
    client.send("GET", "/accept-queue-overflow-reset/cart", b"")?;
    std::thread::sleep(Duration::from_millis(150));
    let _last = app.inside(|| begin(address))?;
    std::thread::sleep(Duration::from_millis(50));
    proxy.sysctl("ipv4/conf/proxy-a/arp_ignore", "0")?;
    let exchange = client.receive()?;
    std::thread::sleep(LASTS);
    drop(server);
    app.sysctl("ipv4/tcp_abort_on_overflow", "0")?;
    let attempt = Attempt::fresh(address, &[Outcome::Reset], &[Some("ECONNRESET")]);
    let expected = Expectation::incident(502, &["accept-queue-overflow"], vec![attempt])
        .logged("(104: Connection reset by peer) while ")
        .never(&["upstream-reset", "upstream-refused", "network-reset", "fd-exhausted-upstream"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

/// Nobody has accepted the connection when its listener goes with the process.
fn killed_unaccepted(site: &Site<'_>) -> Result<Vec<Witness>> {
    let server = StandingStill::with(site.lab(), site.app(DIES), 0)?;
    let pid = server.process.pid();
    let mut client = site.connect()?;
    client.send("GET", "/upstream-killed-unaccepted/cart", b"")?;
    std::thread::sleep(Duration::from_millis(150));
    send(pid, Signal::SIGKILL)?;
    let exchange = client.receive()?;
    drop(server);
    let attempt = Attempt::fresh(site.app(DIES), &[Outcome::Reset], &[Some("ECONNRESET")]);
    let expected = Expectation::incident(502, &["upstream-killed"], vec![attempt])
        .logged("recv() failed (104: Connection reset by peer) while reading response header")
        .says(&["SIGKILL", &format!("(pid {pid})"), "accept queue"])
        .never(&["upstream-reset", "upstream-exited", "accept-queue-overflow", "fd-exhausted-upstream"]);
    Ok(vec![Witness::new(exchange, expected)?])
}

/// A server that listens and has been stopped, with connections in its queue.
struct StandingStill {
    _waiting: Vec<TcpStream>,
    _stopped: Stopped,
    process: Process,
}

impl StandingStill {
    /// With a full queue.
    fn start(lab: &Lab, address: SocketAddr) -> Result<Self> {
        Self::with(lab, address, BACKLOG + 1)
    }

    /// With so many connections waiting.
    fn with(lab: &Lab, address: SocketAddr, waiting: usize) -> Result<Self> {
        let mut command = Command::new(own_binary(lab)?);
        command.arg(address.to_string()).args(["--backlog", &BACKLOG.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let start = Start { namespace: Some(lab.app()), ..Start::default() };
        let process = Process::spawn("a server that will stand still", command, start)?;
        wait_until("the server listens", Duration::from_secs(10), || Ok(Connection::open(lab.app(), address).is_ok()))?;
        // The connection of that question has to leave the queue.
        std::thread::sleep(Duration::from_millis(100));
        let stopped = Stopped::new(vec![process.pid()])?;
        let waiting = (0..waiting).map(|_| lab.app().inside(|| begin(address))).collect::<Result<_>>()?;
        std::thread::sleep(Duration::from_millis(50));
        Ok(Self { _waiting: waiting, _stopped: stopped, process })
    }
}

/// Begins a connection without waiting for it.
fn begin(address: SocketAddr) -> Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let descriptor = socket(family, SockType::Stream, flags, None).context("make a socket")?;
    match connect(std::os::fd::AsRawFd::as_raw_fd(&descriptor), &SockaddrStorage::from(address)) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Ok(TcpStream::from(descriptor)),
        Err(error) => Err(error).context("begin a connection"),
    }
}
