//! Unix sockets: the way to one as a worker has it, and who listens.

use std::{
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{fcntl::OFlag, sys::socket::SockProtocol};
use procfs::process::Process;

use super::{
    diag::SOCK_DIAG_BY_FAMILY,
    netlink::{NLM_F_REQUEST_DUMP, attributes, dump, message, u32_at},
};
use crate::{
    live::tail::Place,
    model::{
        host::{Asker, PathPart, UnixSocket},
        process::Pid,
    },
};

/// `CAP_DAC_OVERRIDE`
const OVERRIDE: u64 = 1 << 1;
/// What is read of `/etc/passwd` and `/etc/group`.
const NAMES: u64 = 1 << 20;

/// A walk along a path.
pub(super) struct Walked {
    /// What was found; nobody has looked for a listener yet.
    pub(super) socket: UnixSocket,
    /// Device and inode of the file at the end.
    pub(super) file: Option<(u64, u64)>,
}

/// Walks along the path as the worker would: from its root, by its links, as its user.
pub(super) fn walk(path: &str, worker: Pid) -> Option<Walked> {
    let asker = asker(worker)?;
    let mut socket =
        UnixSocket { path: path.to_owned(), worker, asker, parts: Vec::new(), missing: None, listener: None };
    if path.starts_with('@') {
        return Some(Walked { socket, file: None });
    }
    let root = Root::of(worker)?;
    socket.asker.name = root.name("passwd", socket.asker.user);
    let whole = if path.starts_with('/') { PathBuf::from(path) } else { started_in(worker)?.join(path) };
    let mut file = None;
    let mut parts: Vec<&Path> = whole.ancestors().collect();
    parts.reverse();
    for part in parts {
        let Ok(metadata) = root.open(part, OFlag::O_PATH).and_then(|file| file.metadata()) else {
            socket.missing = Some(part.to_string_lossy().into_owned());
            break;
        };
        file = (part == whole).then(|| (metadata.dev(), metadata.ino()));
        socket.parts.push(PathPart {
            path: part.to_string_lossy().into_owned(),
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), root.name("passwd", metadata.uid())),
            group: (metadata.gid(), root.name("group", metadata.gid())),
            directory: metadata.is_dir(),
            socket: metadata.file_type().is_socket(),
        });
    }
    Some(Walked { socket, file })
}

fn started_in(worker: Pid) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{worker}/cwd")).ok()
}

fn asker(worker: Pid) -> Option<Asker> {
    let status = Process::new(i32::try_from(worker.0).ok()?).ok()?.status().ok()?;
    let mut groups: Vec<u32> = status.groups;
    groups.push(status.fgid);
    Some(Asker { user: status.fuid, groups, name: None, overrides: status.capeff & OVERRIDE != 0 })
}

/// A process's root directory.
struct Root(Arc<OwnedFd>);

impl Root {
    fn of(pid: Pid) -> Option<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let path = format!("/proc/{pid}/root");
        let fd = nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty()).ok()?;
        Some(Self(Arc::new(fd)))
    }

    fn open(&self, path: &Path, flags: OFlag) -> io::Result<File> {
        Place::InRoot { root: Arc::clone(&self.0), path: path.to_owned() }.open(flags)
    }

    /// The name behind a number, in `/etc/passwd` or `/etc/group` as the process sees them.
    fn name(&self, table: &str, id: u32) -> Option<String> {
        use std::io::Read as _;

        let mut text = String::new();
        let file = self.open(&Path::new("/etc").join(table), OFlag::O_RDONLY).ok()?;
        file.take(NAMES).read_to_string(&mut text).ok()?;
        named(&text, id)
    }
}

/// `name:password:number:…`
fn named(table: &str, id: u32) -> Option<String> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(id)).then(|| name.to_owned())
    })
}

/// A listening unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listening {
    /// The name it was bound to; of an abstract one it begins with `@`.
    name: Option<String>,
    /// Device and inode of its file.
    file: Option<(u64, u64)>,
    /// The socket's own inode.
    pub(super) inode: u64,
    /// Connections waiting, limit.
    pub(super) queue: Option<(u32, u32)>,
}

