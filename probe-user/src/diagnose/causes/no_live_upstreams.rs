//! `no-live-upstreams`: every server of the group was out of rotation.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        cause_of_attempt,
        reading::{Reading, duration, evidence, need},
    },
    servers::{RESTARTS, and_servers},
};
use crate::model::{
    attempt::{Attempt, Outcome},
    case::EarlierFailure,
    complaint::Message,
    coverage::Sensor,
    event::{Body, Source},
    evidence::{Evidence, Fact, Weight},
    host::{UpstreamGroup, UpstreamServer},
    nginx::NginxEvent,
    verdict::Need,
};

/// nginx's default `fail_timeout`, milliseconds.
const FAIL_TIMEOUT_MS: u64 = 10_000;
/// More failures than this are summed up.
const SHOWN: usize = 8;

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "no-live-upstreams",
    title: "every server of the group was out of rotation",
    family: Family::Connect,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "nginx found no server of the upstream group that it could ask: each had failed max_fails times (default 1) within \
                   fail_timeout (default 10 s) and was left out for that long, or was marked down, or full (max_conns), or had been \
                   tried already by this request. No packet was sent. The failures before it are the real fault: this one is their echo.",
        proof: "nginx's message, no socket and no packet for the request, and for every server of the group that is not down the \
                failure that took it out, with its cause, in this worker.",
        refuted: "A connection that was tried for this very attempt.",
        remedies: &const {
            and_servers::<2, 10>(
                [
                    (
                        "nginx",
                        "Mend the failures that are blamed. Then: max_fails=0 on the server lines never takes a server out (a group of \
                       one ignores max_fails anyway); max_fails=3 fail_timeout=5s forgives more. A single bad request can otherwise \
                       take every server out, as proxy_next_upstream carries it from one to the next: proxy_next_upstream_tries 2. \
                       Without `zone` each worker counts by itself.",
                    ),
                    (
                        "any server",
                        "A restart that closes the port for a moment takes the server out for fail_timeout. So does a lost keepalive race (keepalive-race). To restart without such a moment:",
                    ),
                ],
                RESTARTS,
            )
        },
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let (event, complaint) = reading.complained(Message::NoLiveUpstreams)?;
    let mut finding = Finding::default();
    // nginx decides this by counters of its own: its function, seen by the kernel as it says so, is the cause itself.
    let weight = if event.source == Source::Kernel { Weight::Direct } else { Weight::Fits };
    let said = Fact::Complained { text: complaint.text.clone(), errno: complaint.errno };
    finding.support(Some(evidence(said, &[event.id], weight)));
    finding.support(Some(evidence(Fact::NothingTried, &[event.id], Weight::Fits)));
    let group = group(reading);
    let mut blamed: Vec<Blamed<'_>> = Vec::new();
    if let Some(group) = group {
        every_server(&mut finding, reading, group, &mut blamed);
    } else {
        // Failures that were seen before can be those of other groups.
        finding
            .missing
            .push(need(Sensor::Configuration, "which servers the group has, and so which failures took them out"));
    }
    for blame in blamed.iter().take(SHOWN) {
        finding.support(Some(blame.evidence(reading)));
    }
    describe(&mut finding, reading, group, &blamed);
    Some(finding)
}

/// A failure that took a server out.
#[derive(Clone, Copy)]
enum Blamed<'a> {
    /// Of an earlier request.
    Earlier(&'a EarlierFailure),
    /// Of this request: a server that failed it is not asked again.
    SameRequest(&'a Attempt),
}

impl Blamed<'_> {
    fn evidence(&self, reading: &Reading<'_>) -> Evidence {
        match self {
            Self::Earlier(failure) => {
                let fact = Fact::PeerDisabled {
                    peer: failure.peer.clone(),
                    case: failure.case.0.clone(),
                    cause: failure.cause,
                    before_us: reading.case.decided.latest.since_ns(failure.at) / 1_000,
                };
                evidence(fact, &[], Weight::Symptom)
            }
            Self::SameRequest(attempt) => {
                let fact = Fact::PeerDisabled {
                    peer: name_of(attempt),
                    case: reading.case.id.0.clone(),
                    cause: Some(cause_of_attempt(reading.case, attempt)),
                    before_us: attempt
                        .complaint
                        .as_ref()
                        .map_or(0, |(event, _)| reading.case.decided.latest.since_ns(event.at.latest) / 1_000),
                };
                let events: Vec<_> = attempt.complaint.iter().map(|(event, _)| event.id).collect();
                evidence(fact, &events, Weight::Symptom)
            }
        }
    }

    fn words(&self, reading: &Reading<'_>) -> String {
        match self {
            Self::Earlier(failure) => {
                let before = duration(reading.case.decided.latest.since_ns(failure.at) / 1_000);
                let cause = failure.cause.unwrap_or("not yet judged");
                format!("{} ({cause} {before} before, case {})", failure.peer, failure.case.0)
            }
            Self::SameRequest(attempt) => {
                format!("{} ({} in this very request)", name_of(attempt), cause_of_attempt(reading.case, attempt))
            }
        }
    }
}

