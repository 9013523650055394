//! Finds every nginx on the host, in whatever namespace, and asks what matters about it.

mod binary;
mod connections;
mod dump;
mod files;
mod logs;
mod names;
#[cfg(test)]
mod tests;
mod title;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub use binary::Build;
pub use connections::{OpenConnection, Sockets};
pub use logs::Log;

use self::{
    binary::Builds,
    files::Root,
    title::{Arguments, Title},
};
use super::host::process::{self, Identity};
use crate::{
    decode::config::{self, Decoded},
    model::{host::NginxInstance, process::Pid},
};

/// A new process is looked at in so many scans: it may still execute nginx, or give itself its title.
const LOOKS: u8 = 5;
/// So many old processes are looked at again in a scan: a shell may have become nginx, and without the kernel's word for it nobody says so.
/// All of them on most hosts, at five microseconds each.
const AGAIN: u32 = 1_000;
/// A configuration is not read more often: workers that crash one after another are no reloads.
const CALM: Duration = Duration::from_secs(2);

/// An nginx that was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// What the stream carries.
    pub instance: NginxInstance,
    /// The master beyond the reuse of its number.
    pub identity: Identity,
    /// What it was built as.
    pub build: Build,
    /// Its program as the probe can open it (`/proc/PID/exe`), for uprobes and symbols.
    pub program: PathBuf,
    /// Its error logs.
    pub error_logs: Vec<Log>,
    /// Its access logs.
    pub access_logs: Vec<Log>,
    /// What is not known about it and why, in plain sentences.
    pub notes: Vec<String>,
    arguments: Arguments,
    /// When its configuration was read.
    configured: Instant,
    /// There have been new workers since.
    stale: bool,
}

/// Something changed since the last scan.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new nginx.
    Appeared(Box<Found>),
    /// Other workers; after a reload also another configuration.
    Changed(Box<Found>),
    /// The master is gone.
    Gone(Pid),
}

#[derive(Clone, Debug)]
struct Seen {
    title: Title,
    looks: u8,
}

/// Finds nginx, scan after scan. A scan costs one directory listing and a few reads for what is new.
#[derive(Debug, Default)]
pub struct Finder {
    seen: BTreeMap<u32, Seen>,
    found: BTreeMap<Pid, Found>,
    builds: Builds,
    only: BTreeSet<Pid>,
    /// Where the next scan goes on to look at old processes again.
    again: u32,
}

impl Finder {
    /// Looks for these masters or workers only; for every nginx if there is none.
    #[must_use]
    pub fn new(only: impl IntoIterator<Item = Pid>) -> Self {
        Self { only: only.into_iter().collect(), ..Self::default() }
    }

    /// What is known, by master.
    pub fn instances(&self) -> impl Iterator<Item = &Found> {
        self.found.values()
    }

    /// Looks at a process again at the next scan, however long it is known: it has executed another program.
    pub fn recheck(&mut self, pid: Pid) {
        self.seen.remove(&pid.0);
    }

    /// Looks what has changed.
    pub fn scan(&mut self) -> Vec<Change> {
        self.look();
        let mut changes = Vec::new();
        let current: BTreeMap<Pid, (Identity, Arguments, Vec<Pid>)> = self.masters();
        let gone: Vec<Pid> = self
            .found
            .iter()
            .filter(|(pid, known)| current.get(pid).is_none_or(|(identity, ..)| *identity != known.identity))
            .map(|(pid, _)| *pid)
            .collect();
        for pid in gone {
            self.found.remove(&pid);
            changes.push(Change::Gone(pid));
        }
        for (master, (identity, arguments, workers)) in current {
            match self.found.get_mut(&master) {
                Some(known) => {
                    // After a reload there are new workers. After a crash too, and reading once more does no harm.
                    known.stale |= workers.iter().any(|worker| !known.instance.workers.contains(worker));
                    let due = known.stale && known.configured.elapsed() >= CALM;
                    let others = known.instance.workers != workers;
                    known.instance.workers = workers;
                    if due {
                        configure(known);
                    }
                    if due || others {
                        changes.push(Change::Changed(Box::new(known.clone())));
                    }
                }
                None => {
                    if let Some(found) = self.examine(identity, arguments, workers) {
                        self.found.insert(master, found.clone());
                        changes.push(Change::Appeared(Box::new(found)));
                    }
                }
            }
        }
        changes
    }

