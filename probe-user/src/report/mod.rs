//! Verdicts and what they rest on, as text and files. Pure: bytes come out, and somebody else writes them.

mod wording;
pub mod explain;
pub mod json;
pub mod pcapng;
pub mod redact;
pub mod text;
pub mod timeline;
