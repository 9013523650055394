//! Plain values that everything else speaks in. Nothing here reads a clock, does I/O or knows another module.

pub mod attempt;
pub mod case;
pub mod complaint;
pub mod coverage;
pub mod event;
pub mod evidence;
pub mod flow;
pub mod host;
pub mod net;
pub mod nginx;
pub mod packet;
pub mod process;
pub mod socket;
pub mod time;
pub mod verdict;
pub mod wire;
