//! What there is to examine: every upstream server once for every way nginx speaks to it.

use std::{collections::BTreeMap, net::IpAddr};

use crate::{
    decode::config::{
        Target,
        layout::{Group, Layout, Pass, Place, Protocol},
        units,
    },
    model::net::Address,
};

/// nginx's default for connect, send and read.
pub const DEFAULT_TIMEOUT_MS: u64 = 60_000;

/// An upstream server as the configuration names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Server {
    /// An address.
    Address(Address),
    /// A name to be resolved, and the port.
    Name(String, u16),
}

/// Who resolves a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resolver {
    /// The system's, once, when nginx starts or reloads.
    System,
    /// nginx's own, again and again: the addresses of `resolver`.
    Nginx {
        /// Name servers as written.
        servers: Vec<String>,
        /// It asks for IPv4 addresses.
        ipv4: bool,
        /// It asks for IPv6 addresses.
        ipv6: bool,
    },
    /// nginx would have to resolve it for a request, and has no resolver to ask.
    Missing,
}

/// How a TLS handshake is made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tls {
    /// The name sent (SNI); `None`: none is sent.
    pub server_name: Option<String>,
    /// The name it would be if one were sent.
    pub name: String,
    /// What the upstream's certificate is verified against, where it is.
    pub trusted: Option<String>,
    /// The certificate is verified.
    pub verify: bool,
    /// Versions allowed (`TLSv1.2` …).
    pub protocols: Vec<String>,
    /// nginx shows a certificate of its own.
    pub own_certificate: bool,
}

/// How nginx speaks to an upstream: all that differs on the wire.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Speech {
    /// The protocol.
    pub protocol: Protocol,
    /// TLS below it.
    pub tls: Option<Tls>,
    /// The Host (`:authority`) that is sent.
    pub host: String,
    /// `1.0` or `1.1`.
    pub http_version: String,
    /// The source address, where one is set.
    pub bind: Option<IpAddr>,
}

/// Somebody who needs an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// The pass: an index into [`Layout::passes`].
    pub pass: usize,
    /// The group and the server in it, where it goes through a group.
    pub member: Option<(usize, usize)>,
    /// Where it is written.
    pub place: Place,
}

/// An upstream server and a way to speak to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The server.
    pub server: Server,
    /// Who resolves it.
    pub resolver: Resolver,
    /// How it is spoken to.
    pub speech: Speech,
    /// Who needs it.
    pub uses: Vec<Use>,
}

impl Endpoint {
    /// The server as people write it.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.server {
            Server::Address(address) => address.to_string(),
            Server::Name(host, port) => format!("{host}:{port}"),
        }
    }

    /// The longest `connect_timeout` of those who need it.
    #[must_use]
    pub fn connect_timeout_ms(&self, layout: &Layout) -> u64 {
        self.longest(layout, "connect_timeout")
    }

    /// The longest `read_timeout` of those who need it.
    #[must_use]
    pub fn read_timeout_ms(&self, layout: &Layout) -> u64 {
        self.longest(layout, "read_timeout")
    }

    fn longest(&self, layout: &Layout, end: &str) -> u64 {
        let passes = self.uses.iter().filter_map(|user| layout.passes.get(user.pass));
        let times = passes.map(|pass| timeout_ms(layout, pass, end));
        times.max().unwrap_or(DEFAULT_TIMEOUT_MS)
    }

    /// A Host to try where the one that is sent is refused: the name clients ask nginx for, else the server's own.
    #[must_use]
    pub fn other_host(&self, layout: &Layout) -> Option<String> {
        let passes = self.uses.iter().filter_map(|user| layout.passes.get(user.pass));
        let names = passes.filter_map(|pass| layout.block_of(pass)).flat_map(|block| block.server_names.iter());
        let server = match &self.server {
            Server::Name(name, _) => Some(name.clone()),
            Server::Address(_) => Some("localhost".to_owned()),
        };
        names.filter(|name| is_plain_name(name)).cloned().chain(server).find(|name| *name != self.speech.host)
    }

    /// The longest time nginx keeps an idle connection to it; `None` where it keeps none.
    #[must_use]
    pub fn pool_ms(&self, layout: &Layout) -> Option<u64> {
        let groups = self.uses.iter().filter_map(|user| layout.groups.get(user.member?.0));
        groups.filter_map(pool_ms).max()
    }

    /// Every place that names it.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        let mut places: Vec<Place> = self.uses.iter().map(|user| user.place.clone()).collect();
        places.sort();
        places.dedup();
        places
    }
}

