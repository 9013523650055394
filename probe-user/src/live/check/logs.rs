//! The last lines of nginx's own logs.

use std::{
    collections::BTreeMap,
    io::{Read as _, Seek as _, SeekFrom},
    time::Duration,
};

use jiff::{Timestamp, tz::TimeZone};
use nix::fcntl::OFlag;

use crate::{
    check::{
        logs::{Taken, pauses},
        seen::{AccessSeen, ErrorSeen, Failed, Said},
    },
    decode::{
        access_log::{self, Decoded, Pattern},
        error_log,
    },
    live::{nginx::Found, tail::Place},
};

/// As much of a log's end is read: an hour of a log that grows faster is looked at in part, and that is said.
const TAIL: u64 = 16 << 20;
/// Lines kept of an error log, the latest.
const LINES: usize = 20_000;

/// The end of a log as lines, and whether its beginning was left out.
fn tail(place: &Place) -> std::io::Result<(Vec<u8>, bool)> {
    let mut file = place.open(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?;
    let length = file.metadata()?.len();
    let cut = length > TAIL;
    if cut {
        file.seek(SeekFrom::Start(length - TAIL))?;
    }
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    if cut && let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
        bytes.drain(..=end);
    }
    Ok((bytes, cut))
}

/// The error logs of the last `since`.
pub(super) fn errors(found: &Found, since: Duration, left_out: &mut Vec<String>) -> Vec<ErrorSeen> {
    let now = Timestamp::now();
    let mut all = Vec::new();
    for (place, level) in &found.error_logs {
        let (bytes, cut) = match tail(place) {
            Ok(read) => read,
            Err(error) => {
                left_out.push(format!("the error log {place}: {error}"));
                continue;
            }
        };
        let mut lines: Vec<Said> = Vec::new();
        for line in bytes.split(|byte| *byte == b'\n') {
            let Ok(decoded) = error_log::decode(line) else { continue };
            // nginx writes its own local time; a container's zone may be another, which moves the window by whole hours.
            let Ok(written) = decoded.local.to_zoned(TimeZone::system()) else { continue };
            let ago_s = now.as_second() - written.timestamp().as_second();
            if ago_s <= i64::try_from(since.as_secs()).unwrap_or(i64::MAX) {
                lines.push(Said { ago_s, line: decoded.line });
            }
        }
        let surplus = lines.len().saturating_sub(LINES);
        lines.drain(..surplus);
        all.push(ErrorSeen { path: place.to_string(), level: level.clone(), cut: cut || surplus > 0, lines });
    }
    all
}

/// The access logs of the last `since`.
pub(super) fn accesses(found: &Found, since: Duration, left_out: &mut Vec<String>) -> Vec<AccessSeen> {
    let now_ns = Timestamp::now().as_nanosecond();
    let mut all = Vec::new();
    for (place, format) in &found.access_logs {
        let format = format.as_deref().unwrap_or(access_log::COMBINED);
        let pattern = Pattern::compile(format);
        let (bytes, cut) = match tail(place) {
            Ok(read) => read,
            Err(error) => {
                left_out.push(format!("the access log {place}: {error}"));
                continue;
            }
        };
        let mut seen = AccessSeen {
            path: place.to_string(),
            format: format.to_owned(),
            cut,
            lines: 0,
            unread: 0,
            failed: BTreeMap::new(),
            pauses: BTreeMap::new(),
        };
        let mut attempts = Vec::new();
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let Ok(decoded) = access_log::decode(&pattern, line) else {
                seen.unread += 1;
                continue;
            };
            let ago_s =
                decoded.time.map(|time| i64::try_from((now_ns - time.unix_ns) / 1_000_000_000).unwrap_or(i64::MAX));
            if ago_s.is_some_and(|ago_s| ago_s > i64::try_from(since.as_secs()).unwrap_or(i64::MAX)) {
                continue;
            }
            seen.lines += 1;
            attempts.extend(taken(&decoded, now_ns));
            let Some(status) = decoded.line.status.filter(|status| matches!(status, 500 | 502..=504)) else { continue };
            let upstream = decoded.line.upstream_address.clone().unwrap_or_default();
            let own = is_own(&decoded, status, format);
            let failed = seen.failed.entry((status, upstream)).or_insert(Failed { count: 0, own, last_ago_s: ago_s });
            // Of some one thing and of others the other, or unknown: then it is not known of all.
            failed.own = failed.own.filter(|known| own == Some(*known));
            failed.count += 1;
            failed.last_ago_s = failed.last_ago_s.min(ago_s);
        }
        seen.pauses = pauses(attempts);
        all.push(seen);
    }
    all
}

