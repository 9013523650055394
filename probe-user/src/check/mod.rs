//! What `probe502 check` makes of a host: pure judgement of what was looked at. No failure has to happen for it.

mod configuration;
pub mod finding;
pub mod host;
pub mod known;
mod limits;
pub mod logs;
pub mod plan;
pub mod seen;
pub mod speaks;
mod upstreams;

pub use self::finding::{Area, Finding, Weight};
use self::seen::Seen;

/// Everything worth saying about what was seen, the heaviest first.
#[must_use]
pub fn judge(seen: &Seen) -> Vec<Finding> {
    let mut findings = upstreams::judge(seen);
    findings.extend(configuration::judge(seen));
    findings.extend(limits::judge(seen));
    findings.extend(logs::judge(seen));
    for finding in &mut findings {
        finding.nginx = seen.nginx.master;
    }
    findings.sort_by(|a, b| (a.weight, a.area, &a.subject).cmp(&(b.weight, b.area, &b.subject)));
    findings.dedup();
    findings
}
