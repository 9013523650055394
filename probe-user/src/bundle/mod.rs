//! The recording (`.p502`): raw inputs around every incident, so that the same program, or a better one, can judge them again.
//!
//! A bundle is a header and sections, each by itself compressed and checksummed; it can be cut off anywhere and opens up to the last
//! whole section:
//!
//! ```text
//! header     magic, format, the first version of probe502 that can read it, checksum
//! Manifest   who recorded, on what kernel, what was watched, what was redacted; the kernel's names for its numbers
//! Opening    a window begins: where the run stood (cases so far, known upstreams, earlier failures), what the limits evicted
//! Events     raw kernel records, log lines, facts about the host, in the order they were thought about; packets by reference
//! Packets    the packets of the Events section that follows, as pcapng
//! Opening …  the next window that does not overlap
//! ```
//!
//! Any of them may stand in pieces, where it is long (see [`section`]).
//!
//! The first Events section of a window holds what matters from before it: the openings of connections that are still on, what nginx
//! said of requests that are not over, how each sensor sees.
//!
//! # Formats
//!
//! | format | since | change |
//! | --- | --- | --- |
//! | 1 | 0.1.0 | the first |

pub mod entry;
pub mod manifest;
pub mod packets;
pub mod reader;
pub mod section;
pub mod tape;

use thiserror::Error;

/// The format this program writes.
pub const FORMAT: u16 = 1;
/// The first version of probe502 that can read [`FORMAT`].
pub const READABLE_SINCE: &str = "0.1.0";
/// What a bundle begins with. The first byte is no text, the line ends show a transfer that changed them.
pub const MAGIC: [u8; 8] = *b"\x89P502\r\n\x1a";

/// Why a bundle cannot be read at all. Damage further on is a gap, not an error.
#[derive(Debug, Error)]
pub enum BundleError {
    /// It is something else.
    #[error("it is no probe502 recording: it does not begin like one")]
    NotABundle,
    /// It ends within its header.
    #[error("it is a probe502 recording that was cut off within its first bytes: nothing can be read of it")]
    Cut,
    /// Its header or manifest is damaged.
    #[error("it is a probe502 recording whose {0} is damaged; what it holds cannot be understood without")]
    Damaged(&'static str),
    /// A newer program wrote it.
    #[error(
        "it was written in format {format} and needs probe502 {needs} or newer; this is {}, which reads up to format {FORMAT}",
        env!("CARGO_PKG_VERSION")
    )]
    Newer {
        /// Its format.
        format: u16,
        /// The first version that can read it, as it says itself.
        needs: String,
    },
    /// The file could not be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] std::io::Error),
}
