//! Follows a log file: through rotation by renaming, through truncation, and through times when there is none.
//!
//! nginx may live in another mount namespace, so a path usually begins with `/proc/PID/root`, or is `/proc/PID/fd/N` where the
//! file has no name any more. A wake-up comes from inotify, and ten times a second without one (network file systems, a
//! file that is not there yet); once a second while nothing happens at any source.

mod file;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2},
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        stat::Mode,
    },
    time::{ClockId, clock_gettime},
};
use thiserror::Error;

use self::file::{Followed, Growth};
use super::{
    marks::Mark,
    privilege::{self, Work},
    rest::{Bell, LONG_NAP},
};
use crate::model::time::Moment;

/// How long nothing can go unnoticed without inotify; longer while nothing happens at any source.
const NAP: Duration = Duration::from_millis(100);
/// A log that grows all the time is read so often at most: a storm writes ten thousand lines a second, each of which would wake the reader.
const TURN: Duration = Duration::from_millis(5);
/// How long a renamed file is still read: nginx writes to it until it is told to open its logs again.
const RETIRED_FOR: Duration = Duration::from_secs(30);
/// Renamed files read at the same time.
const RETIRED: usize = 4;

/// Where a log is.
#[derive(Clone, Debug)]
pub enum Place {
    /// A path as the probe sees it.
    Path(PathBuf),
    /// A path as a process with another root directory sees it; symbolic links lead no further than its root.
    InRoot {
        /// That directory, open.
        root: Arc<OwnedFd>,
        /// The path below it.
        path: PathBuf,
    },
}

impl Place {
    /// Opens what is there. The kernel knows how to stay below a directory since 5.6; before, links lead where they say.
    pub(crate) fn open(&self, flags: OFlag) -> io::Result<File> {
        let flags = flags | OFlag::O_CLOEXEC;
        let (root, path) = match self {
            Self::Path(path) => return Ok(File::from(open(path, flags, Mode::empty())?)),
            Self::InRoot { root, path } => (root, path),
        };
        let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        match openat2(root, path, how) {
            Ok(fd) => Ok(File::from(fd)),
            Err(Errno::ENOSYS) => {
                Ok(File::from(openat(root, path.strip_prefix("/").unwrap_or(path), flags, Mode::empty())?))
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) | Self::InRoot { path, .. } => path.display().fmt(f),
        }
    }
}

/// Device and inode of the regular file that is there.
pub(crate) fn identity(place: &Place) -> Option<(u64, u64)> {
    Followed::open(place, false).ok().map(|file| file.identity)
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When it was read: not before it was written.
    pub arrived: Moment,
    /// Without its end.
    pub bytes: Vec<u8>,
    /// It was longer than [`file::LONGEST`] and lost its rest.
    pub cut: bool,
}

/// Takes a line; `false` when it had no room. Must not block.
pub type Sink = Box<dyn FnMut(Line) -> bool + Send>;

/// Why a log cannot be followed.
#[derive(Debug, Error)]
pub enum TailError {
    /// A pipe, a socket or a terminal: reading would take the lines away from who reads them now.
    #[error(
        "{path} is not a regular file but {kind}; its lines are only heard inside nginx (uprobes), or log to a file as well"
    )]
    NotAFile {
        /// Where.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// No thread or no inotify.
    #[error("cannot follow {path}: {why}")]
    Start {
        /// Where.
        path: String,
        /// Why.
        why: io::Error,
    },
}

/// What a tail has been through since it began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Lines handed over.
    pub lines: u64,
    /// Lines cut.
    pub cut: u64,
    /// Lines the sink had no room for.
    pub lost: u64,
    /// Times another file took the name.
    pub rotations: u64,
    /// Times the file became shorter: what was written in between may be lost.
    pub truncations: u64,
    /// Between which readings it became shorter last.
    pub cut_off: Option<(Moment, Moment)>,
    /// Device and inode of the file that is followed now.
    pub file: Option<(u64, u64)>,
    /// Why nothing can be read now; `None` while a file is followed.
    pub trouble: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    statistics: Mutex<Statistics>,
}

