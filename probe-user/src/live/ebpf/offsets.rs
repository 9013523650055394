//! What the kernel programs must know of the running kernel.

use std::{collections::BTreeMap, env::consts::ARCH};

use probe_abi::globals::{ABSENT, Offsets, RecordFormats, Settings};
use zerocopy::FromBytes as _;

use super::{btf::Btf, records};

/// Drop reasons that are frees, or that come with every connection that ends well: not worth a record even on a watched
/// flow. Everything else is, as reasons come with every kernel.
/// <https://elixir.bootlin.com/linux/v6.12/source/include/net/dropreason-core.h>
const NOISE: &[&str] = &[
    "SKB_NOT_DROPPED_YET",
    "SKB_CONSUMED",
    UNSPECIFIED,
    "SKB_DROP_REASON_QUEUE_PURGE",
    "SKB_DROP_REASON_TCP_OLD_DATA",
    "SKB_DROP_REASON_TCP_OLD_ACK",
    "SKB_DROP_REASON_TCP_OLD_SEQUENCE",
];

const UNSPECIFIED: &str = "SKB_DROP_REASON_NOT_SPECIFIED";

/// The running kernel, as far as the programs depend on it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Whether there is type information at all.
    pub types: bool,
    /// Whether sockets tell their errors (`inet_sk_error_report`, 5.14); only looked up in type information.
    pub error_reports: bool,
    /// Member offsets.
    pub offsets: Offsets,
    /// Members that this kernel does not have, by their names there.
    pub missing: Vec<&'static str>,
    /// Switches.
    pub settings: Settings,
    /// Records of classic tracepoints; only looked up where there is no type information.
    pub records: RecordFormats,
    /// Names of drop reasons, without their prefix.
    pub drop_reasons: BTreeMap<u32, String>,
    /// Names of reset reasons, without their prefix.
    pub reset_reasons: BTreeMap<u32, String>,
}

impl Facts {
    /// What is known without type information; tracefs is not asked.
    #[must_use]
    pub fn without_types() -> Self {
        Self::with(None, RecordFormats::UNKNOWN)
    }

    /// From the kernel's type information, or what is known without.
    #[must_use]
    pub fn of(btf: Option<&Btf>) -> Self {
        let records = match btf {
            Some(_) => RecordFormats::UNKNOWN,
            // Without tracefs as well, the hooks concerned say so when they are attached.
            None => records::formats().unwrap_or(RecordFormats::UNKNOWN),
        };
        Self::with(btf, records)
    }

    fn with(btf: Option<&Btf>, records: RecordFormats) -> Self {
        let mut settings = Settings { syscall_numbers: syscall_numbers(), ..Settings::NONE };
        let mut missing = Vec::new();
        let words: Vec<u32> = Offsets::MEMBERS
            .iter()
            .map(|&(name, member)| {
                btf.and_then(|btf| btf.member(member).ok())
                    .map(|member| member.offset)
                    .or_else(|| register(ARCH, name))
                    .unwrap_or_else(|| {
                        missing.push(member);
                        ABSENT
                    })
            })
            .collect();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let offsets = Offsets::read_from_bytes(&bytes).unwrap_or(Offsets::UNKNOWN);
        let mut drop_reasons = BTreeMap::new();
        let mut reset_reasons = BTreeMap::new();
        if let Some(btf) = btf {
            let has = |tracepoint, arguments| u32::from(btf.tracepoint_arguments(tracepoint) >= Some(arguments));
            settings.has_reset_reason = has("tcp_send_reset", 3);
            settings.has_drop_reason = has("kfree_skb", 3);
            settings.has_drop_socket = has("kfree_skb", 4);
            settings.has_group_dead = has("sched_process_exit", 2);
            settings.victim_is_task = u32::from(btf.tracepoint_argument_is_pointer("mark_victim", 0) == Some(true));
            drop_reasons = names(btf, "skb_drop_reason", "SKB_DROP_REASON_");
            reset_reasons = names(btf, "sk_rst_reason", "SK_RST_REASON_");
            settings.drop_reasons = interesting(btf);
        }
        let error_reports = btf.is_some_and(|btf| btf.tracepoint_arguments("inet_sk_error_report").is_some());
        Self { types: btf.is_some(), error_reports, offsets, missing, settings, records, drop_reasons, reset_reasons }
    }
}

fn names(btf: &Btf, enumeration: &str, prefix: &str) -> BTreeMap<u32, String> {
    btf.enumeration(enumeration)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(name, value)| {
            Some((u32::try_from(value).ok()?, name.strip_prefix(prefix).unwrap_or(&name).to_owned()))
        })
        .collect()
}

fn interesting(btf: &Btf) -> [u32; 8] {
    let reasons = btf.enumeration("skb_drop_reason").unwrap_or_default();
    // Before 6.16 an accept queue that overflows drops without a reason of its own.
    let unspecified = !reasons.iter().any(|(name, _)| name == "SKB_DROP_REASON_TCP_LISTEN_OVERFLOW");
    let mut words = [0; 8];
    for (name, value) in &reasons {
        let Ok(value) = usize::try_from(*value) else { continue };
        let wanted = !NOISE.contains(&name.as_str()) || (unspecified && name == UNSPECIFIED);
        if let Some(word) = words.get_mut(value / 32)
            && wanted
        {
            *word |= 1 << (value % 32);
        }
    }
    words
}

/// Where the saved registers are, by the names of [`Offsets::MEMBERS`]: part of the system call interface, so known without the
/// kernel's help. `struct user_regs_struct` of `sys/user.h`; the kernel's own `struct pt_regs` begins alike.
/// <https://elixir.bootlin.com/linux/v6.12/source/arch/x86/include/asm/ptrace.h>
const X86_64: &[(&str, u32)] = &[
    ("regs_return", 80),
    ("regs_number", 120),
    ("regs_argument_0", 112),
    ("regs_argument_1", 104),
    ("regs_argument_2", 96),
];

