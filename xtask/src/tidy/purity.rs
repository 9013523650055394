//! The middle of probe-user has no clock, no I/O, no threads and no order that changes from run to run.

use super::{
    Breach,
    source::{Source, words},
};

/// The modules that must replay to the same answer.
pub(crate) const PURE: [&str; 8] = ["model", "decode", "merge", "correlate", "diagnose", "check", "report", "redact"];

/// Paths that reach out into the world.
const PATHS: [(&str, &str); 14] = [
    ("std::fs", "reads or writes files"),
    ("std::io::stdin", "reads from outside"),
    ("std::io::stdout", "writes; the caller has the stream"),
    ("std::io::stderr", "writes; the caller has the stream"),
    ("std::env", "depends on where it runs"),
    ("std::process", "depends on where it runs"),
    ("std::thread", "runs beside the stream of events"),
    ("std::sync::mpsc", "runs beside the stream of events"),
    ("std::os::unix::net", "opens sockets (addresses are fine)"),
    ("std::net::TcpStream", "opens sockets (addresses are fine)"),
    ("std::net::TcpListener", "opens sockets (addresses are fine)"),
    ("std::net::UdpSocket", "opens sockets (addresses are fine)"),
    ("std::net::ToSocketAddrs", "asks the resolver"),
    ("std::random", "differs from run to run"),
];

/// Names that have no place there, however they were imported.
const NAMES: [(&str, &str); 13] = [
    ("HashMap", "has another order in every run: use BTreeMap or Vec"),
    ("HashSet", "has another order in every run: use BTreeSet or Vec"),
    ("Instant", "is a clock: time is an argument"),
    ("SystemTime", "is a clock: time is an argument"),
    ("tokio", "belongs to live"),
    ("aya", "belongs to live"),
    ("nix", "belongs to live"),
    ("libc", "belongs to live"),
    ("pcap", "belongs to live"),
    ("procfs", "belongs to live"),
    ("TcpStream", "opens sockets (addresses are fine)"),
    ("TcpListener", "opens sockets (addresses are fine)"),
    ("UdpSocket", "opens sockets (addresses are fine)"),
];

/// Names that are crates and may be words of ours too: told only where a path begins with them.
const CRATES: [&str; 6] = ["tokio", "aya", "nix", "libc", "pcap", "procfs"];

/// Checks a file of a pure module.
pub(crate) fn check(source: &Source) -> Vec<Breach> {
    let Some(module) = source.probe_user_module() else { return Vec::new() };
    let Some(top) = module.first().filter(|top| PURE.contains(&top.as_str())) else { return Vec::new() };
    let mut breaches = Vec::new();
    let mut tell = |line: usize, what: &str, why: &str| {
        breaches.push(Breach::new(&source.path, line, format!("`{what}` in {top}, which is pure: it {why}")));
    };
    for (path, line) in paths(&source.shipped) {
        for (forbidden, why) in PATHS {
            if path == forbidden || path.strip_prefix(forbidden).is_some_and(|rest| rest.starts_with("::")) {
                tell(line, forbidden, why);
            }
        }
        if let Some(name) = CRATES.into_iter().find(|name| path.split("::").next() == Some(name) && path.contains("::"))
        {
            tell(line, name, "belongs to live");
        }
        if ["Timestamp::now", "Zoned::now"].iter().any(|now| path.ends_with(now)) {
            tell(line, &path, "is a clock: time is an argument");
        }
    }
    for (number, line) in (1..).zip(source.shipped.lines()) {
        for (name, why) in NAMES {
            if !CRATES.contains(&name) && words(line).any(|word| word == name) {
                tell(number, name, why);
            }
        }
    }
    breaches.sort();
    breaches.dedup();
    breaches
}

