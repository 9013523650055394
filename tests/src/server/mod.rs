//! The lab's own upstream: one small HTTP/1 server that misbehaves as the path of the request says.
//!
//! | path | does |
//! | --- | --- |
//! | `/ok` | answers 200 |
//! | `/slow/MS` | the same, later |
//! | `/reset[/MS]` | reads the request, then resets (linger 0) |
//! | `/close[/MS]` | reads the request, then closes without a byte |
//! | `/half` | closes in the middle of the response header |
//! | `/unread` | closes with the request unread: the kernel resets |
//! | `/hang` | takes the request and never answers |
//! | `/status/CODE` | answers that status |
//! | `/half-hang`, `/half-reset` | half a header, then silence or a reset |
//! | `/cut`, `/cut-reset`, `/cut-hang`, `/cut-chunk` | part of a body, then a close, a reset or silence |
//! | `/bad-502` | the header of a 502, and a body that is none |
//! | `/shutdown` | reads the request, then ends its sending side only |
//! | `/crash/SIGNAL`, `/exit/STATUS` | the process ends so |
//! | `/crash-in-child/SIGNAL` | forks a child that gets the connection, and ends so a little later |
//! | `/eat-memory` | takes memory until the kernel ends the process; in an emulated machine only |
//! | `/sibling` | another worker crashes, then this one closes |
//! | `/dial-close`, `/dial-502`, `/open-close` | runs out of descriptors making sockets (opening files), then closes or answers |
//! | `/early/` | leaves the request unread until the command `/answer-early`: a 413, then a close |
//! | `/ignore` | leaves the request unread for ever |
//! | `/alert/N`, `/fastcgi/WHAT`, `/http2/WHAT/ERROR` | bytes of other protocols (`wire.rs`) |
//! | `/bad-line`, `/bad-coding` | a good status line, then a header that is none |
//! | `/large` | a body of many packets |
//! | `/bighdr` | a response header larger than any default buffer |
//! | `/garbage` | something that is not HTTP |
//!
//! Further segments are ignored, so a request can carry a number of its own.
//! An address may be a unix socket (`unix:/path`), and may have a behaviour of its own (`10.0.0.1:80=/http2/goaway/0`), which then meets
//! whatever comes there. With `--workers N` a master forks as many and replaces those that end.
//! On the control address `GET /close-idle`, `/reset-idle` and `/count` say what to do with idle keepalive connections.
//! `/stop-listening/PORT` closes a listener.

mod behaviour;
mod connection;
mod prefork;
mod wire;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use connection::{Connection, Ending, Role};

/// After a failed accept the listener rests so long, as servers do that would otherwise spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the command line says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    listen: Vec<(Place, Role)>,
    control: Option<SocketAddr>,
    idle: Option<Duration>,
    workers: usize,
    backlog: Option<i32>,
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Internet(SocketAddr),
    Unix(String),
}

/// The program: `upstream ADDRESS[=BEHAVIOUR]... [--control ADDRESS] [--idle-ms N] [--workers N] [--backlog N]`; runs until it is killed.
pub fn serve(arguments: impl Iterator<Item = String>) -> Result<()> {
    let options = parse(arguments)?;
    let mut listeners = Vec::new();
    for (place, role) in &options.listen {
        let listener = Listener::open(place, role.clone())?;
        if let Some(backlog) = options.backlog {
            // A second listen() only changes the queue's length.
            let backlog = nix::sys::socket::Backlog::new(backlog).context("--backlog")?;
            nix::sys::socket::listen(&listener, backlog).context("listen again")?;
        }
        listeners.push(listener);
    }
    if let Some(address) = options.control {
        listeners.push(Listener::open(&Place::Internet(address), Role::Control)?);
    }
    prefork::begin(options.workers)?;
    let mut server = Server { listeners, connections: BTreeMap::new(), next: 0, idle: options.idle };
    loop {
        server.turn()?;
    }
}