fn name_of(attempt: &Attempt) -> String {
    let address = attempt.upstream.as_ref().map(ToString::to_string);
    address.or_else(|| attempt.peer_name.clone()).unwrap_or_else(|| "a server".to_owned())
}

fn unseen(what: &str) -> Need {
    Need { sensor: None, what: what.to_owned() }
}

/// Failures of other requests; this one's own are among its attempts.
fn others<'a>(reading: &Reading<'a>) -> impl Iterator<Item = &'a EarlierFailure> {
    let case = reading.case;
    case.earlier.iter().filter(|failure| failure.case != case.id)
}

/// The group nginx names: where no peer was taken, its name stands for the peer's.
fn group<'a>(reading: &Reading<'a>) -> Option<&'a UpstreamGroup> {
    let groups = &reading.case.configuration.as_ref()?.groups;
    let by_name = reading
        .attempt
        .and_then(|attempt| attempt.peer_name.clone())
        .or_else(|| group_name(reading))
        .and_then(|name| groups.iter().find(|group| group.name == name));
    let has =
        |group: &UpstreamGroup, failure: &EarlierFailure| group.servers.iter().any(|server| is(server, &failure.peer));
    by_name.or_else(|| {
        let failures = &reading.case.earlier;
        let mut fitting = groups.iter().filter(|group| failures.iter().any(|failure| has(group, failure)));
        fitting.next().filter(|_| fitting.next().is_none())
    })
}

/// The group's name as nginx gives it with the message.
fn group_name(reading: &Reading<'_>) -> Option<String> {
    let (event, _) = reading.complained(Message::NoLiveUpstreams)?;
    match &event.body {
        Body::Nginx(NginxEvent::Log(log)) => log.peer.clone(),
        Body::ErrorLine(line) => {
            let address = line.upstream.as_deref()?;
            let peer = address.split_once("://").map_or(address, |(_, rest)| rest);
            Some(peer.split('/').next().unwrap_or(peer).to_owned())
        }
        _ => None,
    }
}

fn is(server: &UpstreamServer, peer: &str) -> bool {
    server.name == peer || server.addresses.iter().any(|address| address.to_string() == peer)
}

/// For each server of the group: what took it out.
fn every_server<'a>(finding: &mut Finding, reading: &Reading<'a>, group: &UpstreamGroup, blamed: &mut Vec<Blamed<'a>>) {
    let alone = group.servers.iter().map(|server| server.addresses.len().max(1)).sum::<usize>() == 1;
    for server in group.servers.iter().filter(|server| !server.down) {
        let span_ns = server.fail_timeout_ms.max(1).saturating_mul(1_000_000);
        let names: Vec<String> = if server.addresses.is_empty() {
            vec![server.name.clone()]
        } else {
            server.addresses.iter().map(ToString::to_string).collect()
        };
        for name in names {
            let failed = |attempt: &&&Attempt| {
                attempt.outcome != Outcome::Ok && attempt.upstream.is_some() && (name_of(attempt) == name)
            };
            let same = reading.case.attempts.iter().collect::<Vec<_>>();
            if let Some(attempt) = same.iter().find(failed) {
                blamed.push(Blamed::SameRequest(attempt));
                continue;
            }
            let of_server: Vec<&EarlierFailure> = others(reading)
                .filter(|f| f.peer == name || f.peer == server.name)
                .filter(|f| {
                    f.at <= reading.case.decided.latest && reading.case.decided.latest.since_ns(f.at) <= span_ns
                })
                .collect();
            let needed = usize::try_from(server.max_fails.max(1)).unwrap_or(usize::MAX);
            blamed.extend(of_server.iter().rev().take(needed.min(SHOWN)).map(|failure| Blamed::Earlier(failure)));
            if alone || server.max_fails == 0 {
                finding.missing.push(unseen(&format!(
                    "why {name} was left out: failures do not take it out{}",
                    if alone { ", as it is the only one of its group" } else { " (max_fails=0)" }
                )));
            } else if of_server.len() < needed {
                finding
                    .missing
                    .push(unseen(&format!("the failure that took {name} out: none was seen within its fail_timeout")));
            } else if of_server.iter().any(|failure| failure.cause.is_none()) {
                finding
                    .missing
                    .push(unseen(&format!("the cause of the failure that took {name} out: its case is still open")));
            } else if !of_server.iter().any(|failure| failure.worker.is_some() && failure.worker == reading.case.worker)
            {
                finding.missing.push(unseen(&format!(
                    "whether the failure of {name} in another worker counts for this one: it does where the group has a zone"
                )));
            }
        }
    }
}

