//! What nginx's logs have said of late.

mod pauses;

use std::collections::BTreeMap;

use super::{
    finding::{Area, Finding, Weight},
    seen::{AccessSeen, ErrorSeen, Said, Seen},
};
use crate::model::{
    complaint::{Message, Phase},
    net::Errno,
};

pub use self::pauses::{Pauses, Taken, pauses};

/// So many lines within a minute are a burst.
const BURST: usize = 5;
const BURST_S: i64 = 60;

/// What a line of the access log should hold to explain a 502 by itself.
const WANTED: [&str; 7] = [
    "$upstream_addr",
    "$upstream_status",
    "$upstream_connect_time",
    "$upstream_header_time",
    "$request_time",
    "$connection",
    "$msec",
];

/// Judges the logs.
pub(super) fn judge(seen: &Seen) -> Vec<Finding> {
    let mut findings: Vec<Finding> = seen.errors.iter().flat_map(errors).collect();
    findings.extend(seen.accesses.iter().flat_map(accesses));
    findings.extend(seen.accesses.iter().flat_map(pauses::judge));
    if let Some(advice) = format_advice(seen) {
        findings.push(advice);
    }
    findings
}

/// The row of the catalogue that a line leads to first. A log line alone does not prove it.
#[must_use]
pub fn cause(said: &Said) -> Option<&'static str> {
    let line = &said.line;
    let phase = line.action.as_deref().map_or(Phase::Other, Phase::classify);
    let unix =
        line.message.contains("unix:") || line.upstream.as_deref().is_some_and(|upstream| upstream.contains("unix:"));
    let cause = match (Message::classify(&line.message)?, line.errno) {
        (Message::ConnectFailedAtOnce | Message::ConnectFailed, Some(errno)) => match errno {
            Errno::ECONNREFUSED if unix => "unix-socket-refused",
            Errno::ECONNREFUSED => "upstream-refused",
            Errno::ENOENT => "unix-socket-missing",
            Errno::EACCES if unix => "unix-socket-denied",
            Errno::EACCES | Errno::EPERM => "connect-denied",
            Errno::EAGAIN if unix => "unix-backlog-full",
            Errno::ETIMEDOUT => "syn-timeout",
            Errno::EADDRNOTAVAIL => "ephemeral-ports-exhausted",
            Errno::EHOSTUNREACH | Errno::ENETUNREACH if line.message.starts_with("connect() to ") => "no-route",
            Errno::EHOSTUNREACH => "host-unreachable",
            Errno::ECONNRESET => "upstream-reset",
            _ => return None,
        },
        (Message::TimedOut, _) => match phase {
            Phase::Connecting => "syn-timeout",
            Phase::TlsHandshake => "tls-handshake-failed",
            Phase::Sending => "send-timeout",
            Phase::ReadingBody | Phase::Upgraded => "response-truncated",
            _ => "read-timeout",
        },
        (Message::PrematurelyClosed | Message::ReceiveFailed, _) if phase.is_after_header() => "response-truncated",
        (Message::PrematurelyClosed, _) => "premature-close",
        (Message::ReceiveFailed | Message::SendFailed, Some(Errno::ECONNRESET | Errno::EPIPE)) => "upstream-reset",
        (Message::SocketFailed | Message::AcceptFailed, Some(Errno::EMFILE)) => "fd-exhausted-nginx",
        (Message::SocketFailed | Message::AcceptFailed, Some(Errno::ENFILE)) => "fd-exhausted-system",
        (Message::BindFailed, Some(Errno::EADDRINUSE)) => "ephemeral-ports-exhausted",
        (Message::BindFailed, _) => "bind-failed",
        (Message::WorkerConnections, _) if line.level == "alert" => "worker-connections-exhausted",
        (Message::NoLiveUpstreams, _) => "no-live-upstreams",
        (Message::NotResolved, _) => "dns-failure",
        (Message::TlsHandshake, _) => "tls-handshake-failed",
        (Message::TlsCertificate, _) => "tls-certificate-invalid",
        (Message::TooBigHeader, _) => "header-too-big",
        (Message::InvalidHeader, _) => "invalid-response",
        (Message::FastCgi, _) => "fastcgi-error",
        (Message::Grpc, _) => "grpc-error",
        _ => return None,
    };
    Some(cause)
}

/// `http://10.0.0.1:80/cart?x` without the path: what differs from request to request says nothing here.
fn upstream(said: &Said) -> String {
    let Some(text) = said.line.upstream.as_deref() else { return "no upstream".to_owned() };
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    match rest.strip_prefix("unix:") {
        Some(path) => format!("unix:{}", path.split(':').next().unwrap_or(path)),
        None => format!("{scheme}://{}", rest.split('/').next().unwrap_or(rest)),
    }
}

