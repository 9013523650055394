//! The flight recorder: the tape in the thinking thread, and a thread that writes the file.

use std::{
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    privilege::{self, Work},
    recording::Recording,
};
use crate::{
    bundle::{
        manifest::{Asked, Forgotten, Manifest, Mark},
        tape::{Bounds, Interfaces, Past, Piece, Tape},
    },
    model::{time::Moment, verdict::Verdict},
    pipeline::{Judged, Memory},
};

/// Pieces that may wait for the disk. A disk that hangs for longer makes the recorder give up a window, never the thinking thread wait.
const WAITING: usize = 4096;
/// How often what was written is made to last.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// How much of the file to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileLimits {
    /// Bytes of one file.
    pub size: Option<u64>,
    /// Incidents and near misses in one file.
    pub incidents: Option<u64>,
    /// Older files kept beside the newest; 0: the oldest windows of the only file go.
    pub rotate: u32,
    /// User and group that the files are given to.
    pub owner: Option<(u32, u32)>,
}

/// Says what went wrong, once for each thing.
pub type Trouble = Box<dyn Fn(String) + Send>;

/// The recorder.
pub struct Recorder {
    /// What is kept in memory.
    pub tape: Tape,
    writer: Option<SyncSender<Piece>>,
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Creates the file, which is an error if it cannot be, and begins.
    pub fn start(
        path: PathBuf,
        manifest: &Manifest,
        bounds: Bounds,
        limits: FileLimits,
        interfaces: Interfaces,
        trouble: Trouble,
    ) -> Result<Self, anyhow::Error> {
        let folder = folder_of(&path);
        let recording = Recording::create(path, manifest, limits)?;
        let (writer, pieces) = sync_channel(WAITING);
        let thread = thread::Builder::new().name("recorder".into()).spawn(move || {
            privilege::confine(Work::Writes(Some(&folder)));
            write(recording, &pieces, &trouble);
        })?;
        Ok(Self { tape: Tape::new(bounds, interfaces), writer: Some(writer), thread: Some(thread) })
    }

    /// A case was judged.
    pub fn case(&mut self, judged: &Judged, memory: impl FnOnce() -> Memory) {
        let case = &judged.case;
        let number = case.id.0.rsplit_once('-').and_then(|(_, number)| number.parse().ok()).unwrap_or(0);
        let cause = match &judged.verdict {
            Verdict::Explained(explanation) => explanation.cause,
            Verdict::Contested(_) | Verdict::Unexplained { .. } => "unknown",
        };
        let mark = Mark { id: case.id.0.clone(), kind: case.kind, cause: cause.to_owned() };
        let memory = if self.tape.begins_window() { memory() } else { Memory::default() };
        let past = Past {
            upstreams: &memory.upstreams,
            speaking: &memory.speaking,
            earlier: &memory.earlier,
            asked: memory
                .asked
                .iter()
                .map(|asked| Asked {
                    host: asked.host.clone(),
                    uri: asked.uri.clone(),
                    status: asked.status,
                    case: asked.case.0.clone(),
                    at: asked.at,
                })
                .collect(),
            forgotten: memory
                .forgotten
                .iter()
                .map(|lost| Forgotten {
                    from: lost.at.earliest,
                    to: lost.at.latest,
                    sensor: lost.sensor.name().to_owned(),
                    events: lost.count,
                })
                .collect(),
            undecided_since: memory.undecided_since,
        };
        self.tape.case(number, case.decided.latest, &mark, &past);
        self.write();
    }

    /// The run is over: time had been told up to here before the last events were thought about.
    pub fn end(&mut self, told: Moment) {
        self.tape.end(told);
        self.write();
    }

    /// Hands on what is to be written.
    pub fn write(&mut self) {
        for piece in self.tape.take() {
            if self.writer.as_ref().is_some_and(|writer| writer.try_send(piece).is_err()) {
                // A window with a hole in it would be read as if nothing had happened there.
                self.tape.abandon();
                break;
            }
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.writer.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The folder that a file is in.
fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn write(mut recording: Recording, pieces: &Receiver<Piece>, trouble: &Trouble) {
    loop {
        let ended = match pieces.recv_timeout(SYNC_EVERY) {
            Ok(piece) => {
                recording.take(&piece);
                // Everything that is there belongs together.
                for piece in pieces.try_iter() {
                    recording.take(&piece);
                }
                false
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        };
        recording.settle();
        for text in recording.troubles() {
            trouble(text);
        }
        if ended {
            return;
        }
    }
}
