//! Asking nginx itself, inside its own namespaces: `-V` and `-T`.

use std::{
    io::{self, Read},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use thiserror::Error;

use super::processes::Master;
use crate::live::namespaces::Namespaces;

/// nginx tests a large configuration in well under a second; names that do not resolve take longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// More than any configuration (ingress controllers write some megabytes).
const LONGEST: u64 = 32 << 20;

/// Why nginx could not be asked.
#[derive(Debug, Error)]
pub enum CommandError {
    /// It is gone, or not ours to look at.
    #[error("cannot look at nginx process {pid}: {source}")]
    Process {
        /// The master.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// It cannot be run.
    #[error("cannot run {program} in its namespaces: {source}")]
    Run {
        /// The program, as its own namespace calls it.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It does not end.
    #[error("{program} {option} did not end within 5 s")]
    Patience {
        /// The program.
        program: String,
        /// What it was asked.
        option: &'static str,
    },
    /// It refused.
    #[error("{program} {option} failed: {said}")]
    Refused {
        /// The program.
        program: String,
        /// What it was asked.
        option: &'static str,
        /// Its last line.
        said: String,
    },
}

/// What `nginx -V` prints: version and configure arguments.
pub(super) fn version(master: &Master) -> Result<String, CommandError> {
    run(master, "-V", &[]).map(|(_, stderr)| stderr)
}

/// What `nginx -T` prints: the configuration with everything included. nginx opens its logs for this as `nginx -t` does.
pub(super) fn dump(master: &Master) -> Result<String, CommandError> {
    let mut arguments = Vec::new();
    for option in ["-c", "-p", "-e"] {
        if let Some(value) = master.argument(option) {
            arguments.extend([option.to_owned(), value.to_owned()]);
        }
    }
    if let Some(directives) = master.directives() {
        arguments.extend(["-g".to_owned(), directives]);
    }
    run(master, "-T", &arguments).map(|(stdout, _)| stdout)
}

fn run(master: &Master, option: &'static str, arguments: &[String]) -> Result<(String, String), CommandError> {
    let process = |source| CommandError::Process { pid: master.pid, source };
    let executable = std::fs::read_link(format!("/proc/{}/exe", master.pid)).map_err(process)?;
    let directory = std::fs::read_link(format!("/proc/{}/cwd", master.pid)).map_err(process)?;
    let namespaces = Namespaces::of(master.pid).map_err(process)?;
    // After a package upgrade the running program is deleted; the one now at its path is asked.
    let program = executable.to_string_lossy().trim_end_matches(" (deleted)").to_owned();
    let mut command = Command::new(&program);
    command.arg(option).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    // SAFETY: between fork and exec only setns and chdir are called, which neither allocate nor lock.
    unsafe {
        command.pre_exec(move || {
            namespaces.enter()?;
            // A directory that is gone is no reason not to ask; relative paths are rare.
            let _ = nix::unistd::chdir(&directory);
            Ok(())
        });
    }
    let mut child = command.spawn().map_err(|source| CommandError::Run { program: program.clone(), source })?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait(&mut child).map_err(|source| CommandError::Run { program: program.clone(), source })?;
    let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
    match status {
        None => Err(CommandError::Patience { program, option }),
        Some(true) => Ok((stdout, stderr)),
        Some(false) => {
            let said = stderr.lines().rfind(|line| line.contains('[')).or_else(|| stderr.lines().last());
            Err(CommandError::Refused { said: said.unwrap_or("it said nothing").trim().to_owned(), program, option })
        }
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            // A pipe that breaks off still gives what came before.
            let _ = pipe.take(LONGEST).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Whether it ended well; `None`: it did not end in time and was killed.
fn wait(child: &mut Child) -> io::Result<Option<bool>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(2));
    }
}
