//! Each trap, and the nearest text that is none.

use crate::{
    check::{
        Weight, judge, plan,
        seen::{Answer, AnswerSeen, Idle, Nginx, Seen, Try},
    },
    decode::config::layout,
    model::net::Address,
};

fn seen(http: &str) -> Seen {
    let layout = layout::read(&format!("events {{}} http {{ {http} }}")).unwrap();
    let endpoints = plan::endpoints(&layout, Some("1.22.1"));
    let nginx = Nginx { version: Some("1.22.1".to_owned()), ..Nginx::default() };
    Seen { nginx, layout, endpoints, ..Seen::default() }
}

/// Weight and subject of everything found.
fn found(seen: &Seen) -> Vec<(Weight, String)> {
    judge(seen).into_iter().map(|finding| (finding.weight, finding.subject)).collect()
}

fn located(inside: &str) -> Vec<(Weight, String)> {
    found(&seen(&format!("server {{ location / {{ proxy_pass http://10.0.0.1; {inside} }} }}")))
}

fn one(weight: Weight, subject: &str) -> Vec<(Weight, String)> {
    vec![(weight, subject.to_owned())]
}

#[test]
fn an_ordinary_configuration_has_nothing_to_mind() {
    assert_eq!(located(""), []);
    assert_eq!(located("proxy_read_timeout 30s; proxy_next_upstream error timeout http_502;"), []);
    assert_eq!(located("proxy_cache one; proxy_cache_valid 200 404 1m;"), []);
}

#[test]
fn slashes_that_do_not_match() {
    let pass = |location: &str, pass: &str| {
        found(&seen(&format!("server {{ location {location} {{ proxy_pass {pass}; }} }}")))
    };
    assert_eq!(pass("/api", "http://10.0.0.1/"), one(Weight::Note, "location /api"));
    assert_eq!(pass("/api/", "http://10.0.0.1/v1"), one(Weight::Note, "location /api/"));
    for (location, to) in [
        ("/api/", "http://10.0.0.1/v1/"),
        ("/api", "http://10.0.0.1/v1"),
        ("/api/", "http://10.0.0.1"),
        ("/", "http://10.0.0.1/"),
    ] {
        assert_eq!(pass(location, to), [], "{location} {to}");
    }
}

#[test]
fn single_directives() {
    assert_eq!(located("proxy_read_timeout 200ms;"), one(Weight::Risk, "proxy_read_timeout"));
    assert_eq!(located("proxy_connect_timeout 300s;"), one(Weight::Note, "proxy_connect_timeout"));
    assert_eq!(located("proxy_next_upstream error non_idempotent;"), one(Weight::Risk, "proxy_next_upstream"));
    assert_eq!(located("proxy_cache one; proxy_cache_valid any 1m;"), one(Weight::Risk, "proxy_cache_valid"));
    assert_eq!(located("proxy_cache off; proxy_cache_valid any 1m;"), []);
    assert_eq!(located("error_log /var/log/nginx/e.log crit;"), one(Weight::Risk, "error_log"));
    assert_eq!(found(&seen("server { location / { return 502; } }")), one(Weight::Note, "return"));
}

#[test]
fn one_failure_takes_the_only_server_away() {
    let group = |servers: &str| {
        found(&seen(&format!("upstream u {{ {servers} }} server {{ location / {{ proxy_pass http://u; }} }}")))
    };
    assert_eq!(group("server 10.0.0.1; server 10.0.0.2 down;"), one(Weight::Risk, "u"));
    for servers in
        ["server 10.0.0.1;", "server 10.0.0.1; server 10.0.0.2;", "server 10.0.0.1 max_fails=0; server 10.0.0.2 down;"]
    {
        assert_eq!(group(servers), [], "{servers}");
    }
}

#[test]
fn pools_and_the_upstreams_idle_time() {
    let text = "upstream u { server 10.0.0.1; keepalive 8; keepalive_timeout 10s; } server { location / { proxy_pass http://u; HTTP } }";
    let kept = text.replace("HTTP", "proxy_http_version 1.1; proxy_set_header Connection \"\";");
    assert_eq!(
        found(&seen(&text.replace("HTTP", ""))),
        one(Weight::Note, "u"),
        "kept by the pool, closed by the request"
    );
    assert_eq!(found(&seen(&kept)), []);
    let with = |server: Option<&str>, idle: Option<Idle>| {
        let mut seen = seen(&kept);
        let kind = Answer::Http {
            status: 200,
            header_bytes: 100,
            server: server.map(ToOwned::to_owned),
            location: None,
            body: Vec::new(),
        };
        seen.tries.push(Try {
            answer: Some(AnswerSeen { took_us: 1, kind }),
            idle,
            ..Try::new(0, Address::parse("10.0.0.1:80").unwrap())
        });
        judge(&seen).into_iter().filter_map(|finding| finding.cause).collect::<Vec<_>>()
    };
    assert_eq!(with(Some("uvicorn"), None), ["keepalive-race"]);
    assert_eq!(with(Some("nginx/1.22.1"), None), [""; 0], "75 s are longer than 10");
    assert_eq!(with(Some("uvicorn"), Some(Idle::Open(13_000))), [""; 0], "measured beats known");
    assert_eq!(with(None, Some(Idle::Closed(3_000))), ["keepalive-race"]);
}

#[test]
fn what_nginx_itself_refuses() {
    let mut refused = seen("");
    refused.nginx.refused =
        Some("nginx: [emerg] host not found in upstream \"app\" in /etc/nginx/nginx.conf:3".to_owned());
    let findings = judge(&refused);
    assert_eq!((findings[0].weight, findings[0].cause), (Weight::Fault, Some("dns-failure")));
    refused.nginx.refused = Some("nginx: [emerg] open() \"/x\" failed (13: Permission denied)".to_owned());
    assert_eq!(judge(&refused)[0].weight, Weight::Note);
}
