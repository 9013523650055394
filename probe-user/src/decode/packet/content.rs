//! What a payload begins with. Judged from the first bytes of one segment, so a segment in the middle of a body can look like
//! anything; the reader of [`Content`] knows where in the stream it stands.

use std::sync::Arc;

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
    let header = payload.get(..end)?;
    let length = memchr::memchr_iter(b'\n', header).find_map(|at| field(&header[at + 1..], b"content-length:"))?;
    let body = str::from_utf8(first_line(length).0.trim_ascii()).ok()?.parse().ok()?;
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
fn line(payload: &[u8]) -> (Arc<str>, bool) {
    let (line, end) = first_line(&payload[..payload.len().min(LINE)]);
    (String::from_utf8_lossy(line).into(), end.is_some())
}

/// The same, and where the next line begins.
fn first_line(bytes: &[u8]) -> (&[u8], Option<usize>) {
    let end = memchr::memchr(b'\n', bytes);
    let line = &bytes[..end.unwrap_or(bytes.len())];
    (line.strip_suffix(b"\r").unwrap_or(line), end.map(|end| end + 1))
}

/// What follows this name and its colon (in lower case), if a line begins with it.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (begin, rest) = line.split_at_checked(name.len())?;
    begin.eq_ignore_ascii_case(name).then_some(rest)
}

/// The Host header, where the whole of it was captured.
fn host(payload: &[u8]) -> Option<Arc<str>> {
    let mut rest = &payload[..payload.len().min(HEADERS)];
    loop {
        rest = &rest[first_line(rest).1?..];
        let (line, end) = first_line(rest);
        if line.is_empty() || end.is_none() {
            return None;
        }
        if let Some(value) = field(line, b"host:") {
            let value = value.trim_ascii();
            return (!value.is_empty()).then(|| String::from_utf8_lossy(value).into());
        }
    }
}
