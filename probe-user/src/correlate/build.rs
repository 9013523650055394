//! Puts a case together from everything that is known when its wait is over.

use std::{collections::BTreeSet, net::SocketAddr};

use super::{Correlator, Decided, Question, attempts, crowded, led, limits::NOTABLE_REACH_NS, lines, wire};
use crate::model::{
    attempt::{Attempt, Link},
    case::{Case, CaseId, EarlierFailure, Request},
    complaint::{Complaint, Message},
    coverage::{CaseCoverage, Sensor},
    event::{Body, Event, EventId},
    host::{Configuration, HostFact},
    net::{Address, Errno},
    nginx::NginxStatus,
    process::Pid,
    socket::Syscall,
    time::{At, Moment, WallClock},
};

/// Blackouts without a configuration at hand: nginx's default `fail_timeout`.
const FAIL_TIMEOUT_NS: u64 = 10_000_000_000;

/// `20261121T140207.331204-000017`: wall time (UTC, microseconds) and the case's number in this run.
pub(super) fn name(clock: WallClock, at: Moment, number: u64) -> CaseId {
    let unix = clock.unix_ns(at);
    let text = jiff::Timestamp::from_nanosecond(unix)
        .map_or_else(|_| format!("{unix}"), |timestamp| timestamp.strftime("%Y%m%dT%H%M%S.%6f").to_string());
    CaseId(format!("{text}-{number:06}"))
}

pub(super) fn case(correlator: &Correlator, id: CaseId, decided: &Decided) -> Case {
    let until = decided.close_at;
    let worker = match (&decided.from_lines, &decided.from_wire) {
        (Some(group), _) => group.pid.map(Pid),
        (None, None) => Some(decided.request.key.worker),
        (None, Some(_)) => None,
    };
    let calls = correlator.notable.concerning(worker, &[], decided.at.earliest.minus_ns(NOTABLE_REACH_NS), until);
    let mut list = match (&decided.from_lines, &decided.from_wire) {
        (Some(group), _) => wire::with_lines(lines::attempts(group, &correlator.flows, &calls), group),
        (None, Some(group)) => group.attempts.clone(),
        (None, None) => attempts::attempts(&decided.request, &correlator.flows, &calls, decided.at.latest),
    };
    let begin = list.iter().filter_map(|a| a.started).min().unwrap_or(decided.at.earliest).min(decided.at.earliest);
    let led = led::led(correlator, &mut list, begin);
    let holders: Vec<Pid> = list.iter().filter_map(|attempt| attempt.holder()).map(|(pid, _)| pid).collect();
    let mut processes = correlator.notable.concerning(worker, &holders, begin.minus_ns(NOTABLE_REACH_NS), until);
    processes.retain(|event| accepts_for(event, &list) && connects_for(event, &list));
    let instance = match worker {
        Some(worker) => correlator.host.instance_of(worker),
        None => correlator.host.only_instance(),
    };
    let configuration = instance.and_then(|instance| instance.configuration.clone());
    let attempts_complete = match (&decided.from_lines, &decided.from_wire) {
        (Some(group), _) => lines::complete(group, &list, configuration.as_deref()),
        (None, Some(_)) => false,
        (None, None) => attempts::complete(&decided.request, &list),
    };
    let complaints = complaints(decided);
    let earlier = earlier(correlator, decided, &complaints, configuration.as_deref(), &list);
    let mut host = host(correlator, &list, &processes, worker, begin);
    host.extend(led);
    processes.extend(correlator.stops.of(&serving(&host, &holders), until));
    processes.sort_by_key(|event| event.id);
    let link =
        list.iter().map(|a| a.link).min().unwrap_or(if decided.from_lines.is_some() || decided.from_wire.is_some() {
            Link::Inferred
        } else {
            Link::Exact
        });
    let request = request(decided);
    let stored = if list.is_empty() { correlator.answered.of(&request, decided.status) } else { None };
    Case {
        id,
        kind: decided.kind,
        status: decided.status,
        origin: decided.origin,
        decided: decided.at,
        decided_by: decided.by.id,
        request,
        upstream_begun: decided.statuses.iter().find_map(|status| status.upstream_begun),
        cache_status: decided.from_lines.as_ref().and_then(lines::LineGroup::cache_status),
        stored,
        worker,
        nginx_version: instance.and_then(|instance| instance.version.clone()),
        configuration,
        by_wire: decided.from_wire.is_some(),
        subrequest: decided.request.subrequest,
        link,
        complaints,
        processes,
        host,
        earlier,
        coverage: coverage(correlator, At::between(begin, until), correlator.ended.is_some_and(|ended| ended < until)),
        attempts: list,
        attempts_complete,
    }
}

