//! Locations and what is passed on from them.

use super::{finding, places};
use crate::{
    check::{
        finding::{Finding, Weight},
        seen::Seen,
    },
    decode::config::{
        Target,
        layout::{Block, Kind, Pass, Protocol},
        units,
    },
};

/// A read timeout below this surprises more than it protects.
const SHORT_MS: u64 = 1_000;
/// The kernel gives up by itself after some two minutes; nginx advises no more than 75 s.
const LONG_CONNECT_MS: u64 = 75_000;

pub(super) fn judge(seen: &Seen) -> Vec<Finding> {
    let mut findings = Vec::new();
    for pass in &seen.layout.passes {
        let Some(block) = seen.layout.block_of(pass) else { continue };
        findings.extend(slashes(block, pass));
        findings.extend(upgrade(block, pass));
        findings.extend(timeouts(seen, pass));
        findings.extend(next_upstream(seen, block, pass));
        findings.extend(cached_errors(block, pass));
    }
    findings.extend(resolved_once(seen));
    // The same line, met through several values of a variable.
    let mut unique: Vec<Finding> = Vec::new();
    for found in findings {
        if !unique.contains(&found) {
            unique.push(found);
        }
    }
    unique
}

/// nginx puts what follows the location's prefix behind the URI of the pass, whatever that makes.
fn slashes(block: &Block, pass: &Pass) -> Option<Finding> {
    let uri = pass.uri.as_deref().filter(|_| !pass.at_run_time)?;
    let pattern = match block.arguments.as_slice() {
        [pattern] => pattern,
        [modifier, pattern] if modifier == "^~" => pattern,
        _ => return None,
    };
    if block.kind != Kind::Location || pattern.starts_with('@') || pattern == "/" && uri == "/" {
        return None;
    }
    let path = uri.split('?').next().unwrap_or(uri);
    let (pattern_ends, uri_ends) = (pattern.ends_with('/'), path.ends_with('/'));
    let example = match (pattern_ends, uri_ends) {
        (true, false) => format!("{pattern}x becomes {path}x"),
        (false, true) => format!("{pattern}/x becomes {path}/x, and {pattern}x becomes {path}x"),
        _ => return None,
    };
    Some(
        finding(
            Weight::Note,
            None,
            &block.title(),
            "the location and the URI of its pass do not both end in a slash".to_owned(),
        )
        .seen(format!("{} passes to {}: {example}", block.title(), pass.argument))
        .why("The upstream is asked for another path than the one meant, and answers 404 or worse.")
        .fix("end both with a slash, or neither")
        .at([pass.place.clone()]),
    )
}

/// `Connection: upgrade` for every request makes upstreams close, or wait.
fn upgrade(block: &Block, pass: &Pass) -> Option<Finding> {
    let line = block.lines("proxy_set_header").iter().find(|line| {
        matches!(line.arguments.as_slice(), [name, value] if name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("upgrade"))
    })?;
    let has_group_keepalive = matches!(pass.target, Target::Name(..));
    (pass.protocol == Protocol::Http && has_group_keepalive).then(|| {
        finding(Weight::Note, Some("premature-close"), &block.title(), "every request asks for an upgrade".to_owned())
            .seen("proxy_set_header Connection with the literal value \"upgrade\"")
            .why(
                "Connections are not kept, and some upstreams close instead of answering a plain request that says so.",
            )
            .fix("set it from a map: `map $http_upgrade $connection_upgrade { default upgrade; '' ''; }`")
            .at([line.place.clone()])
    })
}

