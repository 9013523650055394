//! Packet filter rules as `nft -j list ruleset` and `iptables-save` print them, and which of them a new TCP connection would meet.
//! (<https://manpages.debian.org/bookworm/libnftables1/libnftables-json.5.en.html>)
//!
//! What a rule asks for and this cannot know (marks, interfaces, limits, connection states beyond "new") leaves it open whether the
//! rule matches: such a rule is told as possible, never as certain.

mod iptables;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde_json::Value;

pub use self::iptables::decode as decode_iptables;

/// Jumps in jumps at most; the kernel allows 16 as well.
const DEPTH: usize = 16;

/// What ends a rule.
const VERDICTS: [&str; 6] = ["accept", "return", "drop", "reject", "jump", "goto"];

/// Where packets of a connection meet rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Packets that this host sends.
    Output,
    /// Packets that are for this host.
    Input,
}

impl Hook {
    /// nft's word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Input => "input",
        }
    }
}

/// The first packet of a connection, or the answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its source, where known.
    pub source: Option<IpAddr>,
    /// Its destination.
    pub destination: IpAddr,
    /// Its source port, where known.
    pub source_port: Option<u16>,
    /// Its destination port, where known.
    pub port: Option<u16>,
    /// It is the SYN-ACK.
    pub is_answer: bool,
}

impl Packet {
    /// The SYN from an address, if that is known, to another.
    #[must_use]
    pub const fn syn(source: Option<IpAddr>, to: SocketAddr) -> Self {
        Self { source, destination: to.ip(), source_port: None, port: Some(to.port()), is_answer: false }
    }

    /// What answers the SYN that came from this address.
    #[must_use]
    pub const fn answer(from: SocketAddr, to: IpAddr) -> Self {
        Self { source: Some(from.ip()), destination: to, source_port: Some(from.port()), port: None, is_answer: true }
    }

    const fn state(&self) -> &'static str {
        if self.is_answer { "established" } else { "new" }
    }
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It vanishes.
    Dropped,
    /// It is answered with a reset or an ICMP error.
    Rejected,
}

/// A rule that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// What it does.
    pub fate: Fate,
    /// Table, chain and rule in nft's words.
    pub text: String,
    /// Everything it asks for is known to hold, and everything before it is known not to let the packet pass.
    pub certain: bool,
}

#[derive(Clone, Debug, Default)]
struct Rule {
    expressions: Vec<Value>,
    /// As it was listed, where that is not nft's form.
    text: Option<String>,
}

#[derive(Clone, Debug)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    priority: i64,
    policy_drop: bool,
    rules: Vec<Rule>,
}

/// A ruleset.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    chains: Vec<Chain>,
}

/// What the packet meets in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    On,
    Accepted,
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Yes,
    No,
    Unknown,
}

/// Reads nft's JSON; `None` when it is none.
#[must_use]
pub fn decode(text: &str) -> Option<Rules> {
    let root: Value = serde_json::from_str(text).ok()?;
    let mut rules = Rules::default();
    let mut index: BTreeMap<(String, String, String), usize> = BTreeMap::new();
    let items = root.get("nftables")?.as_array()?;
    let word = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    for item in items.iter().filter_map(|item| item.get("chain")) {
        let key = (word(item, "family"), word(item, "table"), word(item, "name"));
        index.insert(key.clone(), rules.chains.len());
        rules.chains.push(Chain {
            family: key.0,
            table: key.1,
            name: key.2,
            hook: item.get("hook").and_then(Value::as_str).map(ToOwned::to_owned),
            priority: item.get("prio").and_then(Value::as_i64).unwrap_or(0),
            policy_drop: word(item, "policy") == "drop",
            rules: Vec::new(),
        });
    }
    for item in items.iter().filter_map(|item| item.get("rule")) {
        let key = (word(item, "family"), word(item, "table"), word(item, "chain"));
        let expressions = item.get("expr").and_then(Value::as_array).cloned().unwrap_or_default();
        if let Some(chain) = index.get(&key).and_then(|at| rules.chains.get_mut(*at)) {
            chain.rules.push(Rule { expressions, text: None });
        }
    }
    Some(rules)
}

