//! TCP: states, resets, retransmissions, errors. In softirq the current process is whoever was interrupted, so sockets
//! are known by their addresses here, never by the process.

use aya_ebpf::{
    helpers::generated::bpf_jiffies64,
    programs::{BtfTracePointContext, RawTracePointContext},
};
use probe_abi::{
    Kind,
    endpoint::{FAMILY_INET, FAMILY_INET6},
    globals::only_trouble,
    socket::{NO_REASON, Packet, SocketEvent, StateChange, state},
};

use super::{
    emit,
    globals::{offset, setting},
    maps::{IN_TROUBLE, ONLY_TROUBLE},
    skb,
    socket::{Ends, Probed, Sock, TCP, Typed, describe, ends, is_mini},
    target,
};

/// States whose entering is told (bits). `SYN_SENT` is looked at to learn the address, and not told.
const TOLD: u32 = 1 << state::ESTABLISHED
    | 1 << state::CLOSE_WAIT
    | 1 << state::FIN_WAIT1
    | 1 << state::LAST_ACK
    | 1 << state::CLOSE
    | 1 << state::LISTEN;

/// `inet_sock_set_state(sk, oldstate, newstate)` with types.
#[inline(always)]
pub(crate) fn state_typed(context: &BtfTracePointContext) -> Option<()> {
    let (old, new) = (context.arg::<u32>(1) as u8, context.arg::<u32>(2) as u8);
    if wanted_now(new) {
        state_change(Typed::tcp(context.arg(0))?, old, new)?;
    }
    Some(())
}

/// The same without types.
#[inline(always)]
pub(crate) fn state_probed(context: &RawTracePointContext) -> Option<()> {
    let (old, new) = (context.arg::<u32>(1) as u8, context.arg::<u32>(2) as u8);
    if wanted_now(new) {
        let sock = Probed(context.arg(0));
        if sock.read::<u16>(offset!(sock_protocol)).is_none_or(|protocol| protocol == TCP) {
            state_change(sock, old, new)?;
        }
    }
    Some(())
}

#[inline(always)]
pub(crate) fn wanted(new: u8) -> bool {
    new == state::SYN_SENT || 1_u32 << (new & 31) & TOLD != 0
}

/// The same at the depth of the moment: at light a connection that comes about is nothing to tell.
#[inline(always)]
fn wanted_now(new: u8) -> bool {
    wanted(new) && !(new == state::ESTABLISHED && only_trouble())
}

#[inline(always)]
fn state_change(sock: impl Sock, old: u8, new: u8) -> Option<()> {
    // The cheapest question first: for nearly every connection of the host neither port is watched.
    let remote_port: u16 = sock.read(offset!(sock_dport))?;
    if new == state::SYN_SENT {
        // In the caller's context: the one place where a new destination of nginx shows itself.
        if target::worker().is_some() {
            let ends = ends(sock, false)?;
            if !target::upstream(&ends.remote) {
                target::learn(&ends.remote);
            }
        }
        return Some(());
    }
    let mut local_port: u16 = sock.read(offset!(inet_sport))?;
    if local_port == 0 {
        local_port = sock.read::<u16>(offset!(sock_num))?.to_be();
    }
    let from_here = target::port(remote_port.to_ne_bytes());
    let to_here = target::port(local_port.to_ne_bytes());
    if !from_here && !to_here {
        return Some(());
    }
    if only_trouble() && old != state::LISTEN && new != state::LISTEN && ends_well(sock, from_here, new) {
        return Some(());
    }
    let ends = ends(sock, false)?;
    // A listener has a wildcard address more often than not, so its port decides.
    let listener = old == state::LISTEN || new == state::LISTEN;
    let watched = if listener { to_here } else { is_watched(&ends) };
    if !watched {
        return Some(());
    }
    emit::record(Kind::StateChange, |record: &mut StateChange| {
        describe(&mut record.socket, sock, &ends, if listener { state::LISTEN } else { new });
        record.socket.state = new;
        record.socket.old_state = old;
        record.jiffies = jiffies();
        record.in_task = in_task(sock, old, new);
    });
    Some(())
}

