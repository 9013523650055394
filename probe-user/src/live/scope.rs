//! What is to be watched, and how deep.

/// How deep to look. Each contains the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// The failure path only.
    Light,
    /// Also per connection and per response.
    Standard,
    /// Also every packet's header.
    Deep,
}

/// What is to be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line, independent of the others")]
pub struct Scope {
    /// nginx processes, masters or workers; empty: every nginx.
    pub pids: Vec<u32>,
    /// Interfaces to capture on; empty: chosen from the upstream addresses.
    pub interfaces: Vec<String>,
    /// How deep to look, at the moment.
    pub depth: Depth,
    /// The depth changes while it runs.
    pub depth_auto: bool,
    /// Use nginx's own functions.
    pub uprobes: bool,
    /// Capture packets.
    pub packets: bool,
    /// They are left in files: people want to see both directions there.
    pub keeps_packets: bool,
    /// Nothing of the upstreams' side, as if they ran on another host.
    pub only_nginx: bool,
    /// Go on looking at the host: an nginx that starts later, a reload, who serves.
    pub follows: bool,
}
