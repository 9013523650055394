//! The stage a world is played on: processes, ports and moments, so that what is told of one request agrees with what is told of the
//! others.

use std::net::SocketAddr;

use probe502::model::{
    coverage::Sensor,
    host::{Configuration, HostFact, NginxInstance, Pass, Place as Location, Takes, UpstreamGroup, UpstreamServer},
    net::Address,
    process::Pid,
};

use super::{
    nginx::{HOST, Inner, LISTEN, Worker},
    tape::{NGINX_NETNS, Tape},
    tcp::Connection,
    truth::{Place, World},
};

/// One second.
pub const SECOND: u64 = 1_000_000_000;
/// One millisecond.
pub const MS: u64 = 1_000_000;
/// One microsecond.
pub const US: u64 = 1_000;
/// When the probe starts, unless it starts late.
pub const BEGIN: u64 = 100 * SECOND;
/// When the first request begins.
pub const FIRST: u64 = 200 * SECOND;
/// The name of the upstream group.
pub const GROUP: &str = "app";
/// The masters.
pub const MASTERS: [Pid; 2] = [Pid(800), Pid(700)];

/// A server of the group while the world is played.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its address.
    pub address: SocketAddr,
    /// Where it is.
    pub place: Place,
    /// The process that listens.
    pub master: Pid,
    /// The name of its processes.
    pub command: String,
    /// Its serving processes, and until when they are busy.
    processes: Vec<(Pid, u64)>,
    next_pid: u32,
    /// When nobody listens.
    pub down: Vec<(u64, u64)>,
    /// When somebody certainly does.
    pub needed: Vec<u64>,
    /// When its accept queue is full.
    pub full: Vec<(u64, u64)>,
    /// When its process has no descriptors left.
    pub out_of_files: Vec<(u64, u64)>,
    /// When every local port is used up by connections to it.
    pub out_of_ports: Vec<(u64, u64)>,
}

impl Server {
    /// A process that is free at `t`, busy from then on.
    pub fn process(&mut self, t: u64) -> (Pid, String) {
        let command = self.command.clone();
        if let Some((pid, busy)) = self.processes.iter_mut().find(|(_, busy)| *busy < t) {
            *busy = u64::MAX;
            return (*pid, command);
        }
        self.next_pid += 1;
        self.processes.push((Pid(self.next_pid), u64::MAX));
        (Pid(self.next_pid), command)
    }

    /// The process is free again.
    pub fn done(&mut self, pid: Pid, t: u64) {
        for (_, busy) in self.processes.iter_mut().filter(|(known, _)| *known == pid) {
            *busy = t;
        }
    }

    /// The process is gone.
    pub fn gone(&mut self, pid: Pid) {
        self.processes.retain(|(known, _)| *known != pid);
    }

    /// Whether nobody listens at `t`.
    #[must_use]
    pub fn is_down(&self, t: u64) -> bool {
        self.down.iter().any(|(from, to)| (*from..=*to).contains(&t))
    }
}

/// A connection of nginx's, from when to when.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// The worker.
    pub worker: Pid,
    /// nginx's address.
    pub local: SocketAddr,
    /// The upstream's.
    pub upstream: SocketAddr,
    /// When it was begun.
    pub from: u64,
    /// When it was over.
    pub to: u64,
}

/// The locations of a master's one server: one has a cache, one answers 502 by itself, and one has both.
fn places(server: usize) -> Vec<Location> {
    let place = |path: &str, cache: bool, answers: bool| Location {
        server,
        names: vec![HOST.to_owned()],
        takes: Takes::Prefix { path: path.to_owned(), preferred: false },
        pass: Some(Pass { protocol: "proxy", address: None, name: Some(GROUP.to_owned()) }),
        values: if cache { vec![("proxy_cache".to_owned(), "one".to_owned())] } else { Vec::new() },
        answers_502: if answers { vec!["return 502".to_owned()] } else { Vec::new() },
        scripted: None,
        rewrites: false,
    };
    vec![place("/", false, false), place("/cart", true, false), place("/api/", true, true), place("/off", false, true)]
}

