//! The set of nginx that is watched: picks up new ones, notices reloads, forgets those that are gone.

mod captures;
mod examine;
mod functions;
mod translated;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, PoisonError, atomic::AtomicU64},
};

use probe_abi::{
    Endpoint,
    process::{Watched, role},
};
use tokio::sync::Notify;

pub use self::captures::CaptureNews;
use self::{
    captures::Captures,
    examine::{Examinations, Examined},
    translated::Translated,
};
use super::{
    capture::{CaptureError, Statistics},
    clock,
    delivery::Delivery,
    ebpf::{self, Attachment, Kernel, LoadError},
    host::Lookup,
    logs::{self, CutOff, Tails},
    nginx::{self, Census, Found, Master},
    scope::{Depth, Scope},
    sources::{self, Counts},
    thinker::Intake,
};
use crate::{
    bundle::tape::Interfaces,
    model::{
        coverage::{Coverage, Sensor, Sight},
        event::{Body, Source},
        host::{HostFact, NginxInstance},
        process::Pid,
        time::At,
    },
    pipeline::Arrival,
};

/// What happened to the set.
#[derive(Debug)]
pub enum Change {
    /// A new nginx is watched from now on.
    Appeared(NginxInstance),
    /// A watched nginx was told to read its configuration again, or replaced its workers.
    Changed(NginxInstance),
    /// A watched nginx is gone.
    Gone(u32),
}

/// One nginx.
struct Followed {
    master: Master,
    found: Found,
    captures: Captures,
    tails: Tails,
    attachments: Vec<Attachment>,
    /// Where it keeps what, as the kernel side numbers it.
    layout: u32,
}

/// The set.
pub struct Followers {
    scope: Scope,
    kernel: Option<Kernel>,
    kernel_problem: Option<String>,
    intake: Intake,
    counts: Arc<Counts>,
    lookup: Lookup,
    examinations: Examinations,
    /// The host's processes, as the looks find them.
    pub census: Census,
    followed: BTreeMap<u32, Followed>,
    numbers: Arc<AtomicU64>,
    interfaces: Interfaces,
    last_interface: u32,
    told: BTreeMap<Sensor, (Sight, Option<String>)>,
    /// Masters that were asked for, and those that came out of them (a binary upgrade), with their start.
    family: BTreeSet<(u32, u64)>,
    /// What captures that have ended had counted.
    ended_captures: Statistics,
    translated: Translated,
}

impl Followers {
    /// Watches nothing yet.
    #[must_use]
    pub fn new(
        scope: Scope,
        kernel: Option<Kernel>,
        kernel_problem: Option<String>,
        intake: Intake,
        counts: Arc<Counts>,
        interfaces: Interfaces,
    ) -> Self {
        Self {
            counts,
            scope,
            kernel,
            kernel_problem,
            intake,
            lookup: Lookup::default(),
            examinations: Examinations::default(),
            census: Census::default(),
            followed: BTreeMap::new(),
            numbers: Arc::new(AtomicU64::new(0)),
            interfaces,
            last_interface: 0,
            told: BTreeMap::new(),
            family: BTreeSet::new(),
            ended_captures: Statistics::default(),
            translated: Translated::default(),
        }
    }

    /// Who looks things up on this host.
    #[must_use]
    pub const fn lookup(&self) -> &Lookup {
        &self.lookup
    }

    /// The kernel side.
    pub const fn kernel(&mut self) -> Option<&mut Kernel> {
        self.kernel.as_mut()
    }

    /// Looks deeper from now on, or less deep. What of the kernel side does not follow stays as it was, and the sensors say so.
    pub fn set_depth(&mut self, depth: Depth) {
        self.scope.depth = depth;
        let hooks = if depth == Depth::Light { ebpf::Depth::Light } else { ebpf::Depth::Standard };
        if depth == Depth::Light {
            // Nobody may rely on what is about to be let go.
            self.tell_sensors();
        }
        if let Some(kernel) = &mut self.kernel {
            if let Err(error) = kernel.set_depth(hooks) {
                tracing::warn!("the kernel side goes on as it is: {error}");
            }
            for (pid, followed) in &mut self.followed {
                if let Some(attachments) = kernel.functions_of(*pid) {
                    followed.attachments = attachments.to_vec();
                }
            }
        }
        self.renew_captures();
        self.tell_sensors();
    }

    /// Every nginx that is watched.
    pub fn instances(&self) -> impl Iterator<Item = &NginxInstance> {
        self.followed.values().map(|followed| &followed.found.instance)
    }

    /// What was said of each sensor last.
    pub fn sensors(&self) -> impl Iterator<Item = (Sensor, Sight, Option<&str>)> {
        self.told.iter().map(|(sensor, (sight, why))| (*sensor, *sight, why.as_deref()))
    }

