//! What became of the request's bytes, and whether an answer began.

use super::{Reading, evidence};
use crate::model::{
    attempt::Link,
    complaint::{Message, Phase},
    event::{Event, EventId, Source},
    evidence::{Evidence, Fact, Weight},
    flow::Side,
    packet::Content,
    socket::{SocketChange, TcpCounters, TcpState},
};

/// nginx's clock, from which an attempt's beginning may be known, is a cached millisecond.
const CLOCK_SLACK_NS: u64 = 5_000_000;
/// The kernel's tick is at most 10 ms (`CONFIG_HZ=100`); counters of "how long ago" are that coarse at both ends.
const TICK_SLACK_US: u64 = 20_000;

/// The tick as [`TICK_SLACK_US`], for comparisons of two such counters read at the same moment.
pub(crate) const ONE_TICK_US: u64 = 10_000;

/// What was last sent longer ago than this has been acknowledged, or was lost: several round trips of a host with itself, however busy.
const HELD_BACK_US: u64 = 100_000;

/// The sequence numbers a request occupies: from its first byte to the one after its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// First byte; `None`: only the end is known.
    pub(crate) start: Option<u32>,
    /// One past the last byte.
    pub(crate) end: u32,
}

/// An answer that was sent and never arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LostAnswer {
    /// Bytes of it that were not acknowledged.
    pub(crate) bytes: u32,
    /// How often segments were sent again.
    pub(crate) times: u32,
    /// Payload of the largest of them.
    pub(crate) largest: u32,
    /// The records of sending them again.
    pub(crate) events: Vec<EventId>,
}

/// Whether `a` is at or before `b` on the sequence circle.
pub(crate) const fn at_or_before(a: u32, b: u32) -> bool {
    b.wrapping_sub(a) < 1 << 31
}

