//! The last lines of nginx's own logs.

use std::{
    collections::BTreeMap,
    io::{Read as _, Seek as _, SeekFrom},
    time::Duration,
};

use jiff::{Timestamp, tz::TimeZone};
use nix::fcntl::OFlag;

use crate::{
    check::seen::{AccessSeen, ErrorSeen, Failed, Said},
    decode::{
        access_log::{self, Pattern},
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
        };
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
            let Some(status) = decoded.line.status.filter(|status| matches!(status, 500 | 502..=504)) else { continue };
            let upstream = decoded.line.upstream_address.clone().unwrap_or_default();
            // nginx's own status is not what the upstream answered.
            let own = decoded.line.upstream_status.as_deref().map(|theirs| theirs != status.to_string());
            let failed = seen.failed.entry((status, upstream)).or_insert(Failed { count: 0, own, last_ago_s: ago_s });
            failed.count += 1;
            failed.last_ago_s = failed.last_ago_s.min(ago_s);
        }
        all.push(seen);
    }
    all
}