    /// What could not be learnt of the nginx that are watched.
    pub fn gaps(&self) -> impl Iterator<Item = (u32, &str)> {
        self.followed.iter().flat_map(|(pid, followed)| followed.found.gaps.iter().map(|gap| (*pid, gap.as_str())))
    }

    /// What all captures counted.
    #[must_use]
    pub fn packet_statistics(&self) -> Statistics {
        let mut sum = self.ended_captures;
        let mut interfaces = self.interfaces.lock().unwrap_or_else(PoisonError::into_inner);
        for capture in self.followed.values().flat_map(|followed| &followed.captures.running) {
            let statistics = capture.statistics();
            add(&mut sum, statistics);
            let own = usize::try_from(capture.options.index).ok().and_then(|index| interfaces.get_mut(index));
            if let Some(own) = own {
                (own.received, own.dropped) = (statistics.received, statistics.dropped());
            }
        }
        sum
    }

    /// What is told when something was learnt that the next [`Followers::look`] will bring in.
    #[must_use]
    pub fn learnt(&self) -> Arc<Notify> {
        self.examinations.answered()
    }

    /// Looks at the host for the first time, and waits until every nginx has said what it is.
    pub fn look_first(&mut self) -> Result<Vec<Change>, CaptureError> {
        self.look_and(Examinations::take_all)
    }

    /// Looks at the host and brings the set up to date, as far as it is known: what an nginx is asked takes its time, and is brought in by a
    /// later look. An unusable interface given by the user is an error; everything else that fails is a gap.
    pub fn look(&mut self) -> Result<Vec<Change>, CaptureError> {
        let changes = self.look_and(Examinations::take)?;
        // Not at the first look, which the user waits for.
        self.look_for_translations();
        Ok(changes)
    }

    fn look_and(&mut self, take: fn(&mut Examinations) -> Vec<Examined>) -> Result<Vec<Change>, CaptureError> {
        let all = self.census.masters();
        let masters = self.wanted(all);
        let mut changes = Vec::new();
        let gone: Vec<u32> = self
            .followed
            .iter()
            .filter(|(pid, followed)| {
                !masters.iter().any(|master| master.pid == **pid && master.started == followed.master.started)
            })
            .map(|(pid, _)| *pid)
            .collect();
        for pid in gone {
            self.leave(pid);
            changes.push(Change::Gone(pid));
        }
        for master in &masters {
            let known = self.followed.get(&master.pid).map(|followed| followed.master.workers == master.workers);
            match known {
                None if self.examinations.expects(master) => {}
                None => self.examinations.ask(master),
                Some(false) => {
                    self.take_workers(master);
                    self.examinations.ask(master);
                }
                Some(true) => {}
            }
        }
        for examined in take(&mut self.examinations) {
            let asked = &examined.master;
            // One that is gone needs no answer any more.
            let now = masters.iter().find(|now| now.pid == asked.pid && now.started == asked.started);
            let Some(now) = now else { continue };
            changes.push(if self.followed.contains_key(&now.pid) {
                let Some(instance) = self.refresh(now, examined)? else { continue };
                Change::Changed(instance)
            } else {
                Change::Appeared(self.follow(now, examined)?)
            });
        }
        self.tell_sensors();
        Ok(changes)
    }

    /// Those of these that are to be watched: asked for, or come out of one that was (a binary upgrade leaves the old master's child in
    /// its place).
    fn wanted(&mut self, masters: Vec<Master>) -> Vec<Master> {
        let pids = &self.scope.pids;
        if pids.is_empty() {
            return masters;
        }
        let name = |master: &Master| (master.pid, master.started);
        let asked = |master: &Master| pids.iter().any(|pid| *pid == master.pid || master.workers.contains(pid));
        let mut family: BTreeSet<(u32, u64)> =
            masters.iter().filter(|master| asked(master) || self.family.contains(&name(master))).map(name).collect();
        // An upgrade of an upgrade, too.
        while let Some(child) = masters
            .iter()
            .find(|master| !family.contains(&name(master)) && family.iter().any(|(parent, _)| *parent == master.parent))
        {
            family.insert(name(child));
        }
        self.family = family;
        masters.into_iter().filter(|master| self.family.contains(&name(master))).collect()
    }

