use super::*;
use crate::report::json;

const HOSTILE: &str =
    "</noscript></script><script>alert(1)</script><img src=x onerror=alert(2)>\u{202e}\u{1b}[31m&#60;\"'";

fn collection(text: &str) -> Collection {
    let mut all = Collection::default();
    assert!(all.read("input", text), "{:?}", all.troubles);
    all
}

fn hostile() -> String {
    let hostile = serde_json::Value::from(HOSTILE);
    let long = serde_json::Value::from("/".to_owned() + &"ü<".repeat(4096));
    let incident = |kind: &str, id: usize| {
        serde_json::json!({
            "type": kind, "schema": 1, "id": format!("{id}{HOSTILE}"), "time": "2026-11-21T10:00:00.000000001Z", "status": 502,
            "request": {"method": hostile, "uri": long, "host": hostile, "protocol": hostile, "client": hostile},
            "nginx": {"pid": 1, "version": hostile},
            "attempts": [{"upstream": hostile, "local": hostile, "outcome": hostile, "errno": hostile, "peer": hostile,
                          "started": "2026-11-21T10:00:00Z", "duration_us": u64::MAX, "idle_ms": 1e300}],
            "verdict": {"cause": hostile, "confidence": hostile, "summary": hostile, "fix": [hostile], "rivals": [hostile],
                        "missing": [{"sensor": hostile, "what": hostile}], "blamed": [hostile]},
            "link": hostile,
            "evidence": [
                {"t_us": i64::MIN, "source": hostile, "text": hostile, "ref": hostile, "weight": hostile},
                {"t_us": i64::MAX, "source": "packet", "text": long, "ref": "packets.pcapng#1", "against": true, "uncertain_us": u64::MAX,
                 "place": {"side": hostile, "from": hostile, "to": hostile, "pid": 7, "process": hostile, "brief": long}},
                {"t_us": 0, "source": "process", "text": hostile,
                 "place": {"side": "upstream", "pid": 7, "process": hostile, "brief": hostile}},
            ],
        })
        .to_string()
    };
    let notice = serde_json::json!({"type": "notice", "what": hostile, "count": 1, "text": hostile}).to_string();
    let ready = serde_json::json!({"type": "ready", "sources": [{"name": hostile, "state": hostile, "why": hostile}]})
        .to_string();
    let bad = format!("{{\"type\":\"<b>\"}}\n{HOSTILE}");
    [incident("incident", 1), incident("near_miss", 2), notice, ready, bad].join("\n")
}

#[test]
fn nothing_from_outside_becomes_markup() {
    let out = page(&collection(&hostile()), Some(HOSTILE));
    assert_eq!(out.matches("<script").count(), 1, "only our own script");
    assert_eq!(out.matches("</script").count(), 1);
    assert_eq!(out.matches("<noscript>").count(), out.matches("</noscript>").count());
    assert!(!out.contains("<img"));
    assert!(!out.contains(['\u{202e}', '\u{1b}']), "marks and escapes are written out");
    assert!(out.contains("&lt;script&gt;alert(1)"));
    assert!(out.contains(&"ü&lt;".repeat(4096)), "a long URI is there to its end");
}

#[test]
fn the_policy_names_the_style_and_the_script_that_are_there() {
    // The digest of nothing, FIPS 180-4.
    assert_eq!(base64(&Sha256::digest(b"")), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
    assert_eq!([base64(b"f"), base64(b"fo"), base64(b"foo")], ["Zg==", "Zm8=", "Zm9v"]);
    let out = page(&Collection::default(), None);
    let (_, rest) = out.split_once("<style>").unwrap();
    let (style, rest) = rest.split_once("</style>").unwrap();
    let (_, rest) = rest.split_once("<script>").unwrap();
    let (script, _) = rest.split_once("</script>").unwrap();
    for inline in [style, script] {
        assert!(out.contains(&base64(&Sha256::digest(inline.as_bytes()))));
    }
    assert!(
        !out.contains("http:") && !out.contains("https:") && !out.contains(" style=") && !out.contains(" onclick=")
    );
}

#[test]
fn the_same_input_gives_the_same_page() {
    let all = collection(&hostile());
    assert_eq!(page(&all, None), page(&all, None));
}

#[test]
fn an_empty_run_says_so() {
    let all = collection(r#"{"type":"summary","incidents":0,"events_lost":0,"packets_dropped":0,"duration_s":5.0}"#);
    let out = page(&all, None);
    assert!(out.contains("No failure and no near miss was recorded."));
    assert!(out.contains("Nothing was lost"));
}

#[test]
fn an_incident_of_ours_is_drawn_whole() {
    use crate::diagnose::testing::World;
    use crate::model::{
        complaint::{Message, Phase},
        flow::Side,
        net::Errno,
        socket::TcpState,
        time::WallClock,
    };
    let mut world = World::new(502);
    world.reset_sent(-90, "NO_SOCKET", None);
    world.packet_from_upstream(-85, 0x14, 0);
    world.reset_received(-80, TcpState::SynSent);
    world.state(-79, Side::Nginx, TcpState::SynSent, TcpState::Closed, Some(Errno::ECONNREFUSED));
    world.complain(Message::ConnectFailed, Phase::Connecting, Some(Errno::ECONNREFUSED), "connect() failed");
    let incident = json::incident(&world.case, &world.judge(), WallClock { offset_ns: 1_795_000_000_000_000_000 });
    let lines = incident.evidence.len();
    let all = collection(&json::line(&incident));
    let out = page(&all, None);
    assert_eq!(
        out.matches("<g class=\"r ").count() - out.matches("<span class=legend><svg").count(),
        lines + 2,
        "rows, request, answer"
    );
    assert_eq!(out.matches("<tr class=\"e ").count(), lines);
    for words in [
        "upstream-refused",
        "What to do",
        "What would have refuted it",
        "Frames are those of packets.pcapng in the folder of this incident",
        "sends RST: NO_SOCKET",
    ] {
        assert!(out.contains(words), "{words}");
    }
}
