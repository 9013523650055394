//! What the configuration itself makes likely, whatever the upstreams do.

mod directives;
mod groups;
mod locations;
#[cfg(test)]
mod tests;

use super::{
    finding::{Area, Finding, Weight},
    seen::Seen,
};
use crate::decode::config::layout::Place;

/// Judges the configuration.
pub(super) fn judge(seen: &Seen) -> Vec<Finding> {
    let mut findings: Vec<Finding> = refused(seen).into_iter().collect();
    for missing in &seen.layout.missing_includes {
        findings.push(
            finding(Weight::Risk, None, missing, "an included file is not there, or may not be read".to_owned())
                .seen(format!("include {missing}"))
                .why("nginx does not start or reload with an include that does not exist.")
                .fix("restore the file or remove the include"),
        );
    }
    findings.extend(groups::judge(seen));
    findings.extend(locations::judge(seen));
    findings.extend(directives::judge(seen));
    findings
}

fn finding(weight: Weight, cause: Option<&'static str>, subject: &str, title: String) -> Finding {
    Finding::new(weight, Area::Configuration, cause, subject, title)
}

/// nginx takes what is on the disk no more: the next reload or start fails.
fn refused(seen: &Seen) -> Option<Finding> {
    let said = seen.nginx.refused.as_deref()?;
    let unknown_host = said.contains("host not found in upstream");
    // The test runs with fewer rights than nginx had; what it may not read says nothing about nginx.
    let denied = said.contains("(13: Permission denied)") || said.contains("(1: Operation not permitted)");
    let weight = if denied { Weight::Note } else { Weight::Fault };
    let cause = unknown_host.then_some("dns-failure");
    let found = finding(weight, cause, "nginx -t", "nginx refuses its configuration as it is on the disk".to_owned())
        .seen(said)
        .why("The running nginx goes on with what it has; the next reload changes nothing, the next start fails.");
    Some(if unknown_host {
        found.fix(
            "publish the name where nginx runs, or resolve it at run time (`resolve`, or a variable with a `resolver`)",
        )
    } else {
        found.fix("correct the line that nginx names, then `nginx -t`")
    })
}

/// A few places, without those that say the same.
fn places(all: impl IntoIterator<Item = Place>) -> Vec<Place> {
    let mut places: Vec<Place> = all.into_iter().collect();
    places.sort();
    places.dedup();
    places
}