/// How long nginx keeps idle connections of a group; `None` where it keeps none.
#[must_use]
pub fn pool_ms(group: &Group) -> Option<u64> {
    let first = |name: &str| group.settings.get(name)?.last()?.arguments.first();
    first("keepalive")?.parse::<u64>().ok().filter(|size| *size > 0)?;
    // nginx's default since 1.15.3, when the directive came.
    Some(first("keepalive_timeout").and_then(|text| units::milliseconds(text)).unwrap_or(60_000))
}

/// A timeout that is in force at a pass.
#[must_use]
pub fn timeout_ms(layout: &Layout, pass: &Pass, end: &str) -> u64 {
    layout.of_pass(pass, end).and_then(units::milliseconds).unwrap_or(DEFAULT_TIMEOUT_MS)
}

/// Whether a version (`1.22.1`) is at least another.
#[must_use]
pub fn at_least(version: Option<&str>, wanted: [u32; 3]) -> Option<bool> {
    let mut parts = version?.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let found = [parts.next()?, parts.next().unwrap_or(0), parts.next().unwrap_or(0)];
    Some(found >= wanted)
}

/// Every endpoint of a configuration, in a fixed order. Servers that are marked `down` are none.
#[must_use]
pub fn endpoints(layout: &Layout, version: Option<&str>) -> Vec<Endpoint> {
    let mut found: BTreeMap<(Server, Resolver, Speech), Vec<Use>> = BTreeMap::new();
    for (index, pass) in layout.passes.iter().enumerate() {
        let speech = speech(layout, pass, version);
        let mut add = |server: Server, resolver: Resolver, member, place: &Place| {
            let user = Use { pass: index, member, place: place.clone() };
            found.entry((server, resolver, speech.clone())).or_default().push(user);
        };
        match &pass.target {
            Target::Variable => {}
            Target::Address(address) => add(Server::Address(address.clone()), Resolver::System, None, &pass.place),
            Target::Name(host, port) => {
                let group = layout.groups.iter().position(|group| group.name.eq_ignore_ascii_case(host));
                if let Some(position) = group {
                    members(layout, position, pass, &mut add);
                } else if let Some(port) = port {
                    add(Server::Name(host.clone(), *port), resolver(layout, pass, host, *port), None, &pass.place);
                }
            }
        }
    }
    let endpoint = |((server, resolver, speech), mut uses): ((Server, Resolver, Speech), Vec<Use>)| {
        uses.sort();
        Endpoint { server, resolver, speech, uses }
    };
    found.into_iter().map(endpoint).collect()
}

fn members(
    layout: &Layout,
    position: usize,
    pass: &Pass,
    add: &mut impl FnMut(Server, Resolver, Option<(usize, usize)>, &Place),
) {
    let Some(group) = layout.groups.get(position) else { return };
    for (number, server) in group.servers.iter().enumerate() {
        if server.parameters.iter().any(|word| word == "down") {
            continue;
        }
        let member = Some((position, number));
        match &server.target {
            Some(Target::Address(address)) => {
                add(Server::Address(address.clone()), Resolver::System, member, &server.place);
            }
            Some(Target::Name(host, Some(port))) => {
                let again = server.parameters.iter().any(|word| word == "resolve");
                let own = group.settings.get("resolver").and_then(|lines| lines.last());
                let around = layout.block_of(pass).and_then(|block| block.lines("resolver").last());
                let resolver = match (again, own.or(around)) {
                    (true, Some(line)) => nginx_resolver(&line.arguments),
                    (true, None) => Resolver::Missing,
                    (false, _) => Resolver::System,
                };
                add(Server::Name(host.clone(), *port), resolver, member, &server.place);
            }
            _ => {}
        }
    }
}

