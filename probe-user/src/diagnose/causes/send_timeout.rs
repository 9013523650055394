//! `send-timeout`: the upstream stopped taking the request.

use super::super::{
    cause::{Cause, Depth, Family, Finding, Page},
    reading::{Reading, Timer, evidence, need},
    standstill::remark_standstill,
};
use crate::model::{
    attempt::Outcome,
    complaint::{Message, Phase},
    coverage::Sensor,
    event::Event,
    evidence::{Fact, Weight},
    packet::TcpPacket,
};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "send-timeout",
    title: "the upstream stopped taking the request",
    family: Family::Connection,
    statuses: &[504],
    depth: Depth::Symptom,
    page: Page {
        happened: "nginx still had bytes of the request to send, and the upstream's application stopped reading: the buffers of both \
                   kernels filled up, and proxy_send_timeout (60 s between two writes) ran out.",
        proof: "nginx's own timer while sending; everything that was on the way acknowledged, more waiting, and no room at the other \
                end (zero window).",
        refuted: "Bytes on the way that were never acknowledged, though repeated: lost packets (path-stall).",
        remedies: &[
            (
                "nginx",
                "proxy_send_timeout (60s) for slow readers; proxy_request_buffering on keeps slow clients out of it.",
            ),
            (
                "any server",
                "Why does it not read? A stack of the process while an upload hangs; a full thread pool or disk.",
            ),
            (
                "gunicorn",
                "The body is read when the application reads wsgi.input: read it before other work; --workers and --threads bound how many do.",
            ),
            ("uvicorn", "A handler that never awaits the body, or a blocking call in it; --workers."),
            ("Node.js", "A request stream that is paused or never consumed: req.resume(), or stream.pipeline()."),
            (
                "Puma",
                "queue_requests true (the default) reads whole requests before a thread gets them; threads and workers.",
            ),
            (
                "php-fpm",
                "The child reads the body before the script runs (up to post_max_size, 8M): a slow disk under upload_tmp_dir; enable_post_data_reading = Off leaves it to the script.",
            ),
            ("uWSGI", "--post-buffering 65536 reads bodies before the application does."),
            ("Go", "A handler that works before it reads r.Body; http.Server.ReadTimeout cuts slow uploads."),
            (
                "Java",
                "Tomcat: maxThreads (200) reached, so nobody reads; connectionTimeout bounds the wait for more of the body.",
            ),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let by_timer = reading.complains_of(&[Message::TimedOut]) && reading.phase() == Some(Phase::Sending);
    let unsaid = reading.complaint().is_none() && reading.outcome() == Outcome::TimeoutSend;
    if !(by_timer || unsaid) || reading.connected() == Some(false) {
        return None;
    }
    let counters = reading.counters_at_failure();
    let on_the_way = counters.map(|(tcp, _)| tcp.snd_nxt.wrapping_sub(tcp.snd_una));
    if on_the_way.is_some_and(|bytes| bytes > 0) && reading.data_retransmits().next().is_some() {
        return None;
    }
    let mut finding = Finding::default();
    finding.support(reading.complaint_evidence());
    // A RST says nothing of the window, and what follows nginx's close nothing of why it closed.
    let until = reading.failed_at();
    let told = |(event, packet): &(&Event, &TcpPacket)| event.at.earliest <= until && !packet.header.flags.rst();
    let last = reading.flow().and_then(|flow| flow.packets_from_upstream().filter(told).last());
    let window = last.filter(|(_, packet)| packet.window == 0);
    let held_back = counters.filter(|(tcp, _)| tcp.snd_nxt == tcp.snd_una && tcp.write_seq != tcp.snd_nxt);
    if let Some((tcp, event)) = held_back {
        let fact = Fact::HeldBack { bytes: tcp.write_seq.wrapping_sub(tcp.snd_nxt) };
        finding.support(Some(evidence(fact, &[event], Weight::Direct)));
    }
    if let Some((event, _)) = window {
        finding.support(Some(evidence(Fact::ZeroWindow, &[event.id], Weight::Direct)));
    }
    if held_back.is_none() && window.is_none() {
        finding
            .missing
            .push(need(Sensor::Packets, "the upstream's closed window, or bytes held back for lack of room there"));
        finding.not_excluded(&["path-stall"]);
    }
    let event = reading.complaint().map_or(reading.case.decided_by, |(event, _)| event.id);
    let directive = reading.timer(Timer::Send);
    let timer = Fact::NginxTimer { directive, configured: reading.directive(directive).map(str::to_owned) };
    finding.support(Some(evidence(timer, &[event], Weight::Fits)));
    finding.support(reading.holder().and_then(|pid| reading.process_state(pid)));
    let upstream = reading.upstream_name();
    finding.summary =
        format!("{upstream} stopped taking the request before it was all sent, until nginx's timer ended it.");
    finding
        .fix
        .push(format!("Find out why the server at {upstream} does not read: take its stack while an upload hangs."));
    remark_standstill(&mut finding, reading);
    Some(finding)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::{LENGTH, RST_ACK, START, World, moment},
        model::{
            complaint::{Message, Phase},
            event::Body,
            flow::Side,
            net::Errno,
            packet::PacketBody,
            socket::{SocketChange, TcpState},
            verdict::Confidence,
        },
    };

    pub(crate) fn stuck() -> World {
        let mut world = World::new(504);
        world.listening();
        world.accepted();
        world.attempt().started = Some(moment(-3_000_000));
        world.connect(-2_999_000);
        world.sent(TcpState::Established, START + 100);
        let socket = world.attempt().socket_at_failure.as_mut().unwrap();
        socket.tcp.as_mut().unwrap().snd_nxt = START + 100;
        world.complain(Message::TimedOut, Phase::Sending, Some(Errno::ETIMEDOUT), "upstream timed out");
        world
    }

    #[test]
    fn the_plain_case() {
        stuck().expect("send-timeout", Confidence::Confirmed);
    }

    #[test]
    fn lost_packets_are_not_it() {
        let mut world = stuck();
        world.sent(TcpState::Established, START + 100);
        let socket = world.socket(Side::Nginx, TcpState::Established, None);
        world.change(-1_000_000, socket, SocketChange::Retransmitted { payload: 212 });
        world.expect("path-stall", Confidence::Confirmed);
    }

    #[test]
    fn without_the_counters_it_is_likely() {
        let mut world = stuck();
        world.attempt().socket_at_failure = None;
        world.attempt().bytes_sent = Some(u64::from(LENGTH));
        let explanation = world.expect("send-timeout", Confidence::Likely);
        assert_eq!(explanation.rivals, ["path-stall"]);
    }

    /// A RST for which there is no socket has a window of zero (`tcp_v4_send_reset()`).
    #[test]
    fn only_a_window_that_was_closed_when_nginx_gave_up_is_one() {
        for (us, flags, confidence) in [
            (-500_000, 0x10, Confidence::Confirmed),
            (-500_000, RST_ACK, Confidence::Likely),
            (90, 0x10, Confidence::Likely),
        ] {
            let mut world = stuck();
            world.attempt().socket_at_failure = None;
            world.attempt().bytes_sent = Some(u64::from(LENGTH));
            world.packet_from_upstream(us, flags, START + 100);
            let Some(Body::Packet(packet)) = world.flow().events.back_mut().map(|event| &mut event.body) else {
                panic!()
            };
            let PacketBody::Tcp(tcp) = &mut packet.body else { panic!() };
            tcp.window = 0;
            world.expect("send-timeout", confidence);
        }
    }
}
