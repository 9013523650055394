//! One file per command.

pub mod analyze;
#[cfg(feature = "live")]
pub mod check;
#[cfg(feature = "live")]
pub mod doctor;
pub mod explain;
pub mod folder;
pub mod output;
#[cfg(feature = "live")]
mod recording;
pub mod replay;
pub mod report;
#[cfg(feature = "live")]
mod self_stats;
#[cfg(feature = "live")]
mod session;
#[cfg(feature = "live")]
pub mod watch;

use std::process::ExitCode;

/// How a command that could not do its work ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Bad usage or unreadable input.
    Usage,
    /// This host does not allow it.
    Host,
    /// A fault of the program itself.
    Fault,
}

impl From<Failure> for ExitCode {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Usage => Self::from(2),
            Failure::Host => Self::from(3),
            // As Rust's own word for it is.
            Failure::Fault => Self::from(101),
        }
    }
}

/// A failure with the line that the user reads.
#[derive(Debug)]
pub struct AppError {
    /// How the program ends.
    pub failure: Failure,
    /// What was attempted, on what, why it failed, and what to do.
    pub error: anyhow::Error,
}

impl AppError {
    /// This host does not allow it.
    pub fn host(error: impl Into<anyhow::Error>) -> Self {
        Self { failure: Failure::Host, error: error.into() }
    }

    /// The program itself is at fault.
    pub fn fault(error: impl Into<anyhow::Error>) -> Self {
        Self { failure: Failure::Fault, error: error.into() }
    }

    /// Bad usage or unreadable input.
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self { failure: Failure::Usage, error: error.into() }
    }
}
