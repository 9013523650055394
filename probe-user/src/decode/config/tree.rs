//! Tokens into directives, with the files of a dump put where they are included.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    ConfigError,
    lexer::{Lexer, Token},
};

/// Blocks in blocks and includes in includes at most: nobody writes more, and the stack has an end.
const DEPTH: usize = 64;
/// Directives at most: a file that is included from everywhere multiplies.
const DIRECTIVES: usize = 1_000_000;

/// A directive, with its block if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Directive {
    pub(super) name: String,
    pub(super) arguments: Vec<String>,
    pub(super) block: Option<Vec<Directive>>,
    /// The file it stands in, as the dump names it; empty for a plain text.
    pub(super) file: Arc<str>,
    /// The line its name stands on, from 1.
    pub(super) line: usize,
}

/// A whole configuration.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) directives: Vec<Directive>,
    pub(super) missing_includes: Vec<String>,
    pub(super) empty_includes: Vec<String>,
    pub(super) wild_includes: Vec<String>,
}

/// Reads a dump or a plain file.
pub(super) fn parse(text: &str) -> Result<Tree, ConfigError> {
    let files = split(text);
    let main = files.first().copied().unwrap_or(("", text));
    let mut parser = Parser {
        directory: main.0.rsplit_once('/').map_or("", |(directory, _)| directory),
        // nginx dumps a file once, however often it is included.
        files: files.iter().copied().collect(),
        missing_includes: BTreeSet::new(),
        empty_includes: BTreeSet::new(),
        wild_includes: BTreeSet::new(),
        count: 0,
    };
    let directives = parser.file(main, 0)?;
    Ok(Tree {
        directives,
        missing_includes: parser.missing_includes.into_iter().collect(),
        empty_includes: parser.empty_includes.into_iter().collect(),
        wild_includes: parser.wild_includes.into_iter().collect(),
    })
}

/// Splits a dump at its `# configuration file /etc/nginx/nginx.conf:` lines; one file without a name for a plain text.
pub(super) fn split(text: &str) -> Vec<(&str, &str)> {
    let mut files = Vec::new();
    let mut name = None;
    let mut start = 0;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let marker = line.trim_end().strip_prefix("# configuration file ").and_then(|rest| rest.strip_suffix(':'));
        if let Some(path) = marker.filter(|path| path.starts_with('/')) {
            // What nginx says before the first file ("syntax is ok") belongs to no file.
            files.extend(name.map(|name| (name, &text[start..at])));
            name = Some(path);
            start = at + line.len();
        }
        at += line.len();
    }
    files.push((name.unwrap_or(""), &text[start..]));
    files
}

struct Parser<'a> {
    directory: &'a str,
    files: BTreeMap<&'a str, &'a str>,
    missing_includes: BTreeSet<String>,
    empty_includes: BTreeSet<String>,
    wild_includes: BTreeSet<String>,
    count: usize,
}

impl<'a> Parser<'a> {
    fn file(&mut self, (name, text): (&'a str, &'a str), depth: usize) -> Result<Vec<Directive>, ConfigError> {
        let mut lexer = Lexer::new(text);
        let parsed = self.block(&mut lexer, &Arc::from(name), depth, false);
        parsed.map_err(|error| match error {
            Wrong::Here(what) => ConfigError { file: name.to_owned(), line: lexer.line, what },
            Wrong::InFile(error) => error,
        })
    }

