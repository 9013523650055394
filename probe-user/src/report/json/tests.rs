use super::*;
use crate::{
    diagnose::testing::World,
    model::complaint::{Message, Phase},
    model::net::Errno,
};

const CLOCK: WallClock = WallClock { offset_ns: 1_795_000_000_000_000_000 };

#[test]
fn every_documented_field_is_there() {
    let mut world = World::new(502);
    world.packet_from_upstream(-85, 0x14, 0);
    world.complain(Message::ConnectFailed, Phase::Connecting, Some(Errno::ECONNREFUSED), "connect() failed");
    let line = line(&incident(&world.case, &world.judge(), CLOCK));
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    let has = |value: &serde_json::Value, keys: &[&str]| {
        for key in keys {
            assert!(value.get(key).is_some(), "{key} is missing in {value}");
        }
    };
    has(
        &value,
        &[
            "type", "schema", "id", "time", "status", "request", "nginx", "attempts", "verdict", "link", "evidence",
            "losses",
        ],
    );
    has(&value["request"], &["method", "uri", "host", "protocol", "client", "connection"]);
    has(&value["nginx"], &["pid", "version"]);
    has(
        &value["attempts"][0],
        &[
            "upstream",
            "local",
            "reused",
            "requests_before",
            "idle_ms",
            "started",
            "duration_us",
            "outcome",
            "errno",
            "bytes_sent",
            "bytes_received",
        ],
    );
    has(&value["verdict"], &["cause", "confidence", "summary", "fix"]);
    has(&value["evidence"][0], &["t_us", "source", "text", "ref"]);
    has(&value["losses"], &["events_lost", "packets_dropped"]);
    assert_eq!(value["type"], "incident");
    assert_eq!(value["time"], "2026-11-18T10:28:20.000000000Z".replace("10:28:20", &expected_clock()));
    assert_eq!(value["request"]["uri"], "/cart?token=…");
    assert_eq!(value["evidence"][0]["t_us"], -85);
    assert_eq!(value["evidence"][0]["ref"], "packets.pcapng#1");
    assert_eq!(value["attempts"][0]["errno"], "ECONNREFUSED");
}

fn expected_clock() -> String {
    // 1_795_000_100 s after 1970-01-01 is so many seconds into its day.
    let seconds = 1_795_000_100 % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds % 3_600 / 60, seconds % 60)
}

#[test]
fn the_other_lines_carry_their_type() {
    for (line, kind) in [
        (line(&Ready { version: "0".to_owned(), nginx: Vec::new(), sources: Vec::new() }), "ready"),
        (line(&Notice { what: "lost".to_owned(), count: 1, text: String::new() }), "notice"),
        (line(&Summary::default()), "summary"),
    ] {
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["type"], kind);
    }
}
