//! Where an nginx's logs are.

use std::path::{Path, PathBuf};

use super::files::Root;
use crate::live::{host::process, tail::Place};

/// A log of an nginx.
#[derive(Clone, Debug)]
pub struct Log {
    /// As configured, made absolute where it is a file: `/var/log/nginx/error.log`, `stderr`, `syslog:…`.
    pub name: String,
    /// The level of an error log; the format's name of an access log.
    pub detail: Option<String>,
    /// Where it can be followed; `None`: nowhere (syslog, memory, a path with variables).
    pub place: Option<Place>,
}

/// Finds a log that a master's configuration names. `prefix` is what relative paths are relative to.
pub(super) fn locate(master: u32, root: Option<&Root>, prefix: &Path, name: &str, detail: Option<&str>) -> Log {
    let log = |name: String, place: Option<Place>| Log { name, detail: detail.map(ToOwned::to_owned), place };
    let descriptor = |number: &str| Some(Place::Path(process::path(master, "fd").join(number)));
    if name == "stderr" {
        return log(name.to_owned(), descriptor("2"));
    }
    if name.starts_with("syslog:") || name.starts_with("memory:") || name.contains('$') {
        return log(name.to_owned(), None);
    }
    let path = prefix.join(name);
    let shown = path.to_string_lossy().into_owned();
    let Some(root) = root else { return log(shown, Some(Place::Path(path))) };
    // Images link their logs to the container's output, which is the master's.
    let mut target = path.clone();
    for _ in 0..4 {
        match target.to_string_lossy().as_ref() {
            "/dev/stderr" | "/proc/self/fd/2" | "/dev/fd/2" => return log(shown, descriptor("2")),
            "/dev/stdout" | "/proc/self/fd/1" | "/dev/fd/1" => return log(shown, descriptor("1")),
            "/dev/null" => return log(shown, None),
            _ => {}
        }
        match root.link(&target) {
            Some(next) => target = target.parent().map_or_else(PathBuf::new, Path::to_path_buf).join(next),
            None => break,
        }
    }
    log(shown, Some(root.place(&path)))
}
