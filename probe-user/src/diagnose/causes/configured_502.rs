//! `configured-502`: the configuration itself answers it.

use super::super::{
    cause::{Cause, Depth, Family, Finding, Page},
    reading::{Reading, evidence, need},
};
use crate::model::{
    case::Origin,
    coverage::Sensor,
    evidence::{Fact, Weight},
};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "configured-502",
    title: "nginx's configuration answers it",
    family: Family::Origin,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "No upstream was asked: `return 502`, `error_page ... =502`, `try_files ... =502`, `limit_req_status 502`, or a script \
                   made the status. A stored failure answered from nginx's cache looks the same from outside.",
        proof: "No attempt, no message, and the directive in the configuration; until that can be read the verdict is likely at most.",
        refuted: "Any attempt at an upstream, or a message of nginx about one.",
        remedies: &[(
            "nginx",
            "`nginx -T | grep -n 502` shows the directive; proxy_cache_valid with 502 or any stores failures.",
        )],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let nothing = reading.case.attempts.is_empty() && reading.case.complaints.is_empty();
    if !nothing
        || reading.case.status != Some(502)
        || reading.case.origin != Origin::Nginx
        || !reading.sees(Sensor::NginxFunctions)
    {
        return None;
    }
    let mut finding = Finding::default();
    finding.support(Some(evidence(Fact::NothingTried, &[reading.case.decided_by], Weight::Symptom)));
    finding.missing.push(need(Sensor::Configuration, "the directive that answers 502"));
    finding.not_excluded(&["cached-502"]);
    finding.summary.push_str("nginx answered 502 without asking any upstream: its configuration does, or its cache.");
    finding.fix.push("`nginx -T | grep -n 502` shows what answers it; look at proxy_cache_valid too.".to_owned());
    Some(finding)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::World,
        model::{coverage::Sensor, verdict::Confidence},
    };

    #[test]
    fn nothing_tried_and_nothing_said() {
        let mut world = World::new(502);
        world.case.attempts.clear();
        let explanation = world.expect("configured-502", Confidence::Likely);
        assert_eq!(explanation.rivals, ["cached-502"]);
    }

    #[test]
    fn without_sight_of_nginx_nothing_is_claimed() {
        let mut world = World::new(502);
        world.case.attempts.clear();
        world.blind(Sensor::NginxFunctions);
        assert_eq!(crate::report::cause(&world.judge()), "unknown");
    }
}
