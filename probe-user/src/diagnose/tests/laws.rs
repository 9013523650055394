//! Laws over made-up worlds: whatever is taken away from what could be seen, the verdict steps down and never sideways.

use proptest::prelude::*;

use super::super::{
    causes::*,
    judge,
    testing::{START, World},
};
use crate::{
    model::{
        attempt::{Joined, Link},
        case::Case,
        coverage::{Sensor, Sight},
        event::{Body, Event, Source},
        net::Errno,
        packet::PacketBody,
        process::ProcessEvent,
        socket::{SocketChange, Syscall},
        time::{At, Moment},
        verdict::{Confidence, Verdict},
    },
    report,
};

/// Worlds in which the truth is known, with everything seen.
fn worlds() -> Vec<(&'static str, World)> {
    vec![
        ("upstream-refused", upstream_refused::tests::refused("127.0.0.1:8000", true)),
        ("upstream-refused", upstream_refused::tests::refused("10.9.9.9:8000", false)),
        ("syn-timeout", syn_timeout::tests::elsewhere()),
        ("fd-exhausted-nginx", fd_exhausted_nginx::tests::exhausted(Errno::EMFILE)),
        ("fd-exhausted-upstream", fd_exhausted_upstream::tests::shed()),
        ("fd-exhausted-upstream", fd_exhausted_upstream::tests::waiting()),
        ("no-live-upstreams", no_live_upstreams::tests::blackout()),
        ("keepalive-race", keepalive_race::tests::crossing_fin("127.0.0.1:8000", START)),
        ("upstream-reset", upstream_reset::tests::reset()),
        ("premature-close", premature_close::tests::closed_here()),
        ("upstream-exited", upstream_exited::tests::exited()),
        ("upstream-crashed", upstream_crashed::tests::crashed()),
        ("upstream-killed", upstream_killed::tests::killed()),
        ("upstream-killed", upstream_killed::tests::killed_unaccepted()),
        ("upstream-oom-killed", upstream_oom_killed::tests::taken()),
        ("read-timeout", read_timeout::tests::silent_here()),
        ("accept-queue-overflow", accept_queue_overflow::tests::full()),
        ("accept-queue-overflow", accept_queue_overflow::tests::last_ack_lost()),
        ("firewall-rejected", firewall_rejected::tests::rejected()),
        ("firewall-rejected", firewall_rejected::tests::prohibited()),
        ("firewall-dropped", firewall_dropped::tests::dropped()),
        ("host-unreachable", host_unreachable::tests::no_neighbour()),
        ("no-route", no_route::tests::world()),
        ("connect-denied", connect_denied::tests::world()),
        ("ephemeral-ports-exhausted", ephemeral_ports_exhausted::tests::world()),
        ("unix-socket-missing", unix_socket_missing::tests::world()),
        ("unix-backlog-full", unix_backlog_full::tests::world()),
        ("dns-failure", dns_failure::tests::world()),
        ("header-too-big", header_too_big::tests::world()),
        ("tls-handshake-failed", tls_handshake_failed::tests::world()),
        ("upstream-sent-502", upstream_sent_502::tests::passed_on()),
        ("early-response-lost", early_response_lost::tests::refused_upload()),
        ("network-reset", network_reset::tests::injected()),
        ("send-timeout", send_timeout::tests::stuck()),
        ("path-stall", path_stall::tests::stalled()),
        ("path-stall", path_stall::tests::handshake()),
        ("response-truncated", response_truncated::tests::cut_off()),
    ]
}

/// Which sensor an event comes from.
fn sensor_of(event: &Event) -> Sensor {
    match &event.body {
        Body::Socket(socket) => match socket.change {
            SocketChange::State { .. } => Sensor::SocketStates,
            SocketChange::ResetSent { .. } => Sensor::ResetsSent,
            SocketChange::ResetReceived => Sensor::ResetsReceived,
            SocketChange::Retransmitted { .. } | SocketChange::SynAckRetransmitted => Sensor::Retransmits,
            SocketChange::ErrorReported => Sensor::SocketErrors,
        },
        Body::Drop(_) => Sensor::Drops,
        Body::Syscall(_) => Sensor::Syscalls,
        Body::Process(process) => match process {
            ProcessEvent::Signalled { .. } => Sensor::Signals,
            ProcessEvent::OomVictim { .. } => Sensor::OomKills,
            _ => Sensor::Processes,
        },
        Body::Nginx(_) => Sensor::NginxFunctions,
        Body::Packet(packet) => match packet.body {
            PacketBody::Tcp(_) | PacketBody::Icmp(_) => Sensor::Packets,
        },
        Body::Wire(_) => Sensor::Packets,
        Body::ErrorLine(_) => Sensor::ErrorLog,
        Body::AccessLine(_) => Sensor::AccessLog,
        Body::Host(_) | Body::Coverage(_) => Sensor::Host,
    }
}

