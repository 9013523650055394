//! What the sources deliver: records of the ring, packets; and how well each sensor sees.

use std::{
    os::fd::AsFd as _,
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
    delivery::{Delivery, Records},
    ebpf::{Attachment, Ring, State, Wakes},
    logs::Tails,
    nginx::Found,
    privilege::{self, Work},
    rest::Bell,
    scope::{Depth, Scope},
    thinker::Intake,
};
use crate::{
    decode::kernel::{self, Decoded, Names},
    model::{
        coverage::{Sensor, Sight},
        event::Body,
        process::{ProcessEvent, Role},
        time::Moment,
        verdict::{Confidence, Need, Verdict},
    },
    pipeline::Judged,
};

/// Records read before they are delivered together.
const BATCH: usize = 256;

/// How long the ring's reader sleeps at most: the kernel side wakes it only when much waits.
const RING_NAP: Duration = Duration::from_millis(15);
/// The same while all rest. The first record after a rest is read so late; a case waits for its late evidence for longer.
const RING_REST: Duration = Duration::from_millis(100);

/// How much younger than the record behind it a record may be: another processor's took its place in the ring first.
const SKEW_NS: u64 = 1_000_000;

/// Counters of the sources, for the notices and the summary.
#[derive(Debug, Default)]
pub struct Counts {
    /// Records read from the ring.
    pub records: AtomicU64,
    /// Records that could not be read.
    pub unreadable: AtomicU64,
    /// Records that the thinking thread had no room for.
    pub crowded_out: AtomicU64,
    /// Events that were forgotten although they might have explained a failure.
    pub forgotten: AtomicU64,
    /// Lines of access logs that are not in the form their format says: each is a request whose end is not known. (In an error log that is
    /// ordinary: a message may go on in another line.)
    pub strange_accesses: AtomicU64,
}

/// The thread that reads the ring.
#[derive(Debug)]
pub struct RingReader {
    stop: Arc<AtomicBool>,
    bell: Bell,
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
        let bell = intake.rest().bell();
        let wakes = ring.wakes()?;
        let (told, rung, names) = (Arc::clone(&stop), bell.clone(), Arc::new(names));
        let reading = Reading { ring, wakes, names, intake, counts, processes, stop: told, bell: rung };
        let thread = thread::Builder::new().name("ring".into()).spawn(move || reading.run())?;
        Ok(Self { stop, bell, thread: Some(thread) })
    }

    /// Reads what is left and ends.
    pub fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the runtime; there is nothing to add.
            let _ = thread.join();
        }
    }
}

/// What that thread works with.
struct Reading {
    ring: Ring,
    wakes: Wakes,
    names: Arc<Names>,
    intake: Intake,
    counts: Arc<Counts>,
    processes: Arc<Notify>,
    stop: Arc<AtomicBool>,
    bell: Bell,
}

