//! Bytes and text into values. Pure: no clock, no I/O, and nothing here panics. What cannot be read is an error or `None`,
//! and the caller counts it.

pub mod access_log;
pub mod config;
pub mod error_log;
pub mod kernel;
pub mod packet;
pub mod rules;
