//! One line of nginx's error log.
//!
//! `YYYY/MM/DD HH:MM:SS [level] PID#TID: *CONN MESSAGE (ERRNO: text) while ACTION, client: A, server: NAME, request: "LINE",
//! subrequest: "URI", upstream: "URL", host: "H", referrer: "R"`
//! (`ngx_log_error_core` in `core/ngx_log.c`, `ngx_http_log_error` and `ngx_http_log_error_handler` in `http/ngx_http_request.c`,
//! the same from 1.18 to 1.31). nginx escapes nothing, so clients and upstreams can write anything into the quoted parts.
//! A field that can be read in two ways is not read at all.

mod context;
#[cfg(test)]
mod tests;

use jiff::civil::DateTime;
use thiserror::Error;

use crate::model::{net::Errno, nginx::ErrorLine};

/// nginx cuts a line to this many bytes, line end included (`NGX_MAX_ERROR_STR`); `OpenResty` to 4096.
const LONGEST: [usize; 2] = [2048, 4096];
/// How far into a line its date may stand: syslog daemons write a header of their own.
const PREFIX: usize = 160;

/// A line taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Local time of nginx's host, whole seconds; the line does not say in which zone.
    pub local: DateTime,
    /// nginx cut the line: its last field may be incomplete, and fields may be missing.
    pub cut: bool,
    /// The rest.
    pub line: ErrorLine,
}

/// The line does not begin as nginx begins them: the second line of a message, or something else's line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not the first line of an nginx error log message")]
pub struct NotAMessage;

/// Reads a line, with or without its line end.
pub fn decode(line: &[u8]) -> Result<Decoded, NotAMessage> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let text = String::from_utf8_lossy(line);
    let (local, rest) = date(&text).ok_or(NotAMessage)?;
    let (level, rest) = rest.strip_prefix(" [").and_then(|rest| rest.split_once("] ")).ok_or(NotAMessage)?;
    let (pid, rest) = rest.split_once('#').ok_or(NotAMessage)?;
    let (tid, rest) = rest.split_once(": ").ok_or(NotAMessage)?;
    if !level.bytes().all(|byte| byte.is_ascii_lowercase()) || !digits(tid) {
        return Err(NotAMessage);
    }
    let pid = if digits(pid) { pid.parse().map_err(|_| NotAMessage)? } else { return Err(NotAMessage) };
    let (number, rest) = match rest.strip_prefix('*').and_then(|rest| rest.split_once(' ')) {
        Some((number, after)) if digits(number) => (number.parse().ok(), after),
        _ => (None, rest),
    };
    // `OpenResty`'s limit is beyond nginx's, and both may be built with another one: a line of exactly this length was cut.
    let cut = LONGEST.contains(&(line.len() + 1));
    let context = context::read(rest);
    let (message, errno) = errno(context.message);
    Ok(Decoded {
        local,
        cut,
        line: ErrorLine {
            level: level.to_owned(),
            pid,
            number,
            message: message.to_owned(),
            errno,
            action: context.action.map(ToOwned::to_owned),
            client: context.client.map(ToOwned::to_owned),
            server: context.server.map(ToOwned::to_owned),
            request: context.request,
            subrequest: context.subrequest,
            upstream: context.upstream,
            host: context.host,
        },
    })
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The first date in the line's beginning, and what follows it.
fn date(text: &str) -> Option<(DateTime, &str)> {
    const LENGTH: usize = "2026/11/21 14:02:07".len();
    if let Some(found) = text.get(..LENGTH).and_then(civil) {
        return Some((found, text.get(LENGTH..)?));
    }
    // `<187>Nov 21 14:02:07 host nginx: 2026/11/21 …`: after a space, and with nothing but the header before.
    let starts = text.char_indices().take(PREFIX).filter(|(_, character)| *character == ' ').map(|(at, _)| at + 1);
    starts
        .filter_map(|at| Some((civil(text.get(at..at + LENGTH)?)?, text.get(at + LENGTH..)?)))
        .find(|(_, rest)| rest.starts_with(" ["))
}

/// `2026/11/21 14:02:07`. An hour that daylight saving skips exists here: the zone is not known.
fn civil(text: &str) -> Option<DateTime> {
    let bytes = text.as_bytes();
    let shape = bytes.iter().zip(b"0000/00/00 00:00:00").all(|(byte, pattern)| match pattern {
        b'0' => byte.is_ascii_digit(),
        separator => byte == separator,
    });
    if !shape || bytes.len() != 19 {
        return None;
    }
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i16>().ok();
    let small = |from: usize| number(from, from + 2).and_then(|n| i8::try_from(n).ok());
    DateTime::new(number(0, 4)?, small(5)?, small(8)?, small(11)?, small(14)?, small(17)?, 0).ok()
}

/// Takes ` (111: Connection refused)` off the message's end.
fn errno(message: &str) -> (&str, Option<Errno>) {
    // The resolver writes its own codes in the same form: `host could not be resolved (3: Host not found)`.
    if message.contains("could not be resolved (") {
        return (message, None);
    }
    let parsed = message.strip_suffix(')').and_then(|open| {
        let (before, inside) = open.rsplit_once(" (")?;
        let (number, words) = inside.split_once(": ")?;
        let number = if digits(number) { number.parse::<u32>().ok()? } else { return None };
        // MAX_ERRNO of Linux.
        ((1..=4095).contains(&number) && !words.contains('"')).then_some((before, Errno(number)))
    });
    match parsed {
        Some((before, errno)) => (before, Some(errno)),
        None => (message, None),
    }
}