/// Something that can be taken away.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// A sensor is off: what it would have seen is not there.
    Blind(usize),
    /// One record of the connection is lost, and counted.
    FlowEvent(usize),
    /// One record about processes is lost, and counted.
    ProcessEvent(usize),
    /// One system call of the attempt is lost, and counted.
    Call(usize),
    /// nginx's memory could not be read at the failure.
    Counters,
    /// nor what nginx counted.
    Bytes,
    /// The tie is by time and content.
    Tie,
    /// An earlier failure was not seen.
    Earlier(usize),
    /// Records were lost, nobody knows which.
    Lost,
}

fn loss() -> impl Strategy<Value = Loss> {
    prop_oneof![
        4 => (0..Sensor::ALL.len()).prop_map(Loss::Blind),
        4 => any::<usize>().prop_map(Loss::FlowEvent),
        2 => any::<usize>().prop_map(Loss::ProcessEvent),
        1 => any::<usize>().prop_map(Loss::Call),
        1 => Just(Loss::Counters),
        1 => Just(Loss::Bytes),
        1 => Just(Loss::Tie),
        1 => any::<usize>().prop_map(Loss::Earlier),
        1 => Just(Loss::Lost),
    ]
}

fn remove(events: &mut Vec<Event>, index: usize) -> Option<Event> {
    (!events.is_empty()).then(|| events.remove(index % events.len()))
}

fn count(case: &mut Case, lost: Option<&Event>) {
    match lost {
        Some(event) if event.source == Source::Packet => case.coverage.packets_dropped += 1,
        Some(_) => case.coverage.events_lost += 1,
        None => {}
    }
}

fn take_away(case: &mut Case, loss: Loss) {
    match loss {
        Loss::Blind(index) => blind(case, Sensor::ALL[index]),
        Loss::FlowEvent(index) => {
            let gone = case.attempts.last_mut().and_then(|attempt| match &mut attempt.flow {
                Joined::One(flow) if !flow.events.is_empty() => flow.events.remove(index % flow.events.len()),
                _ => None,
            });
            count(case, gone.as_ref());
        }
        Loss::ProcessEvent(index) => {
            let gone = remove(&mut case.processes, index);
            count(case, gone.as_ref());
        }
        Loss::Call(index) => {
            let gone = case.attempts.last_mut().and_then(|attempt| remove(&mut attempt.syscalls, index));
            count(case, gone.as_ref());
        }
        Loss::Counters => {
            for attempt in &mut case.attempts {
                attempt.socket_at_failure = None;
            }
        }
        Loss::Bytes => {
            for attempt in &mut case.attempts {
                attempt.bytes_sent = None;
                attempt.bytes_received = None;
            }
        }
        Loss::Tie => {
            case.link = Link::Inferred;
            for attempt in &mut case.attempts {
                attempt.link = Link::Inferred;
            }
        }
        Loss::Earlier(index) => {
            if !case.earlier.is_empty() {
                let index = index % case.earlier.len();
                case.earlier.remove(index);
            }
        }
        Loss::Lost => case.coverage.events_lost += 3,
    }
}

fn blind(case: &mut Case, sensor: Sensor) {
    for (known, sight, _) in &mut case.coverage.sensors {
        if *known == sensor {
            *sight = Sight::Off;
        }
    }
    let kept = |event: &Event| sensor_of(event) != sensor;
    case.processes.retain(kept);
    case.complaints.retain(|(event, _)| kept(event));
    for attempt in &mut case.attempts {
        attempt.syscalls.retain(kept);
        if let Joined::One(flow) = &mut attempt.flow {
            flow.events.retain(kept);
            if sensor == Sensor::Syscalls {
                flow.accepted_by = None;
            }
        }
        if sensor == Sensor::NginxFunctions {
            attempt.socket_at_failure = None;
            attempt.bytes_sent = None;
            attempt.bytes_received = None;
            attempt.reused = None;
            attempt.requests_before = None;
            attempt.link = Link::Inferred;
            case.link = Link::Inferred;
            // The same words now come from the log.
            if let Some((event, _)) = &mut attempt.complaint {
                event.source = Source::ErrorLog;
                event.at = At::between(event.at.earliest.minus_ns(500_000_000), event.at.latest.plus_ns(500_000_000));
            }
        }
    }
    match sensor {
        Sensor::Host => case.host.clear(),
        Sensor::Configuration => case.configuration = None,
        _ => {}
    }
}