    fn follow(&mut self, master: &Master, examined: Examined) -> Result<NginxInstance, CaptureError> {
        let Examined { mut found, layout, .. } = examined;
        let attachments = self.attach(master, &found);
        let layout = self.layout(layout.as_ref());
        self.watch_processes(master, layout);
        // Workers that were forked between the look at /proc and the watch on their master are found now.
        let now = self.census.masters().into_iter().find(|now| now.pid == master.pid).unwrap_or_else(|| master.clone());
        self.watch_processes(&now, layout);
        self.touch_literals(&now, None);
        let upstreams = self.watch_upstreams(&now, &found);
        self.learn_sides(&found, &upstreams);
        let captures = self.capture(&now, &found, &upstreams)?;
        let tails = self.follow_logs(master.pid, &found, &attachments);
        found.instance.workers = now.workers.iter().copied().map(Pid).collect();
        let instance = found.instance.clone();
        self.tell(vec![Body::from(HostFact::Nginx(instance.clone()))]);
        self.tell_open_connections(&now, &upstreams);
        self.followed.insert(master.pid, Followed { master: now, found, captures, tails, attachments, layout });
        Ok(instance)
    }

    /// A reload or a dead worker: the children changed. They are watched at once; what they were told is asked.
    fn take_workers(&mut self, master: &Master) {
        let Some(followed) = self.followed.get_mut(&master.pid) else { return };
        let before = std::mem::replace(&mut followed.master, master.clone());
        followed.found.instance.workers = master.workers.iter().copied().map(Pid).collect();
        let (layout, instance) = (followed.layout, followed.found.instance.clone());
        self.watch_processes(master, layout);
        self.touch_literals(master, Some(&before));
        self.tell(vec![Body::from(HostFact::Nginx(instance))]);
    }

    /// After the children changed: the configuration as it is now.
    fn refresh(&mut self, master: &Master, examined: Examined) -> Result<Option<NginxInstance>, CaptureError> {
        let Examined { found, layout, .. } = examined;
        let attachments = self.attach(master, &found);
        let layout = self.layout(layout.as_ref());
        self.watch_processes(master, layout);
        let upstreams = self.watch_upstreams(master, &found);
        self.learn_sides(&found, &upstreams);
        let outdated =
            self.followed.get_mut(&master.pid).is_some_and(|followed| followed.captures.is_outdated(&upstreams));
        // The new capture is open before the old one ends; a packet seen by both is told twice and does no harm.
        let renewed = if outdated { Some(self.capture(master, &found, &upstreams)?) } else { None };
        let tails = self.follow_logs(master.pid, &found, &attachments);
        let Some(followed) = self.followed.get_mut(&master.pid) else { return Ok(None) };
        followed.master = master.clone();
        followed.layout = layout;
        followed.found = found;
        followed.attachments = attachments;
        followed.found.instance.workers = master.workers.iter().copied().map(Pid).collect();
        followed.tails = tails;
        let mut ended = Vec::new();
        if let Some(captures) = renewed {
            ended = std::mem::replace(&mut followed.captures, captures).running;
        }
        let instance = followed.found.instance.clone();
        for capture in ended {
            add(&mut self.ended_captures, capture.stop());
        }
        self.tell(vec![Body::from(HostFact::Nginx(instance.clone()))]);
        Ok(Some(instance))
    }

    fn leave(&mut self, pid: u32) {
        let Some(followed) = self.followed.remove(&pid) else { return };
        self.examinations.forget(&followed.master);
        for capture in followed.captures.running {
            add(&mut self.ended_captures, capture.stop());
        }
        if let Some(kernel) = &mut self.kernel {
            for process in followed.master.workers.iter().chain(&followed.master.others).chain([&pid]) {
                // A process that is gone is not watched any more anyway.
                let _ = kernel.unwatch_process(*process);
            }
            kernel.detach_nginx(pid);
        }
        self.tell(vec![Body::from(HostFact::NginxGone { master: Pid(pid) })]);
    }

    fn watch_processes(&mut self, master: &Master, layout: u32) {
        let Some(kernel) = &mut self.kernel else { return };
        let single = master.workers.contains(&master.pid);
        let watched = |role| Watched { role, layout, master: master.pid, reserved: 0 };
        let own = if single { role::NGINX_WORKER } else { role::NGINX_MASTER };
        let children = master.workers.iter().chain(&master.others).filter(|pid| **pid != master.pid);
        for (pid, role) in [(master.pid, own)].into_iter().chain(children.map(|pid| (*pid, role::NGINX_WORKER))) {
            if let Err(error) = watch_living(kernel, pid, watched(role)) {
                tracing::warn!("nginx process {pid} is not watched: {error}");
            }
        }
    }

    /// What processes will complain with is made present in those that were not followed before.
    fn touch_literals(&self, master: &Master, before: Option<&Master>) {
        if !self.asks_nginx() {
            return;
        }
        let known = |pid: u32| before.is_some_and(|before| before.has(pid));
        let all = [master.pid].into_iter().chain(master.workers.iter().chain(&master.others).copied());
        for pid in all.filter(|pid| !known(*pid)) {
            if let Err(error) = nginx::literals::touch(pid) {
                tracing::debug!(
                    "the literals of nginx process {pid} may be missing from its first complaints: {error}"
                );
            }
        }
    }

