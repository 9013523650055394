//! `syn-timeout`: no answer to the SYN arrived.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::{Locality, Reading, Timer, duration, evidence, need},
        said::remark_moved_name,
        standstill::remark_standstill,
    },
    servers::{ADDRESSES, and_servers},
};
use crate::model::{
    complaint::Message,
    coverage::Sensor,
    event::EventId,
    evidence::{Evidence, Fact, Weight},
    net::Errno,
    socket::{TcpState, is_full},
};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "syn-timeout",
    title: "no answer to the SYN arrived",
    family: Family::Connect,
    statuses: &[504, 502],
    depth: Depth::Symptom,
    page: Page {
        happened: "nginx asked for a connection (SYN), the kernel repeated it after 1 s, 3 s, 7 s, ..., and nothing ever came back: \
                   the packets or their answers are lost, the host is down, or something drops them in silence. Two timers can end \
                   it: nginx's proxy_connect_timeout gives 504, the kernel's tcp_syn_retries gives ETIMEDOUT and 502.",
        proof: "The SYN and at least one repetition, and nginx's socket still waiting for an answer when the timer fired; no drop of \
                these packets on this host, and no full accept queue where the upstream is here.",
        refuted: "An answer of any kind: SYN-ACK (path-stall where it is lost on its way), RST, ICMP. A drop by this host's packet filter (firewall-dropped). A full accept \
                  queue of a local upstream (accept-queue-overflow).",
        remedies: &const {
            and_servers::<4, 12>(
                [
                    (
                        "nginx",
                        "proxy_connect_timeout (default 60s) of 2 to 5 s fails over sooner; proxy_next_upstream timeout (in the \
                       default) tries another server. A timeout below 1 s leaves no time for a single repetition.",
                    ),
                    (
                        "kernel",
                        "net.ipv4.tcp_syn_retries (default 6: about 130 s) ends it with 502 when it is shorter than nginx's timeout.",
                    ),
                    (
                        "network",
                        "Is the host up, is the address still its own, does a security group or firewall on the way drop it? \
                         `tcpdump -ni any host ADDRESS and port PORT` on the upstream's side tells whether the SYN arrives.",
                    ),
                    (
                        "any server",
                        "On the upstream's host: `nstat -az TcpExtListenDrops` and `ss -ltn` (Recv-Q above Send-Q is a full accept \
                            queue).",
                    ),
                ],
                ADDRESSES,
            )
        },
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    reading.upstream()?;
    if !reading.handshake_timed_out() {
        return None;
    }
    let by_nginx = reading.complains_of(&[Message::TimedOut]);
    let kernel = reading.connect_error().filter(|(errno, _)| *errno == Errno::ETIMEDOUT);
    let by_kernel = reading.kernel_gave_up();
    // An answer, even an unwelcome one, is not silence; nor is one that did not arrive (path-stall, firewall-dropped).
    let (told, seen) = reading.syn_answers();
    if reading.syn_reset().is_some() || !told.is_empty() || !seen.is_empty() {
        return None;
    }
    let mut finding = Finding::default();
    finding.support(reading.complaint_evidence());
    let waited_us = reading.started().map(|started| reading.failed_at().since_ns(started) / 1_000);
    let (retransmits, events) = reading.syn_retransmits();
    unanswered(&mut finding, reading, retransmits, events, waited_us, kernel.is_some());
    if let Some((_, error)) = kernel {
        finding.support(Some(evidence(Fact::KernelTimer, &error.events, Weight::Direct)));
    } else if by_nginx {
        let event = reading.complaint().map_or(reading.case.decided_by, |(event, _)| event.id);
        let directive = reading.timer(Timer::Connect);
        let timer = Fact::NginxTimer { directive, configured: reading.directive(directive).map(str::to_owned) };
        finding.support(Some(evidence(timer, &[event], Weight::Fits)));
    } else if by_kernel {
        finding.missing.push(need(Sensor::SocketErrors, "the kernel's own word that it gave up"));
    }
    for (event, icmp) in reading.icmp() {
        let fact = Fact::Icmp { from: icmp.from, icmp_type: icmp.icmp_type, code: icmp.code, v6: icmp.v6 };
        finding.oppose(Some(evidence(fact, &[event.id], Weight::Symptom)));
    }
    exclude(&mut finding, reading);
    describe(&mut finding, reading, by_kernel, retransmits, waited_us);
    remark_standstill(&mut finding, reading);
    remark_moved_name(&mut finding, reading);
    Some(finding)
}

