//! Which rules a connection meets.

use proptest::prelude::*;

use super::*;

/// As nft 1.0.6 prints it.
const RULES: &str = r#"{"nftables": [{"metainfo": {"json_schema_version": 1}},
  {"chain": {"family": "inet", "table": "lab", "name": "sub", "handle": 1}},
  {"chain": {"family": "inet", "table": "lab", "name": "input", "handle": 2, "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
  {"rule": {"family": "inet", "table": "lab", "chain": "sub", "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": {"prefix": {"addr": "10.0.0.0", "len": 8}}}}, {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": {"set": [80, {"range": [8000, 9000]}]}}}, {"counter": {"packets": 0}}, {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}]}},
  {"rule": {"family": "inet", "table": "lab", "chain": "input", "expr": [{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}, {"accept": null}]}},
  {"rule": {"family": "inet", "table": "lab", "chain": "input", "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 22}}, {"accept": null}]}},
  {"rule": {"family": "inet", "table": "lab", "chain": "input", "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": 80}}, {"drop": null}]}},
  {"rule": {"family": "inet", "table": "lab", "chain": "input", "expr": [{"match": {"op": "!=", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": 53}}, {"drop": null}]}},
  {"rule": {"family": "inet", "table": "lab", "chain": "input", "expr": [{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["invalid", {"drop": null}], ["established", {"accept": null}]]}}}]}},
  {"rule": {"family": "inet", "table": "lab", "chain": "input", "expr": [{"jump": {"target": "sub"}}]}},
  {"rule": {"family": "inet", "table": "lab", "chain": "input", "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "@bad"}}, {"drop": null}]}},
  {"rule": {"family": "inet", "table": "lab", "chain": "input", "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 443}}, {"accept": null}]}}]}"#;

fn hits(port: u16) -> Vec<(Fate, bool, String)> {
    let syn = Packet::syn("10.0.0.1".parse().ok(), SocketAddr::new("10.0.0.2".parse().unwrap(), port));
    let hits = decode(RULES).unwrap().hits(Hook::Input, &syn);
    hits.into_iter().map(|hit| (hit.fate, hit.certain, hit.text)).collect()
}

#[test]
fn a_connection_meets_the_rules_in_order() {
    assert_eq!(hits(22), []);
    let text = "inet lab sub: ip daddr 10.0.0.0/8 tcp dport { 80, 8000-9000 } reject with icmpx admin-prohibited";
    assert_eq!(hits(8080), [(Fate::Rejected, true, text.to_owned())]);
    let bad = "inet lab input: ip saddr @bad drop".to_owned();
    assert_eq!(hits(443), [(Fate::Dropped, false, bad.clone())]);
    let policy = "inet lab input: policy drop".to_owned();
    assert_eq!(hits(99), [(Fate::Dropped, false, bad), (Fate::Dropped, false, policy)]);
    let syn = Packet::syn(None, "10.0.0.2:8080".parse().unwrap());
    assert_eq!(decode(RULES).unwrap().hits(Hook::Output, &syn), []);
}

#[test]
fn the_answer_meets_rules_too() {
    let rule = |expression: &str| {
        format!(
            r#"{{"nftables": [{{"chain": {{"family": "inet", "table": "t", "name": "c", "hook": "input", "policy": "accept"}}}},
            {{"rule": {{"family": "inet", "table": "t", "chain": "c", "expr": [{expression}, {{"drop": null}}]}}}}]}}"#
        )
    };
    let answer = Packet::answer("10.0.0.2:8080".parse().unwrap(), "10.0.0.1".parse().unwrap());
    let hits = |expression: &str| {
        let hits = decode(&rule(expression)).unwrap().hits(Hook::Input, &answer);
        hits.first().map(|hit| hit.certain)
    };
    let port = |field: &str| {
        format!(
            r#"{{"match": {{"op": "==", "left": {{"payload": {{"protocol": "tcp", "field": "{field}"}}}}, "right": 8080}}}}"#
        )
    };
    assert_eq!(hits(&port("sport")), Some(true));
    assert_eq!(hits(&port("dport")), Some(false), "nobody knows from which port the SYN came");
    let state =
        |word: &str| format!(r#"{{"match": {{"op": "==", "left": {{"ct": {{"key": "state"}}}}, "right": "{word}"}}}}"#);
    assert_eq!((hits(&state("established")), hits(&state("new"))), (Some(true), None));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(cut in any::<prop::sample::Index>(), noise in "[\\[\\]{}\":,a-z0-9]{0,20}") {
        let at = cut.index(RULES.len());
        let text = format!("{}{noise}{}", &RULES[..at], &RULES[at..]);
        if let Some(rules) = decode(&text) {
            let syn = Packet::syn(None, "10.0.0.2:1".parse().unwrap());
            let _ = rules.hits(Hook::Input, &syn);
        }
    }
}
