use proptest::prelude::*;

use super::*;

fn read(format: &str, line: &str) -> Decoded {
    decode(&Pattern::compile(format), line.as_bytes()).unwrap()
}

#[test]
fn combined() {
    let decoded = read(
        COMBINED,
        "10.0.0.7 - - [21/Nov/2026:15:02:07 +0100] \"GET /a\\x22b HTTP/1.1\" 502 157 \"-\" \"curl/7.88 (x)\"\n",
    );
    // 2026-11-21T14:02:07Z
    assert_eq!(decoded.time, Some(LogTime { unix_ns: 1_795_269_727_000_000_000, resolution_ns: SECOND_NS }));
    let expected = AccessLine {
        client: Some("10.0.0.7".into()),
        request: Some("GET /a\"b HTTP/1.1".into()),
        status: Some(502),
        number: None,
        client_requests: None,
        pid: None,
        upstream_status: None,
        upstream_address: None,
        cache_status: None,
    };
    assert_eq!(decoded.line, expected);
}

#[test]
fn several_attempts_between_blanks() {
    let format = "$msec $pid $connection $connection_requests $status $upstream_status $upstream_addr $upstream_connect_time \
        $request_time \"$request\"";
    let decoded = read(
        format,
        "1795269727.331 812 41 3 502 502, 502 : - 127.0.0.1:8000, unix:/run/a.sock : group -, 0.004 : - 0.010 \"GET / HTTP/1.1\"",
    );
    assert_eq!(decoded.time, Some(LogTime { unix_ns: 1_795_269_727_331_000_000, resolution_ns: 1_000_000 }));
    let line = decoded.line;
    assert_eq!((line.pid, line.number, line.client_requests, line.status), (Some(812), Some(41), Some(3), Some(502)));
    assert_eq!(line.upstream_status.as_deref(), Some("502, 502 : -"));
    assert_eq!(line.upstream_address.as_deref(), Some("127.0.0.1:8000, unix:/run/a.sock : group"));
    assert_eq!(line.request.as_deref(), Some("GET / HTTP/1.1"));
}

/// Lines that nginx 1.22.1 wrote; one with a path of 2,500 bytes, shortened here.
#[test]
fn lines_of_a_real_nginx() {
    let pattern = Pattern::compile(
        "$msec $pid $connection $connection_requests $status \"$upstream_status\" \"$upstream_addr\" $upstream_connect_time \
        $upstream_header_time $upstream_response_time $upstream_bytes_received $upstream_cache_status $request_time \
        $request_completion \"$request\"",
    );
    let lines: Vec<AccessLine> = include_str!("nginx-1.22.1.log")
        .lines()
        .map(|line| decode(&pattern, line.as_bytes()).unwrap())
        .inspect(|decoded| assert!(decoded.time.is_some_and(|time| time.resolution_ns == 1_000_000)))
        .map(|decoded| decoded.line)
        .collect();
    assert_eq!(lines.len(), 14);
    assert!(lines.iter().all(|line| line.pid == Some(12_438) && line.number.is_some() && line.status.is_some()));
    assert_eq!(lines[1].upstream_address.as_deref(), Some("127.0.0.1:18971, 127.0.0.1:18972"));
    assert_eq!(lines[2].upstream_address.as_deref(), Some("two"));
    assert_eq!((lines[4].status, lines[4].upstream_status.as_deref()), (Some(502), Some("")));
    assert_eq!(lines[10].request.as_deref(), Some("GET /refused/\", upstream: \"http://evil/ HTTP/1.1"));
}

#[test]
fn json_and_braces() {
    let format = "escape=json {\"t\":\"$time_iso8601\",\"a\":\"${remote_addr}\",\"p\":$remote_port,\"r\":\"$request\",\"us\":\"$upstream_status\",\"s\":$status}";
    let decoded = read(
        format,
        "{\"t\":\"2026-11-21T14:02:07+00:00\",\"a\":\"::1\",\"p\":5555,\"r\":\"GET /\\\"\\\\\\u0001\\n,\\\"s\\\":200} HTTP/1.1\",\"us\":\"\",\"s\":502}",
    );
    assert_eq!(decoded.time.unwrap().unix_ns, 1_795_269_727_000_000_000);
    assert_eq!(decoded.line.client.as_deref(), Some("[::1]:5555"));
    assert_eq!(decoded.line.request.as_deref(), Some("GET /\"\\\u{1}\n,\"s\":200} HTTP/1.1"));
    assert_eq!((decoded.line.status, decoded.line.upstream_status.as_deref()), (Some(502), Some("")));
}

#[test]
fn what_can_be_read_in_two_ways_is_not_read() {
    // A user name with a blank and a bracket makes two readings of an unescaped line; only the status is the same in both.
    let pattern = Pattern::compile("escape=none $remote_user $request $status");
    let decoded = decode(&pattern, b"a b GET / HTTP/1.1 502").unwrap();
    assert_eq!((decoded.line.request, decoded.line.status), (None, Some(502)));
}

#[test]
fn other_lines_and_hopeless_formats() {
    let combined = Pattern::compile(COMBINED);
    assert_eq!(decode(&combined, b""), Err(LineError::Mismatch));
    assert_eq!(decode(&combined, b"10.0.0.7 - - [now] \"GET\" 2 1 \"\" \"\""), Err(LineError::Mismatch));
    let hopeless = Pattern::compile("$status$b$c$d$e$f$g");
    assert_eq!(decode(&hopeless, &[b'5'; 300]), Err(LineError::Ambiguous));
    let never = Pattern::compile("$a$b$c$d$e!");
    assert_eq!(decode(&never, &[b'x'; 300]), Err(LineError::Ambiguous));
}

#[test]
fn formats_know_their_variables() {
    let pattern = Pattern::compile("$ $$a ${b}c");
    assert!(pattern.has("a") && pattern.has("b") && !pattern.has("c"));
    assert!(decode(&pattern, b"$ $1 2c").is_ok());
}

proptest! {
    #[test]
    fn nothing_makes_it_panic(format in "([$]?[a-z_{} \"\\[]{0,12}){0,6}", line in proptest::collection::vec(any::<u8>(), 0..120)) {
        let _ = decode(&Pattern::compile(&format), &line);
    }

    #[test]
    fn escaped_requests_come_back(request in "[ -~\\PC]{1,60}") {
        prop_assume!(request != "-");
        let escaped: String = request
            .bytes()
            .map(|byte| match byte {
                b'"' | b'\\' | 0..=31 | 127.. => format!("\\x{byte:02X}"),
                byte => char::from(byte).to_string(),
            })
            .collect();
        let line = format!("10.0.0.7 - - [21/Nov/2026:15:02:07 +0100] \"{escaped}\" 502 157 \"-\" \"-\"");
        prop_assert_eq!(read(COMBINED, &line).line.request, Some(request));
    }
}
