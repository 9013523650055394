//! What the host looked like: learnt from `/proc`, `sock_diag` and nginx's configuration.

use std::net::SocketAddr;

use serde::{Deserialize, Deserializer, Serialize};

use super::{net::Address, process::Pid};

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
    },
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
    /// What its configuration says, where it could be read.
    pub configuration: Option<Configuration>,
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
    /// `down`.
    pub down: bool,
    /// `backup`.
    pub backup: bool,
}
