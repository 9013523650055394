//! The test programs of the workspace, grouped into suites, and running one.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::outcome::Counts;
use crate::{command, workspace::search_path};

/// The directory of the package whose tests touch the kernel, nginx and the network.
const LIVE: &str = "tests";

/// Test programs that are counted together: the unit tests of a package, or one file of integration tests.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Suite {
    /// `probe-user`, or `tests/causes`.
    pub(crate) name: String,
    /// The directory of the package, where its tests run.
    directory: PathBuf,
    programs: Vec<PathBuf>,
}

/// What cargo built.
#[derive(Debug, Default)]
pub(crate) struct Built {
    /// In the order of their names, those that touch the world last.
    pub(crate) suites: Vec<Suite>,
    /// The program `probe502`.
    pub(crate) probe: Option<PathBuf>,
}

/// How a suite ended.
pub(crate) struct Ended {
    /// The figures of all its programs.
    pub(crate) counts: Counts,
    /// The programs that ended without libtest's result: crashed, killed.
    pub(crate) broken: Vec<String>,
}

impl Built {
    /// From the messages of `cargo build --message-format=json`, one a line.
    pub(crate) fn from_messages(messages: &str) -> Self {
        let mut suites = BTreeMap::new();
        let mut probe = None;
        for artifact in messages.lines().filter_map(Artifact::read) {
            if artifact.is_test {
                artifact.add_to(&mut suites);
            } else if artifact.target == "probe502" {
                probe = Some(artifact.executable);
            }
        }
        let mut suites: Vec<Suite> = suites.into_values().collect();
        suites.sort_by_key(Suite::is_live);
        Self { suites, probe }
    }
}

/// The one kind of cargo's messages that matters here: something executable was built.
struct Artifact {
    directory: PathBuf,
    target: String,
    is_integration: bool,
    is_test: bool,
    executable: PathBuf,
}

impl Artifact {
    fn read(message: &str) -> Option<Self> {
        let message: Value = serde_json::from_str(message).ok()?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let target = message.get("target")?;
        Some(Self {
            directory: Path::new(message.get("manifest_path")?.as_str()?).parent()?.to_path_buf(),
            target: text(target.get("name")?)?,
            is_integration: target.get("kind")?.as_array()?.iter().any(|kind| kind == "test"),
            is_test: message.get("profile")?.get("test")?.as_bool()?,
            executable: text(message.get("executable")?)?.into(),
        })
    }

    fn add_to(self, suites: &mut BTreeMap<String, Suite>) {
        let package = self.directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = if self.is_integration { format!("{package}/{}", self.target) } else { package };
        let directory = self.directory;
        let new = || Suite { name: name.clone(), directory, programs: Vec::new() };
        suites.entry(name.clone()).or_insert_with(new).programs.push(self.executable);
    }
}

impl Suite {
    /// Whether its tests want root and each other's absence.
    pub(crate) fn is_live(&self) -> bool {
        self.directory.file_name().is_some_and(|name| name == LIVE)
    }

    /// Runs it. A live suite is shown line by line, because it takes its time; another only if it fails.
    pub(crate) fn run(&self, probe: &Path, filter: Option<&str>) -> Result<Ended> {
        let mut ended = Ended { counts: Counts::default(), broken: Vec::new() };
        for program in &self.programs {
            let mut test = self.command(program);
            test.args(filter).env("PROBE502_BIN", probe);
            // Kernel state is shared: programs, namespaces, and what two tests would see of each other. Tests that need root are marked
            // `#[ignore]`, so that a plain `cargo test` works for everybody; here they run.
            test.args(["--test-threads=1", "--include-ignored"]);
            match run_program(&mut test, self.is_live())? {
                (Some(counts), _) => ended.counts = ended.counts + counts,
                (None, how) => ended.broken.push(format!("{} ended without a result: {how}", program.display())),
            }
        }
        Ok(ended)
    }

    /// How many tests there are that the filter leaves, run or not.
    pub(crate) fn count(&self, filter: Option<&str>) -> Result<usize> {
        let mut all = 0;
        for program in &self.programs {
            let list = command::read(self.command(program).args(["--list", "--format=terse"]).args(filter))?;
            all += list.lines().filter(|line| line.ends_with(": test")).count();
        }
        Ok(all)
    }

    /// The environment that cargo gives a test.
    fn command(&self, program: &Path) -> Command {
        let mut test = Command::new(program);
        test.current_dir(&self.directory).env("CARGO_MANIFEST_DIR", &self.directory).env("PATH", search_path());
        test
    }
}