    fn block(
        &mut self,
        lexer: &mut Lexer<'_>,
        file: &Arc<str>,
        depth: usize,
        inner: bool,
    ) -> Result<Vec<Directive>, Wrong> {
        if depth > DEPTH {
            return Err(Wrong::Here("blocks or includes are nested too deeply"));
        }
        let mut directives = Vec::new();
        let mut words: Vec<String> = Vec::new();
        let mut line = 0;
        loop {
            let token = lexer.next().map_err(Wrong::Here)?;
            let block = match token {
                Some(Token::Word(word)) => {
                    if words.is_empty() {
                        line = lexer.line;
                    }
                    words.push(word);
                    continue;
                }
                None if inner => return Err(Wrong::Here("a block is not closed")),
                None if words.is_empty() => return Ok(directives),
                None => return Err(Wrong::Here("a directive is not finished")),
                Some(Token::Close) if inner && words.is_empty() => return Ok(directives),
                Some(Token::Close) => return Err(Wrong::Here("a closing brace is out of place")),
                Some(Token::Semicolon) => None,
                Some(Token::Open) if words.first().is_some_and(|name| name.ends_with("_by_lua_block")) => {
                    lexer.skip_lua().map_err(Wrong::Here)?;
                    Some(Vec::new())
                }
                Some(Token::Open) => Some(self.block(lexer, file, depth + 1, true)?),
            };
            self.count += 1;
            if self.count > DIRECTIVES {
                return Err(Wrong::Here("there are too many directives"));
            }
            let mut words = std::mem::take(&mut words).into_iter();
            // nginx refuses a lone `;` or `{`; there is nothing to read in it.
            let Some(name) = words.next() else { continue };
            let arguments: Vec<String> = words.collect();
            match (name.as_str(), arguments.as_slice(), &block) {
                ("include", [pattern], None) => self.include(pattern, depth, &mut directives)?,
                _ => directives.push(Directive { name, arguments, block, file: Arc::clone(file), line }),
            }
        }
    }

    fn include(&mut self, pattern: &str, depth: usize, into: &mut Vec<Directive>) -> Result<(), Wrong> {
        let path = if pattern.starts_with('/') { pattern.to_owned() } else { format!("{}/{pattern}", self.directory) };
        let found: Vec<(&'a str, &'a str)> =
            self.files.iter().filter(|(name, _)| matches(&path, name)).map(|(name, text)| (*name, *text)).collect();
        let wild = path.contains(['*', '?', '[']);
        if wild {
            self.wild_includes.insert(path.clone());
        }
        // A pattern may match nothing; a plain name may not.
        if found.is_empty() {
            let into = if wild { &mut self.empty_includes } else { &mut self.missing_includes };
            into.insert(path);
        }
        for file in found {
            into.extend(self.file(file, depth + 1).map_err(Wrong::InFile)?);
        }
        Ok(())
    }
}

/// An error, before or after the file's name is known.
enum Wrong {
    Here(&'static str),
    InFile(ConfigError),
}

/// As `glob(3)` without flags: wildcards match neither a slash nor a leading dot.
fn matches(pattern: &str, path: &str) -> bool {
    let (mut patterns, mut names) =
        (pattern.split('/').filter(|p| !p.is_empty()), path.split('/').filter(|p| !p.is_empty()));
    loop {
        match (patterns.next(), names.next()) {
            (None, None) => return true,
            (Some(pattern), Some(name)) => {
                let hidden = name.starts_with('.') && !pattern.starts_with('.');
                if hidden || !matches_name(pattern.as_bytes(), name.as_bytes()) {
                    return false;
                }
            }
            _ => return false,
        }
    }
}

/// The same for one name.
pub(super) fn matches_name(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to go on when the rest does not fit: the last star takes one byte more.
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        let step = match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
                continue;
            }
            Some(b'?') => Some(1),
            Some(b'[') => class(&pattern[p..], name[n]),
            Some(b'\\') if pattern.get(p + 1) == Some(&name[n]) => Some(2),
            Some(byte) if *byte == name[n] => Some(1),
            _ => None,
        };
        match (step, retry) {
            (Some(length), _) => {
                p += length;
                n += 1;
            }
            (None, Some((after_star, taken))) => {
                p = after_star;
                n = taken + 1;
                retry = Some((after_star, n));
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

/// The length of `[a-z]` or `[!x]` if the byte is in it. Without an end it is a plain bracket.
fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let negated = matches!(pattern.get(1), Some(b'!' | b'^'));
    let start = if negated { 2 } else { 1 };
    let Some(end) = pattern.iter().skip(start + 1).position(|&b| b == b']').map(|at| at + start + 1) else {
        return (byte == b'[').then_some(1);
    };
    let mut members = &pattern[start..end];
    let mut found = false;
    while let [first, rest @ ..] = members {
        if let [b'-', last, rest @ ..] = rest {
            found |= (*first..=*last).contains(&byte);
            members = rest;
        } else {
            found |= *first == byte;
            members = rest;
        }
    }
    (found != negated).then_some(end + 1)
}