/// Reads the command line.
fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options::default();
    while let Some(word) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--control" => options.control = Some(value()?.parse().context("--control")?),
            "--idle-ms" => options.idle = Some(Duration::from_millis(value()?.parse().context("--idle-ms")?)),
            "--backlog" => options.backlog = Some(value()?.parse().context("--backlog")?),
            "--workers" => options.workers = value()?.parse().context("--workers")?,
            listen => {
                let (address, role) = match listen.split_once('=') {
                    Some((address, behaviour)) => (address, Role::Script(behaviour.to_owned())),
                    None => (listen, Role::Requests),
                };
                let place = match address.strip_prefix("unix:") {
                    Some(path) => Place::Unix(path.to_owned()),
                    None => Place::Internet(address.parse().with_context(|| format!("the address {address:?}"))?),
                };
                options.listen.push((place, role));
            }
        }
    }
    if options.listen.is_empty() {
        bail!("usage: upstream ADDRESS[=BEHAVIOUR]... [--control ADDRESS] [--idle-ms N] [--workers N] [--backlog N]");
    }
    Ok(options)
}

/// A listening socket.
struct Listener {
    socket: Socket,
    role: Role,
    rests_until: Option<Instant>,
}

/// Of one family or the other.
enum Socket {
    Internet(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn open(place: &Place, role: Role) -> Result<Self> {
        let socket = match place {
            Place::Internet(address) => {
                let socket = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
                socket.set_nonblocking(true)?;
                Socket::Internet(socket)
            }
            Place::Unix(path) => {
                let socket = UnixListener::bind(path).with_context(|| format!("listen on {path}"))?;
                socket.set_nonblocking(true)?;
                Socket::Unix(socket)
            }
        };
        Ok(Self { socket, role, rests_until: None })
    }

    /// Whether it listens on this port.
    fn is_on(&self, port: &str) -> bool {
        match &self.socket {
            Socket::Internet(socket) => socket.local_addr().is_ok_and(|address| address.port().to_string() == port),
            Socket::Unix(_) => false,
        }
    }

    /// Takes a connection. Streams of both families read, write and close alike.
    fn accept(&self) -> std::io::Result<TcpStream> {
        let stream = match &self.socket {
            Socket::Internet(socket) => {
                let (stream, _peer) = socket.accept()?;
                stream.set_nodelay(true)?;
                stream
            }
            Socket::Unix(socket) => TcpStream::from(OwnedFd::from(socket.accept()?.0)),
        };
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Internet(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        }
    }
}

/// The whole state; one thread, one turn after the other.
struct Server {
    listeners: Vec<Listener>,
    connections: BTreeMap<u64, Connection>,
    next: u64,
    idle: Option<Duration>,
}

impl Server {
    /// Waits for something to do and does it.
    fn turn(&mut self) -> Result<()> {
        let now = Instant::now();
        let timeout = self.timeout(now);
        let mut polled: Vec<PollFd<'_>> = Vec::with_capacity(self.listeners.len() + self.connections.len());
        for listener in &self.listeners {
            let rests = listener.rests_until.is_some_and(|until| until > now);
            polled.push(PollFd::new(listener.as_fd(), if rests { PollFlags::empty() } else { PollFlags::POLLIN }));
        }
        let order: Vec<u64> = self.connections.keys().copied().collect();
        for connection in self.connections.values() {
            polled.push(PollFd::new(connection.stream().as_fd(), connection.interest()));
        }
        match poll(&mut polled, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        let ready: Vec<bool> = polled.iter().map(|entry| entry.any().unwrap_or(false)).collect();
        drop(polled);

        let now = Instant::now();
        let (of_listeners, of_connections) = ready.split_at(self.listeners.len());
        for (id, ready) in order.iter().zip(of_connections) {
            self.advance(*id, *ready, now);
        }
        for (index, ready) in of_listeners.iter().enumerate() {
            if *ready {
                self.accept(index, now)?;
            }
        }
        Ok(())
    }

    /// Until the next thing that happens by itself.
    fn timeout(&self, now: Instant) -> PollTimeout {
        let deadlines = self.connections.values().filter_map(|connection| connection.deadline(self.idle));
        let rests = self.listeners.iter().filter_map(|listener| listener.rests_until).filter(|until| *until > now);
        let Some(next) = deadlines.chain(rests).min() else { return PollTimeout::NONE };
        let wait = next.saturating_duration_since(now) + Duration::from_millis(1);
        PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
    }

    /// Takes every connection that waits.
    fn accept(&mut self, index: usize, now: Instant) -> Result<()> {
        // A command of this very turn may have closed one.
        let Some(listener) = self.listeners.get_mut(index) else { return Ok(()) };
        loop {
            match listener.accept() {
                Ok(stream) => {
                    self.connections.insert(self.next, Connection::new(stream, listener.role.clone(), now));
                    self.next += 1;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                Err(_no_descriptor_left) => {
                    listener.rests_until = Some(now + ACCEPT_PAUSE);
                    return Ok(());
                }
            }
        }
    }

    /// Lets one connection read, write or act.
    fn advance(&mut self, id: u64, ready: bool, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let ending = connection.advance(ready, now, self.idle);
        if let Some(command) = connection.take_command() {
            let answer = self.command(&command);
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.answer(&answer);
            }
        }
        if let Some(ending) = ending {
            self.end(id, ending);
        }
    }

    /// Carries out a command from the control address and says to how many connections it applied.
    fn command(&mut self, command: &str) -> String {
        if let Some(port) = command.strip_prefix("/stop-listening/") {
            let before = self.listeners.len();
            self.listeners.retain(|listener| !listener.is_on(port));
            return (before - self.listeners.len()).to_string();
        }
        if command == "/answer-early" {
            return self.answer_early().to_string();
        }
        let idle: Vec<u64> =
            self.connections.iter().filter(|(_, connection)| connection.is_idle()).map(|(id, _)| *id).collect();
        let ending = match command {
            "/close-idle" => Some(Ending::Close),
            "/reset-idle" => Some(Ending::Reset),
            _ => None,
        };
        if let Some(ending) = ending {
            for id in &idle {
                self.end(*id, ending);
            }
        }
        idle.len().to_string()
    }

    /// Answers without having read, as servers do that refuse by the header's first lines, and closes.
    fn answer_early(&mut self) -> usize {
        let waiting: Vec<u64> = self.connections.iter().filter(|(_, c)| c.waits_unread()).map(|(id, _)| *id).collect();
        for id in &waiting {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.blurt(b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
            self.end(*id, Ending::Close);
        }
        waiting.len()
    }

    /// Ends a connection.
    fn end(&mut self, id: u64, ending: Ending) {
        let Some(connection) = self.connections.remove(&id) else { return };
        if ending == Ending::Reset {
            linger_zero(connection.stream());
        }
        drop(connection);
    }
}

/// Makes the coming close a reset.
fn linger_zero(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // A refusal would turn the reset into a close, which the lab's own tests notice.
    let _ = nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &linger);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Options, Place, Role, parse};

    #[test]
    fn the_command_line_is_read() {
        let words =
            "10.0.0.1:80 unix:/run/app.sock [::1]:80=/http2/rst/7 --idle-ms 250 --control 127.0.0.1:81 --workers 2";
        let options = parse(words.split(' ').map(str::to_owned)).unwrap();
        let wanted = Options {
            listen: vec![
                (Place::Internet("10.0.0.1:80".parse().unwrap()), Role::Requests),
                (Place::Unix("/run/app.sock".to_owned()), Role::Requests),
                (Place::Internet("[::1]:80".parse().unwrap()), Role::Script("/http2/rst/7".to_owned())),
            ],
            control: Some("127.0.0.1:81".parse().unwrap()),
            idle: Some(Duration::from_millis(250)),
            workers: 2,
            backlog: None,
        };
        assert_eq!(options, wanted);
        assert!(parse(std::iter::empty()).is_err());
        assert!(parse(["--idle-ms".to_owned()].into_iter()).is_err());
    }
}
