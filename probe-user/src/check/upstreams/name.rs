//! Names of upstreams.

use super::milliseconds;
use crate::check::{
    finding::{Area, Finding, Weight},
    plan::{Resolver, Server},
    seen::{NameFailure, NameSeen, Seen},
};

/// A name that has no address.
pub(super) fn judge(seen: &Seen, name: &NameSeen) -> Option<Finding> {
    let endpoint = seen.endpoints.get(name.endpoint)?;
    let Server::Name(host, _) = &endpoint.server else { return None };
    let failure = name.result.as_ref().err()?;
    let asked = match &endpoint.resolver {
        Resolver::Nginx { servers, .. } => format!("nginx's resolver {}", servers.join(" ")),
        Resolver::System | Resolver::Missing => "the system's resolver, with nginx's own files".to_owned(),
    };
    let finding = |weight, title: String| {
        Finding::new(weight, Area::Upstream, Some("dns-failure"), host, title).at(endpoint.places())
    };
    let at_start = endpoint.resolver == Resolver::System;
    let why = if at_start {
        "nginx resolves this name when it starts and when it reloads: a running nginx goes on with the addresses it has, the next start or reload fails."
    } else {
        "nginx resolves this name for requests: they are answered 502 once what it remembers has run out."
    };
    let took = format!("asked {asked}, {}", milliseconds(name.took_us));
    let found = match failure {
        NameFailure::NoResolver => finding(Weight::Fault, format!("nginx has no resolver to resolve {host}"))
            .seen("the pass has variables, so the name is resolved for every request, and no `resolver` is in force there")
            .why("Every request that needs the name is answered 502 (\"no resolver defined to resolve\").")
            .fix("add `resolver ADDRESS valid=10s;` (in a container network 127.0.0.11, else what /etc/resolv.conf names)")
            .fix("or write the name without variables: it is then resolved once, at start"),
        NameFailure::NoSuchName => finding(Weight::Fault, format!("there is no name {host}"))
            .seen(format!("{took}: NXDOMAIN"))
            .why(why)
            .fix("correct the name, or publish it where nginx asks")
            .fix("nginx's own resolver knows neither /etc/hosts nor search domains: write the name in full"),
        NameFailure::NoAddress => finding(Weight::Fault, format!("the name {host} has no address"))
            .seen(format!("{took}: no A or AAAA record"))
            .why(why)
            .fix("publish an address for the name; with `ipv6=off` or `ipv4=off` nginx looks for one family only"),
        NameFailure::Refused(code) => finding(Weight::Fault, format!("the name server answers {code} for {host}"))
            .seen(took)
            .why(why)
            .fix("look at the name server: it does not know the zone, or cannot reach those that do"),
        NameFailure::Silent => finding(Weight::Fault, format!("no name server answers for {host}"))
            .seen(format!("{took}: nothing came back"))
            .why(why)
            .fix("see that the name server runs, and that nothing between drops UDP port 53"),
        NameFailure::NotAsked(error) => finding(Weight::Risk, format!("{host} could not be looked up"))
            .seen(format!("{took}: {error}"))
            .why(why)
            .fix("look at the name's resolution where nginx runs"),
    };
    Some(found)
}

/// nginx uses addresses that the name no longer has.
pub(super) fn stale(seen: &Seen, name: &NameSeen) -> Option<Finding> {
    let endpoint = seen.endpoints.get(name.endpoint)?;
    let Server::Name(host, port) = &endpoint.server else { return None };
    let now = name.result.as_ref().ok()?;
    let gone: Vec<_> = name.held.iter().filter(|held| !now.contains(&held.ip())).collect();
    if gone.is_empty() || endpoint.resolver != Resolver::System {
        return None;
    }
    // A name with many addresses shows other ones each time; what still answers is no fault.
    let fails = seen.tries.iter().any(|one| {
        one.endpoint == name.endpoint && one.connect.is_err() && one.address.ip().is_some_and(|ip| gone.contains(&&ip))
    });
    let weight = if fails { Weight::Fault } else { Weight::Note };
    let gone: Vec<String> = gone.iter().map(ToString::to_string).collect();
    let current: Vec<String> = now.iter().map(ToString::to_string).collect();
    let title = format!("nginx uses {} for {host}, which is {} now", gone.join(", "), current.join(", "));
    let finding = Finding::new(weight, Area::Upstream, Some("upstream-refused"), &format!("{host}:{port}"), title);
    let finding = finding
        .seen(format!("nginx's connections or logs: {}", gone.join(", ")))
        .seen(format!("the name now: {} ({})", current.join(", "), milliseconds(name.took_us)))
        .why("Without `resolve` or variables nginx resolves a name once, at start: it goes on asking the old address, where nobody or somebody else answers.")
        .fix("now: `nginx -s reload`")
        .fix("for good: `server NAME resolve;` in the upstream with a `zone` and a `resolver` (1.27.3), or a variable in the pass with a `resolver`");
    Some(finding.at(endpoint.places()))
}
