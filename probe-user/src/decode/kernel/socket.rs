//! Sockets, dropped packets and system calls.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use probe_abi::{
    Endpoint, Kind,
    endpoint::{FAMILY_INET, FAMILY_INET6, FAMILY_UNIX},
    socket as abi,
    syscall::{Accept, Connect, OpenCall, PATH, SocketCall},
};

use super::{Names, RecordError, read, text};
use crate::model::{
    event::Body,
    net::{Address, Errno},
    packet::{TcpFlags, TcpHeader},
    process::Pid,
    socket::{
        DropEvent, Socket, SocketChange, SocketEvent, SocketPointer, Syscall, SyscallEvent, TcpCounters, TcpState,
    },
};

const PROTOCOL_TCP: u8 = 6;

/// Reads a record of one of these kinds.
pub(super) fn decode(kind: Kind, record: &[u8], names: &Names) -> Result<Body, RecordError> {
    match kind {
        Kind::StateChange => {
            let change: abi::StateChange = read(record, "a state change")?;
            Ok(Body::from(SocketEvent {
                change: SocketChange::State { from: state(change.socket.old_state) },
                socket: socket(&change.socket, change.jiffies, names.hz),
                // In softirq the current task is whoever was interrupted.
                by: (change.in_task == 1).then_some(Pid(change.header.tgid)),
            }))
        }
        Kind::Drop => {
            let drop: abi::Drop = read(record, "a drop")?;
            let packet = tcp_header(&drop.packet).ok_or(RecordError::Unusable { kind, what: "TCP packet" })?;
            Ok(Body::Drop(DropEvent {
                reason: names.drop_reason(drop.reason),
                netns: (drop.netns != 0).then_some(drop.netns),
                packet,
            }))
        }
        Kind::Connect | Kind::Accept | Kind::SocketCall | Kind::OpenCall => {
            syscall(kind, record, names.hz).map(Body::from)
        }
        _ => socket_event(kind, record, names).map(Body::from),
    }
}

fn socket_event(kind: Kind, record: &[u8], names: &Names) -> Result<SocketEvent, RecordError> {
    let event: abi::SocketEvent = read(record, "a socket event")?;
    let answered = if event.has_packet == 1 { tcp_header(&event.packet) } else { None };
    let mut socket = socket(&event.socket, event.jiffies, names.hz);
    let change = match kind {
        Kind::ResetSent => {
            if let Some(packet) = &answered
                && socket.remote.is_none()
            {
                // No socket, one without addresses, or a listener: a RST goes back the way the packet came.
                socket.local = Some(packet.destination);
                socket.remote = Some(packet.source);
            }
            SocketChange::ResetSent { reason: names.reset_reason(event.value), answered }
        }
        Kind::ResetReceived => SocketChange::ResetReceived,
        Kind::Retransmit => SocketChange::Retransmitted { payload: event.value },
        Kind::SynAckRetransmit => {
            // Told of the listener, which has no other end; the packet names the connection that is not one yet.
            if let Some(packet) = &answered {
                socket.local = Some(packet.source);
                socket.remote = Some(packet.destination);
            }
            SocketChange::SynAckRetransmitted
        }
        Kind::ErrorReport => SocketChange::ErrorReported,
        _ => return Err(RecordError::UnknownKind(event.header.kind)),
    };
    Ok(SocketEvent { change, socket, by: None })
}

fn syscall(kind: Kind, record: &[u8], hz: u32) -> Result<SyscallEvent, RecordError> {
    // These records carry no jiffies, so nothing is said about how long ago something was.
    let (header, call) = match kind {
        Kind::Connect => {
            let connect: Connect = read(record, "a connect")?;
            let call = Syscall::Connect {
                fd: connect.fd,
                address: connect_address(&connect),
                result: result(connect.result),
                socket: optional_socket(&connect.socket, 0, hz),
            };
            (connect.header, call)
        }
        Kind::Accept => {
            let accept: Accept = read(record, "an accept")?;
            let call = Syscall::Accept {
                listener: accept.fd,
                result: result(accept.result),
                socket: optional_socket(&accept.socket, 0, hz),
                peer: accept.socket.remote.inode(),
                command: text(&accept.command),
            };
            (accept.header, call)
        }
        Kind::OpenCall => {
            let open: OpenCall = read(record, "an open call")?;
            let error = result(open.result).err().ok_or(RecordError::Unusable { kind, what: "errno" })?;
            (open.header, Syscall::Open { error })
        }
        _ => {
            let made: SocketCall = read(record, "a socket call")?;
            let error = result(made.result).err().ok_or(RecordError::Unusable { kind, what: "errno" })?;
            (made.header, Syscall::Socket { family: made.family, error })
        }
    };
    Ok(SyscallEvent { pid: Pid(header.tgid), tid: Pid(header.tid), call })
}

fn connect_address(connect: &Connect) -> Option<Address> {
    if connect.address.family != FAMILY_UNIX {
        return address(&connect.address).map(Address::Ip);
    }
    let length = usize::try_from(connect.path_length).unwrap_or(PATH).min(PATH);
    let path = match &connect.path[..length] {
        // An abstract name: nginx and ss write it with an at sign.
        [0, name @ ..] if name.iter().any(|&byte| byte != 0) => format!("@{}", text(name)),
        path => text(path),
    };
    (!path.is_empty()).then_some(Address::Unix(path))
}

