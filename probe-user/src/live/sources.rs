//! What the sources deliver: records of the ring, packets, log lines; and how well each sensor sees.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use probe_abi::{Header, Kind};
use tokio::sync::Notify;
use zerocopy::FromBytes as _;

use super::{
    capture, clock,
    ebpf::{Attachment, Ring, State},
    nginx::Found,
    scope::{Depth, Scope},
    tail::{self, Place, Tail},
    thinker::{Delivery, Intake, Records},
};
use crate::{
    bundle::tape::Raw,
    decode::{
        access_log::{self, Pattern},
        error_log,
        kernel::{self, Decoded, Names},
    },
    model::{
        coverage::{Sensor, Sight},
        event::{Body, Source},
        process::{ProcessEvent, Role},
        time::{At, Moment},
    },
    pipeline::Arrival,
    redact::Level,
};

/// Records read before they are delivered together.
const BATCH: usize = 256;

/// Records of several processors stand in the ring in the order of their beginnings, and each has its time from a little later.
const DISORDER_NS: u64 = 5_000_000;

/// How long the ring's reader sleeps at most: the kernel side wakes it only when much waits.
const RING_NAP: Duration = Duration::from_millis(15);

/// Counters of the sources, for the notices and the summary.
#[derive(Debug, Default)]
pub struct Counts {
    /// Records read from the ring.
    pub records: AtomicU64,
    /// Records that could not be read.
    pub unreadable: AtomicU64,
    /// Records that the thinking thread had no room for.
    pub crowded_out: AtomicU64,
    /// Log lines that are not in the form expected.
    pub strange_lines: AtomicU64,
}

/// The thread that reads the ring.
#[derive(Debug)]
pub struct RingReader {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl RingReader {
    /// Starts it. `processes` is told when something happened that may concern the set of nginx.
    pub fn start(
        ring: Ring,
        names: Names,
        intake: Intake,
        counts: Arc<Counts>,
        processes: Arc<Notify>,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let names = Arc::new(names);
        let thread = thread::Builder::new()
            .name("ring".into())
            .spawn(move || read_ring(ring, &names, &intake, &counts, &processes, &told))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Reads what is left and ends.
    pub fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the runtime; there is nothing to add.
            let _ = thread.join();
        }
    }
}

fn read_ring(
    mut ring: Ring,
    names: &Arc<Names>,
    intake: &Intake,
    counts: &Counts,
    processes: &Notify,
    stop: &AtomicBool,
) {
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        let begun = clock::now();
        let mut batch = Records::new(Arc::clone(names));
        let mut last = None;
        while batch.len() < BATCH {
            let more = ring.next(|record| {
                if concerns_nginx(record, names) {
                    processes.notify_one();
                }
                last = Header::ref_from_prefix(record).ok().map(|(header, _)| Moment(header.time_ns)).or(last);
                batch.push(record, intake.redactor());
            });
            if more.is_none() {
                break;
            }
        }
        let read = batch.len();
        counts.records.fetch_add(u64::try_from(read).unwrap_or(0), Ordering::Relaxed);
        if read > 0 && !intake.try_deliver(Delivery::Records(batch)) {
            counts.crowded_out.fetch_add(u64::try_from(read).unwrap_or(0), Ordering::Relaxed);
        }
        if read == BATCH {
            if let Some(last) = last {
                intake.heard().ring(last.minus_ns(DISORDER_NS).min(begun));
            }
            continue;
        }
        intake.heard().ring(begun);
        if stopping {
            return;
        }
        if let Err(error) = ring.wait(RING_NAP) {
            tracing::warn!("waiting for kernel records: {error}");
            thread::sleep(RING_NAP);
        }
    }
}

/// A new program called nginx, or a master's new child or lost child.
fn concerns_nginx(record: &[u8], names: &Names) -> bool {
    let rare = [Kind::Fork, Kind::Exec, Kind::Exit].map(|kind| kind as u16);
    if !Header::ref_from_prefix(record).is_ok_and(|(header, _)| rare.contains(&header.kind)) {
        return false;
    }
    let Ok(Decoded { body: Body::Process(event), .. }) = kernel::decode(record, names) else { return false };
    match event {
        ProcessEvent::Executed { role, .. } => role != Role::Upstream,
        ProcessEvent::Forked { role, .. } | ProcessEvent::Exited { role, .. } => {
            matches!(role, Role::NginxMaster | Role::NginxWorker)
        }
        ProcessEvent::Held { .. } | ProcessEvent::Signalled { .. } | ProcessEvent::OomVictim { .. } => false,
    }
}