/// A name without variables is resolved when nginx starts; so is one with variables that another pass names without them
/// (`ngx_http_upstream_init_request` looks the implicit groups through by host and port).
fn resolver(layout: &Layout, pass: &Pass, host: &str, port: u16) -> Resolver {
    let is_same = |other: &Pass| {
        !other.at_run_time
            && matches!(&other.target, Target::Name(name, Some(number)) if name.eq_ignore_ascii_case(host) && *number == port)
    };
    if !pass.at_run_time || layout.passes.iter().any(is_same) {
        return Resolver::System;
    }
    let line = layout.block_of(pass).and_then(|block| block.lines("resolver").last());
    line.map_or(Resolver::Missing, |line| nginx_resolver(&line.arguments))
}

fn nginx_resolver(arguments: &[String]) -> Resolver {
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    let servers: Vec<String> = arguments.iter().filter(|argument| !argument.contains('=')).cloned().collect();
    if servers.is_empty() || has("off") {
        return Resolver::Missing;
    }
    Resolver::Nginx { servers, ipv4: !has("ipv4=off"), ipv6: !has("ipv6=off") }
}

fn speech(layout: &Layout, pass: &Pass, version: Option<&str>) -> Speech {
    let block = layout.block_of(pass);
    let value = |end: &str| layout.of_pass(pass, end);
    let on = |end: &str| value(end) == Some("on");
    // $proxy_host leaves out the scheme's own port.
    let default_port = if pass.tls { ":443" } else { ":80" };
    let proxy_host = pass.host.strip_suffix(default_port).unwrap_or(&pass.host).to_owned();
    let proxy_host = if proxy_host.starts_with("unix:") { "localhost".to_owned() } else { proxy_host };
    let named = block.and_then(|block| block.server_names.iter().find(|name| is_plain_name(name)));
    let client_host = named.cloned().unwrap_or_else(|| "localhost".to_owned());
    let filled = |text: &str| {
        let known = [
            ("$proxy_host", proxy_host.as_str()),
            ("$http_host", &client_host),
            ("$host", &client_host),
            ("$server_name", &client_host),
            ("$proxy_port", pass.host.rsplit_once(':').map_or(default_port.trim_start_matches(':'), |(_, port)| port)),
            ("$server_port", "80"),
        ];
        let text = text.replace("${", "$").replace('}', "");
        let text = known.iter().fold(text, |text, (name, value)| text.replace(name, value));
        if text.contains('$') { client_host.clone() } else { text }
    };
    let header = match pass.protocol {
        Protocol::Http => "proxy_set_header",
        Protocol::Grpc => "grpc_set_header",
        _ => "",
    };
    let set =
        block.into_iter().flat_map(|block| block.lines(header)).find_map(|line| match line.arguments.as_slice() {
            [name, value] if name.eq_ignore_ascii_case("host") => Some(value.as_str()),
            _ => None,
        });
    let host = match (pass.protocol, set) {
        (Protocol::Http | Protocol::Grpc, Some(value)) => filled(value),
        (Protocol::Http | Protocol::Grpc, None) => proxy_host.clone(),
        _ => client_host.clone(),
    };
    let tls = pass.tls.then(|| {
        let name = value("ssl_name").map_or_else(|| proxy_host.clone(), &filled);
        let name = name.rsplit_once(':').map_or(name.as_str(), |(host, _)| host).trim_matches(['[', ']']).to_owned();
        let verify = on("ssl_verify");
        let protocols = block
            .and_then(|block| block.lines(&format!("{}_ssl_protocols", pass.protocol.prefix())).last())
            .map_or_else(|| default_protocols(version), |line| line.arguments.clone());
        Tls {
            // nginx sends no address as a name.
            server_name: (on("ssl_server_name") && name.parse::<IpAddr>().is_err()).then(|| name.clone()),
            name,
            trusted: value("ssl_trusted_certificate").filter(|_| verify).map(ToOwned::to_owned),
            verify,
            protocols,
            own_certificate: value("ssl_certificate").is_some(),
        }
    });
    let default_version = if at_least(version, [1, 29, 7]) == Some(true) { "1.1" } else { "1.0" };
    Speech {
        protocol: pass.protocol,
        tls,
        host,
        http_version: value("http_version").unwrap_or(default_version).to_owned(),
        bind: value("bind").and_then(|text| text.parse().ok()),
    }
}

