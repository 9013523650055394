//! Read-only values that the loader fills in before the programs are loaded.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An offset the running kernel's BTF does not have.
pub const ABSENT: u32 = u32::MAX;

macro_rules! offsets {
    ($($(#[$meta:meta])* $name:ident: $kernel:literal,)*) => {
        /// Member offsets of the running kernel, bytes; [`ABSENT`] where the kernel has no such member.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct Offsets { $($(#[$meta])* #[doc = concat!("`", $kernel, "`")] pub $name: u32,)* }

        impl Offsets {
            /// Nothing is known.
            pub const UNKNOWN: Self = Self { $($name: ABSENT,)* };

            /// For each field, in order: its name here and `struct.member` in the kernel (members of members follow after further dots).
            pub const MEMBERS: &'static [(&'static str, &'static str)] = &[$((stringify!($name), $kernel),)*];
        }
    };
}

offsets! {
    sock_daddr: "sock.__sk_common.skc_daddr",
    sock_rcv_saddr: "sock.__sk_common.skc_rcv_saddr",
    sock_dport: "sock.__sk_common.skc_dport",
    sock_num: "sock.__sk_common.skc_num",
    sock_family: "sock.__sk_common.skc_family",
    sock_state: "sock.__sk_common.skc_state",
    sock_net: "sock.__sk_common.skc_net",
    sock_v6_daddr: "sock.__sk_common.skc_v6_daddr",
    sock_v6_rcv_saddr: "sock.__sk_common.skc_v6_rcv_saddr",
    sock_cookie: "sock.__sk_common.skc_cookie",
    sock_err: "sock.sk_err",
    sock_err_soft: "sock.sk_err_soft",
    sock_shutdown: "sock.sk_shutdown",
    sock_protocol: "sock.sk_protocol",
    sock_owned: "sock.sk_lock.owned",
    sock_ack_backlog: "sock.sk_ack_backlog",
    sock_max_ack_backlog: "sock.sk_max_ack_backlog",
    sock_socket: "sock.sk_socket",
    sock_peer_pid: "sock.sk_peer_pid",
    unix_peer: "unix_sock.peer",
    socket_alloc_inode: "socket_alloc.vfs_inode.i_ino",
    pid_numbers: "pid.numbers",
    upid_nr: "upid.nr",
    inet_sport: "inet_sock.inet_sport",
    icsk_retransmits: "inet_connection_sock.icsk_retransmits",
    icsk_lrcvtime: "inet_connection_sock.icsk_ack.lrcvtime",
    tcp_write_seq: "tcp_sock.write_seq",
    tcp_snd_una: "tcp_sock.snd_una",
    tcp_snd_nxt: "tcp_sock.snd_nxt",
    tcp_rcv_nxt: "tcp_sock.rcv_nxt",
    tcp_copied_seq: "tcp_sock.copied_seq",
    tcp_bytes_received: "tcp_sock.bytes_received",
    tcp_bytes_acked: "tcp_sock.bytes_acked",
    tcp_bytes_sent: "tcp_sock.bytes_sent",
    tcp_srtt_us: "tcp_sock.srtt_us",
    tcp_total_retrans: "tcp_sock.total_retrans",
    tcp_lsndtime: "tcp_sock.lsndtime",
    net_inum: "net.ns.inum",
    skb_len: "sk_buff.len",
    skb_head: "sk_buff.head",
    skb_network_header: "sk_buff.network_header",
    skb_transport_header: "sk_buff.transport_header",
    skb_dev: "sk_buff.dev",
    device_net: "net_device.nd_net.net",
    task_tgid: "task_struct.tgid",
    task_pid: "task_struct.pid",
    task_comm: "task_struct.comm",
    task_exit_code: "task_struct.exit_code",
    task_signal: "task_struct.signal",
    task_pending: "task_struct.pending.signal",
    task_files: "task_struct.files",
    signal_live: "signal_struct.live",
    signal_pending: "signal_struct.shared_pending.signal",
    signal_group_exit_code: "signal_struct.group_exit_code",
    files_fdt: "files_struct.fdt",
    fdtable_fd: "fdtable.fd",
    fdtable_max_fds: "fdtable.max_fds",
    file_private_data: "file.private_data",
    file_f_op: "file.f_op",
    socket_sk: "socket.sk",
    socket_file: "socket.file",
    siginfo_code: "kernel_siginfo.si_code",
    regs_return: "pt_regs.ax",
    regs_number: "pt_regs.orig_ax",
    regs_argument_0: "pt_regs.di",
    regs_argument_1: "pt_regs.si",
    regs_argument_2: "pt_regs.dx",
}

/// Switches of the kernel side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Settings {
    /// `tcp_send_reset` has a reason argument (6.10).
    pub has_reset_reason: u32,
    /// `kfree_skb` has a reason argument (5.17, and backports).
    pub has_drop_reason: u32,
    /// `kfree_skb` has the receiving socket as fourth argument (6.11).
    pub has_drop_socket: u32,
    /// `sched_process_exit` has `group_dead` (6.16).
    pub has_group_dead: u32,
    /// `mark_victim` takes a task (newer) instead of a pid.
    pub victim_is_task: u32,
    /// Bit `n % 32` of word `n / 32`: drop reason `n` is worth a record. Reasons above 255 always are.
    pub drop_reasons: [u32; 8],
    /// Statuses reported: 500, 502, 503, 504 … up to eight, 0 ends the list.
    pub statuses: [u32; 8],
    /// The probe itself, never watched.
    pub own_tgid: u32,
    /// Whether of connections only what goes wrong with them is told (depth light); see [`only_trouble`].
    pub only_trouble: u32,
    /// Numbers of the system calls on this architecture, for `sys_exit`: connect, accept, accept4, socket, openat, open.
    pub syscall_numbers: [u32; 6],
    /// Always zero: guards what must be in a program and must never run.
    pub never: u32,
}

/// What [`Settings::only_trouble`] says.
pub mod only_trouble {
    /// Everything is told.
    pub const NEVER: u32 = 0;
    /// Only trouble is.
    pub const ALWAYS: u32 = 1;
    /// As the map `ONLY_TROUBLE` says at the moment.
    pub const SWITCHED: u32 = 2;
}

impl Settings {
    /// Everything off, nothing wanted.
    pub const NONE: Self = Self {
        has_reset_reason: 0,
        has_drop_reason: 0,
        has_drop_socket: 0,
        has_group_dead: 0,
        victim_is_task: 0,
        drop_reasons: [0; 8],
        statuses: [0; 8],
        own_tgid: 0,
        only_trouble: 0,
        syscall_numbers: [0; 6],
        never: 0,
    };
}

/// Where the record of a classic tracepoint keeps what, bytes; [`ABSENT`] where it has no such field. For kernels without
/// BTF: their tracefs describes these records. Addresses are taken from the IPv6 fields, which every IPv4 socket fills
/// with mapped addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RecordFormat {
    /// `skaddr`.
    pub socket: u32,
    /// `oldstate`.
    pub old_state: u32,
    /// `newstate`, else `state`.
    pub state: u32,
    /// `error`.
    pub error: u32,
    /// `protocol`, where it has two bytes.
    pub protocol: u32,
    /// `sport`, host order.
    pub local_port: u32,
    /// `dport`, host order.
    pub remote_port: u32,
    /// `saddr_v6`.
    pub local: u32,
    /// `daddr_v6`.
    pub remote: u32,
}

impl RecordFormat {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self {
        socket: ABSENT,
        old_state: ABSENT,
        state: ABSENT,
        error: ABSENT,
        protocol: ABSENT,
        local_port: ABSENT,
        remote_port: ABSENT,
        local: ABSENT,
        remote: ABSENT,
    };
}

/// The records that can stand in for socket members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RecordFormats {
    /// `sock:inet_sock_set_state`.
    pub state_change: RecordFormat,
    /// `tcp:tcp_receive_reset`.
    pub reset_received: RecordFormat,
    /// `tcp:tcp_retransmit_skb`.
    pub retransmit: RecordFormat,
    /// `sock:inet_sk_error_report`.
    pub error_report: RecordFormat,
}

impl RecordFormats {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self {
        state_change: RecordFormat::UNKNOWN,
        reset_received: RecordFormat::UNKNOWN,
        retransmit: RecordFormat::UNKNOWN,
        error_report: RecordFormat::UNKNOWN,
    };
}