fn unanswered(
    finding: &mut Finding,
    reading: &Reading<'_>,
    retransmits: u32,
    mut events: Vec<EventId>,
    waited_us: Option<u64>,
    told_by_kernel: bool,
) {
    let waiting = reading.socket_at_failure().filter(|(socket, _)| socket.state == TcpState::SynSent);
    let retransmits = waiting.map_or(retransmits, |(socket, _)| retransmits.max(u32::from(socket.retransmits)));
    let still_waiting = reading.still_waiting();
    events.extend(still_waiting);
    let still_silent = still_waiting.is_some() || told_by_kernel;
    if retransmits == 0 {
        let what =
            "a repetition of the SYN: nginx's timeout is shorter than the kernel's first second, or it was not seen";
        finding.missing.push(need(Sensor::Retransmits, what));
    }
    if !still_silent {
        finding.missing.push(need(Sensor::NginxFunctions, "nginx's socket still waiting when the timer fired"));
    }
    let weight = match (retransmits, still_silent) {
        (0, false) => return,
        (0, true) | (_, false) => Weight::Symptom,
        (_, true) => Weight::Direct,
    };
    finding.because.push(Evidence { fact: Fact::SynUnanswered { retransmits, waited_us }, events, weight });
}

/// What says more than silence.
fn exclude(finding: &mut Finding, reading: &Reading<'_>) {
    if !reading.sees(Sensor::Drops) {
        finding.missing.push(need(Sensor::Drops, "whether this host itself dropped the SYN or its answer"));
        finding.not_excluded(&["firewall-dropped"]);
    }
    match reading.locality() {
        Locality::Elsewhere => {}
        Locality::Here => match reading.accept_queue() {
            Some((waiting, limit, event)) => {
                finding.support(Some(evidence(Fact::AcceptQueue { waiting, limit }, &[event], Weight::Fits)));
                // The queue was read at moments; the kernel counts all the time, for every listener of the namespace.
                let refused = reading.listen_overflows();
                if is_full((waiting, limit)) || refused.is_some() {
                    finding.missing.push(need(Sensor::Host, "the accept queue as each SYN found it"));
                    finding.not_excluded(&["accept-queue-overflow"]);
                }
                finding.support(refused.map(|refused| Evidence { weight: Weight::Fits, ..refused }));
            }
            None if reading.nobody_listens().is_some() => {}
            None => {
                finding.missing.push(need(Sensor::Host, "whether the listener's accept queue was full"));
                finding.not_excluded(&["accept-queue-overflow"]);
            }
        },
        Locality::Unwatched | Locality::Unknown => {
            finding.missing.push(reading.unseen(Sensor::Host, "whether its accept queue was full"));
            finding.not_excluded(&["accept-queue-overflow"]);
        }
    }
}