fn describe(finding: &mut Finding, reading: &Reading<'_>, group: Option<&UpstreamGroup>, blamed: &[Blamed<'_>]) {
    let name = group.map(|group| group.name.clone()).or_else(|| group_name(reading));
    let name = name.map(|name| format!(" `{name}`")).unwrap_or_default();
    finding.summary = format!("Every server of the upstream group{name} was out of rotation, so nginx tried none.");
    let down = group.filter(|group| !group.servers.is_empty() && group.servers.iter().all(|server| server.down));
    if let Some(group) = down {
        let names: Vec<&str> = group.servers.iter().map(|server| server.name.as_str()).collect();
        finding.say(format_args!(" The configuration marks each of them `down`: {}.", names.join(", ")));
        finding.fix.push("Take the parameter `down` from the server that is to serve, and reload nginx.".to_owned());
        return;
    }
    let limited = group.and_then(|group| group.servers.iter().find(|server| !server.down && server.max_conns > 0));
    if let (true, Some(server)) = (blamed.is_empty(), limited) {
        let (name, limit) = (&server.name, server.max_conns);
        finding.say(format_args!(
            " No failure that took them out was seen. {name} has max_conns={limit}, and is passed over as well while so many connections to \
             it are open."
        ));
        finding.fix.push(format!(
            "Count its connections at such a moment (`ss -Htn dst {name} | wc -l`): with {limit} of them, raise max_conns, add servers, or \
             have the requests answered sooner."
        ));
    } else if blamed.is_empty() {
        finding.summary.push_str(" What took them out was not seen.");
        finding
            .fix
            .push("Find the failures before this one in nginx's error log: they took the servers out.".to_owned());
    } else {
        let list: Vec<String> = blamed.iter().take(SHOWN).map(|blame| blame.words(reading)).collect();
        let more = blamed.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        finding.say(format_args!(" What took them out: {}{more}.", list.join("; ")));
        let mut causes: Vec<&str> = blamed
            .iter()
            .filter_map(|blame| match blame {
                Blamed::Earlier(failure) => failure.cause,
                Blamed::SameRequest(attempt) => Some(cause_of_attempt(reading.case, attempt)),
            })
            .collect();
        causes.sort_unstable();
        causes.dedup();
        if causes.is_empty() {
            finding.fix.push("Mend the failures named above; this one is their echo.".to_owned());
        } else {
            finding.fix.push(format!("Mend the failures named above ({}); this one is their echo.", causes.join(", ")));
        }
    }
    let server = group.and_then(|group| group.servers.iter().find(|server| !server.down));
    let (max_fails, timeout) = server.map_or((1, FAIL_TIMEOUT_MS), |server| (server.max_fails, server.fail_timeout_ms));
    finding.fix.push(format!(
        "After max_fails={max_fails} failure(s) a server is left out for fail_timeout={}: max_fails=0 on the server lines keeps \
         them all in, a greater number forgives more.",
        duration(timeout.saturating_mul(1_000))
    ));
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::{WORKER, World, moment},
        model::{
            attempt::{Joined, Outcome},
            case::{CaseId, EarlierFailure},
            complaint::{Message, Phase},
            event::Body,
            host::{Configuration, UpstreamGroup, UpstreamServer},
            net::{Address, Errno},
            nginx::NginxEvent,
            process::Pid,
            verdict::Confidence,
        },
    };

    fn server(address: &str) -> UpstreamServer {
        UpstreamServer {
            name: address.to_owned(),
            addresses: vec![Address::parse(address).unwrap()],
            max_fails: 1,
            fail_timeout_ms: 10_000,
            max_conns: 0,
            down: false,
            backup: false,
        }
    }

    #[test]
    fn a_limit_of_connections_takes_a_server_out_without_a_failure() {
        let mut world = blackout();
        world.case.earlier.clear();
        world.configuration().groups[0].servers = vec![UpstreamServer { max_conns: 7, ..server("127.0.0.1:8001") }];
        let explanation = world.expect("no-live-upstreams", Confidence::Likely);
        assert!(explanation.summary.contains("127.0.0.1:8001 has max_conns=7"), "{}", explanation.summary);
    }

    fn earlier(peer: &str, us: i64, cause: Option<&'static str>) -> EarlierFailure {
        EarlierFailure {
            case: CaseId(format!("case-{peer}")),
            at: moment(us),
            peer: peer.to_owned(),
            cause,
            worker: Some(WORKER),
            client: None,
        }
    }

    pub(crate) fn blackout() -> World {
        let mut world = World::new(502);
        let attempt = world.attempt();
        attempt.flow = Joined::None;
        attempt.upstream = None;
        attempt.peer_name = Some("app".to_owned());
        world.complain(Message::NoLiveUpstreams, Phase::Connecting, None, "no live upstreams");
        let down = UpstreamServer { down: true, ..server("127.0.0.1:8003") };
        let group = UpstreamGroup {
            name: "app".to_owned(),
            servers: vec![server("127.0.0.1:8001"), server("127.0.0.1:8002"), down],
            keepalive: None,
            keepalive_timeout_ms: None,
        };
        world.case.configuration = Some(Configuration { groups: vec![group], ..Configuration::default() }.into());
        world.case.earlier = vec![
            earlier("127.0.0.1:8001", -2_000_000, Some("upstream-refused")),
            earlier("127.0.0.1:8002", -1_000_000, Some("upstream-refused")),
        ];
        world
    }

    #[test]
    fn the_plain_case_blames_the_failures_by_id() {
        let explanation = blackout().expect("no-live-upstreams", Confidence::Confirmed);
        assert!(explanation.summary.contains("case case-127.0.0.1:8001"), "{}", explanation.summary);
        assert!(explanation.fix[0].contains("upstream-refused"), "{:?}", explanation.fix);
    }

    #[test]
    fn a_server_that_failed_this_very_request_is_out_too() {
        let mut world = blackout();
        let mut first = world.case.attempts[0].clone();
        first.upstream = Address::parse("127.0.0.1:8002");
        first.peer_name = Some("127.0.0.1:8002".to_owned());
        first.outcome = Outcome::Refused;
        if let Some((_, complaint)) = &mut first.complaint {
            complaint.message = Message::ConnectFailed;
            complaint.errno = Some(Errno::ECONNREFUSED);
        }
        world.case.attempts.insert(0, first);
        world.case.earlier.pop();
        let explanation = world.expect("no-live-upstreams", Confidence::Confirmed);
        assert!(
            explanation.summary.contains("127.0.0.1:8002 (upstream-refused in this very request)"),
            "{}",
            explanation.summary
        );
    }

    #[test]
    fn the_message_after_the_last_attempt_makes_the_status() {
        let mut world = blackout();
        let mut attempt = world.case.attempts.pop().unwrap();
        let (mut event, complaint) = attempt.complaint.take().unwrap();
        if let Body::Nginx(NginxEvent::Log(log)) = &mut event.body {
            log.peer = Some("app".to_owned());
        }
        world.case.complaints.push((event, complaint));
        attempt.upstream = Address::parse("127.0.0.1:8002");
        attempt.peer_name = Some("127.0.0.1:8002".to_owned());
        attempt.outcome = Outcome::Refused;
        attempt.errno = Some(Errno::ECONNREFUSED);
        world.case.attempts.push(attempt);
        world.case.earlier.pop();
        world.expect("no-live-upstreams", Confidence::Confirmed);
    }

    #[test]
    fn each_need_removed_lowers_it_and_names_no_other() {
        let mut world = blackout();
        world.case.earlier.pop();
        world.expect("no-live-upstreams", Confidence::Likely);
        let mut world = blackout();
        world.case.earlier[0].cause = None;
        world.expect("no-live-upstreams", Confidence::Likely);
        let mut world = blackout();
        world.case.earlier[0].at = moment(-11_000_000);
        world.expect("no-live-upstreams", Confidence::Likely);
        let mut world = blackout();
        world.case.earlier[0].worker = Some(Pid(813));
        world.expect("no-live-upstreams", Confidence::Likely);
        let mut world = blackout();
        world.case.configuration = None;
        world.expect("no-live-upstreams", Confidence::Likely);
    }

    #[test]
    fn a_log_line_and_nothing_before_it() {
        let mut world = blackout();
        world.case.earlier.clear();
        world.log(Message::NoLiveUpstreams, Phase::Connecting, None, "no live upstreams");
        world.expect("no-live-upstreams", Confidence::Possible);
    }

    #[test]
    fn an_attempt_that_was_refused_is_not_it() {
        let mut world = blackout();
        world.attempt().complaint = None;
        assert_ne!(crate::report::cause(&world.judge()), "no-live-upstreams");
    }
}
