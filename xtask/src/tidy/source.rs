//! A Rust source file reduced to what the rules look at: comments, literals and test code blanked out, lines kept.

use std::path::{Component, Path, PathBuf};

/// One file.
pub(crate) struct Source {
    /// Relative to the root of the workspace.
    pub(crate) path: PathBuf,
    /// The code alone: comments, strings and characters are blanks.
    pub(crate) code: String,
    /// The same without the items under `#[cfg(test)]`.
    pub(crate) shipped: String,
}

impl Source {
    pub(crate) fn new(path: PathBuf, text: &str) -> Self {
        let code = without_literals(text);
        let shipped = if is_test_module(&path) { String::new() } else { without_tests(&code) };
        Self { path, code, shipped }
    }

    /// The module path below `probe-user/src`: `["decode", "packet"]` for `decode/packet/mod.rs`. `None` for files elsewhere
    /// and for the crate roots.
    pub(crate) fn probe_user_module(&self) -> Option<Vec<String>> {
        let inside = self.path.strip_prefix("probe-user/src").ok()?.with_extension("");
        let mut names: Vec<String> = inside.components().filter_map(name).collect();
        if names.last().is_some_and(|last| last == "mod") {
            names.pop();
        }
        let root = matches!(names.as_slice(), [only] if only == "lib" || only == "main");
        (!root && !names.is_empty()).then_some(names)
    }
}

/// Whether the file is the body of `#[cfg(test)] mod tests;`.
pub(crate) fn is_test_module(path: &Path) -> bool {
    path.ends_with("tests.rs") || path.parent().is_some_and(is_below_tests)
}

/// `src/correlate/tests/reuse.rs`, but not the package `tests`.
fn is_below_tests(directory: &Path) -> bool {
    directory.file_name().is_some_and(|name| name == "tests")
        && directory.components().any(|part| part.as_os_str() == "src")
}

fn name(component: Component<'_>) -> Option<String> {
    component.as_os_str().to_str().map(str::to_owned)
}

/// Whether this file stands for a module that a directory of the same name belongs to.
pub(crate) fn is_module_of(path: &Path, directory: &str) -> bool {
    path == Path::new(&format!("{directory}.rs")) || path == Path::new(&format!("{directory}/mod.rs"))
}

/// Blanks comments, strings and characters; every line and column stays where it is.
fn without_literals(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = skipped(rest, out.chars().next_back()).unwrap_or(0);
        let (piece, after) = rest.split_at(if length == 0 { first.len_utf8() } else { length });
        if length == 0 {
            out.push_str(piece);
        } else {
            out.extend(piece.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        }
        rest = after;
    }
    out
}

/// How many bytes of a comment or literal `text` begins with, if it does.
fn skipped(text: &str, before: Option<char>) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if text.starts_with("/*") {
        return Some(block_comment(text));
    }
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if !in_word && let Some(length) = raw_string(text) {
        return Some(length);
    }
    match text.chars().next()? {
        '"' => Some(quoted(text, '"')),
        '\'' => character(text),
        _ => None,
    }
}

/// Block comments nest.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// `r"…"`, `r#"…"#`, `br##"…"##`, `cr"…"`.
fn raw_string(text: &str) -> Option<usize> {
    let prefix = ["r", "br", "cr"]
        .into_iter()
        .find(|prefix| text.strip_prefix(prefix).is_some_and(|rest| rest.trim_start_matches('#').starts_with('"')))?;
    let rest = text.get(prefix.len()..)?;
    let fences = rest.len() - rest.trim_start_matches('#').len();
    let body = prefix.len() + fences + 1;
    let end = format!("\"{}", "#".repeat(fences));
    Some(text.get(body..)?.find(&end).map_or(text.len(), |at| body + at + end.len()))
}

/// From an opening quote to the closing one.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == quote {
            return at + c.len_utf8();
        }
    }
    text.len()
}