/// Takes packets of a capture in this network namespace.
pub(super) fn packet_sink(intake: Intake, netns: Option<u32>) -> capture::Sink {
    Box::new(move |mut batch| {
        batch.netns = netns;
        let link = batch.link;
        batch.each_mut(|bytes| intake.redactor().packet(link, bytes));
        intake.try_deliver(Delivery::Packets(batch))
    })
}

/// Logs that are followed. They end when dropped.
#[derive(Debug, Default)]
pub struct Tails {
    tails: Vec<Tail>,
    /// Logs that cannot be followed, and why.
    pub problems: Vec<String>,
}

impl Tails {
    /// The logs followed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tails.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tails.is_empty()
    }
}

/// Follows an nginx's logs. The access log only if `access`: it has a line for every request, and is needed only where nginx's functions
/// cannot tell the final status.
pub(super) fn follow_logs(found: &Found, access: bool, intake: &Intake, counts: &Arc<Counts>) -> Tails {
    let mut tails = Tails::default();
    for (place, _) in &found.error_logs {
        let (intake, counts) = (intake.clone(), Arc::clone(counts));
        let sink: tail::Sink = Box::new(move |mut line| {
            intake.redactor().error_line(&mut line.bytes);
            let Ok(decoded) = error_log::decode(&line.bytes) else {
                counts.strange_lines.fetch_add(1, Ordering::Relaxed);
                return true;
            };
            let at = line_time(local_unix_ns(decoded.local), 1_000_000_000, line.arrived);
            let arrival = Arrival { at, source: Source::ErrorLog, body: Body::ErrorLine(decoded.line) };
            intake.try_deliver(Delivery::Line(Box::new((arrival, Raw::ErrorLine(line.bytes)))))
        });
        tails.start(place.clone(), sink);
    }
    for (place, format) in found.access_logs.iter().filter(|_| access) {
        let format: Arc<str> = Arc::from(format.as_deref().unwrap_or(access_log::COMBINED));
        let pattern = Pattern::compile(&format);
        let (intake, counts) = (intake.clone(), Arc::clone(counts));
        let sink: tail::Sink = Box::new(move |mut line| {
            if intake.redactor().level() > Level::None {
                let text = plain(&mut line.bytes);
                let places = pattern.places(&text);
                intake.redactor().access_line(&mut line.bytes, &places);
            }
            let Ok(decoded) = access_log::decode(&pattern, &line.bytes) else {
                counts.strange_lines.fetch_add(1, Ordering::Relaxed);
                return true;
            };
            let (unix, resolution) = decoded.time.map_or((None, 0), |time| (Some(time.unix_ns), time.resolution_ns));
            let at = line_time(unix, resolution, line.arrived);
            let arrival = Arrival { at, source: Source::AccessLog, body: Body::AccessLine(decoded.line) };
            intake.try_deliver(Delivery::Line(Box::new((arrival, Raw::AccessLine(Arc::clone(&format), line.bytes)))))
        });
        tails.start(place.clone(), sink);
    }
    tails
}

impl Tails {
    fn start(&mut self, place: Place, sink: tail::Sink) {
        match Tail::start(place, sink) {
            Ok(tail) => self.tails.push(tail),
            Err(error) => self.problems.push(error.to_string()),
        }
    }
}

/// The line as text, byte by byte: what is no UTF-8 becomes a question mark, which is as long.
fn plain(line: &mut [u8]) -> String {
    while let Err(error) = std::str::from_utf8(line) {
        let from = error.valid_up_to();
        let length = error.error_len().unwrap_or(line.len() - from);
        if let Some(bytes) = line.get_mut(from..from + length) {
            bytes.fill(b'?');
        }
    }
    String::from_utf8_lossy(line).into_owned()
}

/// A log's local time, without a zone, in this host's zone.
fn local_unix_ns(local: jiff::civil::DateTime) -> Option<i128> {
    local.to_zoned(jiff::tz::TimeZone::system()).ok().map(|zoned| zoned.timestamp().as_nanosecond())
}