impl Shared {
    fn update(&self, change: impl FnOnce(&mut Statistics)) {
        change(&mut self.statistics.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A log that is followed. Stops when dropped.
#[derive(Debug)]
pub struct Tail {
    /// Where.
    pub place: Place,
    shared: Arc<Shared>,
    bell: Bell,
    thread: Option<JoinHandle<()>>,
}

impl Tail {
    /// Begins at the end of the file as it is now; a file that appears later is read from its beginning. When this returns, no
    /// line written afterwards is missed.
    pub fn start(place: Place, sink: Sink) -> Result<Self, TailError> {
        Self::start_marked(place, sink, None, Bell::default())
    }

    /// The same, and the mark says how far it has been read; it rests with those whose bell it has.
    pub fn start_marked(place: Place, sink: Sink, mark: Option<Mark>, bell: Bell) -> Result<Self, TailError> {
        let started = |why: io::Error| TailError::Start { path: place.to_string(), why };
        let current = match Followed::open(&place, true) {
            Ok(file) => Some(file),
            Err(error) => match file::kind_of(&error) {
                Some(kind) => return Err(TailError::NotAFile { path: place.to_string(), kind }),
                None => None,
            },
        };
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        let shared = Arc::new(Shared::default());
        let mut reader = Reader {
            place: place.clone(),
            current: None,
            retired: Vec::new(),
            inotify,
            shared: Arc::clone(&shared),
            sink,
            mark,
            bell: bell.clone(),
            watched: false,
            gone: false,
        };
        reader.follow(current);
        let thread = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || {
                privilege::confine(Work::Reopens);
                reader.run();
            })
            .map_err(started)?;
        Ok(Self { place, shared, bell, thread: Some(thread) })
    }

    /// What it has been through.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.shared.statistics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads what is there, then stops.
    #[must_use]
    pub fn stop(mut self) -> Statistics {
        self.end();
        self.statistics()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.end();
    }
}

struct Reader {
    place: Place,
    current: Option<Followed>,
    retired: Vec<(Followed, Instant)>,
    inotify: Option<Inotify>,
    shared: Arc<Shared>,
    sink: Sink,
    mark: Option<Mark>,
    bell: Bell,
    /// inotify tells what happens to the current file.
    watched: bool,
    /// There is no file of that name now.
    gone: bool,
}

impl Reader {
    fn run(mut self) {
        loop {
            let stopping = self.shared.stop.load(Ordering::Relaxed);
            let (began, woken) = (now(), Instant::now());
            self.look();
            if let Some(mark) = &self.mark {
                mark.set(began);
            }
            if stopping {
                return;
            }
            self.sleep();
            std::thread::sleep(TURN.saturating_sub(woken.elapsed()));
            self.heed();
        }
    }

    fn follow(&mut self, file: Option<Followed>) {
        // An unlinked file loses a link, which is an attribute.
        let events = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_ATTRIB;
        let watch = |(inotify, file): (&Inotify, &Followed)| inotify.add_watch(&file.own_path(), events).is_ok();
        // Without the watch the nap finds everything, later.
        self.watched = self.inotify.as_ref().zip(file.as_ref()).is_some_and(watch);
        let identity = file.as_ref().map(|file| file.identity);
        self.shared.update(|statistics| statistics.file = identity);
        self.current = file;
    }

    fn sleep(&self) {
        let inotify = self.inotify.as_ref();
        let resting = if self.watched && !self.gone { LONG_NAP } else { NAP };
        if self.bell.nap(inotify.map(Inotify::as_fd), NAP, resting).is_err() {
            std::thread::sleep(NAP);
        }
    }

    /// Takes what inotify has told: only that there was something counts.
    fn heed(&self) {
        let inotify = self.inotify.as_ref();
        while inotify.is_some_and(|inotify| inotify.read_events().is_ok_and(|events| !events.is_empty())) {}
    }

    /// Reads everything new, and sees whether the path still leads to the same file.
    fn look(&mut self) {
        // The old files first: their lines are older.
        for at in 0..self.retired.len() {
            let (sink, shared) = (&mut self.sink, &self.shared);
            read(&mut self.retired[at].0, sink, shared);
        }
        self.retired.retain(|(_, since)| since.elapsed() < RETIRED_FOR);
        if let Some(current) = &mut self.current {
            read(current, &mut self.sink, &self.shared);
        }
        let found = Followed::open(&self.place, false);
        self.gone = found.is_err();
        match found {
            Ok(file) if self.current.as_ref().is_some_and(|current| current.identity == file.identity) => {}
            Ok(file) => {
                if let Some(mut old) = self.current.take() {
                    read(&mut old, &mut self.sink, &self.shared);
                    if self.retired.len() == RETIRED {
                        self.retired.remove(0);
                    }
                    self.retired.push((old, Instant::now()));
                    self.shared.update(|statistics| statistics.rotations += 1);
                }
                self.shared.update(|statistics| statistics.trouble = None);
                self.follow(Some(file));
                if let Some(current) = &mut self.current {
                    read(current, &mut self.sink, &self.shared);
                }
            }
            // Renamed or deleted, and nothing in its place yet: nginx may still write to the one we have.
            Err(_) if self.current.is_some() => {}
            Err(error) => self.shared.update(|statistics| statistics.trouble = Some(error.to_string())),
        }
    }
}

fn read(file: &mut Followed, sink: &mut Sink, shared: &Shared) {
    let mut lines: u64 = 0;
    let mut lost: u64 = 0;
    let mut cut_lines: u64 = 0;
    let outcome = file.read(|bytes, cut| {
        cut_lines += u64::from(cut);
        if sink(Line { arrived: now(), bytes, cut }) { lines += 1 } else { lost += 1 }
    });
    shared.update(|statistics| {
        statistics.lines += lines;
        statistics.lost += lost;
        statistics.cut += cut_lines;
        match outcome {
            Ok(Growth::Longer) => {}
            Ok(Growth::Truncated { since }) => {
                statistics.truncations += 1;
                statistics.cut_off = Some((since, now()));
            }
            Err(error) => statistics.trouble = Some(error.to_string()),
        }
    });
}

/// Nanoseconds since boot.
fn now() -> Moment {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    Moment(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}
