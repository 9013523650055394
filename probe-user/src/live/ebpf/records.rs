//! What the kernel's tracefs says about the records of classic tracepoints.

use std::fs;

use probe_abi::globals::{ABSENT, RecordFormat, RecordFormats};

use super::tracefs::{folders, with_tracefs};

/// Reads the formats of the running kernel; `Err` says why there is no tracefs.
pub(super) fn formats() -> Result<RecordFormats, String> {
    with_tracefs(|| RecordFormats {
        state_change: format("sock/inet_sock_set_state"),
        reset_received: format("tcp/tcp_receive_reset"),
        retransmit: format("tcp/tcp_retransmit_skb"),
        error_report: format("sock/inet_sk_error_report"),
    })
}

/// Whether the programs can use it.
pub(super) fn is_usable(format: &RecordFormat) -> bool {
    [format.local_port, format.remote_port, format.local, format.remote].iter().all(|&place| place != ABSENT)
}

fn format(event: &str) -> RecordFormat {
    let text = folders().find_map(|folder| fs::read_to_string(folder.join("events").join(event).join("format")).ok());
    text.map_or(RecordFormat::UNKNOWN, |text| parse(&text))
}

/// What a file `format` says.
pub(super) fn parse(text: &str) -> RecordFormat {
    let place =
        |name: &str, size: u32| field(text, name).filter(|found| found.1 == size).map_or(ABSENT, |found| found.0);
    let new_state = place("newstate", 4);
    RecordFormat {
        socket: place("skaddr", 8),
        old_state: place("oldstate", 4),
        state: if new_state == ABSENT { place("state", 4) } else { new_state },
        error: place("error", 4),
        protocol: place("protocol", 2),
        local_port: place("sport", 2),
        remote_port: place("dport", 2),
        local: place("saddr_v6", 16),
        remote: place("daddr_v6", 16),
    }
}

/// Offset and size of a field, declared as `field:__u8 saddr_v6[16]; offset:40; size:16; signed:0;` between tabs.
fn field(text: &str, name: &str) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let (declaration, rest) = line.trim().strip_prefix("field:")?.split_once(';')?;
        let declared = declaration.rsplit([' ', '*']).next()?;
        if declared.split('[').next()? != name {
            return None;
        }
        let number = |key: &str| rest.split(';').find_map(|part| part.trim().strip_prefix(key)?.parse().ok());
        Some((number("offset:")?, number("size:")?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &str = "name: inet_sock_set_state\nID: 1485\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
        \tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;\n\
        \tfield:int oldstate;\toffset:16;\tsize:4;\tsigned:1;\n\
        \tfield:int newstate;\toffset:20;\tsize:4;\tsigned:1;\n\
        \tfield:__u16 sport;\toffset:24;\tsize:2;\tsigned:0;\n\
        \tfield:__u16 dport;\toffset:26;\tsize:2;\tsigned:0;\n\
        \tfield:__u16 family;\toffset:28;\tsize:2;\tsigned:0;\n\
        \tfield:__u16 protocol;\toffset:30;\tsize:2;\tsigned:0;\n\
        \tfield:__u8 saddr[4];\toffset:32;\tsize:4;\tsigned:0;\n\
        \tfield:__u8 daddr[4];\toffset:36;\tsize:4;\tsigned:0;\n\
        \tfield:__u8 saddr_v6[16];\toffset:40;\tsize:16;\tsigned:0;\n\
        \tfield:__u8 daddr_v6[16];\toffset:56;\tsize:16;\tsigned:0;\n";

    #[test]
    fn a_record_is_described_by_its_format_file() {
        let format = parse(STATE);
        let expected = RecordFormat {
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
        assert_eq!(format, expected);
        assert!(is_usable(&format));
    }

    #[test]
    fn a_field_of_another_size_is_not_taken() {
        // Linux 5.4: one byte.
        let old = STATE.replace("__u16 protocol;\toffset:30;\tsize:2", "__u8 protocol;\toffset:30;\tsize:1");
        assert_eq!(parse(&old).protocol, ABSENT);
        assert_eq!(parse(""), RecordFormat::UNKNOWN);
        assert!(!is_usable(&RecordFormat::UNKNOWN));
    }
}
