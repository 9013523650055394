//! How connecting went.

use super::{Reading, evidence};
use crate::model::{
    attempt::Outcome,
    complaint::{Message, Phase},
    event::{Body, Event, EventId},
    evidence::{Evidence, Fact, Weight},
    flow::Side,
    net::Errno,
    packet::{IcmpPacket, PacketBody, TcpHeader},
    socket::{SocketChange, Syscall, TcpState},
};

/// SYN-ACK.
const fn is_answer(header: &TcpHeader) -> bool {
    header.flags.syn() && header.flags.ack()
}

impl Reading<'_> {
    /// Whether the connection came about; `None`: not known.
    pub(crate) fn connected(&self) -> Option<bool> {
        if self.reused() == Some(true) {
            return Some(true);
        }
        let waiting = self.socket_at_failure().is_some_and(|(socket, _)| socket.state == TcpState::SynSent);
        if let Some(flow) = self.flow() {
            if flow.entered(Side::Nginx, TcpState::Established).next().is_some() {
                return Some(true);
            }
            // An answer to the SYN on the wire says nothing when nginx's socket never heard it: a filter can stand between.
            let gave_up = flow
                .entered(Side::Nginx, TcpState::Closed)
                .any(|(_, e)| matches!(e.change, SocketChange::State { from: TcpState::SynSent }));
            if gave_up || self.phase() == Some(Phase::Connecting) {
                return Some(false);
            }
            let answered = flow.entered(Side::Upstream, TcpState::Established).next().is_some()
                || flow.packets_from_upstream().any(|(_, p)| p.header.flags.syn() && p.header.flags.ack());
            if answered {
                return Some(true);
            }
        }
        // An answer on the wire can still be taken away by a packet filter of this host: nginx's own socket and word come first.
        match self.phase() {
            Some(Phase::Connecting) => return Some(false),
            _ if waiting => return Some(false),
            Some(
                Phase::Sending | Phase::ReadingHeader | Phase::ReadingBody | Phase::Upgraded | Phase::TlsHandshake,
            ) => {
                return Some(true);
            }
            _ => {}
        }
        let answered = self.flow().is_some_and(|flow| {
            flow.entered(Side::Upstream, TcpState::Established).next().is_some()
                || flow.packets_from_upstream().any(|(_, p)| p.header.flags.syn() && p.header.flags.ack())
        });
        // Packets alone: what was made of them says that nobody took the connection.
        let failed = self.complaint().is_none()
            && matches!(self.outcome(), Outcome::Refused | Outcome::Unreachable | Outcome::TimeoutConnect);
        if answered { Some(true) } else { failed.then_some(false) }
    }

    /// The RST that answered the SYN: accepted by nginx's socket, or on the wire.
    pub(crate) fn syn_reset(&self) -> Option<Evidence> {
        let flow = self.flow()?;
        if self.connected() == Some(true) {
            return None;
        }
        let mut events: Vec<EventId> = flow
            .resets_received()
            .filter(|(_, e)| e.socket.state == TcpState::SynSent)
            .map(|(event, _)| event.id)
            .collect();
        events.extend(flow.packets_from_upstream().filter(|(_, p)| p.header.flags.rst()).map(|(event, _)| event.id));
        events.sort_unstable();
        (!events.is_empty()).then_some(Evidence {
            fact: Fact::SynReset { upstream: flow.upstream },
            events,
            weight: Weight::Symptom,
        })
    }

    /// This host's kernel found no socket for the SYN.
    pub(crate) fn no_socket_for_syn(&self) -> Option<Evidence> {
        let flow = self.flow()?;
        if self.connected() == Some(true) {
            return None;
        }
        let mut events: Vec<EventId> = flow
            .resets_sent_by_upstream()
            .filter(|(_, _, reason)| *reason == Some("NO_SOCKET"))
            .map(|(event, ..)| event.id)
            .collect();
        events.extend(flow.events.iter().filter_map(|event| match &event.body {
            Body::Drop(drop) if drop.packet.destination == flow.upstream => {
                (drop.reason.as_deref() == Some("NO_SOCKET")).then_some(event.id)
            }
            _ => None,
        }));
        events.sort_unstable();
        (!events.is_empty()).then_some(Evidence {
            fact: Fact::NoListener { upstream: self.server().unwrap_or(flow.upstream) },
            events,
            weight: Weight::Direct,
        })
    }

    /// The errno by which connecting failed, as the kernel told it: by the socket, or by `connect()` itself.
    pub(crate) fn connect_error(&self) -> Option<(Errno, Evidence)> {
        let of_flow = self.flow().and_then(|flow| {
            flow.sockets(Side::Nginx).find_map(|(event, e)| {
                let failed = match e.change {
                    SocketChange::State { from } => from == TcpState::SynSent && e.socket.state == TcpState::Closed,
                    SocketChange::ErrorReported => true,
                    _ => false,
                };
                let error = e.socket.error.filter(|_| failed && self.connected() != Some(true))?;
                Some((error, evidence(Fact::SocketError { errno: error }, &[event.id], Weight::Symptom)))
            })
        });
        of_flow.or_else(|| self.connect_call_error())
    }

    /// The errno that `connect()` itself returned.
    pub(crate) fn connect_call_error(&self) -> Option<(Errno, Evidence)> {
        self.attempt_syscalls().find_map(|event| match &event.body {
            Body::Syscall(syscall) => match &syscall.call {
                Syscall::Connect { result: Err(errno), .. } if *errno != Errno::EINPROGRESS => Some((
                    *errno,
                    evidence(
                        Fact::SyscallFailed { call: "connect", process: None, errno: *errno },
                        &[event.id],
                        Weight::Direct,
                    ),
                )),
                _ => None,
            },
            _ => None,
        })
    }

    /// System calls that belong to the attempt: its own, and those about its connection.
    pub(crate) fn attempt_syscalls(&self) -> impl Iterator<Item = &Event> {
        let own = self.attempt.into_iter().flat_map(|attempt| attempt.syscalls.iter());
        let of_flow = self.flow_events().filter(|event| matches!(event.body, Body::Syscall(_)));
        own.chain(of_flow)
    }

    /// Connecting took too long for nginx's timer or the kernel's.
    pub(crate) fn handshake_timed_out(&self) -> bool {
        let connecting = self.phase() == Some(Phase::Connecting) || self.outcome() == Outcome::TimeoutConnect;
        let unsaid = self.complaint().is_none() && self.outcome() == Outcome::TimeoutConnect;
        let by_nginx = connecting && (self.complains_of(&[Message::TimedOut]) || unsaid);
        (by_nginx || self.kernel_gave_up()) && self.connected() != Some(true)
    }

    /// It was the kernel's timer.
    pub(crate) fn kernel_gave_up(&self) -> bool {
        self.connect_error().is_some_and(|(errno, _)| errno == Errno::ETIMEDOUT)
            || (self.complains_of(&[Message::ConnectFailed]) && self.errno() == Some(Errno::ETIMEDOUT))
    }

    /// nginx's socket still waited for an answer to its SYN when the attempt ended.
    pub(crate) fn still_waiting(&self) -> Option<EventId> {
        let waiting = self.socket_at_failure().filter(|(socket, _)| socket.state == TcpState::SynSent);
        // nginx closed it while it still waited: without an error, straight from SYN_SENT.
        let given_up = || {
            let mut ends = self.flow()?.entered(Side::Nginx, TcpState::Closed);
            ends.find(|(_, e)| {
                matches!(e.change, SocketChange::State { from: TcpState::SynSent }) && e.socket.error.is_none()
            })
        };
        waiting.map(|(_, event)| event).or_else(|| given_up().map(|(event, _)| event.id))
    }

    /// SYN-ACKs of the upstream, before nginx gave up waiting for one: told by this host's kernel, which sent them again or dropped them,
    /// and seen in a capture.
    pub(crate) fn syn_answers(&self) -> (Vec<&Event>, Vec<&Event>) {
        let (upstream, until) = (self.upstream(), self.failed_at());
        let in_time = self.flow_events().filter(|event| event.at.latest <= until);
        in_time.fold((Vec::new(), Vec::new()), |(mut told, mut seen), event| {
            match &event.body {
                Body::Socket(e) if matches!(e.change, SocketChange::SynAckRetransmitted) => told.push(event),
                Body::Drop(drop) if Some(drop.packet.source) == upstream && is_answer(&drop.packet) => told.push(event),
                Body::Packet(packet) => match &packet.body {
                    PacketBody::Tcp(tcp) if Some(tcp.header.source) == upstream && is_answer(&tcp.header) => {
                        seen.push(event);
                    }
                    _ => {}
                },
                _ => {}
            }
            (told, seen)
        })
    }

    /// SYNs sent again, and whatever proves them.
    pub(crate) fn syn_retransmits(&self) -> (u32, Vec<EventId>) {
        let Some(flow) = self.flow() else { return (0, Vec::new()) };
        let by_kernel: Vec<EventId> = flow
            .sockets(Side::Nginx)
            .filter(|(_, e)| {
                e.socket.state == TcpState::SynSent && matches!(e.change, SocketChange::Retransmitted { .. })
            })
            .map(|(event, _)| event.id)
            .collect();
        let on_wire: Vec<EventId> = flow
            .packets_to_upstream()
            .filter(|(_, p)| p.header.flags.syn() && !p.header.flags.ack())
            .map(|(event, _)| event.id)
            .collect();
        let count = by_kernel.len().max(on_wire.len().saturating_sub(1));
        let mut events = by_kernel;
        events.extend(on_wire);
        events.sort_unstable();
        (u32::try_from(count).unwrap_or(u32::MAX), events)
    }

    /// ICMP messages about the connection.
    pub(crate) fn icmp(&self) -> impl Iterator<Item = (&Event, &IcmpPacket)> {
        self.flow_events().filter_map(|event| match &event.body {
            Body::Packet(packet) => match &packet.body {
                PacketBody::Icmp(icmp) => Some((event, icmp)),
                PacketBody::Tcp(_) => None,
            },
            _ => None,
        })
    }

    /// Packets of the connection that this host's kernel dropped, for a reason that is not a missing socket.
    pub(crate) fn drops(&self) -> impl Iterator<Item = (&Event, Option<&str>)> {
        self.flow_events().filter_map(|event| match &event.body {
            Body::Drop(drop) if drop.reason.as_deref() != Some("NO_SOCKET") => Some((event, drop.reason.as_deref())),
            _ => None,
        })
    }
}
