//! How the upstream ended the connection: FIN or RST, and on which side of the request.

use super::{
    Reading, SKEW_NS, evidence,
    request::{ONE_TICK_US, Span, at_or_before},
};
use crate::model::{
    attempt::Outcome,
    complaint::{Message, Phase},
    event::{Event, EventId, Source},
    evidence::{Evidence, Fact, Weight},
    flow::Side,
    net::Errno,
    packet::TcpHeader,
    socket::{SocketChange, TcpCounters, TcpState},
    time::Moment,
};

/// A reset that comes so soon after the request can still be the end of an idle connection whose application was closing it.
const CROSSING_NS: u64 = 5_000_000;

/// On which side of the request an ending lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// It was made before the upstream had seen a byte of the request.
    Crossed,
    /// The upstream had taken part of the request.
    Part,
    /// The upstream had taken all of it.
    After,
    /// Not known.
    Unknown,
}

/// An orderly close by the upstream.
#[derive(Clone, Debug)]
pub(crate) struct Close {
    /// What shows it.
    pub(crate) events: Vec<EventId>,
    /// When it was first seen.
    pub(crate) at: Moment,
    /// Before or after the request.
    pub(crate) order: Order,
}

/// A reset by the upstream's side.
#[derive(Clone, Debug)]
pub(crate) struct Reset {
    /// What shows it.
    pub(crate) events: Vec<EventId>,
    /// When it was first seen.
    pub(crate) at: Moment,
    /// Before or after the request.
    pub(crate) order: Order,
    /// This host's kernel sent it from the upstream's end: that record, and its reason.
    pub(crate) sent_here: Option<SentHere>,
}

/// This host's kernel's record of a reset that it sent.
#[derive(Debug, Clone)]
pub(crate) struct SentHere {
    event: EventId,
    reason: Option<String>,
    /// A listener refused it: it knows nothing of the connection, or has no room for it.
    pub(crate) by_listener: bool,
}

impl Close {
    /// As evidence.
    pub(crate) fn evidence(&self, weight: Weight) -> Evidence {
        let acknowledged_request = match self.order {
            Order::Crossed | Order::Part => Some(false),
            Order::After => Some(true),
            Order::Unknown => None,
        };
        evidence(Fact::FinReceived { acknowledged_request }, &self.events, weight)
    }
}

/// What nginx took as the end of an attempt whose answer was not there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// A reset.
    Reset,
    /// An orderly close.
    Close,
}

