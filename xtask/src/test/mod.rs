//! `cargo xtask test`: every check and every test, and one line at the end that says how it went.

mod outcome;
mod suite;

use std::{path::Path, process::Stdio, time::Instant};

use anyhow::{Context as _, Result};

pub(crate) use self::outcome::Counts;
use self::suite::{Built, Ended, Suite};
use crate::{
    cross, lint, reproduce,
    setup::{self, Host},
    vm,
    workspace::Workspace,
};

/// Runs it all; whether everything passed. A filter picks tests by name, and leaves the lint out; `all` adds what takes long.
pub(crate) fn run(workspace: &Workspace, filter: Option<&str>, all: bool) -> Result<bool> {
    setup::run(workspace)?;
    let mut report = Report { filtered: filter.is_some(), ..Report::default() };
    if filter.is_none() {
        report.add_lint(workspace)?;
    }
    match build(workspace)? {
        None => report.broke_off("building the tests failed, see above"),
        Some(Built { probe: None, .. }) => report.broke_off("cargo built no probe502"),
        Some(Built { suites, probe: Some(probe) }) => {
            let root = Host::read().is_root();
            for suite in &suites {
                report.add_suite(suite, &probe, filter, root)?;
            }
            report.add_documentation(workspace, filter)?;
        }
    }
    if all {
        report.add_check("the other architecture", || cross::run(workspace));
        report.add_check("the object built twice", || reproduce::run(workspace));
        report.add_check("the other kernels", || vm::run(workspace, &vm::Plan::ALL));
    }
    Ok(report.close())
}

/// Builds all test programs and the program under test in one go: with one selection of packages nothing is built twice.
/// `None` if that failed.
fn build(workspace: &Workspace) -> Result<Option<Built>> {
    println!("test: building the tests");
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--locked", "--workspace", "--lib", "--bins", "--tests"]);
    let cargo = cargo.arg("--message-format=json-render-diagnostics").stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = cargo.output().context("starting `cargo build`")?;
    let built = || Built::from_messages(&String::from_utf8_lossy(&output.stdout));
    Ok(output.status.success().then(built))
}

/// What ran so far.
#[derive(Default)]
struct Report {
    filtered: bool,
    /// Something that was asked for did not run.
    incomplete: bool,
    total: Counts,
    complaints: Vec<String>,
}

impl Report {
    fn add_lint(&mut self, workspace: &Workspace) -> Result<()> {
        let started = Instant::now();
        let checks = lint::all(workspace, lint::Missing::IsSkipped)?;
        self.complaints.extend(checks.iter().filter_map(lint::Check::complaint));
        self.line("lint", checks.iter().map(lint::Check::counts).sum(), started);
        Ok(())
    }

    fn add_suite(&mut self, suite: &Suite, probe: &Path, filter: Option<&str>, root: bool) -> Result<()> {
        let started = Instant::now();
        let count = suite.count(filter)?;
        if self.filtered && count == 0 {
            return Ok(());
        }
        if suite.is_live() && !root {
            self.incomplete = true;
            self.complaints.push(format!("suite {}: skipped, because it wants root", suite.name));
            self.line(&suite.name, Counts::of_skipped(count), started);
            return Ok(());
        }
        if suite.is_live() {
            println!("test: suite {} (live)", suite.name);
        }
        let ended = suite.run(probe, filter)?;
        self.add(&suite.name, &ended, started);
        if !self.filtered && !ended.counts.any_ran() {
            // A suite that is there and tests nothing is a mistake in the suite.
            self.complaints.push(format!("suite {}: no test ran", suite.name));
            self.total.failed += 1;
        }
        Ok(())
    }

    fn add_documentation(&mut self, workspace: &Workspace, filter: Option<&str>) -> Result<()> {
        let started = Instant::now();
        let ended = suite::run_documentation(workspace.cargo(), filter)?;
        self.add("documentation", &ended, started);
        Ok(())
    }

    /// Counts as one test; an error is a failure of this one and keeps no other from running.
    fn add_check(&mut self, name: &str, check: impl FnOnce() -> Result<bool>) {
        let started = Instant::now();
        let passed = check().unwrap_or_else(|error| {
            self.complaints.push(format!("{name}: {error:#}"));
            false
        });
        if !passed {
            self.complaints.push(format!("{name}: failed, see above"));
        }
        self.line(name, Counts::of_check(passed), started);
    }

    fn add(&mut self, name: &str, ended: &Ended, started: Instant) {
        let mut counts = ended.counts;
        counts.failed += ended.broken.len();
        self.complaints.extend(ended.broken.iter().map(|how| format!("suite {name}: {how}")));
        let repeated = |test| format!("suite {name}: {test} failed, and passed when it was run again, see above");
        self.complaints.extend(ended.repeated.iter().map(repeated));
        if counts.failed > 0 {
            self.complaints.push(format!("suite {name}: {} failed, see above", counts.failed));
        }
        // A filter leaves most suites empty; those say nothing.
        if !self.filtered || counts != Counts::default() {
            self.line(name, counts, started);
        }
    }

    /// Nothing more can run.
    fn broke_off(&mut self, why: &str) {
        self.complaints.push(why.to_owned());
        self.total.failed += 1;
    }

    fn line(&mut self, name: &str, counts: Counts, started: Instant) {
        println!("suite {name}: {counts} ({:.1} s)", started.elapsed().as_secs_f64());
        self.total = self.total + counts;
    }

    /// Prints the closing lines; whether all is well.
    fn close(mut self) -> bool {
        if self.filtered && !self.total.any_ran() {
            self.incomplete = true;
            self.complaints.push("no test has a name with the filter in it".to_owned());
        }
        for complaint in &self.complaints {
            println!("test: {complaint}");
        }
        println!("{}", self.total);
        self.total.failed == 0 && !self.incomplete
    }
}