    /// Upstream addresses from the configuration and from open connections; both ends of them are watched.
    fn watch_upstreams(&mut self, master: &Master, found: &Found) -> BTreeSet<SocketAddr> {
        let mut upstreams: BTreeSet<SocketAddr> = nginx::upstream_addresses(found).into_iter().collect();
        if found.instance.configuration.is_none() {
            let open = nginx::open_connections(&master.workers, &BTreeSet::new());
            upstreams.extend(open.into_iter().map(|(.., upstream)| upstream));
        }
        upstreams.extend(self.translated.destinations());
        self.watch_addresses(&upstreams, found.instance.netns);
        upstreams
    }

    /// Who is no client.
    fn learn_sides(&self, found: &Found, upstreams: &BTreeSet<SocketAddr>) {
        let listen = found.instance.configuration.iter().flat_map(|configuration| configuration.listen.iter().copied());
        self.intake.redactor().learn(listen, upstreams.iter().copied());
    }

    fn tell_open_connections(&mut self, master: &Master, upstreams: &BTreeSet<SocketAddr>) {
        let open = nginx::open_connections(&master.workers, upstreams);
        self.tell(
            open.into_iter()
                .map(|(worker, local, upstream)| {
                    Body::from(HostFact::OpenConnection { worker: Pid(worker), local, upstream })
                })
                .collect(),
        );
    }

    fn follow_logs(&self, pid: u32, found: &Found, attached: &[Attachment]) -> Tails {
        let access = !self.asks_nginx() || sources::functions(attached).0 != Sight::On;
        let of = |(master, followed): (&u32, &Followed)| {
            followed.tails.logs().map(|log| (*master == pid, Arc::clone(log))).collect::<Vec<_>>()
        };
        let known: Vec<_> = self.followed.iter().flat_map(of).collect();
        logs::follow(found, access, &known, &self.intake, &self.counts)
    }

    /// Logs that were cut off since this was asked last.
    #[must_use]
    pub fn cut_off_logs(&self) -> Vec<CutOff> {
        self.followed.values().flat_map(|followed| followed.tails.logs()).filter_map(|log| log.cut_off()).collect()
    }

    /// Says how each sensor sees, where that has changed.
    fn tell_sensors(&mut self) {
        let now = sources::sensors(
            self.kernel.as_ref().map(Kernel::attachments),
            self.kernel_problem.as_deref(),
            self.kernel.as_ref().and_then(Kernel::btf_problem),
            self.followed.values().map(|followed| (followed.attachments.as_slice(), &followed.found, &followed.tails)),
            self.followed.values().any(|followed| !followed.captures.running.is_empty()),
            self.followed.values().find_map(|followed| followed.captures.problem.as_deref()),
            &self.scope,
        );
        let mut news = Vec::new();
        for (sensor, sight, why) in now {
            if self.told.get(&sensor) != Some(&(sight, why.clone())) {
                news.push(Body::Coverage(Coverage::Sensor { sensor, sight, why: why.clone() }));
                self.told.insert(sensor, (sight, why));
            }
        }
        self.tell(news);
    }

    fn tell(&self, bodies: Vec<Body>) {
        if bodies.is_empty() {
            return;
        }
        let at = At::exactly(clock::now());
        let arrivals = bodies.into_iter().map(|body| Arrival { at, source: Source::Probe, body }).collect();
        self.intake.deliver(Delivery::Arrivals(arrivals));
    }
}

/// Watches a process. The kernel side forgets it when it ends; one that had ended before would never be forgotten, and its number is another's
/// some day.
fn watch_living(kernel: &mut Kernel, pid: u32, watched: Watched) -> Result<(), LoadError> {
    kernel.watch_process(pid, watched)?;
    if nginx::is_living(pid) { Ok(()) } else { kernel.unwatch_process(pid) }
}

fn add(sum: &mut Statistics, more: Statistics) {
    sum.received += more.received;
    sum.dropped_by_kernel += more.dropped_by_kernel;
    sum.dropped_by_interface += more.dropped_by_interface;
    sum.dropped_by_sink += more.dropped_by_sink;
}

/// An address as the kernel side keys it.
fn endpoint(address: SocketAddr) -> Endpoint {
    use probe_abi::endpoint::{FAMILY_INET, FAMILY_INET6};

    let mut endpoint = Endpoint { port: address.port().to_be_bytes(), ..Endpoint::UNKNOWN };
    match nginx::plain(address) {
        SocketAddr::V4(v4) => {
            endpoint.family = FAMILY_INET;
            for (to, from) in endpoint.address.iter_mut().zip(v4.ip().octets()) {
                *to = from;
            }
        }
        SocketAddr::V6(v6) => {
            endpoint.family = FAMILY_INET6;
            endpoint.address = v6.ip().octets();
        }
    }
    endpoint
}