impl Listening {
    /// Whether it is the one at this path, whose file is this.
    pub(super) fn is(&self, path: &str, file: Option<(u64, u64)>) -> bool {
        let same_name = self.name.as_deref() == Some(path);
        match (self.file, file) {
            // An overlay shows another device than the file system below it.
            (Some((device, inode)), Some((other, wanted))) => inode == wanted && (device == other || same_name),
            (None, None) => same_name,
            _ => false,
        }
    }
}

/// Every listening unix stream socket of the network namespace this thread is in
/// (`struct unix_diag_req`, <https://man7.org/linux/man-pages/man7/sock_diag.7.html>).
pub(super) fn listening() -> io::Result<Vec<Listening>> {
    const SHOW_NAME_FILE_QUEUE: u32 = 0x1 | 0x2 | 0x10;
    const STATE_LISTEN: u32 = 1 << 10;
    let mut body = [0; 24];
    body[0] = u8::try_from(libc::AF_UNIX).unwrap_or(0);
    body[4..8].copy_from_slice(&STATE_LISTEN.to_ne_bytes());
    body[12..16].copy_from_slice(&SHOW_NAME_FILE_QUEUE.to_ne_bytes());
    let mut found = Vec::new();
    let request = message(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, &body);
    dump(SockProtocol::NetlinkSockDiag, &request, |_, message| found.extend(listener(message)))?;
    Ok(found)
}

/// `struct unix_diag_msg` and its attributes.
fn listener(message: &[u8]) -> Option<Listening> {
    let (fixed, rest) = message.split_first_chunk::<16>()?;
    let mut found = Listening { name: None, file: None, inode: u64::from(u32_at(fixed, 4)), queue: None };
    for (kind, value) in attributes(rest) {
        match (kind, value.len()) {
            (0, _) => found.name = name(value),
            (1, 8..) => {
                // The device as the kernel packs it: major << 20 | minor.
                let device = u32_at(value, 4);
                let device = nix::sys::stat::makedev(u64::from(device >> 20), u64::from(device & 0xf_ffff));
                found.file = Some((device, u64::from(u32_at(value, 0))));
            }
            (4, 8..) => found.queue = Some((u32_at(value, 0), u32_at(value, 4))),
            _ => {}
        }
    }
    Some(found)
}

fn name(bytes: &[u8]) -> Option<String> {
    match bytes {
        [] => None,
        [0, rest @ ..] => Some(format!("@{}", String::from_utf8_lossy(rest))),
        path => Some(String::from_utf8_lossy(path.split(|byte| *byte == 0).next().unwrap_or(path)).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_listener_of_ours_is_found_with_its_queue_and_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.sock");
        let text = path.to_string_lossy().into_owned();
        let _listener = UnixListener::bind(&path).unwrap();
        let walked = walk(&text, Pid(std::process::id())).unwrap();
        assert_eq!(walked.socket.missing, None);
        assert!(walked.socket.parts.last().is_some_and(|part| part.socket && part.path == text));
        assert_eq!(walked.socket.parts[0].path, "/");
        let found = listening().unwrap();
        let ours: Vec<_> = found.iter().filter(|one| one.is(&text, walked.file)).collect();
        assert_eq!(ours.len(), 1, "{found:?} {:?}", walked.file);
        assert!(ours[0].queue.is_some_and(|(waiting, limit)| waiting == 0 && limit >= 128), "{ours:?}");
    }

    #[test]
    fn the_first_part_that_is_missing_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gone/app.sock");
        let walked = walk(&path.to_string_lossy(), Pid(std::process::id())).unwrap();
        assert_eq!(walked.socket.missing, Some(directory.path().join("gone").to_string_lossy().into_owned()));
        assert_eq!(walked.file, None);
    }

    #[test]
    fn names_are_read_from_their_table() {
        let table = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:\n";
        assert_eq!(named(table, 33).as_deref(), Some("www-data"));
        assert_eq!(named(table, 3), None);
    }
}
