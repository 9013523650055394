//! `probe502 check`: what was typed, and what was meant.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use thiserror::Error;

use super::{
    args,
    plan::{self, Output},
};

/// `probe502 check`, as typed.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 no fault found, 1 a fault was found, 2 bad usage or unreadable input, 3 this host does not allow it."
)]
pub struct Typed {
    /// Check this nginx, master or worker (repeatable; default: every nginx on the host)
    #[arg(short, long = "pid", value_name = "PID")]
    pub pids: Vec<u32>,
    /// Check this configuration file, from here, instead of a running nginx
    #[arg(long, value_name = "FILE", conflicts_with = "pids")]
    pub conf: Option<PathBuf>,
    /// What to ask the upstreams for
    #[arg(long, value_name = "PATH", default_value = "/")]
    pub probe_path: String,
    /// How far back the logs are read (30m, 1h, 1d)
    #[arg(long, value_name = "DUR", default_value = "1h")]
    pub since: String,
    /// Ask with HEAD instead of GET
    #[arg(long)]
    pub head: bool,
    /// Measure after how long upstreams close idle connections; takes a little longer than nginx keeps them
    #[arg(long)]
    pub measure_idle: bool,
    /// Send no request: connections and TLS handshakes only
    #[arg(long, conflicts_with_all = ["probe_path", "head", "measure_idle"])]
    pub no_request: bool,
    /// How it is printed.
    #[command(flatten)]
    pub output: args::Output,
}

/// Why a command line makes no sense.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CheckPlanError {
    /// A path that would not be one.
    #[error("--probe-path {0:?}: not a path; write it like /health")]
    ProbePath(String),
    /// A time that cannot be read.
    #[error("--since {0}: not a duration; write it like 30m, 1h or 1d")]
    Since(String),
}

/// `probe502 check`, as meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// nginx processes to check; empty: every nginx.
    pub pids: Vec<u32>,
    /// A configuration file instead of a running nginx.
    pub conf: Option<PathBuf>,
    /// What upstreams are asked for.
    pub probe_path: String,
    /// Measure how long upstreams keep idle connections.
    pub measure_idle: bool,
    /// How far back the logs are read.
    pub since: Duration,
    /// Ask with `HEAD`.
    pub head: bool,
    /// Send requests at all.
    pub request: bool,
    /// How it is printed.
    pub output: Output,
}

impl TryFrom<Typed> for Check {
    type Error = CheckPlanError;

    fn try_from(typed: Typed) -> Result<Self, CheckPlanError> {
        let is_path = typed.probe_path.starts_with('/') && typed.probe_path.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_path {
            return Err(CheckPlanError::ProbePath(typed.probe_path));
        }
        Ok(Self {
            pids: typed.pids,
            conf: typed.conf,
            probe_path: typed.probe_path,
            measure_idle: typed.measure_idle,
            since: plan::duration(&typed.since).map_err(|_| CheckPlanError::Since(typed.since))?,
            head: typed.head,
            request: !typed.no_request,
            output: Output::from(&typed.output),
        })
    }
}