/// When a line was written: within what it says, and before it was read. A clock that disagrees (another zone in a container) leaves only
/// the reading: lines are read within a tenth of a second, or the log grows faster than it can be read.
fn line_time(unix_ns: Option<i128>, resolution_ns: u64, arrived: Moment) -> At {
    const READ_WITHIN_NS: u64 = 100_000_000;
    let by_reading = At::between(arrived.minus_ns(READ_WITHIN_NS), arrived);
    let Some(unix_ns) = unix_ns else { return by_reading };
    // nginx keeps its own clock, which may lag its event loop; a second back is room enough.
    let start = clock::wall().moment(unix_ns);
    let stated = At::between(start, start.plus_ns(resolution_ns.max(1) - 1));
    if stated.overlaps(&by_reading) {
        At::between(stated.earliest.max(by_reading.earliest), arrived)
    } else if stated.before(&by_reading) && by_reading.earliest.since_ns(stated.latest) < 2_000_000_000 {
        At::between(stated.earliest, arrived)
    } else {
        by_reading
    }
}

/// How each sensor sees, from what could be attached, opened and followed.
pub(super) fn sensors<'a>(
    kernel: Option<&[Attachment]>,
    kernel_problem: Option<&str>,
    btf_problem: Option<&str>,
    nginx: impl Iterator<Item = (&'a [Attachment], &'a Found, &'a Tails)>,
    capturing: bool,
    capture_problem: Option<&str>,
    scope: &Scope,
) -> Vec<(Sensor, Sight, Option<String>)> {
    let nginx: Vec<_> = nginx.collect();
    let mut list = Vec::new();
    let hooks: &[(Sensor, &[&str])] = &[
        (Sensor::SocketStates, &["inet_sock_set_state"]),
        (Sensor::ResetsSent, &["tcp_send_reset"]),
        (Sensor::ResetsReceived, &["tcp_receive_reset"]),
        (Sensor::Retransmits, &["tcp_retransmit_skb"]),
        (Sensor::SocketErrors, &["inet_sk_error_report"]),
        (Sensor::Drops, &["kfree_skb"]),
        (Sensor::Syscalls, &["sys_exit_connect", "sys_exit_accept", "sys_exit_accept4", "sys_exit_socket"]),
        (Sensor::Processes, &["sched_process_fork", "sched_process_exec", "sched_process_exit"]),
        (Sensor::Signals, &["signal_generate"]),
        (Sensor::OomKills, &["mark_victim"]),
    ];
    for (sensor, names) in hooks {
        let (sight, why) = match kernel {
            None => (Sight::Off, kernel_problem.map(str::to_owned)),
            Some(_) if *sensor == Sensor::Syscalls && scope.depth == Depth::Light => {
                (Sight::Off, Some("not part of depth light".to_owned()))
            }
            Some(attached) => match without_btf(of_hooks(attached, names), btf_problem, attached, names) {
                (Sight::On, _) if *sensor == Sensor::SocketStates && scope.depth == Depth::Light => {
                    (Sight::Degraded, Some("not part of depth light: connections that begin and end well".to_owned()))
                }
                seen => seen,
            },
        };
        list.push((*sensor, sight, why));
    }
    let functions = |names: &[&str]| {
        let each: Vec<(Sight, Option<String>)> = nginx.iter().map(|(attached, ..)| of_hooks(attached, names)).collect();
        worst(&each)
    };
    let (sight, why) = functions(&["ngx_log_error_core", "ngx_http_special_response_handler"]);
    list.push((Sensor::NginxFunctions, sight, why));
    let (sight, why) = functions(&["ngx_http_send_header"]);
    list.push((Sensor::NginxStatuses, sight, why));
    list.push(match (capturing, capture_problem) {
        (true, None) if scope.depth == Depth::Light => {
            (Sensor::Packets, Sight::Degraded, Some("not part of depth light: SYN and FIN".to_owned()))
        }
        (true, None) => (Sensor::Packets, Sight::On, None),
        (true, Some(why)) => (Sensor::Packets, Sight::Degraded, Some(why.to_owned())),
        (false, why) => (Sensor::Packets, Sight::Off, why.map(str::to_owned)),
    });
    list.push(logs(
        Sensor::ErrorLog,
        nginx.iter().map(|(_, found, tails)| {
            let problems = found.unreadable_logs.iter().chain(&tails.problems).cloned().collect::<Vec<_>>();
            (found.error_logs.len(), problems)
        }),
    ));
    let wanted = follows_access_log(scope, sight);
    list.push(if wanted {
        logs(Sensor::AccessLog, nginx.iter().map(|(_, found, _)| (found.access_logs.len(), Vec::new())))
    } else {
        (Sensor::AccessLog, Sight::Off, Some("not read: nginx itself tells every final status".to_owned()))
    });
    let unread: Vec<&str> = nginx
        .iter()
        .filter(|(_, found, _)| found.instance.configuration.is_none())
        .flat_map(|(_, found, _)| found.gaps.iter().map(String::as_str))
        .collect();
    list.push(if unread.is_empty() {
        (Sensor::Configuration, Sight::On, None)
    } else {
        (Sensor::Configuration, Sight::Degraded, Some(unread.join("; ")))
    });
    list.push((Sensor::Host, Sight::On, None));
    list.push(if scope.only_nginx {
        (
            Sensor::UpstreamSide,
            Sight::Off,
            Some("left out (--only-nginx): upstreams are taken for other hosts'".to_owned()),
        )
    } else {
        (Sensor::UpstreamSide, Sight::On, None)
    });
    list
}

