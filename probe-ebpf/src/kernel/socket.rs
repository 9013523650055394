//! What a socket looks like now.

use aya_ebpf::helpers::generated::bpf_skc_to_tcp_sock;
use probe_abi::{
    Endpoint,
    endpoint::{FAMILY_INET, FAMILY_INET6},
    globals::ABSENT,
    socket::{Socket, present, state},
};

use super::{globals::offset, read};

/// `IPPROTO_TCP`.
pub(crate) const TCP: u16 = 6;

/// A `struct sock` that can be read.
pub(crate) trait Sock: Copy {
    /// Its address.
    fn address(self) -> u64;
    /// A member.
    fn read<T: Copy>(self, offset: u32) -> Option<T>;
    /// A member, straight into a record.
    fn copy<T: Copy>(self, to: &mut T, offset: u32);
    /// The namespace structure it belongs to, its number.
    fn netns(self) -> Option<u32>;
}

/// An address; every read goes through the kernel's checked copy.
#[derive(Clone, Copy)]
pub(crate) struct Probed(pub u64);

impl Sock for Probed {
    #[inline(always)]
    fn address(self) -> u64 {
        self.0
    }

    #[inline(always)]
    fn read<T: Copy>(self, offset: u32) -> Option<T> {
        read::member(self.0, offset)
    }

    #[inline(always)]
    fn copy<T: Copy>(self, to: &mut T, offset: u32) {
        read::copy_member(to, self.0, offset);
    }

    #[inline(always)]
    fn netns(self) -> Option<u32> {
        read::member(read::member(self.0, offset!(sock_net))?, offset!(net_inum))
    }
}

/// A `struct tcp_sock` whose type the verifier knows: members are loaded directly, a tenth of the price.
#[derive(Clone, Copy)]
pub(crate) struct Typed(*const u8);

impl Typed {
    /// The TCP socket that this `struct sock` (a typed pointer) is; `None` for other protocols and for mini sockets.
    #[inline(always)]
    pub(crate) fn tcp(sock: *const u8) -> Option<Self> {
        // SAFETY: the kernel checks what it is.
        let tcp = unsafe { bpf_skc_to_tcp_sock(sock.cast_mut().cast()) };
        if tcp.is_null() { None } else { Some(Self(tcp.cast_const().cast())) }
    }
}

