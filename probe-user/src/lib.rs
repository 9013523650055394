//! probe502: ties every nginx 502 to the packet, syscall or process exit behind it.

pub mod app;
pub mod bundle;
pub mod check;
pub mod cli;
pub mod correlate;
pub mod decode;
pub mod diagnose;
#[cfg(feature = "live")]
pub mod live;
pub mod merge;
pub mod model;
pub mod offline;
pub mod pipeline;
pub mod redact;
pub mod report;