impl Rules {
    /// Whether there is a table of this family that iptables may have made: iptables knows better what its own rules mean.
    #[must_use]
    pub fn has_iptables(&self, family: &str) -> bool {
        self.chains.iter().any(|chain| chain.family == family && iptables::is_table(&chain.table))
    }

    /// Adds another listing. `instead`: of the same rules, so that its tables take the place of ours.
    pub fn add(&mut self, other: Self, instead: bool) {
        if instead {
            let is_theirs = |chain: &Chain| {
                other.chains.iter().any(|theirs| theirs.family == chain.family && theirs.table == chain.table)
            };
            self.chains.retain(|chain| !is_theirs(chain));
        }
        self.chains.extend(other.chains);
    }

    /// Rules that stop this packet, or may.
    #[must_use]
    pub fn hits(&self, hook: Hook, packet: &Packet) -> Vec<Hit> {
        let mut bases: Vec<&Chain> = self
            .chains
            .iter()
            .filter(|chain| chain.hook.as_deref() == Some(hook.name()) && speaks(&chain.family, packet.destination))
            .collect();
        bases.sort_by_key(|chain| chain.priority);
        let mut hits = Vec::new();
        let mut certain = true;
        for base in bases {
            let way = self.walk(base, packet, &mut hits, &mut certain, 0);
            if way == Way::Stopped {
                break;
            }
            if way == Way::On && base.policy_drop {
                let text = format!("{} {} {}: policy drop", base.family, base.table, base.name);
                hits.push(Hit { fate: Fate::Dropped, text, certain });
                break;
            }
        }
        hits
    }

    fn walk(&self, chain: &Chain, packet: &Packet, hits: &mut Vec<Hit>, certain: &mut bool, depth: usize) -> Way {
        for rule in &chain.rules {
            let mut known = Known::Yes;
            for expression in &rule.expressions {
                let Some((name, body)) = expression.as_object().and_then(|object| object.iter().next()) else {
                    continue;
                };
                match name.as_str() {
                    "match" => match matches(body, packet) {
                        Known::No => known = Known::No,
                        Known::Unknown if known == Known::Yes => known = Known::Unknown,
                        _ => {}
                    },
                    "counter" | "log" | "comment" => {}
                    "drop" | "reject" if known != Known::No => {
                        let fate = if name == "drop" { Fate::Dropped } else { Fate::Rejected };
                        let sure = *certain && known == Known::Yes;
                        let text = format!("{} {} {}: {}", chain.family, chain.table, chain.name, rule_text(rule));
                        hits.push(Hit { fate, text, certain: sure });
                        if known == Known::Yes {
                            return Way::Stopped;
                        }
                        *certain = false;
                    }
                    "accept" | "return" if known == Known::Yes => {
                        return if name == "accept" { Way::Accepted } else { Way::On };
                    }
                    "accept" | "return" if known == Known::Unknown => *certain = false,
                    "jump" | "goto" if known != Known::No && depth < DEPTH => {
                        let target = body.get("target").and_then(Value::as_str).unwrap_or_default();
                        let is_target = |other: &&Chain| {
                            other.name == target && other.table == chain.table && other.family == chain.family
                        };
                        let Some(target) = self.chains.iter().find(is_target) else { continue };
                        // A chain that may be left by an unknown rule leaves everything after it open too.
                        let mut inside = *certain && known == Known::Yes;
                        let way = self.walk(target, packet, hits, &mut inside, depth + 1);
                        match (way, known) {
                            (Way::Accepted | Way::Stopped, Known::Yes) => return way,
                            (Way::On, Known::Yes) if name == "goto" => return Way::On,
                            (Way::On, Known::Yes) => *certain = inside,
                            (Way::On, _) => {}
                            _ => *certain = false,
                        }
                    }
                    _ if known == Known::No || VERDICTS.contains(&name.as_str()) => {}
                    "vmap" if is_untouched(body, packet) => {}
                    // Whatever else a rule does may decide: by itself (verdict maps, iptables' own modules, queues) or for what
                    // follows in the rule (limits, quotas).
                    other => {
                        known = Known::Unknown;
                        *certain &= matches!(other, "limit" | "quota" | "meter" | "set" | "map" | "mangle" | "notrack");
                    }
                }
                if known == Known::No {
                    break;
                }
            }
        }
        Way::On
    }
}