/// Every path in the code with its line, with the groups of `use` written out: `use std::{fs, io::{self, Read}};` gives
/// `std::fs`, `std::io::self` and `std::io::Read`.
pub(crate) fn paths(code: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    // What stands before the open braces of a `use`; a brace that opens something else stands for nothing.
    let mut groups: Vec<Option<String>> = Vec::new();
    let mut current = String::new();
    let (mut line, mut began) = (1, 1);
    let mut finish = |current: &mut String, groups: &[Option<String>], began: usize| {
        let path = std::mem::take(current);
        if !path.is_empty() && !path.ends_with("::") {
            let before: String =
                groups.iter().rev().map_while(Option::as_deref).collect::<Vec<_>>().into_iter().rev().collect();
            found.push((before + path.trim_start_matches("::"), began));
        }
    };
    for c in code.chars() {
        match c {
            _ if c.is_alphanumeric() || c == '_' || c == ':' => {
                if current.is_empty() {
                    began = line;
                }
                current.push(c);
            }
            '{' if current.ends_with("::") => groups.push(Some(std::mem::take(&mut current))),
            _ => {
                // `fs :: read` is not written by rustfmt, so a blank ends a path.
                finish(&mut current, &groups, began);
                match c {
                    '{' => groups.push(None),
                    '}' => drop(groups.pop()),
                    '\n' => line += 1,
                    _ => {}
                }
            }
        }
    }
    finish(&mut current, &groups, began);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<String> {
        check(&Source::new(path.into(), text)).into_iter().map(|breach| breach.rule).collect()
    }

    fn told(text: &str) -> bool {
        !rules("probe-user/src/merge/order.rs", text).is_empty()
    }

    #[test]
    fn groups_are_written_out() {
        let all = paths("use std::{\n    fs,\n    io::{self, Read as _},\n};\nfn f() { crate::a::b(); }\n");
        let has = |path: &str, line: usize| all.contains(&(path.to_owned(), line));
        assert!(
            has("std::fs", 2) && has("std::io::self", 3) && has("std::io::Read", 3) && has("crate::a::b", 5),
            "{all:?}"
        );
    }

    #[test]
    fn a_block_is_no_group() {
        let all = paths("impl A for B { fn f() { fs::read() } }");
        assert!(all.contains(&("fs::read".to_owned(), 1)), "{all:?}");
    }

    #[test]
    fn the_world_is_told_however_it_is_imported() {
        for text in [
            "use std::fs;",
            "use std::{fmt, fs};",
            "use std::{\n    fmt,\n    fs::File,\n};",
            "fn f() { std::fs::read(\"x\"); }",
            "use std::net::TcpStream;",
            "use std::net::{IpAddr, UdpSocket};",
            "use std::time::Instant;",
            "fn f() { let now = std::time::SystemTime::now(); }",
            "fn f() { jiff::Timestamp::now(); }",
            "use std::collections::HashMap;",
            "use std::collections::{BTreeMap, HashSet};",
            "use tokio::sync::mpsc;",
            "use aya::maps::RingBuf;",
            "fn f() { nix::unistd::getpid(); }",
            "fn f() -> i32 { libc::ECONNRESET }",
            "use std::os::unix::net::UnixStream;",
            "use std::env;",
        ] {
            assert!(told(text), "{text}");
        }
    }

    #[test]
    fn values_are_not() {
        for text in [
            "use std::net::{IpAddr, SocketAddr};",
            "use std::{collections::BTreeMap, fmt, time::Duration};",
            "// HashMap, std::fs\nconst A: &str = \"std::fs\";",
            "#[cfg(test)]\nmod tests {\n    use std::{collections::HashMap, fs};\n}\n",
            "fn f(pcap: u8, nix: u8) { g(pcap + nix) }",
            "use jiff::Timestamp;",
            "fn f() { self.fs.environment::<u8>() }",
        ] {
            assert!(!told(text), "{text}: {:?}", rules("probe-user/src/merge/order.rs", text));
        }
    }

    #[test]
    fn only_the_middle_is_pure() {
        let text = "use std::{collections::HashMap, fs};";
        for top in PURE {
            assert!(!rules(&format!("probe-user/src/{top}/x.rs"), text).is_empty(), "{top}");
            assert!(!rules(&format!("probe-user/src/{top}.rs"), text).is_empty(), "{top}");
        }
        for path in
            ["probe-user/src/live/x.rs", "probe-user/src/bundle/x.rs", "probe-user/src/main.rs", "tests/src/lab.rs"]
        {
            assert!(rules(path, text).is_empty(), "{path}");
        }
    }
}
