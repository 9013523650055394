//! `upstream-sent-502`: the upstream itself answered this status.

use super::super::{
    cause::{Cause, Depth, Family, Finding, Page},
    reading::{Reading, complaint_evidence, evidence, need},
};
use crate::model::{
    attempt::{Attempt, Link, Outcome},
    case::{CaseKind, Origin},
    complaint::Message,
    coverage::Sensor,
    evidence::{Evidence, Fact, Weight},
    packet::Content,
};

/// nginx passes a header on at once, but for what a busy worker takes; an access log tells of it when the response is over.
const PASSED_ON_WITHIN_NS: u64 = 1_100_000_000;

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "upstream-sent-502",
    title: "the upstream itself answered 502; nginx passed it on",
    family: Family::Origin,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "nginx got a whole, valid response from the upstream, and its status was 502. The fault lies behind the upstream: it \
                   is itself a proxy (another nginx, an ingress, an application gateway) or an application that says so. \
                   500 instead of 502 when it was the server of auth_request.",
        proof: "The upstream's status line on the wire, or the header that nginx accepted from it.",
        refuted: "A failure of the connection before the header was whole.",
        remedies: &[
            (
                "nginx",
                "The next place to look is the upstream's own log at this time. proxy_next_upstream http_502 tries another server; \
                       proxy_intercept_errors with error_page hides it.",
            ),
            (
                "gunicorn",
                "It makes no 502 itself: the application did, or a proxy that it asked. --access-logfile - shows the request.",
            ),
            ("uvicorn", "As gunicorn: --access-log, and the application's own log."),
            (
                "Node.js",
                "http-proxy and its kind answer 502 when their own upstream fails: log the proxy's 'error' event.",
            ),
            ("Puma", "Rack::Proxy and gateways in the application: look at what they asked for."),
            ("php-fpm", "The script sent `Status: 502`: php-fpm's own failures are seen as closes."),
            (
                "uWSGI",
                "Where its HTTP router stands before the workers, look into its log (--logto) for the request, harakiri and respawn lines.",
            ),
            (
                "Go",
                "httputil.ReverseProxy answers 502 on any error of its upstream: set ErrorHandler and log the error.",
            ),
            ("Java", "Spring Cloud Gateway and Zuul answer 502 or 504 for their own upstreams: look at their log."),
            ("any server", "Run probe502 there, if it is an nginx: its own cause is seen on that host."),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    if let Some((event, complaint)) = reading.complained(Message::AuthRequest) {
        // Of another status nginx makes 500 as well, and that is no 502 of anybody's.
        if reading.attempt.and_then(|attempt| attempt.status).is_some_and(|said| said != 502) {
            return None;
        }
        return Some(by_auth_request(reading, complaint_evidence(event, complaint)));
    }
    let attempt = reading.attempt?;
    if reading.case.kind == CaseKind::NearMiss {
        return hidden(reading, attempt);
    }
    let status = reading.case.status?;
    if attempt.link == Link::Inferred {
        return by_the_logs(reading, status);
    }
    if status != 502 || reading.case.origin != Origin::Upstream || attempt.complaint.is_some() {
        return None;
    }
    let mut finding = Finding::default();
    let line = status_line(reading, status);
    let seen = line.is_some();
    finding.support(line);
    if attempt.status == Some(status) && attempt.outcome == Outcome::Ok {
        let fact = Fact::UpstreamStatus { status, line: None };
        // nginx keeps the status of a header it accepted; read from its memory, it is what the upstream said.
        finding.support(Some(evidence(fact, &[reading.case.decided_by], Weight::Direct)));
    } else if !seen {
        finding.missing.push(need(Sensor::NginxFunctions, "the status of the header that nginx accepted"));
        finding.not_excluded(&["configured-502"]);
    }
    let upstream = reading.upstream_name();
    finding.summary = format!("{upstream} answered 502 itself, and nginx passed it on: the fault lies behind it.");
    let starved = reading.starved_holder(Weight::Fits);
    if let Some(Fact::SyscallFailed { call, process: Some((pid, command)), errno }) =
        starved.first().map(|call| &call.fact)
    {
        let what = if *call == "open" { "open no file" } else { "make no socket" };
        finding.say(format_args!(
            " While it served this request, {command} (pid {pid}) could {what} ({errno}): it is out of file descriptors."
        ));
        finding.fix.push(format!(
            "Raise the limit of open files of {command}, and see what it holds: `ls -l /proc/{pid}/fd`."
        ));
    }
    for call in starved.into_iter().take(3) {
        finding.support(Some(call));
    }
    if let Some(root) = reading.case.earlier.last() {
        let cause = root.cause.map_or_else(String::new, |cause| format!(" ({cause})"));
        finding
            .say(format_args!(" The nginx there is watched too: incident {}{cause} is the same request.", root.case.0));
        finding.fix.push(format!("See incident {}.", root.case.0));
    }
    finding.fix.push(format!(
        "Look into the log of {upstream} at this time; if it is a proxy, watch it with probe502 on its own host."
    ));
    Some(finding)
}