/// Runs one test program: its figures, if it printed them, and how it ended.
fn run_program(test: &mut Command, shown: bool) -> Result<(Option<Counts>, String)> {
    let name = command::line(test);
    let mut child =
        test.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| format!("starting `{name}`"))?;
    let output = child.stdout.take().context("the test's output is not piped")?;
    let (mut counts, mut kept) = (None, Vec::new());
    // By bytes: what a test prints need not be UTF-8.
    for line in BufReader::new(output).split(b'\n') {
        let line = line.with_context(|| format!("reading what `{name}` prints"))?;
        let line = String::from_utf8_lossy(&line).into_owned();
        counts = Counts::of_result_line(&line).or(counts);
        if shown {
            println!("{line}");
        } else {
            kept.push(line);
        }
    }
    let status = child.wait().with_context(|| format!("waiting for `{name}`"))?;
    if !status.success() && !shown {
        println!("{}", kept.join("\n"));
    }
    // A program that says "ok" and then dies has not ended well.
    let trusted = counts.filter(|counts| status.success() || counts.failed > 0);
    Ok((trusted, status.to_string()))
}

/// Tests in documentation, which only cargo can run.
pub(crate) fn run_documentation(mut cargo: Command, filter: Option<&str>) -> Result<Ended> {
    cargo.args(["test", "--quiet", "--locked", "--workspace", "--doc"]).args(filter.map(OsString::from));
    let output = cargo.stdin(Stdio::null()).output().context("starting `cargo test --doc`")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let counts: Counts = text.lines().filter_map(Counts::of_result_line).sum();
    let mut broken = Vec::new();
    if !output.status.success() {
        println!("{text}{}", String::from_utf8_lossy(&output.stderr));
        if counts.failed == 0 {
            broken.push(format!("`cargo test --doc` ended without a result: {}", output.status));
        }
    }
    Ok(Ended { counts, broken })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(package: &str, kind: &str, target: &str, test: bool, executable: &str) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","manifest_path":"/w/{package}/Cargo.toml","target":{{"kind":["{kind}"],"name":"{target}"}},"profile":{{"test":{test}}},"executable":"{executable}"}}"#
        )
    }

    #[test]
    fn test_programs_are_grouped_into_suites_with_the_live_ones_last() {
        let messages = [
            artifact("tests", "test", "causes", true, "/t/causes-1"),
            artifact("probe-user", "lib", "probe502", true, "/t/probe502-1"),
            artifact("probe-user", "bin", "probe502", true, "/t/probe502-2"),
            artifact("probe-user", "bin", "probe502", false, "/t/probe502"),
            artifact("xtask", "bin", "xtask", true, "/t/xtask-1"),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
            "not json".to_owned(),
        ]
        .join("\n");
        let built = Built::from_messages(&messages);
        assert_eq!(built.probe.as_deref(), Some(Path::new("/t/probe502")));
        let names: Vec<&str> = built.suites.iter().map(|suite| suite.name.as_str()).collect();
        assert_eq!(names, ["probe-user", "xtask", "tests/causes"]);
        let live: Vec<bool> = built.suites.iter().map(Suite::is_live).collect();
        assert_eq!(live, [false, false, true]);
        assert_eq!(built.suites.first().map(|suite| suite.programs.len()), Some(2));
    }

    #[test]
    fn a_library_without_a_program_is_no_suite() {
        let message = artifact("probe-user", "lib", "probe502", false, "/t/x").replace("\"/t/x\"", "null");
        assert!(Built::from_messages(&message).suites.is_empty());
    }

    fn shell(script: &str) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]);
        shell
    }

    #[test]
    fn the_figures_of_a_program_are_taken_from_its_output() {
        let line = "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let (counts, _) = run_program(&mut shell(&format!("echo '{line}'; exit 101")), true).expect("it runs");
        assert_eq!(counts, Some(Counts { passed: 1, failed: 2, skipped: 0 }));
    }

    #[test]
    fn a_program_that_dies_has_no_figures() {
        let (counts, how) = run_program(&mut shell("kill -SEGV $$"), true).expect("it runs");
        assert_eq!(counts, None);
        assert!(how.contains("signal: 11"), "{how}");
        let line = "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let (counts, _) = run_program(&mut shell(&format!("echo '{line}'; exit 1")), true).expect("it runs");
        assert_eq!(counts, None, "ok, and then a failure");
    }
}
