//! `cargo xtask tidy`: the rules of the design that no compiler and no lint checks.

mod arrows;
mod causes;
mod lines;
mod purity;
mod source;
mod tracked;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use self::source::Source;
use crate::{command, workspace::Workspace};

/// A rule broken at a place.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Breach {
    /// Relative to the root of the workspace.
    path: PathBuf,
    /// From 1; 0 for the file as a whole.
    line: usize,
    rule: String,
}

impl Breach {
    fn new(path: &Path, line: usize, rule: impl Into<String>) -> Self {
        Self { path: path.to_path_buf(), line, rule: rule.into() }
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path.display(), self.rule),
            line => write!(f, "{}:{line}: {}", self.path.display(), self.rule),
        }
    }
}

/// Checks every file that git has or would take. Whether no rule is broken.
pub(crate) fn run(workspace: &Workspace) -> Result<bool> {
    let files = files(workspace)?;
    let mut sources = Vec::new();
    let mut breaches = Vec::new();
    for path in &files {
        let whole = workspace.root().join(path);
        breaches.extend(tracked::check(path, fs::symlink_metadata(&whole)?.len()));
        let Some(text) = readable(&whole)? else { continue };
        breaches.extend(lines::check(path, &text));
        if path.extension().is_some_and(|extension| extension == "rs") {
            let source = Source::new(path.clone(), &text);
            breaches.extend(lines::check_rust(&source, &text));
            breaches.extend(purity::check(&source));
            breaches.extend(arrows::check(&source));
            sources.push(source);
        }
    }
    breaches.extend(causes::check(&sources));
    breaches.sort();
    for breach in &breaches {
        println!("{breach}");
    }
    let (files, sources) = (files.len(), sources.len());
    println!("tidy: {} breaches in {files} files, {sources} of them Rust", breaches.len());
    Ok(breaches.is_empty())
}

/// What is tracked, and what is new and not ignored: a rule should be heard before the commit.
fn files(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(workspace.root());
    let names = command::read(&mut git).context("tidy asks git which files belong to the project")?;
    let mut files: Vec<PathBuf> = names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect();
    // Deleted but not yet staged.
    files.retain(|path| workspace.root().join(path).symlink_metadata().is_ok());
    files.sort();
    files.dedup();
    Ok(files)
}

/// The text of a text file.
fn readable(path: &Path) -> Result<Option<String>> {
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(String::from_utf8(bytes).ok())
}
