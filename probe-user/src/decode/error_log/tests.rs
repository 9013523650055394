use jiff::civil::datetime;
use proptest::prelude::*;

use super::*;

const REFUSED: &str = "2026/11/21 14:02:07 [error] 31785#31785: *3 connect() failed (111: Connection refused) \
    while connecting to upstream, client: 127.0.0.1, server: lab, request: \"GET /refused?a=b HTTP/1.1\", \
    upstream: \"http://127.0.0.11:9001/refused?a=b\", host: \"shop.example:8080\", referrer: \"http://x/\"";

fn line(text: &str) -> ErrorLine {
    decode(text.as_bytes()).unwrap().line
}

#[expect(clippy::unnecessary_wraps, reason = "what the fields hold")]
fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn a_full_line() {
    let decoded = decode(format!("{REFUSED}\n").as_bytes()).unwrap();
    assert_eq!(decoded.local, datetime(2026, 11, 21, 14, 2, 7, 0));
    assert!(!decoded.cut);
    let expected = ErrorLine {
        level: "error".into(),
        pid: 31785,
        number: Some(3),
        message: "connect() failed".into(),
        errno: Some(Errno::ECONNREFUSED),
        action: some("connecting to upstream"),
        client: some("127.0.0.1"),
        server: some("lab"),
        request: some("GET /refused?a=b HTTP/1.1"),
        subrequest: None,
        upstream: some("http://127.0.0.11:9001/refused?a=b"),
        host: some("shop.example:8080"),
    };
    assert_eq!(decoded.line, expected);
}

/// Lines that nginx 1.22.1 wrote, its clients sending a forged referrer.
#[test]
fn lines_of_a_real_nginx() {
    let read: Vec<String> = include_str!("nginx-1.22.1.log")
        .lines()
        .map(|text| {
            let decoded = decode(text.as_bytes()).unwrap();
            let line = decoded.line;
            assert_eq!(line.client.is_some(), line.number.is_some(), "{text}");
            assert!(line.host.is_none_or(|host| host == "h:1"), "{text}");
            let errno = line.errno.map_or_else(String::new, |errno| errno.to_string());
            let path = line.request.as_deref().and_then(|request| request.split(' ').nth(1)).unwrap_or("-");
            let upstream = line.upstream.as_deref().unwrap_or("-");
            let message = crate::model::complaint::Message::classify(&line.message);
            let short: String = path.chars().take(12).collect();
            format!("{message:?} {errno} {short} {upstream}{}", if decoded.cut { " cut" } else { "" })
        })
        .collect();
    let expected = [
        "Some(ConnectFailed) ECONNREFUSED /refused http://127.0.0.1:18971/refused",
        "Some(ConnectFailed) ECONNREFUSED /two http://127.0.0.1:18971/two",
        "Some(TemporarilyDisabled)  /two http://127.0.0.1:18971/two",
        "Some(ConnectFailed) ECONNREFUSED /two http://127.0.0.1:18972/two",
        "Some(TemporarilyDisabled)  /two http://127.0.0.1:18972/two",
        "Some(NoLiveUpstreams)  /two http://two/two",
        "Some(ConnectFailedAtOnce) ENOENT /unix http://unix:/srv/lab/none.sock:/x",
        "Some(SendFailed) ECONNREFUSED - -",
        "Some(SendFailed) ECONNREFUSED - -",
        "Some(NotResolved)  /dns -",
        "Some(TlsHandshake)  /tls https://127.0.0.1:18973/tls",
        "Some(PrematurelyClosed)  /close http://127.0.0.1:18974/close",
        "Some(ConnectFailed) ECONNREFUSED /fcgi fastcgi://127.0.0.1:18971",
        "None ENOENT /static/x -",
        "Some(ConnectFailed) ECONNREFUSED /refused/aaa - cut",
        "None  /refused/\", -",
        "Some(ConnectFailed) ECONNREFUSED /refused http://127.0.0.1:18971/refused",
        "None  /refused/\",_ -",
        "None  - -",
    ];
    assert_eq!(read, expected);
}

