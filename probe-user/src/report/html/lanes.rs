//! Who takes part in an incident, from left to right, and which of them a piece of evidence belongs to.

use std::collections::{BTreeMap, BTreeSet};

use crate::report::{
    json::{EvidenceLine, Incident},
    place::Place,
};

/// More processes of one upstream than this share a lane.
const MOST_PROCESSES: usize = 2;

/// What kind of participant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Who asked.
    Client,
    /// The worker, and its sockets.
    Nginx,
    /// An upstream's address: its kernel, its socket.
    Upstream,
    /// A process of an upstream on this host.
    Process,
}

/// A participant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lane {
    pub(super) kind: Kind,
    pub(super) name: String,
    /// Its address or pid.
    pub(super) detail: String,
}

/// Where in the picture something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// It goes from one to another; `None`: that end is none of the participants.
    Travels(Option<usize>, Option<usize>),
    /// It happens at one.
    At(usize),
    /// It is not known whose it is.
    Nowhere,
}

/// The participants.
#[derive(Clone, Debug)]
pub(super) struct Lanes {
    pub(super) all: Vec<Lane>,
    ends: BTreeMap<String, usize>,
    processes: BTreeMap<u32, usize>,
    nginx_pid: Option<u32>,
}

/// The lane of the client.
pub(super) const CLIENT: usize = 0;
/// The lane of nginx.
pub(super) const NGINX: usize = 1;

impl Lanes {
    /// The participants of an incident.
    pub(super) fn of(incident: &Incident) -> Self {
        let client = incident.request.client.clone().or_else(|| incident.request.client_address.clone());
        let worker = incident.nginx.pid.map(|pid| format!("worker {pid}")).unwrap_or_default();
        let mut lanes = vec![
            Lane { kind: Kind::Client, name: "client".to_owned(), detail: client.unwrap_or_default() },
            Lane { kind: Kind::Nginx, name: "nginx".to_owned(), detail: worker },
        ];
        let mut ends = BTreeMap::new();
        ends.extend(incident.request.client.clone().map(|client| (client, CLIENT)));
        ends.extend(incident.attempts.iter().filter_map(|attempt| Some((attempt.local.clone()?, NGINX))));
        let mut upstreams: Vec<String> = Vec::new();
        for attempt in &incident.attempts {
            upstreams.extend(attempt.upstream.clone().filter(|upstream| !upstreams.contains(upstream)));
        }
        let mut processes = BTreeMap::new();
        let mut left = upstream_processes(incident, &upstreams);
        for upstream in upstreams {
            ends.insert(upstream.clone(), lanes.len());
            let of_this: Vec<u32> =
                left.iter().filter(|(_, of)| of.upstream.as_ref() == Some(&upstream)).map(|(pid, _)| *pid).collect();
            let kernel = incident.evidence.iter().any(|line| of_kernel(line, &upstream));
            let name = if kernel { "upstream kernel" } else { "upstream" }.to_owned();
            lanes.push(Lane { kind: Kind::Upstream, name, detail: upstream });
            let known = of_this.into_iter().filter_map(|pid| Some((pid, left.remove(&pid)?.name))).collect();
            add_processes(&mut lanes, &mut processes, known);
        }
        add_processes(&mut lanes, &mut processes, left.into_iter().map(|(pid, of)| (pid, of.name)).collect());
        Self { all: lanes, ends, processes, nginx_pid: incident.nginx.pid }
    }

