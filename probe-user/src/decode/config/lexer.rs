//! Text into words, semicolons and braces.

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Word(String),
    Semicolon,
    Open,
    Close,
}

/// Reads tokens one after another.
pub(super) struct Lexer<'a> {
    rest: &'a str,
    /// The line reached, from 1.
    pub(super) line: usize,
}

impl<'a> Lexer<'a> {
    pub(super) const fn new(text: &'a str) -> Self {
        Self { rest: text, line: 1 }
    }

    /// The next token, `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Token>, &'static str> {
        loop {
            let blank = self.rest.len() - self.rest.trim_start_matches([' ', '\t', '\r', '\n', '\u{feff}']).len();
            self.take(blank);
            if !self.rest.starts_with('#') {
                break;
            }
            self.take(self.rest.find('\n').unwrap_or(self.rest.len()));
        }
        let token = match self.rest.chars().next() {
            None => return Ok(None),
            Some(';') => Token::Semicolon,
            Some('{') => Token::Open,
            Some('}') => Token::Close,
            Some(quote @ ('"' | '\'')) => return self.quoted(quote).map(Some),
            Some(_) => return Ok(Some(self.bare())),
        };
        self.take(1);
        Ok(Some(token))
    }

    /// The inside of a `…_by_lua_block {`, whose opening brace has been read, with its closing brace.
    pub(super) fn skip_lua(&mut self) -> Result<(), &'static str> {
        let mut depth = 1_usize;
        while depth > 0 {
            let step = match self.rest.as_bytes() {
                [] => return Err("a Lua block is not closed"),
                [b'-', b'-', comment @ ..] => match long_bracket(comment) {
                    Some(length) => 2 + length,
                    None => self.rest.find('\n').unwrap_or(self.rest.len()),
                },
                [b'[', ..] => long_bracket(self.rest.as_bytes()).unwrap_or(1),
                [quote @ (b'"' | b'\''), inside @ ..] => 1 + short_string(inside, *quote),
                [b'{', ..] => {
                    depth += 1;
                    1
                }
                [b'}', ..] => {
                    depth -= 1;
                    1
                }
                _ => self.rest.chars().next().map_or(1, char::len_utf8),
            };
            self.take(step);
        }
        Ok(())
    }

    fn take(&mut self, length: usize) -> &'a str {
        // Steps are counted in bytes and may end inside a character only where a string was cut short.
        let length = (length.min(self.rest.len())..=self.rest.len())
            .find(|&at| self.rest.is_char_boundary(at))
            .unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(length);
        self.line += taken.bytes().filter(|&byte| byte == b'\n').count();
        self.rest = rest;
        taken
    }

    fn quoted(&mut self, quote: char) -> Result<Token, &'static str> {
        let mut escaped = false;
        let end = self.rest[1..]
            .char_indices()
            .find(|&(_, character)| {
                let closes = character == quote && !escaped;
                escaped = character == '\\' && !escaped;
                closes
            })
            .map(|(at, _)| at + 1)
            .ok_or("a quoted word is not closed")?;
        let taken = self.take(end + 1);
        Ok(Token::Word(unescape(&taken[1..end])))
    }

    fn bare(&mut self) -> Token {
        let mut escaped = false;
        let mut before = ' ';
        let end = self.rest.char_indices().find(|&(_, character)| {
            let ends = match character {
                ' ' | '\t' | '\r' | '\n' | ';' => !escaped,
                // `${name}` belongs to the word.
                '{' => !escaped && before != '$',
                _ => false,
            };
            escaped = character == '\\' && !escaped;
            before = character;
            ends
        });
        let end = end.map_or(self.rest.len(), |(at, _)| at);
        Token::Word(unescape(self.take(end)))
    }
}

/// nginx drops the backslash before quotes and itself, knows three letters, and leaves every other one alone.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let replacement = match (character, characters.peek()) {
            ('\\', Some(&next @ ('"' | '\'' | '\\'))) => Some(next),
            ('\\', Some('t')) => Some('\t'),
            ('\\', Some('r')) => Some('\r'),
            ('\\', Some('n')) => Some('\n'),
            _ => None,
        };
        if replacement.is_some() {
            characters.next();
        }
        out.push(replacement.unwrap_or(character));
    }
    out
}

/// Length of `[==[ … ]==]` at the beginning.
fn long_bracket(text: &[u8]) -> Option<usize> {
    let level = text.strip_prefix(b"[")?.iter().take_while(|&&byte| byte == b'=').count();
    if text.get(level + 1) != Some(&b'[') {
        return None;
    }
    let closing = [b"]".as_slice(), &vec![b'='; level], b"]"].concat();
    let inside = &text[level + 2..];
    let end = memchr::memmem::find(inside, &closing).map_or(inside.len(), |at| at + closing.len());
    Some(level + 2 + end)
}

/// Length of a Lua string after its opening quote, closing quote included; it ends at the end of the line at the latest.
fn short_string(text: &[u8], quote: u8) -> usize {
    let mut escaped = false;
    let end = text.iter().position(|&byte| {
        let ends = !escaped && (byte == quote || byte == b'\n');
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |at| at + 1)
}
