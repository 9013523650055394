//! What the troubles share: failures of three kinds, told apart by their paths, and what must be said of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use probe_tests::client::Connection;
use probe_tests::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use probe_tests::fault::Fault;
use probe_tests::line::{Line, Notice, Outcome};
use probe_tests::probe::{Ended, Probe};
use probe_tests::site::Site;
use probe_tests::trial::WITHIN;

/// Where nobody listens, on the app's address (`upstream-refused` of the lab).
const NOBODY: u16 = 9091;

/// How long a storm lasts: its whole length, or `PROBE502_STORM` seconds.
pub(crate) fn lasts(seconds: u64) -> Duration {
    let asked = std::env::var("PROBE502_STORM").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(asked.unwrap_or(seconds))
}

/// A way to fail.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    name: &'static str,
    cause: &'static [&'static str],
    outcome: &'static [Outcome],
    errno: &'static [Option<&'static str>],
    never: &'static [&'static str],
}

/// The ways to fail: before a connection, by a reset, by an end.
pub(crate) const KINDS: [Kind; 3] = [
    Kind {
        name: "upstream-refused",
        cause: &["upstream-refused"],
        outcome: &[Outcome::Refused],
        errno: &[Some("ECONNREFUSED")],
        never: &["firewall-rejected", "upstream-reset", "keepalive-race"],
    },
    Kind {
        name: "upstream-reset",
        cause: &["upstream-reset"],
        outcome: &[Outcome::Reset],
        errno: &[Some("ECONNRESET")],
        never: &["keepalive-race", "premature-close", "network-reset", "upstream-crashed", "upstream-exited"],
    },
    Kind {
        name: "premature-close",
        cause: &["premature-close"],
        outcome: &[Outcome::Closed],
        errno: &[None],
        never: &["upstream-reset", "keepalive-race", "upstream-crashed", "upstream-exited"],
    },
];

/// The faults of the lab that these are.
pub(crate) fn faults() -> Result<Vec<Fault>> {
    KINDS.iter().map(|kind| Fault::named(kind.name)).collect()
}

impl Kind {
    /// One failure on a fresh connection. A client whose connection nginx closes before it has read the request (it is reloading) asks
    /// again, as a browser does.
    pub(crate) fn provoke(&self, site: &Site<'_>, number: usize) -> Result<Witness> {
        self.provoke_at(site, site.address(), number)
    }

    /// The same at another nginx of the same site.
    pub(crate) fn provoke_at(&self, site: &Site<'_>, nginx: std::net::SocketAddr, number: usize) -> Result<Witness> {
        let uri = format!("/{}/{number}", self.name);
        let deadline = Instant::now() + Duration::from_secs(5);
        let exchange = loop {
            let answer = Connection::open(site.lab().client(), nginx).and_then(|mut client| client.get(&uri));
            match answer {
                Ok(exchange) if exchange.status.is_some() => break exchange,
                Ok(_) | Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                other => {
                    other.with_context(|| format!("no answer to {uri}"))?;
                }
            }
        };
        let upstream = if self.name == "upstream-refused" { site.app(NOBODY) } else { site.app_address() };
        let attempt = Attempt::fresh(upstream, self.outcome, self.errno);
        Witness::new(exchange, Expectation::incident(502, self.cause, vec![attempt]).never(self.never))
    }
}

/// Failures of every kind by turns, for so long.
pub(crate) fn fail_for(site: &Site<'_>, lasts: Duration, pause: Duration) -> Result<Vec<Witness>> {
    let began = Instant::now();
    let mut witnesses = Vec::new();
    while began.elapsed() < lasts {
        witnesses.push(KINDS[witnesses.len() % KINDS.len()].provoke(site, witnesses.len())?);
        std::thread::sleep(pause);
    }
    Ok(witnesses)
}

/// One of each kind, numbered from here, each explained in time and fully.
pub(crate) fn all_is_well(site: &Site<'_>, probe: &Probe, first: usize) -> Result<usize> {
    let mut count = 0;
    for (kind, number) in KINDS.iter().zip(first..) {
        probe.check_all(&[kind.provoke(site, number)?], WITHIN).context("after the trouble")?;
        count += 1;
    }
    Ok(count)
}

/// Less may be known of them, never something else: the verdict may step down, and whether a connection was kept may be unknown.
pub(crate) fn humbler(witnesses: &mut [Witness]) {
    for witness in witnesses {
        witness.expected = witness.expected.clone().at_light();
    }
}

/// The notices of a kind.
pub(crate) fn notices(ended: &Ended, what: &str) -> Vec<Notice> {
    let of_kind = |line: &Result<Line, String>| match line {
        Ok(Line::Notice(notice)) if notice.what == what => Some(notice.clone()),
        _ => None,
    };
    ended.lines.iter().filter_map(|arrived| of_kind(&arrived.line)).collect()
}

/// As many incidents as there were failures, no near miss, nothing lost.
pub(crate) fn check_summary(ended: &Ended, incidents: usize) -> Result<()> {
    let summary = ended.summary()?;
    ensure!(
        summary.incidents == incidents as u64 && summary.near_misses == 0,
        "{incidents} incidents, not {summary:?}"
    );
    ensure!(summary.events_lost == 0 && summary.packets_dropped == 0, "lost: {summary:?}");
    Ok(())
}
