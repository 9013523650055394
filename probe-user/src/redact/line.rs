//! Lines of nginx's logs.

use std::{net::IpAddr, ops::Range};

use super::{BLANK, Key, address, target};

/// What can end a URI in an error line, whose quotes nginx does not escape.
const ENDS: &[&[u8]] = &[b" HTTP/", b"\", ", b"\" while ", b"\" failed", b", client: "];
/// After these a header of a client or an upstream is quoted, or a parameter that is made of one.
const HEADERS: &[&[u8]] = &[b"header line: \"", b"header: \"", b"previous value: \"", b"param: \""];
/// What follows it. A value may have quotes and commas of its own (`Authorization: Digest username="…", realm="…"`).
const HEADER_ENDS: &[&[u8]] = &[b"\", previous value: \"", b"\" while ", b"\", client: ", b", client: "];

/// Variables whose values are nginx's own, not the user's.
const PLAIN: &[&str] = &[
    "remote_addr",
    "remote_port",
    "realip_remote_addr",
    "realip_remote_port",
    "proxy_protocol_addr",
    "time_local",
    "time_iso8601",
    "msec",
    "status",
    "body_bytes_sent",
    "bytes_sent",
    "request_length",
    "request_time",
    "request_method",
    "request_id",
    "request_completion",
    "connection",
    "connection_requests",
    "connection_time",
    "pid",
    "pipe",
    "host",
    "http_host",
    "hostname",
    "server_name",
    "server_addr",
    "server_port",
    "server_protocol",
    "scheme",
    "uri",
    "document_uri",
    "proxy_host",
    "ssl_protocol",
    "ssl_cipher",
    "gzip_ratio",
    "upstream_addr",
    "upstream_status",
    "upstream_response_time",
    "upstream_connect_time",
    "upstream_header_time",
    "upstream_bytes_sent",
    "upstream_bytes_received",
    "upstream_response_length",
    "upstream_cache_status",
];
/// Variables that hold a client's address.
const CLIENTS: &[&str] = &["remote_addr", "realip_remote_addr", "proxy_protocol_addr"];

/// Takes the values of queries, user names and headers out of an error line.
pub(super) fn blank_error(line: &mut [u8], key: &Key) {
    let mut from = 0;
    while let Some(begin) = find(line, b"?", from).map(|at| at + 1) {
        let end = ENDS.iter().filter_map(|end| find(line, end, begin)).min();
        let end = end.unwrap_or(line.len() - usize::from(line.ends_with(b"\"") && line.len() > begin));
        target::query(&mut line[begin..end], key);
        from = end;
    }
    let mut from = 0;
    while let Some(begin) = find(line, b"://", from).map(|at| at + 3) {
        let end = (begin..line.len()).find(|at| matches!(line[*at], b'/' | b'"' | b' ')).unwrap_or(line.len());
        if let Some(at) = line[begin..end].iter().rposition(|byte| *byte == b'@') {
            line[begin..begin + at].fill(BLANK);
        }
        from = end;
    }
    for marker in HEADERS {
        let mut from = 0;
        while let Some(begin) = find(line, marker, from).map(|at| at + marker.len()) {
            let end = HEADER_ENDS.iter().filter_map(|end| find(line, end, begin)).min().unwrap_or(line.len());
            let value = line[begin..end].iter().position(|byte| *byte == b':').map_or(begin, |at| begin + at + 1);
            line[value..end].fill(BLANK);
            from = end;
        }
    }
}

/// Replaces the client's address in an error line.
pub(super) fn map_clients(line: &mut Vec<u8>, key: &Key) {
    let Some(begin) = find(line, b", client: ", 0).map(|at| at + b", client: ".len()) else { return };
    let end = find(line, b",", begin).unwrap_or(line.len());
    map(line, begin..end, key);
}

/// Takes what users wrote out of an access line.
pub(super) fn blank_access(line: &mut [u8], variables: &[(&str, Range<usize>)], key: &Key) {
    for (name, place) in variables {
        let Some(value) = line.get_mut(place.clone()) else { continue };
        match *name {
            _ if value == b"-" => {}
            "request" => target::request_line(value, key),
            "request_uri" | "http_referer" => target::target(value, key),
            "args" | "query_string" => target::query(value, key),
            name if PLAIN.contains(&name) => {}
            _ => value.fill(BLANK),
        }
    }
}

/// Replaces clients' addresses in an access line.
pub(super) fn map_client_variables(line: &mut Vec<u8>, variables: &[(&str, Range<usize>)], key: &Key) {
    let mut places: Vec<Range<usize>> =
        variables.iter().filter(|(name, _)| CLIENTS.contains(name)).map(|(_, place)| place.clone()).collect();
    places.sort_by_key(|place| place.start);
    places.dedup();
    // From the end, because a replacement may be longer.
    for place in places.into_iter().rev() {
        map(line, place, key);
    }
}

