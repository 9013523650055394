//! One line of nginx's access log, read by the `log_format` it was written with.

mod pattern;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use jiff::{Timestamp, fmt::strtime};
use thiserror::Error;

pub use pattern::Pattern;

use crate::model::nginx::AccessLine;

/// nginx's built-in format `combined`.
pub const COMBINED: &str = "$remote_addr - $remote_user [$time_local] \"$request\" $status $body_bytes_sent \"$http_referer\" \"$http_user_agent\"";

/// A line taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// When nginx wrote it, which is after the response was sent.
    pub time: Option<LogTime>,
    /// `$request_time`, milliseconds.
    pub request_ms: Option<u64>,
    /// `$upstream_response_time`, as nginx wrote it: seconds of each attempt, `-` where there was no response.
    pub upstream_times: Option<String>,
    /// `$upstream_header_time`: seconds until each attempt had a whole header that nginx takes, `-` where none came.
    pub header_times: Option<String>,
    /// The rest.
    pub line: AccessLine,
}

/// A wall-clock time as exact as the log has it: the moment lies in `[unix_ns, unix_ns + resolution_ns)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogTime {
    /// Nanoseconds since 1970-01-01T00:00:00Z.
    pub unix_ns: i128,
    /// A second for `$time_local` and `$time_iso8601`, a millisecond for `$msec`.
    pub resolution_ns: u64,
}

/// Why a line could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LineError {
    /// It was written with another format, or is no access-log line.
    #[error("the line does not have the form of its log_format")]
    Mismatch,
    /// The format leaves so many readings open that looking at all of them would take too long.
    #[error("the log_format allows too many readings of the line")]
    Ambiguous,
}

const SECOND_NS: u64 = 1_000_000_000;

/// Reads a line, with or without its line end.
pub fn decode(pattern: &Pattern, line: &[u8]) -> Result<Decoded, LineError> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let text = String::from_utf8_lossy(line);
    let values = pattern.read(&text)?;
    let value = |name: &str| values.get(name).cloned();
    let time = value("msec")
        .and_then(|text| msec(&text))
        .or_else(|| value("time_iso8601").and_then(|text| second(text.parse().ok()?)))
        .or_else(|| value("time_local").and_then(|text| local(&text)));
    let client = match (value("remote_addr"), value("remote_port").and_then(|port| port.parse::<u16>().ok())) {
        (Some(address), Some(port)) => Some(match address.parse::<IpAddr>() {
            Ok(ip) => std::net::SocketAddr::new(ip, port).to_string(),
            Err(_) => address,
        }),
        (address, _) => address,
    };
    let line = AccessLine {
        client,
        request: value("request"),
        // nginx pads a response without a status line to three digits (`009`).
        status: value("status").and_then(|status| status.parse().ok()),
        number: value("connection").and_then(|number| number.parse().ok()),
        client_requests: value("connection_requests").and_then(|number| number.parse().ok()),
        pid: value("pid").and_then(|pid| pid.parse().ok()),
        upstream_status: value("upstream_status"),
        upstream_address: value("upstream_addr"),
        cache_status: value("upstream_cache_status"),
    };
    let request_ms = value("request_time").and_then(|text| milliseconds(&text));
    let (upstream_times, header_times) = (value("upstream_response_time"), value("upstream_header_time"));
    Ok(Decoded { time, request_ms, upstream_times, header_times, line })
}

/// `0.123`, seconds.
#[must_use]
pub fn milliseconds(text: &str) -> Option<u64> {
    let (seconds, rest) = text.split_once('.')?;
    let rest: u64 = if rest.len() == 3 { rest.parse().ok()? } else { return None };
    seconds.parse::<u64>().ok()?.checked_mul(1_000)?.checked_add(rest)
}

/// `1795269727.331`
fn msec(text: &str) -> Option<LogTime> {
    let (seconds, milliseconds) = text.split_once('.')?;
    let digits = milliseconds.len() == 3 && milliseconds.bytes().all(|byte| byte.is_ascii_digit());
    let seconds: u32 = seconds.parse().ok()?;
    let milliseconds: u32 = if digits { milliseconds.parse().ok()? } else { return None };
    let unix_ns = i128::from(seconds) * i128::from(SECOND_NS) + i128::from(milliseconds) * 1_000_000;
    Some(LogTime { unix_ns, resolution_ns: 1_000_000 })
}

/// `21/Nov/2026:14:02:07 +0100`
fn local(text: &str) -> Option<LogTime> {
    second(strtime::parse("%d/%b/%Y:%H:%M:%S %z", text).ok()?.to_timestamp().ok()?)
}

#[expect(clippy::unnecessary_wraps, reason = "the last step of two chains of options")]
fn second(timestamp: Timestamp) -> Option<LogTime> {
    Some(LogTime { unix_ns: i128::from(timestamp.as_second()) * i128::from(SECOND_NS), resolution_ns: SECOND_NS })
}