/// A verdict map that has nothing for this packet.
fn is_untouched(body: &Value, packet: &Packet) -> bool {
    let (Some(key), Some(entries)) = (body.get("key"), body.pointer("/data/set").and_then(Value::as_array)) else {
        return false;
    };
    let value = |entry: &Value| entry.get(0).cloned().unwrap_or(Value::Null);
    entries.iter().all(|entry| matches_left(key, &value(entry), packet) == Known::No)
}

/// Whether a table's family sees packets to this address.
fn speaks(family: &str, address: IpAddr) -> bool {
    match family {
        "inet" => true,
        "ip" => address.is_ipv4(),
        "ip6" => address.is_ipv6(),
        _ => false,
    }
}

fn matches(body: &Value, packet: &Packet) -> Known {
    let (Some(left), Some(right)) = (body.get("left"), body.get("right")) else { return Known::Unknown };
    let operator = body.get("op").and_then(Value::as_str).unwrap_or("==");
    // A field of another protocol asks for that protocol first, even where it is compared with `!=`.
    if let Some(protocol) = left.pointer("/payload/protocol").and_then(Value::as_str)
        && is_other_protocol(protocol, packet)
    {
        return Known::No;
    }
    let known = matches_left(left, right, packet);
    match (operator, known) {
        ("==" | "in", known) => known,
        ("!=", Known::Yes) => Known::No,
        ("!=", Known::No) => Known::Yes,
        _ => Known::Unknown,
    }
}

fn is_other_protocol(protocol: &str, packet: &Packet) -> bool {
    match protocol {
        "ip" => !packet.destination.is_ipv4(),
        "ip6" => packet.destination.is_ipv4(),
        "udp" | "udplite" | "icmp" | "icmpv6" | "igmp" | "sctp" | "dccp" | "esp" | "ah" | "arp" => true,
        _ => false,
    }
}

fn matches_left(left: &Value, right: &Value, packet: &Packet) -> Known {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(payload) = left.get("payload") {
        return match (text(payload, "protocol").as_str(), text(payload, "field").as_str()) {
            ("ip" | "ip6", "daddr") => address_in(right, packet.destination),
            ("ip" | "ip6", "saddr") => packet.source.map_or(Known::Unknown, |source| address_in(right, source)),
            ("ip", "protocol") | ("ip6", "nexthdr") => word_in(right, "tcp"),
            ("tcp" | "th", "dport") => packet.port.map_or(Known::Unknown, |port| number_in(right, u64::from(port))),
            ("tcp" | "th", "sport") => {
                packet.source_port.map_or(Known::Unknown, |port| number_in(right, u64::from(port)))
            }
            (protocol, _) if is_other_protocol(protocol, packet) => Known::No,
            _ => Known::Unknown,
        };
    }
    if let Some(flags) = left.get("iptables-flags") {
        return known(iptables::flags_match(&text(flags, "mask"), &text(flags, "set"), packet.is_answer));
    }
    if let Some(meta) = left.get("meta") {
        return match text(meta, "key").as_str() {
            "l4proto" => word_in(right, "tcp"),
            "nfproto" => word_in(right, if packet.destination.is_ipv4() { "ipv4" } else { "ipv6" }),
            // Packets to a loopback address take the loopback; which way others take is not known here.
            "iifname" | "oifname" | "iif" | "oif" if packet.destination.is_loopback() => word_in(right, "lo"),
            _ => Known::Unknown,
        };
    }
    if let Some(ct) = left.get("ct")
        && text(ct, "key") == "state"
    {
        return word_in(right, packet.state());
    }
    Known::Unknown
}

fn any_of(values: &[Value], test: impl Fn(&Value) -> Known) -> Known {
    let mut known = Known::No;
    for value in values {
        match test(value) {
            Known::Yes => return Known::Yes,
            Known::Unknown => known = Known::Unknown,
            Known::No => {}
        }
    }
    known
}

/// The members of an anonymous set or a list.
fn members(value: &Value) -> Option<&Vec<Value>> {
    value.get("set").and_then(Value::as_array).or_else(|| value.as_array())
}

fn word_in(right: &Value, word: &str) -> Known {
    if let Some(values) = members(right) {
        return any_of(values, |value| word_in(value, word));
    }
    match right.as_str() {
        // A named set, or a pattern.
        Some(text) if text.starts_with('@') || text.ends_with('*') => Known::Unknown,
        Some(text) if text == word => Known::Yes,
        Some(_) => Known::No,
        None => Known::Unknown,
    }
}