fn errors(log: &ErrorSeen) -> Vec<Finding> {
    let mut groups: BTreeMap<(&'static str, String), Vec<&Said>> = BTreeMap::new();
    for said in &log.lines {
        if let Some(cause) = cause(said) {
            groups.entry((cause, upstream(said))).or_default().push(said);
        }
    }
    groups
        .into_iter()
        .map(|((cause, upstream), lines)| {
            let count = lines.len();
            let title = if count == 1 {
                format!("nginx logged 1 failure that looks like {cause}")
            } else {
                format!("nginx logged {count} failures that look like {cause}")
            };
            let first = lines.iter().map(|said| said.ago_s).max().unwrap_or(0);
            let last = lines.iter().map(|said| said.ago_s).min().unwrap_or(0);
            let found = Finding::new(Weight::Risk, Area::Logs, Some(cause), &upstream, title);
            let found = found.seen(format!("{}: the first {}, the last {}", log.path, ago(first), ago(last)));
            let found = match burst(&lines) {
                Some((size, at)) => found.seen(format!("{size} of them within a minute, {}", ago(at))),
                None => found,
            };
            let sample = lines.last().map_or("", |said| said.line.message.as_str());
            found
                .seen(format!("the last: {sample}"))
                .why("These requests were answered with an error, or hidden by a retry. A log line says what nginx noticed, not what caused it.")
                .fix(format!("`probe502 explain {cause}` says what proves it and what to do"))
                .fix("`probe502 watch` ties the next one to its cause")
        })
        .collect()
}

/// The largest number of lines within a minute, and when, if most of them are in it.
fn burst(lines: &[&Said]) -> Option<(usize, i64)> {
    let mut times: Vec<i64> = lines.iter().map(|said| said.ago_s).collect();
    times.sort_unstable();
    let within = |start: &i64| times.iter().filter(|time| (*start..start + BURST_S).contains(time)).count();
    let (size, at) = times.iter().map(|start| (within(start), *start)).max()?;
    (size >= BURST && size * 2 > times.len() && times.len() > 1 && times.last() > times.first()).then_some((size, at))
}

fn accesses(log: &AccessSeen) -> Vec<Finding> {
    let each = log.failed.iter().map(|((status, upstream), failed)| {
        let whom = if upstream.is_empty() || upstream == "-" { "no upstream named" } else { upstream };
        let sent = failed.own == Some(false);
        let cause = sent.then_some("upstream-sent-502");
        let whose = match failed.own {
            Some(true) => ", made by nginx",
            Some(false) => ", sent by the upstream",
            None => "",
        };
        let title = format!("{} of {} requests were answered {status}{whose}", failed.count, log.lines);
        let last = failed.last_ago_s.map_or_else(|| "at a time the log does not tell".to_owned(), ago);
        Finding::new(Weight::Risk, Area::Logs, cause, whom, title)
            .seen(format!("{}: the last {last}", log.path))
            .why("Clients saw these failures.")
            .fix(if sent {
                "look at the upstream's own log"
            } else {
                "the error log says what nginx noticed; `probe502 watch` says why"
            })
    });
    each.collect()
}

fn format_advice(seen: &Seen) -> Option<Finding> {
    let log = seen.accesses.first()?;
    let has = |name: &str| seen.accesses.iter().any(|log| log.format.contains(name));
    let missing: Vec<&str> = WANTED.into_iter().filter(|name| !has(name)).collect();
    if missing.is_empty() {
        return None;
    }
    Some(
        Finding::new(Weight::Note, Area::Logs, None, "log_format", "the access log does not say what upstreams did")
            .seen(format!("{} lacks {}", log.path, missing.join(" ")))
            .why("With them a line tells which upstream was tried, how far it came and how long each step took; nginx's own 502 and the upstream's can be told apart.")
            .fix("log_format with_upstream '$msec $pid $connection $connection_requests $status \"$upstream_status\" \"$upstream_addr\" $upstream_connect_time $upstream_header_time $upstream_response_time $request_time \"$request\"';"),
    )
}

fn ago(seconds: i64) -> String {
    match seconds {
        ..=119 => format!("{seconds} s ago"),
        120..=7_199 => format!("{} min ago", seconds / 60),
        _ => format!("{} h ago", seconds / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::error_log;

    fn said(ago_s: i64, message: &str) -> Said {
        let text = format!(
            "2026/11/21 14:02:07 [error] 8#8: *1 {message}, client: 10.0.0.1, server: s, request: \"GET /a?b HTTP/1.1\", upstream: \"http://10.0.0.2:80/a?b\", host: \"h\""
        );
        Said { ago_s, line: error_log::decode(text.as_bytes()).unwrap().line }
    }

    #[test]
    fn lines_lead_to_causes() {
        let cases = [
            ("connect() failed (111: Connection refused) while connecting to upstream", Some("upstream-refused")),
            (
                "connect() to unix:/a failed (2: No such file or directory) while connecting to upstream",
                Some("unix-socket-missing"),
            ),
            (
                "connect() to 10.0.0.2:80 failed (101: Network is unreachable) while connecting to upstream",
                Some("no-route"),
            ),
            (
                "upstream timed out (110: Connection timed out) while reading response header from upstream",
                Some("read-timeout"),
            ),
            ("upstream timed out (110: Connection timed out) while connecting to upstream", Some("syn-timeout")),
            ("upstream prematurely closed connection while reading upstream", Some("response-truncated")),
            ("upstream sent too big header while reading response header from upstream", Some("header-too-big")),
            ("open() \"/x\" failed (2: No such file or directory)", None),
        ];
        for (message, expected) in cases {
            assert_eq!(cause(&said(1, message)), expected, "{message}");
        }
    }

    #[test]
    fn failures_are_grouped_and_bursts_are_told() {
        let refused = "connect() failed (111: Connection refused) while connecting to upstream";
        let mut lines: Vec<Said> = (0..8).map(|second| said(300 + second, refused)).collect();
        lines.insert(0, said(3_000, refused));
        let log = ErrorSeen { path: "/var/log/e".into(), level: "error".into(), cut: false, lines };
        let findings = errors(&log);
        assert_eq!(findings.len(), 1);
        assert_eq!((findings[0].cause, findings[0].subject.as_str()), (Some("upstream-refused"), "http://10.0.0.2:80"));
        assert!(
            findings[0].seen.iter().any(|text| text.starts_with("8 of them within a minute, 5 min ago")),
            "{findings:?}"
        );
    }
}
