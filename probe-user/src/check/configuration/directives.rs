//! Single directives that hide failures or make them.

use super::{finding, places};
use crate::{
    check::{
        finding::{Finding, Weight},
        seen::Seen,
    },
    decode::config::layout::Line,
};

pub(super) fn judge(seen: &Seen) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(hidden_errors(seen));
    findings.extend(own_502(seen));
    findings
}

/// nginx writes why it answers 502 at level `error`.
fn hidden_errors(seen: &Seen) -> Option<Finding> {
    let is_hiding = |line: &&Line| {
        let level = line.arguments.get(1).map_or("error", String::as_str);
        let path = line.arguments.first().map_or("", String::as_str);
        matches!(level, "crit" | "alert" | "emerg") || path == "/dev/null" || path == "off"
    };
    let hiding: Vec<&Line> = seen
        .layout
        .blocks
        .iter()
        .flat_map(|block| &block.own)
        .filter(|line| line.name == "error_log")
        .filter(is_hiding)
        .collect();
    let first = hiding.first()?;
    Some(
        finding(Weight::Risk, None, "error_log", "nginx does not log why it answers 502".to_owned())
            .seen(format!("error_log {}", first.arguments.join(" ")))
            .why("Failures of upstreams are logged at level `error`: without them a 502 leaves nothing but its status.")
            .fix("`error_log FILE warn;` (there is no `off`: that writes into a file of this name)")
            .at(places(hiding.iter().map(|line| line.place.clone()))),
    )
}

/// A 502 that nobody failed for.
fn own_502(seen: &Seen) -> Option<Finding> {
    let is_status = |word: &String| matches!(word.as_str(), "502" | "504" | "=502" | "=504");
    let is_own = |line: &&Line| match line.name.as_str() {
        "return" => line.arguments.first().is_some_and(is_status),
        "error_page" => line.arguments.iter().any(|word| matches!(word.as_str(), "=502" | "=504")),
        _ => false,
    };
    let own: Vec<&Line> = seen.layout.blocks.iter().flat_map(|block| &block.own).filter(is_own).collect();
    let first = own.first()?;
    Some(
        finding(
            Weight::Note,
            Some("configured-502"),
            &first.name,
            "the configuration itself answers 502 or 504".to_owned(),
        )
        .seen(format!("{} {}", first.name, first.arguments.join(" ")))
        .why("Such an answer looks like a failed upstream and is none.")
        .fix("know of it when you count; another status tells the two apart")
        .at(places(own.iter().map(|line| line.place.clone()))),
    )
}
