//! What upstreams answer.

use super::{Case, milliseconds, shown, tls};
use crate::{
    check::{
        finding::{Finding, Weight},
        plan,
        seen::{Answer, AnswerSeen},
        speaks::Speaks,
    },
    decode::config::{layout::Protocol, units},
};

pub(super) fn judge(case: &Case<'_>, seen: &AnswerSeen) -> Vec<Finding> {
    let protocol = case.endpoint.speech.protocol;
    let finding = match &seen.kind {
        Answer::Right => None,
        Answer::Http { status, header_bytes, body, .. } => {
            return http(case, *status, *header_bytes, body);
        }
        _ if case.one.speaks == Some(Speaks::Tls) => Some(tls_port(case, &seen.kind)),
        Answer::Wrong(bytes) => Some(wrong(case, bytes)),
        Answer::Endless(bytes) => Some(
            case.finding(
                case.weight(),
                Some("header-too-big"),
                format!("the answer's header is longer than {bytes} bytes"),
            )
            .why("nginx takes no header larger than its buffer: 502.")
            .fix("find out what fills the header (cookies, usually)"),
        ),
        Answer::Closed(0) => Some(
            case.finding(Weight::Risk, Some("premature-close"), "the upstream closes without an answer".to_owned())
                .seen(format!("closed {} after the request", milliseconds(seen.took_us)))
                .why("If it does so with real requests, nginx answers 502.")
                .fix("see the upstream's log; it may refuse this path, this Host or this protocol: try --probe-path"),
        ),
        Answer::Closed(bytes) => Some(
            case.finding(
                Weight::Risk,
                Some("premature-close"),
                "the upstream closes in the middle of the header".to_owned(),
            )
            .seen(format!("closed after {bytes} bytes"))
            .why("nginx answers 502.")
            .fix("see the upstream's log for the request"),
        ),
        Answer::Reset => Some(
            case.finding(
                Weight::Risk,
                Some("upstream-reset"),
                "the upstream resets the connection instead of answering".to_owned(),
            )
            .why("If it does so with real requests, nginx answers 502.")
            .fix("see the upstream's log; it may refuse this path, this Host or this protocol: try --probe-path"),
        ),
        Answer::Alert(alert) => Some(tls::ended(case, alert)),
        Answer::Silent => Some(silent(case, seen)),
        Answer::Unfinished(bytes) => Some(
            case.finding(Weight::Risk, Some("read-timeout"), "the upstream does not finish its header".to_owned())
                .seen(format!("{bytes} bytes of it after {}, and it was still open", milliseconds(seen.took_us)))
                .why("nginx answers 504 when a header is not whole within its read timeout.")
                .fix("find out what the upstream waits for in the middle of its header"),
        ),
        Answer::Failed(errno) => Some(
            case.finding(Weight::Risk, Some("upstream-reset"), format!("the request failed: {errno}"))
                .why("If real requests fail so, nginx answers 502.")
                .fix("see the upstream's log"),
        ),
    };
    let asked = format!("asked as {}", protocol.name());
    finding.map(|finding| case.softened(finding.seen(asked))).into_iter().collect()
}

