//! The table of hooks: what each needs, what can stand in for it, what is lost without it.

use super::{offsets::Facts, records::is_usable};

/// How much is watched. Each depth contains the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// What fires when something breaks, and the states of upstream connections.
    Light,
    /// And every upstream connection's system calls and every response.
    Standard,
}

/// Whether a hook works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// As meant.
    On,
    /// By its stand-in, or without a part of it; `lost` says what that costs.
    Degraded,
    /// Not at all.
    Off,
}

/// One hook, and how it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The hook's name, as `doctor` shows it.
    pub name: &'static str,
    /// Whether it works.
    pub state: State,
    /// The program that is attached; empty when it is off.
    pub program: &'static str,
    /// Why not, or how; one line.
    pub why: String,
    /// What cannot be seen because of it, one plain sentence; empty when it is on.
    pub lost: &'static str,
}

/// How a program meets its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// A raw tracepoint whose arguments the verifier knows (5.5, needs BTF).
    Typed(&'static str),
    /// A raw tracepoint.
    Raw(&'static str),
    /// Tracepoints of system calls, by category and name.
    Classic(&'static str, &'static str),
    /// The return of a system call's own function (fexit: 5.5, needs BTF and a kernel built with function tracing).
    Return(&'static str),
    /// A function of nginx.
    Function(&'static str),
    /// The place in nginx where it looks at answers that are none of 2xx, and, while some request's answer is awaited, what is sent (this
    /// program, 6.3).
    Answers(&'static str),
}

/// A program and its event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alternative {
    /// The program's name in the object.
    pub(super) program: &'static str,
    /// How it is attached.
    pub(super) way: Way,
    /// What it cannot do without.
    pub(super) needs: Needs,
    /// What it loses against the first alternative; empty where that is nothing but time.
    pub(super) lacks: &'static str,
}

/// Said of everything that needs them.
pub(super) const NO_TYPES: &str = "the kernel's types (BTF) are not known";

/// What a program cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// Only its event.
    Nothing,
    /// The members of sockets.
    Sockets,
    /// The members of processes.
    Tasks,
    /// The way from a process' descriptor to its socket.
    Descriptors,
    /// A drop reason.
    DropReason,
    /// The description of a classic tracepoint's record.
    Record(Record),
    /// The saved registers.
    Registers,
}

/// A record that stands in for socket members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record {
    StateChange,
    ResetReceived,
    Retransmit,
    ErrorReport,
}

impl Needs {
    /// Why this kernel does not offer it; `None` if it does.
    pub(super) fn unmet(self, facts: &Facts) -> Option<String> {
        use probe_abi::globals::ABSENT;

        let offsets = &facts.offsets;
        let absent = |members: &[(u32, &str)]| {
            let names: Vec<&str> =
                members.iter().filter(|(offset, _)| *offset == ABSENT).map(|&(_, name)| name).collect();
            match names.len() {
                0 => None,
                count if count == members.len() => Some(NO_TYPES.to_owned()),
                _ => Some(format!("this kernel's types lack {}", names.join(", "))),
            }
        };
        let sockets = [
            (offsets.sock_family, "sock.skc_family"),
            (offsets.sock_state, "sock.skc_state"),
            (offsets.sock_dport, "sock.skc_dport"),
            (offsets.sock_num, "sock.skc_num"),
            (offsets.sock_daddr, "sock.skc_daddr"),
            (offsets.sock_rcv_saddr, "sock.skc_rcv_saddr"),
            (offsets.inet_sport, "inet_sock.inet_sport"),
        ];
        match self {
            Self::Nothing => None,
            Self::Sockets => absent(&sockets),
            Self::Tasks => absent(&[
                (offsets.task_tgid, "task_struct.tgid"),
                (offsets.task_signal, "task_struct.signal"),
                (offsets.task_exit_code, "task_struct.exit_code"),
            ]),
            Self::Descriptors => absent(&[
                (offsets.task_files, "task_struct.files"),
                (offsets.files_fdt, "files_struct.fdt"),
                (offsets.fdtable_fd, "fdtable.fd"),
                (offsets.fdtable_max_fds, "fdtable.max_fds"),
                (offsets.file_private_data, "file.private_data"),
                (offsets.socket_sk, "socket.sk"),
                (offsets.socket_file, "socket.file"),
            ]),
            Self::DropReason => {
                absent(&[(offsets.skb_head, "sk_buff.head"), (offsets.skb_network_header, "sk_buff.network_header")])
                    .or_else(|| {
                        (facts.settings.has_drop_reason == 0)
                            .then(|| "this kernel gives no reason when it drops a packet (5.17 does)".to_owned())
                    })
            }
            Self::Record(record) => {
                let format = match record {
                    Record::StateChange => &facts.records.state_change,
                    Record::ResetReceived => &facts.records.reset_received,
                    Record::Retransmit => &facts.records.retransmit,
                    Record::ErrorReport => &facts.records.error_report,
                };
                (!is_usable(format)).then(|| "tracefs does not describe the event".to_owned())
            }
            Self::Registers => absent(&[(offsets.regs_argument_0, "pt_regs")]),
        }
    }
}

/// One thing to watch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    /// Its name.
    pub(super) name: &'static str,
    /// From which depth on.
    pub(super) depth: Depth,
    /// Programs, the best first.
    pub(super) alternatives: &'static [Alternative],
    /// What is lost without it.
    pub(super) lost: &'static str,
}