#[test]
fn fields_may_be_missing() {
    let bare = line("2026/11/21 14:02:07 [notice] 1#1: signal process started");
    assert_eq!((bare.message.as_str(), bare.number, bare.client), ("signal process started", None, None));

    let resolver = line(
        "2026/11/21 14:02:07 [error] 7#7: recv() failed (111: Connection refused) while resolving, resolver: 127.0.0.1:53",
    );
    assert_eq!((resolver.errno, resolver.action), (Some(Errno::ECONNREFUSED), some("resolving")));

    let unresolved = line(
        "2026/11/21 14:02:07 [error] 7#7: *1 nope.example could not be resolved (110: Operation timed out), \
         client: 10.0.0.7, server: , request: \"GET / HTTP/1.1\", host: \"h\"",
    );
    assert_eq!(unresolved.errno, None, "the resolver's own code");
    assert_eq!(unresolved.message, "nope.example could not be resolved (110: Operation timed out)");
    assert_eq!((unresolved.action, unresolved.server), (None, None));
    assert_eq!((unresolved.request, unresolved.upstream), (some("GET / HTTP/1.1"), None));

    let accept = line("2026/11/21 14:02:07 [crit] 7#7: accept4() failed (24: Too many open files)");
    assert_eq!((accept.message.as_str(), accept.errno), ("accept4() failed", Some(Errno::EMFILE)));

    let early = line(
        "2026/11/21 14:02:07 [info] 7#7: *4 client timed out (110: Connection timed out) while waiting for request, \
         client: ::1, server: [::]:443",
    );
    assert_eq!((early.client, early.server, early.request), (some("::1"), some("[::]:443"), None));
    assert_eq!(early.action, some("waiting for request"));

    let stream = line(
        "2026/11/21 14:02:07 [error] 7#7: *4 connect() failed (111: Connection refused) while connecting to upstream, \
         client: 10.0.0.1, server: 0.0.0.0:80, upstream: \"10.0.0.2:80\", bytes from/to client:0/0, \
         bytes from/to upstream:0/0",
    );
    assert_eq!((stream.server, stream.upstream), (some("0.0.0.0:80"), some("10.0.0.2:80")));
}

#[test]
fn messages_with_parentheses_and_while() {
    let tls = line(
        "2026/11/21 14:02:07 [error] 7#7: *9 SSL_do_handshake() failed (SSL: error:0A00010B:SSL routines::wrong version \
         number) while SSL handshaking to upstream, client: 1.2.3.4, server: s, request: \"GET / HTTP/2.0\", \
         upstream: \"https://unix:/run/a.sock:/\", host: \"h\"",
    );
    assert!(tls.message.ends_with("wrong version number)"));
    assert_eq!((tls.errno, tls.upstream), (None, some("https://unix:/run/a.sock:/")));

    let closed = line(
        "2026/11/21 14:02:07 [info] 7#7: *9 epoll_wait() reported that client prematurely closed connection while sending, \
         so upstream connection is closed too (104: Connection reset by peer) while reading upstream, client: 1.2.3.4, \
         server: s, request: \"GET / HTTP/1.1\", subrequest: \"/inc\", upstream: \"http://127.0.0.1:80/inc\"",
    );
    assert!(closed.message.ends_with("closed too"));
    assert_eq!((closed.action, closed.subrequest), (some("reading upstream"), some("/inc")));
}

#[test]
fn syslog_headers_and_other_lines() {
    let relayed = format!("<187>Nov 21 14:02:07 web1 nginx: {REFUSED}");
    assert_eq!(line(&relayed), line(REFUSED));
    for other in [
        "",
        "PHP message: thing",
        "nginx: [emerg] bind() to 0.0.0.0:80 failed",
        "2026/11/21 14:02:07 nothing",
        "2026/13/21 14:02:07 [error] 1#1: x",
        "2026/11/21 14:02:07 [error] x#1: y",
        "2026/11/21 14:02:07 [ERR OR] 1#1: y",
        "2026/11/21 14:02:07 [error] 99999999999#1: y",
    ] {
        assert_eq!(decode(other.as_bytes()), Err(NotAMessage), "{other}");
    }
}

/// The line with these words as message, request and referrer.
fn made(message: &str, request: &str, referrer: &str) -> ErrorLine {
    line(&format!(
        "2026/11/21 14:02:07 [error] 7#7: *9 {message} while reading response header from upstream, client: 10.0.0.7, \
         server: s, request: \"{request}\", upstream: \"http://10.0.0.2:80/\", host: \"real\", referrer: \"{referrer}\""
    ))
}