impl Sock for Typed {
    #[inline(always)]
    fn address(self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    fn read<T: Copy>(self, offset: u32) -> Option<T> {
        if offset == ABSENT {
            return None;
        }
        // SAFETY: the verifier has checked pointer, offset and size against the kernel's types.
        Some(unsafe { self.0.add(offset as usize).cast::<T>().read() })
    }

    #[inline(always)]
    fn copy<T: Copy>(self, to: &mut T, offset: u32) {
        if let Some(value) = self.read(offset) {
            *to = value;
        }
    }

    #[inline(always)]
    fn netns(self) -> Option<u32> {
        let net: *const u8 = self.read(offset!(sock_net))?;
        // A load through a typed pointer that fails gives zero.
        Self(net).read(offset!(net_inum))
    }
}

/// Both ends of a socket.
#[derive(Clone, Copy)]
pub(crate) struct Ends {
    /// This side.
    pub(crate) local: Endpoint,
    /// The other side.
    pub(crate) remote: Endpoint,
}

/// Whether only `struct sock_common` is there.
#[inline(always)]
pub(crate) fn is_mini(state: u8) -> bool {
    state == state::TIME_WAIT || state == state::NEW_SYN_RECV
}

/// Both ends of an `AF_INET` or `AF_INET6` socket. `mini`: only `struct sock_common` may be read.
#[inline(always)]
pub(crate) fn ends(sock: impl Sock, mini: bool) -> Option<Ends> {
    let family: u16 = sock.read(offset!(sock_family))?;
    let mut local = Endpoint::UNKNOWN;
    let mut remote = Endpoint::UNKNOWN;
    remote.port = sock.read::<u16>(offset!(sock_dport))?.to_ne_bytes();
    // The local port proper is given back before a client's socket reaches CLOSE; `inet_sport` keeps it.
    // https://elixir.bootlin.com/linux/v6.12/source/net/ipv4/inet_hashtables.c (inet_put_port)
    let kept: u16 = if mini { 0 } else { sock.read(offset!(inet_sport)).unwrap_or(0) };
    local.port = if kept == 0 { sock.read::<u16>(offset!(sock_num))?.to_be_bytes() } else { kept.to_ne_bytes() };
    if family == FAMILY_INET {
        version_4(&mut local, sock.read(offset!(sock_rcv_saddr))?);
        version_4(&mut remote, sock.read(offset!(sock_daddr))?);
    } else if family == FAMILY_INET6 {
        version_6(&mut local, words(sock, offset!(sock_v6_rcv_saddr))?);
        version_6(&mut remote, words(sock, offset!(sock_v6_daddr))?);
    } else {
        return None;
    }
    Some(Ends { local, remote })
}

/// Writes into a record which socket it is: ends, state, namespace.
#[inline(always)]
pub(crate) fn identify(record: &mut Socket, sock: impl Sock, ends: &Ends, state: u8) {
    record.pointer = sock.address();
    record.state = state;
    record.old_state = state;
    record.local = ends.local;
    record.remote = ends.remote;
    record.present = present::TUPLE;
    record.netns = sock.netns().unwrap_or(0);
    sock.copy(&mut record.cookie, offset!(sock_cookie));
}

/// Writes what is known of a socket into a record. `old_state` is left to the caller where it differs.
#[inline(always)]
pub(crate) fn describe(record: &mut Socket, sock: impl Sock, ends: &Ends, state: u8) {
    identify(record, sock, ends, state);
    if is_mini(state) {
        return;
    }
    if offset!(sock_err) != ABSENT {
        sock.copy(&mut record.error, offset!(sock_err));
        sock.copy(&mut record.soft_error, offset!(sock_err_soft));
        sock.copy(&mut record.shutdown, offset!(sock_shutdown));
        record.present |= present::ERROR;
    }
    if state == state::LISTEN {
        if offset!(sock_ack_backlog) != ABSENT {
            sock.copy(&mut record.accept_queue, offset!(sock_ack_backlog));
            sock.copy(&mut record.accept_queue_limit, offset!(sock_max_ack_backlog));
            record.present |= present::QUEUE;
        }
        return;
    }
    if offset!(tcp_write_seq) != ABSENT && sock.read::<u16>(offset!(sock_protocol)) == Some(TCP) {
        describe_tcp(record, sock);
        record.present |= present::TCP;
    }
}

#[inline(always)]
fn describe_tcp(record: &mut Socket, sock: impl Sock) {
    sock.copy(&mut record.bytes_acked, offset!(tcp_bytes_acked));
    sock.copy(&mut record.bytes_received, offset!(tcp_bytes_received));
    sock.copy(&mut record.bytes_sent, offset!(tcp_bytes_sent));
    sock.copy(&mut record.write_seq, offset!(tcp_write_seq));
    sock.copy(&mut record.snd_una, offset!(tcp_snd_una));
    sock.copy(&mut record.snd_nxt, offset!(tcp_snd_nxt));
    sock.copy(&mut record.rcv_nxt, offset!(tcp_rcv_nxt));
    sock.copy(&mut record.copied_seq, offset!(tcp_copied_seq));
    sock.copy(&mut record.srtt_us_8, offset!(tcp_srtt_us));
    sock.copy(&mut record.total_retransmits, offset!(tcp_total_retrans));
    sock.copy(&mut record.last_sent_jiffies, offset!(tcp_lsndtime));
    sock.copy(&mut record.last_received_jiffies, offset!(icsk_lrcvtime));
    sock.copy(&mut record.retransmits, offset!(icsk_retransmits));
}

/// An IPv6 address as four words.
#[inline(always)]
fn words(sock: impl Sock, offset: u32) -> Option<[u32; 4]> {
    if offset == ABSENT {
        return None;
    }
    Some([sock.read(offset)?, sock.read(offset + 4)?, sock.read(offset + 8)?, sock.read(offset + 12)?])
}

/// An IPv4 address as the kernel keeps it (network order).
#[inline(always)]
pub(crate) fn version_4(endpoint: &mut Endpoint, address: u32) {
    let bytes = address.to_ne_bytes();
    endpoint.family = FAMILY_INET;
    endpoint.address[0] = bytes[0];
    endpoint.address[1] = bytes[1];
    endpoint.address[2] = bytes[2];
    endpoint.address[3] = bytes[3];
}

/// An IPv6 address as the kernel keeps it; IPv4-mapped ones become IPv4.
#[inline(always)]
pub(crate) fn version_6(endpoint: &mut Endpoint, words: [u32; 4]) {
    if words[0] == 0 && words[1] == 0 && words[2] == u32::from_be(0xffff) {
        return version_4(endpoint, words[3]);
    }
    endpoint.family = FAMILY_INET6;
    // SAFETY: sixteen plain bytes either way.
    endpoint.address = unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) };
}
