//! Where in the configuration a request was answered, as far as its URI and its upstream tell.

use super::{Reading, evidence};
use crate::model::{
    attempt::Link,
    coverage::Sensor,
    evidence::{Evidence, Fact, Weight},
    host::{Configuration, Pass, Place, Takes},
    net::Address,
};

/// The timers between nginx and an upstream: the protocol, then connect, send, read.
const TIMERS: [(&str, [&str; 3]); 6] = [
    ("proxy", ["proxy_connect_timeout", "proxy_send_timeout", "proxy_read_timeout"]),
    ("fastcgi", ["fastcgi_connect_timeout", "fastcgi_send_timeout", "fastcgi_read_timeout"]),
    ("uwsgi", ["uwsgi_connect_timeout", "uwsgi_send_timeout", "uwsgi_read_timeout"]),
    ("scgi", ["scgi_connect_timeout", "scgi_send_timeout", "scgi_read_timeout"]),
    ("grpc", ["grpc_connect_timeout", "grpc_send_timeout", "grpc_read_timeout"]),
    ("memcached", ["memcached_connect_timeout", "memcached_send_timeout", "memcached_read_timeout"]),
];

/// One of nginx's timers towards an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// Until connected.
    Connect,
    /// Between two writes.
    Send,
    /// Between two reads.
    Read,
}