impl Reading<'_> {
    /// How the connection broke before the header was whole; `None`: it did not, or it never came about.
    pub(crate) fn broken(&self) -> Option<Broken> {
        if self.connected() == Some(false) && !self.failed_before_sending()
            || self.phase().is_some_and(Phase::is_after_header)
            || self.passed_header_on()
        {
            return None;
        }
        // What OpenSSL found wrong in what it read has no errno, and is no end of the connection.
        let text = self.complaint().map_or("", |(_, complaint)| &complaint.text);
        let by_tls = self.errno().is_none() && text.starts_with("SSL_");
        let lost = !by_tls && matches!(self.errno(), None | Some(Errno::ECONNRESET | Errno::EPIPE | Errno::ENOTCONN));
        let said = match self.complaint().map(|(_, complaint)| complaint.message) {
            Some(Message::PrematurelyClosed) => Some(Broken::Close),
            Some(Message::TlsHandshake) if text.starts_with("peer closed") => {
                Some(if self.errno().is_some() { Broken::Reset } else { Broken::Close })
            }
            // The upstream closed without taking leave in TLS, and this OpenSSL calls that an error.
            Some(Message::ReceiveFailed) if by_tls && text.contains("unexpected eof") => Some(Broken::Close),
            Some(Message::ReceiveFailed | Message::SendFailed) if lost => Some(Broken::Reset),
            // Before it writes, nginx asks the socket: a reset can have come before that, also right after the handshake.
            Some(Message::ConnectFailed)
                if lost
                    && (self.reused() == Some(true) || self.connected() == Some(true))
                    && self.errno().is_some() =>
            {
                Some(Broken::Reset)
            }
            Some(_) => return None,
            None => match self.outcome() {
                Outcome::Reset => Some(Broken::Reset),
                Outcome::Closed => Some(Broken::Close),
                _ => return None,
            },
        };
        // Through TLS nginx takes a reset for a close; the socket knows.
        match (said, self.close().is_some(), self.reset().is_some()) {
            (Some(Broken::Close), false, true) => Some(Broken::Reset),
            (said, ..) => said,
        }
    }

    /// The close crossed the request: the upstream had ended the connection before it saw a byte of it. `None`: not known.
    pub(crate) fn crossed(&self) -> Option<bool> {
        if self.unix_path().is_some() {
            return self.crossed_unix();
        }
        // Who has begun to answer has seen the request.
        if self.response_bytes().is_some_and(|bytes| bytes > 0) {
            return Some(false);
        }
        let close = self.close().map(|close| (close.at, close.order));
        let reset = self.reset().map(|reset| (reset.at, reset.order));
        let mut endings: Vec<(Moment, Order)> = close.into_iter().chain(reset).collect();
        endings.sort_by_key(|(at, _)| *at);
        endings.iter().find_map(|(_, order)| match order {
            Order::Crossed => Some(true),
            Order::Part | Order::After => Some(false),
            Order::Unknown => None,
        })
    }

    /// Over a unix socket a close is known to the other end at once: a first write that fails came after it, and an end of file after a
    /// whole write came from a process that had read what was written (else it is a reset, `unix_release_sock()`,
    /// <https://elixir.bootlin.com/linux/v6.12/source/net/unix/af_unix.c>).
    fn crossed_unix(&self) -> Option<bool> {
        let lost = matches!(self.errno(), Some(Errno::EPIPE | Errno::ECONNRESET));
        if lost && self.complains_of(&[Message::SendFailed]) && self.request_sent() == Some(false) {
            return Some(true);
        }
        (self.complains_of(&[Message::PrematurelyClosed]) && self.request_sent() == Some(true)).then_some(false)
    }

    /// The upstream's FIN.
    pub(crate) fn close(&self) -> Option<Close> {
        let flow = self.flow()?;
        let span = self.request_span();
        let mut seen: Vec<(&Event, Order)> = Vec::new();
        for (event, e) in flow.entered(Side::Nginx, TcpState::CloseWait) {
            seen.push((event, e.socket.tcp.as_ref().map_or(Order::Unknown, |tcp| order_at_close(tcp, span))));
        }
        for (event, packet) in flow.packets_from_upstream().filter(|(_, p)| p.header.flags.fin()) {
            seen.push((event, order_of(packet.header.acknowledgement, span)));
        }
        for (event, _) in flow.entered(Side::Upstream, TcpState::FinWait1) {
            seen.push((event, Order::Unknown));
        }
        seen.retain(|(event, _)| self.not_after_failure(event));
        let at = seen.iter().map(|(event, _)| event.at.earliest).min()?;
        let order = seen.iter().map(|(_, order)| *order).find(|o| *o != Order::Unknown).unwrap_or(Order::Unknown);
        // Nothing at all was sent: whatever the upstream closed, it closed before the request.
        let order = if self.request_sent() == Some(false) && order == Order::Unknown { Order::Crossed } else { order };
        let mut events: Vec<EventId> = seen.iter().map(|(event, _)| event.id).collect();
        events.sort_unstable();
        events.dedup();
        Some(Close { events, at, order })
    }

    /// The reset from the upstream's side, after connecting.
    pub(crate) fn reset(&self) -> Option<Reset> {
        let flow = self.flow()?;
        if self.connected() == Some(false) {
            return None;
        }
        let span = self.request_span();
        let mut seen: Vec<(&Event, Order)> = Vec::new();
        let received = flow.resets_received().filter(|(_, e)| e.socket.state != TcpState::SynSent);
        seen.extend(received.map(|(event, _)| (event, Order::Unknown)));
        for (event, packet) in self.effective_resets() {
            let order =
                if packet.header.flags.ack() { order_of(packet.header.acknowledgement, span) } else { Order::Unknown };
            seen.push((event, order));
        }
        let mut sent_here = None;
        for (event, e, reason) in flow.resets_sent_by_upstream() {
            let order = match &e.change {
                SocketChange::ResetSent { answered: Some(answered), .. }
                    if answers_a_closed_end(reason) || e.socket.state == TcpState::Listen =>
                {
                    order_of_answered(answered, span)
                }
                _ => Order::Unknown,
            };
            seen.push((event, order));
            let by = SentHere {
                event: event.id,
                reason: reason.map(str::to_owned),
                by_listener: e.socket.state == TcpState::Listen,
            };
            sent_here = sent_here.or(Some(by));
        }
        seen.retain(|(event, _)| self.not_after_failure(event));
        sent_here = sent_here.filter(|sent: &SentHere| seen.iter().any(|(event, _)| event.id == sent.event));
        let mut events: Vec<EventId> = seen.iter().map(|(event, _)| event.id).collect();
        // nginx's socket went straight from the connection to CLOSE with ECONNRESET or EPIPE: a reset that no other record shows.
        if seen.is_empty() {
            for (event, e) in flow.entered(Side::Nginx, TcpState::Closed) {
                let told = matches!(e.socket.error, Some(Errno::ECONNRESET | Errno::EPIPE));
                if told
                    && self.not_after_failure(event)
                    && !matches!(e.change, SocketChange::State { from: TcpState::SynSent })
                {
                    seen.push((event, Order::Unknown));
                    events.push(event.id);
                }
            }
        }
        let at = seen.iter().map(|(event, _)| event.at.earliest).min()?;
        let mut order = seen.iter().map(|(_, order)| *order).find(|o| *o != Order::Unknown).unwrap_or(Order::Unknown);
        if order == Order::Unknown && (self.request_sent() == Some(false) || self.failed_before_sending()) {
            order = Order::Crossed;
        }
        // Bytes that were acknowledged reached an end that was still open.
        if order == Order::Unknown && self.request_sent() == Some(true) && self.request_acknowledged().is_some() {
            order = Order::After;
        }
        if let Some(event) = self.request_never_read().filter(|_| order != Order::Crossed) {
            // Taken by the kernel, never by the application: a crossing if it was about to close anyway, which only the delay tells.
            let delay = self.started().map(|started| at.since_ns(started).saturating_add(self.started_uncertain_ns()));
            if delay.is_some_and(|ns| ns <= CROSSING_NS.max(self.round_trip_ns().saturating_mul(2))) {
                order = Order::Crossed;
                events.push(event);
            }
        }
        events.sort_unstable();
        events.dedup();
        Some(Reset { events, at, order, sent_here })
    }

    /// Whether a packet from the upstream was sent by an end that had seen something of this request.
    pub(crate) fn answers_this_request(&self, acknowledgement: u32) -> bool {
        match order_of(acknowledgement, self.request_span()) {
            Order::Part | Order::After => true,
            Order::Crossed => false,
            // On a connection that served nothing before, whatever came is about this request.
            Order::Unknown => self.reused() == Some(false),
        }
    }

    /// What comes after nginx's complaint is not what it complained of.
    fn not_after_failure(&self, event: &Event) -> bool {
        event.at.earliest <= self.failed_at().plus_ns(SKEW_NS)
    }

    /// nginx found a reused connection dead when it tested it, before it wrote anything.
    fn failed_before_sending(&self) -> bool {
        self.reused() == Some(true) && self.complains_of(&[Message::ConnectFailed])
    }

    /// The smoothed round-trip time.
    fn round_trip_ns(&self) -> u64 {
        self.counters_at_failure().map_or(0, |(tcp, _)| u64::from(tcp.rtt_us) * 1_000)
    }

    /// When the upstream's side ended the connection, at the latest when nginx complained.
    pub(crate) fn ended_at(&self) -> Moment {
        let close = self.close().map(|close| close.at);
        let reset = self.reset().map(|reset| reset.at);
        close.into_iter().chain(reset).min().unwrap_or_else(|| self.failed_at())
    }

    /// When the kernel saw the connection end: by a record of its own, whose clock is that of its records about processes.
    pub(crate) fn ended_by_kernel(&self) -> Option<Moment> {
        let close = self.close().map_or_else(Vec::new, |close| close.events);
        let reset = self.reset().map_or_else(Vec::new, |reset| reset.events);
        let named = self
            .flow_events()
            .filter(|event| event.source == Source::Kernel && (close.contains(&event.id) || reset.contains(&event.id)));
        // A reset that is known from the wire shows in the sockets' states as well.
        let ends = [
            (Side::Upstream, TcpState::FinWait1),
            (Side::Upstream, TcpState::Closed),
            (Side::Nginx, TcpState::CloseWait),
            (Side::Nginx, TcpState::Closed),
        ];
        let by_state = self.flow().into_iter().flat_map(|flow| {
            ends.into_iter().flat_map(move |(side, state)| flow.entered(side, state).map(|(event, _)| event))
        });
        named.chain(by_state).map(|event| event.at.earliest).min()
    }

    /// The reset as evidence.
    pub(crate) fn reset_evidence(&self, reset: &Reset, weight: Weight) -> Evidence {
        let after_request_us = self.began().map(|started| reset.at.since_ns(started) / 1_000);
        evidence(Fact::ResetReceived { after_request_us }, &reset.events, weight)
    }

    /// The reset this host's kernel sent from the upstream's end, as evidence.
    pub(crate) fn sent_here_evidence(&self, reset: &Reset, weight: Weight) -> Option<Evidence> {
        let SentHere { event, reason, by_listener } = reset.sent_here.clone()?;
        let unread = self.upstream_unread().map(|(unread, _)| unread);
        // That a listener does not know the connection does not say where its end has gone.
        let weight = if by_listener { Weight::Symptom } else { weight };
        Some(evidence(Fact::UpstreamKernelReset { reason, unread }, &[event], weight))
    }

    /// The upstream's socket on this host went from the connection straight to CLOSE: it was aborted here.
    pub(crate) fn aborted_here(&self) -> Option<Evidence> {
        let flow = self.flow()?;
        let (event, e) = flow
            .entered(Side::Upstream, TcpState::Closed)
            .find(|(_, e)| matches!(e.change, SocketChange::State { from: TcpState::Established }))?;
        // A reset that came from nginx's side would have left an error on it.
        e.socket.error.is_none().then(|| {
            let process = flow.accepted_by.clone();
            evidence(Fact::UpstreamClosed { process }, &[event.id], Weight::Direct)
        })
    }
}