#[test]
fn clients_cannot_forge_an_upstream() {
    let honest = made("recv() failed (104: Connection reset by peer)", "GET / HTTP/1.1", "x");
    let forged_tail =
        ", client: 6.6.6.6, server: evil, request: \"GET /e HTTP/1.1\", upstream: \"http://6.6.6.6/\", host: \"evil";

    // In the referrer: nothing behind its beginning counts.
    let line = made("recv() failed (104: Connection reset by peer)", "GET / HTTP/1.1", &format!("x\"{forged_tail}"));
    assert_eq!(line, honest);

    // In the request line, as far as nginx lets it pass: never a wrong upstream.
    let request = format!("GET /\"{forged_tail} HTTP/1.1");
    let line = made("recv() failed (104: Connection reset by peer)", &request, "x");
    assert_eq!((line.client.as_deref(), line.upstream.as_deref()), (Some("10.0.0.7"), None));

    // Without a version there is no telling where it ends.
    let line = made("recv() failed (104: Connection reset by peer)", "GET /\", upstream: \"http://6.6.6.6/", "x");
    assert_eq!((line.request, line.upstream), (None, None));
}

#[test]
fn upstreams_cannot_forge_a_client() {
    let honest = made("upstream sent invalid header: \"X y\\x20...\"", "GET / HTTP/1.1", "x");
    assert_eq!(honest.client.as_deref(), Some("10.0.0.7"));
    let forged = "upstream sent invalid header: \"X while sending to client, client: 6.6.6.6, server: evil, \
        request: \"GET /e HTTP/1.1\", upstream: \"http://6.6.6.6/\"\"";
    let line = made(forged, "GET / HTTP/1.1", "x");
    assert_eq!((line.client, line.upstream, line.request), (None, None, None));
    assert!(line.message.starts_with("upstream sent invalid header"));
}

#[test]
fn cut_lines_keep_what_is_whole() {
    let long = "a".repeat(3000);
    let mut bytes = made_text(&long).into_bytes();
    bytes.truncate(2047);
    let decoded = decode(&bytes).unwrap();
    assert!(decoded.cut);
    assert!(decoded.line.request.is_some_and(|request| request.starts_with("GET /aaa")));
    assert_eq!(decoded.line.upstream, None);

    // Cut inside the upstream's address: half an address is none.
    let text = REFUSED.split("1:9001").next().unwrap();
    assert_eq!(line(text).upstream, None);
    assert_eq!(line(text).request, some("GET /refused?a=b HTTP/1.1"));
    // nginx shortens the message itself before the errno.
    let message = format!("2026/11/21 14:02:07 [crit] 7#7: *9 open() \"/{long}... (36: File name too long)");
    assert_eq!(line(&message).errno, Some(Errno::ENAMETOOLONG));
}

fn made_text(path: &str) -> String {
    REFUSED.replace("/refused", &format!("/{path}"))
}

#[test]
fn bytes_that_are_no_text() {
    let mut bytes = REFUSED.as_bytes().to_vec();
    let at = bytes.windows(8).position(|window| window == b"refused?").unwrap();
    bytes[at] = 0xff;
    let decoded = decode(&bytes).unwrap();
    assert_eq!(decoded.line.request.as_deref(), Some("GET /\u{fffd}efused?a=b HTTP/1.1"));
}

/// Text with pieces of nginx's own grammar in it.
fn hostile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("\"".to_owned()),
        Just("\", upstream: \"http://6.6.6.6/".to_owned()),
        Just("\", subrequest: \"/s".to_owned()),
        Just("\", host: \"evil".to_owned()),
        Just("\", referrer: \"r".to_owned()),
        Just("\", request: \"GET /".to_owned()),
        Just(", client: 6.6.6.6, server: evil".to_owned()),
        Just(" while connecting to upstream".to_owned()),
        Just(" (5: Input/output error)".to_owned()),
        "[ -~]{0,20}",
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn no_tail_makes_it_panic(tail in ".{0,300}") {
        let text = format!("2026/11/21 14:02:07 [error] 7#7: *9 {tail}");
        prop_assert_eq!(line(&text).number, Some(9));
    }

    #[test]
    fn no_mutation_makes_it_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8), cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = REFUSED.as_bytes().to_vec();
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let _ = decode(&bytes);
    }

    #[test]
    fn a_request_never_changes_who_is_blamed(request in hostile(), referrer in hostile()) {
        let request = format!("GET /{request}");
        let line = made("connect() failed (111: Connection refused)", &request, &referrer);
        prop_assert_eq!(line.client.as_deref(), Some("10.0.0.7"));
        prop_assert_eq!(line.errno, Some(Errno::ECONNREFUSED));
        prop_assert!(line.upstream.is_none_or(|upstream| upstream == "http://10.0.0.2:80/"));
    }
}
