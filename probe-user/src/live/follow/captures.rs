//! The captures of each nginx: opened where its upstreams are, and opened anew when an interface went away or came back.

use std::{
    collections::BTreeSet,
    fs::File,
    net::SocketAddr,
    sync::{Arc, PoisonError},
};

use super::{Followed, Followers, add};
use crate::{
    bundle::packets::Interface,
    live::{
        capture::{
            Capture, CaptureError, EVERYTHING_BUFFER, FATES_BUFFER, Options, SNAP_LENGTH, TROUBLE_BUFFER, filter,
            interfaces,
        },
        clock,
        delivery::Delivery,
        namespaces,
        nginx::{Found, Master},
        scope::Depth,
        sources,
    },
    model::{
        coverage::{Coverage, Sensor},
        event::{Body, Source},
        time::{At, Moment},
    },
    pipeline::Arrival,
};

/// Interfaces that are listened on besides those towards the upstreams, where the clients' side is needed too.
const CLIENT_INTERFACES: usize = 8;
/// How often it is tried to open what is missing, nanoseconds.
const TRY_EVERY_NS: u64 = 200_000_000;

/// What happened to the captures of an nginx.
#[derive(Debug)]
pub enum CaptureNews {
    /// Packets on this interface are not captured any more.
    Ended {
        /// The interface.
        interface: String,
        /// Why, in libpcap's words.
        why: String,
    },
    /// Packets are captured again.
    Resumed {
        /// On these interfaces.
        interfaces: Vec<String>,
        /// When none were.
        missed: Option<At>,
    },
}

/// What is being captured for an nginx.
#[derive(Debug, Default)]
pub(super) struct Captures {
    pub(super) running: Vec<Capture>,
    /// Towards these upstreams.
    pub(super) towards: BTreeSet<SocketAddr>,
    /// Why something is not captured.
    pub(super) problem: Option<String>,
    /// An interface went away and what runs in its place is a substitute: looked at again from this moment on.
    unsettled: Option<Moment>,
    /// Since when an interface is not captured that was to be.
    missing: Option<Moment>,
    /// Another depth wants other packets.
    stale: bool,
}

impl Captures {
    /// Whether what is captured now is not all that these upstreams need. Where an interface is missing it is opened for them in a moment
    /// anyway.
    pub(super) fn is_outdated(&mut self, upstreams: &BTreeSet<SocketAddr>) -> bool {
        if self.missing.is_some() {
            self.towards.clone_from(upstreams);
        }
        !upstreams.is_subset(&self.towards)
    }

    fn interfaces(&self) -> Vec<String> {
        self.running.iter().map(|capture| capture.options.interface.clone()).collect()
    }
}

impl Followers {
    /// Opens the captures of an nginx. An unusable interface given by the user is an error; everything else is a gap.
    pub(super) fn capture(
        &mut self,
        master: &Master,
        found: &Found,
        upstreams: &BTreeSet<SocketAddr>,
    ) -> Result<Captures, CaptureError> {
        let mut captures = Captures { towards: upstreams.clone(), ..Captures::default() };
        if !self.scope.packets {
            captures.problem = Some("switched off (--no-packets)".to_owned());
            return Ok(captures);
        }
        match self.open_captures(master, found, upstreams) {
            Ok(running) => captures.running = running,
            Err(error) if !self.scope.interfaces.is_empty() => return Err(error),
            Err(error) => {
                captures.problem = Some(error.to_string());
                captures.unsettled = Some(clock::now());
            }
        }
        Ok(captures)
    }

    /// Looks whether captures have ended by themselves (their interface went away), and opens what can be opened in their place.
    pub fn look_after_captures(&mut self) -> Vec<CaptureNews> {
        let mut news = Vec::new();
        let now = clock::now();
        let pids: Vec<u32> = self.followed.keys().copied().collect();
        for pid in pids {
            if let Some(since) = self.clear_ended(pid, &mut news) {
                self.tell_missed(At::between(since, now));
            }
            let due = self.followed.get(&pid).and_then(|followed| followed.captures.unsettled);
            if due.is_some_and(|due| due <= now) {
                self.renew(pid, now, &mut news);
            }
        }
        if !news.is_empty() {
            self.tell_sensors();
        }
        news
    }

