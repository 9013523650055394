//! Values of directives that hold everywhere. nginx inherits a value from the block around, so what counts is what reaches the
//! blocks that pass requests on, and those that answer clients.

use std::collections::{BTreeMap, BTreeSet};

use super::tree::Directive;

/// Protocols whose directives share their names' ends.
pub(super) const PROTOCOLS: &[&str] = &["proxy", "fastcgi", "uwsgi", "scgi", "grpc", "memcached"];

/// Ends of directive names of a protocol, with the default where it is the same in every version and build.
const OF_PASS: &[(&str, Option<&str>)] = &[
    ("connect_timeout", Some("60s")),
    ("read_timeout", Some("60s")),
    ("send_timeout", Some("60s")),
    ("next_upstream", Some("error timeout")),
    ("next_upstream_timeout", Some("0")),
    ("next_upstream_tries", Some("0")),
    // 1.0 before 1.29.7, then 1.1.
    ("http_version", None),
    // A page of memory, which differs between machines.
    ("buffer_size", None),
    ("buffers", None),
    ("busy_buffers_size", None),
    ("bind", None),
    ("ssl_verify", None),
    ("ssl_server_name", None),
    ("ssl_name", None),
    ("ssl_protocols", None),
    ("socket_keepalive", None),
    ("intercept_errors", None),
    ("request_buffering", None),
    ("ignore_client_abort", None),
];

/// Directives that matter wherever a server answers.
const OF_SERVER: &[(&str, Option<&str>)] = &[
    ("keepalive_timeout", Some("75s")),
    ("keepalive_requests", None),
    ("client_header_timeout", Some("60s")),
    ("client_body_timeout", Some("60s")),
    ("send_timeout", Some("60s")),
    ("lingering_close", None),
    ("lingering_time", Some("30s")),
    ("lingering_timeout", Some("5s")),
    ("resolver", None),
    ("resolver_timeout", Some("30s")),
    ("client_max_body_size", Some("1m")),
];

/// Directives of the top level.
const OF_MAIN: &[&str] = &["worker_processes", "worker_shutdown_timeout", "user", "pid", "daemon", "master_process"];

/// Directive → values it has in different places; `None` is "not set, and no default is known".
type Values = BTreeMap<String, BTreeSet<Option<String>>>;

/// What is set in a block and around it, arguments joined with blanks.
pub(super) type Scope<'a> = BTreeMap<&'a str, String>;

/// Every directive that has one value in all the places where it counts.
pub(super) fn effective(main: &[Directive]) -> Vec<(String, String)> {
    let mut values = Values::new();
    for directive in main {
        if OF_MAIN.contains(&directive.name.as_str()) {
            values.entry(directive.name.clone()).or_default().insert(Some(directive.arguments.join(" ")));
        }
        if directive.name == "http" {
            let inside = directive.block.as_deref().unwrap_or_default();
            block("http", inside, &Scope::new(), &mut values);
        }
    }
    let single = values.into_iter().filter_map(|(name, mut found)| {
        let value = found.pop_first()??;
        found.is_empty().then_some((name, value))
    });
    single.collect()
}

/// What is set in a block and around it.
pub(super) fn scope<'a>(around: &Scope<'a>, directives: &'a [Directive]) -> Scope<'a> {
    let mut scope = around.clone();
    for directive in directives.iter().filter(|directive| directive.block.is_none()) {
        scope.insert(&directive.name, directive.arguments.join(" "));
    }
    scope
}

/// The values that hold where this is set and requests are passed on by this protocol.
pub(super) fn in_force(scope: &Scope<'_>, protocol: Option<&str>) -> Vec<(String, String)> {
    let of_pass = protocol
        .into_iter()
        .flat_map(|protocol| OF_PASS.iter().map(move |(end, default)| (format!("{protocol}_{end}"), *default)));
    let of_cache = protocol
        .into_iter()
        .flat_map(|protocol| ["cache", "cache_valid"].map(|end| (format!("{protocol}_{end}"), None)));
    let of_server = OF_SERVER.iter().map(|(name, default)| ((*name).to_owned(), *default));
    of_pass
        .chain(of_cache)
        .chain(of_server)
        .filter_map(|(name, default)| {
            let value = scope.get(name.as_str()).cloned().or_else(|| default.map(ToOwned::to_owned))?;
            Some((name, value))
        })
        .collect()
}

fn block<'a>(name: &str, directives: &'a [Directive], around: &Scope<'a>, values: &mut Values) {
    let scope = scope(around, directives);
    for protocol in PROTOCOLS {
        // `*_pass` is not inherited: a location without one does not pass.
        let passes = format!("{protocol}_pass");
        if directives.iter().any(|directive| directive.name == passes) {
            for (end, default) in OF_PASS {
                note(&format!("{protocol}_{end}"), *default, &scope, values);
            }
        }
    }
    if name == "server" || name == "location" {
        for (directive, default) in OF_SERVER {
            note(directive, *default, &scope, values);
        }
    }
    for directive in directives {
        // An upstream block has directives of the same names with another meaning.
        if let Some(inside) = directive.block.as_deref().filter(|_| directive.name != "upstream") {
            block(&directive.name, inside, &scope, values);
        }
    }
}

fn note(directive: &str, default: Option<&str>, scope: &Scope<'_>, values: &mut Values) {
    let value = scope.get(directive).cloned().or_else(|| default.map(ToOwned::to_owned));
    values.entry(directive.to_owned()).or_default().insert(value);
}