/// The stage.
#[derive(Debug)]
pub struct Stage<'a> {
    /// What is played.
    pub world: &'a World,
    /// What is recorded.
    pub tape: Tape,
    /// nginx's workers.
    pub workers: Vec<Worker>,
    /// The servers.
    pub servers: Vec<Server>,
    /// `proxy_connect_timeout`.
    pub connect_timeout: u64,
    /// `proxy_read_timeout`.
    pub read_timeout: u64,
    /// nginx's connections.
    pub lives: Vec<Life>,
    ports: Vec<(SocketAddr, u16, u64)>,
    next_port: u16,
    next_number: [u64; 2],
    next_client: u16,
    /// Client connections that are open: worker, number, requests so far, client, since when.
    clients: Vec<(usize, u64, u64, SocketAddr, u64)>,
}

impl<'a> Stage<'a> {
    /// Set.
    #[must_use]
    pub fn new(world: &'a World) -> Self {
        let mut tape = Tape::new(world.seed);
        let connect_timeout = if tape.dice.chance(300) { 500 * MS } else { 5 * SECOND };
        let read_timeout = tape.dice.between(1, 4) * SECOND;
        let workers =
            (0..u32::try_from(world.workers.max(1)).unwrap_or(1)).map(|n| Worker::new(Pid(812 + n))).collect();
        let servers = (0..world.peers.len())
            .map(|index| {
                let base = 1_000 + 100 * u32::try_from(index).unwrap_or(0);
                Server {
                    address: world.address(index),
                    place: world.place(index),
                    master: Pid(base),
                    command: ["gunicorn", "node", "uvicorn"]
                        .get(index % 3)
                        .map_or_else(String::new, ToString::to_string),
                    processes: Vec::new(),
                    next_pid: base,
                    down: Vec::new(),
                    needed: Vec::new(),
                    full: Vec::new(),
                    out_of_files: Vec::new(),
                    out_of_ports: Vec::new(),
                }
            })
            .collect();
        Self {
            world,
            tape,
            workers,
            servers,
            connect_timeout,
            read_timeout,
            lives: Vec::new(),
            ports: Vec::new(),
            next_port: 40_000,
            next_number: [1, 1],
            next_client: 50_000,
            clients: Vec::new(),
        }
    }

    /// Whose worker it is.
    #[must_use]
    pub fn master_of(&self, worker: usize) -> usize {
        worker % self.world.masters.clamp(1, MASTERS.len())
    }

    /// What an nginx is, as the probe learns it.
    #[must_use]
    pub fn instance(&self, master: usize) -> NginxInstance {
        let servers = self
            .servers
            .iter()
            .map(|server| UpstreamServer {
                name: server.address.to_string(),
                addresses: vec![Address::Ip(server.address)],
                max_fails: u64::from(self.world.counts_failures),
                max_conns: 0,
                fail_timeout_ms: 10_000,
                down: false,
                backup: false,
            })
            .collect();
        let group =
            UpstreamGroup { name: GROUP.to_owned(), servers, keepalive: Some(32), keepalive_timeout_ms: Some(60_000) };
        let configuration = Configuration {
            groups: vec![group],
            listen: LISTEN.get(master).copied().into_iter().collect(),
            places: places(master),
            upstreams: self.servers.iter().map(|server| Address::Ip(server.address)).collect(),
            directives: vec![
                ("proxy_connect_timeout".to_owned(), format!("{}ms", self.connect_timeout / MS)),
                ("proxy_read_timeout".to_owned(), format!("{}s", self.read_timeout / SECOND)),
            ],
            ..Configuration::default()
        };
        let own = self.workers.iter().enumerate().filter(|(index, _)| self.master_of(*index) == master);
        NginxInstance {
            master: MASTERS.get(master).copied().unwrap_or(MASTERS[0]),
            workers: own.map(|(_, worker)| worker.pid).collect(),
            version: Some("1.22.1".to_owned()),
            netns: Some(NGINX_NETNS),
            configuration: Some(configuration.into()),
        }
    }