/// `proxy_ssl_protocols`: TLSv1.3 is in the default since 1.23.4.
fn default_protocols(version: Option<&str>) -> Vec<String> {
    let words: &[&str] = match at_least(version, [1, 23, 4]) {
        Some(false) => &["TLSv1", "TLSv1.1", "TLSv1.2"],
        Some(true) | None => &["TLSv1.2", "TLSv1.3"],
    };
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "_" && !name.starts_with(['~', '.', '*']) && !name.contains(['*', '$'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::config::layout;

    fn plan(text: &str) -> Vec<Endpoint> {
        endpoints(&layout::read(text).unwrap(), Some("1.22.1"))
    }

    #[test]
    fn every_server_once_for_every_way_to_speak() {
        let found = plan(concat!(
            "http { upstream app { server 10.0.0.1:80; server 10.0.0.2:80 down; server b.example:81; }\n",
            "server { server_name shop.example;\n",
            "location / { proxy_pass http://app; } location /b { proxy_pass http://app/x; }\n",
            "location /c { proxy_set_header Host $host; proxy_pass http://app; } } }"
        ));
        let names: Vec<_> = found.iter().map(|one| (one.name(), one.speech.host.as_str(), one.uses.len())).collect();
        let expected = [
            ("10.0.0.1:80".to_owned(), "app", 2),
            ("10.0.0.1:80".to_owned(), "shop.example", 1),
            ("b.example:81".to_owned(), "app", 2),
            ("b.example:81".to_owned(), "shop.example", 1),
        ];
        assert_eq!(names, expected);
        assert_eq!(found[0].speech.http_version, "1.0");
    }

    #[test]
    fn a_name_with_variables_needs_a_resolver() {
        let text = |resolver: &str, other: &str| {
            format!("http {{ server {{ {resolver} set $a app:1; location / {{ proxy_pass http://$a; }} {other} }} }}")
        };
        assert_eq!(plan(&text("", ""))[0].resolver, Resolver::Missing);
        let expected = Resolver::Nginx { servers: vec!["127.0.0.11".into()], ipv4: true, ipv6: false };
        assert_eq!(plan(&text("resolver 127.0.0.11 valid=5s ipv6=off;", ""))[0].resolver, expected);
        let implicit = plan(&text("", "location /x { proxy_pass http://app:1/; }"));
        assert!(implicit.iter().all(|one| one.resolver == Resolver::System), "{implicit:?}");
    }

    #[test]
    fn tls_is_made_as_configured() {
        let found = plan(concat!(
            "http { server { location / { proxy_pass https://app.example:8443; proxy_ssl_server_name on; ",
            "proxy_ssl_verify on; proxy_ssl_trusted_certificate /ca.pem; } location /b { proxy_pass https://10.0.0.1; } } }"
        ));
        let plain = found[0].speech.tls.as_ref().unwrap();
        assert_eq!((plain.server_name.as_deref(), plain.verify), (None, false));
        let tls = found[1].speech.tls.as_ref().unwrap();
        assert_eq!((tls.server_name.as_deref(), tls.trusted.as_deref()), (Some("app.example"), Some("/ca.pem")));
        assert_eq!(tls.protocols, ["TLSv1", "TLSv1.1", "TLSv1.2"]);
        assert_eq!(found[1].speech.host, "app.example:8443");
    }

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(at_least(Some("1.9.11"), [1, 22, 0]), Some(false));
        assert_eq!(at_least(Some("1.25.3.1"), [1, 25, 3]), Some(true));
        assert_eq!(at_least(None, [1, 0, 0]), None);
    }
}
