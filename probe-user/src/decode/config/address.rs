//! Addresses as nginx's directives write them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::model::net::Address;

/// Ports of a `listen` range at most.
const RANGE: u16 = 1024;

/// Where a `*_pass` or `server` leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// One address.
    Address(Address),
    /// A host or a group, and the port if one is written or the scheme has one.
    Name(String, Option<u16>),
    /// Only the request decides.
    Variable,
}

/// The argument of a `*_pass` directive, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Passed {
    pub(super) target: Target,
    /// `https://`, `grpcs://`, `suwsgi://`.
    pub(super) tls: bool,
    /// The host as written, with its port.
    pub(super) host: String,
    /// What follows the host: nginx replaces the location's prefix by it.
    pub(super) uri: Option<String>,
}

/// Reads the argument of a `*_pass` directive; `None` if the directive is none or the argument has no host.
pub(super) fn pass(directive: &str, argument: &str) -> Option<Target> {
    passed(directive, argument).map(|passed| passed.target)
}

/// The same with everything else that stands there.
pub(super) fn passed(directive: &str, argument: &str) -> Option<Passed> {
    let target = target(directive, argument)?;
    let (scheme, rest) = argument.split_once("://").unwrap_or(("", argument));
    let tls = ["https", "grpcs", "suwsgi"].iter().any(|secure| scheme.eq_ignore_ascii_case(secure));
    let (host, uri) = if let Some(unix) = rest.strip_prefix("unix:") {
        let (path, uri) = unix.split_once(':').map_or((unix, None), |(path, uri)| (path, Some(uri)));
        (format!("unix:{path}"), uri)
    } else {
        let end = rest.find(['/', '?', '$']).unwrap_or(rest.len());
        let (host, uri) = rest.split_at(end);
        (host.to_owned(), (!uri.is_empty()).then_some(uri))
    };
    // Of all protocols only HTTP replaces a part of the request's URI.
    let uri = uri.filter(|_| directive == "proxy_pass").map(ToOwned::to_owned);
    Some(Passed { target, tls, host, uri })
}

fn target(directive: &str, argument: &str) -> Option<Target> {
    // tunnel_pass (1.31) has no URL and its default is the request's own host.
    let (schemes, bare_port): (&[(&str, u16)], Option<Option<u16>>) = match directive {
        "proxy_pass" => (&[("http://", 80), ("https://", 443)], None),
        "grpc_pass" => (&[("grpc://", 80), ("grpcs://", 443)], Some(Some(80))),
        "uwsgi_pass" => (&[("uwsgi://", 0), ("suwsgi://", 0)], Some(None)),
        "fastcgi_pass" | "scgi_pass" | "memcached_pass" | "tunnel_pass" => (&[], Some(None)),
        _ => return None,
    };
    let lower = argument.to_ascii_lowercase();
    let found = schemes.iter().find(|(scheme, _)| lower.starts_with(scheme));
    let (rest, port) = match (found, bare_port) {
        (Some((scheme, port)), _) => (&argument[scheme.len()..], (*port != 0).then_some(*port)),
        (None, Some(port)) => (argument, port),
        // Only a variable can stand for the scheme.
        (None, None) if argument.contains('$') => return Some(Target::Variable),
        (None, None) => return None,
    };
    if let Some(unix) = rest.strip_prefix("unix:") {
        let path = unix.split(':').next().unwrap_or(unix);
        return if path.contains('$') {
            Some(Target::Variable)
        } else {
            (!path.is_empty()).then(|| Target::Address(Address::Unix(path.to_owned())))
        };
    }
    let mut host = rest.split(['/', '?']).next().unwrap_or(rest);
    // These begin with a slash, so the host is whole before them.
    for variable in ["$request_uri", "$uri", "$document_uri"] {
        host = host.split(variable).next().unwrap_or(host);
    }
    if host.contains('$') { Some(Target::Variable) } else { host_port(host, port) }
}

/// Reads a `server` of an `upstream` block.
pub(super) fn server(text: &str) -> Option<Target> {
    match text.strip_prefix("unix:") {
        Some(path) => (!path.is_empty()).then(|| Target::Address(Address::Unix(path.to_owned()))),
        None => host_port(text, Some(80)),
    }
}

fn host_port(text: &str, default: Option<u16>) -> Option<Target> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => text.rsplit_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = match port {
        Some(port) => Some(port.parse().ok()?),
        None => default,
    };
    match (host.parse::<IpAddr>(), port) {
        _ if host.is_empty() => None,
        (Ok(ip), Some(port)) => Some(Target::Address(Address::Ip(SocketAddr::new(ip, port)))),
        // An address without a port is a fault nginx refuses.
        (Ok(_), None) => None,
        (Err(_), port) => Some(Target::Name(host.to_owned(), port)),
    }
}

/// The addresses of a `listen`. A unix socket has none, and neither has a name: nginx resolves it when it starts.
pub(super) fn listen(text: &str) -> Vec<SocketAddr> {
    if text.starts_with("unix:") {
        return Vec::new();
    }
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let (host, ports) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, ports)) => (Some(host), ports.strip_prefix(':').unwrap_or("80")),
        None => match text.rsplit_once(':') {
            Some((host, ports)) => (Some(host), ports),
            None if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') => (None, text),
            None => (Some(text), "80"),
        },
    };
    let ip = match host {
        None | Some("*") => any,
        Some("localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Some("::") => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        Some(host) => match host.parse() {
            Ok(ip) => ip,
            Err(_) => return Vec::new(),
        },
    };
    // Ranges: 1.15.10.
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) if first <= last && last - first < RANGE && first != 0 => {
            (first..=last).map(|port| SocketAddr::new(ip, port)).collect()
        }
        _ => Vec::new(),
    }
}
