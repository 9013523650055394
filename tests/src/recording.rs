//! Recordings of the probe: made in a folder of their own, replayed, and compared with what was printed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::probe::{Ended, output};

/// A recording to be; its folder goes when it is dropped.
#[derive(Debug)]
pub struct Recording {
    file: PathBuf,
    _folder: tempfile::TempDir,
}

impl Recording {
    /// A name nobody else uses.
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir().context("make a folder for the recording")?;
        Ok(Self { file: folder.path().join("trial.p502"), _folder: folder })
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// `analyze` prints the incidents and near misses that the run printed, byte by byte and in the same order, and has nothing to
    /// remark.
    pub fn check_replay(&self, ended: &Ended) -> Result<()> {
        let path = self.file.to_str().context("the recording's name")?;
        let replayed = output(&["analyze", "--json", path])?;
        ensure!(replayed.status.success(), "analyze ended with {}\n{}", replayed.status, replayed.stderr);
        let is_case =
            |line: &&str| line.starts_with("{\"type\":\"incident\"") || line.starts_with("{\"type\":\"near_miss\"");
        let printed: Vec<&str> = ended.lines.iter().map(|arrived| arrived.text.as_str()).filter(is_case).collect();
        let again: Vec<&str> = replayed.stdout.lines().filter(is_case).collect();
        for (index, (one, other)) in printed.iter().zip(&again).enumerate() {
            ensure!(one == other, "case {index} is replayed differently\n--- printed\n{one}\n--- replayed\n{other}");
        }
        ensure!(
            printed.len() == again.len(),
            "{} cases were printed, {} are replayed\n--- stderr\n{}",
            printed.len(),
            again.len(),
            replayed.stderr
        );
        if !replayed.stderr.is_empty() {
            bail!("analyze remarks: {}", replayed.stderr);
        }
        Ok(())
    }
}
