//! Opens what is to be analysed: files, compressed or not, and standard input.

use std::{
    fs::File,
    io::{self, Chain, Cursor, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, anyhow};

use crate::{
    app::replay,
    offline::file::{self, Kind},
};

/// Bytes that are looked at to tell what a file is.
const MAGIC: usize = 8;

/// How much memory a zstd stream may ask for, as a power of two: what `--long` of the command asks for is refused, because one stream
/// would take more than everything else together.
const ZSTD_WINDOW_LOG: u32 = 23;

/// How far an input was read, for the progress bar.
#[derive(Clone, Debug, Default)]
pub(super) struct Reached {
    /// Bytes read.
    pub(super) done: Arc<AtomicU64>,
    /// Bytes there are; `None`: nobody knows.
    pub(super) total: Option<u64>,
}

/// An input whose first bytes were looked at.
pub(super) struct Input {
    /// As the user calls it.
    pub(super) name: String,
    /// Its bytes, uncompressed.
    pub(super) bytes: Box<dyn Read + Send>,
    /// How far it was read.
    pub(super) progress: Reached,
}

struct Counted<R> {
    inner: R,
    done: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.done.fetch_add(u64::try_from(length).unwrap_or(0), Ordering::Relaxed);
        Ok(length)
    }
}

/// An input that was opened once: a pipe cannot be opened again, and gives its first bytes only once.
pub(super) struct Opened {
    /// As the user calls it.
    pub(super) name: String,
    begin: Vec<u8>,
    rest: Box<dyn Read + Send>,
    total: Option<u64>,
}

impl Opened {
    /// Opens an input; `-` is standard input.
    pub(super) fn open(path: &Path) -> Result<Self, anyhow::Error> {
        let stdin = path.as_os_str() == "-";
        let name = if stdin { "standard input".to_owned() } else { path.display().to_string() };
        let cannot = || format!("cannot read {name}");
        let mut total = None;
        let mut rest: Box<dyn Read + Send> = if stdin {
            Box::new(io::stdin())
        } else {
            let file = File::open(path).with_context(cannot)?;
            let about = file.metadata().with_context(cannot)?;
            if about.is_dir() {
                return Err(anyhow!("cannot read {name}: it is a directory; name the files in it"));
            }
            total = Some(about.len()).filter(|_| about.is_file());
            Box::new(file)
        };
        let begin = begin(&mut rest, MAGIC).with_context(cannot)?;
        if begin.is_empty() {
            return Err(anyhow!("cannot read {name}: it is empty"));
        }
        Ok(Self { name, begin, rest, total })
    }

    /// Whether it is a recording, and no capture.
    pub(super) fn is_recording(&self) -> bool {
        replay::is_recording(&self.begin)
    }

    /// All of its bytes.
    pub(super) fn whole(self) -> Box<dyn Read + Send> {
        Box::new(Cursor::new(self.begin).chain(self.rest))
    }

    /// A capture, uncompressed.
    pub(super) fn capture(self) -> Result<Input, anyhow::Error> {
        let progress = Reached { total: self.total, ..Reached::default() };
        let name = self.name.clone();
        let cannot = || format!("cannot read the capture {name}");
        let counted = Counted { inner: self.whole(), done: Arc::clone(&progress.done) };
        let (kind, bytes) = look(counted).with_context(cannot)?;
        let bytes: Box<dyn Read + Send> = match kind {
            Some(Kind::Gzip) => unpacked(flate2::read::MultiGzDecoder::new(bytes), &name)?,
            Some(Kind::Zstd) => {
                let mut decoder = zstd::stream::read::Decoder::new(bytes).with_context(cannot)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).with_context(cannot)?;
                unpacked(decoder, &name)?
            }
            Some(Kind::Pcap | Kind::Pcapng) => Box::new(bytes),
            None => return Err(foreign(&name)),
        };
        Ok(Input { name, bytes, progress })
    }
}

fn foreign(name: &str) -> anyhow::Error {
    anyhow!(
        "cannot read {name}: it is no recording of probe502, and neither pcap nor pcapng, nor one of these compressed by gzip or zstd"
    )
}

/// A compressed file that holds a capture.
fn unpacked(decoder: impl Read + Send + 'static, name: &str) -> Result<Box<dyn Read + Send>, anyhow::Error> {
    let (kind, bytes) = look(decoder).with_context(|| format!("cannot unpack the capture {name}"))?;
    match kind {
        Some(Kind::Pcap | Kind::Pcapng) => Ok(Box::new(bytes)),
        Some(Kind::Gzip | Kind::Zstd) => {
            Err(anyhow!("cannot read the capture {name}: it is compressed twice; unpack it once"))
        }
        None => Err(foreign(name)),
    }
}

type Looked<R> = Chain<Cursor<Vec<u8>>, R>;

/// What a stream begins with; the bytes are put back.
fn look<R: Read>(mut stream: R) -> io::Result<(Option<Kind>, Looked<R>)> {
    let first = begin(&mut stream, MAGIC)?;
    Ok((file::kind(&first), Cursor::new(first).chain(stream)))
}

fn begin(stream: &mut impl Read, most: usize) -> io::Result<Vec<u8>> {
    let mut first = Vec::with_capacity(most);
    stream.take(u64::try_from(most).unwrap_or(u64::MAX)).read_to_end(&mut first)?;
    Ok(first)
}