/// The server that `auth_request` asked answered 502: nginx answers 500. Its error log does not name that server.
fn by_auth_request(reading: &Reading<'_>, said: Evidence) -> Finding {
    let mut finding = Finding::default();
    finding.support(Some(said));
    let line = status_line(reading, 502);
    let listed = reading.attempt.is_some_and(|attempt| attempt.status == Some(502) && attempt.outcome == Outcome::Ok);
    if listed {
        let fact = Fact::UpstreamStatus { status: 502, line: None };
        finding.support(Some(evidence(fact, &[reading.case.decided_by], Weight::Direct)));
    } else if line.is_none() {
        // A failure of nginx's own would have been logged before.
        finding.missing.push(need(Sensor::NginxFunctions, "which server the subrequest asked, and what it said"));
        finding.not_excluded(&["upstream-refused", "premature-close", "upstream-reset"]);
    }
    finding.support(line);
    finding.summary = if reading.attempt.is_some_and(|attempt| attempt.upstream.is_some()) {
        format!(
            "{} answered 502 itself when nginx asked it on behalf of auth_request, and nginx made 500 of it: the fault lies behind it.",
            reading.upstream_name()
        )
    } else {
        "auth_request got a 502, and nginx made 500 of it; it logged no failure of its own: so it looks when the server that was asked \
         answers 502 itself."
            .to_owned()
    };
    finding.fix.push(
        "Look into that server's own log at this time; auth_request takes 2xx for yes, 401 and 403 for no, and makes 500 of all \
         else."
            .to_owned(),
    );
    finding
}

/// A server's 502 after which nginx went on to the next (`proxy_next_upstream http_502`), or to a page (`proxy_intercept_errors`).
fn hidden(reading: &Reading<'_>, attempt: &Attempt) -> Option<Finding> {
    let said = attempt.outcome == Outcome::Ok && attempt.status == Some(502) && attempt.complaint.is_none();
    if !said || attempt.link == Link::Inferred {
        return None;
    }
    let mut finding = Finding::default();
    finding.support(status_line(reading, 502));
    let fact = Fact::UpstreamStatus { status: 502, line: None };
    // nginx keeps the status of a header it accepted; read from its memory, it is what the upstream said.
    finding.support(Some(evidence(fact, &[reading.case.decided_by], Weight::Direct)));
    let upstream = reading.upstream_name();
    finding.summary = format!(
        "{upstream} answered 502 itself; nginx went on without it (proxy_next_upstream, or proxy_intercept_errors with an error_page), and \
         the client did not see it."
    );
    finding.fix.push(format!(
        "Look into the log of {upstream} at this time; if it is a proxy, watch it with probe502 on its own host."
    ));
    Some(finding)
}

/// Without nginx's own word: the status line on the wire, or the access log's status where no error line says why.
fn by_the_logs(reading: &Reading<'_>, status: u16) -> Option<Finding> {
    let attempt = reading.attempt?;
    attempt.upstream.as_ref()?;
    let listed = attempt.status == Some(status);
    if status != 502 || attempt.complaint.is_some() || (attempt.status.is_some() && !listed) {
        return None;
    }
    let upstream = reading.upstream_name();
    let mut finding = Finding::default();
    if let Some(line) = status_line(reading, status) {
        finding.support(Some(line));
        finding.summary = format!("{upstream} answered 502 itself, and nginx passed it on: the fault lies behind it.");
        if !listed {
            finding.missing.push(need(Sensor::AccessLog, "$upstream_addr and $upstream_status in the log_format"));
            finding.not_excluded(&["configured-502", "cached-502"]);
            finding.summary = format!(
                "{upstream} answered 502 itself just before nginx did, and nginx logged no failure of its own: it will have passed \
                 that on."
            );
        }
    } else {
        // nginx writes 502 there for an attempt that failed, too, and then an error line.
        if !listed || !reading.sees(Sensor::ErrorLog) || !reading.errors_are_logged() {
            return None;
        }
        let fact = Fact::UpstreamStatus { status, line: None };
        finding.support(Some(evidence(fact, &[reading.case.decided_by], Weight::Fits)));
        finding.missing.push(need(Sensor::Packets, "the upstream's status line on the wire"));
        finding.not_excluded(&["upstream-refused", "premature-close", "upstream-reset"]);
        finding.summary = format!(
            "nginx's access log has 502 as the status of {upstream}, and its error log no failure of that attempt: so it looks when the \
             upstream answers 502 itself."
        );
    }
    finding.fix.push(format!(
        "Look into the log of {upstream} at this time; if it is a proxy, watch it with probe502 on its own host."
    ));
    Some(finding)
}