fn map(line: &mut Vec<u8>, place: Range<usize>, key: &Key) {
    let text = line.get(place.clone()).and_then(|bytes| std::str::from_utf8(bytes).ok());
    if let Some(client) = text.and_then(|text| text.parse::<IpAddr>().ok()) {
        line.splice(place, address::map(client, key).to_string().into_bytes());
    }
}

fn find(line: &[u8], what: &[u8], from: usize) -> Option<usize> {
    memchr::memmem::find(line.get(from..)?, what).map(|at| from + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::new(*b"0123456789abcdef")
    }

    fn error(line: &str) -> String {
        let mut bytes = line.as_bytes().to_vec();
        blank_error(&mut bytes, &key());
        assert_eq!(bytes.len(), line.len());
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn an_error_line_keeps_everything_but_values() {
        let out = error(
            "2026/11/21 14:02:07 [error] 812#812: *41 connect() failed (111: Connection refused) while connecting to upstream, \
             client: 10.0.0.7, server: shop, request: \"GET /cart?token=s3cret&id=hidden HTTP/1.1\", \
             upstream: \"http://127.0.0.1:8000/cart?token=s3cret&id=hidden\", host: \"shop\", referrer: \"https://joe:pw@a/?q=hidden\"",
        );
        assert!(!out.contains("s3cret") && !out.contains("hidden") && !out.contains("joe"), "{out}");
        assert!(out.contains("client: 10.0.0.7, server: shop, request: \"GET /cart?token="), "{out}");
        assert!(
            out.contains(" HTTP/1.1\", upstream: \"http://127.0.0.1:8000/cart?token=")
                && out.contains("\", host: \"shop\", ")
        );
        let values: Vec<&str> = out.match_indices("token=").filter_map(|(at, _)| out.get(at + 6..at + 12)).collect();
        assert_eq!(values[0], values[1], "equal values stay equal");
    }

    #[test]
    fn quoted_headers_lose_their_values() {
        let out = error(
            "x: *1 upstream sent invalid header: \"Set-Cookie: s3cret\\x00\" while reading response header from upstream",
        );
        assert!(
            out.contains("\"Set-Cookie:xxx") && !out.contains("s3cret") && out.contains("\" while reading"),
            "{out}"
        );
        assert!(!error("*1 client sent invalid header line: \"Cookie: s3cret").contains("s3cret"));
        // Since nginx 1.23 (`ngx_http_process_header_line()`).
        let out = error(
            "*1 client sent duplicate header line: \"Authorization: Digest username=\"joe\", response=\"s3cret\"\", \
             previous value: \"Authorization: Bearer s3cret\", client: 10.0.0.7, server: shop",
        );
        assert!(!out.contains("s3cret") && !out.contains("joe"), "{out}");
        assert!(
            out.contains("previous value: \"Authorization:xxx") && out.ends_with("\", client: 10.0.0.7, server: shop"),
            "{out}"
        );
        assert!(!error("*1 fastcgi param: \"HTTP_COOKIE: sid=s3cret\"").contains("s3cret"));
    }

    #[test]
    fn a_clients_address_is_replaced() {
        let mut line = b"x while connecting to upstream, client: 10.0.0.7, server: shop".to_vec();
        map_clients(&mut line, &key());
        let out = String::from_utf8(line).unwrap();
        assert!(!out.contains("10.0.0.7") && out.ends_with(", server: shop"), "{out}");
    }

    #[test]
    fn an_access_line_keeps_what_is_nginxs() {
        let mut line = b"10.0.0.7 joe \"GET /a?b=s3cret HTTP/1.1\" 502 sid=s3cret".to_vec();
        let variables = [
            ("remote_addr", 0..8),
            ("remote_user", 9..12),
            ("request", 14..38),
            ("status", 40..43),
            ("http_cookie", 44..54),
        ];
        blank_access(&mut line, &variables, &key());
        map_client_variables(&mut line, &variables, &key());
        let out = String::from_utf8(line).unwrap();
        assert!(!out.contains("s3cret") && !out.contains("joe") && !out.contains("10.0.0.7"), "{out}");
        assert!(out.contains(" HTTP/1.1\" 502 xxxxxxxxxx"), "{out}");
    }

    #[test]
    fn whatever_comes_nothing_breaks() {
        for line in ["?", "://", "header: \"", "??\"?\", ?", "a://b@?x HTTP/?", ", client: ", "\u{0}\u{ff}?="] {
            error(line);
            map_clients(&mut line.as_bytes().to_vec(), &key());
        }
    }
}