impl<'a> Reading<'a> {
    /// The places that can have answered this request; empty: not known.
    pub(crate) fn places(&self) -> Vec<&'a Place> {
        let Some(configuration) = self.case.configuration.as_ref() else { return Vec::new() };
        let asked = self.asked(configuration);
        let Some(upstream) = self.attempt.and_then(|attempt| attempt.upstream.as_ref()) else { return asked };
        let leads = |place: &&Place| place.pass.as_ref().is_some_and(|pass| leads(pass, upstream, configuration));
        // A failure in a subrequest is not where the client's URI leads.
        let by_uri: Vec<&Place> = asked.iter().copied().filter(leads).collect();
        let rewritten = by_uri.iter().any(|place| place.rewrites);
        if !by_uri.is_empty() && !rewritten && !self.case.subrequest {
            return by_uri;
        }
        configuration.places.iter().filter(leads).collect()
    }

    /// The places that the client's URI and Host lead to.
    fn asked(&self, configuration: &'a Configuration) -> Vec<&'a Place> {
        let request = &self.case.request;
        let Some(path) = request.uri.as_deref().and_then(|uri| uri.split('?').next()) else { return Vec::new() };
        // nginx decodes and merges before it compares.
        if !path.starts_with('/') || path.contains('%') || path.contains("//") || path.contains("/.") {
            return Vec::new();
        }
        let host = request.host.as_deref().map(|host| host.split(':').next().unwrap_or(host).to_lowercase());
        let named = |place: &&Place| host.as_ref().is_some_and(|host| place.names.contains(host));
        let exact = configuration.places.iter().any(|place| named(&place));
        let mut servers: Vec<usize> =
            configuration.places.iter().filter(|place| !exact || named(place)).map(|place| place.server).collect();
        servers.dedup();
        servers.into_iter().flat_map(|server| of_server(configuration, server, path)).collect()
    }

    /// The protocol nginx speaks with this upstream: `proxy`, `fastcgi` …, where it can be only one.
    pub(crate) fn protocol(&self) -> Option<&'static str> {
        let places = self.places();
        let first = places.first()?.pass.as_ref()?.protocol;
        places.iter().all(|place| place.pass.as_ref().is_some_and(|pass| pass.protocol == first)).then_some(first)
    }

    /// Whether nginx may have read the answer up to the connection's end, however long its header said it was: it does for these protocols
    /// (`ngx_event_pipe_copy_input_filter()` with a length of -1), unless connections are kept.
    pub(crate) fn may_read_to_the_end(&self) -> bool {
        const TO_THE_END: [&str; 3] = ["fastcgi", "uwsgi", "scgi"];
        let Some(configuration) = &self.case.configuration else { return true };
        let mut protocols = configuration.places.iter().filter_map(|place| Some(place.pass.as_ref()?.protocol));
        match self.protocol() {
            Some(protocol) => TO_THE_END.contains(&protocol),
            None => protocols.any(|protocol| TO_THE_END.contains(&protocol)),
        }
    }

    /// The name of a directive for this upstream's protocol: `read_timeout` is `fastcgi_read_timeout` for FastCGI.
    pub(crate) fn directive_name(&self, end: &str) -> String {
        format!("{}_{end}", self.protocol().unwrap_or("proxy"))
    }

    /// The name of a timer for this upstream's protocol.
    pub(crate) fn timer(&self, timer: Timer) -> &'static str {
        let protocol = self.protocol().unwrap_or("proxy");
        let (_, names) = TIMERS.iter().find(|(of, _)| *of == protocol).unwrap_or(&TIMERS[0]);
        match timer {
            Timer::Connect => names[0],
            Timer::Send => names[1],
            Timer::Read => names[2],
        }
    }

    /// The value of a directive where this request was answered, or where one value holds everywhere.
    pub(crate) fn directive(&self, name: &str) -> Option<&'a str> {
        let configuration = self.case.configuration.as_ref()?;
        let places = self.places();
        let value = |place: &&'a Place| place.values.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        match places.first().map(value) {
            Some(first) if places.iter().all(|place| value(place) == first) => first,
            Some(_) => None,
            None => configuration.directives.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str()),
        }
    }

    /// Directives that answer 502 by themselves where this request leads, as evidence; and whether something there can answer anything.
    pub(crate) fn configured_answers(&self) -> (Vec<Evidence>, Option<&'a str>) {
        let Some(configuration) = self.case.configuration.as_ref() else { return (Vec::new(), None) };
        let places = self.asked(configuration);
        let servers: Vec<usize> = places.iter().map(|place| place.server).collect();
        // What stands inside an `if` counts for the location or server around it.
        let inside = configuration.places.iter().filter(|place| {
            servers.contains(&place.server) && matches!(&place.takes, Takes::Internal(name) if name.starts_with("if"))
        });
        let scripted = places.iter().find_map(|place| place.scripted.as_deref());
        let mut found: Vec<Evidence> = Vec::new();
        for place in places.iter().copied().chain(inside) {
            for directive in &place.answers_502 {
                let fact = Fact::Configured { directive: directive.clone(), place: name(place) };
                if !found.iter().any(|known| known.fact == fact) {
                    found.push(evidence(fact, &[], Weight::Direct));
                }
            }
        }
        (found, scripted)
    }

    /// The cache that can have answered this request: the value of `proxy_cache`.
    pub(crate) fn cache(&self) -> Option<&'a str> {
        let configuration = self.case.configuration.as_ref()?;
        let places = self.asked(configuration);
        let of_place = |place: &&'a Place| {
            let protocol = place.pass.as_ref()?.protocol;
            let wanted = format!("{protocol}_cache");
            place.values.iter().find(|(name, value)| *name == wanted && value != "off").map(|(_, value)| value.as_str())
        };
        places.iter().find_map(of_place)
    }

    /// The access log says that no upstream was asked for this 502, and the error log, which would have said why, says nothing.
    pub(crate) fn nothing_tried_by_the_logs(&self) -> bool {
        let case = self.case;
        let nothing = case.attempts.is_empty() && case.complaints.is_empty() && case.attempts_complete;
        let logs = self.sees(Sensor::AccessLog) && self.sees(Sensor::ErrorLog) && self.errors_are_logged();
        nothing && logs && case.status == Some(502) && case.link == Link::Inferred && !case.subrequest
    }

    /// Whether the access log says that nginx's cache answered; `None`: it does not say.
    /// (`ngx_http_cache_status`, <https://github.com/nginx/nginx/blob/release-1.22.1/src/http/ngx_http_file_cache.c>.)
    pub(crate) fn cache_answered(&self) -> Option<bool> {
        let status = self.case.cache_status.as_deref()?;
        Some(matches!(status, "HIT" | "STALE" | "UPDATING" | "REVALIDATED"))
    }

    /// nginx writes every error to some log, so that its silence says that there was none.
    pub(crate) fn errors_are_logged(&self) -> bool {
        self.case.configuration.as_ref().is_some_and(|configuration| {
            let hides = |level: &str| matches!(level, "crit" | "alert" | "emerg");
            configuration.error_logs.iter().all(|(_, level)| !hides(level))
        })
    }
}

/// The places of a server that a path can lead to: the exact one; else the longest prefix, and every expression, which are not
/// evaluated here.
fn of_server<'a>(configuration: &'a Configuration, server: usize, path: &str) -> Vec<&'a Place> {
    let places = || configuration.places.iter().filter(move |place| place.server == server);
    if let Some(exact) = places().find(|place| matches!(&place.takes, Takes::Exact(of) if of == path)) {
        return vec![exact];
    }
    let prefix = places()
        .filter_map(|place| match &place.takes {
            Takes::Prefix { path: prefix, preferred } if path.starts_with(prefix.as_str()) => {
                Some((prefix.len(), *preferred, place))
            }
            _ => None,
        })
        .max_by_key(|(length, ..)| *length);
    let found = match prefix {
        Some((_, true, place)) => return vec![place],
        Some((_, false, place)) => Some(place),
        None => places().find(|place| place.takes == Takes::Rest),
    };
    found.into_iter().chain(places().filter(|place| matches!(place.takes, Takes::Expression(_)))).collect()
}