impl Reading<'_> {
    /// Whether the connection had served requests before.
    pub(crate) fn reused(&self) -> Option<bool> {
        let attempt = self.attempt?;
        if attempt.reused.is_some() {
            return attempt.reused;
        }
        if let Some(before) = attempt.requests_before {
            return Some(before > 0);
        }
        let (flow, started) = (self.flow()?, attempt.started?);
        let connected = flow.entered(Side::Nginx, TcpState::Established).next().map(|(event, _)| event.at.earliest)?;
        (connected.plus_ns(CLOCK_SLACK_NS) >= started).then_some(false)
    }

    /// Evidence that the connection is a reused one.
    pub(crate) fn idle_connection(&self) -> Option<Evidence> {
        let attempt = self.attempt?;
        if self.reused() != Some(true) {
            return None;
        }
        let event = attempt.complaint.as_ref().map_or(self.case.decided_by, |(event, _)| event.id);
        let fact = Fact::IdleConnection { requests_before: attempt.requests_before, idle_us: attempt.idle_us };
        Some(evidence(fact, &[event], Weight::Fits))
    }

    /// Whether the connection is encrypted, so that nginx's byte counts are not those of the wire.
    fn encrypted(&self) -> bool {
        self.flow().is_some_and(|flow| {
            flow.packets_to_upstream()
                .chain(flow.packets_from_upstream())
                .any(|(_, packet)| matches!(packet.content, Content::Tls { .. }))
        })
    }

    /// Where the request lies in the stream of bytes to the upstream.
    pub(crate) fn request_span(&self) -> Option<Span> {
        let attempt = self.attempt?;
        let sent: Vec<(u32, u32)> = self.flow().map_or_else(Vec::new, |flow| {
            flow.packets_to_upstream()
                .filter(|(event, packet)| {
                    packet.payload_length > 0
                        && attempt.started.is_some_and(|started| event.at.earliest.plus_ns(CLOCK_SLACK_NS) >= started)
                })
                .map(|(_, p)| (p.header.sequence, p.header.sequence.wrapping_add(p.payload_length)))
                .collect()
        });
        let end_on_wire = sent.iter().map(|(_, end)| *end).reduce(|a, b| if at_or_before(a, b) { b } else { a });
        let end = self.counters_at_failure().map(|(tcp, _)| tcp.write_seq).or(end_on_wire)?;
        let by_count = attempt
            .bytes_sent
            .filter(|_| !self.encrypted())
            .and_then(|bytes| u32::try_from(bytes).ok())
            .map(|bytes| end.wrapping_sub(bytes));
        let start_on_wire = self.flow().and_then(|flow| {
            flow.packets_to_upstream()
                .filter(|(event, packet)| {
                    matches!(packet.content, Content::HttpRequest { .. })
                        && attempt.started.is_some_and(|started| event.at.earliest.plus_ns(CLOCK_SLACK_NS) >= started)
                })
                .map(|(_, packet)| packet.header.sequence)
                .next()
        });
        Some(Span { start: by_count.or(start_on_wire), end })
    }

    /// Whether something of the request was handed to the kernel; `None`: not known.
    pub(crate) fn request_sent(&self) -> Option<bool> {
        // Before it writes, nginx asks the socket how connecting went, of a kept connection too.
        let before_writing = self.complains_of(&[Message::ConnectFailed]) && self.phase() == Some(Phase::Connecting);
        if before_writing {
            return Some(false);
        }
        self.attempt?.bytes_sent.map(|bytes| bytes > 0)
    }

    /// Segments with payload that nginx's kernel sent again in this attempt, with their length.
    pub(crate) fn data_retransmits(&self) -> impl Iterator<Item = (&Event, u32)> {
        let since = self.started();
        self.flow().into_iter().flat_map(|flow| flow.sockets(Side::Nginx)).filter_map(move |(event, e)| {
            match e.change {
                SocketChange::Retransmitted { payload }
                    if payload > 0 && since.is_none_or(|since| event.at.latest >= since) =>
                {
                    Some((event, payload))
                }
                _ => None,
            }
        })
    }

    /// nginx's kernel sent bytes again, and none of them is known to have been acknowledged when nginx gave up.
    pub(crate) fn repeated_in_vain(&self) -> bool {
        let acknowledged = self.counters_at_failure().is_some_and(|(tcp, _)| tcp.snd_nxt == tcp.snd_una);
        let counted = self.socket_at_failure().is_some_and(|(socket, _)| socket.retransmits > 0);
        !acknowledged && (counted || self.data_retransmits().next().is_some())
    }

    /// The upstream's kernel, this host's own, sent bytes of an answer again and again of which nginx's side had none when it gave up: how
    /// many, how often, the largest segment, and the records.
    pub(crate) fn answer_lost(&self) -> Option<LostAnswer> {
        let (nginx, _) = self.counters_at_failure()?;
        let (since, until) = (self.started(), self.failed_at());
        let repeated: Vec<_> = self
            .flow()?
            .sockets(Side::Upstream)
            .filter(|(event, _)| event.at.earliest <= until && since.is_none_or(|since| event.at.latest >= since))
            .filter_map(|(event, e)| match e.change {
                SocketChange::Retransmitted { payload } if payload > 0 => Some((event.id, payload, e.socket.tcp?)),
                _ => None,
            })
            .collect();
        let Some((_, _, last)) = repeated.last() else { return self.answer_held_back(nginx) };
        let bytes = last.write_seq.wrapping_sub(last.snd_una);
        (last.snd_una == nginx.rcv_nxt && bytes > 0).then(|| LostAnswer {
            bytes,
            times: u32::try_from(repeated.len()).unwrap_or(u32::MAX),
            largest: repeated.iter().map(|(_, payload, _)| *payload).max().unwrap_or(0),
            events: repeated.iter().map(|(event, ..)| *event).collect(),
        })
    }

    /// The same of an answer that was not even sent again: a packet for which there is no route is no retransmission
    /// (`__tcp_retransmit_skb()`, <https://elixir.bootlin.com/linux/v6.12/source/net/ipv4/tcp_output.c>).
    fn answer_held_back(&self, nginx: &TcpCounters) -> Option<LostAnswer> {
        let lost = |bytes: u32, event: EventId| LostAnswer { bytes, times: 0, largest: 0, events: vec![event] };
        // Written long before nginx gave up, whose side has none of it.
        let (since, until) = (self.started(), self.failed_at().minus_ns(HELD_BACK_US * 1_000));
        let before = self
            .flow()?
            .sockets(Side::Upstream)
            .filter(|(event, _)| event.at.latest <= until && since.is_none_or(|since| event.at.latest >= since))
            .filter_map(|(event, e)| Some((e.socket.tcp?, event.id)));
        let missing = |(tcp, event): (TcpCounters, EventId)| {
            let bytes = tcp.write_seq.wrapping_sub(nginx.rcv_nxt);
            (bytes.cast_signed() > 0 && tcp.snd_una == nginx.rcv_nxt).then(|| lost(bytes, event))
        };
        if let Some(found) = before.filter_map(missing).last() {
            return Some(found);
        }
        // Of an answer that was sent as nginx gave up, the acknowledgement would still be on its way.
        let (tcp, event) = self.upstream_when_nginx_left()?;
        let long_ago = tcp.since_sent_us.is_some_and(|ago| ago > HELD_BACK_US);
        let bytes = tcp.unacknowledged();
        (bytes > 0 && long_ago && tcp.snd_una == nginx.rcv_nxt).then(|| lost(bytes, event))
    }

    /// The counters of the upstream's socket, in this host's own kernel, by its first record since nginx gave up: mostly that nginx's close
    /// has come. `None`: there is none.
    pub(crate) fn upstream_when_nginx_left(&self) -> Option<(TcpCounters, EventId)> {
        let until = self.failed_at();
        let mut since = self.flow()?.sockets(Side::Upstream).filter(|(event, _)| event.at.latest >= until);
        since.find_map(|(event, e)| Some((e.socket.tcp?, event.id)))
    }

    /// nginx's timer ran out before any answer began.
    pub(crate) fn timed_out_unanswered(&self) -> bool {
        self.complains_of(&[Message::TimedOut])
            && matches!(
                self.phase(),
                Some(Phase::Connecting | Phase::TlsHandshake | Phase::Sending | Phase::ReadingHeader)
            )
    }

    /// The upstream's kernel took the whole request.
    pub(crate) fn request_acknowledged(&self) -> Option<Evidence> {
        if self.unix_path().is_some() {
            return self.written_over_unix();
        }
        let Some((tcp, event)) = self.counters_at_failure() else { return self.acknowledged_on_the_wire() };
        (self.request_sent() != Some(false) && tcp.unacknowledged() == 0).then(|| {
            let bytes = self.attempt.and_then(|attempt| attempt.bytes_sent);
            evidence(Fact::RequestAcknowledged { bytes }, &[event], Weight::Direct)
        })
    }

    /// Over a unix socket what was written lies in the other end's queue at once (`unix_stream_sendmsg()`,
    /// <https://elixir.bootlin.com/linux/v6.12/source/net/unix/af_unix.c>); nginx reads the header when it has written all.
    fn written_over_unix(&self) -> Option<Evidence> {
        let (event, _) = self.complaint().filter(|(_, complaint)| complaint.phase == Phase::ReadingHeader)?;
        let bytes = self.attempt?.bytes_sent.filter(|bytes| *bytes > 0 && event.source == Source::Kernel)?;
        Some(evidence(Fact::RequestAcknowledged { bytes: Some(bytes) }, &[event.id], Weight::Direct))
    }

    /// The same by the packets alone.
    fn acknowledged_on_the_wire(&self) -> Option<Evidence> {
        let end = self.request_span().filter(|_| self.request_sent() == Some(true))?.end;
        let (event, _) = self
            .flow()?
            .packets_from_upstream()
            .find(|(_, packet)| packet.header.flags.ack() && at_or_before(end, packet.header.acknowledgement))?;
        let bytes = self.attempt.and_then(|attempt| attempt.bytes_sent);
        Some(evidence(Fact::RequestAcknowledged { bytes }, &[event.id], Weight::Direct))
    }

    /// The header of the answer was passed on before the attempt failed: known from packets only, where nginx's word would tell.
    pub(crate) fn passed_header_on(&self) -> bool {
        self.attempt.is_some_and(|attempt| {
            attempt.complaint.is_none() && attempt.link == Link::Inferred && attempt.status.is_some()
        })
    }

    /// Bytes of the request that the upstream's kernel had not acknowledged when nginx gave up.
    pub(crate) fn unacknowledged(&self) -> Option<(u32, EventId)> {
        self.counters_at_failure().map(|(tcp, event)| (tcp.unacknowledged(), event))
    }

    /// Payload that nginx's socket had received in its life, and the event that shows it. A FIN counts one in the kernel's counter.
    pub(crate) fn payload_received(&self) -> Option<(u64, EventId)> {
        let (tcp, event) = self.counters_at_failure()?;
        let fin = u64::from(self.close().is_some());
        Some((tcp.bytes_received.saturating_sub(fin), event))
    }

    /// How many bytes of an answer came.
    pub(crate) fn response_bytes(&self) -> Option<u64> {
        let attempt = self.attempt?;
        if attempt.bytes_received.is_some() {
            return attempt.bytes_received;
        }
        let (received, _) = self.payload_received()?;
        if received == 0 || self.reused() == Some(false) {
            return Some(received);
        }
        // Nothing came since before the request began: then nothing came for it.
        let (tcp, _) = self.counters_at_failure()?;
        let lasted_us = self.failed_at().since_ns(attempt.started?) / 1_000;
        tcp.since_received_us.filter(|ago| *ago > lasted_us.saturating_add(TICK_SLACK_US)).map(|_| 0)
    }

    /// Evidence that no answer began, or how far it got.
    pub(crate) fn answer_evidence(&self) -> Option<Evidence> {
        let bytes = self.response_bytes()?;
        let event = self.complaint().map_or(self.case.decided_by, |(event, _)| event.id);
        let fact = if bytes == 0 { Fact::NoResponseByte } else { Fact::PartialResponse { bytes } };
        Some(evidence(fact, &[event], Weight::Fits))
    }

    /// How much of the request the upstream's application had not read when its socket closed: unread, received in all.
    pub(crate) fn upstream_unread(&self) -> Option<(u32, EventId)> {
        let flow = self.flow()?;
        flow.sockets(Side::Upstream)
            .filter(|(event, _)| event.at.earliest <= self.failed_at())
            .filter(|(_, e)| matches!(e.socket.state, TcpState::FinWait1 | TcpState::LastAck | TcpState::Closed))
            .find_map(|(event, e)| e.socket.tcp.map(|tcp| (tcp.unread(), event.id)))
    }

    /// How many bytes the upstream's application had read from the connection when its end was closed, if that was before nginx gave up:
    /// what it does with a connection that nginx has left says nothing.
    pub(crate) fn application_read(&self) -> Option<u64> {
        let flow = self.flow()?;
        flow.sockets(Side::Upstream)
            .filter(|(event, _)| event.at.earliest <= self.failed_at())
            .filter(|(_, e)| matches!(e.socket.state, TcpState::FinWait1 | TcpState::LastAck | TcpState::Closed))
            .find_map(|(_, e)| e.socket.tcp.map(|tcp| tcp.bytes_received.saturating_sub(u64::from(tcp.unread()))))
    }

    /// How many bytes the upstream's application had read when nginx's close arrived there: the first thing that nginx's giving up does.
    pub(crate) fn read_when_nginx_left(&self) -> Option<u64> {
        let (_, left) = self.flow()?.entered(Side::Upstream, TcpState::CloseWait).next()?;
        left.socket.tcp.map(|tcp| tcp.bytes_received.saturating_sub(u64::from(tcp.unread())))
    }

    /// The upstream's application had read nothing of the request when its end was closed.
    pub(crate) fn request_never_read(&self) -> Option<EventId> {
        let bytes = self.attempt?.bytes_sent.filter(|bytes| *bytes > 0 && !self.encrypted())?;
        let (unread, event) = self.upstream_unread()?;
        (u64::from(unread) >= bytes).then_some(event)
    }

    /// An application of the upstream certainly has the connection: it accepted it, or answered on it.
    pub(crate) fn taken_by_application(&self) -> Option<bool> {
        if self.accepted_by().is_some() {
            return Some(true);
        }
        self.flow()?;
        let answered = self.reused() == Some(true)
            || self.payload_received().is_some_and(|(bytes, _)| bytes > 0)
            || self.response_bytes().is_some_and(|bytes| bytes > 0);
        answered.then_some(true)
    }
}