/// Whether nothing speaks of a failure in this step towards a connection's end, and nothing has been told of it: both sides have sent and
/// received, nothing was repeated or left unread, the request was answered, and the end followed at once. An answer that breaks off
/// looks the same to the kernel; of that nginx's own complaint tells, with the socket as it is then.
#[inline(always)]
fn ends_well(sock: impl Sock, connecting: bool, new: u8) -> bool {
    let well = looks_well(sock, connecting, new).unwrap_or(false);
    if new == state::CLOSE {
        let address = sock.address();
        // SAFETY: only asked whether it is there.
        let told = unsafe { IN_TROUBLE.get(address) }.is_some();
        if told {
            let _gone = IN_TROUBLE.remove(address);
        }
        return well && !told;
    }
    if !well {
        in_trouble(sock.address());
    }
    well
}

#[inline(always)]
fn looks_well(sock: impl Sock, connecting: bool, new: u8) -> Option<bool> {
    if sock.read::<u32>(offset!(sock_err))? != 0
        || sock.read::<u64>(offset!(tcp_bytes_received))? == 0
        || sock.read::<u64>(offset!(tcp_bytes_sent))? == 0
        || sock.read::<u32>(offset!(tcp_total_retrans))? != 0
    {
        return Some(false);
    }
    // A FIN may come with the data before it; whoever closes has read all, and the FIN counts for one.
    let unread = sock.read::<u32>(offset!(tcp_rcv_nxt))?.wrapping_sub(sock.read(offset!(tcp_copied_seq))?);
    if new != state::CLOSE_WAIT && unread > 1 {
        return Some(false);
    }
    if new == state::CLOSE {
        return Some(true);
    }
    let sent: u32 = sock.read(offset!(tcp_lsndtime))?;
    let received: u32 = sock.read(offset!(icsk_lrcvtime))?;
    // The last word must be the server's. Both count in jiffies, so what happened within one is taken for in order.
    let (asked, answered) = if connecting { (sent, received) } else { (received, sent) };
    let idle = (jiffies() as u32).wrapping_sub(answered);
    Some(asked.wrapping_sub(answered).cast_signed() <= 0 && idle <= AT_ONCE)
}

/// A connection that ends so many jiffies after its last answer was kept for another request.
const AT_ONCE: u32 = 3;

/// Whether of connections only trouble is told. What never changes is decided at load.
#[inline(always)]
fn only_trouble() -> bool {
    match setting!(only_trouble) {
        only_trouble::NEVER => false,
        only_trouble::SWITCHED => ONLY_TROUBLE.get(0).is_some_and(|now| *now != 0),
        _ => true,
    }
}

/// Remembers that something was told of this socket.
#[inline(always)]
fn in_trouble(address: u64) {
    if only_trouble() {
        // The map makes room by itself.
        let _done = IN_TROUBLE.insert(address, 1, 0);
    }
}

/// Whether the change was made by the current task: 1 yes, 0 no, 2 not known. There is no helper that tells.
///
/// The socket's lock does: a change made by a task that called `close()` or `connect()` happens while a task owns the
/// socket, one made by a packet or a timer while none does. But a packet that arrives while it is owned waits, and the
/// owner works it off: an owned socket that has an error, or was waiting for the peer's FIN, tells nothing.
/// <https://elixir.bootlin.com/linux/v6.12/source/net/ipv4/tcp.c> (`__tcp_close`, `tcp_done`)
#[inline(always)]
fn in_task(sock: impl Sock, old: u8, new: u8) -> u32 {
    match (old, new) {
        // Only `tcp_close_state`, called by `close()` and `shutdown()`, makes the first two; `listen()` and its end the others.
        (_, state::FIN_WAIT1 | state::LAST_ACK | state::LISTEN) | (state::LISTEN, _) => 1,
        _ => match (sock.read::<u32>(offset!(sock_owned)), sock.read::<u32>(offset!(sock_err))) {
            (Some(0), _) => 0,
            (Some(_), Some(0)) if new == state::CLOSE && can_be_aborted(old) => 1,
            _ => 2,
        },
    }
}

/// States that no packet and no timer ends without an error.
#[inline(always)]
fn can_be_aborted(old: u8) -> bool {
    old == state::SYN_SENT || old == state::ESTABLISHED || old == state::CLOSE_WAIT
}