    /// Where a piece of evidence stands.
    pub(super) fn position(&self, line: &EvidenceLine) -> Position {
        let Some(place) = &line.place else {
            let nginxs = matches!(&*line.source, "nginx" | "log" | "config");
            return if nginxs { Position::At(NGINX) } else { Position::Nowhere };
        };
        let end = |end: &Option<String>| end.as_ref().and_then(|end| self.ends.get(end)).copied();
        let (from, to) = (end(&place.from), end(&place.to));
        match place.side.as_deref() {
            Some("nginx") => Position::At(NGINX),
            Some("upstream") => {
                let itself = matches!(&*line.source, "syscall" | "process" | "host");
                let process = place.pid.filter(|_| itself).and_then(|pid| self.processes.get(&pid)).copied();
                let upstream = [from, to].into_iter().flatten().find(|lane| self.is_upstream(*lane));
                process.or(upstream).or_else(|| self.only_upstream()).map_or(Position::Nowhere, Position::At)
            }
            _ if place.from.is_some() || place.to.is_some() => {
                // What is kept of an incident are the connections between nginx and upstreams: opposite an upstream stands nginx.
                let opposite = |known: Option<usize>| known.filter(|lane| self.is_upstream(*lane)).map(|_| NGINX);
                match (from, to) {
                    (None, None) => Position::Nowhere,
                    // An ICMP message has an address and no port: it comes from somewhere on the way.
                    (None, to) if place.from.as_ref().is_some_and(|from| from.parse::<std::net::IpAddr>().is_ok()) => {
                        Position::Travels(None, to)
                    }
                    (from, to) => Position::Travels(from.or_else(|| opposite(to)), to.or_else(|| opposite(from))),
                }
            }
            _ => match place.pid {
                Some(pid) if Some(pid) == self.nginx_pid => Position::At(NGINX),
                Some(pid) => self.processes.get(&pid).map_or(Position::Nowhere, |lane| Position::At(*lane)),
                None => Position::Nowhere,
            },
        }
    }

    fn is_upstream(&self, lane: usize) -> bool {
        self.all.get(lane).is_some_and(|lane| lane.kind == Kind::Upstream)
    }

    fn only_upstream(&self) -> Option<usize> {
        let mut upstreams = (0..self.all.len()).filter(|lane| self.is_upstream(*lane));
        upstreams.next().filter(|_| upstreams.next().is_none())
    }
}

/// The kernel at the upstream's end was seen: it is this host's.
fn of_kernel(line: &EvidenceLine, upstream: &str) -> bool {
    let at = |place: &Place| place.side.as_deref() == Some("upstream") && place.from.as_deref() == Some(upstream);
    line.source == "kernel" && line.place.as_ref().is_some_and(at)
}

struct Process {
    name: String,
    upstream: Option<String>,
}

/// Processes of upstreams that did something themselves, with the upstream they serve where that is known.
fn upstream_processes(incident: &Incident, upstreams: &[String]) -> BTreeMap<u32, Process> {
    let mut found: BTreeMap<u32, Process> = BTreeMap::new();
    let mut names: BTreeMap<u32, &str> = BTreeMap::new();
    let mut own: BTreeSet<u32> = BTreeSet::new();
    for line in &incident.evidence {
        let Some(place) = line.place.as_ref().filter(|place| place.side.as_deref() == Some("upstream")) else {
            continue;
        };
        let Some(pid) = place.pid else { continue };
        if let Some(name) = &place.process {
            names.entry(pid).or_insert(name);
        }
        let process = found.entry(pid).or_insert_with(|| Process { name: String::new(), upstream: None });
        let ends = [&place.from, &place.to].into_iter().flatten();
        process.upstream =
            process.upstream.take().or_else(|| ends.into_iter().find(|end| upstreams.contains(end)).cloned());
        if matches!(&*line.source, "syscall" | "process" | "host") {
            own.insert(pid);
        }
    }
    found.retain(|pid, _| own.contains(pid));
    for (pid, process) in &mut found {
        process.name = names.get(pid).map_or_else(|| "process".to_owned(), |name| (*name).to_owned());
        if let ([only], None) = (upstreams, &process.upstream) {
            process.upstream = Some(only.clone());
        }
    }
    found
}

