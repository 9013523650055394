//! `configured-502`: the configuration itself answers it.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::{Reading, evidence, need},
    },
    servers::{REQUEST_LOGS, and_servers},
};
use crate::model::{
    attempt::{Link, Outcome},
    case::{CaseKind, Origin},
    coverage::Sensor,
    evidence::{Evidence, Fact, Weight},
    verdict::Need,
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
                   made the status; or a server answered, and `proxy_intercept_errors` with `error_page 503 =502` made 502 of it. \
                   A stored failure answered from nginx's cache looks the same from outside (cached-502).",
        proof: "nginx's upstream module never began to work on the request, and a directive that answers 502 stands in the \
                configuration where the request's host and URI lead. Without such a directive, or with a script there, it is likely. \
                Where a server was asked: the status it answered, and the `error_page` that makes 502 of that.",
        refuted: "A failed attempt at an upstream, or a message of nginx about one; an answer from the cache (cached-502).",
        remedies: &const {
            and_servers::<2, 10>(
                [
                    (
                        "nginx",
                        "`nginx -T | grep -n 502` shows the directive; proxy_cache_valid with 502 or any stores failures.",
                    ),
                    (
                        "any server",
                        "It has no part in this: its own log of requests shows nothing at this second. If it does, the verdict is wrong.",
                    ),
                ],
                REQUEST_LOGS,
            )
        },
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    if reading.attempt.is_some() {
        return renamed(reading);
    }
    let nothing = reading.case.attempts.is_empty() && reading.case.complaints.is_empty();
    if reading.nothing_tried_by_the_logs() {
        return by_the_logs(reading);
    }
    if !nothing
        || reading.case.status != Some(502)
        // `return 502 "text"` goes by no page of nginx's own.
        || (reading.case.origin != Origin::Nginx && reading.case.upstream_begun != Some(false))
        || !reading.sees(Sensor::NginxFunctions)
    {
        return None;
    }
    if reading.case.upstream_begun == Some(true) {
        return None;
    }
    let mut finding = Finding::default();
    finding.support(Some(evidence(Fact::NothingTried, &[reading.case.decided_by], Weight::Symptom)));
    let (answers, scripted) = reading.configured_answers();
    let places: Vec<String> = answers.iter().filter_map(|answer| said(&answer.fact)).collect();
    finding.because.extend(answers);
    if places.is_empty() {
        finding.missing.push(need(Sensor::Configuration, "the directive that answers 502 here"));
    }
    if let Some(script) = scripted {
        finding.missing.push(Need { sensor: None, what: format!("what the script of {script} answered") });
    }
    if reading.case.upstream_begun.is_none() {
        finding.missing.push(need(Sensor::NginxFunctions, "whether nginx had looked into its cache"));
        finding.not_excluded(&["cached-502"]);
    }
    finding.summary = match &places[..] {
        [] => "nginx answered 502 without asking any upstream: its configuration does.".to_owned(),
        [one] => format!("nginx's configuration itself answers 502: {one}. No upstream was asked."),
        several => format!(
            "nginx's configuration itself answers 502, by one of these: {}. No upstream was asked.",
            several.join("; ")
        ),
    };
    let fix = if places.is_empty() {
        "`nginx -T | grep -n 502` shows what answers it; scripts (Lua, njs, perl) can too."
    } else {
        "Change that directive, if this is not what was meant; `nginx -T | grep -n 502` shows its file and line."
    };
    finding.fix.push(fix.to_owned());
    Some(finding)
}

/// A server's own answer for which a page with the status 502 stands (`proxy_intercept_errors`, `error_page 503 =502 /page`).
fn renamed(reading: &Reading<'_>) -> Option<Finding> {
    let attempt = reading.attempt.filter(|attempt| attempt.outcome == Outcome::Ok && attempt.complaint.is_none())?;
    let status = attempt.status.filter(|status| *status != 502)?;
    let answered_502 = reading.case.status == Some(502) && reading.case.kind == CaseKind::Incident;
    if !answered_502 || attempt.link == Link::Inferred {
        return None;
    }
    let (answers, scripted) = reading.configured_answers();
    let code = status.to_string();
    let of_code = |answer: &Evidence| match &answer.fact {
        Fact::Configured { directive, .. } => {
            directive.starts_with("error_page ") && directive.split(' ').any(|word| word == code)
        }
        _ => false,
    };
    let answers: Vec<Evidence> = answers.into_iter().filter(of_code).collect();
    let place = said(&answers.first()?.fact)?;
    let mut finding = Finding::default();
    let fact = Fact::UpstreamStatus { status, line: None };
    finding.support(Some(evidence(fact, &[reading.case.decided_by], Weight::Symptom)));
    finding.because.extend(answers);
    if let Some(script) = scripted {
        finding.missing.push(Need { sensor: None, what: format!("what the script of {script} answered") });
    }
    finding.summary =
        format!("{} answered {status}, and nginx's configuration makes 502 of it: {place}.", reading.upstream_name());
    finding.fix.push(format!(
        "Look into the server's own log for the {status}; without `=502` the client would have got that."
    ));
    Some(finding)
}

