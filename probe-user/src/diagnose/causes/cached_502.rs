//! `cached-502`: nginx's own cache answered with a stored failure.

use super::super::{
    cause::{Cause, Depth, Family, Finding, Page},
    reading::{Reading, duration, evidence, need},
};
use crate::model::{
    coverage::Sensor,
    evidence::{Fact, Weight},
};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "cached-502",
    title: "nginx's cache answered with a stored failure",
    family: Family::Origin,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "proxy_cache_valid with 502 or any (or the upstream's own X-Accel-Expires, Cache-Control) lets nginx keep a 502, the \
                   upstream's or its own, and answer with it until it is too old. Nothing is tried meanwhile, though the upstream may \
                   be well again; every client that asks for the same gets the failure.",
        proof: "nginx's upstream module had begun to work on the request and answered 502 before it took a peer, with no message: only the \
                cache does that; and a cache in force where the request leads. The time of storing is told where the first failure was \
                seen.",
        refuted: "Any attempt at an upstream; a request that never reached the upstream module (configured-502).",
        remedies: &[
            (
                "nginx",
                "Name the statuses worth keeping, and no failures: proxy_cache_valid 200 301 302 10m; not `any`. proxy_cache_use_stale \
                 error timeout updating http_502 serves the last good answer instead. To be rid of a stored one: remove its file \
                 (the MD5 of the cache key) or the cache's directory; a failure of nginx's own is kept in memory until its time is \
                 over.",
            ),
            (
                "any server",
                "Send Cache-Control: no-store with failures; nginx heeds it unless proxy_ignore_headers says otherwise.",
            ),
            (
                "gunicorn",
                "Flask: response.headers[\"Cache-Control\"] = \"no-store\" in an errorhandler; Django: never_cache around the view.",
            ),
            (
                "uvicorn",
                "Starlette, FastAPI: an exception handler that returns Response(status_code=502, headers={\"Cache-Control\": \"no-store\"}).",
            ),
            (
                "Node.js",
                "res.setHeader('Cache-Control', 'no-store') in the error handler (Express: the one with four arguments).",
            ),
            ("Puma", "Rails: response.headers['Cache-Control'] = 'no-store' in rescue_from."),
            (
                "php-fpm",
                "header('Cache-Control: no-store') beside http_response_code(502); session_start() sends it already (session.cache_limiter).",
            ),
            ("uWSGI", "As with gunicorn, in the application: --add-header marks every response, good ones too."),
            (
                "Go",
                "w.Header().Set(\"Cache-Control\", \"no-store\") before WriteHeader; a ReverseProxy in its ErrorHandler.",
            ),
            (
                "Java",
                "Spring: ResponseEntity.status(502).cacheControl(CacheControl.noStore()); Spring Security sends no-store by default.",
            ),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let case = reading.case;
    let nothing = case.attempts.is_empty() && case.complaints.is_empty() && case.attempts_complete;
    if reading.nothing_tried_by_the_logs() {
        return by_the_logs(reading);
    }
    if !nothing || case.status != Some(502) || case.upstream_begun != Some(true) || case.subrequest {
        return None;
    }
    if !reading.sees(Sensor::NginxFunctions) {
        return None;
    }
    let mut finding = Finding::default();
    finding.support(Some(evidence(Fact::FromCache, &[case.decided_by], Weight::Direct)));
    // A name that could not be resolved leaves as little, and is told at level error.
    if !reading.errors_are_logged() {
        finding
            .missing
            .push(need(Sensor::Configuration, "that nginx's silence means something: its error_log hides errors"));
        finding.not_excluded(&["dns-failure"]);
    }
    if reading.cache().is_none() {
        finding.missing.push(need(Sensor::Configuration, "the cache in force where this request leads"));
    }
    let stored = stored(reading, &mut finding);
    finding.summary = format!(
        "nginx's cache{} answered with a stored 502; no upstream was asked.{}",
        reading.cache().map(|zone| format!(" `{zone}`")).unwrap_or_default(),
        stored.unwrap_or_else(|| " When it was stored was not seen.".to_owned())
    );
    finding.fix.push(KEEP_NONE.to_owned());
    Some(finding)
}