impl Hook {
    /// It works, by this program and without any loss.
    pub(super) const fn on(&self, program: &'static str) -> Attachment {
        Attachment { name: self.name, state: State::On, program, why: String::new(), lost: "" }
    }

    /// It does not work.
    pub(super) const fn off(&self, why: String) -> Attachment {
        Attachment { name: self.name, state: State::Off, program: "", why, lost: self.lost }
    }
}

const fn raw(program: &'static str, needs: Needs) -> Alternative {
    Alternative { program, way: Way::Raw(program), needs, lacks: "" }
}

const fn function(program: &'static str) -> Alternative {
    Alternative { program, way: Way::Function(program), needs: Needs::Nothing, lacks: "" }
}

/// Only those who make the call pay for it; a system call tracepoint costs every call of the host.
const fn returned(program: &'static str, call: &'static str) -> Alternative {
    Alternative { program, way: Way::Return(call), needs: Needs::Registers, lacks: "" }
}

const fn exit(program: &'static str) -> Alternative {
    Alternative { program, way: Way::Classic("syscalls", program), needs: Needs::Registers, lacks: "" }
}

/// A stand-in for kernels without types.
const fn record(program: &'static str, category: &'static str, name: &'static str, record: Record) -> Alternative {
    Alternative {
        program,
        way: Way::Classic(category, name),
        needs: Needs::Record(record),
        lacks: "byte counters, sequence numbers and soft errors of connections are not known",
    }
}

/// The stand-in for all system call tracepoints.
pub(super) const ANY_EXIT: Alternative = Alternative {
    program: "sys_exit",
    way: Way::Raw("sys_exit"),
    needs: Needs::Registers,
    lacks: "every system call of the host pays for it (about 0.1 µs)",
};

