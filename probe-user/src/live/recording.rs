//! The file of a recording, and what its limits do to it.

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::recorder::FileLimits;
use crate::bundle::{
    manifest::{Evicted, Manifest},
    reader,
    section::{self, Kind},
    tape::Piece,
};

/// A window in the file.
#[derive(Debug)]
struct Window {
    begin: u64,
    cases: u64,
}

/// The file.
#[derive(Debug)]
pub(super) struct Recording {
    path: PathBuf,
    /// Header and manifest: what every file of this run begins with.
    head: Vec<u8>,
    limits: FileLimits,
    /// `None`: nothing is written any more.
    file: Option<File>,
    size: u64,
    windows: VecDeque<Window>,
    evicted: Evicted,
    /// What comes until the next window belongs to one that was given up.
    skipping: bool,
    dirty: bool,
    troubles: Vec<String>,
}

impl Recording {
    /// Creates the file for its owner alone. An older recording of that name is replaced, anything else is left alone.
    pub(super) fn create(path: PathBuf, manifest: &Manifest, limits: FileLimits) -> Result<Self, anyhow::Error> {
        let failed = || format!("cannot record to {}; choose another --out", path.display());
        let mut head = section::header();
        head.extend(section::section(Kind::Manifest, &serde_json::to_vec(manifest).with_context(failed)?));
        let file = open(&path).with_context(failed)?;
        give(&file, limits.owner);
        let mut recording = Self {
            path,
            head,
            limits,
            file: Some(file),
            size: 0,
            windows: VecDeque::new(),
            evicted: Evicted::default(),
            skipping: true,
            dirty: false,
            troubles: Vec::new(),
        };
        recording.begin().with_context(|| format!("cannot record to {}", recording.path.display()))?;
        Ok(recording)
    }

    /// Takes a piece. A disk that is full ends the writing, not the run.
    pub(super) fn take(&mut self, piece: &Piece) {
        let done = match piece {
            Piece::Window(bytes) => self.window(bytes),
            Piece::More(bytes) if !self.skipping => self.append(bytes),
            Piece::More(_) => Ok(()),
            Piece::Case => {
                match self.windows.back_mut().filter(|_| !self.skipping) {
                    Some(window) => window.cases += 1,
                    None => self.evicted.cases += 1,
                }
                Ok(())
            }
        };
        let done = done.and_then(|()| self.keep_limits());
        if let Err(error) = done {
            self.give_up(&error);
        }
    }

    /// Makes what was written last.
    pub(super) fn settle(&mut self) {
        if std::mem::take(&mut self.dirty)
            && let Some(Err(error)) = self.file.as_ref().map(File::sync_data)
        {
            self.give_up(&error);
        }
    }

    /// What went wrong since the last call.
    pub(super) fn troubles(&mut self) -> Vec<String> {
        std::mem::take(&mut self.troubles)
    }

    fn begin(&mut self) -> io::Result<()> {
        let head = std::mem::take(&mut self.head);
        let written = self.append(&head);
        self.head = head;
        written
    }

    fn window(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.limits.rotate > 0 && !self.windows.is_empty() && !self.has_room_for(bytes.len()) {
            self.rotate()?;
        }
        self.skipping = false;
        self.windows.push_back(Window { begin: self.size, cases: 0 });
        self.append(bytes)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(bytes)?;
        self.size += bytes.len() as u64;
        self.dirty = true;
        Ok(())
    }

    fn cases(&self) -> u64 {
        self.windows.iter().map(|window| window.cases).sum()
    }

    /// Whether a window that begins with so many bytes, and holds a case at least, is within the limits.
    fn has_room_for(&self, bytes: usize) -> bool {
        let size = self.size + bytes as u64;
        self.limits.size.is_none_or(|limit| size <= limit)
            && self.limits.incidents.is_none_or(|limit| self.cases() < limit)
    }

    fn is_full(&self) -> bool {
        let too_big = self.limits.size.is_some_and(|limit| self.size > limit);
        too_big || self.limits.incidents.is_some_and(|limit| self.cases() > limit)
    }

