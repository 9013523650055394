//! Who may use whom inside probe-user.

use super::{Breach, purity::paths, source::Source};

/// Every module at the top of probe-user and the modules it may use; `design.md`, "The folders". A new module is a new line
/// here, written on purpose. `app` is the one that ties everything together.
const ARROWS: [(&str, &[&str]); 14] = [
    ("model", &[]),
    ("decode", &["model"]),
    ("merge", &["model"]),
    ("correlate", &["model"]),
    ("diagnose", &["model"]),
    // Judges a host without waiting for a failure; where the configuration says something, it names the line.
    ("check", &["decode", "model"]),
    // `explain` prints the catalogue's pages.
    ("report", &["check", "diagnose", "model"]),
    ("pipeline", &["decode", "merge", "correlate", "diagnose", "model"]),
    // What is recorded is raw: the recorder stands before decode, the reader of a bundle hands on to it.
    // Its packets are the same pcapng that reports leave.
    ("bundle", &["decode", "report", "model"]),
    // Old captures: bytes in, findings and events out.
    ("offline", &["model"]),
    // Raw inputs before anybody else sees them.
    ("redact", &["model"]),
    ("live", &["redact", "pipeline", "decode", "bundle", "check", "model"]),
    ("cli", &["redact", "model"]),
    (
        "app",
        &[
            "redact",
            "cli",
            "live",
            "offline",
            "bundle",
            "check",
            "pipeline",
            "report",
            "diagnose",
            "correlate",
            "merge",
            "decode",
            "model",
        ],
    ),
];

/// Checks what a file of probe-user uses.
pub(crate) fn check(source: &Source) -> Vec<Breach> {
    let Some(module) = source.probe_user_module() else { return Vec::new() };
    let Some(top) = module.first() else { return Vec::new() };
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| name == top) else {
        return vec![Breach::new(
            &source.path,
            0,
            format!("`{top}` has no arrows: say in xtask/src/tidy/arrows.rs what it may use, and who may use it"),
        )];
    };
    let mut breaches: Vec<Breach> = paths(&source.shipped)
        .into_iter()
        .filter_map(|(path, line)| Some((used(&path, module.len())?, line)))
        .filter(|(other, _)| other != top && is_module(other) && !allowed.contains(&other.as_str()))
        .map(|(other, line)| Breach::new(&source.path, line, format!("{top} must not use {other}")))
        .collect();
    breaches.sort();
    breaches.dedup();
    breaches
}

fn is_module(name: &str) -> bool {
    ARROWS.iter().any(|(module, _)| *module == name)
}

/// The top module a path leads to from a module `depth` below the root: `crate::model::Event`, or `super::super::model`.
fn used(path: &str, depth: usize) -> Option<String> {
    let mut parts = path.split("::").filter(|part| !part.is_empty()).peekable();
    if parts.peek() == Some(&"crate") {
        parts.next();
    } else {
        let mut ups = 0;
        while parts.next_if_eq(&"super").is_some() {
            ups += 1;
        }
        if ups < depth || ups == 0 {
            return None;
        }
    }
    parts.next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<(usize, String)> {
        check(&Source::new(path.into(), text)).into_iter().map(|breach| (breach.line, breach.rule)).collect()
    }

    #[test]
    fn arrows_lead_only_to_modules_that_have_arrows() {
        for (top, allowed) in ARROWS {
            for other in allowed {
                assert!(is_module(other), "{top} → {other}");
                assert_ne!(top, *other);
            }
        }
    }

    #[test]
    fn there_is_no_way_around_in_a_circle() {
        // Each round takes away the modules that use nothing that is left.
        let mut left: Vec<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
        for _ in 0..ARROWS.len() {
            let now = left.clone();
            left.retain(|name| {
                ARROWS.iter().any(|(top, allowed)| top == name && allowed.iter().any(|other| now.contains(other)))
            });
        }
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn a_forbidden_use_is_told_with_its_line() {
        let text = "//! x\nuse crate::{\n    model::Event,\n    correlate::Correlator,\n};\n";
        assert_eq!(
            rules("probe-user/src/diagnose/table.rs", text),
            [(4, "diagnose must not use correlate".to_owned())]
        );
        assert_eq!(
            rules("probe-user/src/model/time.rs", "use crate::decode;\n"),
            [(1, "model must not use decode".to_owned())]
        );
        assert_eq!(
            rules("probe-user/src/report/text.rs", "fn f() { crate::live::run() }\n"),
            [(1, "report must not use live".to_owned())]
        );
    }

    #[test]
    fn super_is_followed_out_of_the_module() {
        let text = "use super::super::live::Ring;\n";
        assert_eq!(rules("probe-user/src/decode/kernel.rs", text), [(1, "decode must not use live".to_owned())]);
        assert_eq!(rules("probe-user/src/decode/packet/tcp.rs", text), [], "that is decode::live");
        assert_eq!(
            rules("probe-user/src/decode/mod.rs", "use super::live;\n"),
            [(1, "decode must not use live".to_owned())]
        );
    }

    #[test]
    fn what_the_design_draws_is_allowed() {
        assert_eq!(rules("probe-user/src/decode/kernel.rs", "use crate::{decode::Loss, model::Event};\n"), []);
        assert_eq!(rules("probe-user/src/live/runtime.rs", "use crate::{decode, pipeline::Pipeline};\n"), []);
        assert_eq!(rules("probe-user/src/app/watch.rs", "use crate::{live, report::text};\n"), []);
        assert_eq!(rules("probe-user/src/merge/order.rs", "#[cfg(test)]\nmod tests {\n    use crate::live;\n}\n"), []);
    }

    #[test]
    fn a_new_module_has_to_say_what_it_uses() {
        assert!(rules("probe-user/src/weather/mod.rs", "//! x\n")[0].1.starts_with("`weather` has no arrows"));
    }
}
