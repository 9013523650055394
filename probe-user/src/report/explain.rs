//! The pages of `explain`.

use std::fmt::{self, Write as _};

use super::text::{COLUMNS, wrap};
use crate::diagnose::cause::{Cause, Family};

/// Every row in a line each, by family.
#[must_use]
pub fn list(catalogue: &[&Cause]) -> String {
    let mut out = String::new();
    let widest = catalogue.iter().map(|cause| cause.id.len()).max().unwrap_or(0);
    for family in [Family::Connect, Family::Connection, Family::Protocol, Family::Origin] {
        let rows: Vec<&&Cause> = catalogue.iter().filter(|cause| cause.family == family).collect();
        if rows.is_empty() {
            continue;
        }
        let heading = match family {
            Family::Connect => "No connection",
            Family::Connection => "Connected, no answer",
            Family::Protocol => "An answer nginx cannot take",
            Family::Origin => "Not the connection's fault",
        };
        out.push_str(heading);
        out.push('\n');
        for cause in rows {
            say(&mut out, format_args!("  {:<widest$}  {:<8}  {}\n", cause.id, statuses(cause), cause.title));
        }
        out.push('\n');
    }
    out.push_str("`probe502 explain CAUSE` tells what happened, how it is proved or refuted, and what to do.\n");
    out
}

/// One row's page.
#[must_use]
pub fn page(cause: &Cause) -> String {
    let mut out = format!("{}: {}\n", cause.id, cause.title);
    say(&mut out, format_args!("family {}, status {}\n", cause.family.name(), statuses(cause)));
    let sections = [
        ("What happened", cause.page.happened),
        ("How it is proved", cause.page.proof),
        ("What would refute it", cause.page.refuted),
    ];
    for (heading, text) in sections {
        say(&mut out, format_args!("\n{heading}\n"));
        for line in wrap(text, COLUMNS - 2) {
            say(&mut out, format_args!("  {line}\n"));
        }
    }
    out.push_str("\nWhat to do\n");
    let widest = cause.page.remedies.iter().map(|(who, _)| who.len()).max().unwrap_or(0) + 2;
    for (who, what) in cause.page.remedies {
        let mut label = (*who).to_owned();
        for line in wrap(what, COLUMNS - 2 - widest) {
            say(&mut out, format_args!("  {label:<widest$}{line}\n"));
            label.clear();
        }
    }
    out
}

fn statuses(cause: &Cause) -> String {
    if cause.statuses.is_empty() {
        return "any".to_owned();
    }
    cause.statuses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn say(out: &mut String, words: fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(words);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnose::{catalogue, cause::FAMILIES};

    #[test]
    fn every_page_is_whole_and_fits() {
        for cause in catalogue() {
            let page = page(cause);
            for heading in ["What happened", "How it is proved", "What would refute it", "What to do"] {
                assert!(page.contains(heading), "{}: {heading}", cause.id);
            }
            assert!(page.lines().all(|line| line.chars().count() <= COLUMNS), "{page}");
            assert!(!cause.page.remedies.is_empty(), "{}", cause.id);
        }
        assert!(list(catalogue()).lines().all(|line| line.chars().count() <= COLUMNS), "{}", list(catalogue()));
    }

    #[test]
    fn every_page_speaks_to_every_family_of_servers() {
        for cause in catalogue() {
            let missing: Vec<&str> = FAMILIES
                .into_iter()
                .filter(|family| {
                    cause.page.remedies.iter().filter(|(who, what)| who == family && what.len() > 10).count() != 1
                })
                .collect();
            assert!(missing.is_empty(), "{}: one line each for {missing:?}", cause.id);
        }
    }

    #[test]
    fn ids_are_unique() {
        let mut ids: Vec<&str> = catalogue().iter().map(|cause| cause.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), catalogue().len());
    }
}
