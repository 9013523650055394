//! Bounds and waits, each with its reason.

/// How much the correlator may remember. The oldest is forgotten first; a failure that needed it is explained with what is left, and says
/// what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections.
    pub flows: usize,
    /// Events of one connection. The newest and the first few are kept: fates are decided at both ends.
    pub events_per_flow: usize,
    /// Requests with a failed attempt whose end is not seen yet.
    pub requests: usize,
    /// Notable events of processes.
    pub notable: usize,
    /// Failures remembered for blackouts.
    pub failures: usize,
    /// Failures of one second that are put together whatever they are like; of more, those that are like one of them are counted
    /// (`folding`).
    pub explained: u64,
}

impl Limits {
    /// For what must keep up with the host: a storm, where every request fails as fast as clients can ask, is explained as far as a
    /// reader could follow by any means, and counted beyond that.
    #[must_use]
    pub fn live() -> Self {
        Self { explained: EXPLAINED, ..Self::default() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: 131_072,
            events_per_flow: 64,
            requests: 16_384,
            notable: 4_096,
            failures: 8_192,
            explained: u64::MAX,
        }
    }
}

/// [`Limits::explained`] of a run that watches. At 0.1 ms a case on a slow processor it is a fifth of its time.
pub const EXPLAINED: u64 = 2_000;

/// A case closes this long after its decision. The RST of a lingering close, the exit of a crashed process, the answer of the host
/// look-up and the error-log line come after the 502; on a busy two-core host the slowest of them (the log line through inotify, the
/// capture's read timeout) was within 100 ms. The contract allows 1 s to the printed line.
pub const CLOSE_DELAY_NS: u64 = 200_000_000;

/// It waits so much longer when a process that held its connection was asked to end and has not ended: gunicorn's worker takes 20 to
/// 80 ms from the close in its handler to its exit, on an idle machine.
pub const END_DELAY_NS: u64 = 400_000_000;

/// Who listens, and who may accept, at an address is waited for so long since it was asked: every descriptor of the host is looked at,
/// which takes some 10 ms, and on a busy host several times that.
pub const LOOK_NS: u64 = 400_000_000;

/// A signal so long before the decision can be the reason of it that a handler carries out.
pub const ASKED_BEFORE_NS: u64 = 2_500_000_000;

/// A case that is known from the logs only waits longer: its final status stands in the access log, which nginx writes after the answer.
pub const LOG_CLOSE_DELAY_NS: u64 = 400_000_000;

/// A connection is remembered this long after its end, because a failure is decided and put together a little later: [`LOG_CLOSE_DELAY_NS`]
/// and the lag of the slowest source, several times over. At 10,000 connections a second every second more costs 30 MB.
pub const FLOW_LINGER_NS: u64 = 1_500_000_000;

/// Where beginnings and ends are not all heard (depth light), an event so long after the last one of the same addresses is another
/// connection's: a busy nginx comes back to a port after some 28,000 connections to the same upstream.
pub const QUIET_NS: u64 = 5_000_000_000;

/// One that ended well, where nginx's complaints are heard as they are made: nginx complains before it closes, so a case about it is open
/// by then, and is put together within [`CLOSE_DELAY_NS`].
pub const CLEAN_LINGER_NS: u64 = 300_000_000;

/// One that nginx complained of is remembered longer: retries on other peers may last for minutes before the request is answered.
pub const COMPLAINT_LINGER_NS: u64 = 300_000_000_000;

/// A request with a failed attempt waits this long for its end. nginx's own timers are 60 s by default and several attempts add up.
pub const REQUEST_PATIENCE_NS: u64 = 900_000_000_000;

/// Exits, signals and failed system calls are remembered this long; the longest delay between a cause and its 502 is a read timeout.
pub const NOTABLE_LINGER_NS: u64 = 120_000_000_000;

/// How long before the decision something that happened to a process can still be its reason: a process that died before the request
/// began explains a refused connection, and health checks and restarts are that far apart.
pub const NOTABLE_REACH_NS: u64 = 10_000_000_000;

/// Failures are remembered this long for blackouts; `fail_timeout` is 10 s by default, and 60 s is the most that is common.
pub const FAILURE_LINGER_NS: u64 = 120_000_000_000;

/// Error lines kept for requests that are still open: a storm writes one for each failure, and they wait for a second at most.
pub const WRITTEN_LINES: usize = 4_096;

/// Connections made for requests, kept until a failure may ask for them: at 10,000 a second, more than a second's.
pub const CONNECTIONS: usize = 16_384;

/// Calls of `connect()`, likewise: nginx makes the call right after it took the connection, and also for what is no request.
pub const CONNECTS: usize = 2 * CONNECTIONS;

/// nginx measures by the time at which a turn of its event loop began (`ngx_current_msec`); a turn of a loaded worker lasts some 10 ms.
pub const TURN_NS: u64 = 100_000_000;

/// The same question about the host is not asked again within this time.
pub const QUESTION_REST_NS: u64 = 500_000_000;

/// So many attempts of nginx's list are told, of a longer one half of them from its beginning and half from its end
/// (`probe_abi::nginx::ATTEMPTS`).
pub const ATTEMPTS_TOLD: usize = 8;

/// A list of attempts that says it is longer is none (the kernel's programs believe no more either).
pub const ATTEMPTS: u32 = 4_096;

/// Old things are forgotten at whole seconds, so that it does not matter how often time is told.
pub const SECOND_NS: u64 = 1_000_000_000;
/// A millisecond.
pub const MILLISECOND_NS: u64 = 1_000_000;

/// Connections, and addresses they were led to, of which a translation is remembered.
pub const TRANSLATIONS: usize = 1_024;
/// So many connections are asked about in a second: in a storm one is like the other.
pub const TRANSLATIONS_ASKED: u32 = 64;