/// `struct user_pt_regs` (31 registers, stack pointer, program counter, state), then `orig_x0` and `syscallno`. The first argument's
/// register holds the result at exit; the kernel keeps the argument.
/// <https://elixir.bootlin.com/linux/v6.12/source/arch/arm64/include/asm/ptrace.h>
const AARCH64: &[(&str, u32)] = &[
    ("regs_return", 0),
    ("regs_number", 35 * 8),
    ("regs_argument_0", 34 * 8),
    ("regs_argument_1", 8),
    ("regs_argument_2", 16),
];

/// A register of an architecture.
fn register(architecture: &str, name: &str) -> Option<u32> {
    let registers = match architecture {
        "x86_64" => X86_64,
        "aarch64" => AARCH64,
        _ => return None,
    };
    registers.iter().find(|(known, _)| *known == name).map(|&(_, offset)| offset)
}

/// In the order of [`Settings::syscall_numbers`].
fn syscall_numbers() -> [u32; 6] {
    // Newer architectures have no `open`.
    #[cfg(target_arch = "x86_64")]
    let open = libc::SYS_open;
    #[cfg(not(target_arch = "x86_64"))]
    let open = -1;
    let numbers = [libc::SYS_connect, libc::SYS_accept, libc::SYS_accept4, libc::SYS_socket, libc::SYS_openat, open];
    numbers.map(|number| u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_types_only_the_registers_are_known() {
        let facts = Facts::without_types();
        assert_eq!((facts.offsets.sock_family, facts.offsets.task_tgid), (ABSENT, ABSENT));
        assert_ne!(facts.offsets.regs_argument_0, ABSENT);
        assert_eq!(facts.settings.drop_reasons, [0; 8]);
        assert!(facts.missing.contains(&"sock.__sk_common.skc_family"));
    }

    #[test]
    fn both_architectures_have_every_register() {
        let names: Vec<&str> =
            Offsets::MEMBERS.iter().map(|&(name, _)| name).filter(|name| name.starts_with("regs_")).collect();
        assert_eq!(names.len(), 5);
        for architecture in ["x86_64", "aarch64"] {
            let mut places: Vec<u32> = names.iter().filter_map(|name| register(architecture, name)).collect();
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), names.len(), "{architecture}");
        }
        assert_eq!(register("riscv64", "regs_return"), None);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn registers_are_where_the_c_library_has_them() {
        use std::mem::offset_of;

        use libc::user_regs_struct as Registers;

        for (name, offset) in [
            ("regs_return", offset_of!(Registers, rax)),
            ("regs_number", offset_of!(Registers, orig_rax)),
            ("regs_argument_0", offset_of!(Registers, rdi)),
            ("regs_argument_1", offset_of!(Registers, rsi)),
            ("regs_argument_2", offset_of!(Registers, rdx)),
        ] {
            assert_eq!(register(ARCH, name).map(|place| place as usize), Some(offset), "{name}");
        }
    }

    #[cfg(target_arch = "aarch64")]
    #[test]
    fn registers_are_where_the_c_library_has_them() {
        let whole = size_of::<libc::user_regs_struct>();
        // `orig_x0` is what the kernel has behind it.
        assert_eq!(register(ARCH, "regs_argument_0").map(|place| place as usize), Some(whole));
    }

    #[test]
    fn this_kernel_has_every_member() {
        let Ok(btf) = Btf::running_kernel() else {
            return assert!(!std::path::Path::new(super::super::btf::RUNNING_KERNEL).exists());
        };
        let facts = Facts::of(Some(&btf));
        assert_eq!(facts.missing, Vec::<&str>::new());
        // `struct sock_common` has not moved since 4.9.
        let offsets = &facts.offsets;
        let common = (offsets.sock_daddr, offsets.sock_rcv_saddr, offsets.sock_dport, offsets.sock_num);
        assert_eq!(common, (0, 4, 12, 14));
        assert_eq!((offsets.sock_family, offsets.sock_state, offsets.sock_net), (16, 18, 48));
        assert_eq!(offsets.regs_argument_0, register(ARCH, "regs_argument_0").unwrap_or(ABSENT));
    }

    #[test]
    fn members_are_as_wide_as_they_are_read() {
        let Ok(btf) = Btf::running_kernel() else {
            return assert!(!std::path::Path::new(super::super::btf::RUNNING_KERNEL).exists());
        };
        let wide = |member: &str| btf.member(member).map_or(0, |member| member.size);
        for member in
            ["tcp_sock.bytes_acked", "tcp_sock.bytes_received", "tcp_sock.bytes_sent", "sock.__sk_common.skc_cookie"]
        {
            assert_eq!(wide(member), 8, "{member}");
        }
        for member in [
            "sock.sk_err",
            "sock.sk_err_soft",
            "sock.sk_ack_backlog",
            "tcp_sock.write_seq",
            "tcp_sock.srtt_us",
            "tcp_sock.lsndtime",
            "inet_connection_sock.icsk_ack.lrcvtime",
            "net.ns.inum",
            "sock.sk_lock.owned",
        ] {
            assert_eq!(wide(member), 4, "{member}");
        }
        for member in
            ["inet_sock.inet_sport", "sock.sk_protocol", "sock.__sk_common.skc_dport", "sk_buff.network_header"]
        {
            assert_eq!(wide(member), 2, "{member}");
        }
        for member in ["sock.sk_shutdown", "inet_connection_sock.icsk_retransmits", "sock.__sk_common.skc_state"] {
            assert_eq!(wide(member), 1, "{member}");
        }
    }
}