/// Processes that had the connections of the attempts, or may accept where they went.
fn serving(host: &[(EventId, At, HostFact)], holders: &[Pid]) -> BTreeSet<Pid> {
    let mut found: BTreeSet<Pid> = holders.iter().copied().collect();
    for (_, _, fact) in host {
        match fact {
            HostFact::Acceptors { processes, .. } => found.extend(processes.iter().map(|process| process.pid)),
            HostFact::Listeners { listeners, .. } => found.extend(listeners.iter().filter_map(|one| one.pid)),
            _ => {}
        }
    }
    found
}

/// A failed `accept()`, or a listener's end, concerns the case only on the port of one of its attempts; everything else does.
fn accepts_for(event: &Event, attempts: &[Attempt]) -> bool {
    let listener = match &event.body {
        Body::Socket(e) => Some(&e.socket),
        Body::Syscall(call) => match &call.call {
            Syscall::Accept { socket, .. } => socket.as_ref(),
            _ => return true,
        },
        _ => return true,
    };
    let Some(listener) = listener.and_then(|socket| socket.local) else { return true };
    let ends = |attempt: &Attempt| {
        let led = attempt.flow.one().and_then(|flow| flow.led.as_ref()).map(|led| led.to);
        [attempt.upstream.as_ref().and_then(Address::ip), led]
    };
    attempts.iter().flat_map(ends).flatten().any(|end| end.port() == listener.port())
}

/// A failed `connect()` concerns the case only where it was towards one of its attempts' peers.
fn connects_for(event: &Event, attempts: &[Attempt]) -> bool {
    let Body::Syscall(call) = &event.body else { return true };
    let Syscall::Connect { address: Some(address), .. } = &call.call else { return true };
    attempts.iter().any(|attempt| attempt.upstream.as_ref() == Some(address))
}

fn request(decided: &Decided) -> Request {
    if let Some(group) = &decided.from_lines {
        return lines::request(group);
    }
    if let Some(group) = &decided.from_wire {
        return group.request.clone();
    }
    let said = |get: fn(&NginxStatus) -> Option<String>| decided.statuses.iter().find_map(get);
    let log = decided.request.complaints.first().map(|(_, log, _)| log);
    let mut request = Request {
        host: said(|s| s.host.clone()),
        client: decided.statuses.iter().find_map(|s| s.client).or_else(|| log.and_then(|log| log.client)),
        connection: decided.request.identity.0,
        ..Request::default()
    };
    let written = || decided.line.as_ref();
    let asked = said(|s| s.request_line.clone()).or_else(|| log?.request_line.clone());
    if let Some(line) = asked.or_else(|| written()?.request.clone()) {
        lines::split_request_line(&line, &mut request);
    }
    request.host = request.host.or_else(|| log?.host.clone()).or_else(|| written()?.host.clone());
    if request.client.is_none() {
        request.client_address = written().and_then(|line| line.client.clone());
    }
    request
}

fn complaints(decided: &Decided) -> Vec<(Event, Complaint)> {
    match &decided.from_lines {
        Some(group) => group
            .lines
            .iter()
            .filter(|line| !attempts::ends_attempt(line.complaint.message))
            .map(|line| (line.event.clone(), line.complaint.clone()))
            .collect(),
        None => decided
            .request
            .complaints
            .iter()
            .filter(|(.., complaint)| !attempts::ends_attempt(complaint.message))
            .map(|(event, _, complaint)| (event.clone(), complaint.clone()))
            .collect(),
    }
}

/// The failures that took the peers of a blackout out of rotation; without a blackout, those behind.
fn earlier(
    correlator: &Correlator,
    decided: &Decided,
    complaints: &[(Event, Complaint)],
    configuration: Option<&Configuration>,
    list: &[Attempt],
) -> Vec<EarlierFailure> {
    let Some((blackout, _)) = complaints.iter().find(|(_, c)| c.message == Message::NoLiveUpstreams) else {
        return behind(correlator, decided, list);
    };
    let name = match &decided.from_lines {
        Some(group) => group.lines.iter().find_map(|line| lines::peer_of(&line.line)),
        None => decided
            .request
            .complaints
            .iter()
            .find(|(.., c)| c.message == Message::NoLiveUpstreams)
            .and_then(|(_, log, _)| log.peer.clone()),
    };
    let group = configuration.and_then(|c| c.groups.iter().find(|group| Some(&group.name) == name.as_ref()));
    let at = blackout.at.latest;
    let counts = |failure: &&EarlierFailure| {
        let Some(group) = group else { return at.since_ns(failure.at) <= FAIL_TIMEOUT_NS };
        group.servers.iter().any(|server| {
            let named = server.name == failure.peer
                || Address::parse(&failure.peer).is_some_and(|address| server.addresses.contains(&address));
            named && at.since_ns(failure.at) <= server.fail_timeout_ms.saturating_mul(1_000_000)
        })
    };
    correlator.failures.iter().filter(|failure| failure.at <= at).filter(counts).cloned().collect()
}