    /// Opens every capture anew, for the packets that the depth wants by now.
    pub(super) fn renew_captures(&mut self) {
        let now = clock::now();
        for pid in self.followed.keys().copied().collect::<Vec<_>>() {
            if let Some(Followed { captures, .. }) = self.followed.get_mut(&pid)
                && !captures.running.is_empty()
            {
                captures.stale = true;
                self.renew(pid, now, &mut Vec::new());
            }
        }
    }

    /// Captures the packets of these addresses as well, for every nginx of this network namespace.
    pub(super) fn capture_also(&mut self, addresses: &BTreeSet<SocketAddr>, netns: Option<u32>) {
        let now = clock::now();
        let of = |(pid, followed): (&u32, &Followed)| (followed.found.instance.netns == netns).then_some(*pid);
        for pid in self.followed.iter().filter_map(of).collect::<Vec<_>>() {
            let Some(Followed { captures, .. }) = self.followed.get_mut(&pid) else { continue };
            captures.towards.extend(addresses);
            if !captures.running.is_empty() {
                captures.stale = true;
                self.renew(pid, now, &mut Vec::new());
            }
        }
    }

    /// Takes out what has ended; since when.
    fn clear_ended(&mut self, pid: u32, news: &mut Vec<CaptureNews>) -> Option<Moment> {
        let Followed { captures, .. } = self.followed.get_mut(&pid)?;
        let mut since = None;
        for index in (0..captures.running.len()).rev() {
            let Some((at, why)) = captures.running.get(index).and_then(Capture::ended) else { continue };
            let capture = captures.running.remove(index);
            let interface = capture.options.interface.clone();
            add(&mut self.ended_captures, capture.stop());
            captures.problem = Some(format!("packets on {interface} are not captured any more: {why}"));
            captures.unsettled = Some(Moment(0));
            captures.missing = Some(captures.missing.map_or(at, |before| before.min(at)));
            since = captures.missing;
            news.push(CaptureNews::Ended { interface, why });
        }
        since
    }

    /// Chooses and opens anew. The new captures are open before the old ones end; a packet seen by both is told twice and does no harm.
    fn renew(&mut self, pid: u32, now: Moment, news: &mut Vec<CaptureNews>) {
        let Some(followed) = self.followed.remove(&pid) else { return };
        let mut followed = followed;
        followed.captures.unsettled = Some(now.plus_ns(TRY_EVERY_NS));
        let upstreams: Vec<SocketAddr> = followed.captures.towards.iter().copied().collect();
        let chosen = namespace_of(&followed.master).and_then(|netns| self.interfaces_for(netns.as_ref(), &upstreams));
        let opened = chosen.and_then(|names| {
            if !followed.captures.stale
                && followed.captures.missing.is_none()
                && names == followed.captures.interfaces()
            {
                return Ok(None);
            }
            let towards = followed.captures.towards.clone();
            self.open_captures(&followed.master, &followed.found, &towards).map(Some)
        });
        match opened {
            Ok(None) => {}
            Ok(Some(running)) => {
                for capture in std::mem::replace(&mut followed.captures.running, running) {
                    add(&mut self.ended_captures, capture.stop());
                }
                let missed = followed.captures.missing.take().map(|since| At::between(since, clock::now()));
                if let Some(span) = missed {
                    self.tell_missed(span);
                }
                followed.captures.problem = None;
                followed.captures.stale = false;
                let interfaces = followed.captures.interfaces();
                // All interfaces are a substitute for the one that went away.
                if !interfaces.iter().any(|name| name == "any") {
                    followed.captures.unsettled = None;
                }
                news.push(CaptureNews::Resumed { interfaces, missed });
            }
            Err(error) => followed.captures.problem = Some(error.to_string()),
        }
        self.followed.insert(pid, followed);
    }

