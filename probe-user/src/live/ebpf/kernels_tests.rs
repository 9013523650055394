//! The resolvers on the types and records of other kernels than the running one, without booting them.
//!
//! `kernels/*.btf` are excerpts of what Debian's kernels of these versions (`linux-image-…-cloud-amd64`) carry in their section
//! `.BTF`: the members of [`Offsets::MEMBERS`] at their places in structures of the true size, the two enums of reasons, the
//! arguments of the tracepoints; what they refer to is an integer of the same size, a pointer to nothing, or an array.
//! `kernels/*.formats` are what their tracefs prints for the four tracepoints, without the lines `print fmt`.

use probe_abi::globals::{ABSENT, RecordFormat};

use super::{
    btf::Btf,
    offsets::Facts,
    records::{is_usable, parse},
    tier::Tier,
};

macro_rules! kernel {
    ($name:literal) => {
        (
            $name,
            include_bytes!(concat!("kernels/", $name, ".btf")),
            include_str!(concat!("kernels/", $name, ".formats")),
        )
    };
}

type Excerpt = (&'static str, &'static [u8], &'static str);

const KERNELS: [Excerpt; 7] = [
    kernel!("5.10"),
    kernel!("6.1"),
    kernel!("6.12"),
    kernel!("6.16"),
    kernel!("6.18"),
    kernel!("7.0"),
    kernel!("7.2"),
];

fn facts(name: &str) -> Facts {
    let bytes = KERNELS.iter().find(|(known, ..)| *known == name).unwrap().1;
    Facts::of(Some(&Btf::parse(bytes.to_vec()).unwrap()))
}

/// Every kernel has them; the excerpts were made before they were asked for.
const NOT_IN_THE_EXCERPTS: [&str; 2] = ["task_struct.pending.signal", "signal_struct.shared_pending.signal"];

#[test]
fn every_member_is_found_but_those_that_are_named() {
    for (name, ..) in KERNELS {
        assert_eq!(facts(name).missing, NOT_IN_THE_EXCERPTS, "{name}");
    }
}

#[test]
fn each_kernel_has_its_tier() {
    let tiers = KERNELS.map(|(name, ..)| (name, Tier::of(&facts(name))));
    let a = |name| (name, Tier::A);
    let expected = [("5.10", Tier::C), ("6.1", Tier::B), a("6.12"), a("6.16"), a("6.18"), a("7.0"), a("7.2")];
    assert_eq!(tiers, expected);
}

#[test]
fn what_moved_is_followed() {
    let place = |name: &str| {
        let offsets = facts(name).offsets;
        (offsets.sock_dport, offsets.inet_sport, offsets.file_private_data)
    };
    assert_eq!((place("5.10").0, place("7.2").0), (12, 12), "`struct sock_common` begins as it always did");
    assert_eq!(place("5.10"), (12, 784, 200));
    assert_ne!(place("6.12").1, place("5.10").1);
    assert_ne!(place("6.12").2, place("6.1").2, "`struct file` was put into another order");
}

#[test]
fn arguments_that_came_later_are_known() {
    let later = |name: &str| {
        let settings = facts(name).settings;
        [settings.has_drop_reason, settings.has_drop_socket, settings.has_reset_reason, settings.has_group_dead]
    };
    assert_eq!(later("5.10"), [0, 0, 0, 0]);
    assert_eq!(later("6.1"), [1, 0, 0, 0]);
    assert_eq!(later("6.12"), [1, 1, 1, 0]);
    assert_eq!(later("6.16"), [1, 1, 1, 1]);
    // Carried back to every kernel that is still maintained.
    assert!(KERNELS.iter().all(|(name, ..)| facts(name).settings.victim_is_task == 1));
}

#[test]
fn a_reason_has_another_number_in_each_kernel() {
    let number = |name: &str, wanted: &str| {
        facts(name).drop_reasons.iter().find(|(_, reason)| *reason == wanted).map(|(&number, _)| number)
    };
    let resets = KERNELS.map(|(name, ..)| number(name, "TCP_RESET"));
    assert_eq!(resets, [None, Some(28), Some(37), Some(44), Some(45), Some(45), Some(45)]);
    let overflows = KERNELS.map(|(name, ..)| number(name, "TCP_LISTEN_OVERFLOW"));
    assert_eq!(overflows, [None, None, None, Some(40), Some(40), Some(40), Some(40)]);
    // Where an accept queue that overflows has no reason of its own, drops without a reason are listened to.
    let unspecified = |name: &str| {
        let number = number(name, "NOT_SPECIFIED").unwrap();
        facts(name).settings.drop_reasons[0] >> number & 1
    };
    assert_eq!((unspecified("6.12"), unspecified("6.16")), (1, 0));
    assert!(facts("5.10").reset_reasons.is_empty() && facts("6.1").reset_reasons.is_empty());
    assert!(facts("6.12").reset_reasons.values().any(|reason| reason == "TCP_ABORT_ON_DATA"));
}

/// The description of a tracepoint's record in what a kernel prints for several.
fn format(text: &str, event: &str) -> Option<RecordFormat> {
    let descriptions = text.split("name: ").skip(1);
    let found = descriptions.into_iter().find(|description| description.lines().next() == Some(event))?;
    Some(parse(found))
}

#[test]
fn records_are_read_where_they_are() {
    for (name, _, text) in KERNELS {
        let format = |event| format(text, event);
        let state = format("inet_sock_set_state").unwrap();
        let known = RecordFormat {
            socket: 8,
            old_state: 16,
            state: 20,
            error: ABSENT,
            protocol: 30,
            local_port: 24,
            remote_port: 26,
            local: 40,
            remote: 56,
        };
        assert_eq!(state, known, "{name}");
        let reset = format("tcp_receive_reset").unwrap();
        assert!(is_usable(&reset) && (reset.socket, reset.local_port) == (8, 16), "{name}: {reset:?}");
        let retransmit = format("tcp_retransmit_skb").unwrap();
        assert!(is_usable(&retransmit) && retransmit.state != ABSENT, "{name}: {retransmit:?}");
        match format("inet_sk_error_report") {
            Some(report) => assert!(is_usable(&report) && report.error == 8, "{name}: {report:?}"),
            None => assert_eq!(name, "5.10"),
        }
    }
}
