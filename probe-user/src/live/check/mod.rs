//! Looking at everything that makes nginx answer 502, from where nginx stands. Changes nothing, and sends little.

mod ask;
mod beside;
mod connect;
mod groups;
mod limits;
mod logs;
mod names;
mod owners;
mod place;
mod rules;
mod tls;
mod tries;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use thiserror::Error;

pub use self::ask::Question;
use self::{place::Place, tls::Trust, tries::Manner};
use super::{
    namespaces,
    nginx::{self, Found, Master, Root},
};
use crate::{
    check::{
        plan::{self, Endpoint, Server},
        seen::{NameSeen, Nginx, Seen, Try},
    },
    decode::config::{
        ConfigError,
        layout::{self, Layout},
    },
    model::{net::Address, process::Pid},
};

/// How long we wait for a connection: long enough for one more SYN after the kernel's first second, and for a neighbour that does not
/// answer (3 s).
const CONNECT: Duration = Duration::from_millis(3_500);
/// Endpoints tried at most: a configuration with thousands is looked at in part, and says so.
const ENDPOINTS: usize = 128;
/// Addresses of a name at most.
const ADDRESSES: usize = 8;
/// An upstream that closes only so much later than nginx is still measured.
const BEYOND_POOL: Duration = Duration::from_secs(3);
/// Tried at the same time.
const AT_ONCE: usize = 16;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is asked of each upstream; `None`: only connections and handshakes.
    pub question: Option<Question>,
    /// Measure after how long upstreams close idle connections. Takes as long as nginx keeps them, and a little longer.
    pub measure_idle: bool,
    /// How far back the logs are read.
    pub since: Duration,
}

/// Why nothing could be looked at.
#[derive(Debug, Error)]
pub enum CheckError {
    /// The configuration file cannot be read.
    #[error("cannot read the configuration {}: {why}; name nginx's main file", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
    /// It is no configuration.
    #[error("cannot read the configuration {}: {why}", path.display())]
    Nonsense {
        /// The file.
        path: PathBuf,
        /// Where and why.
        why: ConfigError,
    },
    /// It runs in namespaces that may not be entered.
    #[error(
        "nginx {pid} runs in a container or a network namespace, which only root may enter ({why}); run it as root"
    )]
    Elsewhere {
        /// The master.
        pid: u32,
        /// Why not.
        why: io::Error,
    },
    /// No configuration of a running nginx could be had.
    #[error("cannot learn the configuration of nginx {pid}: {why}; run it as root, or name the file with --conf")]
    Unknown {
        /// The master.
        pid: u32,
        /// Why.
        why: String,
    },
}

/// An nginx or a configuration, ready to be looked at.
#[derive(Debug)]
pub struct Prepared {
    seen: Seen,
    place: Arc<Place>,
    root: Root,
    netns: Option<u32>,
    found: Option<Found>,
}

/// What will be sent, said before it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// Names to be looked up.
    pub names: usize,
    /// Upstream servers to connect to, names counted once.
    pub servers: usize,
    /// Of these with TLS.
    pub handshakes: usize,
}

impl Prepared {
    /// A running nginx.
    pub fn running(master: &Master) -> Result<Self, CheckError> {
        let (found, dump) = nginx::examine_with_text(master);
        let unknown = |why: String| CheckError::Unknown { pid: master.pid, why };
        let text = dump.text.ok_or_else(|| unknown(found.gaps.join("; ")))?;
        let layout = layout::read(&text).map_err(|error| unknown(error.to_string()))?;
        let mut left_out = found.gaps.clone();
        let place = match Place::of(master.pid, master.workers.first().copied()) {
            Ok(place) => place,
            Err(error) if namespaces::shares_network(master.pid) && namespaces::shares_files(master.pid) => {
                left_out
                    .push(format!("what nginx's workers may do ({error}): everything is tried as the user who asked"));
                Place::beside(master.pid, master.workers.first().copied())
            }
            // What is true here is not true there.
            Err(why) => return Err(CheckError::Elsewhere { pid: master.pid, why }),
        };
        // Where they cannot be told apart they are the same.
        let root =
            Root::of_process(master.pid).or_else(|_| Root::here()).map_err(|error| unknown(error.to_string()))?;
        let nginx =
            Nginx { master: Some(Pid(master.pid)), version: found.instance.version.clone(), refused: dump.refused };
        let own = || namespaces::inode(std::process::id(), "net");
        let netns = namespaces::inode(master.pid, "net").or_else(own);
        Ok(Self::of(nginx, layout, left_out, place, root, netns, Some(found)))
    }

