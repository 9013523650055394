//! What must not leave the process as it came: secrets in URIs, and bytes that a terminal would obey.

use std::fmt::Write as _;

/// What stands for a value that is not shown.
const HIDDEN: char = '…';

/// Makes a string from the wire or from nginx harmless to print: control characters, terminal escapes, and characters that reorder or
/// hide text are written out (`\x1b`, `\u{202e}`). Everything else stays as it is.
#[must_use]
pub fn text(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for c in raw.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => push_hex(&mut out, u32::from(c)),
            c if deceives(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// The same for bytes that need not be text: what is not UTF-8 is shown as `\xNN`.
#[must_use]
pub fn bytes(raw: &[u8]) -> String {
    let mut out = String::with_capacity(raw.len());
    for chunk in raw.utf8_chunks() {
        out.push_str(&text(chunk.valid()));
        for byte in chunk.invalid() {
            push_hex(&mut out, u32::from(*byte));
        }
    }
    out
}

/// A URI with the values of its query and any user and password hidden: `/cart?token=…`, `http://…@host/`.
#[must_use]
pub fn uri(raw: &str) -> String {
    let (path, query) = match raw.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (raw, None),
    };
    let mut out = without_userinfo(path);
    if let Some(query) = query {
        out.push('?');
        for (index, part) in query.split(['&', ';']).enumerate() {
            if index > 0 {
                out.push('&');
            }
            match part.split_once('=') {
                Some((name, _)) => {
                    out.push_str(name);
                    out.push('=');
                    out.push(HIDDEN);
                }
                // A query without names is all value.
                None if !part.is_empty() => out.push(HIDDEN),
                None => {}
            }
        }
    }
    text(&out)
}

/// A request line (`GET /cart?a=b HTTP/1.1`) with its URI redacted. A space inside the URI does not end it.
#[must_use]
pub fn request_line(raw: &str) -> String {
    let Some((method, rest)) = raw.split_once(' ') else { return uri(raw) };
    match rest.rsplit_once(' ') {
        Some((target, protocol)) if protocol.starts_with("HTTP/") => {
            format!("{} {} {}", text(method), uri(target), text(protocol))
        }
        _ => format!("{} {}", text(method), uri(rest)),
    }
}

/// Running text that may hold URIs: a message of nginx.
#[must_use]
pub fn message(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for (index, word) in raw.split(' ').enumerate() {
        if index > 0 {
            out.push(' ');
        }
        if word.contains('?') || word.contains("://") { out.push_str(&uri(word)) } else { out.push_str(&text(word)) }
    }
    out
}

/// Hides `user:password@` of an absolute URI.
fn without_userinfo(path: &str) -> String {
    let Some((scheme, rest)) = path.split_once("://") else { return path.to_owned() };
    let authority_end = rest.find('/').unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(authority_end);
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{HIDDEN}@{host}{tail}"),
        None => path.to_owned(),
    }
}

/// Characters that print nothing or change the order of others: marks, overrides, isolates, joiners, tags, separators.
const fn deceives(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

fn push_hex(out: &mut String, value: u32) {
    // Writing to a String cannot fail.
    let _ = write!(out, "\\x{value:02x}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn query_values_are_hidden_and_names_kept() {
        assert_eq!(uri("/cart?token=s3cret&id=7"), "/cart?token=…&id=…");
        assert_eq!(uri("/cart?s3cret"), "/cart?…");
        assert_eq!(uri("/cart"), "/cart");
        assert_eq!(uri("/cart?a=b=c?d"), "/cart?a=…");
        assert_eq!(uri("/cart?"), "/cart?");
    }

    #[test]
    fn userinfo_is_hidden() {
        assert_eq!(uri("http://joe:pw@shop.example/x?y=z"), "http://…@shop.example/x?y=…");
        assert_eq!(uri("http://joe:p/w@shop.example"), "http://joe:p/w@shop.example");
    }

    #[test]
    fn request_lines_keep_their_shape() {
        assert_eq!(request_line("GET /a?b=c d HTTP/1.1"), "GET /a?b=… HTTP/1.1");
        assert_eq!(request_line("GET /a?b=c"), "GET /a?b=…");
        assert_eq!(request_line("\u{1b}[2J"), "\\x1b[2J");
    }

    #[test]
    fn terminals_are_not_obeyed() {
        assert_eq!(text("a\u{1b}[31mb\u{202e}c\r\n\u{7f}\u{9b}"), "a\\x1b[31mb\\u{202e}c\\r\\n\\x7f\\x9b");
        assert_eq!(bytes(b"ok \xff\xfe\x1b"), "ok \\xff\\xfe\\x1b");
        assert_eq!(message("see http://a:b@c/d?e=f now"), "see http://…@c/d?e=… now");
    }

    proptest! {
        #[test]
        fn nothing_dangerous_survives(raw in ".*") {
            for out in [text(&raw), uri(&raw), request_line(&raw), message(&raw)] {
                prop_assert!(!out.chars().any(|c| c.is_control() || deceives(c)));
            }
        }

        #[test]
        fn no_query_value_survives(name in "[a-z]{1,5}", value in "[A-Z0-9]{6,20}") {
            let target = format!("/p?{name}={value}");
            let line = format!("GET {target} HTTP/1.1");
            prop_assert!(!uri(&target).contains(&value));
            prop_assert!(!request_line(&line).contains(&value));
        }
    }
}
