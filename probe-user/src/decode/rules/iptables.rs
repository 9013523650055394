//! Rules as `iptables-save` and `ip6tables-save` print them (iptables 1.8), made into the form of nft's.
//! (<https://manpages.debian.org/bookworm/iptables/iptables-save.8.en.html>, iptables-extensions(8))

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Chain, Rule, Rules};

/// The tables that may stop a packet, with the priority of their hooks (`linux/netfilter_ipv4.h`).
const TABLES: [(&str, i64); 4] = [("raw", -300), ("mangle", -150), ("filter", 0), ("security", 50)];

/// Targets after which the packet goes on to the next rule, whatever else they do.
const PASSING: [&str; 20] = [
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNMARK",
    "CONNSECMARK",
    "CT",
    "DSCP",
    "ECN",
    "HL",
    "LOG",
    "MARK",
    "NFLOG",
    "NOTRACK",
    "SECMARK",
    "SET",
    "TCPMSS",
    "TOS",
    "TRACE",
    "TTL",
    "ULOG",
];

/// Whether iptables has a table of this name.
pub(super) fn is_table(name: &str) -> bool {
    TABLES.iter().any(|(table, _)| *table == name)
}

/// Reads a listing; `family` is `ip` or `ip6`. Lines that are not understood leave open what they do.
#[must_use]
pub fn decode(text: &str, family: &str) -> Rules {
    let mut rules = Rules::default();
    let mut index: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut table: Option<(&str, i64)> = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('*') {
            table = TABLES.iter().find(|(known, _)| *known == name).copied();
            continue;
        }
        let Some((table, priority)) = table else { continue };
        if let Some(rest) = line.strip_prefix(':') {
            let mut words = rest.split(' ');
            let name = words.next().unwrap_or_default().to_owned();
            let policy = words.next().unwrap_or_default();
            let hook = (policy != "-").then(|| name.to_lowercase());
            index.insert((table.to_owned(), name.clone()), rules.chains.len());
            rules.chains.push(Chain {
                family: family.to_owned(),
                table: table.to_owned(),
                name,
                hook,
                priority,
                policy_drop: policy == "DROP",
                rules: Vec::new(),
            });
            continue;
        }
        // With counters (`-c`) they stand before the rule.
        let rule = line.split_once("-A ").filter(|(before, _)| before.is_empty() || before.starts_with('['));
        let Some((name, rest)) = rule.and_then(|(_, rule)| rule.split_once(' ').or(Some((rule, "")))) else { continue };
        // Chains stand before the rules of their table.
        let position = |name: &str| index.get(&(table.to_owned(), name.to_owned()));
        let expressions = expressions(&words(rest), family, &|name| position(name).is_some());
        if let Some(chain) = position(name).and_then(|at| rules.chains.get_mut(*at)) {
            chain.rules.push(Rule { expressions, text: Some(rest.to_owned()) });
        }
    }
    rules
}

/// Words as a shell takes them: quotes hold what has spaces, a backslash holds a quote.
fn words(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut word = String::new();
    let (mut quoted, mut any) = (false, false);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => word.extend(letters.next()),
            '"' => (quoted, any) = (!quoted, true),
            ' ' if !quoted => {
                if any || !word.is_empty() {
                    all.push(std::mem::take(&mut word));
                }
                any = false;
            }
            other => word.push(other),
        }
    }
    if any || !word.is_empty() {
        all.push(word);
    }
    all
}

/// Something that may match or not.
fn open() -> Value {
    json!({ "match": {} })
}

fn matching(left: &Value, is_not: bool, right: &Value) -> Value {
    json!({ "match": { "op": if is_not { "!=" } else { "==" }, "left": left, "right": right } })
}

fn field(protocol: &str, name: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": name } })
}

fn meta(key: &str) -> Value {
    json!({ "meta": { "key": key } })
}

