//! One file that grows.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::PathBuf,
};

use nix::fcntl::OFlag;

use super::{Place, now};
use crate::model::time::Moment;

/// Bytes of a line kept: nginx's own error lines have at most 2,048 (`OpenResty` 4,096), access-log lines what their format makes of them.
pub(super) const LONGEST: usize = 64 * 1024;

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    Longer,
    /// It had become shorter and was read from its beginning.
    Truncated {
        /// When it was read last before.
        since: Moment,
    },
}

/// An open log file and how far it has been read.
#[derive(Debug)]
pub(super) struct Followed {
    file: File,
    /// Device and inode.
    pub(super) identity: (u64, u64),
    position: u64,
    /// When it was read last.
    looked: Moment,
    /// The beginning of a line whose end is not written yet.
    partial: Vec<u8>,
    /// The line's beginning was not seen, or handed over already: nothing of it counts until its end.
    skipping: bool,
}

impl Followed {
    /// Opens the file, at its end or at its beginning. Never blocks, even if it is a pipe.
    pub(super) fn open(place: &Place, at_end: bool) -> io::Result<Self> {
        let file = place.open(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY);
        let mut file = file.map_err(|error| match error.raw_os_error() {
            // What /proc/PID/fd/N says for a socket.
            Some(libc::ENXIO) => io::Error::other(NotRegular("a socket")),
            _ => error,
        })?;
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        if !kind.is_file() {
            let name = match () {
                () if kind.is_fifo() => "a pipe",
                () if kind.is_socket() => "a socket",
                () if kind.is_char_device() => "a device or terminal",
                () => "something else",
            };
            return Err(io::Error::other(NotRegular(name)));
        }
        let mut skipping = false;
        let mut position = 0;
        if at_end && metadata.len() > 0 {
            position = metadata.len();
            let mut last = [0];
            file.seek(SeekFrom::Start(position - 1))?;
            skipping = file.read(&mut last)? == 1 && last[0] != b'\n';
        }
        let identity = (metadata.dev(), metadata.ino());
        Ok(Self { file, identity, position, looked: now(), partial: Vec::new(), skipping })
    }

    /// A path that leads to this very file whatever its name is now.
    pub(super) fn own_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Hands over every line that is complete by now, and whether it was cut.
    pub(super) fn read(&mut self, mut line: impl FnMut(Vec<u8>, bool)) -> io::Result<Growth> {
        let mut growth = Growth::Longer;
        let since = std::mem::replace(&mut self.looked, now());
        if self.file.metadata()?.len() < self.position {
            growth = Growth::Truncated { since };
            self.position = 0;
            self.partial.clear();
            self.skipping = false;
        }
        self.file.seek(SeekFrom::Start(self.position))?;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = match self.file.read(&mut buffer) {
                Ok(0) => return Ok(growth),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.position += u64::try_from(length).unwrap_or(0);
            self.take(&buffer[..length], &mut line);
        }
    }

    fn take(&mut self, mut bytes: &[u8], line: &mut impl FnMut(Vec<u8>, bool)) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            self.extend(&bytes[..end], line);
            if !self.skipping {
                line(std::mem::take(&mut self.partial), false);
            }
            self.skipping = false;
            bytes = &bytes[end + 1..];
        }
        self.extend(bytes, line);
    }

    /// More of a line; handed over at once when it becomes too long.
    fn extend(&mut self, bytes: &[u8], line: &mut impl FnMut(Vec<u8>, bool)) {
        if self.skipping {
            return;
        }
        let room = LONGEST - self.partial.len();
        self.partial.extend(&bytes[..bytes.len().min(room)]);
        if bytes.len() > room {
            line(std::mem::take(&mut self.partial), true);
            self.skipping = true;
        }
    }
}

/// It is no regular file.
#[derive(Debug, thiserror::Error)]
#[error("it is not a regular file but {0}")]
struct NotRegular(&'static str);

/// What it is, if the error says that it is no regular file.
pub(super) fn kind_of(error: &io::Error) -> Option<&'static str> {
    error.get_ref()?.downcast_ref::<NotRegular>().map(|not| not.0)
}
