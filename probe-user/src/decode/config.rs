//! nginx's configuration as `nginx -T` dumps it, or as one plain file.
//! (Syntax: `ngx_conf_read_token` in `core/ngx_conf_file.c`; directives: <https://nginx.org/en/docs/dirindex.html>.)

mod address;
mod answers;
mod inherit;
pub mod layout;
mod lexer;
mod places;
#[cfg(test)]
mod tests;
mod tree;
pub mod units;

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

pub use address::Target;

use crate::model::{
    host::{Configuration, UpstreamGroup, UpstreamServer},
    net::Address,
};
use tree::Directive;

/// What a configuration says, and what it leaves open.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    /// What it says.
    pub configuration: Configuration,
    /// Host names of upstreams with their ports, to be resolved where nginx runs.
    pub names: Vec<(String, u16)>,
    /// Arguments of `*_pass` with variables: where they lead shows only at run time.
    pub variable: Vec<String>,
    /// Files that are included and are not in the text, as whole paths where the text's own path is known.
    pub missing_includes: Vec<String>,
    /// `include` patterns with wildcards that no file in the text matches, likewise. Usual: directories may be empty.
    pub empty_includes: Vec<String>,
    /// All `include` patterns with wildcards, likewise: what they match depends on what their directories hold.
    pub wild_includes: Vec<String>,
    /// What can make an answer a failure without a word about its request before: the directive, and where it stands.
    pub unannounced: Option<String>,
    /// No `error_log` stands at the top level, so nginx also uses the path it was built with.
    pub default_error_log: bool,
    /// No `access_log` stands at the level of `http`, so nginx may also use the path it was built with, in the format `combined`.
    pub default_access_log: bool,
}

/// Why a configuration could not be read. nginx itself would not start with it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{file}:{line}: {what}")]
pub struct ConfigError {
    /// The file, as the dump names it; empty for a plain text.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: &'static str,
}

/// Whether a file's name matches one component of an `include` pattern, as `glob(3)` has it.
#[must_use]
pub fn matches_name(pattern: &str, name: &str) -> bool {
    (!name.starts_with('.') || pattern.starts_with('.')) && tree::matches_name(pattern.as_bytes(), name.as_bytes())
}

/// The files of a dump, by name.
pub fn files(text: &str) -> impl Iterator<Item = &str> {
    tree::split(text).into_iter().map(|(name, _)| name).filter(|name| !name.is_empty())
}

/// Reads a dump or a plain file.
pub fn decode(text: &str) -> Result<Decoded, ConfigError> {
    let tree = tree::parse(text)?;
    let mut decoded = Decoded {
        missing_includes: tree.missing_includes,
        empty_includes: tree.empty_includes,
        wild_includes: tree.wild_includes,
        ..Decoded::default()
    };
    let main = &tree.directives;
    let configuration = &mut decoded.configuration;
    configuration.worker_rlimit_nofile = number(main, "worker_rlimit_nofile");
    // 512: ngx_event_core_module's default since 0.7.
    let events = blocks(main, "events").find_map(|block| number(block, "worker_connections"));
    configuration.worker_connections = Some(events.unwrap_or(512));
    decoded.default_error_log = !main.iter().any(|directive| directive.name == "error_log");

    decoded.unannounced = answers::unannounced(main);
    let mut error_logs = Vec::new();
    let mut access_logs = Vec::new();
    logs(main, &mut error_logs, &mut access_logs);
    let mut listen = BTreeSet::new();
    for http in blocks(main, "http") {
        configuration.places.extend(places::of_http(http));
        decoded.default_access_log |= !http.iter().any(|directive| directive.name == "access_log");
        for group in http.iter().filter(|directive| directive.name == "upstream") {
            configuration.groups.push(self::group(group, &mut decoded.names));
        }
        for format in http.iter().filter(|directive| directive.name == "log_format") {
            configuration.log_formats.extend(log_format(&format.arguments));
        }
        for server in blocks(http, "server") {
            let mut found = server.iter().filter(|directive| directive.name == "listen").peekable();
            if found.peek().is_none() {
                listen.extend(address::listen("80"));
            }
            listen.extend(
                found.filter_map(|directive| directive.arguments.first()).flat_map(|text| address::listen(text)),
            );
        }
    }
    configuration.listen = listen.into_iter().collect();
    configuration.error_logs = unique(error_logs);
    configuration.access_logs = unique(access_logs);
    configuration.directives = inherit::effective(main);
    passes(main, &mut decoded);
    decoded.names.sort();
    decoded.names.dedup();
    Ok(decoded)
}

