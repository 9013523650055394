//! Old captures: from the bytes of a pcap or pcapng file to connections, their fates, HTTP exchanges, and what of them is worth thinking about.
//!
//! Two stages, so that each can have a core of its own. [`decode::Decoder`] cuts blocks of a file into [`segment::Segment`]s and touches
//! headers only. [`analysis::Analysis`] keeps a lean table of the connections that are open, reads HTTP where a message begins, and gives
//! out [`analysis::Finding`]s: every connection's end, and the packets of those attempts that failed. Only these go on into the pipeline.
//! Everything here is pure: bytes are an argument, as time is.

pub mod analysis;
mod connection;
pub mod decode;
mod failure;
pub mod fate;
pub mod file;
mod fragments;
pub mod frame;
mod http;
mod index;
mod open;
mod roles;
pub mod segment;
mod stream;
mod talk;
mod telling;
#[cfg(test)]
mod tests;
mod trace;
mod tried;

pub use connection::Ended;
pub use talk::Exchange;
pub use telling::place;
pub use trace::FileNumber;