/// The access log says that no upstream was asked, and the error log nothing; a cache that holds a failure looks the same.
fn by_the_logs(reading: &Reading<'_>) -> Option<Finding> {
    let (answers, _) = reading.configured_answers();
    let places: Vec<String> = answers.iter().filter_map(|answer| said(&answer.fact)).collect();
    let from_cache = reading.cache_answered();
    if places.is_empty() || from_cache == Some(true) {
        return None;
    }
    let mut finding = Finding::default();
    finding.support(Some(evidence(Fact::NothingTried, &[reading.case.decided_by], Weight::Fits)));
    finding.because.extend(answers);
    finding.missing.push(need(Sensor::NginxFunctions, "whether nginx had looked into its cache"));
    if reading.cache().is_some() && from_cache.is_none() {
        finding.not_excluded(&["cached-502"]);
    }
    finding.summary = format!(
        "By nginx's logs no upstream was asked, and its configuration answers 502 here: {}.",
        places.join("; ")
    );
    finding.fix.push(
        "Change that directive, if this is not what was meant; `nginx -T | grep -n 502` shows its file and line."
            .to_owned(),
    );
    Some(finding)
}

fn said(fact: &Fact) -> Option<String> {
    match fact {
        Fact::Configured { directive, place } => Some(format!("`{directive}` in {place}")),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::World,
        model::{attempt::Outcome, coverage::Sensor, verdict::Confidence},
    };

    #[test]
    fn nothing_tried_and_nothing_said() {
        let mut world = World::new(502);
        world.case.attempts.clear();
        world.case.upstream_begun = Some(false);
        world.expect("configured-502", Confidence::Likely);
        world.case.upstream_begun = None;
        let explanation = world.expect("configured-502", Confidence::Likely);
        assert_eq!(explanation.rivals, ["cached-502"]);
    }

    #[test]
    fn the_directive_proves_it_and_a_script_casts_doubt() {
        let mut world = World::new(502);
        world.case.attempts.clear();
        world.case.upstream_begun = Some(false);
        let text = "http { server { location / { return 502; } location /other { return 404; } } }";
        world.configured(text);
        let explanation = world.expect("configured-502", Confidence::Confirmed);
        assert!(explanation.summary.contains("`return 502` in location /"), "{}", explanation.summary);
        let text = "http { server { location / { content_by_lua_file /x.lua; error_page 404 =502 /x; } } }";
        world.configured(text);
        world.expect("configured-502", Confidence::Likely);
    }

    #[test]
    fn a_page_that_makes_502_of_a_servers_503() {
        let mut world = World::new(502);
        world.attempt().outcome = Outcome::Ok;
        world.attempt().status = Some(503);
        let text = "http { server { location / { proxy_pass http://127.0.0.1:8000; error_page 503 =502 /x; } } }";
        world.configured(text);
        let explanation = world.expect("configured-502", Confidence::Confirmed);
        assert!(explanation.summary.contains("answered 503, and"), "{}", explanation.summary);
        let text = "http { server { location / { proxy_pass http://127.0.0.1:8000; error_page 404 =502 /x; } } }";
        world.configured(text);
        assert_eq!(crate::report::cause(&world.judge()), "unknown");
    }

    #[test]
    fn from_the_cache_is_not_from_the_configuration() {
        let mut world = World::new(502);
        world.case.attempts.clear();
        let text = "http { server { location / { return 502; } } }";
        world.configured(text);
        assert_eq!(crate::report::cause(&world.judge()), "cached-502");
    }

    #[test]
    fn without_sight_of_nginx_nothing_is_claimed() {
        let mut world = World::new(502);
        world.case.attempts.clear();
        world.blind(Sensor::NginxFunctions);
        assert_eq!(crate::report::cause(&world.judge()), "unknown");
    }
}
