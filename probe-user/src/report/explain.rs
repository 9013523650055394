//! The pages of `explain`.

use std::fmt::{self, Write as _};

use super::text::wrap;
use crate::diagnose::cause::{Cause, Family};

/// No column of text is narrower, whatever stands before it.
const NARROWEST: usize = 10;

/// Every row, by family; no line is wider than so many columns.
#[must_use]
pub fn list(catalogue: &[&Cause], columns: usize) -> String {
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
            let mut label = format!("  {:<widest$}  {:<8}  ", cause.id, statuses(cause));
            let indent = label.len();
            for line in wrap(cause.title, columns.saturating_sub(indent).max(NARROWEST)) {
                say(&mut out, format_args!("{label:<indent$}{line}\n"));
                label.clear();
            }
        }
        out.push('\n');
    }
    for line in
        wrap("`probe502 explain CAUSE` tells what happened, how it is proved or refuted, and what to do.", columns)
    {
        say(&mut out, format_args!("{line}\n"));
    }
    out
}

/// One row's page; no line is wider than so many columns.
#[must_use]
pub fn page(cause: &Cause, columns: usize) -> String {
    let mut out = String::new();
    for line in wrap(&format!("{}: {}", cause.id, cause.title), columns) {
        say(&mut out, format_args!("{line}\n"));
    }
    say(&mut out, format_args!("family {}, status {}\n", cause.family.name(), statuses(cause)));
    let sections = [
        ("What happened", cause.page.happened),
        ("How it is proved", cause.page.proof),
        ("What would refute it", cause.page.refuted),
    ];
    for (heading, text) in sections {
        say(&mut out, format_args!("\n{heading}\n"));
        for line in wrap(text, columns.saturating_sub(2).max(NARROWEST)) {
            say(&mut out, format_args!("  {line}\n"));
        }
    }
    out.push_str("\nWhat to do\n");
    let widest = cause.page.remedies.iter().map(|(who, _)| who.len()).max().unwrap_or(0) + 2;
    for (who, what) in cause.page.remedies {
        let mut label = (*who).to_owned();
        for line in wrap(what, columns.saturating_sub(2 + widest).max(NARROWEST)) {
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
        for (cause, columns) in catalogue().iter().flat_map(|cause| [(cause, 60), (cause, 80), (cause, 100)]) {
            let page = page(cause, columns);
            for heading in ["What happened", "How it is proved", "What would refute it", "What to do"] {
                assert!(page.contains(heading), "{}: {heading}", cause.id);
            }
            assert!(page.lines().all(|line| line.chars().count() <= columns), "{page}");
            assert!(!cause.page.remedies.is_empty(), "{}", cause.id);
        }
        for columns in [60, 80, 100] {
            let list = list(catalogue(), columns);
            assert!(list.lines().all(|line| line.chars().count() <= columns), "{list}");
        }
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