/// Everything, in the order it is attached: processes first, so that none is born unseen.
///
/// Only the state change, which fires for every connection of the host, uses types: direct loads cost a tenth of
/// checked copies. For the others a raw tracepoint is as fast, and its arguments may be null or change from kernel to
/// kernel without the verifier refusing the program (`tcp_send_reset` from 6.11 on).
pub(super) const HOOKS: &[Hook] = &[
    Hook {
        name: "sched_process_fork",
        depth: Depth::Light,
        alternatives: &[raw("sched_process_fork", Needs::Tasks)],
        lost: "a worker born by a reload is noticed only at the next look at /proc",
    },
    Hook {
        name: "sched_process_exec",
        depth: Depth::Light,
        alternatives: &[raw("sched_process_exec", Needs::Nothing)],
        lost: "an nginx that is started later is noticed only at the next look at /proc",
    },
    Hook {
        name: "sched_process_exit",
        depth: Depth::Light,
        alternatives: &[raw("sched_process_exit", Needs::Tasks)],
        lost: "that an upstream or a worker died, and of which signal, cannot be seen",
    },
    Hook {
        name: "signal_generate",
        depth: Depth::Light,
        alternatives: &[raw("signal_generate", Needs::Tasks)],
        lost: "who killed a process cannot be seen",
    },
    Hook {
        name: "mark_victim",
        depth: Depth::Light,
        alternatives: &[raw("mark_victim", Needs::Tasks)],
        lost: "that the OOM killer chose a process cannot be seen",
    },
    Hook {
        name: "inet_sock_set_state",
        depth: Depth::Light,
        alternatives: &[
            Alternative {
                program: "inet_sock_set_state",
                way: Way::Typed("inet_sock_set_state"),
                needs: Needs::Sockets,
                lacks: "",
            },
            Alternative {
                program: "inet_sock_set_state_raw",
                way: Way::Raw("inet_sock_set_state"),
                needs: Needs::Sockets,
                lacks: "each change of a watched connection costs about 0.5 µs more",
            },
            record("inet_sock_set_state_record", "sock", "inet_sock_set_state", Record::StateChange),
        ],
        lost: "who closed a connection, and when, is known only from packets",
    },
    Hook {
        name: "tcp_send_reset",
        depth: Depth::Light,
        alternatives: &[raw("tcp_send_reset", Needs::Sockets)],
        lost: "why this host sent a RST cannot be seen",
    },
    Hook {
        name: "tcp_receive_reset",
        depth: Depth::Light,
        alternatives: &[
            raw("tcp_receive_reset", Needs::Sockets),
            record("tcp_receive_reset_record", "tcp", "tcp_receive_reset", Record::ResetReceived),
        ],
        lost: "a received RST is known only from packets",
    },
    Hook {
        name: "tcp_retransmit_skb",
        depth: Depth::Light,
        alternatives: &[
            raw("tcp_retransmit_skb", Needs::Sockets),
            record("tcp_retransmit_skb_record", "tcp", "tcp_retransmit_skb", Record::Retransmit),
        ],
        lost: "repeated SYNs and data are known only from packets",
    },
    Hook {
        name: "tcp_retransmit_synack",
        depth: Depth::Light,
        alternatives: &[raw("tcp_retransmit_synack", Needs::Sockets)],
        lost: "a listener that repeats its SYN-ACK is known only from packets",
    },
    Hook {
        name: "inet_sk_error_report",
        depth: Depth::Light,
        alternatives: &[
            raw("inet_sk_error_report", Needs::Sockets),
            record("inet_sk_error_report_record", "sock", "inet_sk_error_report", Record::ErrorReport),
        ],
        lost: "the error a socket got is known only from its last state change",
    },
    Hook {
        name: "kfree_skb",
        depth: Depth::Light,
        alternatives: &[raw("kfree_skb", Needs::DropReason)],
        lost: "packets that this host's kernel or firewall dropped, and why, cannot be seen",
    },
    Hook {
        name: "sys_exit_connect",
        depth: Depth::Standard,
        alternatives: &[returned("connect_return", "connect"), exit("sys_exit_connect"), ANY_EXIT],
        lost: "a connect() that failed without a packet is known only from nginx's log",
    },
    Hook {
        name: "sys_exit_accept",
        depth: Depth::Standard,
        alternatives: &[returned("accept_return", "accept"), exit("sys_exit_accept"), ANY_EXIT],
        lost: "an upstream that fails to accept (no descriptors left) cannot be seen",
    },
    Hook {
        name: "sys_exit_accept4",
        depth: Depth::Standard,
        alternatives: &[returned("accept4_return", "accept4"), exit("sys_exit_accept4"), ANY_EXIT],
        lost: "an upstream that fails to accept (no descriptors left) cannot be seen",
    },
    Hook {
        name: "sys_exit_socket",
        depth: Depth::Standard,
        alternatives: &[returned("socket_return", "socket"), exit("sys_exit_socket"), ANY_EXIT],
        lost: "a socket() that failed is known only from nginx's log",
    },
    Hook {
        name: "sys_exit_openat",
        depth: Depth::Standard,
        alternatives: &[returned("openat_return", "openat"), exit("sys_exit_openat"), ANY_EXIT],
        lost: "an upstream that has no descriptor for a file cannot be seen",
    },
    #[cfg(target_arch = "x86_64")]
    Hook {
        name: "sys_exit_open",
        depth: Depth::Standard,
        alternatives: &[returned("open_return", "open"), exit("sys_exit_open"), ANY_EXIT],
        lost: "an upstream that has no descriptor for a file cannot be seen",
    },
];

