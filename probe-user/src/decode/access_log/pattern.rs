//! A `log_format` made into something that takes lines apart
//! (syntax: <https://nginx.org/en/docs/http/ngx_http_log_module.html#log_format>).

use std::{collections::BTreeMap, ops::Range};

use super::LineError;

/// Places looked at before a line is given up. A usual line needs about as many as it has variables.
const STEPS: u32 = 20_000;
/// Readings looked at before a line is given up: what is the same in some of them proves nothing about the rest.
const READINGS: usize = 32;

/// How nginx escapes values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    /// `"`, `\` and everything not printable as `\xXX`; an empty value as `-`.
    Default,
    /// As in JSON strings.
    Json,
    /// Not at all.
    None,
}

/// A part of a format.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Variable(String),
}

/// A compiled `log_format`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    parts: Vec<Part>,
    escape: Escape,
}

impl Pattern {
    /// Compiles a format as the configuration has it: its strings joined, `escape=json ` or `escape=none ` in front if given.
    #[must_use]
    pub fn compile(format: &str) -> Self {
        let (escape, mut rest) =
            [("escape=default ", Escape::Default), ("escape=json ", Escape::Json), ("escape=none ", Escape::None)]
                .into_iter()
                .find_map(|(prefix, escape)| Some((escape, format.strip_prefix(prefix)?)))
                .unwrap_or((Escape::Default, format));
        let mut parts = Vec::new();
        let mut literal = String::new();
        while let Some(at) = rest.find('$') {
            literal.push_str(&rest[..at]);
            let after = &rest[at + 1..];
            let (name, next) = match after.strip_prefix('{').and_then(|braced| braced.split_once('}')) {
                Some((name, next)) => (name, next),
                None => {
                    after.split_at(after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len()))
                }
            };
            if name.is_empty() {
                literal.push('$');
            } else {
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                }
                parts.push(Part::Variable(name.to_owned()));
            }
            rest = next;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Self { parts, escape }
    }

    /// Whether the format has this variable.
    #[must_use]
    pub fn has(&self, variable: &str) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Variable(name) if name == variable))
    }

    /// The values of a line, unescaped; empty ones left out, except those that list attempts. A variable whose value differs between two readings is left out too.
    pub(super) fn read(&self, line: &str) -> Result<BTreeMap<&str, String>, LineError> {
        let mut search = Search { pattern: self, readings: Vec::new(), values: Vec::new(), steps: 0 };
        search.from(0, line);
        if search.steps >= STEPS || search.readings.len() >= READINGS {
            return Err(LineError::Ambiguous);
        }
        let (first, others) = search.readings.split_first().ok_or(LineError::Mismatch)?;
        let agreed = first.iter().filter(|value| others.iter().all(|other| other.contains(value)));
        Ok(agreed
            .filter(|(name, raw)| lists(name) || !self.is_empty(raw))
            .map(|(name, raw)| (*name, if self.is_empty(raw) { String::new() } else { self.unescape(raw) }))
            .collect())
    }

    fn is_empty(&self, raw: &str) -> bool {
        raw.is_empty() || (raw == "-" && self.escape == Escape::Default)
    }

    /// Where the variables stand in a line, escaped as they are, in every way the line can be read.
    #[must_use]
    pub fn places(&self, line: &str) -> Vec<(&str, Range<usize>)> {
        let mut search = Search { pattern: self, readings: Vec::new(), values: Vec::new(), steps: 0 };
        search.from(0, line);
        let base = line.as_ptr().addr();
        let mut places: Vec<(&str, Range<usize>)> = Vec::new();
        for (name, value) in search.readings.into_iter().flatten() {
            let begin = value.as_ptr().addr() - base;
            let place = (name, begin..begin + value.len());
            if !places.contains(&place) {
                places.push(place);
            }
        }
        places
    }

    /// Whether the variable can have this value. The narrower this is, the fewer readings a line has.
    fn allows(&self, name: &str, value: &str) -> bool {
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        match name {
            "status" => value.len() == 3 && digits(value),
            "connection"
            | "connection_requests"
            | "pid"
            | "body_bytes_sent"
            | "bytes_sent"
            | "request_length"
            | "remote_port"
            | "msec"
            | "request_time" => number(value) || value == "-",
            "remote_addr" | "request_id" | "time_iso8601" => !value.contains([' ', '"']),
            "time_local" => value.len() == "21/Nov/2026:14:02:07 +0000".len(),
            "upstream_status" => {
                elements(value).all(|element| matches!(element, "" | "-") || (element.len() == 3 && digits(element)))
            }
            _ if name.starts_with("upstream_") && name.ends_with("_time") => {
                elements(value).all(|element| matches!(element, "" | "-") || number(element))
            }
            "upstream_addr" => elements(value).all(|element| !element.contains([' ', '"', ','])),
            _ => self.escape == Escape::None || !has_bare_quote(value),
        }
    }

    fn unescape(&self, raw: &str) -> String {
        if self.escape == Escape::None || !raw.contains('\\') {
            return raw.to_owned();
        }
        let mut bytes = Vec::with_capacity(raw.len());
        let mut rest = raw;
        while let Some(at) = rest.find('\\') {
            bytes.extend(&rest.as_bytes()[..at]);
            let code = |from: usize, to: usize| u8::from_str_radix(rest.get(at + from..at + to)?, 16).ok();
            let (byte, length) = match (self.escape, rest.as_bytes().get(at + 1)) {
                (Escape::Default, Some(b'x')) => (code(2, 4), 4),
                (Escape::Json, Some(b'u')) => (code(4, 6), 6),
                (Escape::Json, Some(b'n')) => (Some(b'\n'), 2),
                (Escape::Json, Some(b'r')) => (Some(b'\r'), 2),
                (Escape::Json, Some(b't')) => (Some(b'\t'), 2),
                (Escape::Json, Some(b'b')) => (Some(8), 2),
                (Escape::Json, Some(b'f')) => (Some(12), 2),
                (Escape::Json, Some(&byte @ (b'"' | b'\\'))) => (Some(byte), 2),
                _ => (None, 1),
            };
            // What is no escape of nginx's stays as it is.
            let length = if byte.is_some() { length } else { 1 };
            bytes.push(byte.unwrap_or(b'\\'));
            rest = &rest[at + length..];
        }
        bytes.extend(rest.as_bytes());
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// `a, b : c`: attempts, and attempts after an internal redirect.
/// Whether the variable lists attempts: empty, it says that there were none.
fn lists(name: &str) -> bool {
    matches!(name, "upstream_addr" | "upstream_status")
}

fn elements(value: &str) -> impl Iterator<Item = &str> {
    value.split(" : ").flat_map(|group| group.split(", "))
}

/// A quote that neither escape leaves in a value.
fn has_bare_quote(value: &str) -> bool {
    let mut escaped = false;
    value.bytes().any(|byte| {
        let bare = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        bare
    })
}

/// Looks for all the ways to read a line.
struct Search<'p, 'l> {
    pattern: &'p Pattern,
    readings: Vec<Vec<(&'p str, &'l str)>>,
    values: Vec<(&'p str, &'l str)>,
    steps: u32,
}

impl<'l> Search<'_, 'l> {
    fn from(&mut self, part: usize, rest: &'l str) {
        self.steps = self.steps.saturating_add(1);
        if self.steps >= STEPS || self.readings.len() >= READINGS {
            return;
        }
        let pattern = self.pattern;
        let name = match pattern.parts.get(part) {
            None => {
                if rest.is_empty() {
                    self.readings.push(self.values.clone());
                }
                return;
            }
            Some(Part::Literal(literal)) => {
                if let Some(rest) = rest.strip_prefix(literal.as_str()) {
                    self.from(part + 1, rest);
                }
                return;
            }
            Some(Part::Variable(name)) => name,
        };
        let end = |search: &mut Self, at: usize| {
            if pattern.allows(name, &rest[..at]) {
                search.values.push((name, &rest[..at]));
                search.from(part + 1, &rest[at..]);
                search.values.pop();
            }
        };
        match pattern.parts.get(part + 1) {
            None => end(self, rest.len()),
            Some(Part::Literal(literal)) => {
                // Overlapping occurrences count: `match_indices` would skip them.
                let mut from = 0;
                while let Some(found) = rest.get(from..).and_then(|tail| tail.find(literal.as_str())) {
                    end(self, from + found);
                    from += found + rest[from + found..].chars().next().map_or(1, char::len_utf8);
                }
            }
            // Two variables side by side: every split.
            Some(Part::Variable(_)) => {
                for (at, _) in rest.char_indices() {
                    end(self, at);
                }
                end(self, rest.len());
            }
        }
    }
}