/// Upstreams named directly, and those of the groups.
fn passes(main: &[Directive], decoded: &mut Decoded) {
    let groups: BTreeMap<String, &UpstreamGroup> =
        decoded.configuration.groups.iter().map(|group| (group.name.to_lowercase(), group)).collect();
    let mut upstreams: Vec<Address> =
        groups.values().flat_map(|group| &group.servers).flat_map(|server| server.addresses.clone()).collect();
    for http in blocks(main, "http") {
        walk(http, &mut |directive| {
            let Some(argument) = directive.arguments.first() else { return };
            match address::pass(&directive.name, argument) {
                None => {}
                Some(Target::Variable) => decoded.variable.push(argument.clone()),
                Some(Target::Address(address)) => upstreams.push(address),
                // A group's name wins over DNS, whatever port is written.
                Some(Target::Name(host, _)) if groups.contains_key(&host.to_lowercase()) => {}
                Some(Target::Name(host, port)) => decoded.names.extend(port.map(|port| (host, port))),
            }
        });
    }
    upstreams.sort();
    upstreams.dedup();
    decoded.configuration.upstreams = upstreams;
    decoded.variable.sort();
    decoded.variable.dedup();
}

fn group(block: &Directive, names: &mut Vec<(String, u16)>) -> UpstreamGroup {
    let inside = block.block.as_deref().unwrap_or_default();
    let mut group = UpstreamGroup {
        name: block.arguments.first().cloned().unwrap_or_default(),
        // 0 switches it off where 1.29.7 and later would have it on by default.
        keepalive: number(inside, "keepalive"),
        keepalive_timeout_ms: argument(inside, "keepalive_timeout").and_then(units::milliseconds),
        servers: Vec::new(),
    };
    for server in inside.iter().filter(|directive| directive.name == "server") {
        let Some((name, parameters)) = server.arguments.split_first() else { continue };
        let parameter = |key: &str| parameters.iter().find_map(|text| text.strip_prefix(key)?.strip_prefix('='));
        let mut addresses = Vec::new();
        match address::server(name) {
            Some(Target::Address(address)) => addresses.push(address),
            Some(Target::Name(host, port)) => names.extend(port.map(|port| (host, port))),
            Some(Target::Variable) | None => {}
        }
        group.servers.push(UpstreamServer {
            name: name.clone(),
            addresses,
            max_fails: parameter("max_fails").and_then(|text| text.parse().ok()).unwrap_or(1),
            fail_timeout_ms: parameter("fail_timeout").and_then(units::milliseconds).unwrap_or(10_000),
            max_conns: parameter("max_conns").and_then(|text| text.parse().ok()).unwrap_or(0),
            down: parameters.iter().any(|text| text == "down"),
            backup: parameters.iter().any(|text| text == "backup"),
        });
    }
    group
}

/// The format's name and text: its strings joined, the escaping in front as [`super::access_log::Pattern::compile`] reads it.
fn log_format(arguments: &[String]) -> Option<(String, String)> {
    let (name, strings) = arguments.split_first()?;
    let (escape, strings) = match strings.split_first() {
        Some((first, rest)) if first.starts_with("escape=") => (format!("{first} "), rest),
        _ => (String::new(), strings),
    };
    Some((name.clone(), escape + &strings.concat()))
}

/// Logs anywhere outside of `stream` and `mail`.
fn logs(directives: &[Directive], errors: &mut Vec<(String, String)>, accesses: &mut Vec<(String, Option<String>)>) {
    for directive in directives {
        let argument = |index: usize| directive.arguments.get(index);
        match directive.name.as_str() {
            "stream" | "mail" => {}
            "error_log" => errors.extend(argument(0).map(|path| {
                let level = argument(1).cloned().unwrap_or_else(|| "error".to_owned());
                (path.clone(), level)
            })),
            "access_log" => accesses.extend(argument(0).filter(|path| *path != "off").map(|path| {
                let format = argument(1).filter(|text| !text.contains('='));
                (path.clone(), format.cloned())
            })),
            _ => logs(directive.block.as_deref().unwrap_or_default(), errors, accesses),
        }
    }
}

fn unique<T: Ord>(items: Vec<T>) -> Vec<T> {
    items.into_iter().collect::<BTreeSet<_>>().into_iter().collect()
}

fn blocks<'a>(directives: &'a [Directive], name: &'a str) -> impl Iterator<Item = &'a [Directive]> {
    directives.iter().filter(move |directive| directive.name == name).filter_map(|directive| directive.block.as_deref())
}

fn walk<'a>(directives: &'a [Directive], see: &mut impl FnMut(&'a Directive)) {
    for directive in directives {
        see(directive);
        walk(directive.block.as_deref().unwrap_or_default(), see);
    }
}

fn argument<'a>(directives: &'a [Directive], name: &str) -> Option<&'a str> {
    directives.iter().find(|directive| directive.name == name)?.arguments.first().map(String::as_str)
}

fn number(directives: &[Directive], name: &str) -> Option<u64> {
    argument(directives, name)?.parse().ok()
}