/// Whether the access log is worth its cost.
pub(super) fn follows_access_log(scope: &Scope, statuses: Sight) -> bool {
    !scope.uprobes || scope.depth == Depth::Light || statuses != Sight::On
}

/// A kernel without type information is one reason, not a list of the members it hides.
fn without_btf(
    seen: (Sight, Option<String>),
    btf_problem: Option<&str>,
    attached: &[Attachment],
    names: &[&str],
) -> (Sight, Option<String>) {
    let (sight, why) = seen;
    match btf_problem {
        Some(problem) if sight != Sight::On => {
            let lost = attached.iter().find(|a| names.contains(&a.name) && a.state != State::On).map_or("", |a| a.lost);
            (sight, Some(format!("no usable BTF ({problem}): {lost}")))
        }
        _ => (sight, why),
    }
}

fn of_hooks(attached: &[Attachment], names: &[&str]) -> (Sight, Option<String>) {
    let each: Vec<(Sight, Option<String>)> = names
        .iter()
        .filter_map(|name| attached.iter().find(|attachment| attachment.name == *name))
        .map(|attachment| {
            let why = || {
                Some(
                    [attachment.why.as_str(), attachment.lost]
                        .iter()
                        .filter(|s| !s.is_empty())
                        .copied()
                        .collect::<Vec<_>>()
                        .join("; "),
                )
            };
            match attachment.state {
                State::On => (Sight::On, None),
                State::Degraded => (Sight::Degraded, why()),
                State::Off => (Sight::Off, why()),
            }
        })
        .collect();
    worst(&each)
}

/// All on: on. All off: off. Between: degraded. None at all: off.
fn worst(each: &[(Sight, Option<String>)]) -> (Sight, Option<String>) {
    let why = each.iter().find_map(|(_, why)| why.clone());
    if each.is_empty() {
        (Sight::Off, None)
    } else if each.iter().all(|(sight, _)| *sight == Sight::On) {
        (Sight::On, None)
    } else if each.iter().all(|(sight, _)| *sight == Sight::Off) {
        (Sight::Off, why)
    } else {
        (Sight::Degraded, why)
    }
}

fn logs(sensor: Sensor, each: impl Iterator<Item = (usize, Vec<String>)>) -> (Sensor, Sight, Option<String>) {
    let (mut followed, mut problems) = (0, Vec::new());
    for (count, more) in each {
        followed += count;
        problems.extend(more);
    }
    let why = (!problems.is_empty()).then(|| format!("cannot be followed: {}", problems.join(", ")));
    match (followed, why) {
        (0, why) => (sensor, Sight::Off, why.or_else(|| Some("no log file is configured".to_owned()))),
        (_, None) => (sensor, Sight::On, None),
        (_, why) => (sensor, Sight::Degraded, why),
    }
}