/// A character, or nothing if the quote begins a lifetime.
fn character(text: &str) -> Option<usize> {
    let mut chars = text.chars().skip(1);
    match (chars.next()?, chars.next()) {
        ('\\', _) => Some(quoted(text, '\'')),
        (c, Some('\'')) => Some(2 + c.len_utf8()),
        _ => None,
    }
}

/// Blanks what follows `#[cfg(test)]`: an item with braces to the closing one, another to its semicolon.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find(MARK) {
        let (before, item) = rest.split_at(at);
        let (hidden, after) = item.split_at(item_length(item));
        out.push_str(before);
        out.extend(hidden.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = after;
    }
    out.push_str(rest);
    out
}

fn item_length(item: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in item.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    item.len()
}

/// The words of a line of code with their columns, `_` included.
pub(crate) fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        Source::new("a.rs".into(), text).code
    }

    #[test]
    fn comments_and_literals_become_blanks_of_the_same_size() {
        assert_eq!(code("a // b\nc"), "a     \nc");
        assert_eq!(code("a /* b /* c */ d */ e"), "a                   e");
        assert_eq!(code(r#"x("a\"b", 'c', '\'', '"') y"#), "x(      ,    ,     ,    ) y");
        assert_eq!(code("let s = r#\"a \" b\"# + 1;"), "let s =            + 1;");
        assert_eq!(code("/// doc\nfn f() {}"), "       \nfn f() {}");
    }

    #[test]
    fn lifetimes_and_words_ending_in_r_are_code() {
        assert_eq!(code("fn f<'a>(x: &'a str) {}"), "fn f<'a>(x: &'a str) {}");
        assert_eq!(code("for r in var { r#type }"), "for r in var { r#type }");
    }

    #[test]
    fn what_never_ends_ends_with_the_file() {
        assert_eq!(code("a \"b\nc"), "a   \n ");
        assert_eq!(code("/* a"), "    ");
        assert_eq!(code("'"), "'");
    }

    #[test]
    fn text_outside_ascii_keeps_its_lines() {
        assert_eq!(code("a \"µs → x\"\nb").lines().nth(1), Some("b"));
        assert_eq!(code("'→' b").trim(), "b");
    }

    #[test]
    fn test_code_is_not_shipped() {
        let source =
            Source::new("a.rs".into(), "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() { if x {} }\n}\nfn c() {}\n");
        assert!(source.shipped.contains("fn a()") && source.shipped.contains("fn c()"));
        assert!(!source.shipped.contains("fn b()"));
        assert!(source.code.contains("fn b()"));
        let source = Source::new("a.rs".into(), "#[cfg(test)]\nuse std::fs;\nfn c() {}\n");
        assert!(!source.shipped.contains("fs") && source.shipped.contains("fn c()"));
    }

    #[test]
    fn a_test_module_in_its_own_file_ships_nothing() {
        for path in ["probe-user/src/decode/tests.rs", "probe-user/src/correlate/tests/reuse.rs", "xtask/src/tests.rs"]
        {
            assert!(is_test_module(Path::new(path)), "{path}");
        }
        for path in ["tests/src/lab.rs", "tests/tests/causes.rs", "probe-user/src/decode/contests.rs"] {
            assert!(!is_test_module(Path::new(path)), "{path}");
        }
        assert_eq!(Source::new("probe-user/src/decode/tests.rs".into(), "use std::fs;").shipped, "");
    }

    #[test]
    fn modules_are_named_by_their_path() {
        let module = |path: &str| Source::new(path.into(), "").probe_user_module();
        assert_eq!(module("probe-user/src/decode/packet/mod.rs"), Some(vec!["decode".to_owned(), "packet".to_owned()]));
        assert_eq!(module("probe-user/src/model.rs"), Some(vec!["model".to_owned()]));
        assert_eq!(module("probe-user/src/model/mod.rs"), Some(vec!["model".to_owned()]));
        assert_eq!(module("probe-user/src/lib.rs"), None);
        assert_eq!(module("probe-user/src/main.rs"), None);
        assert_eq!(module("xtask/src/main.rs"), None);
    }
}
