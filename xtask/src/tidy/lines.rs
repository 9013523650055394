//! Rules about single lines and whole files.

use std::path::Path;

use super::{
    Breach,
    source::{Source, is_test_module, words},
};

/// A file that grew past this holds more than one thing.
const MOST_LINES: usize = 500;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 7] = ["manager", "helper", "helpers", "util", "utils", "common", "misc"];

/// Macros that must not be left behind.
const LEFTOVERS: [&str; 3] = ["todo", "unimplemented", "dbg"];

/// Rules for every text file.
pub(crate) fn check(path: &Path, text: &str) -> Vec<Breach> {
    // Recorded inputs and expected outputs are as they are.
    if ["tests/cases", "tests/fuzz/seeds"].iter().any(|folder| path.starts_with(folder))
        || path.extension().is_some_and(|extension| extension == "lock" || extension == "snap")
    {
        return Vec::new();
    }
    let mut breaches = Vec::new();
    for (number, line) in (1..).zip(text.split('\n')) {
        if line.ends_with([' ', '\t', '\r']) {
            breaches.push(Breach::new(path, number, "blanks at the end of the line"));
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        breaches.push(Breach::new(path, 0, "no newline at the end of the file"));
    }
    breaches
}

/// Rules for Rust.
pub(crate) fn check_rust(source: &Source, text: &str) -> Vec<Breach> {
    let path = &source.path;
    let mut breaches = Vec::new();
    let length = text.lines().count();
    if length > MOST_LINES {
        breaches.push(Breach::new(path, 0, format!("{length} lines, more than {MOST_LINES}: split it by noun")));
    }
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    if EMPTY_NAMES.contains(&stem) {
        breaches.push(Breach::new(path, 0, format!("`{stem}` names nothing in particular")));
    }
    // What `tests` holds needs no saying.
    if !is_test_module(path) && !has_module_comment(text) {
        breaches.push(Breach::new(path, 1, "no module comment (`//!`) at the top"));
    }
    for (number, line) in (1..).zip(source.code.lines()) {
        if line.contains("#[allow(") || line.contains("#![allow(") {
            breaches.push(Breach::new(path, number, "`allow`: use `#[expect(lint, reason = \"…\")]`"));
        }
        for name in LEFTOVERS {
            if line.contains(&format!("{name}!")) && words(line).any(|word| word == name) {
                breaches.push(Breach::new(path, number, format!("`{name}!` left behind")));
            }
        }
    }
    breaches
}

/// A module comment stands before all code; only a `#!` line may come before it.
fn has_module_comment(text: &str) -> bool {
    let first = text.lines().map(str::trim_start).find(|line| !line.is_empty() && !line.starts_with("#!"));
    first.is_some_and(|line| line.starts_with("//!"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<(usize, String)> {
        let source = Source::new(path.into(), text);
        let all = check(Path::new(path), text).into_iter().chain(check_rust(&source, text));
        all.map(|breach| (breach.line, breach.rule)).collect()
    }

    #[test]
    fn a_tidy_file_breaks_nothing() {
        assert_eq!(rules("a.rs", "//! What it is.\n\nfn a() {}\n"), []);
    }

    #[test]
    fn a_long_file_is_told_and_500_lines_are_not_long() {
        let text = |lines: usize| "//! x\n".to_owned() + &"// y\n".repeat(lines - 1);
        assert_eq!(rules("a.rs", &text(500)), []);
        assert!(rules("a.rs", &text(501))[0].1.starts_with("501 lines"));
    }

    #[test]
    fn the_module_comment_comes_first() {
        assert_eq!(rules("a.rs", "fn a() {}\n//! x\n")[0].1, "no module comment (`//!`) at the top");
        assert_eq!(rules("a.rs", "#![no_std]\n\n//! x\n"), []);
        assert_eq!(rules("src/decode/tests.rs", "use super::*;\n"), []);
        assert_eq!(rules("a.rs", "")[0].1, "no module comment (`//!`) at the top");
    }

    #[test]
    fn allow_is_told_outside_comments_and_strings() {
        let text = "//! x\n#[allow(dead_code)]\n// #[allow(y)]\nconst A: &str = \"#[allow(z)]\";\n#![allow(w)]\n";
        let lines: Vec<usize> = rules("a.rs", text).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, [2, 5]);
        assert_eq!(rules("a.rs", "//! x\n#[expect(dead_code, reason = \"y\")]\n"), []);
    }

    #[test]
    fn leftovers_are_told() {
        assert_eq!(rules("a.rs", "//! x\nfn a() { todo!() }\n")[0], (2, "`todo!` left behind".to_owned()));
        assert_eq!(rules("a.rs", "//! x\nfn a() { std::dbg!(1); }\n")[0], (2, "`dbg!` left behind".to_owned()));
        assert_eq!(rules("a.rs", "//! x\n// todo!()\nfn a() { my_todo!(); }\n"), []);
    }

    #[test]
    fn blanks_at_the_end_and_a_missing_newline_are_told() {
        let found = rules("a.rs", "//! x \r\nfn a() {}\t\nfn b() {}");
        let lines: Vec<usize> = found.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [1, 2, 0], "{found:?}");
        assert_eq!(check(Path::new("tests/cases/x/expected.txt"), "a \nb"), []);
    }

    #[test]
    fn a_name_that_says_nothing_is_told() {
        assert_eq!(rules("src/utils.rs", "//! x\n")[0].1, "`utils` names nothing in particular");
    }
}