/// The failures of an nginx behind this one: its client is the connection of an attempt, while that lasted.
fn behind(correlator: &Correlator, decided: &Decided, list: &[Attempt]) -> Vec<EarlierFailure> {
    let clients: Vec<(Option<SocketAddr>, Moment)> =
        list.iter().filter_map(|attempt| Some((Some(attempt.flow.one()?.local?), attempt.started?))).collect();
    let Some(first) = clients.iter().map(|(_, started)| *started).min() else { return Vec::new() };
    let is_client = |failure: &&EarlierFailure| {
        let is = |(client, started): &(Option<SocketAddr>, Moment)| failure.client == *client && *started <= failure.at;
        // Of the many that a storm leaves behind, nearly all were before.
        first <= failure.at && failure.at <= decided.at.latest && clients.iter().any(is)
    };
    correlator.failures.iter().filter(is_client).cloned().collect()
}

fn host(
    correlator: &Correlator,
    list: &[Attempt],
    processes: &[Event],
    worker: Option<Pid>,
    began: Moment,
) -> Vec<(EventId, At, HostFact)> {
    let mut questions = BTreeSet::new();
    questions.extend(worker.map(Question::OpenFiles));
    for attempt in list {
        let upstream = attempt.upstream.as_ref().and_then(Address::ip);
        if let Some(upstream) = upstream {
            let netns = worker.and_then(|worker| correlator.host.netns(worker));
            questions.insert(correlator.host.listeners(upstream, worker));
            let led = attempt.flow.one().and_then(|flow| flow.led.as_ref());
            let served_at = led.map_or(upstream, |led| led.to);
            questions.extend(correlator.host.stopped_listening(served_at, worker).map(Question::OtherListeners));
            questions.insert(Question::Route { upstream, netns });
            questions.insert(Question::LocalPorts { upstream, netns });
            let served_in = netns.filter(|_| led.is_none());
            questions.insert(Question::acceptors(&Address::Ip(served_at), served_in, Pid(0)));
            questions.extend(worker.into_iter().flat_map(|worker| correlator.host.names(upstream, worker)));
        }
        if let (Some(Address::Unix(path)), Some(worker)) = (&attempt.upstream, worker) {
            questions.insert(Question::UnixSocket { path: path.clone(), worker });
            questions.insert(Question::acceptors(&Address::Unix(path.clone()), None, Pid(0)));
        }
        questions.extend(attempt.holder().map(|(pid, _)| Question::ProcessState(pid)));
    }
    for event in processes {
        match &event.body {
            Body::Syscall(call) if matches!(call.call, Syscall::Accept { .. }) => {
                questions.insert(Question::OpenFiles(call.pid));
            }
            Body::Syscall(call) if matches!(call.call, Syscall::Socket { error: Errno::ENFILE, .. }) => {
                questions.insert(Question::SystemFiles);
            }
            _ => {}
        }
    }
    correlator.host.about(&questions, began)
}

fn coverage(correlator: &Correlator, span: At, cut_short: bool) -> CaseCoverage {
    // What was told to be lost, and what could not be remembered until now.
    let told = correlator.losses.iter().map(|(at, sensor, count, why)| (*at, *sensor, *count, why.as_str()));
    let crowded = correlator.notable.forgotten().map(|lost| (lost.at, Some(lost.sensor), lost.count, crowded::WHY));
    let lost: Vec<_> = told.chain(crowded).filter(|(at, ..)| at.overlaps(&span)).collect();
    let of_packets = |sensor: &Option<Sensor>| *sensor == Some(Sensor::Packets);
    let of_logs = |sensor: &Option<Sensor>| matches!(sensor, Some(Sensor::ErrorLog | Sensor::AccessLog));
    CaseCoverage {
        sensors: correlator.sights(span.earliest),
        cut_short,
        events_lost: lost
            .iter()
            .filter(|(_, sensor, ..)| !of_packets(sensor) && !of_logs(sensor))
            .map(|(.., count, _)| count)
            .sum(),
        lost_of: lost
            .iter()
            .filter(|(_, sensor, ..)| !of_packets(sensor))
            .filter_map(|(_, sensor, count, _)| Some(((*sensor)?, *count)))
            .collect(),
        packets_dropped: lost.iter().filter(|(_, sensor, ..)| of_packets(sensor)).map(|(.., count, _)| count).sum(),
        losses: lost.into_iter().map(|(at, _, count, why)| (at, count, why.to_owned())).collect(),
    }
}