    /// A configuration that nobody runs, or that cannot be asked for.
    pub fn file(path: &Path) -> Result<Self, CheckError> {
        let unreadable = |why| CheckError::Unreadable { path: path.to_owned(), why };
        let whole = std::path::absolute(path).map_err(unreadable)?;
        let root = Root::here().map_err(unreadable)?;
        let text = root.dump(&whole).map_err(unreadable)?;
        let layout = layout::read(&text).map_err(|why| CheckError::Nonsense { path: whole, why })?;
        let netns = namespaces::inode(std::process::id(), "net");
        Ok(Self::of(Nginx::default(), layout, Vec::new(), Place::here(), root, netns, None))
    }

    fn of(
        nginx: Nginx,
        layout: Layout,
        mut left_out: Vec<String>,
        place: Place,
        root: Root,
        netns: Option<u32>,
        found: Option<Found>,
    ) -> Self {
        let mut endpoints = plan::endpoints(&layout, nginx.version.as_deref());
        if endpoints.len() > ENDPOINTS {
            left_out.push(format!(
                "{} of {} upstream servers: only the first {ENDPOINTS} are tried",
                endpoints.len() - ENDPOINTS,
                endpoints.len()
            ));
            endpoints.truncate(ENDPOINTS);
        }
        let seen = Seen { nginx, layout, endpoints, left_out, ..Seen::default() };
        Self { seen, place: Arc::new(place), root, netns, found }
    }

    /// What looking at it will send.
    #[must_use]
    pub fn announced(&self) -> Announced {
        let endpoints = &self.seen.endpoints;
        let names = endpoints.iter().filter(|endpoint| matches!(endpoint.server, Server::Name(..)));
        Announced {
            names: names.count(),
            servers: endpoints.len(),
            handshakes: endpoints.iter().filter(|endpoint| endpoint.speech.tls.is_some()).count(),
        }
    }

    /// The nginx.
    #[must_use]
    pub const fn nginx(&self) -> &Nginx {
        &self.seen.nginx
    }

    /// What is known of the nginx beside its configuration.
    #[must_use]
    pub const fn found(&self) -> Option<&Found> {
        self.found.as_ref()
    }

    /// Looks, and takes some seconds for it.
    #[must_use]
    pub fn look(mut self, options: &Options) -> Seen {
        if let Some(found) = &self.found {
            self.seen.errors = logs::errors(found, options.since, &mut self.seen.left_out);
            self.seen.accesses = logs::accesses(found, options.since, &mut self.seen.left_out);
        }
        let before = self.found.as_ref().map(|found| limits::counters(found.instance.master.0)).unwrap_or_default();
        self.resolve();
        self.find_held();
        let targets = self.targets();
        let trust = self.trust();
        self.seen.tries = self.try_all(&targets, &trust, options);
        self.look_beside();
        self.leave_out_what_only_we_may_not();
        if let Some(found) = &self.found {
            let workers: Vec<u32> = found.instance.workers.iter().map(|worker| worker.0).collect();
            self.seen.host = Some(limits::look(&self.seen, found.instance.master.0, &workers, before));
        }
        self.seen
    }

    fn resolve(&mut self) {
        let (place, root) = (&self.place, &self.root);
        let wanted: Vec<(usize, &Endpoint)> = self.seen.endpoints.iter().enumerate().collect();
        let mut names: Vec<NameSeen> = Vec::new();
        // The same name with another way to speak to it is looked up once.
        let mut known: BTreeMap<_, usize> = BTreeMap::new();
        for (index, endpoint) in wanted {
            let Server::Name(host, _) = &endpoint.server else { continue };
            if let Some(earlier) = known.get(&(host, &endpoint.resolver)) {
                let earlier: &NameSeen = &names[*earlier];
                let again = NameSeen { endpoint: index, ..earlier.clone() };
                names.push(again);
                continue;
            }
            known.insert((host, &endpoint.resolver), names.len());
            let (result, took) = names::resolve(place, root, host, &endpoint.resolver);
            let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            names.push(NameSeen { endpoint: index, took_us, result, held: Vec::new() });
        }
        self.seen.names = names;
    }

