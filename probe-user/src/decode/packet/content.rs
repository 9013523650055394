//! What a payload begins with. Judged from the first bytes of one segment, so a segment in the middle of a body can look like
//! anything; the reader of [`Content`] knows where in the stream it stands.

use crate::model::packet::{Content, METHODS, Promised};

/// Longest line kept, bytes.
const LINE: usize = 1024;
/// How far headers are searched for `Host`, bytes.
const HEADERS: usize = 8192;

/// Names what a payload begins with. `payload` is not empty.
pub(super) fn classify(payload: &[u8]) -> Content {
    http_status(payload)
        .or_else(|| Content::tls(payload))
        .or_else(|| http_request(payload))
        .or_else(|| Content::foreign(payload))
        .unwrap_or(Content::Other)
}

/// How long a response says it is, where its whole header was captured.
pub(super) fn promised(payload: &[u8]) -> Option<Promised> {
    payload.strip_prefix(b"HTTP/1.")?;
    let end = memchr::memchr_iter(b'\r', payload).find(|at| payload[*at..].starts_with(b"\r\n\r\n"))?;
    let mut lengths = payload.get(..end)?.split(|&byte| byte == b'\n').skip(1).filter_map(|line| {
        let (name, value) = line.split_at(line.iter().position(|&byte| byte == b':')?);
        name.eq_ignore_ascii_case(b"content-length").then(|| value[1..].trim_ascii())
    });
    let body = str::from_utf8(lengths.next()?).ok()?.parse().ok()?;
    Some(Promised { header: u32::try_from(end + 4).ok()?, body })
}

/// `HTTP/1.1 502 …`
fn http_status(payload: &[u8]) -> Option<Content> {
    let [major, rest @ ..] = payload.strip_prefix(b"HTTP/")? else { return None };
    let rest = match rest {
        [b'.', minor, rest @ ..] if minor.is_ascii_digit() => rest,
        rest => rest,
    };
    let [b' ', h @ b'1'..=b'9', t @ b'0'..=b'9', u @ b'0'..=b'9', after @ ..] = rest else { return None };
    if !major.is_ascii_digit() || after.first().is_some_and(u8::is_ascii_digit) {
        return None;
    }
    let digit = |byte: &u8| u16::from(byte - b'0');
    Some(Content::HttpStatus { code: digit(h) * 100 + digit(t) * 10 + digit(u), line: line(payload).0 })
}

/// `GET /cart HTTP/1.1`
fn http_request(payload: &[u8]) -> Option<Content> {
    let space = payload.iter().take(32).position(|&byte| byte == b' ')?;
    let method = &payload[..space];
    let (text, complete) = line(payload);
    let believable = if complete {
        let version = text.rsplit(' ').next()?;
        version.starts_with("HTTP/") && text.bytes().filter(|&byte| byte == b' ').count() >= 2
    } else {
        METHODS.contains(&method) && payload.get(space + 1).is_some_and(u8::is_ascii_graphic)
    };
    let token =
        !method.is_empty() && method.iter().all(|byte| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_'));
    (token && believable).then(|| Content::HttpRequest { line: text, host: host(payload) })
}

/// The first line without its end, and whether its end was there.
fn line(payload: &[u8]) -> (String, bool) {
    let window = &payload[..payload.len().min(LINE)];
    let end = memchr::memchr(b'\n', window);
    let mut line = &window[..end.unwrap_or(window.len())];
    if let [rest @ .., b'\r'] = line {
        line = rest;
    }
    (String::from_utf8_lossy(line).into_owned(), end.is_some())
}

/// The Host header, where the whole of it was captured.
fn host(payload: &[u8]) -> Option<String> {
    let window = &payload[..payload.len().min(HEADERS)];
    let mut lines = window.split_inclusive(|&byte| byte == b'\n').skip(1);
    lines
        .by_ref()
        .map_while(|line| line.strip_suffix(b"\n"))
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .take_while(|line| !line.is_empty())
        .find_map(|line| {
            let (name, value) = line.split_at(line.iter().position(|&byte| byte == b':')?);
            name.eq_ignore_ascii_case(b"host").then(|| String::from_utf8_lossy(value[1..].trim_ascii()).into_owned())
        })
        .filter(|host| !host.is_empty())
}
