//! Asking nginx itself, inside its own namespaces: `-V` and `-T`.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::{
    binary,
    confined::{self, Failure, Said},
    processes::Master,
};
use crate::live::namespaces;

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

/// What `nginx -V` prints: version and configure arguments. Read from the program; it is run only if that text is not in it.
pub(super) fn version(master: &Master) -> Result<String, CommandError> {
    match binary::build_of(master.pid) {
        Ok(Some(text)) => Ok(text),
        Ok(None) | Err(_) => run(master, "-V", &[]).map(|(_, stderr)| stderr),
    }
}

/// Where nginx is installed, for one that was started by its name alone.
const INSTALLED: [&str; 5] = ["/usr/sbin", "/usr/local/sbin", "/usr/local/nginx/sbin", "/usr/bin", "/usr/local/bin"];

/// The same for who may not look at the process, from the program that it was started as; and which that is. Only where its files are ours.
pub(super) fn version_on_disk(master: &Master) -> Option<(PathBuf, String)> {
    let named = PathBuf::from(master.command_line.split_whitespace().next()?);
    if !namespaces::shares_files(master.pid) {
        return None;
    }
    let places =
        if named.is_absolute() { vec![named] } else { INSTALLED.map(|place| Path::new(place).join(&named)).into() };
    places.into_iter().find_map(|place| Some((place.clone(), binary::build_at(&place).ok()??)))
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
    let link = PathBuf::from(format!("/proc/{}/exe", master.pid));
    let executable = std::fs::read_link(&link).map_err(|source| CommandError::Process { pid: master.pid, source })?;
    let program = executable.to_string_lossy().into_owned();
    let mut words = vec![OsStr::new("nginx"), OsStr::new(option)];
    words.extend(arguments.iter().map(OsStr::new));
    // The very program that runs, even if an upgrade has put another one in its place.
    match confined::run(master.pid, &link, &words) {
        Ok(Said { stdout, stderr, success: true }) => Ok((stdout, stderr)),
        Ok(Said { stderr, .. }) => {
            let said = stderr.lines().find(|line| line.contains("[emerg]")).or_else(|| stderr.lines().last());
            let said = said.unwrap_or("it said nothing").trim().to_owned();
            Err(CommandError::Refused { program, option, said })
        }
        Err(Failure::Slow) => Err(CommandError::Patience { program, option }),
        Err(Failure::Large) => {
            Err(CommandError::Refused { program, option, said: "it said more than can be read".to_owned() })
        }
        Err(Failure::Start(source)) => Err(CommandError::Run { program, source }),
    }
}
