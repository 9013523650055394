//! Verdicts and what they rest on, as text and files. Pure: bytes come out, and somebody else writes them.

pub mod pcapng;
