//! The two ends of a connection, and how it came to its own.

use std::net::SocketAddr;

use super::State;
use crate::model::{
    event::{Body, Event},
    packet::PacketBody,
    socket::{Socket, SocketChange, Syscall, TcpState},
    time::Moment,
};

/// The two ends an event is about, in any order.
pub(in crate::correlate) fn ends(event: &Event) -> Option<(SocketAddr, SocketAddr)> {
    match &event.body {
        Body::Socket(e) => match (e.socket.local, e.socket.remote, &e.change) {
            (Some(local), Some(remote), _) => Some((local, remote)),
            (_, _, SocketChange::ResetSent { answered: Some(answered), .. }) => {
                Some((answered.destination, answered.source))
            }
            _ => None,
        },
        Body::Syscall(call) => match &call.call {
            Syscall::Accept { result: Ok(_), socket: Some(socket), .. } => Some((socket.local?, socket.remote?)),
            _ => None,
        },
        Body::Drop(drop) => Some((drop.packet.source, drop.packet.destination)),
        Body::Packet(packet) => match &packet.body {
            PacketBody::Tcp(tcp) => Some((tcp.header.source, tcp.header.destination)),
            PacketBody::Icmp(icmp) => Some(icmp.about),
        },
        _ => None,
    }
}

pub(super) fn concerns(event: &Event, address: SocketAddr) -> bool {
    ends(event).is_some_and(|(one, other)| one == address || other == address)
}

pub(super) fn note_nginx_state(state: &mut State, socket: &Socket, change: &SocketChange, at: Moment) {
    if !matches!(change, SocketChange::State { .. }) {
        return;
    }
    if socket.state != TcpState::SynSent {
        state.beyond_syn = true;
    }
    // FIN_WAIT2 → CLOSE is how TIME_WAIT looks from here (the socket becomes a mini socket).
    if socket.state == TcpState::Closed && state.ended.is_none() {
        state.ended = Some(at);
    }
}

/// Nothing went wrong on it: no reset, no error.
pub(super) fn ended_well(state: &State, socket: &Socket) -> bool {
    socket.error.is_none() && state.flow.resets_received().next().is_none()
}