/// The upstream's status line on the wire.
fn status_line(reading: &Reading<'_>, status: u16) -> Option<Evidence> {
    let since = match reading.started() {
        Some(started) => started.minus_ns(5_000_000),
        // Of several connections that fit, each was chosen for a status line in this time.
        None if reading.attempt?.link == Link::Inferred => reading.case.decided.earliest.minus_ns(PASSED_ON_WITHIN_NS),
        None => return None,
    };
    reading.flow()?.packets_from_upstream().find_map(|(event, packet)| match &packet.content {
        Content::HttpStatus { code, line } if *code == status && event.at.latest >= since => {
            Some(evidence(Fact::UpstreamStatus { status, line: Some(line.to_string()) }, &[event.id], Weight::Direct))
        }
        _ => None,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::World,
        model::{
            attempt::Outcome,
            case::{CaseId, CaseKind, EarlierFailure, Origin},
            complaint::{Message, Phase},
            packet::Content,
            verdict::Confidence,
        },
    };

    pub(crate) fn passed_on() -> World {
        let mut world = World::new(502);
        world.case.origin = Origin::Upstream;
        world.connect(-90);
        let ends = ("127.0.0.1:8000".parse().unwrap(), "127.0.0.1:41822".parse().unwrap());
        let line = "HTTP/1.1 502 Bad Gateway".into();
        world.packet(-50, ends, 0x18, (0, 0), (180, Content::HttpStatus { code: 502, line }));
        world.attempt().outcome = Outcome::Ok;
        world
    }

    #[test]
    fn the_plain_case() {
        passed_on().expect("upstream-sent-502", Confidence::Confirmed);
        let mut world = passed_on();
        world.flow().events.clear();
        world.expect("upstream-sent-502", Confidence::Confirmed);
    }

    #[test]
    fn the_incident_of_the_nginx_behind_is_named() {
        let mut world = passed_on();
        world.case.earlier.push(EarlierFailure {
            case: CaseId("20261121T140207.331204-000016".to_owned()),
            at: world.case.decided.latest,
            peer: "10.0.0.9:80".to_owned(),
            cause: Some("upstream-refused"),
            worker: None,
            client: None,
        });
        let explanation = world.expect("upstream-sent-502", Confidence::Confirmed);
        let wanted = "incident 20261121T140207.331204-000016 (upstream-refused) is the same request";
        assert!(explanation.summary.contains(wanted), "{}", explanation.summary);
    }

    #[test]
    fn one_that_a_retry_hides_is_a_near_miss() {
        let mut world = passed_on();
        (world.case.kind, world.case.status) = (CaseKind::NearMiss, Some(200));
        world.attempt().status = Some(502);
        let mut next = world.attempt().clone();
        (next.status, next.upstream) = (Some(200), None);
        world.case.attempts.push(next);
        let explanation = world.expect("upstream-sent-502", Confidence::Confirmed);
        assert!(
            explanation.summary.starts_with("127.0.0.1:8000 answered 502 itself; nginx went on"),
            "{}",
            explanation.summary
        );
    }

    #[test]
    fn auth_request_makes_500_of_it() {
        let text = "auth request unexpected status: 502";
        let mut world = passed_on();
        world.case.status = Some(500);
        world.attempt().status = Some(502);
        world.complain(Message::AuthRequest, Phase::Other, None, text);
        let explanation = world.expect("upstream-sent-502", Confidence::Confirmed);
        assert!(explanation.summary.contains("auth_request"), "{}", explanation.summary);
        // From nginx's log alone: which server that was it does not say.
        let mut world = World::new(500);
        world.case.attempts.clear();
        world.case.origin = Origin::Upstream;
        world.log(Message::AuthRequest, Phase::Other, None, text);
        let explanation = world.expect("upstream-sent-502", Confidence::Possible);
        assert!(explanation.rivals.contains(&"upstream-refused"), "{:?}", explanation.rivals);
    }

    #[test]
    fn a_failure_of_the_connection_is_not_it() {
        let mut world = passed_on();
        world.case.origin = Origin::Nginx;
        assert_ne!(crate::report::cause(&world.judge()), "upstream-sent-502");
    }

    #[test]
    fn without_the_status_line_and_nginxs_memory_it_is_not_certain() {
        let mut world = passed_on();
        world.flow().events.clear();
        world.attempt().status = None;
        assert!(world.explained().confidence < Confidence::Confirmed);
    }
}