fn result(raw: i32) -> Result<i32, Errno> {
    if raw < 0 { Err(Errno(raw.unsigned_abs())) } else { Ok(raw) }
}

/// The address, where it is one. Port 0 is a socket that has no address yet, or a listener's missing peer.
#[must_use]
pub fn address(endpoint: &Endpoint) -> Option<SocketAddr> {
    let a = endpoint.address;
    let ip = match endpoint.family {
        FAMILY_INET => IpAddr::V4(Ipv4Addr::new(a[0], a[1], a[2], a[3])),
        FAMILY_INET6 => IpAddr::V6(Ipv6Addr::from(a)),
        _ => return None,
    };
    (endpoint.port() != 0).then(|| SocketAddr::new(ip, endpoint.port()))
}

fn tcp_header(packet: &abi::Packet) -> Option<TcpHeader> {
    if packet.protocol != PROTOCOL_TCP {
        return None;
    }
    Some(TcpHeader {
        source: address(&packet.source)?,
        destination: address(&packet.destination)?,
        sequence: packet.sequence,
        acknowledgement: packet.acknowledgement,
        flags: TcpFlags(packet.flags),
        ttl: packet.ttl,
    })
}

/// The socket, or `None` where the record has none.
pub(super) fn optional_socket(raw: &abi::Socket, jiffies: u64, hz: u32) -> Option<Socket> {
    (raw.pointer != 0 || raw.present != 0).then(|| socket(raw, jiffies, hz))
}

fn socket(raw: &abi::Socket, jiffies: u64, hz: u32) -> Socket {
    let has = |bit: u32| raw.present & bit != 0;
    let errno = |number: u32| (has(abi::present::ERROR) && number != 0).then_some(Errno(number));
    Socket {
        pointer: (raw.pointer != 0).then_some(SocketPointer(raw.pointer)),
        cookie: (raw.cookie != 0).then_some(raw.cookie).or(raw.local.inode()),
        netns: (has(abi::present::TUPLE) && raw.netns != 0).then_some(raw.netns),
        local: if has(abi::present::TUPLE) { address(&raw.local) } else { None },
        remote: if has(abi::present::TUPLE) { address(&raw.remote) } else { None },
        state: state(raw.state),
        error: errno(raw.error),
        soft_error: errno(raw.soft_error),
        retransmits: raw.retransmits,
        tcp: has(abi::present::TCP).then(|| counters(raw, jiffies, hz)),
        accept_queue: has(abi::present::QUEUE).then_some((raw.accept_queue, raw.accept_queue_limit)),
    }
}

fn counters(raw: &abi::Socket, jiffies: u64, hz: u32) -> TcpCounters {
    TcpCounters {
        bytes_acked: raw.bytes_acked,
        bytes_received: raw.bytes_received,
        bytes_sent: raw.bytes_sent,
        write_seq: raw.write_seq,
        snd_una: raw.snd_una,
        snd_nxt: raw.snd_nxt,
        rcv_nxt: raw.rcv_nxt,
        copied_seq: raw.copied_seq,
        rtt_us: raw.srtt_us_8 >> 3,
        total_retransmits: raw.total_retransmits,
        // Both times are set when the connection is established, before any data
        // (tcp_finish_connect, https://elixir.bootlin.com/linux/v6.18/C/ident/tcp_finish_connect), and a FIN counts one received byte.
        since_sent_us: if raw.bytes_sent > 0 { since_us(jiffies, raw.last_sent_jiffies, hz) } else { None },
        since_received_us: if raw.bytes_received > 1 { since_us(jiffies, raw.last_received_jiffies, hz) } else { None },
    }
}

/// Microseconds from the low 32 bits of an earlier jiffies value to now. The low half wraps (first five minutes after boot).
fn since_us(jiffies: u64, earlier: u32, hz: u32) -> Option<u64> {
    if jiffies == 0 || earlier == 0 || hz == 0 {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "the kernel keeps the low 32 bits, so these are compared")]
    let ticks = (jiffies as u32).wrapping_sub(earlier);
    // A tick may pass between the two reads; anything further ahead is a value of the last round.
    match ticks.cast_signed() {
        ticks @ 0.. => Some(u64::from(ticks.unsigned_abs()) * 1_000_000 / u64::from(hz)),
        -2..=-1 => Some(0),
        _ => None,
    }
}

fn state(number: u8) -> TcpState {
    match number {
        abi::state::ESTABLISHED => TcpState::Established,
        abi::state::SYN_SENT => TcpState::SynSent,
        abi::state::SYN_RECV => TcpState::SynReceived,
        abi::state::FIN_WAIT1 => TcpState::FinWait1,
        abi::state::FIN_WAIT2 => TcpState::FinWait2,
        abi::state::TIME_WAIT => TcpState::TimeWait,
        abi::state::CLOSE => TcpState::Closed,
        abi::state::CLOSE_WAIT => TcpState::CloseWait,
        abi::state::LAST_ACK => TcpState::LastAck,
        abi::state::LISTEN => TcpState::Listen,
        abi::state::CLOSING => TcpState::Closing,
        abi::state::NEW_SYN_RECV => TcpState::NewSynReceived,
        other => TcpState::Unknown(other),
    }
}
