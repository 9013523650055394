//! Runs a tool and measures it.

use std::{
    ffi::OsString,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

use crate::setup::Suricata;

/// A tool that reads captures.
pub(crate) struct Tool {
    /// Its name.
    pub(crate) name: &'static str,
    program: PathBuf,
    arguments: Vec<OsString>,
}

/// What a run took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// From start to end, best of the runs.
    pub(crate) seconds: f64,
    /// The most memory of any run.
    pub(crate) peak_bytes: u64,
}

/// Stands for the capture among the arguments.
const CAPTURE: &str = "{capture}";
/// Stands for a folder to leave things in.
const FOLDER: &str = "{folder}";

impl Tool {
    /// Ours first: the others are compared with it.
    pub(crate) fn all(ours: &Path, suricata: Option<Suricata>) -> Vec<Self> {
        let own = |program: PathBuf, before: Vec<OsString>, name, arguments: &[&str]| Self {
            name,
            program,
            arguments: before.into_iter().chain(arguments.iter().map(OsString::from)).collect(),
        };
        let tool = |name, arguments: &[&str]| own(PathBuf::from(name), Vec::new(), name, arguments);
        let suricata =
            suricata.unwrap_or_else(|| Suricata { program: PathBuf::from("suricata"), arguments: Vec::new() });
        vec![
            own(ours.to_owned(), Vec::new(), "probe502", &["analyze", "--json", "-q", CAPTURE]),
            // What an engineer types today.
            tool(
                "tshark",
                &[
                    "-n",
                    "-r",
                    CAPTURE,
                    "-Y",
                    "http.response.code>=500 || tcp.flags.reset==1",
                    "-T",
                    "fields",
                    "-e",
                    "frame.number",
                    "-e",
                    "http.response.code",
                ],
            ),
            // Flows and every exchange, without rules.
            own(
                suricata.program,
                suricata.arguments,
                "suricata",
                &[
                    "-r",
                    CAPTURE,
                    "-l",
                    FOLDER,
                    "-S",
                    "/dev/null",
                    "--runmode",
                    "single",
                    "-k",
                    "none",
                    "--set",
                    "stream.reassembly.depth=0",
                ],
            ),
            tool("tcptrace", &["-n", CAPTURE]),
            tool("tcpdump", &["-n", "-r", CAPTURE, "-w", "/dev/null", "tcp[tcpflags] & tcp-rst != 0"]),
            tool("cat", &[CAPTURE]),
        ]
    }

    /// Runs it on a capture; `None`: it is not installed.
    pub(crate) fn measure(&self, capture: &Path, folder: &Path, runs: u32) -> Result<Option<Measured>> {
        if Command::new(&self.program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            return Ok(None);
        }
        let mut best: Option<Measured> = None;
        for _ in 0..runs.max(1) {
            let run = self.once(capture, folder)?;
            best = Some(best.map_or(run, |best| Measured {
                seconds: best.seconds.min(run.seconds),
                peak_bytes: best.peak_bytes.max(run.peak_bytes),
            }));
        }
        Ok(best)
    }

    fn once(&self, capture: &Path, folder: &Path) -> Result<Measured> {
        let arguments = self.arguments.iter().map(|argument| match argument.to_str() {
            Some(CAPTURE) => capture.as_os_str(),
            Some(FOLDER) => folder.as_os_str(),
            _ => argument,
        });
        // GNU time tells the peak of what it ran; its own file keeps it apart from what the tool says.
        let report = folder.join("time");
        let started = Instant::now();
        let status = Command::new("/usr/bin/time")
            .args(["-f", "%M", "-o"])
            .arg(&report)
            .arg(&self.program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(File::create("/dev/null")?)
            .stderr(Stdio::null())
            .status()
            .context("cannot run /usr/bin/time; apt-get install time")?;
        let seconds = started.elapsed().as_secs_f64();
        ensure!(status.success(), "{} fails on {}: {status}", self.name, capture.display());
        let text = std::fs::read_to_string(&report)?;
        let kibibytes: u64 = text.lines().last().unwrap_or_default().trim().parse().unwrap_or(0);
        Ok(Measured { seconds, peak_bytes: kibibytes * 1_024 })
    }
}

/// How many incidents our program tells.
pub(crate) fn incidents(program: &Path, capture: &Path) -> Result<u64> {
    let output = Command::new(program).args(["analyze", "--json", "-q"]).arg(capture).output()?;
    let text = String::from_utf8(output.stdout)?;
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap_or_default())?;
    last["incidents"].as_u64().context("no summary at the end")
}

/// In millions of bytes.
#[expect(clippy::cast_precision_loss, reason = "captures are far smaller than 2^52 bytes")]
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