fn describe(finding: &mut Finding, reading: &Reading<'_>, by_kernel: bool, retransmits: u32, waited_us: Option<u64>) {
    let upstream = reading.upstream_name();
    let waited = waited_us.map(|us| format!(" in {}", duration(us))).unwrap_or_default();
    let repeated = match retransmits {
        0 => "the SYN was not seen repeated".to_owned(),
        1 => "the SYN was repeated once".to_owned(),
        n => format!("the SYN was repeated {n} times"),
    };
    let directive = reading.timer(Timer::Connect);
    let timer = if by_kernel {
        "the kernel gave up (ETIMEDOUT, net.ipv4.tcp_syn_retries), before nginx's own timer".to_owned()
    } else {
        format!("nginx's own timer ({directive}) ended it")
    };
    // Whether the upstream answered, and its answer was lost, only its own side tells.
    finding.summary = format!("No answer to the SYN arrived from {upstream}{waited}: {repeated}, and {timer}.");
    finding.fix.push(format!(
        "Find out whether the SYN reaches {upstream}: is the host up, is the address right, does a firewall on the way drop it? \
         `tcpdump -ni any tcp port {}` there shows it.",
        reading.server().map_or(0, |address| address.port())
    ));
    if by_kernel {
        finding.fix.push(format!("net.ipv4.tcp_syn_retries is what ended it; nginx's {directive} is longer."));
    } else {
        let now = reading.timeout_in_force(directive);
        finding.fix.push(format!("{directive} ({now}): 2s to 5s would let nginx try another server sooner."));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::{World, moment},
        model::{
            complaint::{Message, Phase},
            coverage::Sensor,
            flow::Side,
            net::Errno,
            socket::{SocketChange, TcpState},
            verdict::Confidence,
        },
    };

    fn silent(upstream: &str, repetitions: u8) -> World {
        let mut world = World::at(upstream, 504);
        world.attempt().started = Some(moment(-4_000_000));
        for repetition in 0..repetitions {
            let socket = world.socket(Side::Nginx, TcpState::SynSent, None);
            world.change(
                -3_000_000 + i64::from(repetition) * 1_000_000,
                socket,
                SocketChange::Retransmitted { payload: 0 },
            );
        }
        let socket = world.socket(Side::Nginx, TcpState::SynSent, None);
        world.attempt().socket_at_failure = Some(socket);
        world.complain(Message::TimedOut, Phase::Connecting, Some(Errno::ETIMEDOUT), "upstream timed out");
        world
    }

    pub(crate) fn elsewhere() -> World {
        let mut world = silent("10.9.9.9:8000", 2);
        world.look_up(false, Vec::new(), Vec::new());
        world
    }

    #[test]
    fn nginxs_timer() {
        let explanation = elsewhere().expect("syn-timeout", Confidence::Confirmed);
        assert!(explanation.summary.contains("repeated 2 times"), "{}", explanation.summary);
        assert!(explanation.summary.contains("nginx's own timer"), "{}", explanation.summary);
    }

    #[test]
    fn the_kernels_timer() {
        let mut world = silent("10.9.9.9:8000", 2);
        world.case.status = Some(502);
        world.look_up(false, Vec::new(), Vec::new());
        world.state(-40, Side::Nginx, TcpState::SynSent, TcpState::Closed, Some(Errno::ETIMEDOUT));
        let socket = world.socket(Side::Nginx, TcpState::Closed, Some(Errno::ETIMEDOUT));
        world.attempt().socket_at_failure = Some(socket);
        world.complain(Message::ConnectFailed, Phase::Connecting, Some(Errno::ETIMEDOUT), "connect() failed");
        let explanation = world.expect("syn-timeout", Confidence::Confirmed);
        assert!(explanation.summary.contains("the kernel gave up"), "{}", explanation.summary);
    }

    #[test]
    fn a_timeout_too_short_for_a_repetition_is_likely() {
        let mut world = silent("10.9.9.9:8000", 0);
        world.look_up(false, Vec::new(), Vec::new());
        let explanation = world.expect("syn-timeout", Confidence::Likely);
        assert!(explanation.blind.iter().any(|need| need.what.contains("repetition")));
    }

    #[test]
    fn here_the_accept_queue_must_be_known() {
        let mut world = silent("127.0.0.1:8000", 2);
        let explanation = world.expect("syn-timeout", Confidence::Likely);
        assert_eq!(explanation.rivals, ["accept-queue-overflow"]);
        world.listening();
        world.expect("syn-timeout", Confidence::Confirmed);
    }

    #[test]
    fn without_sight_of_drops_it_is_likely() {
        let mut world = elsewhere();
        world.blind(Sensor::Drops);
        let explanation = world.expect("syn-timeout", Confidence::Likely);
        assert_eq!(explanation.rivals, ["firewall-dropped"]);
    }

    #[test]
    fn a_connection_that_came_about_is_not_it() {
        let mut world = elsewhere();
        world.connect(-100);
        assert_ne!(crate::report::cause(&world.judge()), "syn-timeout");
    }

    #[test]
    fn a_log_line_alone_makes_it_possible() {
        let mut world = World::at("10.9.9.9:8000", 504);
        for sensor in Sensor::ALL {
            world.blind(*sensor);
        }
        world.log(Message::TimedOut, Phase::Connecting, Some(Errno::ETIMEDOUT), "upstream timed out");
        world.expect("syn-timeout", Confidence::Possible);
    }
}