/// Whether a `*_pass` can lead to this upstream.
fn leads(pass: &Pass, upstream: &Address, configuration: &Configuration) -> bool {
    match (&pass.address, &pass.name) {
        (Some(address), _) => address == upstream,
        (None, Some(name)) => {
            match configuration.groups.iter().find(|group| group.name.eq_ignore_ascii_case(name)) {
                Some(group) => group.servers.iter().any(|server| {
                    // A server given by a name that could not be resolved can be anywhere.
                    server.addresses.is_empty() || server.addresses.contains(upstream)
                }),
                None => true,
            }
        }
        (None, None) => true,
    }
}

/// A place as the configuration writes it.
fn name(place: &Place) -> String {
    match &place.takes {
        Takes::Rest => match place.names.first() {
            Some(name) => format!("server {name}"),
            None => "a server".to_owned(),
        },
        Takes::Exact(path) => format!("location = {path}"),
        Takes::Prefix { path, preferred: true } => format!("location ^~ {path}"),
        Takes::Prefix { path, preferred: false } => format!("location {path}"),
        Takes::Expression(expression) => format!("location ~ {expression}"),
        Takes::Internal(name) if name.starts_with('@') => format!("location {name}"),
        Takes::Internal(name) => name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::Timer;
    use crate::{
        diagnose::{reading::Reading, testing::World},
        model::{evidence::Fact, net::Address},
    };

    impl World {
        /// nginx has this configuration.
        pub(crate) fn configured(&mut self, text: &str) {
            self.case.configuration = Some(crate::decode::config::decode(text).unwrap().configuration.into());
        }
    }

    /// A world with this configuration, whose request asks for this and was sent to 127.0.0.1:8000.
    fn world(configuration: &str, host: &str, uri: &str) -> World {
        let mut world = World::new(504);
        world.configured(configuration);
        world.case.request.host = Some(host.to_owned());
        world.case.request.uri = Some(uri.to_owned());
        world
    }

    const SITES: &str = "http { proxy_read_timeout 9s;
        upstream app { server 127.0.0.1:8000; }
        server { server_name shop.example;
            location / { proxy_pass http://app; }
            location /slow/ { proxy_pass http://app; proxy_read_timeout 5m; }
            location = /slow/one { fastcgi_pass 127.0.0.1:8000; fastcgi_read_timeout 7s; }
            location ^~ /static/ { return 502; }
            location ~ \\.php$ { fastcgi_pass 127.0.0.1:9000; } }
        server { server_name other.example; location / { proxy_pass http://app; proxy_read_timeout 1s; } } }";

    fn read_timeout(host: &str, uri: &str) -> (&'static str, Option<String>) {
        let world = world(SITES, host, uri);
        let reading = Reading::of(&world.case);
        let name = reading.timer(Timer::Read);
        (name, reading.directive(name).map(str::to_owned))
    }

    #[test]
    fn the_location_that_takes_the_request_gives_the_value() {
        let is = |value: &str| Some(value.to_owned());
        assert_eq!(read_timeout("shop.example", "/cart"), ("proxy_read_timeout", is("9s")));
        assert_eq!(read_timeout("shop.example", "/slow/two?x=1"), ("proxy_read_timeout", is("5m")));
        assert_eq!(read_timeout("shop.example", "/slow/one"), ("fastcgi_read_timeout", is("7s")));
        assert_eq!(read_timeout("other.example:8080", "/slow/one"), ("proxy_read_timeout", is("1s")));
    }

    #[test]
    fn where_it_cannot_be_told_nothing_is_said() {
        // No server has that name, and nobody knows which of the two is the default one.
        assert_eq!(read_timeout("elsewhere", "/cart"), ("proxy_read_timeout", None));
        // nginx decodes before it compares; then every place that leads to the upstream is a candidate.
        assert_eq!(read_timeout("shop.example", "/sl%6fw/two").1, None);
        let rewritten = "http { upstream app { server 127.0.0.1:8000; } server {
            location / { rewrite ^ /slow/ last; proxy_pass http://app; proxy_read_timeout 1s; }
            location /slow/ { proxy_pass http://app; proxy_read_timeout 2s; } } }";
        let world = world(rewritten, "any", "/");
        assert_eq!(Reading::of(&world.case).directive("proxy_read_timeout"), None);
    }

    #[test]
    fn a_place_that_leads_elsewhere_is_not_it() {
        let mut world = world(SITES, "shop.example", "/cart");
        world.attempt().upstream = Some(Address::Ip("127.0.0.1:9000".parse().unwrap()));
        assert_eq!(Reading::of(&world.case).protocol(), Some("fastcgi"));
    }

    #[test]
    fn what_answers_is_named_with_its_place() {
        let world = world(SITES, "shop.example", "/static/logo.png");
        let (answers, scripted) = Reading::of(&world.case).configured_answers();
        let fact = Fact::Configured { directive: "return 502".to_owned(), place: "location ^~ /static/".to_owned() };
        assert_eq!((answers.len(), &answers[0].fact, scripted), (1, &fact, None));
    }
}
