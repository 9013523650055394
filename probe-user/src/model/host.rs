//! What the host looked like: learnt from `/proc`, `sock_diag` and nginx's configuration.

use std::{net::SocketAddr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize};

use super::{
    net::Address,
    process::{Acceptor, Ending, Halt, Pid, Sender},
    time::Moment,
};

/// A statement about the host. It holds from its event's time until a later one replaces it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum HostFact {
    /// An nginx was found, or has changed.
    Nginx(NginxInstance),
    /// This nginx master is gone.
    NginxGone {
        /// The master.
        master: Pid,
    },
    /// Who listens on this upstream address on this host, as looked up at this time. Empty: nobody, and the address is local.
    Listeners {
        /// The upstream's address.
        upstream: SocketAddr,
        /// The network namespace nginx asks from, for a loopback address: each namespace has its own. `None` for any other address.
        netns: Option<u32>,
        /// The address belongs to this host (to one of its network namespaces).
        local: bool,
        /// Listeners that a SYN to that address would reach.
        listeners: Vec<Listener>,
        /// Listeners nearby: the same port on another address or family, or another port of a process that used to listen here.
        nearby: Vec<Listener>,
    },
    /// A process's open files against its limit.
    OpenFiles {
        /// The process.
        pid: Pid,
        /// Its name.
        command: String,
        /// Open descriptors.
        open: u64,
        /// `RLIMIT_NOFILE`, soft.
        limit: Option<u64>,
    },
    /// A connection of nginx that was open before the probe looked.
    OpenConnection {
        /// The worker.
        worker: Pid,
        /// nginx's side.
        local: SocketAddr,
        /// The upstream.
        upstream: SocketAddr,
    },
    /// This host translates the address of an upstream (DNAT: a Service of Kubernetes, a published port of a container), by its own table of
    /// connections.
    Translated {
        /// The upstream, as nginx has it.
        upstream: SocketAddr,
        /// The connection that was asked about, nginx's end of it.
        local: SocketAddr,
        /// nginx's network namespace.
        netns: Option<u32>,
        /// Where the connection arrives.
        to: SocketAddr,
        /// Nginx's end as it looks from there, where that is translated as well.
        seen_as: Option<SocketAddr>,
    },
    /// Where else a process listens that used to serve an upstream's address.
    OtherListeners {
        /// The process.
        pid: Pid,
        /// Its listeners.
        listeners: Vec<Listener>,
    },
    /// How often a full accept queue has made a network namespace refuse a handshake, since it exists (`TcpExtListenOverflows`).
    ListenOverflows {
        /// The namespace.
        netns: u32,
        /// How often.
        count: u64,
    },
    /// The route that this host has to an upstream.
    Route {
        /// The upstream.
        upstream: SocketAddr,
        /// The network namespace that was asked.
        netns: Option<u32>,
        /// What the route does with a packet.
        kind: RouteKind,
        /// The destination as the route has it (`192.0.2.0/24`, `default`), where there is one.
        destination: Option<String>,
    },
    /// Local ports in use towards an upstream.
    LocalPorts {
        /// The upstream.
        upstream: SocketAddr,
        /// The network namespace that was asked.
        netns: Option<u32>,
        /// `net.ipv4.ip_local_port_range`: first and last.
        range: (u16, u16),
        /// Ports of the range that connections to the upstream hold.
        in_use: u32,
        /// How many of them only wait (`TIME_WAIT`).
        waiting: u32,
    },
    /// Open files of the whole system against its limit (`/proc/sys/fs/file-nr`).
    SystemFiles {
        /// Open.
        open: u64,
        /// `fs.file-max`.
        limit: u64,
    },
    /// The addresses that a name of the configuration has now, as a program in nginx's place resolves it.
    Name {
        /// The name.
        name: String,
        /// The port written with it.
        port: u16,
        /// The addresses; empty: it does not resolve any more.
        addresses: Vec<SocketAddr>,
    },
    /// A unix socket of an upstream, and the way to it.
    UnixSocket(UnixSocket),
    /// Who used to serve an upstream's address, remembered from what was seen before.
    Served {
        /// The upstream's address.
        upstream: SocketAddr,
        /// The network namespace of its listener, where known.
        #[serde(default)]
        netns: Option<u32>,
        /// The process that listened.
        pid: Pid,
        /// Its name.
        command: Option<String>,
        /// When it was last seen there.
        seen: Moment,
        /// When its listening socket was closed, where that was seen.
        closed: Option<Moment>,
        /// When and how the process ended, where that was seen.
        ended: Option<(Moment, Ending)>,
        /// The signal that asked it to, and who sent it.
        signal: Option<(u32, Option<Sender>)>,
    },
    /// What a local upstream process was doing.
    ProcessState {
        /// The process.
        pid: Pid,
        /// Its name.
        command: String,
        /// `R`, `S`, `D`, `T`, `Z` …
        state: char,
        /// The kernel function it sleeps in, where it can be read.
        wait_channel: Option<String>,
        /// The system call that it sleeps in, where it can be read.
        #[serde(default)]
        call: Option<String>,
        /// What keeps it from running.
        #[serde(default)]
        halt: Option<Halt>,
    },
    /// Who may accept what comes to an upstream's address on this host, and what each of them is doing.
    Acceptors {
        /// The upstream's address.
        upstream: Address,
        /// As [`HostFact::Listeners`] has it.
        netns: Option<u32>,
        /// The processes that have a listening socket of it, a worker's master among them.
        processes: Vec<Acceptor>,
        /// These are all of them.
        all: bool,
    },
}