/// `tcp_send_reset(sk, skb[, reason])`: either may be null, `sk` may be a mini socket or a listener.
#[inline(always)]
pub(crate) fn reset_sent(context: &RawTracePointContext) -> Option<()> {
    let reason = if setting!(has_reset_reason) == 0 { NO_REASON } else { context.arg(2) };
    let packet = skb::packet(context.arg(1));
    let sock = Probed(context.arg(0));
    let found = if sock.0 == 0 { None } else { found(sock) };
    let watched = found.as_ref().is_some_and(|(ends, _)| is_watched(ends));
    if !watched && !packet.as_ref().is_some_and(skb::is_watched) {
        return Some(());
    }
    if watched {
        in_trouble(sock.0);
    }
    emit::record(Kind::ResetSent, |record: &mut SocketEvent| {
        event(record, sock, found.as_ref());
        record.value = reason;
        describe_packet(record, packet.as_ref());
    });
    Some(())
}

/// `tcp_receive_reset(sk)`: a reset passed the checks; error and state have not changed yet.
#[inline(always)]
pub(crate) fn reset_received(context: &RawTracePointContext) -> Option<()> {
    tell(Kind::ResetReceived, Probed(context.arg(0)), 0)
}

/// `tcp_retransmit_skb(sk, skb[, err])`.
#[inline(always)]
pub(crate) fn retransmit(context: &RawTracePointContext) -> Option<()> {
    let length: Option<u32> = super::read::member(context.arg(1), offset!(skb_len));
    tell(Kind::Retransmit, Probed(context.arg(0)), length.unwrap_or(0))
}

/// `inet_sk_error_report(sk)`.
#[inline(always)]
pub(crate) fn error_report(context: &RawTracePointContext) -> Option<()> {
    let sock = Probed(context.arg(0));
    let error: u32 = sock.read(offset!(sock_err))?;
    // `tcp_disconnect` reports as well, with no error or after the addresses are gone; that tells nothing.
    // https://elixir.bootlin.com/linux/v6.12/source/net/ipv4/tcp.c (tcp_disconnect)
    if error == 0 || sock.read::<u16>(offset!(sock_dport))? == 0 {
        return Some(());
    }
    tell(Kind::ErrorReport, sock, error)
}

/// `tcp_retransmit_synack(sk, req)`: the listener and the connection that is not one yet.
#[inline(always)]
pub(crate) fn synack_retransmit(context: &RawTracePointContext) -> Option<()> {
    let listener = Probed(context.arg(0));
    // `struct request_sock` begins with a `struct sock_common`.
    let asked = ends(Probed(context.arg(1)), true)?;
    if !is_watched(&asked) {
        return Some(());
    }
    let found = found(listener);
    emit::record(Kind::SynAckRetransmit, |record: &mut SocketEvent| {
        event(record, listener, found.as_ref());
        record.has_packet = 1;
        record.packet.source = asked.local;
        record.packet.destination = asked.remote;
        record.packet.protocol = TCP as u8;
    });
    Some(())
}

#[inline(always)]
fn tell(kind: Kind, sock: Probed, value: u32) -> Option<()> {
    let found = found(sock)?;
    if is_watched(&found.0) {
        in_trouble(sock.0);
        emit::record(kind, |record: &mut SocketEvent| {
            event(record, sock, Some(&found));
            record.value = value;
        });
    }
    Some(())
}

/// Ends and state of an internet socket.
#[inline(always)]
fn found(sock: Probed) -> Option<(Ends, u8)> {
    let family: u16 = sock.read(offset!(sock_family))?;
    if family != FAMILY_INET && family != FAMILY_INET6 {
        return None;
    }
    let state: u8 = sock.read(offset!(sock_state))?;
    Some((ends(sock, is_mini(state))?, state))
}

#[inline(always)]
fn event(record: &mut SocketEvent, sock: Probed, found: Option<&(Ends, u8)>) {
    record.jiffies = jiffies();
    if let Some((ends, state)) = found {
        describe(&mut record.socket, sock, ends, *state);
    }
}

#[inline(always)]
fn describe_packet(record: &mut SocketEvent, packet: Option<&Packet>) {
    if let Some(packet) = packet {
        record.has_packet = 1;
        record.packet = *packet;
    }
}

#[inline(always)]
pub(crate) fn is_watched(ends: &Ends) -> bool {
    target::upstream(&ends.remote) || target::upstream(&ends.local)
}

/// Jiffies, to compare with a socket's times.
#[inline(always)]
pub(crate) fn jiffies() -> u64 {
    // SAFETY: takes no arguments.
    unsafe { bpf_jiffies64() }
}