    /// The oldest windows go, a quarter more than must, so that it is not done again at once.
    fn keep_limits(&mut self) -> io::Result<()> {
        if self.file.is_none() || !self.is_full() {
            return Ok(());
        }
        if self.limits.rotate > 0 && self.windows.len() > 1 {
            // The next window begins the next file; this one stays whole.
            return Ok(());
        }
        let (size, cases) = (self.size, self.cases());
        let mut gone = 0;
        let mut gone_cases = 0;
        let fits = |gone_bytes: u64, gone_cases: u64| {
            self.limits.size.is_none_or(|limit| size - gone_bytes <= limit / 4 * 3)
                && self.limits.incidents.is_none_or(|limit| cases - gone_cases <= (limit / 4 * 3).max(1))
        };
        let begin = |index: usize| self.windows.get(index).map_or(size, |window| window.begin);
        let first = begin(0);
        while gone < self.windows.len() && !fits(begin(gone) - first, gone_cases) {
            let too_big = self.limits.size.is_some_and(|limit| size - begin(gone) > limit);
            if gone + 1 == self.windows.len() && !too_big {
                break;
            }
            gone_cases += self.windows.get(gone).map_or(0, |window| window.cases);
            gone += 1;
        }
        if gone == 0 {
            return Ok(());
        }
        let keep_from = begin(gone);
        self.skipping = gone == self.windows.len();
        self.evicted.windows += gone as u64;
        self.evicted.cases += gone_cases;
        self.windows.drain(..gone);
        self.rewrite(keep_from)
    }

    /// Writes the file anew without its beginning, under another name until it is whole.
    fn rewrite(&mut self, keep_from: u64) -> io::Result<()> {
        let Some(mut old) = self.file.take() else { return Ok(()) };
        let partial = beside(&self.path, "partial");
        // Left behind by a run that was killed.
        let _ = fs::remove_file(&partial);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&partial)?;
        give(&file, self.limits.owner);
        self.file = Some(file);
        let old_size = self.size;
        self.size = 0;
        "the limits of the recording (--max-size, --max-incidents)".clone_into(&mut self.evicted.why);
        let remark = serde_json::to_vec(&self.evicted).map(|json| section::section(Kind::Evicted, &json));
        let copied = self.begin().and_then(|()| self.append(&remark.unwrap_or_default())).and_then(|()| {
            old.seek(SeekFrom::Start(keep_from))?;
            let Some(file) = &mut self.file else { return Ok(()) };
            let begin = self.size;
            self.size += io::copy(&mut old.take(old_size - keep_from), file)?;
            for window in &mut self.windows {
                window.begin = window.begin - keep_from + begin;
            }
            fs::rename(&partial, &self.path)
        });
        if copied.is_err() {
            let _ = fs::remove_file(&partial);
        }
        copied
    }

    /// `FILE` becomes `FILE.1`, `FILE.1` becomes `FILE.2`, and the oldest goes.
    fn rotate(&mut self) -> io::Result<()> {
        let name = |number: u32| match number {
            0 => self.path.clone(),
            number => beside(&self.path, &number.to_string()),
        };
        for number in (0..self.limits.rotate).rev() {
            match fs::rename(name(number), name(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let file = open(&self.path)?;
        give(&file, self.limits.owner);
        self.file = Some(file);
        self.windows.clear();
        self.size = 0;
        self.evicted = Evicted::default();
        self.begin()
    }

    fn give_up(&mut self, error: &io::Error) {
        let Some(file) = self.file.take() else { return };
        // Half a section at the end is of no use to anybody, and a full disk may be glad of the room.
        let _ = file.set_len(self.size);
        self.troubles.push(format!(
            "cannot write {}: {error}; watching goes on, what was recorded so far can be read, no more is recorded",
            self.path.display()
        ));
    }
}

/// Gives a file to its owner. Where that is not allowed, it stays whose it is.
fn give(file: &File, owner: Option<(u32, u32)>) {
    if let Some((user, group)) = owner {
        let _ = std::os::unix::fs::fchown(file, Some(user), Some(group));
    }
}

/// `FILE.suffix`.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

/// Opens it, and makes it empty if it is a recording.
fn open(path: &Path) -> Result<File, io::Error> {
    let mut options = OpenOptions::new();
    // No link is followed: who records as root does not overwrite what somebody else points to.
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    let mut file = options.open(path)?;
    let metadata = file.metadata()?;
    let mut begin = Vec::new();
    if metadata.is_file() {
        (&mut file).take(8).read_to_end(&mut begin)?;
    }
    if !metadata.is_file() || !(begin.is_empty() || reader::is_bundle(&begin)) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it exists and is no recording"));
    }
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}