fn expressions(words: &[String], family: &str, is_chain: &impl Fn(&str) -> bool) -> Vec<Value> {
    let mut found = Vec::new();
    let mut verdict = None;
    let mut is_not = false;
    let mut rest = words.iter().map(String::as_str);
    while let Some(option) = rest.next() {
        if option == "!" {
            is_not = true;
            continue;
        }
        let mut value = || rest.next().unwrap_or_default().to_owned();
        let one = match option {
            "-s" | "--source" => Some(matching(&field(family, "saddr"), is_not, &network(&value()))),
            "-d" | "--destination" => Some(matching(&field(family, "daddr"), is_not, &network(&value()))),
            "-p" | "--protocol" => Some(match value().as_str() {
                "all" | "0" => json!({ "comment": null }),
                "6" => matching(&meta("l4proto"), is_not, &json!("tcp")),
                name => matching(&meta("l4proto"), is_not, &json!(name)),
            }),
            "-i" | "--in-interface" => Some(matching(&meta("iifname"), is_not, &json!(value().replace('+', "*")))),
            "-o" | "--out-interface" => Some(matching(&meta("oifname"), is_not, &json!(value().replace('+', "*")))),
            "--dport" | "--destination-port" | "--dports" | "--destination-ports" => {
                Some(matching(&field("th", "dport"), is_not, &ports(&value())))
            }
            "--sport" | "--source-port" | "--sports" | "--source-ports" => {
                Some(matching(&field("th", "sport"), is_not, &ports(&value())))
            }
            "--ctstate" | "--state" => Some(matching(&json!({ "ct": { "key": "state" } }), is_not, &states(&value()))),
            "--tcp-flags" => {
                let (mask, wanted) = (value(), value());
                Some(matching(&flags(&mask, &wanted), is_not, &Value::Null))
            }
            "--syn" => Some(matching(&flags("FIN,SYN,RST,ACK", "SYN"), is_not, &Value::Null)),
            "--comment" => {
                value();
                None
            }
            "-m" | "--match" => match value().as_str() {
                "tcp" | "udp" | "comment" | "conntrack" | "state" | "multiport" => None,
                "limit" | "hashlimit" => Some(json!({ "limit": null })),
                _ => Some(open()),
            },
            "-j" | "--jump" => {
                verdict = Some(target(&value(), "jump", is_chain));
                None
            }
            "-g" | "--goto" => {
                verdict = Some(target(&value(), "goto", is_chain));
                None
            }
            "--reject-with" => {
                verdict = Some(json!({ "reject": { "type": value() } }));
                None
            }
            // What a module asks for that is not known here; after the target it is that one's own.
            other if other.starts_with('-') && verdict.is_none() => Some(open()),
            _ => None,
        };
        found.extend(one);
        is_not = false;
    }
    found.extend(verdict);
    found
}

fn flags(mask: &str, set: &str) -> Value {
    json!({ "iptables-flags": { "mask": mask, "set": set } })
}

fn target(name: &str, how: &str, is_chain: &impl Fn(&str) -> bool) -> Value {
    match name {
        "ACCEPT" => json!({ "accept": null }),
        "DROP" => json!({ "drop": null }),
        "REJECT" => json!({ "reject": null }),
        "RETURN" => json!({ "return": null }),
        _ if PASSING.contains(&name) => json!({ "log": null }),
        _ if is_chain(name) => json!({ how: { "target": name } }),
        // A target that decides by itself, or one that nobody here knows.
        _ => json!({ "queue": null }),
    }
}

/// `10.0.0.0/8`, `10.0.0.1/32`, `10.0.0.0/255.0.255.0`.
fn network(text: &str) -> Value {
    match text.split_once('/') {
        None => json!(text),
        Some((address, length)) => match length.parse::<u32>() {
            Ok(length) => json!({ "prefix": { "addr": address, "len": length } }),
            Err(_) => Value::Null,
        },
    }
}

/// `80`, `8000:9000`, `1,2:3`.
fn ports(text: &str) -> Value {
    let one = |text: &str| {
        let number = |text: &str| text.parse::<u16>().map_or(Value::Null, |number| json!(number));
        match text.split_once(':') {
            Some((first, last)) => json!({ "range": [number(first), number(last)] }),
            None => number(text),
        }
    };
    json!({ "set": text.split(',').map(one).collect::<Vec<_>>() })
}

fn states(text: &str) -> Value {
    json!({ "set": text.split(',').map(str::to_lowercase).collect::<Vec<_>>() })
}

