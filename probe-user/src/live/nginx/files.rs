//! The files of an nginx, as it sees them: read below its own root directory, so that links in a container lead nowhere else.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    dir::Dir,
    fcntl::{OFlag, readlinkat},
};

use crate::{decode::config, live::tail::Place};

/// The largest configuration read, and the most files.
const LARGEST: usize = 8 << 20;
const FILES: usize = 2_000;
/// Rounds of includes in included files.
const ROUNDS: usize = 16;

/// The root directory of a process, kept open.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    fd: Arc<OwnedFd>,
}

impl Root {
    pub(crate) fn of_process(pid: u32) -> io::Result<Self> {
        let path = format!("/proc/{pid}/root");
        let fd = nix::fcntl::open(
            path.as_str(),
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        )?;
        Ok(Self { fd: Arc::new(fd) })
    }

    /// Our own.
    pub(crate) fn here() -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open("/", flags, nix::sys::stat::Mode::empty())?;
        Ok(Self { fd: Arc::new(fd) })
    }

    pub(super) fn place(&self, path: &Path) -> Place {
        Place::InRoot { root: Arc::clone(&self.fd), path: path.to_owned() }
    }

    /// A whole text file; bytes that are no text are replaced.
    pub(crate) fn read(&self, path: &Path, limit: usize) -> io::Result<String> {
        let file = self.place(path).open(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let mut bytes = Vec::new();
        file.take(u64::try_from(limit).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn names(&self, directory: &Path) -> Vec<String> {
        let opened = self.place(directory).open(OFlag::O_RDONLY | OFlag::O_DIRECTORY);
        let Ok(mut listing) = opened.and_then(|file| Ok(Dir::from_fd(OwnedFd::from(file))?)) else { return Vec::new() };
        listing.iter().flatten().filter_map(|entry| Some(entry.file_name().to_str().ok()?.to_owned())).collect()
    }

    /// Where a symbolic link leads, one step.
    pub(super) fn link(&self, path: &Path) -> Option<PathBuf> {
        let link: File = self.place(path).open(OFlag::O_PATH | OFlag::O_NOFOLLOW).ok()?;
        let target = readlinkat(&link, "").ok()?;
        Some(PathBuf::from(target))
    }

    /// Files that match a pattern with wildcards, in order.
    fn glob(&self, pattern: &str) -> Vec<String> {
        let mut found = vec![String::new()];
        for part in pattern.split('/').filter(|part| !part.is_empty()) {
            if part.contains(['*', '?', '[']) {
                let below = |directory: String| {
                    let mut names = self.names(Path::new(if directory.is_empty() { "/" } else { &directory }));
                    names.retain(|name| name != "." && name != ".." && config::matches_name(part, name));
                    names.sort();
                    names.into_iter().map(move |name| format!("{directory}/{name}"))
                };
                found = found.into_iter().flat_map(below).take(FILES).collect();
            } else {
                for path in &mut found {
                    path.push('/');
                    path.push_str(part);
                }
            }
        }
        found
    }

    /// The text that `nginx -T` would print for this main file, as far as the files can be read.
    pub(crate) fn dump(&self, main: &Path) -> io::Result<String> {
        let mut text = String::new();
        let mut seen = BTreeSet::new();
        self.append(&main.to_string_lossy(), &mut text, &mut seen)?;
        let mut tried = BTreeSet::new();
        for _ in 0..ROUNDS {
            // A fault in the text is the reader's to report; without includes there is nothing more to find.
            let Ok(decoded) = config::decode(&text) else { break };
            let patterns: Vec<String> = decoded
                .missing_includes
                .into_iter()
                .chain(decoded.empty_includes)
                .filter(|pattern| tried.insert(pattern.clone()))
                .collect();
            if patterns.is_empty() {
                break;
            }
            for path in patterns.iter().flat_map(|pattern| self.glob(pattern)) {
                if seen.len() < FILES && text.len() < LARGEST && !seen.contains(&path) {
                    // What cannot be read stays missing.
                    let _ = self.append(&path, &mut text, &mut seen);
                }
            }
        }
        Ok(text)
    }

    fn append(&self, path: &str, text: &mut String, seen: &mut BTreeSet<String>) -> io::Result<()> {
        let content = self.read(Path::new(path), LARGEST)?;
        text.push_str("# configuration file ");
        text.push_str(path);
        text.push_str(":\n");
        text.push_str(&content);
        text.push('\n');
        seen.insert(path.to_owned());
        Ok(())
    }
}

/// Where a log can be read, if it is a file. Images link their logs to the container's output, which is the master's.
pub(super) fn log_place(master: u32, root: Option<&Root>, path: &Path) -> Option<Place> {
    let descriptor = |number: u8| regular(Place::Path(format!("/proc/{master}/fd/{number}").into()));
    if path.as_os_str() == "stderr" {
        return descriptor(2);
    }
    let Some(root) = root else { return regular(Place::Path(path.to_owned())) };
    let mut target = path.to_owned();
    for _ in 0..4 {
        match target.to_string_lossy().as_ref() {
            "/dev/stderr" | "/proc/self/fd/2" | "/dev/fd/2" => return descriptor(2),
            "/dev/stdout" | "/proc/self/fd/1" | "/dev/fd/1" => return descriptor(1),
            _ => {}
        }
        let Some(next) = root.link(&target) else { break };
        target = target.parent().map_or_else(PathBuf::new, Path::to_path_buf).join(next);
    }
    regular(root.place(path))
}

/// A place that is a regular file, or may become one. Looking opens nothing for reading: a pipe keeps what is in it.
fn regular(place: Place) -> Option<Place> {
    let is_other = place.open(OFlag::O_PATH).and_then(|file| file.metadata()).is_ok_and(|metadata| !metadata.is_file());
    (!is_other).then_some(place)
}