/// What a route does with a packet (`rtm_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RouteKind {
    /// It goes on its way.
    Open,
    /// It is dropped: `connect()` fails with EINVAL.
    Blackhole,
    /// The host is unreachable: EHOSTUNREACH.
    Unreachable,
    /// It is forbidden: EACCES.
    Prohibit,
    /// There is none: ENETUNREACH.
    None,
}

impl RouteKind {
    /// The word of `ip route`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "unicast",
            Self::Blackhole => "blackhole",
            Self::Unreachable => "unreachable",
            Self::Prohibit => "prohibit",
            Self::None => "none",
        }
    }
}

/// A unix socket, the way to it, and who asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixSocket {
    /// The path, as nginx has it.
    pub path: String,
    /// The worker that asked; paths are as its mount namespace has them.
    pub worker: Pid,
    /// The worker's user and groups, and the user's name where it could be found.
    pub asker: Asker,
    /// Every part of the path from the root on, as far as it exists.
    pub parts: Vec<PathPart>,
    /// The first part that does not exist.
    pub missing: Option<String>,
    /// Who listens on it. `None`: nobody.
    pub listener: Option<UnixListener>,
}

/// As whom a worker acts on files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asker {
    /// File-system user id.
    pub user: u32,
    /// File-system group id, and the supplementary groups.
    pub groups: Vec<u32>,
    /// The user's name.
    pub name: Option<String>,
    /// `CAP_DAC_OVERRIDE`: modes do not bind it.
    pub overrides: bool,
}

/// One directory of a path, or the file at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathPart {
    /// The path up to here.
    pub path: String,
    /// The permission bits.
    pub mode: u32,
    /// The owner, and its name where it could be found.
    pub owner: (u32, Option<String>),
    /// The group, likewise.
    pub group: (u32, Option<String>),
    /// It is a directory.
    pub directory: bool,
    /// It is a socket.
    pub socket: bool,
}

impl UnixSocket {
    /// What lies at the path itself, where everything on the way exists.
    #[must_use]
    pub fn end(&self) -> Option<&PathPart> {
        self.parts.last().filter(|_| self.missing.is_none())
    }

    /// The first part of the path whose mode denies the worker, and whether it is to be written to: what lies at the end is, whatever it is
    /// (`unix_find_bsd()`, <https://elixir.bootlin.com/linux/v6.12/source/net/unix/af_unix.c>); the directories before it are searched.
    #[must_use]
    pub fn denies(&self) -> Option<(&PathPart, bool)> {
        let end = self.end();
        let write = |part: &PathPart| !part.directory || end == Some(part);
        self.parts.iter().map(|part| (part, write(part))).find(|(part, write)| !part.lets(&self.asker, *write))
    }
}

impl PathPart {
    /// Whether the mode lets this user write to it, or else search it.
    /// (`acl_permission_check`, <https://elixir.bootlin.com/linux/v6.12/source/fs/namei.c>; access lists may say more.)
    #[must_use]
    pub fn lets(&self, asker: &Asker, write: bool) -> bool {
        let wanted = if write { 0o2 } else { 0o1 };
        let shift = if self.owner.0 == asker.user {
            6
        } else if asker.groups.contains(&self.group.0) {
            3
        } else {
            0
        };
        asker.overrides || (self.mode >> shift) & wanted != 0
    }
}

/// Who listens on a unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixListener {
    /// The process, where it could be found.
    pub pid: Option<Pid>,
    /// Its name.
    pub command: Option<String>,
    /// Connections waiting, limit.
    pub queue: Option<(u32, u32)>,
}

/// A listening socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Listener {
    /// Where it listens (the wildcard address for any).
    pub address: SocketAddr,
    /// Network namespace (inode number).
    pub netns: Option<u32>,
    /// The process, where it could be found.
    pub pid: Option<Pid>,
    /// Its name.
    pub command: Option<String>,
    /// Accept queue: waiting, limit.
    pub accept_queue: Option<(u32, u32)>,
}

/// An nginx.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NginxInstance {
    /// The master.
    pub master: Pid,
    /// The workers.
    pub workers: Vec<Pid>,
    /// `1.22.1`, where it could be asked.
    pub version: Option<String>,
    /// Network namespace (inode number).
    pub netns: Option<u32>,
    /// What its configuration says, where it could be read. Each of its cases has it.
    pub configuration: Option<Arc<Configuration>>,
}