/// Reasons of resets that answer a segment for a socket which is closed already.
pub(crate) fn answers_a_closed_end(reason: Option<&str>) -> bool {
    matches!(reason, Some("NO_SOCKET" | "TCP_TIMEWAIT_SOCKET" | "TCP_ABORT_ON_DATA" | "TCP_CLOSE"))
}

/// Where a FIN lies that left nginx's socket with these counters.
fn order_at_close(tcp: &TcpCounters, span: Option<Span>) -> Order {
    let order = order_of(tcp.snd_una, span);
    if order != Order::Unknown {
        return order;
    }
    // The last thing that happened before it was the answer to an earlier request: nothing had been asked since.
    match (tcp.since_sent_us, tcp.since_received_us) {
        (Some(sent), Some(received)) if tcp.unacknowledged() == 0 && sent > received.saturating_add(ONE_TICK_US) => {
            Order::Crossed
        }
        _ => Order::Unknown,
    }
}

/// Where an ending with this acknowledgement lies. Everything before the request was acknowledged long ago, as it was answered; so the
/// number is one within the request, or it belongs to another connection with the same addresses.
fn order_of(acknowledged: u32, span: Option<Span>) -> Order {
    match span {
        Some(Span { start: Some(start), .. }) if acknowledged == start => Order::Crossed,
        Some(Span { end, .. }) if acknowledged == end => Order::After,
        Some(Span { start: Some(start), end })
            if at_or_before(start, acknowledged) && at_or_before(acknowledged, end) =>
        {
            Order::Part
        }
        _ => Order::Unknown,
    }
}

/// Where the closing of the end that answered this segment lies: it hit a closed end, so what came before it was not refused.
fn order_of_answered(answered: &TcpHeader, span: Option<Span>) -> Order {
    match span {
        Some(Span { start: Some(start), .. }) if answered.sequence == start => Order::Crossed,
        Some(Span { start: Some(start), end })
            if at_or_before(start, answered.sequence) && at_or_before(answered.sequence, end) =>
        {
            Order::Part
        }
        _ => Order::Unknown,
    }
}