/// Whether nginx made the status itself. nginx writes its own 502 and 504 into `$upstream_status` too, so that alone does not tell; a
/// header that came does (`ngx_http_upstream_process_header` sets `header_time` once it has taken the header).
fn is_own(decoded: &Decoded, status: u16, format: &str) -> Option<bool> {
    // What the format has and the line has not is a dash: nobody was asked, or no header came.
    let last = |value: &Option<String>, name: &str| {
        let text = value.as_deref().or(format.contains(name).then_some("-"))?;
        text.rsplit([',', ':']).next().map(|last| last.trim().to_owned())
    };
    let theirs = last(&decoded.line.upstream_status, "$upstream_status")?;
    if theirs != status.to_string() {
        return Some(true);
    }
    let header_time = last(&decoded.header_times, "$upstream_header_time")?;
    Some(access_log::milliseconds(&header_time).is_none())
}

/// The attempts of a request, where the line says when they were and what came of each; milliseconds from now.
fn taken(decoded: &Decoded, now_ns: i128) -> Vec<Taken> {
    let (Some(time), Some(request_ms)) = (decoded.time, decoded.request_ms) else { return Vec::new() };
    let ended_ms = i64::try_from((time.unix_ns - now_ns).div_euclid(1_000_000)).unwrap_or(i64::MIN);
    let parts = |text: &Option<String>| -> Vec<String> {
        // Attempts are apart by commas, internal redirects by colons with spaces around.
        let text = text.as_deref().unwrap_or_default().replace(" : ", ", ");
        text.split(", ").map(ToOwned::to_owned).collect()
    };
    let (addresses, statuses) = (parts(&decoded.line.upstream_address), parts(&decoded.line.upstream_status));
    let times = parts(&decoded.upstream_times);
    let all = addresses.into_iter().zip(statuses).zip(times);
    all.filter_map(|((upstream, status), took)| {
        let attempt_ms = access_log::milliseconds(&took)?;
        Some(Taken { upstream, ended_ms, request_ms, attempt_ms, failed: status == "502" })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_status_it_was_is_told_by_the_header() {
        let own = |format: &str, line: &str| {
            let decoded = access_log::decode(&Pattern::compile(format), line.as_bytes()).unwrap();
            is_own(&decoded, decoded.line.status.unwrap(), format)
        };
        let format = "$status $upstream_status|$upstream_header_time";
        assert_eq!(own(format, "502 502|-"), Some(true));
        assert_eq!(own(format, "502 502|0.004"), Some(false));
        assert_eq!(own(format, "502 502, 502|0.004, -"), Some(true));
        assert_eq!(own(format, "502 -|-"), Some(true), "nobody was asked");
        assert_eq!(own(format, "500 200|0.004"), Some(true));
        assert_eq!(own("$status $upstream_status", "502 502"), None, "nginx writes its own there too");
        assert_eq!(own("$status $request_time", "502 0.001"), None);
    }

    #[test]
    fn each_attempt_of_a_line_is_taken() {
        let pattern =
            Pattern::compile("$msec $status $request_time $upstream_addr|$upstream_status|$upstream_response_time");
        let line = b"1795269727.331 200 0.012 10.0.0.1:80, 10.0.0.2:80|502, 200|0.001, 0.011";
        let decoded = access_log::decode(&pattern, line).unwrap();
        let now_ns = 1_795_269_730_331_000_000;
        let first =
            Taken { upstream: "10.0.0.1:80".into(), ended_ms: -3_000, request_ms: 12, attempt_ms: 1, failed: true };
        let second = Taken { upstream: "10.0.0.2:80".into(), attempt_ms: 11, failed: false, ..first.clone() };
        assert_eq!(taken(&decoded, now_ns), [first, second]);
        let none = access_log::decode(&pattern, b"1795269727.331 200 0.012 -|-|-").unwrap();
        assert_eq!(taken(&none, now_ns), []);
    }
}
