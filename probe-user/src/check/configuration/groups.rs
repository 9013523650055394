//! `upstream` blocks.

use super::{finding, places};
use crate::{
    check::{
        finding::{Finding, Weight},
        known,
        plan::{self, at_least},
        seen::{Answer, Idle, Seen},
    },
    decode::config::{
        Target,
        layout::{Group, Pass, Protocol, Server},
    },
};

pub(super) fn judge(seen: &Seen) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, group) in seen.layout.groups.iter().enumerate() {
        let passes: Vec<&Pass> = seen
            .layout
            .passes
            .iter()
            .filter(|pass| matches!(&pass.target, Target::Name(name, _) if name.eq_ignore_ascii_case(&group.name)))
            .collect();
        if passes.is_empty() {
            continue;
        }
        findings.extend(one_failure_disables(group));
        if let Some(pool_ms) = plan::pool_ms(group) {
            findings.extend(keepalive_unused(seen, group, &passes));
            findings.extend(keepalive_race(seen, group, number, pool_ms));
        }
    }
    findings
}

/// Two servers or more, of which one is in use: a single failure leaves none for `fail_timeout`.
fn one_failure_disables(group: &Group) -> Option<Finding> {
    let has = |server: &Server, word: &str| server.parameters.iter().any(|parameter| parameter == word);
    let in_use: Vec<&Server> =
        group.servers.iter().filter(|server| !has(server, "down") && !has(server, "backup")).collect();
    let has_backup = group.servers.iter().any(|server| has(server, "backup") && !has(server, "down"));
    let [only] = in_use.as_slice() else { return None };
    let several = group.servers.len() > 1 || matches!(only.target, Some(Target::Name(..)));
    let fails = only.parameters.iter().find_map(|parameter| parameter.strip_prefix("max_fails="));
    // A single server is never disabled, whatever max_fails says (ngx_http_upstream_round_robin.c, `peers->single`).
    if !several || group.servers.len() == 1 || has_backup || fails.is_some_and(|fails| fails != "1") {
        return None;
    }
    let title = format!("one failed request takes the only server of {} out of service", group.name);
    Some(
        finding(Weight::Risk, Some("no-live-upstreams"), &group.name, title)
            .seen(format!("{} servers, of which only {} is in use, with max_fails=1", group.servers.len(), only.name))
            .why("With more than one `server` line nginx counts failures: after a single one it answers 502 (\"no live upstreams\") for fail_timeout, 10 s by default.")
            .fix("`max_fails=0` for the server, or remove the lines that are `down`")
            .at([only.place.clone()]),
    )
}

/// A pool that stays empty: the upstream is asked to close after each answer.
fn keepalive_unused(seen: &Seen, group: &Group, passes: &[&Pass]) -> Option<Finding> {
    if at_least(seen.nginx.version.as_deref(), [1, 29, 7]) == Some(true) {
        return None;
    }
    let closes = |pass: &&&Pass| {
        let Some(block) = seen.layout.block_of(pass) else { return false };
        let old = seen.layout.of_pass(pass, "http_version").is_none_or(|version| version == "1.0");
        let says_close = !block.lines("proxy_set_header").iter().any(|line| {
            matches!(line.arguments.as_slice(), [name, value] if name.eq_ignore_ascii_case("connection") && !value.eq_ignore_ascii_case("close"))
        });
        pass.protocol == Protocol::Http && (old || says_close)
    };
    let closing: Vec<&&Pass> = passes.iter().filter(closes).collect();
    if closing.is_empty() {
        return None;
    }
    let title = format!("connections to {} are not kept in spite of `keepalive`", group.name);
    Some(
        finding(Weight::Note, None, &group.name, title)
            .seen("the pass speaks HTTP/1.0, or sends `Connection: close` (nginx's default)")
            .why("Every request needs a connection of its own: a busy site runs out of local ports, and each new connection may be refused.")
            .fix("`proxy_http_version 1.1;` and `proxy_set_header Connection \"\";` beside the pass")
            .at(places(closing.iter().map(|pass| pass.place.clone()))),
    )
}

/// nginx keeps connections longer than the upstream does.
fn keepalive_race(seen: &Seen, group: &Group, number: usize, pool_ms: u64) -> Option<Finding> {
    let line = group.settings.get("keepalive_timeout").and_then(|lines| lines.last());
    let mut evidence = Vec::new();
    let mut is_measured = false;
    for one in &seen.tries {
        let Some(endpoint) = seen.endpoints.get(one.endpoint) else { continue };
        if !endpoint.uses.iter().any(|user| user.member.is_some_and(|(of, _)| of == number)) {
            continue;
        }
        match one.idle {
            Some(Idle::Closed(ms)) => {
                // A whole second is lost between nginx's timer and the upstream's in the worst case.
                if ms <= pool_ms + 1_000 {
                    is_measured = true;
                    evidence.push(format!(
                        "{} closes an idle connection after {}.{} s, as measured",
                        one.address,
                        ms / 1_000,
                        ms % 1_000 / 100
                    ));
                }
                continue;
            }
            Some(Idle::Open(_)) => continue,
            None => {}
        }
        let server = one.answer.as_ref().and_then(|answer| match &answer.kind {
            Answer::Http { server, .. } => server.as_deref(),
            _ => None,
        });
        let command =
            one.here.iter().flat_map(|here| &here.listeners).find_map(|owner| owner.listener.command.as_deref());
        if let Some((name, seconds)) = known::idle_timeout(server, command)
            && seconds * 1_000 <= pool_ms
        {
            evidence.push(format!(
                "{} looks like {name}, which by default closes idle connections after {seconds} s",
                one.address
            ));
        }
    }
    evidence.sort();
    evidence.dedup();
    if evidence.is_empty() {
        return None;
    }
    let title = format!("nginx keeps idle connections to {} longer than the upstream does", group.name);
    let found = finding(Weight::Risk, Some("keepalive-race"), &group.name, title);
    let found = evidence.into_iter().fold(found, Finding::seen).seen(format!("nginx keeps them {} s", pool_ms / 1_000));
    let found = found
        .why("A request that nginx sends on a connection the upstream is just closing is answered 502 (or repeated, where nginx may).")
        .fix("make the upstream keep them longer than nginx does (Node.js: server.keepAliveTimeout; gunicorn: --keep-alive; uvicorn: --timeout-keep-alive)")
        .fix("or `keepalive_timeout` in the upstream block, shorter than the upstream's own");
    let found = if is_measured { found } else { found.fix("measure it: probe502 check --measure-idle") };
    Some(found.at([line.map_or_else(|| group.place.clone(), |line| line.place.clone())]))
}
