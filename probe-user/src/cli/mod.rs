//! The command line: what was typed ([`args`]) and what was meant ([`plan`]).

pub mod args;
pub mod check;
pub mod plan;
#[cfg(feature = "live")]
pub mod record;
