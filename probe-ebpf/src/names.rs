//! Names of maps, globals and programs: these are ABI too.

/// Maps.
pub mod map {
    /// The ring of records.
    pub const EVENTS: &str = "EVENTS";
    /// tgid → [`crate::process::Watched`].
    pub const PROCESSES: &str = "PROCESSES";
    /// [`crate::Endpoint`] of an upstream → `u32` (1).
    pub const UPSTREAMS: &str = "UPSTREAMS";
    /// Bitmap of the ports in `UPSTREAMS`: 1,024 words of 64 bits, host order; asked before the hash.
    pub const PORTS: &str = "PORTS";
    /// index → [`crate::nginx::Layout`].
    pub const LAYOUTS: &str = "LAYOUTS";
    /// Per CPU, by [`crate::losses::reason`].
    pub const LOSSES: &str = "LOSSES";
    /// Per CPU, by [`crate::losses::counter`].
    pub const COUNTERS: &str = "COUNTERS";
    /// One number, for [`crate::globals::only_trouble::SWITCHED`]: 1 where only trouble is told.
    pub const ONLY_TROUBLE: &str = "ONLY_TROUBLE";
}

/// Globals.
pub mod global {
    /// [`crate::globals::Offsets`].
    pub const OFFSETS: &str = "OFFSETS";
    /// [`crate::globals::Settings`].
    pub const SETTINGS: &str = "SETTINGS";
    /// [`crate::globals::RecordFormats`].
    pub const RECORDS: &str = "RECORDS";
}

/// Programs, each called after its event; several may serve one event.
pub mod program {
    /// Every program of the object.
    pub const ALL: &[&str] = &[
        "inet_sock_set_state",
        "inet_sock_set_state_raw",
        "inet_sock_set_state_record",
        "tcp_send_reset",
        "tcp_receive_reset",
        "tcp_receive_reset_record",
        "tcp_retransmit_skb",
        "tcp_retransmit_skb_record",
        "tcp_retransmit_synack",
        "inet_sk_error_report",
        "inet_sk_error_report_record",
        "kfree_skb",
        "sched_process_fork",
        "sched_process_exec",
        "sched_process_exit",
        "signal_generate",
        "mark_victim",
        "sys_exit_connect",
        "sys_exit_accept",
        "sys_exit_accept4",
        "sys_exit_socket",
        "sys_exit_open",
        "sys_exit_openat",
        "sys_exit",
        "connect_return",
        "accept_return",
        "accept4_return",
        "socket_return",
        "open_return",
        "openat_return",
        "sock_send_length",
        "ngx_log_error_core",
        "ngx_http_special_response_handler",
        "ngx_http_send_header",
        "ngx_http_upstream_test_next",
        "ngx_http_internal_redirect",
        "ngx_http_named_location",
        "ngx_get_connection",
    ];
}