    /// A connection to a peer that nobody has opened yet. Ports come back, as they do on a busy host.
    pub fn connection(&mut self, worker: usize, peer: usize, t: u64) -> Connection {
        let fd = self.workers.get_mut(worker).map_or(3, Worker::descriptor);
        let opener = self.worker_pid(worker);
        let connection = self.connection_of(opener, fd, peer, t);
        let (local, upstream) = (connection.local, connection.remote);
        self.lives.push(Life { worker: opener, local, upstream, from: t, to: u64::MAX });
        connection
    }

    /// Likewise, of any process.
    pub fn connection_of(&mut self, opener: Pid, fd: i32, peer: usize, t: u64) -> Connection {
        let remote = self.world.address(peer);
        let reuse = self.tape.dice.chance(600);
        let free = self.ports.iter_mut().find(|(to, _, busy)| *to == remote && *busy + 100 * MS < t);
        let port = match free {
            Some((_, port, busy)) if reuse => {
                *busy = u64::MAX / 2;
                *port
            }
            _ => {
                self.next_port += 1;
                self.ports.push((remote, self.next_port, u64::MAX / 2));
                self.next_port
            }
        };
        let local = SocketAddr::new(self.world.local_ip(peer), port);
        Connection::new(&mut self.tape, opener, fd, local, remote, self.world.place(peer))
    }

    /// The connection is over: its port may come back.
    pub fn port_free(&mut self, connection: &Connection, t: u64) {
        let open = |life: &&mut Life| life.local == connection.local && life.upstream == connection.remote;
        if let Some(life) = self.lives.iter_mut().rev().find(open) {
            life.to = t;
        }
        for (to, port, busy) in &mut self.ports {
            if *to == connection.remote && *port == connection.local.port() {
                *busy = t;
            }
        }
    }

    /// The process of a worker.
    #[must_use]
    pub fn worker_pid(&self, worker: usize) -> Pid {
        self.workers.get(worker).map_or(Pid(812), |worker| worker.pid)
    }

    /// A turn of a worker, at `t` or as soon as it is free.
    pub fn turn(&mut self, worker: usize, t: u64) -> u64 {
        self.workers.get_mut(worker).map_or(t, |worker| worker.turn(t))
    }

    /// A request of a client arrives.
    pub fn arrive(&mut self, worker: usize, t: u64, same_client: bool, method: &str) -> Inner {
        let master = self.master_of(worker);
        let kept = self.clients.iter().position(|(w, .., since)| *w == worker && *since < t);
        let (number, client_requests, client) = match kept {
            Some(index) if same_client => {
                let (_, number, requests, client, _) = self.clients.remove(index);
                (number, requests + 1, client)
            }
            _ => {
                let more = self.tape.dice.between(1, 3);
                let next = self.next_number.get_mut(master);
                let number = next.map_or(1, |next| {
                    *next += more;
                    *next
                });
                self.next_client += 1;
                let host = u8::try_from(self.tape.dice.between(7, 9)).unwrap_or(7);
                (number, 1, SocketAddr::from(([10, 0, 0, host], self.next_client)))
            }
        };
        let path = ["/cart", "/", "/api/items", "/off"][usize::try_from(self.tape.dice.between(0, 3)).unwrap_or(0)];
        let pointer = self.workers.get_mut(worker).map_or(0x1000, |worker| worker.pointer(t));
        Inner {
            key: probe502::model::nginx::RequestKey { worker: self.worker_pid(worker), pointer },
            parent: None,
            passed: false,
            listen: LISTEN.get(master).copied().unwrap_or(LISTEN[0]),
            number,
            client_requests,
            begun: t,
            client,
            line: format!("{method} {path} HTTP/1.1"),
            states: Vec::new(),
        }
    }

    /// A request is over; its memory is free again, and its client may send another one if it stayed.
    pub fn depart(&mut self, worker: usize, t: u64, inner: &Inner, stays: bool) {
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.release(inner.key.pointer, t);
        }
        if stays {
            self.clients.push((worker, inner.number, inner.client_requests, inner.client, t));
        }
    }

    /// What the probe learns when it starts.
    pub fn introduce(&mut self, t: u64) {
        for master in 0..self.world.masters.clamp(1, MASTERS.len()) {
            let fact = HostFact::Nginx(self.instance(master));
            self.tape.host(Some(Sensor::Configuration), t, fact);
        }
    }
}
