//! Whether what an nginx is configured to do lets every failure announce itself, so that not every answer has to be looked at.
//!
//! What is not known for sure lets none: then every answer is.

use std::{os::unix::fs::MetadataExt as _, path::Path};

use nix::{
    fcntl::OFlag,
    sys::time::TimeValLike as _,
    time::{ClockId, clock_gettime},
};
use procfs::process::Process;

use super::{Master, Root};
use crate::decode::config::{self, Decoded};

/// Why one of its answers may be a failure without a word about the request before; `None`: each announces itself.
pub(super) fn unannounced(
    master: &Master,
    build: Option<&str>,
    root: Option<&Root>,
    read: Option<(&str, &Decoded)>,
) -> Option<String> {
    // Modules of others may answer as they like.
    let own = |build: &str| {
        build.contains("version: nginx/") && !build.contains("(nginx-plus") && !build.contains("--add-module=")
    };
    if !build.is_some_and(own) {
        return Some("it is not built of nginx's own modules alone".to_owned());
    }
    // These write at level info that a header is none, and so what a retry hides is not told.
    // https://github.com/nginx/nginx/blob/release-1.21.3/src/http/modules/ngx_http_proxy_module.c
    let quiet = |build: &str| ["1", "2", "3"].iter().any(|last| build.contains(&format!("version: nginx/1.21.{last}")));
    if build.is_some_and(quiet) {
        return Some("this version of nginx leaves failures out of its error log".to_owned());
    }
    let (Some((text, decoded)), Some(root)) = (read, root) else {
        return Some("its configuration is not known".to_owned());
    };
    if let Some(include) = decoded.missing_includes.first() {
        return Some(format!("a part of its configuration: {include} cannot be read"));
    }
    let given = master.argument("-g").map(config::decode);
    match given {
        Some(Ok(Decoded { unannounced: Some(directive), .. })) => return Some(format!("-g {directive}")),
        Some(Err(_)) => return Some("what was given with -g cannot be read".to_owned()),
        Some(Ok(_)) | None => {}
    }
    if let Some(directive) = &decoded.unannounced {
        return Some(directive.clone());
    }
    // What stands in the files is what the workers were told only if nobody has changed them since.
    let Some(since) = oldest_start(master) else { return Some("the age of its workers is not known".to_owned()) };
    // A file that is gone shows where it was.
    let directories = decoded.wild_includes.iter().map(|pattern| directory(pattern));
    let mut known = config::files(text).chain(directories);
    let changed = known.find(|file| changed_at(root, Path::new(file)).is_none_or(|at| at > since));
    changed.map(|file| format!("{file} is newer than its workers"))
}

/// Where the files lie that a pattern matches, as far as it names that without wildcards.
fn directory(pattern: &str) -> &str {
    let known = pattern.find(['*', '?', '[']).map_or(pattern, |at| &pattern[..at]);
    known.rsplit_once('/').map_or("/", |(directory, _)| if directory.is_empty() { "/" } else { directory })
}

/// When the oldest worker began, in nanoseconds by the wall clock; the kernel keeps hundredths of a second, rounded down.
fn oldest_start(master: &Master) -> Option<i64> {
    let of_boot = clock_gettime(ClockId::CLOCK_REALTIME).ok()? - clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?;
    let start = |pid: u32| Some(Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?.starttime);
    let starts: Option<Vec<u64>> = master.workers.iter().map(|pid| start(*pid)).collect();
    let ticks = starts?.into_iter().min()?;
    let per_second = procfs::ticks_per_second();
    let since_boot = i64::try_from(u128::from(ticks) * 1_000_000_000 / u128::from(per_second.max(1))).ok()?;
    of_boot.num_nanoseconds().checked_add(since_boot)
}

/// When a file or the link that leads to it was changed last, likewise.
fn changed_at(root: &Root, file: &Path) -> Option<i64> {
    let place = root.place(file);
    let of = |flags: OFlag| {
        let metadata = place.open(OFlag::O_PATH | flags).and_then(|file| file.metadata()).ok()?;
        metadata.ctime().checked_mul(1_000_000_000)?.checked_add(metadata.ctime_nsec())
    };
    Some(of(OFlag::empty())?.max(of(OFlag::O_NOFOLLOW)?))
}

#[cfg(test)]
mod tests {
    use super::directory;

    #[test]
    fn a_pattern_says_where_to_look() {
        assert_eq!(directory("/etc/nginx/conf.d/*.conf"), "/etc/nginx/conf.d");
        assert_eq!(directory("/etc/nginx/*/site.conf"), "/etc/nginx");
        assert_eq!(directory("/*.conf"), "/");
    }
}