fn number_in(right: &Value, number: u64) -> Known {
    if let Some(values) = members(right) {
        return any_of(values, |value| number_in(value, number));
    }
    if let Some(range) = right.get("range").and_then(Value::as_array) {
        return match (range.first().and_then(Value::as_u64), range.get(1).and_then(Value::as_u64)) {
            (Some(first), Some(last)) => known((first..=last).contains(&number)),
            _ => Known::Unknown,
        };
    }
    right.as_u64().map_or(Known::Unknown, |value| known(value == number))
}

fn address_in(right: &Value, address: IpAddr) -> Known {
    if let Some(values) = members(right) {
        return any_of(values, |value| address_in(value, address));
    }
    let parse = |value: &Value| value.as_str().and_then(|text| text.parse::<IpAddr>().ok());
    if let Some(prefix) = right.get("prefix") {
        let (Some(net), Some(length)) = (
            prefix.get("addr").and_then(parse),
            prefix.get("len").and_then(Value::as_u64).and_then(|l| u32::try_from(l).ok()),
        ) else {
            return Known::Unknown;
        };
        return known(same_prefix(net, address, length));
    }
    if let Some(range) = right.get("range").and_then(Value::as_array) {
        return match (range.first().and_then(parse), range.get(1).and_then(parse)) {
            (Some(first), Some(last)) => known((first..=last).contains(&address)),
            _ => Known::Unknown,
        };
    }
    parse(right).map_or(Known::Unknown, |value| known(value == address))
}

fn same_prefix(net: IpAddr, address: IpAddr, length: u32) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)) << 96, true),
        IpAddr::V6(ip) => (u128::from(ip), false),
    };
    let ((net, v4), (address, of_v4)) = (bits(net), bits(address));
    let mask = if length == 0 { 0 } else { u128::MAX << (128 - length.min(128)) };
    v4 == of_v4 && net & mask == address & mask
}

const fn known(is: bool) -> Known {
    if is { Known::Yes } else { Known::No }
}

/// The rule in words close to nft's own.
fn rule_text(rule: &Rule) -> String {
    if let Some(text) = &rule.text {
        return text.clone();
    }
    let words: Vec<String> = rule.expressions.iter().filter_map(expression_text).collect();
    words.join(" ")
}

fn expression_text(expression: &Value) -> Option<String> {
    let (name, body) = expression.as_object()?.iter().next()?;
    Some(match name.as_str() {
        "match" => {
            let operator = body.get("op").and_then(Value::as_str).filter(|op| *op != "==" && *op != "in");
            let operator = operator.map(|operator| format!("{operator} ")).unwrap_or_default();
            format!("{} {operator}{}", value_text(body.get("left")?), value_text(body.get("right")?))
        }
        "counter" => return None,
        "reject" => {
            let kind = body.get("type").and_then(Value::as_str).map(|kind| format!(" with {kind}")).unwrap_or_default();
            let expr = body.get("expr").and_then(Value::as_str).map(|expr| format!(" {expr}")).unwrap_or_default();
            format!("reject{kind}{expr}")
        }
        "jump" | "goto" => format!("{name} {}", body.get("target").and_then(Value::as_str).unwrap_or_default()),
        _ => name.clone(),
    })
}

fn value_text(value: &Value) -> String {
    if let Some(values) = members(value) {
        let words: Vec<String> = values.iter().map(value_text).collect();
        return format!("{{ {} }}", words.join(", "));
    }
    let word = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(payload) = value.get("payload") {
        return format!("{} {}", word(payload, "protocol"), word(payload, "field"));
    }
    for kind in ["meta", "ct"] {
        if let Some(inner) = value.get(kind) {
            let kind = if kind == "meta" { "" } else { "ct " };
            return format!("{kind}{}", word(inner, "key"));
        }
    }
    if let Some(prefix) = value.get("prefix") {
        return format!("{}/{}", word(prefix, "addr"), prefix.get("len").and_then(Value::as_u64).unwrap_or(0));
    }
    if let Some([first, last]) = value.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        return format!("{}-{}", value_text(first), value_text(last));
    }
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

#[cfg(test)]
mod tests;