/// Whether a SYN, or the SYN-ACK, is what is asked for: flags that are looked at, and those of them that are set.
pub(super) fn flags_match(mask: &str, set: &str, is_answer: bool) -> bool {
    let has = |list: &str, flag: &str| list == "ALL" || list.split(',').any(|one| one == flag);
    let is_set = |flag: &str| flag == "SYN" || is_answer && flag == "ACK";
    ["FIN", "SYN", "RST", "PSH", "ACK", "URG"]
        .into_iter()
        .all(|flag| !has(mask, flag) || has(set, flag) == is_set(flag))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::decode::rules::{Fate, Hook, Packet};

    /// As iptables-save 1.8.9 prints it.
    const LISTING: &str = r#"# Generated by iptables-save v1.8.9 (nf_tables) on Sat Nov 21 15:03:16 2026
*nat
:OUTPUT ACCEPT [0:0]
-A OUTPUT -p tcp -m tcp --dport 80 -j DROP
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:X - [0:0]
:LONE - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p udp -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -p tcp -m tcp --dport 23 ! --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT
-A INPUT -s 10.0.0.0/8 -j X
-A INPUT -m mark --mark 0x1 -p tcp -m tcp --dport 50 -j ACCEPT
-A OUTPUT -j LOG --log-prefix "out -j DROP \" "
-A OUTPUT -p tcp -m tcp --dport 81 -m comment --comment "a b \"c" -j REJECT --reject-with tcp-reset
-A OUTPUT -p tcp -m tcp --dport 82 --tcp-flags FIN,SYN,RST,ACK SYN -m limit --limit 5/sec -j DROP
-A OUTPUT ! -d 10.0.0.0/8 -j X
-A OUTPUT -o lo -p tcp -m tcp --dport 85 -j DROP
-A OUTPUT -p tcp -m tcp --dport 86 -m owner --uid-owner 33 -j DROP
[3:180] -A X -p tcp -m multiport --dports 1,2000:3000 -m conntrack --ctstate NEW,RELATED -j DROP
COMMIT
"#;

    fn hits(hook: Hook, destination: &str, port: u16) -> Vec<(Fate, bool, String)> {
        let syn = Packet::syn("10.0.0.1".parse().ok(), SocketAddr::new(destination.parse().unwrap(), port));
        let hits = decode(LISTING, "ip").hits(hook, &syn);
        hits.into_iter().map(|hit| (hit.fate, hit.certain, hit.text)).collect()
    }

    #[test]
    fn a_connection_meets_iptables_rules() {
        let output = |destination, port| hits(Hook::Output, destination, port);
        assert_eq!(output("10.0.0.2", 80), [], "the table nat stops nothing");
        let reset = r#"ip filter OUTPUT: -p tcp -m tcp --dport 81 -m comment --comment "a b \"c" -j REJECT --reject-with tcp-reset"#;
        assert_eq!(output("10.0.0.2", 81), [(Fate::Rejected, true, reset.to_owned())]);
        assert!(matches!(output("10.0.0.2", 82).as_slice(), [(Fate::Dropped, false, _)]), "as long as the limit lasts");
        assert_eq!(output("10.0.0.2", 2_500), []);
        assert!(matches!(output("192.0.2.1", 2_500).as_slice(), [(Fate::Dropped, true, _)]));
        assert!(
            matches!(output("10.0.0.2", 85).as_slice(), [(Fate::Dropped, false, _)]),
            "which interface is not known"
        );
        assert!(matches!(output("127.0.0.1", 85).as_slice(), [(Fate::Dropped, true, _)]));
        assert!(matches!(output("10.0.0.2", 86).as_slice(), [(Fate::Dropped, false, _)]), "whose it is is not known");
        assert_eq!(hits(Hook::Output, "::1", 81), []);
    }

    #[test]
    fn the_policy_stops_what_no_rule_lets_in() {
        let input = |port| hits(Hook::Input, "10.0.0.2", port);
        let policy = |certain| (Fate::Dropped, certain, "ip filter INPUT: policy drop".to_owned());
        assert_eq!(input(22), []);
        assert_eq!(input(23), [policy(true)], "a SYN is what that rule excludes");
        assert_eq!(input(50), [policy(false)], "a mark may let it in");
        assert_eq!(input(99), [policy(true)]);
        assert!(matches!(input(1).as_slice(), [(Fate::Dropped, true, text)] if text.contains("--dports 1,2000:3000")));
    }

    #[test]
    fn a_listing_takes_the_place_of_the_same_tables() {
        let nft = r#"{"nftables": [{"chain": {"family": "ip", "table": "filter", "name": "OUTPUT", "hook": "output", "policy": "drop"}},
            {"chain": {"family": "inet", "table": "own", "name": "o", "hook": "output", "policy": "drop"}}]}"#;
        let syn = Packet::syn(None, "10.0.0.2:80".parse().unwrap());
        let mut rules = crate::decode::rules::decode(nft).unwrap();
        assert!(rules.has_iptables("ip") && !rules.has_iptables("ip6"));
        rules.add(decode(LISTING, "ip"), true);
        let texts: Vec<String> = rules.hits(Hook::Output, &syn).into_iter().map(|hit| hit.text).collect();
        assert_eq!(texts, ["inet own o: policy drop"]);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(cut in any::<prop::sample::Index>(), noise in "[-a-zA-Z0-9!*:\"\\\\/, \n]{0,20}") {
            let at = cut.index(LISTING.len());
            let text = format!("{}{noise}{}", &LISTING[..at], &LISTING[at..]);
            let syn = Packet::syn(None, "10.0.0.2:1".parse().unwrap());
            let _ = decode(&text, "ip").hits(Hook::Input, &syn);
        }
    }
}