    /// Reads titles of processes that are new.
    fn look(&mut self) {
        let pids: BTreeSet<u32> = process::pids().into_iter().collect();
        self.seen.retain(|pid, _| pids.contains(pid));
        let (mut budget, mut last) = (AGAIN, 0);
        for pid in pids {
            let looks = match self.seen.get(&pid) {
                // nginx's own processes keep their kind.
                Some(Seen { looks: 0, title }) if *title != Title::Other => continue,
                Some(Seen { looks: 0, .. }) => {
                    if pid < self.again || budget == 0 {
                        continue;
                    }
                    budget -= 1;
                    last = pid;
                    0
                }
                Some(seen) => seen.looks - 1,
                None => LOOKS,
            };
            let mut title = fs::read(process::path(pid, "cmdline")).map_or(Title::Other, |line| title::classify(&line));
            if looks > 0 && matches!(title, Title::Master(_)) && self.is_fork_of_master(pid) {
                title = Title::Other;
            }
            self.seen.insert(pid, Seen { title, looks });
        }
        self.again = if budget == 0 { last + 1 } else { 0 };
    }

    /// Whether the process is a master's child that has not executed anything: a worker that has not given itself its title yet.
    /// After an exec (a binary upgrade) the arguments lie elsewhere, because the kernel randomises the stack; where that is switched
    /// off, the last look believes the title.
    fn is_fork_of_master(&self, pid: u32) -> bool {
        let arguments_at = |pid: u32| process::open(pid)?.stat().ok()?.arg_start;
        let Some(parent) = process::summary(pid).map(|summary| summary.parent) else { return false };
        let master = matches!(self.seen.get(&parent), Some(Seen { title: Title::Master(_), .. }));
        master && arguments_at(pid).is_some_and(|at| Some(at) == arguments_at(parent))
    }

    /// Masters by their number, with their workers.
    fn masters(&self) -> BTreeMap<Pid, (Identity, Arguments, Vec<Pid>)> {
        let mut workers: BTreeMap<u32, Vec<Pid>> = BTreeMap::new();
        let mut children = BTreeSet::new();
        for (pid, seen) in &self.seen {
            if matches!(seen.title, Title::Worker | Title::Child)
                && let Some(summary) = process::summary(*pid)
            {
                children.insert(summary.parent);
                if seen.title == Title::Worker {
                    workers.entry(summary.parent).or_default().push(Pid(*pid));
                }
            }
        }
        let mut masters = BTreeMap::new();
        for (pid, seen) in &self.seen {
            let (arguments, own) = match &seen.title {
                Title::Master(arguments) => (arguments, workers.remove(pid).unwrap_or_default()),
                Title::Perhaps(arguments) if !arguments.only_asked && !children.contains(pid) && serves_alone(*pid) => {
                    (arguments, vec![Pid(*pid)])
                }
                _ => continue,
            };
            let wanted = self.only.is_empty()
                || self.only.contains(&Pid(*pid))
                || own.iter().any(|worker| self.only.contains(worker));
            if let Some(summary) =
                process::summary(*pid).filter(|summary| wanted && !matches!(summary.state, 'Z' | 'X'))
            {
                masters.insert(Pid(*pid), (summary.identity, arguments.clone(), own));
            }
        }
        masters
    }

    /// `None` when its program is no nginx after all (php-fpm has masters too).
    fn examine(&mut self, identity: Identity, arguments: Arguments, workers: Vec<Pid>) -> Option<Found> {
        let mut notes = Vec::new();
        let build = match self.builds.of_process(identity.pid) {
            Ok(build) => build?,
            Err(error) => {
                notes.push(format!("its program could not be read ({error}), so its version is not known"));
                Build::default()
            }
        };
        let instance = NginxInstance {
            master: Pid(identity.pid),
            workers,
            version: build.version.clone(),
            netns: process::netns(identity.pid),
            configuration: None,
        };
        let mut found = Found {
            instance,
            identity,
            build,
            program: process::path(identity.pid, "exe"),
            error_logs: Vec::new(),
            access_logs: Vec::new(),
            notes,
            arguments,
            configured: Instant::now(),
            stale: false,
        };
        configure(&mut found);
        Some(found)
    }
}