fn add_processes(lanes: &mut Vec<Lane>, processes: &mut BTreeMap<u32, usize>, known: Vec<(u32, String)>) {
    if known.len() > MOST_PROCESSES {
        processes.extend(known.iter().map(|(pid, _)| (*pid, lanes.len())));
        let detail = format!("{} of them", known.len());
        lanes.push(Lane { kind: Kind::Process, name: "processes".to_owned(), detail });
        return;
    }
    for (pid, name) in known {
        processes.insert(pid, lanes.len());
        lanes.push(Lane { kind: Kind::Process, name, detail: format!("pid {pid}") });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::json::AttemptLine;

    fn line(source: &'static str, place: Place) -> EvidenceLine {
        EvidenceLine { source: source.into(), place: Some(place), ..EvidenceLine::default() }
    }

    fn packet(from: &str, to: &str) -> EvidenceLine {
        line("packet", Place { from: Some(from.to_owned()), to: Some(to.to_owned()), ..Place::default() })
    }

    fn at_upstream(source: &'static str, from: Option<&str>, pid: Option<u32>) -> EvidenceLine {
        let side = Some("upstream".into());
        line(
            source,
            Place { side, from: from.map(str::to_owned), pid, process: Some("app".to_owned()), ..Place::default() },
        )
    }

    fn incident() -> Incident {
        let attempt = |upstream: &str, local: &str| AttemptLine {
            upstream: Some(upstream.to_owned()),
            local: Some(local.to_owned()),
            ..AttemptLine::default()
        };
        let mut incident = Incident {
            attempts: vec![attempt("10.0.0.1:80", "10.0.0.9:1000"), attempt("10.0.0.2:80", "10.0.0.9:1001")],
            ..Incident::default()
        };
        incident.request.client = Some("10.1.1.1:5".to_owned());
        incident.nginx.pid = Some(7);
        incident.evidence = vec![at_upstream("syscall", Some("10.0.0.1:80"), Some(88))];
        incident
    }

    #[test]
    fn everybody_has_a_lane_and_a_process_stands_beside_its_upstream() {
        let lanes = Lanes::of(&incident());
        let names: Vec<(&str, &str)> =
            lanes.all.iter().map(|lane| (lane.name.as_str(), lane.detail.as_str())).collect();
        assert_eq!(
            names,
            [
                ("client", "10.1.1.1:5"),
                ("nginx", "worker 7"),
                ("upstream", "10.0.0.1:80"),
                ("app", "pid 88"),
                ("upstream", "10.0.0.2:80")
            ]
        );
    }

    #[test]
    fn evidence_finds_its_place() {
        let lanes = Lanes::of(&incident());
        let at = |line: &EvidenceLine| lanes.position(line);
        assert_eq!(at(&packet("10.0.0.1:80", "10.0.0.9:1000")), Position::Travels(Some(2), Some(1)));
        assert_eq!(at(&packet("10.0.0.9:4444", "10.0.0.2:80")), Position::Travels(Some(1), Some(4)));
        assert_eq!(at(&packet("10.5.5.5", "10.0.0.9:1001")), Position::Travels(None, Some(1)));
        assert_eq!(at(&packet("10.5.5.5:1", "10.5.5.6:2")), Position::Nowhere);
        assert_eq!(at(&at_upstream("syscall", None, Some(88))), Position::At(3));
        assert_eq!(at(&at_upstream("kernel", Some("10.0.0.2:80"), Some(88))), Position::At(4));
        assert_eq!(at(&at_upstream("process", None, Some(99))), Position::Nowhere, "of which of the two?");
        let bare = EvidenceLine { source: "nginx".into(), ..EvidenceLine::default() };
        assert_eq!(at(&bare), Position::At(NGINX));
        let own = line("syscall", Place { pid: Some(7), ..Place::default() });
        assert_eq!(at(&own), Position::At(NGINX));
    }

    #[test]
    fn many_processes_share_a_lane() {
        let mut incident = incident();
        incident.evidence = (1..=4).map(|pid| at_upstream("process", Some("10.0.0.2:80"), Some(pid))).collect();
        let lanes = Lanes::of(&incident);
        assert_eq!(lanes.all.len(), 5);
        assert_eq!(lanes.all[4].detail, "4 of them");
        assert_eq!(lanes.position(&incident.evidence[2]), Position::At(4));
    }
}
