//! What may be said of each cause when only nginx's side is seen: the upstream's kernel and processes are another host's.
//!
//! The verdict may step down, never sideways: the same cause as surely as nginx's side proves it, a cause that says less of the same
//! thing, or `unknown`.

use crate::line::Confidence::{self, Confirmed, Likely};

/// What may be said instead of a cause.
#[derive(Debug, Clone, Copy)]
pub struct Generalisation {
    /// The cause that is true.
    pub cause: &'static str,
    /// The most that may be said of it itself: `Confirmed` where packets, nginx's own kernel or nginx itself can prove it.
    pub itself: Confidence,
    /// Causes that say less of the same thing, each with the most that may be said of it.
    pub less: &'static [(&'static str, Confidence)],
}

/// A row of the table.
const fn row(cause: &'static str, itself: Confidence, less: &'static [(&'static str, Confidence)]) -> Generalisation {
    Generalisation { cause, itself, less }
}

/// How a connection ends when its process is gone; the reset or the FIN is what nginx's side sees of it. A process that closes with the
/// connection idle and the next request on its way ends in a race; that it was the reason is not to be seen.
const GONE: &[(&str, Confidence)] =
    &[("upstream-reset", Confirmed), ("premature-close", Confirmed), ("keepalive-race", Likely)];

/// The table: every cause of the catalogue.
pub const TABLE: &[Generalisation] = &[
    // The RST that answers a SYN may be a packet filter's.
    row("upstream-refused", Likely, &[]),
    // An ICMP message says so itself. A RST looks like nobody listening: no smaller word, but the likelier one, and the rival is named.
    row("firewall-rejected", Confirmed, &[("upstream-refused", Likely), ("host-unreachable", Likely)]),
    row("host-unreachable", Confirmed, &[]),
    row("no-route", Confirmed, &[]),
    row("syn-timeout", Confirmed, &[]),
    // A drop on nginx's own side is still seen.
    row("firewall-dropped", Confirmed, &[("syn-timeout", Confirmed)]),
    // The SYN is not answered; or the handshake's last packet is thrown away, and the request is sent again and again; or, with
    // tcp_abort_on_overflow, a reset comes.
    row(
        "accept-queue-overflow",
        Likely,
        &[
            ("syn-timeout", Confirmed),
            ("path-stall", Likely),
            ("read-timeout", Likely),
            ("send-timeout", Likely),
            ("upstream-reset", Confirmed),
        ],
    ),
    row("ephemeral-ports-exhausted", Confirmed, &[]),
    row("bind-failed", Confirmed, &[]),
    row("fd-exhausted-nginx", Confirmed, &[]),
    row("fd-exhausted-system", Confirmed, &[]),
    row(
        "fd-exhausted-upstream",
        Likely,
        &[("upstream-reset", Confirmed), ("premature-close", Confirmed), ("read-timeout", Confirmed)],
    ),
    row("worker-connections-exhausted", Confirmed, &[]),
    row("connect-denied", Confirmed, &[]),
    row("unix-socket-missing", Confirmed, &[]),
    row("unix-socket-refused", Confirmed, &[]),
    row("unix-socket-denied", Confirmed, &[]),
    row("unix-backlog-full", Confirmed, &[]),
    row("dns-failure", Confirmed, &[]),
    row("no-live-upstreams", Confirmed, &[]),
    row("keepalive-race", Confirmed, &[("upstream-reset", Confirmed), ("premature-close", Confirmed)]),
    row("upstream-reset", Confirmed, &[]),
    row("premature-close", Confirmed, &[]),
    row("upstream-crashed", Likely, GONE),
    row("upstream-killed", Likely, GONE),
    row("upstream-oom-killed", Likely, GONE),
    row("upstream-exited", Likely, GONE),
    row("early-response-lost", Confirmed, &[("upstream-reset", Confirmed)]),
    // Its TTL may tell; else it looks like the upstream's own.
    row("network-reset", Confirmed, &[("upstream-reset", Likely)]),
    row("read-timeout", Confirmed, &[]),
    row("send-timeout", Confirmed, &[]),
    // An answer to the SYN that is lost is none that arrived.
    row("path-stall", Confirmed, &[("read-timeout", Likely), ("send-timeout", Likely), ("syn-timeout", Confirmed)]),
    row("response-truncated", Confirmed, &[]),
    row("invalid-response", Confirmed, &[]),
    row("header-too-big", Confirmed, &[]),
    row("tls-handshake-failed", Confirmed, &[]),
    row("tls-certificate-invalid", Confirmed, &[]),
    row("fastcgi-error", Confirmed, &[]),
    row("grpc-error", Confirmed, &[]),
    row("upstream-sent-502", Confirmed, &[]),
    row("cached-502", Confirmed, &[]),
    row("configured-502", Confirmed, &[]),
    row("unknown", Confirmed, &[]),
];

/// What may be said where one of these causes is true, each with the most that may be said of it.
#[must_use]
pub fn permitted(truth: &[&'static str]) -> Vec<(&'static str, Confidence)> {
    let rows = TABLE.iter().filter(|row| truth.contains(&row.cause));
    let said = rows.flat_map(|row| std::iter::once((row.cause, row.itself)).chain(row.less.iter().copied()));
    said.chain([("unknown", Confirmed)]).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use probe502::diagnose;

    use super::{TABLE, permitted};
    use crate::line::Confidence::{Confirmed, Likely};

    #[test]
    fn every_cause_of_the_catalogue_has_its_row_and_no_other_is_named() {
        let rows: Vec<&str> = TABLE.iter().map(|row| row.cause).collect();
        let unique: BTreeSet<&str> = rows.iter().copied().collect();
        assert_eq!(unique.len(), rows.len());
        let missing: Vec<_> =
            diagnose::catalogue().iter().map(|cause| cause.id).filter(|id| !unique.contains(id)).collect();
        assert!(missing.is_empty(), "{missing:?}");
        let strange: Vec<_> =
            TABLE.iter().flat_map(|row| row.less).filter(|(cause, _)| !unique.contains(cause)).collect();
        assert!(strange.is_empty(), "{strange:?}");
    }

    #[test]
    fn a_crash_is_seen_as_its_reset() {
        let permitted = permitted(&["upstream-crashed"]);
        assert!(permitted.contains(&("upstream-crashed", Likely)));
        assert!(permitted.contains(&("upstream-reset", Confirmed)));
        assert!(!permitted.iter().any(|(cause, _)| *cause == "upstream-killed"));
    }
}