fn http(case: &Case<'_>, status: u16, header_bytes: usize, body: &[u8]) -> Vec<Finding> {
    let protocol = case.endpoint.speech.protocol;
    let mut findings = Vec::new();
    if case.one.speaks == Some(Speaks::Tls) {
        findings.push(
            case.finding(case.weight(), None, "the port speaks TLS, and nginx speaks plain HTTP to it".to_owned())
                .seen(format!("asked without TLS it answers {status} {}", shown(body)))
                .seen("a TLS handshake comes about")
                .why("The upstream answers an error to every request; others close or send an alert, which is a 502.")
                .fix("`proxy_pass https://…`, or the upstream's plain port"),
        );
        return findings;
    }
    if case.one.speaks == Some(Speaks::Http) && matches!(protocol, Protocol::Uwsgi | Protocol::Scgi) {
        let title = format!("the port speaks HTTP, not {}", protocol.name());
        findings.push(
            case.finding(case.weight(), None, title)
                .seen(format!("asked as {} it answers {status}, asked over HTTP it answers otherwise", protocol.name()))
                .why("The server takes nginx's words for a broken HTTP request: every client is answered 400.")
                .fix("`proxy_pass http://…` for a server that speaks HTTP/1"),
        );
        return findings;
    }
    match status {
        502..=504 => findings.push(
            case.finding(
                if status == 503 { Weight::Risk } else { case.weight() },
                Some("upstream-sent-502"),
                format!("the upstream itself answers {status}"),
            )
            .seen(format!("answer to the check's request: {status} {}", shown(body)))
            .why("nginx passes it on: the fault is behind the upstream.")
            .fix("look at the upstream's own log, and at what it asks in turn"),
        ),
        500..=599 => findings.push(
            case.finding(Weight::Risk, None, format!("the upstream answers {status}"))
                .seen(format!("answer to the check's request: {status} {}", shown(body)))
                .why("nginx passes it on as the upstream's own error.")
                .fix("look at the upstream's own log; if this path is not meant to work: try --probe-path"),
        ),
        _ => {}
    }
    if let Some((other, theirs)) = case.one.other_host.as_ref().filter(|(_, theirs)| *theirs < 400) {
        let host = &case.endpoint.speech.host;
        findings.push(
            case.finding(Weight::Risk, None, format!("the upstream does not know the Host that nginx sends ({host})"))
                .seen(format!("Host {host}: {status}; Host {other}: {theirs}"))
                .why("nginx sends the name that stands in the pass (a group's name, usually), not the one the client asked for.")
                .fix(format!("`{}_set_header Host $host;`", protocol.prefix())),
        );
    }
    let smallest = buffer(case);
    if let Some((size, place)) = smallest.clone().filter(|(size, _)| header_bytes > *size) {
        findings.push(
            case.finding(
                Weight::Fault,
                Some("header-too-big"),
                "the answer's header is larger than nginx's buffer".to_owned(),
            )
            .seen(format!("header of {header_bytes} bytes, buffer of {size}"))
            .why("nginx answers 502 (\"upstream sent too big header\").")
            .fix(format!(
                "`{}_buffer_size 16k;` (and *_buffers at least as large), or fewer cookies",
                protocol.prefix()
            ))
            .at(place),
        );
    } else if let Some((size, place)) = smallest.filter(|(size, _)| header_bytes * 4 > *size * 3) {
        findings.push(
            case.finding(
                Weight::Risk,
                Some("header-too-big"),
                "the answer's header nearly fills nginx's buffer".to_owned(),
            )
            .seen(format!("header of {header_bytes} bytes, buffer of {size}"))
            .why("With one more cookie nginx answers 502 (\"upstream sent too big header\").")
            .fix(format!("`{}_buffer_size 16k;`", protocol.prefix()))
            .at(place),
        );
    }
    findings
}

/// The smallest buffer a header of this endpoint has to fit into, and where it is set. A page of memory by default, 4 KiB where it is not set.
fn buffer(case: &Case<'_>) -> Option<(usize, Option<crate::decode::config::layout::Place>)> {
    let layout = &case.seen.layout;
    let sizes = case.endpoint.uses.iter().filter_map(|user| {
        let pass = layout.passes.get(user.pass)?;
        let name = format!("{}_buffer_size", pass.protocol.prefix());
        let line = layout.block_of(pass)?.lines(&name).last();
        let size = line.and_then(|line| units::bytes(line.arguments.first()?));
        let size = size.unwrap_or(4_096);
        Some((usize::try_from(size).unwrap_or(usize::MAX), line.map(|line| line.place.clone())))
    });
    sizes.min()
}