    /// Nobody can say how many packets there were.
    fn tell_missed(&self, span: At) {
        let why = "an interface went away, and packets were not captured".to_owned();
        let lost = Coverage::Lost { sensor: Some(Sensor::Packets), count: 1, why };
        let arrival = Arrival { at: span, source: Source::Probe, body: Body::Coverage(lost) };
        self.intake.deliver(Delivery::Arrivals(vec![arrival]));
    }

    /// Where to listen: as the user says, else where the upstreams are.
    fn interfaces_for(&self, netns: Option<&Arc<File>>, upstreams: &[SocketAddr]) -> Result<Vec<String>, CaptureError> {
        if !self.scope.interfaces.is_empty() {
            return Ok(self.scope.interfaces.clone());
        }
        let mut names = interfaces::choose(netns, upstreams)?;
        if !self.asks_nginx() && !names.iter().any(|name| name == "any") {
            // Without nginx's own word the answer on its way to the client tells which client it was, and which status it got.
            let all = interfaces::list(netns)?;
            let other = all.into_iter().filter(|interface| interface.up && !names.contains(&interface.name));
            names.extend(other.map(|interface| interface.name).take(CLIENT_INTERFACES).collect::<Vec<_>>());
        }
        Ok(names)
    }

    fn open_captures(
        &mut self,
        master: &Master,
        found: &Found,
        upstreams: &BTreeSet<SocketAddr>,
    ) -> Result<Vec<Capture>, CaptureError> {
        let netns = namespace_of(master)?;
        let upstreams: Vec<SocketAddr> = upstreams.iter().copied().collect();
        let listen = found.instance.configuration.as_ref().map_or(&[][..], |configuration| &configuration.listen);
        let names = self.interfaces_for(netns.as_ref(), &upstreams)?;
        // What this host sends, and what breaks it, its kernel tells. A listener for sent packets makes the kernel copy the header of each,
        // before any filter (`dev_queue_xmit_nit`); on the loopback interface every packet arrives as well.
        let told_elsewhere = match self.scope.depth {
            Depth::Light => true,
            Depth::Standard => !self.scope.keeps_packets,
            Depth::Deep => false,
        };
        let inbound_only = told_elsewhere && self.hears(master.pid);
        let (detail, buffer) = match self.scope.depth {
            Depth::Light => (filter::Detail::Trouble, TROUBLE_BUFFER),
            Depth::Standard if inbound_only && self.knows_sockets() => (filter::Detail::Answers, TROUBLE_BUFFER),
            Depth::Standard => (filter::Detail::Fates, FATES_BUFFER),
            Depth::Deep => (filter::Detail::Everything, EVERYTHING_BUFFER),
        };
        let filter = filter::build(&upstreams, listen, detail);
        let mut captures = Vec::new();
        for name in names {
            let index = self.last_interface;
            let options = Options {
                interface: name.clone(),
                index,
                netns: netns.clone(),
                filter: filter.text.clone(),
                snap_length: SNAP_LENGTH,
                inbound_only,
                buffer,
                numbers: Arc::clone(&self.numbers),
                bell: self.intake.rest().bell(),
            };
            let sink = sources::packet_sink(self.intake.clone(), found.instance.netns);
            captures.push(Capture::start(options, sink)?);
            self.last_interface += 1;
            self.interfaces.lock().unwrap_or_else(PoisonError::into_inner).push(Interface {
                name,
                netns: found.instance.netns,
                filter: filter.text.clone(),
                snap_length: SNAP_LENGTH,
                ..Interface::default()
            });
        }
        Ok(captures)
    }
}

fn namespace_of(master: &Master) -> Result<Option<Arc<File>>, CaptureError> {
    let opened = namespaces::open(master.pid, "net").map_err(|error| CaptureError::Namespace(error.to_string()))?;
    Ok(opened.map(Arc::new))
}