/// Whether a process without a master serves: it waits for events and listens. While nginx starts, it does not yet.
fn serves_alone(pid: u32) -> bool {
    let Ok(entries) = fs::read_dir(process::path(pid, "fd")) else { return false };
    let targets = entries.take(4096).flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    let waits = targets.into_iter().any(|target| target.as_os_str() == "anon_inode:[eventpoll]");
    waits && !Sockets::of_processes(&[Pid(pid)]).listen.is_empty()
}

/// Reads the configuration anew: as nginx prints it, else from its files, else as far as its sockets show.
fn configure(found: &mut Found) {
    let master = found.instance.master.0;
    (found.stale, found.configured) = (false, Instant::now());
    let root = Root::of_process(master).ok();
    let prefix = prefix(found);
    found.notes.retain(|note| !note.starts_with(NOTE));
    let mut note = |text: String| found.notes.push(format!("{NOTE}{text}"));
    let decoded = dump::run(master, &found.arguments)
        .map_err(|error| error.to_string())
        .and_then(|text| config::decode(&text).map_err(|error| format!("what nginx -T prints cannot be read: {error}")))
        .or_else(|why| {
            note(format!("{why}; its files are read instead"));
            let root = root.as_ref().ok_or_else(|| "its root directory is out of reach".to_owned())?;
            let main = main_file(&found.build, &found.arguments, &prefix);
            let text = root.dump(&main).map_err(|error| format!("{} cannot be read ({error})", main.display()))?;
            config::decode(&text).map_err(|error| error.to_string())
        });
    let decoded = match decoded {
        Ok(decoded) => decoded,
        Err(why) => {
            note(format!("{why}; only what its open sockets show is known"));
            let mut processes = vec![found.instance.master];
            processes.extend(&found.instance.workers);
            found.instance.configuration = Some(Sockets::of_processes(&processes).configuration());
            found.error_logs = vec![logs::locate(master, root.as_ref(), &prefix, "stderr", None)];
            found.access_logs = Vec::new();
            return;
        }
    };
    apply(found, decoded, root.as_ref(), &prefix);
}

/// Notes about the configuration begin so, and are replaced when it is read again.
const NOTE: &str = "configuration: ";

fn apply(found: &mut Found, mut decoded: Decoded, root: Option<&Root>, prefix: &Path) {
    let master = found.instance.master.0;
    let same = |kind: &str| process::namespace(master, kind) == process::namespace(std::process::id(), kind);
    let unresolved = names::resolve(&mut decoded, root, same("mnt") && same("net"));
    let mut note = |what: &str, which: &[String]| {
        if !which.is_empty() {
            found.notes.push(format!("{NOTE}{what}: {}", which.join(", ")));
        }
    };
    note("names of upstreams that could not be resolved", &unresolved);
    note("upstreams that depend on variables and show only when they are used", &decoded.variable);
    note("included files that are not there", &decoded.missing_includes);
    let configuration = &mut decoded.configuration;
    if decoded.default_error_log {
        let path = found.arguments.error_log.as_deref().or(found.build.option("--error-log-path"));
        configuration.error_logs.push((path.unwrap_or("logs/error.log").to_owned(), "error".to_owned()));
    }
    if decoded.default_access_log {
        let path = found.build.option("--http-log-path").unwrap_or("logs/access.log");
        configuration.access_logs.push((path.to_owned(), None));
    }
    let locate = |name: &str, detail: Option<&str>| logs::locate(master, root, prefix, name, detail);
    found.error_logs = configuration.error_logs.iter().map(|(name, level)| locate(name, Some(level))).collect();
    found.access_logs =
        configuration.access_logs.iter().map(|(name, format)| locate(name, format.as_deref())).collect();
    found.instance.configuration = Some(decoded.configuration);
}

/// What nginx's relative paths are relative to. A relative prefix is relative to where it was started.
fn prefix(found: &Found) -> PathBuf {
    let given = found.arguments.prefix.as_deref().unwrap_or_else(|| found.build.prefix());
    let started = fs::read_link(process::path(found.identity.pid, "cwd")).unwrap_or_else(|_| PathBuf::from("/"));
    started.join(given)
}

fn main_file(build: &Build, arguments: &Arguments, prefix: &Path) -> PathBuf {
    let given = arguments.configuration.as_deref().or(build.option("--conf-path")).unwrap_or("conf/nginx.conf");
    prefix.join(given)
}