fn confidence(verdict: &Verdict) -> Confidence {
    match verdict {
        Verdict::Explained(explanation) => explanation.confidence,
        Verdict::Contested(_) | Verdict::Unexplained { .. } => Confidence::Possible,
    }
}

fn later(case: &mut Case, by_ns: u64) {
    let at = |at: &mut At| *at = At::between(at.earliest.plus_ns(by_ns), at.latest.plus_ns(by_ns));
    let moment = |moment: &mut Moment| *moment = moment.plus_ns(by_ns);
    at(&mut case.decided);
    case.processes.iter_mut().for_each(|event| at(&mut event.at));
    case.complaints.iter_mut().for_each(|(event, _)| at(&mut event.at));
    case.host.iter_mut().for_each(|(_, when, _)| at(when));
    case.earlier.iter_mut().for_each(|failure| moment(&mut failure.at));
    for attempt in &mut case.attempts {
        attempt.started.iter_mut().for_each(moment);
        attempt.complaint.iter_mut().for_each(|(event, _)| at(&mut event.at));
        attempt.syscalls.iter_mut().for_each(|event| at(&mut event.at));
        if let Joined::One(flow) = &mut attempt.flow {
            flow.events.iter_mut().for_each(|event| at(&mut event.at));
        }
    }
}

#[test]
fn with_everything_seen_the_truth_is_told() {
    for (truth, world) in worlds() {
        assert_eq!(report::cause(&world.judge()), truth, "{:#?}", world.judge());
    }
}

/// Every single thing and every pair of sensors taken away, not left to chance.
#[test]
fn each_pair_of_sensors_off_leaves_no_false_certainty() {
    for (truth, world) in worlds() {
        for first in Sensor::ALL {
            for second in Sensor::ALL {
                let mut case = world.case.clone();
                blind(&mut case, *first);
                blind(&mut case, *second);
                let verdict = judge(&case);
                if confidence(&verdict) == Confidence::Confirmed {
                    assert_eq!(report::cause(&verdict), truth, "without {first} and {second}: {verdict:#?}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// Loss is humility: less seen never makes surer, and never makes another cause certain.
    #[test]
    fn loss_is_humility(index in any::<prop::sample::Index>(), losses in prop::collection::vec(loss(), 1..8)) {
        let worlds = worlds();
        let (truth, world) = index.get(&worlds);
        let mut case = world.case.clone();
        let mut before = judge(&case);
        for loss in losses {
            take_away(&mut case, loss);
            let after = judge(&case);
            if confidence(&after) == Confidence::Confirmed {
                prop_assert_eq!(report::cause(&after), *truth, "after {:?}", loss);
            }
            if report::cause(&before) == report::cause(&after) {
                prop_assert!(confidence(&after) <= confidence(&before), "{:?} raised {:#?}\nto {:#?}", loss, before, after);
            }
            before = after;
        }
    }

    /// Only distances in time matter.
    #[test]
    fn the_hour_does_not_matter(index in any::<prop::sample::Index>(), by_ns in 0u64..1 << 50) {
        let worlds = worlds();
        let (_, world) = index.get(&worlds);
        let mut case = world.case.clone();
        later(&mut case, by_ns);
        prop_assert_eq!(judge(&case), world.judge());
    }

    /// A failing accept() elsewhere, an exit of another process: nothing that is not this request's changes anything.
    #[test]
    fn foreign_events_change_nothing(index in any::<prop::sample::Index>(), us in -1_000_000i64..100) {
        let worlds = worlds();
        let (_, world) = index.get(&worlds);
        let mut stirred = world.clone();
        let other = crate::model::process::Pid(9_999);
        let listener = crate::model::socket::Socket {
            local: Some("127.0.0.1:9999".parse().unwrap()),
            remote: None,
            ..world.socket(crate::model::flow::Side::Upstream, crate::model::socket::TcpState::Listen, None)
        };
        let call = Syscall::Accept { listener: 3, result: Err(Errno::EMFILE), socket: Some(listener), peer: None, command: "other".to_owned() };
        stirred.syscall_of(us, other, call);
        stirred.process(us, ProcessEvent::OomVictim { victim: other, role: crate::model::process::Role::Other });
        prop_assert_eq!(stirred.judge(), world.judge());
    }
}