/// Functions of nginx, attached to each nginx found.
pub(super) const FUNCTIONS: &[Hook] = &[
    Hook {
        name: "ngx_log_error_core",
        depth: Depth::Light,
        alternatives: &[function("ngx_log_error_core")],
        lost: "failures are tied to connections by the error log and by time, not exactly",
    },
    Hook {
        name: "ngx_http_special_response_handler",
        depth: Depth::Light,
        alternatives: &[function("ngx_http_special_response_handler")],
        lost: "the moment nginx decides on a status is known only from the access log",
    },
    Hook {
        name: "ngx_http_internal_redirect",
        depth: Depth::Light,
        alternatives: &[function("ngx_http_internal_redirect")],
        lost: "an error_page that hides a failure is known only from the access log",
    },
    Hook {
        name: "ngx_http_named_location",
        depth: Depth::Light,
        alternatives: &[function("ngx_http_named_location")],
        lost: "an error_page that hides a failure is known only from the access log",
    },
    Hook {
        name: "ngx_http_send_header",
        depth: Depth::Standard,
        alternatives: &[
            Alternative {
                program: "ngx_http_upstream_test_next",
                way: Way::Answers("sock_send_length"),
                needs: Needs::Descriptors,
                lacks: "",
            },
            Alternative { lacks: "each response of nginx costs about 1 µs", ..function("ngx_http_send_header") },
        ],
        lost: "the status really sent is known only from the access log",
    },
    Hook {
        name: "ngx_get_connection",
        depth: Depth::Standard,
        alternatives: &[function("ngx_get_connection")],
        lost: "which request a new upstream connection serves is known only once something fails",
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use probe_abi::names::program;

    use super::*;

    fn all() -> impl Iterator<Item = &'static Hook> {
        HOOKS.iter().chain(FUNCTIONS)
    }

    #[test]
    fn every_program_has_a_row_and_every_row_a_program() {
        let mut rows: BTreeSet<&str> = all().flat_map(|hook| hook.alternatives).map(|way| way.program).collect();
        rows.extend(all().flat_map(|hook| hook.alternatives).filter_map(|way| match way.way {
            Way::Answers(sent) => Some(sent),
            _ => None,
        }));
        let programs: BTreeSet<&str> = program::ALL.iter().copied().collect();
        assert_eq!(rows, programs);
    }

    #[test]
    fn every_row_says_what_is_lost() {
        for hook in all() {
            assert!(!hook.lost.is_empty() && !hook.lost.ends_with('.'), "{}", hook.name);
            for (index, alternative) in hook.alternatives.iter().enumerate() {
                let as_good = index == 0 || matches!(alternative.way, Way::Classic("syscalls", _));
                assert_eq!(alternative.lacks.is_empty(), as_good, "{}", alternative.program);
            }
        }
    }

    #[test]
    fn without_types_each_hook_stands_in_or_says_why_not() {
        let facts = Facts::without_types();
        for hook in HOOKS {
            let unmet: Vec<Option<String>> =
                hook.alternatives.iter().map(|alternative| alternative.needs.unmet(&facts)).collect();
            let runs = unmet.iter().any(Option::is_none);
            let calls = hook.name.starts_with("sys_exit") || hook.name == "sched_process_exec";
            assert_eq!(runs, calls, "{}: {unmet:?}", hook.name);
        }
        for hook in FUNCTIONS {
            let best = hook.alternatives.iter().find(|alternative| alternative.needs.unmet(&facts).is_none());
            // A client's socket is not found without them.
            assert!(matches!(best.map(|best| best.way), Some(Way::Function(_))), "{}: {best:?}", hook.name);
        }
    }
}
