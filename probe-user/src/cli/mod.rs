//! The command line: what was typed ([`args`]) and what was meant ([`plan`]).

pub mod args;
pub mod plan;
pub mod report;