/// The access log says that no upstream was asked, and the error log nothing, where a cache is in force.
fn by_the_logs(reading: &Reading<'_>) -> Option<Finding> {
    let answered = reading.cache_answered();
    let zone = reading.cache();
    if answered == Some(false) || (answered.is_none() && zone.is_none()) {
        return None;
    }
    let mut finding = Finding::default();
    let zone = zone.map(|zone| format!(" `{zone}`")).unwrap_or_default();
    let words = if answered == Some(true) {
        finding.support(Some(evidence(Fact::FromCache, &[reading.case.decided_by], Weight::Fits)));
        format!("By nginx's access log its cache{zone} answered with a stored 502; no upstream was asked.")
    } else {
        finding.support(Some(evidence(Fact::NothingTried, &[reading.case.decided_by], Weight::Fits)));
        finding.missing.push(need(Sensor::AccessLog, "$upstream_cache_status in the log_format"));
        finding.missing.push(need(Sensor::NginxFunctions, "whether nginx had looked into its cache"));
        finding.not_excluded(&["configured-502"]);
        format!(
            "By nginx's logs no upstream was asked, and the cache{zone} is in force here: a stored 502 looks like this."
        )
    };
    let stored = stored(reading, &mut finding).unwrap_or_default();
    finding.summary = format!("{words}{stored}");
    finding.fix.push(KEEP_NONE.to_owned());
    Some(finding)
}

/// When the answer can have been stored, as a sentence.
fn stored(reading: &Reading<'_>, finding: &mut Finding) -> Option<String> {
    let stored = reading.case.stored.as_ref()?;
    let before_us = reading.case.decided.latest.since_ns(stored.at) / 1_000;
    let fact = Fact::StoredBefore { case: stored.case.0.clone(), before_us };
    finding.support(Some(evidence(fact, &[], Weight::Fits)));
    Some(format!(" The same request had failed {} before (case {}).", duration(before_us), stored.case.0))
}

const KEEP_NONE: &str = "Keep no failures: take 502 and any out of proxy_cache_valid (fastcgi_cache_valid, ...); proxy_cache_use_stale \
                         error timeout http_502 serves the last good answer instead.";

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::{DECIDED, World},
        model::{
            attempt::Link,
            case::{CaseId, Stored},
            complaint::{Message, Phase},
            verdict::Confidence,
        },
    };

    pub(crate) fn cached() -> World {
        let mut world = World::new(502);
        world.case.attempts.clear();
        let text = "http { server { location / { proxy_pass http://127.0.0.1:8000; proxy_cache pages; proxy_cache_valid any 1m; } } }";
        world.configured(text);
        world
    }

    #[test]
    fn the_plain_case_and_when_it_was_stored() {
        let mut world = cached();
        world.expect("cached-502", Confidence::Confirmed);
        world.case.stored = Some(Stored { case: CaseId("earlier".to_owned()), at: DECIDED.minus_ns(2_000_000_000) });
        let explanation = world.expect("cached-502", Confidence::Confirmed);
        assert!(explanation.summary.contains("2.0 s before (case earlier)"), "{}", explanation.summary);
    }

    #[test]
    fn a_log_that_hides_errors_makes_it_likely() {
        let mut world = cached();
        world.configuration().error_logs = vec![("/var/log/nginx/error.log".to_owned(), "crit".to_owned())];
        let explanation = world.expect("cached-502", Confidence::Likely);
        assert_eq!(explanation.rivals, ["dns-failure"]);
    }

    #[test]
    fn without_a_cache_in_the_configuration_it_is_likely() {
        let mut world = cached();
        world.case.configuration = None;
        world.expect("cached-502", Confidence::Likely);
    }

    #[test]
    fn by_the_logs_the_cache_status_decides() {
        let mut world = cached();
        world.case.link = Link::Inferred;
        world.case.upstream_begun = None;
        let explanation = world.expect("cached-502", Confidence::Possible);
        assert_eq!(explanation.rivals, ["configured-502"]);
        for status in ["HIT", "STALE"] {
            world.case.cache_status = Some(status.to_owned());
            let explanation = world.expect("cached-502", Confidence::Possible);
            assert!(explanation.rivals.is_empty(), "{:?}", explanation.rivals);
        }
        for status in ["-", "MISS"] {
            world.case.cache_status = Some(status.to_owned());
            assert_ne!(crate::report::cause(&world.judge()), "cached-502");
        }
    }

    #[test]
    fn a_message_of_nginx_says_that_it_is_something_else() {
        let mut world = cached();
        world.log(Message::NotResolved, Phase::Resolving, None, "app could not be resolved (3: Host not found)");
        assert_ne!(crate::report::cause(&world.judge()), "cached-502");
    }
}