/// The part of nginx's configuration that matters for verdicts and fixes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Configuration {
    /// `upstream` blocks.
    pub groups: Vec<UpstreamGroup>,
    /// Addresses nginx listens on.
    pub listen: Vec<SocketAddr>,
    /// Upstream addresses named directly (`proxy_pass http://127.0.0.1:8000`) and those of the groups, resolved as far as possible.
    pub upstreams: Vec<Address>,
    /// Upstream names with their ports and the addresses they had when the configuration was read.
    pub names: Vec<UpstreamName>,
    /// Error logs: path (or `stderr`, `syslog:…`) and level.
    pub error_logs: Vec<(String, String)>,
    /// Access logs: path and format name.
    pub access_logs: Vec<(String, Option<String>)>,
    /// `log_format` definitions by name.
    pub log_formats: Vec<(String, String)>,
    /// `worker_connections`.
    pub worker_connections: Option<u64>,
    /// `worker_rlimit_nofile`.
    pub worker_rlimit_nofile: Option<u64>,
    /// Timeouts and the like by directive name, where one value holds everywhere (`proxy_read_timeout` → `60s`).
    pub directives: Vec<(String, String)>,
    /// Where requests are answered: every `server`, and every `location` in it.
    pub places: Vec<Place>,
}

/// Where requests are answered: a `server` or a `location`, with what holds there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Place {
    /// The number of its `server` block, from 0.
    pub server: usize,
    /// The server's names.
    pub names: Vec<String>,
    /// Which requests it takes.
    pub takes: Takes,
    /// Its `*_pass`, if it has one.
    pub pass: Option<Pass>,
    /// Directives in force, their own or those around them, arguments joined with blanks; and known defaults.
    pub values: Vec<(String, String)>,
    /// Directives of its own or around it that can answer 502 without any upstream, as written: `return 502`.
    pub answers_502: Vec<String>,
    /// Modules in force here that can answer anything (scripts), by the directive.
    pub scripted: Option<String>,
    /// It has a `rewrite`: a request may come here, or leave, under another URI.
    pub rewrites: bool,
}

/// Which requests a place takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Takes {
    /// What no location takes: the server itself.
    #[default]
    Rest,
    /// `location = /path`.
    Exact(String),
    /// `location /path`, or `location ^~ /path` (then no expression is tried).
    Prefix {
        /// The path.
        path: String,
        /// `^~`.
        preferred: bool,
    },
    /// `location ~ expression`: not evaluated here.
    Expression(String),
    /// `location @name`, and what stands inside `if`: reached from inside only.
    Internal(String),
}

/// Where a place sends its requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pass {
    /// `proxy`, `fastcgi`, `uwsgi`, `scgi`, `grpc`, `memcached`.
    #[serde(deserialize_with = "protocol")]
    pub protocol: Protocol,
    /// The address, where it is one.
    pub address: Option<Address>,
    /// The group's or host's name, where it is one.
    pub name: Option<String>,
}

/// One of [`PROTOCOLS`]. By a name of its own, since serde takes a bare `&str` for text of its input.
pub type Protocol = &'static str;

/// The protocols nginx speaks with upstreams, by the first part of the directive `*_pass`.
pub const PROTOCOLS: [&str; 6] = ["proxy", "fastcgi", "uwsgi", "scgi", "grpc", "memcached"];

fn protocol<'de, D: Deserializer<'de>>(from: D) -> Result<Protocol, D::Error> {
    let text = String::deserialize(from)?;
    let known = PROTOCOLS.into_iter().find(|known| *known == text);
    known.ok_or_else(|| serde::de::Error::custom(format!("{text} is no protocol of nginx's")))
}

/// A host name that stands for an upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamName {
    /// The name.
    pub name: String,
    /// The port.
    pub port: u16,
    /// Its addresses then; empty: it could not be resolved in time.
    pub addresses: Vec<SocketAddr>,
}

/// An `upstream` block.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpstreamGroup {
    /// Its name.
    pub name: String,
    /// Its servers.
    pub servers: Vec<UpstreamServer>,
    /// `keepalive N`.
    pub keepalive: Option<u64>,
    /// `keepalive_timeout` in it, milliseconds.
    pub keepalive_timeout_ms: Option<u64>,
}

/// A `server` of an `upstream` block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamServer {
    /// As written.
    pub name: String,
    /// Addresses, as far as they are literal or could be resolved.
    pub addresses: Vec<Address>,
    /// `max_fails`, default 1.
    pub max_fails: u64,
    /// `fail_timeout`, default 10 s, milliseconds.
    pub fail_timeout_ms: u64,
    /// `max_conns`, 0: no limit.
    #[serde(default)]
    pub max_conns: u64,
    /// `down`.
    pub down: bool,
    /// `backup`.
    pub backup: bool,
}
