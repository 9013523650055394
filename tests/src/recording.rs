//! Recordings of the probe: made in a folder of their own, replayed, and compared with what was printed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::probe::{Ended, Printed, output};

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

    /// The lines that are incidents or near misses.
    pub fn cases<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
        let is_case =
            |line: &&str| line.starts_with("{\"type\":\"incident\"") || line.starts_with("{\"type\":\"near_miss\"");
        lines.filter(is_case).map(str::to_owned).collect()
    }

    /// The incidents and near misses that `analyze` finds in it.
    pub fn replayed(&self, arguments: &[&str]) -> Result<Vec<String>> {
        Ok(Self::cases(self.analyze(arguments)?.stdout.lines()))
    }

    /// `analyze` prints the incidents and near misses that the run printed, byte by byte and in the same order, and has nothing to
    /// remark.
    pub fn check_replay(&self, ended: &Ended) -> Result<()> {
        self.check_replay_with(ended, &[])
    }

    /// The same with further arguments of `analyze`.
    pub fn check_replay_with(&self, ended: &Ended, arguments: &[&str]) -> Result<()> {
        let replayed = self.analyze(arguments)?;
        let printed = Self::cases(ended.lines.iter().map(|arrived| arrived.text.as_str()));
        let again = Self::cases(replayed.stdout.lines());
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
        let whole = arguments.contains(&"--no-redact");
        let shown_whole = |line: &&str| whole && line.contains("NOT REDACTED");
        let remarks: Vec<&str> = replayed.stderr.lines().filter(|line| !shown_whole(line)).collect();
        if !remarks.is_empty() {
            bail!("analyze remarks: {remarks:?}");
        }
        ensure!(whole == replayed.stderr.lines().any(|line| shown_whole(&line)), "not said: {}", replayed.stderr);
        Ok(())
    }

    fn analyze(&self, arguments: &[&str]) -> Result<Printed> {
        let path = self.file.to_str().context("the recording's name")?;
        let replayed = output(&[&["analyze", "--json", path], arguments].concat())?;
        ensure!(replayed.status.success(), "analyze ended with {}\n{}", replayed.status, replayed.stderr);
        Ok(replayed)
    }
}