    fn targets(&self) -> Vec<(usize, Address)> {
        let mut targets = Vec::new();
        for (index, endpoint) in self.seen.endpoints.iter().enumerate() {
            match &endpoint.server {
                Server::Address(address) => targets.push((index, address.clone())),
                Server::Name(_, port) => {
                    let name = self.seen.names.iter().find(|name| name.endpoint == index);
                    let addresses = name.and_then(|name| name.result.as_ref().ok()).into_iter().flatten();
                    let mut addresses: Vec<SocketAddr> =
                        addresses.take(ADDRESSES).map(|ip| SocketAddr::new(*ip, *port)).collect();
                    addresses.extend(name.into_iter().flat_map(|name| &name.held).take(ADDRESSES));
                    addresses.sort();
                    addresses.dedup();
                    targets.extend(addresses.into_iter().map(|address| (index, Address::Ip(address))));
                }
            }
        }
        targets
    }

    /// The files of trusted certificates, each read once.
    fn trust(&self) -> BTreeMap<String, Trust> {
        let tls = self.seen.endpoints.iter().filter_map(|endpoint| endpoint.speech.tls.as_ref());
        let paths = tls.filter_map(|tls| tls.trusted.clone());
        paths.map(|path| (path.clone(), tls::trust(&self.root, &self.configured(&path)))).collect()
    }

    /// A path as nginx means it: relative to where its configuration lies.
    fn configured(&self, path: &str) -> PathBuf {
        let main = self.seen.layout.blocks.iter().find_map(|block| {
            block.own.first().map(|line| line.place.file.to_string()).filter(|file| file.starts_with('/'))
        });
        let directory = main.as_deref().and_then(|file| Path::new(file).parent()).unwrap_or(Path::new("/"));
        directory.join(path)
    }

    fn try_all(&self, targets: &[(usize, Address)], trust: &BTreeMap<String, Trust>, options: &Options) -> Vec<Try> {
        let nothing: Trust = Err("nothing is named to trust".to_owned());
        let one = |(index, address): &(usize, Address)| -> Option<Try> {
            let endpoint = self.seen.endpoints.get(*index)?;
            let trusted = endpoint.speech.tls.as_ref().and_then(|tls| trust.get(tls.trusted.as_ref()?));
            let configured = Duration::from_millis(endpoint.connect_timeout_ms(&self.seen.layout));
            let manner = Manner {
                endpoint: *index,
                speech: &endpoint.speech,
                trusted: trusted.unwrap_or(&nothing),
                connect: configured.min(CONNECT),
                other_host: endpoint.other_host(&self.seen.layout),
                idle: endpoint
                    .pool_ms(&self.seen.layout)
                    .filter(|_| options.measure_idle)
                    .map(|pool_ms| Duration::from_millis(pool_ms) + BEYOND_POOL),
                question: options.question.as_ref(),
            };
            match self.place.inside(true, || tries::attempt(address, &manner)) {
                Ok(seen) => Some(seen),
                Err(error) => {
                    tracing::warn!("{address}: cannot be tried where nginx runs: {error}");
                    None
                }
            }
        };
        // Whoever is done takes the next: one that says nothing keeps no other from being tried.
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            while let Some((number, target)) =
                Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|number| Some((number, targets.get(number)?)))
            {
                done.extend(one(target).map(|seen| (number, seen)));
            }
            done
        };
        let mut tries: Vec<(usize, Try)> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_ONCE.min(targets.len())).map(|_| scope.spawn(work)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
        });
        tries.sort_by_key(|(number, _)| *number);
        tries.into_iter().map(|(_, seen)| seen).collect()
    }
}