fn tls_port(case: &Case<'_>, kind: &Answer) -> Finding {
    let (cause, seen) = match kind {
        Answer::Wrong(bytes) => ("invalid-response", format!("to a plain request came {}", shown(bytes))),
        Answer::Reset => ("upstream-reset", "it resets a plain request".to_owned()),
        Answer::Silent => ("read-timeout", "it does not answer a plain request".to_owned()),
        _ => ("premature-close", "it closes on a plain request".to_owned()),
    };
    let protocol = case.endpoint.speech.protocol;
    let title = format!("the port speaks TLS, and nginx speaks plain {} to it", protocol.name());
    let scheme = match protocol {
        Protocol::Grpc => "`grpc_pass grpcs://…`",
        Protocol::Uwsgi => "`uwsgi_pass suwsgi://…`",
        _ => "`proxy_pass https://…`",
    };
    case.finding(case.weight(), Some(cause), title)
        .seen(seen)
        .seen("a TLS handshake comes about")
        .why("No request gets an answer nginx can take.")
        .fix(format!("{scheme}, or the upstream's plain port"))
}

fn wrong(case: &Case<'_>, bytes: &[u8]) -> Finding {
    let protocol = case.endpoint.speech.protocol;
    let cause = match protocol {
        Protocol::FastCgi | Protocol::Uwsgi | Protocol::Scgi => "fastcgi-error",
        Protocol::Grpc => "grpc-error",
        Protocol::Http | Protocol::Memcached => "invalid-response",
    };
    let speaks = Speaks::of(bytes);
    let fix = match (speaks, protocol) {
        (Speaks::Http, _) => "`proxy_pass http://…` for a server that speaks HTTP/1".to_owned(),
        (Speaks::FastCgi, _) => "`fastcgi_pass` for a server that speaks FastCGI".to_owned(),
        (Speaks::Http2, Protocol::Http) => {
            "`grpc_pass` for a gRPC server; for another one its HTTP/1.1 port".to_owned()
        }
        (Speaks::Tls, _) => "the scheme with TLS, or the upstream's plain port".to_owned(),
        _ => "correct the port: this is another service".to_owned(),
    };
    let title = format!("the port speaks {}, not {}", speaks.name(), protocol.name());
    case.finding(case.weight(), Some(cause), title)
        .seen(format!("to the request came {}", shown(bytes)))
        .why(if protocol == Protocol::Http {
            "What does not begin like HTTP nginx hands to the client as it is (logged as 009 or 200); what breaks later is a 502."
        } else {
            "nginx cannot take this answer: 502 for every request."
        })
        .fix(fix)
}

fn silent(case: &Case<'_>, seen: &AnswerSeen) -> Finding {
    let layout = &case.seen.layout;
    let passes = case.endpoint.uses.iter().filter_map(|user| layout.passes.get(user.pass));
    let shortest = passes.map(|pass| plan::timeout_ms(layout, pass, "read_timeout")).min();
    let shortest = shortest.unwrap_or(plan::DEFAULT_TIMEOUT_MS);
    let waited_ms = seen.took_us / 1_000;
    // The connection we made is still among those that wait: nobody has taken it.
    let untaken = case.one.here.iter().flat_map(|here| &here.listeners).find_map(|owner| owner.listener.accept_queue);
    let untaken = untaken.filter(|(waiting, _)| *waiting > 0);
    let weight = if untaken.is_some() { case.weight() } else { Weight::Risk };
    let title =
        if untaken.is_some() { "the upstream does not accept connections" } else { "the upstream does not answer" };
    let finding = case.finding(weight, Some("read-timeout"), title.to_owned());
    let finding = match untaken {
        Some((waiting, limit)) => {
            finding.seen(format!("{waiting} of {limit} connections wait to be accepted, ours among them"))
        }
        None => finding,
    };
    finding
        .seen(format!("connected, asked, and nothing came for {waited_ms} ms; nginx waits {shortest} ms"))
        .why("nginx answers 504 after its read timeout.")
        .fix("find out what the upstream is busy with: all its workers taken, stopped, or waiting in turn")
}