fn timeouts(seen: &Seen, pass: &Pass) -> Vec<Finding> {
    let mut findings = Vec::new();
    let prefix = pass.protocol.prefix();
    let place = |end: &str| {
        let block = seen.layout.block_of(pass)?;
        block.lines(&format!("{prefix}_{end}")).last().map(|line| line.place.clone())
    };
    let set = |end: &str| seen.layout.of_pass(pass, end).and_then(units::milliseconds);
    if let Some(ms) = set("read_timeout").filter(|ms| *ms < SHORT_MS) {
        findings.push(
            finding(
                Weight::Risk,
                Some("read-timeout"),
                &format!("{prefix}_read_timeout"),
                format!("nginx waits {ms} ms for an answer"),
            )
            .seen(format!("{prefix}_read_timeout {ms} ms"))
            .why("Every answer that takes longer is a 504.")
            .fix("a timeout longer than the slowest answer that is meant to succeed")
            .at(place("read_timeout")),
        );
    }
    if let Some(ms) = set("connect_timeout").filter(|ms| *ms > LONG_CONNECT_MS) {
        findings.push(
            finding(Weight::Note, Some("syn-timeout"), &format!("{prefix}_connect_timeout"), format!("nginx waits {} s for a connection", ms / 1_000))
                .seen(format!("{prefix}_connect_timeout {} s", ms / 1_000))
                .why("A server that is gone holds every request for so long before the next is tried; the kernel gives up sooner, which makes it a 502 instead of a 504.")
                .fix("a few seconds: connections in one's own network take milliseconds")
                .at(place("connect_timeout")),
        );
    }
    findings
}

fn next_upstream(seen: &Seen, block: &Block, pass: &Pass) -> Option<Finding> {
    let name = format!("{}_next_upstream", pass.protocol.prefix());
    let line = block.lines(&name).last()?;
    let has = |word: &str| line.arguments.iter().any(|argument| argument == word);
    let several = match &pass.target {
        Target::Name(group, _) => seen.layout.group(group).is_some_and(|group| group.servers.len() > 1),
        _ => false,
    };
    if has("off") && several {
        return Some(
            finding(Weight::Note, None, &name, "failed requests are not tried on the other servers".to_owned())
                .seen(format!("{name} off, with several servers"))
                .why("Each failure of one server is a 502 although others could answer.")
                .fix("leave it at its default (error timeout)")
                .at([line.place.clone()]),
        );
    }
    has("non_idempotent").then(|| {
        finding(Weight::Risk, None, &name, "requests that change something are repeated".to_owned())
            .seen(format!("{name} {}", line.arguments.join(" ")))
            .why("A POST that failed half way is sent to the next server: an order may be placed twice, and the failure does not show.")
            .fix("remove `non_idempotent`")
            .at([line.place.clone()])
    })
}

/// Failures that are answered again from the cache.
fn cached_errors(block: &Block, pass: &Pass) -> Option<Finding> {
    let prefix = pass.protocol.prefix();
    let cache = block.value(&format!("{prefix}_cache")).filter(|zone| *zone != "off")?;
    let line = block.lines(&format!("{prefix}_cache_valid")).iter().find(|line| {
        line.arguments.len() > 1
            && line.arguments.iter().any(|word| matches!(word.as_str(), "any" | "500" | "502" | "503" | "504"))
    })?;
    Some(
        finding(Weight::Risk, Some("cached-502"), &format!("{prefix}_cache_valid"), "errors of the upstream are kept in the cache".to_owned())
            .seen(format!("{} {}, in the cache {cache}", line.name, line.arguments.join(" ")))
            .why("A single 502 of the upstream is answered to everybody until it expires, though the upstream is well again.")
            .fix("name the statuses that are meant (200 301 404), without `any` and 5xx")
            .at([line.place.clone()]),
    )
}

/// Names that nginx looks up once.
fn resolved_once(seen: &Seen) -> Option<Finding> {
    use crate::check::plan::{Resolver, Server};
    let static_names: Vec<(&str, _)> = seen
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.resolver == Resolver::System)
        .filter_map(|endpoint| match &endpoint.server {
            Server::Name(name, _) if name != "localhost" => Some((name.as_str(), endpoint.places())),
            _ => None,
        })
        .collect();
    if static_names.is_empty() {
        return None;
    }
    let mut names: Vec<&str> = static_names.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names.dedup();
    Some(
        finding(Weight::Note, Some("upstream-refused"), "names", "names of upstreams are looked up once, when nginx starts".to_owned())
            .seen(names.join(", "))
            .why("When such a name moves (a container is replaced), nginx goes on asking the old address until it is reloaded: 502, or another service's answers.")
            .fix("`server NAME resolve;` with `zone` and `resolver` (1.27.3), or a variable in the pass with a `resolver`; or reload nginx whenever the name moves")
            .at(places(static_names.into_iter().flat_map(|(_, places)| places))),
    )
}
