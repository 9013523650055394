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
    /// Tests that failed, and passed when they were run again.
    pub(crate) repeated: Vec<String>,
}

/// What one test program said.
struct Said {
    counts: Option<Counts>,
    /// How it ended.
    how: String,
    /// The tests that failed.
    failed: Vec<String>,
    /// It told a wrong verdict, which no second run makes good.
    wrong: bool,
}

/// A test prints this where the probe said what is not true; `probe_tests::expect::WRONG`.
const WRONG: &str = "WRONG VERDICT";

/// So many tests of a program may have been in bad luck.
const UNLUCKY: usize = 2;

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
    ///
    /// A live test that fails runs once more: these tests keep real servers to times, and the machine is not theirs alone. That it did is
    /// told at the end. Who has told a wrong verdict has no second try.
    pub(crate) fn run(&self, probe: &Path, filter: Option<&str>) -> Result<Ended> {
        let mut ended = Ended { counts: Counts::default(), broken: Vec::new(), repeated: Vec::new() };
        for program in &self.programs {
            let mut said = self.run_tests(program, probe, &filter.into_iter().collect::<Vec<_>>())?;
            if self.is_live() && !said.wrong && (1..=UNLUCKY).contains(&said.failed.len()) {
                println!("test: once more: {}", said.failed.join(", "));
                let names = said.failed.iter().map(String::as_str);
                let again =
                    self.run_tests(program, probe, &["--exact"].into_iter().chain(names).collect::<Vec<_>>())?;
                if again.failed.is_empty() && again.counts.is_some_and(|counts| counts.passed == said.failed.len()) {
                    said.counts = said.counts.map(|first| first.passing(said.failed.len()));
                    ended.repeated.append(&mut said.failed);
                }
            }
            match said.counts {
                Some(counts) => ended.counts = ended.counts + counts,
                None => ended.broken.push(format!("{} ended without a result: {}", program.display(), said.how)),
            }
        }
        Ok(ended)
    }

    fn run_tests(&self, program: &Path, probe: &Path, which: &[&str]) -> Result<Said> {
        let mut test = self.command(program);
        test.args(which).env("PROBE502_BIN", probe);
        // Kernel state is shared: programs, namespaces, and what two tests would see of each other. Tests that need root are marked
        // `#[ignore]`, so that a plain `cargo test` works for everybody; here they run.
        test.args(["--test-threads=1", "--include-ignored"]);
        run_program(&mut test, self.is_live())
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

/// Runs one test program.
fn run_program(test: &mut Command, shown: bool) -> Result<Said> {
    let name = command::line(test);
    let mut child =
        test.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| format!("starting `{name}`"))?;
    let output = child.stdout.take().context("the test's output is not piped")?;
    let (mut counts, mut kept) = (None, Vec::new());
    let (mut failed, mut wrong) = (Vec::new(), false);
    // By bytes: what a test prints need not be UTF-8.
    for line in BufReader::new(output).split(b'\n') {
        let line = line.with_context(|| format!("reading what `{name}` prints"))?;
        let line = String::from_utf8_lossy(&line).into_owned();
        counts = Counts::of_result_line(&line).or(counts);
        wrong |= line.contains(WRONG);
        let name = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"));
        failed.extend(name.map(str::to_owned));
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
    Ok(Said { counts: trusted, how: status.to_string(), failed, wrong })
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
    Ok(Ended { counts, broken, repeated: Vec::new() })
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
        let said = run_program(&mut shell(&format!("echo '{line}'; exit 101")), true).expect("it runs");
        assert_eq!(said.counts, Some(Counts { passed: 1, failed: 2, skipped: 0 }));
    }

    /// A suite of one program, which fails in its first run, saying this, and passes in the next.
    fn twice(said: &str, name: &str) -> Ended {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = std::env::temp_dir().join(format!("probe502-xtask-{}-{name}", std::process::id())).join(LIVE);
        std::fs::create_dir_all(&directory).expect("a folder");
        let program = directory.join("suite");
        let tail = "0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let script = format!(
            "#!/bin/sh\nif [ -e again ]; then echo \"$@\" > arguments; echo 'test result: ok. 1 passed; 0 failed; {tail}'; exit 0; fi\n\
             touch again; echo 'test a::b ... FAILED'; echo '{said}'\n\
             echo 'test result: FAILED. 3 passed; 1 failed; {tail}'; exit 101\n"
        );
        std::fs::write(&program, script).expect("a script");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("its mode");
        let suite = Suite { name: "tests/x".to_owned(), directory: directory.clone(), programs: vec![program] };
        let ended = suite.run(Path::new("/bin/true"), None).expect("it runs");
        let arguments = std::fs::read_to_string(directory.join("arguments")).unwrap_or_default();
        assert_eq!(arguments.starts_with("--exact a::b "), !ended.repeated.is_empty(), "{arguments}");
        std::fs::remove_dir_all(directory.parent().expect("a folder")).expect("removed");
        ended
    }

    #[test]
    fn a_live_test_has_a_second_try_and_that_is_told() {
        let ended = twice("the line came late", "late");
        assert_eq!(ended.counts, Counts { passed: 4, failed: 0, skipped: 0 });
        assert_eq!(ended.repeated, ["a::b"]);
    }

    #[test]
    fn a_wrong_verdict_has_none() {
        let ended = twice("Error: WRONG VERDICT: upstream-refused", "wrong");
        assert_eq!(ended.counts, Counts { passed: 3, failed: 1, skipped: 0 });
        assert!(ended.repeated.is_empty());
    }

    #[test]
    fn a_program_that_dies_has_no_figures() {
        let said = run_program(&mut shell("kill -SEGV $$"), true).expect("it runs");
        assert_eq!(said.counts, None);
        assert!(said.how.contains("signal: 11"), "{}", said.how);
        let line = "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let said = run_program(&mut shell(&format!("echo '{line}'; exit 1")), true).expect("it runs");
        assert_eq!(said.counts, None, "ok, and then a failure");
    }
}
