//! The thread that reads a capture: blocks in, [`Batch`]es out. While one block is thought about the next is read.

use std::{
    io::{self, Read},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use super::input::{Input, Reached};
use crate::offline::{
    decode::{Counts, Decoder, Progress},
    segment::Batch,
};

/// Bytes read at once: as much as a core's own cache holds.
const BLOCK: usize = 512 << 10;
/// Blocks that may wait.
const WAITING: usize = 4;

/// What a reading thread delivers.
#[derive(Debug)]
pub(super) enum Delivery {
    /// A block and what is in it.
    Batch(Batch),
    /// The end: what there was in all, and why it was not read to its end.
    End(Counts, Option<String>),
}

/// A capture that is being read.
#[derive(Debug)]
pub(super) struct Reading {
    /// As the user calls it.
    pub(super) name: String,
    /// How far it was read.
    pub(super) progress: Reached,
    deliveries: Receiver<Delivery>,
    used: SyncSender<Batch>,
}

impl Reading {
    /// Starts the thread.
    pub(super) fn start(input: Input) -> io::Result<Self> {
        let (deliver, deliveries) = sync_channel(WAITING);
        let (used, empty) = sync_channel(WAITING * 2);
        let Input { name, bytes, progress } = input;
        let work = Work { bytes, deliver, empty, decoder: Decoder::default() };
        thread::Builder::new().name("reader".into()).spawn(move || work.run())?;
        Ok(Self { name, progress, deliveries, used })
    }

    /// The next delivery; `None` after the end.
    pub(super) fn next(&self) -> Option<Delivery> {
        self.deliveries.recv().ok()
    }

    /// Gives a batch back: its memory is used again.
    pub(super) fn give_back(&self, batch: Batch) {
        // The thread may have ended; then nobody needs it.
        let _ = self.used.try_send(batch);
    }
}

struct Work {
    bytes: Box<dyn Read + Send>,
    deliver: SyncSender<Delivery>,
    empty: Receiver<Batch>,
    decoder: Decoder,
}

impl Work {
    fn run(mut self) {
        let why = self.read();
        let end = Delivery::End(self.decoder.counts(), why);
        // Nobody listens any more where the other side has failed.
        let _ = self.deliver.send(end);
    }

    /// Reads to the end; why it could not.
    fn read(&mut self) -> Option<String> {
        let mut carry: Vec<u8> = Vec::new();
        let mut size = BLOCK;
        let mut offset: u64 = 0;
        loop {
            let mut batch = self.empty.try_recv().unwrap_or_default();
            batch.items.clear();
            batch.mended.clear();
            let length = match fill(&mut self.bytes, &mut batch.block, &carry, size.max(carry.len())) {
                Ok(length) => length,
                Err(error) => {
                    return Some(format!(
                        "it could not be read beyond byte {}: {error}",
                        offset + carry_length(&carry)
                    ));
                }
            };
            let ended = length < size.max(carry.len());
            batch.block.truncate(length);
            let progress = self.decoder.read(&mut batch);
            let mut why = None;
            let mut skip = 0;
            match progress {
                Progress::Need { read, need } => {
                    carry.clear();
                    carry.extend_from_slice(batch.block.get(read..).unwrap_or_default());
                    offset += u64::try_from(read).unwrap_or(0);
                    size = BLOCK.max(need);
                    if ended && !carry.is_empty() {
                        why = Some(format!("it ends in the middle of a packet (byte {offset})"));
                    }
                }
                Progress::Skip(more) => {
                    offset += u64::try_from(length).unwrap_or(0) + more;
                    carry.clear();
                    skip = more;
                    size = BLOCK;
                }
                Progress::Damaged(read, damage) => {
                    offset += u64::try_from(read).unwrap_or(0);
                    why = Some(format!("it is damaged at byte {offset}: {damage}"));
                }
            }
            if self.deliver.send(Delivery::Batch(batch)).is_err() {
                return None;
            }
            if why.is_some() || ended {
                return why;
            }
            if skip > 0 {
                match io::copy(&mut self.bytes.by_ref().take(skip), &mut io::sink()) {
                    Ok(skipped) if skipped == skip => {}
                    Ok(_) => return Some(format!("it ends in the middle of a block (byte {offset})")),
                    Err(error) => return Some(format!("it could not be read beyond byte {offset}: {error}")),
                }
            }
        }
    }
}

fn carry_length(carry: &[u8]) -> u64 {
    u64::try_from(carry.len()).unwrap_or(0)
}

/// Fills `block` with `carry` and what follows, up to `size` bytes; less only at the end. How much it is.
fn fill(bytes: &mut impl Read, block: &mut Vec<u8>, carry: &[u8], size: usize) -> io::Result<usize> {
    // What is there from before is overwritten; only a growing block has to be cleared.
    if block.len() < size {
        block.resize(size, 0);
    }
    if let Some(begin) = block.get_mut(..carry.len()) {
        begin.copy_from_slice(carry);
    }
    let mut filled = carry.len();
    while filled < size {
        match bytes.read(block.get_mut(filled..size).unwrap_or_default()) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
