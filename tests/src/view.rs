//! Views as values: how much of a failure the probe is allowed to see.

use crate::expect::Expectation;

/// A way to start the probe, and what it changes about every expectation.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// The heading of its column in the table of the README.
    pub name: &'static str,
    /// Further arguments of `watch --json`.
    pub arguments: &'static [&'static str],
    /// What they change about an expectation.
    pub adapt: fn(Expectation) -> Expectation,
}

/// The probe with everything it can see.
pub const EVERYTHING: View = View { name: "everything", arguments: &[], adapt: |expected| expected };

/// Without packets.
pub const NO_PACKETS: View =
    View { name: "no packets", arguments: &["--no-packets"], adapt: Expectation::less_is_seen };

/// Without nginx's own functions.
pub const NO_UPROBES: View =
    View { name: "no uprobes", arguments: &["--no-uprobes"], adapt: Expectation::without_uprobes };

/// Without the kernel programs: logs and packets.
pub const NO_EBPF: View = View { name: "no eBPF", arguments: &["--no-ebpf"], adapt: Expectation::less_is_seen };

/// The logs alone.
pub const LOGS: View =
    View { name: "logs only", arguments: &["--no-ebpf", "--no-packets"], adapt: Expectation::less_is_seen };

/// nginx's side alone, as if upstreams ran on another host.
pub const ONLY_NGINX: View =
    View { name: "only nginx", arguments: &["--only-nginx"], adapt: Expectation::of_nginxs_side };

/// The failure path only.
pub const LIGHT: View = View { name: "light", arguments: &["--depth", "light"], adapt: Expectation::at_light };

/// The columns of the table.
pub const ALL: [View; 6] = [EVERYTHING, NO_PACKETS, NO_UPROBES, NO_EBPF, LOGS, ONLY_NGINX];
