use proptest::prelude::*;

use super::{units::milliseconds, *};

fn read(text: &str) -> Decoded {
    decode(text).unwrap()
}

fn ip(text: &str) -> Address {
    Address::Ip(text.parse().unwrap())
}

fn value<'a>(decoded: &'a Decoded, name: &str) -> Option<&'a str> {
    decoded.configuration.directives.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}

const DUMP: &str = r#"nginx: the configuration file /etc/nginx/nginx.conf syntax is ok
nginx: configuration file /etc/nginx/nginx.conf test is successful
# configuration file /etc/nginx/nginx.conf:
user www-data; worker_rlimit_nofile 4096;
error_log /var/log/nginx/error.log;
events { worker_connections 768; }
http {
    log_format timed escape=json '{"s":$status,'
        '"a":"$upstream_addr"}';
    access_log logs/access.log timed buffer=32k;
    access_log off;
    proxy_read_timeout 5s;
    include conf.d/*.conf;
    include /etc/nginx/mime.types;
    include missing.conf;
}
stream { error_log /s.log; server { listen 9; proxy_pass 10.9.9.9:9; } }
# configuration file /etc/nginx/conf.d/b.conf:
server { # no listen
    location / { proxy_pass http://Backend/x; }
    location = /v { proxy_pass http://$host$uri; set $x ${y}z; }
    location /f { fastcgi_pass unix:/run/php.sock; }
    location /g { grpc_pass grpcs://app.example; }
    location /u { proxy_pass http://unix:/run/a.sock:/uri; }
    location /r { proxy_pass https://10.0.0.9$request_uri; proxy_read_timeout 5s; }
}
# configuration file /etc/nginx/conf.d/.hidden.conf:
this is not configuration
# configuration file /etc/nginx/conf.d/a.conf:
upstream backend {
    server 127.0.0.1:8000 max_fails=3 fail_timeout=1m;
    server [::1]:8001 down; server app.example:81 backup;
    server unix:/run/b.sock;
    keepalive 16; keepalive_timeout 5s;
}
server {
    listen 8080; listen [::]:8443 ssl; listen *:81; listen 127.0.0.1; listen unix:/x; listen 10.0.0.1:90-92;
    error_log stderr warn;
    location ~ "^/\"a{2}\"$" { return 200 'it''s; }'; }
}
# configuration file /etc/nginx/mime.types:
types { text/html html; }
"#;

#[test]
fn a_dump_with_includes() {
    // Words that touch after a quote are a fault in nginx; here they are two words, and nothing else is lost.
    let decoded = read(DUMP);
    let configuration = &decoded.configuration;
    assert_eq!(configuration.worker_rlimit_nofile, Some(4096));
    assert_eq!(configuration.worker_connections, Some(768));
    let listen: Vec<String> = configuration.listen.iter().map(ToString::to_string).collect();
    let expected = [
        "0.0.0.0:80",
        "0.0.0.0:81",
        "0.0.0.0:8080",
        "10.0.0.1:90",
        "10.0.0.1:91",
        "10.0.0.1:92",
        "127.0.0.1:80",
        "[::]:8443",
    ];
    assert_eq!(listen, expected);
    assert_eq!(
        configuration.error_logs,
        [("/var/log/nginx/error.log".into(), "error".into()), ("stderr".into(), "warn".into())]
    );
    assert_eq!(configuration.access_logs, [("logs/access.log".into(), Some("timed".into()))]);
    let format = "escape=json {\"s\":$status,\"a\":\"$upstream_addr\"}";
    assert_eq!(configuration.log_formats, [("timed".into(), format.into())]);
    let unix = |path: &str| Address::Unix(path.into());
    let upstreams = [
        ip("10.0.0.9:443"),
        ip("127.0.0.1:8000"),
        ip("[::1]:8001"),
        unix("/run/a.sock"),
        unix("/run/b.sock"),
        unix("/run/php.sock"),
    ];
    assert_eq!(configuration.upstreams, upstreams);
    assert_eq!(decoded.names, [("app.example".into(), 81), ("app.example".into(), 443)]);
    assert_eq!(decoded.variable, ["http://$host$uri"]);
    assert_eq!(decoded.missing_includes, ["/etc/nginx/missing.conf"]);
    assert!(!decoded.default_error_log && !decoded.default_access_log);

    let [group] = configuration.groups.as_slice() else { panic!() };
    assert_eq!((group.name.as_str(), group.keepalive, group.keepalive_timeout_ms), ("backend", Some(16), Some(5_000)));
    let servers: Vec<_> = group
        .servers
        .iter()
        .map(|server| (server.name.as_str(), server.max_fails, server.fail_timeout_ms, server.down, server.backup))
        .collect();
    let expected = [
        ("127.0.0.1:8000", 3, 60_000, false, false),
        ("[::1]:8001", 1, 10_000, true, false),
        ("app.example:81", 1, 10_000, false, true),
        ("unix:/run/b.sock", 1, 10_000, false, false),
    ];
    assert_eq!(servers, expected);
    assert!(group.servers[2].addresses.is_empty());

    assert_eq!(value(&decoded, "proxy_read_timeout"), Some("5s"));
    assert_eq!(value(&decoded, "proxy_connect_timeout"), Some("60s"), "the default reaches every location");
    assert_eq!(value(&decoded, "uwsgi_read_timeout"), None, "nothing is passed by uwsgi");
    assert_eq!(value(&decoded, "user"), Some("www-data"));
}

#[test]
fn a_value_that_does_not_hold_everywhere_is_left_out() {
    let text = |inner: &str| {
        format!(
            "http {{ server {{ location / {{ proxy_pass http://a:1; {inner} }} location /b {{ proxy_pass http://b:1; }} }} }}"
        )
    };
    assert_eq!(value(&read(&text("")), "proxy_read_timeout"), Some("60s"));
    assert_eq!(value(&read(&text("proxy_read_timeout 60s;")), "proxy_read_timeout"), Some("60s"));
    assert_eq!(value(&read(&text("proxy_read_timeout 5s;")), "proxy_read_timeout"), None);
    assert_eq!(value(&read(&text("proxy_http_version 1.1;")), "proxy_http_version"), None, "unknown default elsewhere");
    // The group's keepalive_timeout is another directive.
    let grouped =
        read("http { keepalive_timeout 10s; upstream u { server 1.1.1.1; keepalive_timeout 1s; } server { } }");
    assert_eq!(value(&grouped, "keepalive_timeout"), Some("10s"));
    assert_eq!(grouped.configuration.upstreams, [ip("1.1.1.1:80")]);
}

#[test]
fn a_plain_file_with_everything_awkward() {
    let decoded = read(concat!(
        "http { server { # comment with { and \"\n",
        "  content_by_lua_block { local s = \"}\" .. '}' -- }\n  --[[ } ]] local t = { a = [==[ }]] ]==] } }\n",
        "  location / { proxy_pass 'http://127.0.0.1:1/\\'x'; }\n",
        "  location /e { proxy_pass http://127.0.0.1:2/a\\;b; }\n",
        "  if ($a = 'x{y') { return 502; }\n",
        "} }"
    ));
    assert_eq!(decoded.configuration.upstreams, [ip("127.0.0.1:1"), ip("127.0.0.1:2")]);
    assert!(decoded.default_error_log && decoded.default_access_log);
    assert_eq!(decoded.configuration.worker_connections, Some(512));
}

#[test]
fn faults_name_their_place() {
    for (text, line, what) in [
        ("http {\n server {\n", 3, "a block is not closed"),
        ("a;\n}", 2, "a closing brace is out of place"),
        ("a b", 1, "a directive is not finished"),
        ("a \"b", 1, "a quoted word is not closed"),
        ("x_by_lua_block {\n'}'", 2, "a Lua block is not closed"),
    ] {
        assert_eq!(decode(text), Err(ConfigError { file: String::new(), line, what }), "{text}");
    }
    let included = "# configuration file /a/nginx.conf:\ninclude b;\n# configuration file /a/b:\nok;\nbad }\n";
    let error = decode(included).unwrap_err();
    assert_eq!((error.file.as_str(), error.line), ("/a/b", 2));
    assert_eq!(error.to_string(), "/a/b:2: a closing brace is out of place");
    let endless = "# configuration file /a/nginx.conf:\ninclude nginx.conf;\n";
    assert_eq!(decode(endless).unwrap_err().what, "blocks or includes are nested too deeply");
    assert!(decode(&"a {".repeat(100_000)).is_err());
}

#[test]
fn times() {
    let cases = [
        ("60s", Some(60_000)),
        ("10", Some(10_000)),
        ("500ms", Some(500)),
        ("1h 30m", Some(5_400_000)),
        ("1d", Some(86_400_000)),
        ("", None),
        ("s", None),
        ("5x", None),
        ("99999999999999999999s", None),
    ];
    for (text, expected) in cases {
        assert_eq!(milliseconds(text), expected, "{text}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(http \\{|server \\{|location /|proxy_pass|upstream x|include \\*;|listen|[ -~\\n]{0,6}|\\PC|[;{}\"'\\\\\\[\\]]){0,40}") {
        let _ = decode(&text);
    }

    #[test]
    fn no_mutation_makes_it_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<char>()), 0..8), cut in any::<prop::sample::Index>(),
    ) {
        let mut text: Vec<char> = DUMP.chars().collect();
        for (index, value) in changes {
            let at = index.index(text.len());
            text[at] = value;
        }
        text.truncate(cut.index(text.len() + 1));
        let _ = decode(&text.into_iter().collect::<String>());
    }
}

#[test]
fn places_are_kept_only_as_far_as_they_are_of_use() {
    let with = |names: usize, locations: usize| {
        let names = (0..names).map(|number| format!("{number:01000}.example")).collect::<Vec<_>>().join(" ");
        let locations = "location / { return 204; }".repeat(locations);
        decode(&format!("http {{ server {{ server_name {names}; {locations} }} }}")).unwrap().configuration.places.len()
    };
    assert_eq!(with(10, 1_000), 1_001);
    // Each location has the names of its server: a megabyte of them in 10,000 places are gigabytes.
    assert_eq!(with(1_000, 10_000), 0);
}