impl Reading {
    fn run(self) {
        privilege::confine(Work::Reads);
        let Self { mut ring, wakes, names, intake, counts, processes, stop, bell } = self;
        let mark = intake.mark(0);
        loop {
            let began = clock::now();
            let stopping = stop.load(Ordering::Relaxed);
            let mut batch = Records::new(Arc::clone(&names));
            let mut reached = began;
            while batch.len() < BATCH {
                let more = ring.next(|record| {
                    if concerns_nginx(record, &names) {
                        processes.notify_one();
                    }
                    reached = Header::ref_from_prefix(record).map_or(reached, |(header, _)| Moment(header.time_ns));
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
                // Records of other processors may be a little older than the last one.
                mark.set(reached.min(began).minus_ns(SKEW_NS));
                continue;
            }
            mark.set(began);
            if stopping {
                return;
            }
            if let Err(error) = bell.nap(Some(wakes.as_fd()), RING_NAP, RING_REST).and_then(|()| wakes.take()) {
                tracing::warn!("waiting for kernel records: {error}");
                thread::sleep(RING_NAP);
            }
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
    let mark = intake.mark(0);
    Box::new(move |mut batch, read| {
        let delivered = batch.is_empty() || {
            batch.netns = netns;
            let link = batch.link;
            batch.each_mut(|bytes| intake.redactor().packet(link, bytes));
            intake.try_deliver(Delivery::Packets(batch))
        };
        mark.set(read);
        delivered
    })
}

/// The sensor that alone has a gap if this program was not run for an event. `None`: what it tells also puts connections and processes
/// together, so that without it anything else may be wrong.
#[must_use]
pub fn only_sensor_of(program: &str) -> Option<Sensor> {
    match program {
        "kfree_skb" => Some(Sensor::Drops),
        "tcp_retransmit_skb" | "tcp_retransmit_skb_record" => Some(Sensor::Retransmits),
        "signal_generate" => Some(Sensor::Signals),
        "mark_victim" => Some(Sensor::OomKills),
        // Of files that could not be opened.
        "sys_exit_open" | "sys_exit_openat" | "open_return" | "openat_return" => Some(Sensor::Syscalls),
        _ => None,
    }
}

/// How a sensor sees, and why not better.
type Seen = (Sight, Option<String>);

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
        (
            Sensor::Syscalls,
            &["sys_exit_connect", "sys_exit_accept", "sys_exit_accept4", "sys_exit_socket", "sys_exit_openat"],
        ),
        (Sensor::Processes, &["sched_process_fork", "sched_process_exec", "sched_process_exit"]),
        (Sensor::Signals, &["signal_generate"]),
        (Sensor::OomKills, &["mark_victim"]),
    ];
    for (sensor, names) in hooks {
        let (sight, why) = match kernel {
            None => (Sight::Off, kernel_problem.map(str::to_owned)),
            Some(_) if *sensor == Sensor::Syscalls && scope.depth == Depth::Light => {
                (Sight::Off, Some(NOT_AT_LIGHT.to_owned()))
            }
            Some(attached) => match without_btf(of_hooks(attached, names), btf_problem, attached, names) {
                (Sight::On, _) if *sensor == Sensor::SocketStates && scope.depth == Depth::Light => {
                    (Sight::Degraded, Some(format!("{NOT_AT_LIGHT}: connections that begin and end well")))
                }
                seen => seen,
            },
        };
        list.push((*sensor, sight, why));
    }
    let of_all = |heard: fn(&[Attachment]) -> Seen| {
        let each: Vec<(Sight, Option<String>)> = nginx.iter().map(|(attached, ..)| heard(attached)).collect();
        worst(&each)
    };
    let (heard, why) = of_all(functions);
    list.push((Sensor::NginxFunctions, heard, why));
    let (sight, why) = match of_all(|attached| of_hooks(attached, &["ngx_http_send_header"])) {
        (Sight::Off, Some(_)) if scope.depth == Depth::Light && scope.uprobes => {
            (Sight::Off, Some(format!("{NOT_AT_LIGHT}: the status of every response")))
        }
        // About to be let go.
        (Sight::On, _) if scope.depth == Depth::Light => {
            (Sight::Degraded, Some(format!("{NOT_AT_LIGHT}: the status of every response")))
        }
        seen => seen,
    };
    list.push((Sensor::NginxStatuses, sight, why));
    list.push(match (capturing, capture_problem) {
        (true, None) if scope.depth == Depth::Light => {
            (Sensor::Packets, Sight::Degraded, Some(format!("{NOT_AT_LIGHT}: SYN and FIN")))
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
    list.push(if !scope.uprobes || heard != Sight::On {
        logs(Sensor::AccessLog, nginx.iter().map(|(_, found, _)| (found.access_logs.len(), Vec::new())))
    } else {
        (Sensor::AccessLog, Sight::Off, Some("not read: nginx itself tells of every failure".to_owned()))
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
    list.push(if scope.follows {
        (Sensor::Host, Sight::On, None)
    } else {
        (Sensor::Host, Sight::Off, Some("the rights to look were given up (--no-follow)".to_owned()))
    });
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

/// What a sensor lacks for that reason begins so.
const NOT_AT_LIGHT: &str = "not part of depth light";

/// Whether a greater depth could have told what this verdict lacks.
pub(super) fn would_know_more(judged: &Judged) -> bool {
    let lacks = |needs: &[Need]| {
        let not_at_light = |need: &Need| {
            judged.case.coverage.sensors.iter().any(|(sensor, _, why)| {
                need.sensor == Some(*sensor) && why.as_ref().is_some_and(|why| why.starts_with(NOT_AT_LIGHT))
            })
        };
        needs.iter().any(not_at_light)
    };
    match &judged.verdict {
        Verdict::Explained(explanation) => explanation.confidence != Confidence::Confirmed && lacks(&explanation.blind),
        Verdict::Contested(explanations) => explanations.iter().any(|explanation| lacks(&explanation.blind)),
        Verdict::Unexplained { needed, .. } => lacks(needed),
    }
}

/// How the failures are heard that nginx's functions tell of themselves. Where that is whole its access log says nothing more, and it has a
/// line for every request.
pub(super) fn functions(attached: &[Attachment]) -> (Sight, Option<String>) {
    of_hooks(attached, &["ngx_log_error_core", "ngx_http_special_response_handler"])
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
